/* SPDX-License-Identifier: MIT
 * kern_i8.h: kernels over packed int8 pages, the primitives that the host lends to codecs. A part
 * of kern_impl.h, after kern_row.h and kern_page.h. Layout and rounding stand in kern.h. It knows
 * nothing of policies. */
#ifndef KVC_KERN_I8_H
#define KVC_KERN_I8_H

#define I8_SCALES (KVC__ENTRIES * 2u) /* bytes in front of the values */

/* ---- packing */

/* One row's scale as stored, written to the page's head; its value is returned. */
INLINE float i8_put_scale(const float *row, uint32_t dim, uint8_t *dst, uint32_t e) {
    uint16_t h = half_f16(half_float((uint32_t)row_amax_bits(row, dim)) / 127.0f);
    memcpy(dst + e * sizeof h, &h, sizeof h);
    return half_of_f16(h);
}

/* Elements of a row as int8. The clamp comes first, so that nothing out of range is converted: NaN
 * becomes -127. */
INLINE vi i8_round(vf x, float scale_of_row) {
    if (!(scale_of_row > 0.0f)) {
        return vi_zero();
    }
    vf y = vf_div(x, vf_set1(scale_of_row));
    return vi_from_vf(vf_min(vf_max(y, vf_set1(-127.0f)), vf_set1(127.0f)));
}

static void i8_pack_k(const float *rows, uint32_t stride, uint32_t dim, void *dst) {
    uint8_t *out = dst;
    for (uint32_t e = 0; e < KVC__ENTRIES; e++) {
        const float *row = rows + (size_t)e * stride;
        const float s = i8_put_scale(row, dim, out, e);
        for (uint32_t d = 0; d < dim; d += 16) {
            int8_t q[16];
            vi_store_s8_n(q, i8_round(vf_load_n(row + d, dim - d), s), 16);
            for (uint32_t j = 0; j < 16 && d + j < dim; j += 4) {
                const size_t quad = (size_t)((d + j) / 4) * KVC__ENTRIES + e;
                memcpy(out + I8_SCALES + 4 * quad, q + j, 4);
            }
        }
    }
}

static void i8_pack_v(const float *rows, uint32_t stride, uint32_t dim, void *dst) {
    uint8_t *out = dst;
    for (uint32_t e = 0; e < KVC__ENTRIES; e++) {
        const float *row = rows + (size_t)e * stride;
        const float s = i8_put_scale(row, dim, out, e);
        int8_t *q = (int8_t *)out + I8_SCALES + (size_t)e * dim;
        for (uint32_t d = 0; d < dim; d += 16) {
            vi_store_s8_n(q + d, i8_round(vf_load_n(row + d, dim - d), s), dim - d);
        }
    }
}

static void i8_unpack_k(const void *src, uint32_t dim, float *out) {
    const int8_t *q = (const int8_t *)src + I8_SCALES;
    float s[KVC__ENTRIES];
    for (uint32_t e = 0; e < KVC__ENTRIES; e += 16) {
        vf_store(s + e, vf_load_f16((const uint8_t *)src + 2 * e));
    }
    for (uint32_t e = 0; e < KVC__ENTRIES; e++) {
        for (uint32_t d = 0; d < dim; d++) {
            const size_t at = ((size_t)(d / 4) * KVC__ENTRIES + e) * 4 + d % 4;
            out[(size_t)e * dim + d] = (float)q[at] * s[e];
        }
    }
}

static void i8_unpack_v(const void *src, uint32_t dim, float *out) {
    const uint8_t *q = (const uint8_t *)src + I8_SCALES;
    float s[KVC__ENTRIES];
    for (uint32_t e = 0; e < KVC__ENTRIES; e += 16) {
        vf_store(s + e, vf_load_f16((const uint8_t *)src + 2 * e));
    }
    for (uint32_t e = 0; e < KVC__ENTRIES; e++, q += dim, out += dim) {
        for (uint32_t d = 0; d < dim; d += 16) {
            vf x = page_load_n(PAGE_I8, q, d, dim - d);
            vf_store_n(out + d, vf_mul(x, vf_set1(s[e])), dim - d);
        }
    }
}

/* ---- scores, float query */

/* 16 n_vec entries from e on. n_q and n_vec are constants. */
INLINE void i8_score_f_tile(uint32_t n_q, uint32_t n_vec, uint32_t e, const uint8_t *src,
                            uint32_t dim, const float *q, float *s) {
    vf acc[PAGE_ROWS][4];
    UNROLL for (uint32_t i = 0; i < n_q; i++) {
        UNROLL for (uint32_t v = 0; v < n_vec; v++) {
            acc[i][v] = vf_zero();
        }
    }
    const uint8_t *k = src + I8_SCALES + 4 * e;
    for (uint32_t d = 0; d < dim; d += 4, k += 4 * KVC__ENTRIES) {
        UNROLL for (uint32_t j = 0; j < 4; j++) {
            UNROLL for (uint32_t v = 0; v < n_vec; v++) {
                vf kv = vf_from_vi(vi_sbyte(vi_load(k + 64 * v), j));
                const float *x = v > 0 ? vec_again(q + d + j) : q + d + j;
                UNROLL for (uint32_t i = 0; i < n_q; i++) {
                    acc[i][v] = vf_fma(vf_set1(x[(size_t)i * dim]), kv, acc[i][v]);
                }
            }
        }
    }
    UNROLL for (uint32_t i = 0; i < n_q; i++) {
        UNROLL for (uint32_t v = 0; v < n_vec; v++) {
            vf y = vf_mul(acc[i][v], vf_load_f16(src + 2 * e + 32 * v));
            vf_store(s + i * KVC__ENTRIES + e + 16 * v, y);
        }
    }
}

INLINE void i8_score_f_rows(uint32_t n_q, const uint8_t *src, uint32_t dim, const float *q,
                            float *s) {
    for (uint32_t e = 0; e < KVC__ENTRIES; e += 16 * PAGE_VECS(n_q)) {
        i8_score_f_tile(n_q, PAGE_VECS(n_q), e, src, dim, q, s);
    }
}

static void i8_score_f(const void *src, uint32_t dim, const float *q, uint32_t n_q, float *s) {
#define I8_CALL(n) i8_score_f_rows(n, src, dim, q, s)
    for (; n_q >= PAGE_ROWS; n_q -= PAGE_ROWS, q += PAGE_ROWS * dim) {
        I8_CALL(PAGE_ROWS);
        s += PAGE_ROWS * KVC__ENTRIES;
    }
    if (n_q > 0) {
        PAGE_BY_ROWS(n_q, I8_CALL)
    }
#undef I8_CALL
}

/* ---- mix, float weights */

static void i8_mix_f(const void *src, uint32_t dim, const float *p, uint32_t n_q, float *acc) {
    const uint8_t *values = (const uint8_t *)src + I8_SCALES;
    float ps[PAGE_ROWS * KVC__ENTRIES];
    for (uint32_t i = 0; i < n_q; i += PAGE_ROWS) {
        const uint32_t n = n_q - i < PAGE_ROWS ? n_q - i : PAGE_ROWS;
        for (uint32_t j = 0; j < n * KVC__ENTRIES; j += 16) {
            vf s = vf_load_f16((const uint8_t *)src + 2 * (j % KVC__ENTRIES));
            vf_store(ps + j, vf_mul(vf_load(p + (size_t)i * KVC__ENTRIES + j), s));
        }
        page_mix(PAGE_I8, values, dim, ps, KVC__ENTRIES, n, acc + (size_t)i * dim);
    }
}

#endif
