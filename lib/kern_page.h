/* SPDX-License-Identifier: MIT
 * kern_page.h: kernels over one page of 64 entries held as plain floats (F32, F16, BF16) or as int8
 * with a scale per row. A part of kern_impl.h, written in the words of vec_*.h. Scores have an
 * entry per lane, mixes an element per lane; each vector of keys or values that is loaded serves
 * several query rows, and how many changes speed alone. It knows nothing of tables of pages. */
#ifndef KVC_KERN_PAGE_H
#define KVC_KERN_PAGE_H

#define PAGE_I8 99u /* beside KVC_TYPE_…: signed bytes */

/* The template of a call with a constant number of query rows. */
#define PAGE_BY_ROWS(n, call)                                                                      \
    switch (n) {                                                                                   \
    case 1:                                                                                        \
        call(1);                                                                                   \
        break;                                                                                     \
    case 2:                                                                                        \
        call(2);                                                                                   \
        break;                                                                                     \
    case 3:                                                                                        \
        call(3);                                                                                   \
        break;                                                                                     \
    case 4:                                                                                        \
        call(4);                                                                                   \
        break;                                                                                     \
    case 5:                                                                                        \
        call(5);                                                                                   \
        break;                                                                                     \
    default:                                                                                       \
        call(6);                                                                                   \
        break;                                                                                     \
    }

INLINE size_t page_size(uint32_t type) {
    return type == KVC_TYPE_F32 ? 4 : type == PAGE_I8 ? 1 : 2;
}

/* Elements i to i + 15 of an array of that type, or the first n of them. */
INLINE vf page_load(uint32_t type, const uint8_t *p, size_t i) {
    p += i * page_size(type);
    switch (type) {
    case KVC_TYPE_F32:
        return vf_load((const float *)(const void *)p);
    case KVC_TYPE_F16:
        return vf_load_f16(p);
    case KVC_TYPE_BF16:
        return vf_load_bf16(p);
    default:
        return vf_from_vi(vi_load_s8((const int8_t *)p));
    }
}

INLINE vf page_load_n(uint32_t type, const uint8_t *p, size_t i, uint32_t n) {
    p += i * page_size(type);
    switch (type) {
    case KVC_TYPE_F32:
        return vf_load_n((const float *)(const void *)p, n);
    case KVC_TYPE_F16:
        return vf_load_f16_n(p, n);
    case KVC_TYPE_BF16:
        return vf_load_bf16_n(p, n);
    default:
        return vf_from_vi(vi_load_s8_n((const int8_t *)p, n));
    }
}

INLINE void page_store_n(uint32_t type, void *p, vf x, uint32_t n) {
    switch (type) {
    case KVC_TYPE_F16:
        /* Beyond the largest f16 lies infinity, and a masked infinity would be 0 × inf. NaN stays.
         */
        vf_store_f16_n(p, vf_min(vf_set1(65504.0f), vf_max(vf_set1(-65504.0f), x)), n);
        break;
    case KVC_TYPE_BF16:
        vf_store_bf16_n(p, x, n);
        break;
    default:
        vf_store_n((float *)p, x, n);
        break;
    }
}

/* ---- rows in and out */

static void put_k(uint32_t type, const float *x, uint32_t dim, uint32_t e, void *page_k) {
    const size_t size = page_size(type);
    uint8_t *column = (uint8_t *)page_k + e * size;
    for (uint32_t d = 0; d < dim; d += 16) {
        uint8_t row[16 * sizeof(float)];
        page_store_n(type, row, vf_load_n(x + d, dim - d), 16);
        for (uint32_t l = 0; l < 16 && d + l < dim; l++) {
            memcpy(column + (size_t)(d + l) * KVC__ENTRIES * size, row + l * size, size);
        }
    }
}

static void put_v(uint32_t type, const float *x, uint32_t dim, uint32_t e, void *page_v) {
    const size_t size = page_size(type);
    uint8_t *row = (uint8_t *)page_v + (size_t)e * dim * size;
    for (uint32_t d = 0; d < dim; d += 16) {
        page_store_n(type, row + d * size, vf_load_n(x + d, dim - d), dim - d);
    }
}

static void get_k(uint32_t type, const void *page_k, uint32_t dim, float *out) {
    for (uint32_t d = 0; d < dim; d++) {
        for (uint32_t e = 0; e < KVC__ENTRIES; e += 16) {
            float x[16];
            vf_store(x, page_load(type, page_k, (size_t)d * KVC__ENTRIES + e));
            for (uint32_t l = 0; l < 16; l++) {
                out[(size_t)(e + l) * dim + d] = x[l];
            }
        }
    }
}

static void get_v(uint32_t type, const void *page_v, uint32_t dim, float *out) {
    const uint32_t n = KVC__ENTRIES * dim; /* a multiple of 16 */
    for (uint32_t i = 0; i < n; i += 16) {
        vf_store(out + i, page_load(type, page_v, i));
    }
}

/* ---- scores of plain keys */

/* The first 16 n_vec entries from k on. n_q and n_vec are constants. */
INLINE void page_score_tile(uint32_t type, uint32_t n_q, uint32_t n_vec, const uint8_t *k,
                            uint32_t dim, const float *q, float *s, size_t s_stride) {
    vf acc[PAGE_ROWS][4];
    UNROLL for (uint32_t i = 0; i < n_q; i++) {
        UNROLL for (uint32_t v = 0; v < n_vec; v++) {
            acc[i][v] = vf_zero();
        }
    }
    for (uint32_t d = 0; d < dim; d++) {
        UNROLL for (uint32_t v = 0; v < n_vec; v++) {
            vf kv = page_load(type, k, (size_t)d * KVC__ENTRIES + 16 * v);
            const float *x = v > 0 ? vec_again(q + d) : q + d;
            UNROLL for (uint32_t i = 0; i < n_q; i++) {
                acc[i][v] = vf_fma(vf_set1(x[(size_t)i * dim]), kv, acc[i][v]);
            }
        }
    }
    UNROLL for (uint32_t i = 0; i < n_q; i++) {
        UNROLL for (uint32_t v = 0; v < n_vec; v++) {
            vf_store(s + i * s_stride + 16 * v, acc[i][v]);
        }
    }
}

INLINE void page_score_rows(uint32_t type, uint32_t n_q, const uint8_t *k, uint32_t dim,
                            const float *q, float *s, size_t s_stride) {
    for (uint32_t e = 0; e < KVC__ENTRIES; e += 16 * PAGE_VECS(n_q)) {
        page_score_tile(type, n_q, PAGE_VECS(n_q), k + e * page_size(type), dim, q, s + e,
                        s_stride);
    }
}

INLINE void page_score(uint32_t type, const uint8_t *k, uint32_t dim, const float *q, uint32_t n_q,
                       float *s, size_t s_stride) {
#define PAGE_CALL(n) page_score_rows(type, n, k, dim, q, s, s_stride)
    for (; n_q >= PAGE_ROWS; n_q -= PAGE_ROWS, q += PAGE_ROWS * dim, s += PAGE_ROWS * s_stride) {
        PAGE_CALL(PAGE_ROWS);
    }
    if (n_q > 0) {
        PAGE_BY_ROWS(n_q, PAGE_CALL)
    }
#undef PAGE_CALL
}

static void score(uint32_t type, const void *page_k, uint32_t dim, const float *q, uint32_t n_q,
                  float *s, size_t s_stride) {
    switch (type) {
    case KVC_TYPE_F32:
        page_score(KVC_TYPE_F32, page_k, dim, q, n_q, s, s_stride);
        break;
    case KVC_TYPE_F16:
        page_score(KVC_TYPE_F16, page_k, dim, q, n_q, s, s_stride);
        break;
    case KVC_TYPE_BF16:
        page_score(KVC_TYPE_BF16, page_k, dim, q, n_q, s, s_stride);
        break;
    default:
        break;
    }
}

/* ---- mixes of values */

/* Elements [d, d + 16 n_vec) of the outputs of n_q query rows; for n_vec 1 only the first `lanes`
 * of them. n_q and n_vec are constants. */
INLINE void page_mix_tile(uint32_t type, uint32_t n_q, uint32_t n_vec, const uint8_t *values,
                          uint32_t dim, uint32_t d, uint32_t lanes, const float *p, size_t p_stride,
                          float *acc) {
    vf r[PAGE_ROWS][4];
    UNROLL for (uint32_t i = 0; i < n_q; i++) {
        UNROLL for (uint32_t v = 0; v < n_vec; v++) {
            const float *at = acc + (size_t)i * dim + d + 16 * v;
            r[i][v] = n_vec > 1 ? vf_load(at) : vf_load_n(at, lanes);
        }
    }
    for (uint32_t e = 0; e < KVC__ENTRIES; e++) {
        UNROLL for (uint32_t v = 0; v < n_vec; v++) {
            const size_t at = (size_t)e * dim + d + 16 * v;
            vf x = n_vec > 1 ? page_load(type, values, at) : page_load_n(type, values, at, lanes);
            const float *pe = v > 0 ? vec_again(p + e) : p + e;
            UNROLL for (uint32_t i = 0; i < n_q; i++) {
                r[i][v] = vf_fma(vf_set1(pe[i * p_stride]), x, r[i][v]);
            }
        }
    }
    UNROLL for (uint32_t i = 0; i < n_q; i++) {
        UNROLL for (uint32_t v = 0; v < n_vec; v++) {
            vf_store_n(acc + (size_t)i * dim + d + 16 * v, r[i][v], n_vec > 1 ? 16 : lanes);
        }
    }
}

INLINE void page_mix_rows(uint32_t type, uint32_t n_q, const uint8_t *values, uint32_t dim,
                          const float *p, size_t p_stride, float *acc) {
    uint32_t d = 0;
    for (; dim - d >= 16 * PAGE_VECS(n_q); d += 16 * PAGE_VECS(n_q)) {
        page_mix_tile(type, n_q, PAGE_VECS(n_q), values, dim, d, 16, p, p_stride, acc);
    }
    for (; d < dim; d += 16) {
        page_mix_tile(type, n_q, 1, values, dim, d, dim - d, p, p_stride, acc);
    }
}

INLINE void page_mix(uint32_t type, const uint8_t *values, uint32_t dim, const float *p,
                     size_t p_stride, uint32_t n_q, float *acc) {
#define PAGE_CALL(n) page_mix_rows(type, n, values, dim, p, p_stride, acc)
    for (; n_q >= PAGE_ROWS; n_q -= PAGE_ROWS, p += PAGE_ROWS * p_stride, acc += PAGE_ROWS * dim) {
        PAGE_CALL(PAGE_ROWS);
    }
    if (n_q > 0) {
        PAGE_BY_ROWS(n_q, PAGE_CALL)
    }
#undef PAGE_CALL
}

static void mix(uint32_t type, const void *page_v, uint32_t dim, const float *p, size_t p_stride,
                uint32_t n_q, float *acc) {
    switch (type) {
    case KVC_TYPE_F32:
        page_mix(KVC_TYPE_F32, page_v, dim, p, p_stride, n_q, acc);
        break;
    case KVC_TYPE_F16:
        page_mix(KVC_TYPE_F16, page_v, dim, p, p_stride, n_q, acc);
        break;
    case KVC_TYPE_BF16:
        page_mix(KVC_TYPE_BF16, page_v, dim, p, p_stride, n_q, acc);
        break;
    default:
        break;
    }
}

#endif
