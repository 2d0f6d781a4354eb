/* SPDX-License-Identifier: MIT
 * kern_rounded.h: scores and mixes over packed half pages with queries and weights rounded to
 * integers, so that all products are dots of bytes; and the choice of a kernel by bits. The last
 * part of kern_impl.h. A query row takes one byte an element. A weight takes two, for few entries
 * have nearly all of it: what one byte would make of the others is no longer noise. The order of
 * operations stands in kern.h. It knows nothing of policies. */
#ifndef KVC_KERN_ROUNDED_H
#define KVC_KERN_ROUNDED_H

/* ---- queries rounded to int8 */

#define I8_SPAN 64u /* elements of a query that are rounded at a time */

/* Query rows rounded to int8, and what is left to do with their dots. */
typedef struct i8_query {
    int8_t q[PAGE_ROWS][I8_SPAN];
    int32_t bits[PAGE_ROWS]; /* of the largest magnitude */
    float d[PAGE_ROWS];
    float inverse[PAGE_ROWS];
    vi sum[PAGE_ROWS]; /* lane sums of q */
} i8_query;

INLINE void i8_query_scale(i8_query *x, uint32_t i, int32_t bits) {
    const float amax = half_float((uint32_t)bits);
    x->bits[i] = bits;
    x->d[i] = amax / 127.0f;
    x->inverse[i] = row_inverse(amax);
    x->sum[i] = vi_zero();
}

INLINE void i8_query_init(i8_query *x, uint32_t n_q, const float *q, uint32_t dim) {
    for (uint32_t i = 0; i < n_q; i++) {
        i8_query_scale(x, i, row_amax_bits(q + (size_t)i * dim, dim));
    }
}

/* Rounds 16 elements of row i to place j on. */
INLINE void i8_query_put(i8_query *x, uint32_t i, uint32_t j, vf v) {
    vi r = row_round(v, x->inverse[i], x->bits[i]);
    x->sum[i] = vi_add(x->sum[i], r);
    vi_store_s8_n(x->q[i] + j, r, 16);
}

/* Rounds elements d to d + n, n at most I8_SPAN; up to a multiple of 16, zeros follow the row. */
INLINE void i8_query_next(i8_query *x, uint32_t n_q, const float *q, uint32_t dim, uint32_t d,
                          uint32_t n) {
    for (uint32_t i = 0; i < n_q; i++) {
        for (uint32_t j = 0; j < n; j += 16) {
            i8_query_put(x, i, j, vf_load_n(q + (size_t)i * dim + d + j, dim - d - j));
        }
    }
}

/* ---- scores of bytes */

/* Continues the dots of n_vec vectors of entries from v0 on with n elements of the rounded rows.
 * n_q and n_vec are constants. */
INLINE void i8_score_q_tile(uint32_t n_q, uint32_t n_vec, uint32_t v0, const i8_query *x,
                            const uint8_t *k, uint32_t n, vi acc[PAGE_ROWS][4]) {
    vi r[PAGE_ROWS][4];
    UNROLL for (uint32_t i = 0; i < n_q; i++) {
        UNROLL for (uint32_t v = 0; v < n_vec; v++) {
            r[i][v] = acc[i][v0 + v];
        }
    }
    for (uint32_t d = 0; d < n; d += 4, k += 4 * KVC__ENTRIES) {
        vb kv[4];
        UNROLL for (uint32_t v = 0; v < n_vec; v++) {
            kv[v] = vb_load(k + 64 * (v0 + v));
        }
        UNROLL for (uint32_t i = 0; i < n_q; i++) {
            vi b = vi_bytes4(x->q[i] + d);
            UNROLL for (uint32_t v = 0; v < n_vec; v++) {
                r[i][v] = vb_dot(r[i][v], kv[v], b);
            }
        }
    }
    UNROLL for (uint32_t i = 0; i < n_q; i++) {
        UNROLL for (uint32_t v = 0; v < n_vec; v++) {
            acc[i][v0 + v] = r[i][v];
        }
    }
}

INLINE void i8_score_q_rows(uint32_t n_q, const uint8_t *src, uint32_t dim, const float *q,
                            float *s) {
    const uint8_t *k = src + I8_SCALES;
    vi acc[PAGE_ROWS][4];
    i8_query x;
    i8_query_init(&x, n_q, q, dim);
    for (uint32_t i = 0; i < n_q; i++) {
        for (uint32_t v = 0; v < 4; v++) {
            acc[i][v] = vi_zero();
        }
    }
    for (uint32_t d = 0; d < dim; d += I8_SPAN) {
        const uint32_t n = dim - d < I8_SPAN ? dim - d : I8_SPAN;
        i8_query_next(&x, n_q, q, dim, d, n);
        for (uint32_t v = 0; v < 4; v += PAGE_DOTS(n_q)) {
            i8_score_q_tile(n_q, PAGE_DOTS(n_q), v, &x, k + (size_t)d * KVC__ENTRIES, n, acc);
        }
    }
    int32_t off[PAGE_ROWS];
    for (uint32_t i = 0; i < n_q; i++) {
        off[i] = VB_BIAS * vi_sum(x.sum[i]);
    }
    for (uint32_t v = 0; v < 4; v++) {
        vf scale = vf_load_f16(src + 32 * v);
        for (uint32_t i = 0; i < n_q; i++) {
            vf y = vf_from_vi(vi_sub(acc[i][v], vi_set1(off[i])));
            y = vf_mul(y, vf_mul(vf_set1(x.d[i]), scale));
            vf_store(s + i * KVC__ENTRIES + 16 * v, y);
        }
    }
}

static void i8_score_q(const void *src, uint32_t dim, const float *q, uint32_t n_q, float *s) {
#define I8_CALL(n) i8_score_q_rows(n, src, dim, q, s)
    for (; n_q >= PAGE_ROWS; n_q -= PAGE_ROWS, q += PAGE_ROWS * dim) {
        I8_CALL(PAGE_ROWS);
        s += PAGE_ROWS * KVC__ENTRIES;
    }
    if (n_q > 0) {
        PAGE_BY_ROWS(n_q, I8_CALL)
    }
#undef I8_CALL
}

/* ---- scores of 4 and 2 bits */

#define PACK_RUN 32u /* elements whose dots are under way together */

INLINE vi pack_codes(uint32_t bits, vi x, uint32_t plane) {
    return vi_and(vi_shr(x, bits * plane), vi_set1(bits == 4 ? 0x0f0f0f0f : 0x03030303));
}

/* Continues the dots of n_vec vectors of entries from v0 on with the rounded elements of n_word
 * words. n_q and n_vec are constants. */
INLINE void pack_dots(uint32_t bits, uint32_t n_q, uint32_t n_vec, uint32_t v0, const i8_query *x,
                      const uint8_t *word, uint32_t n_word, vi acc[PAGE_ROWS][4]) {
    vd r[PAGE_ROWS][4];
    UNROLL for (uint32_t i = 0; i < n_q; i++) {
        UNROLL for (uint32_t v = 0; v < n_vec; v++) {
            r[i][v] = vd_start(acc[i][v0 + v]);
        }
    }
    for (uint32_t w = 0; w < n_word; w++, word += 4 * KVC__ENTRIES) {
        UNROLL for (uint32_t v = 0; v < n_vec; v++) {
            const vi k = vi_load(word + 64 * (v0 + v));
            UNROLL for (uint32_t j = 0; j < 8 / bits; j++) {
                const vi u = pack_codes(bits, k, j);
                UNROLL for (uint32_t i = 0; i < n_q; i++) {
                    r[i][v] = vd_dot(r[i][v], u, vi_bytes4(x->q[i] + 4 * (w * (8 / bits) + j)));
                }
            }
        }
    }
    UNROLL for (uint32_t i = 0; i < n_q; i++) {
        UNROLL for (uint32_t v = 0; v < n_vec; v++) {
            acc[i][v0 + v] = vd_sum(r[i][v]);
        }
    }
}

INLINE uint32_t pack_words(uint32_t bits, uint32_t n) {
    return (n + 32 / bits - 1) / (32 / bits);
}

INLINE void pack_zero(uint32_t n_q, vi acc[PAGE_ROWS][4]) {
    UNROLL for (uint32_t i = 0; i < n_q; i++) {
        UNROLL for (uint32_t v = 0; v < 4; v++) {
            acc[i][v] = vi_zero();
        }
    }
}

/* Adds what the dots of group g come to. */
INLINE void pack_add_group(uint32_t n_q, const pack_page *x, uint32_t g, i8_query *r,
                           vi acc[PAGE_ROWS][4], float *s) {
    vf sum[PAGE_ROWS], d[PAGE_ROWS];
    for (uint32_t i = 0; i < n_q; i++) {
        sum[i] = vf_set1((float)vi_sum(r->sum[i]));
        d[i] = vf_set1(r->d[i]);
        r->sum[i] = vi_zero();
    }
    UNROLL for (uint32_t v = 0; v < 4; v++) {
        const size_t at = (size_t)g * KVC__ENTRIES + 16 * v;
        const vf scale = pack_scale(x, at, 16), min = pack_min(x, at, 16, scale);
        UNROLL for (uint32_t i = 0; i < n_q; i++) {
            float *to = s + i * KVC__ENTRIES + 16 * v;
            vf y = vf_fma(vf_from_vi(acc[i][v]), vf_mul(d[i], scale), vf_load(to));
            vf_store(to, vf_fma(sum[i], vf_mul(d[i], min), y));
        }
    }
}

INLINE void pack_score_q_groups(uint32_t bits, uint32_t n_q, const pack_page *x, const float *q,
                                float *s) {
    const uint32_t dim = x->l.dim;
    i8_query r;
    i8_query_init(&r, n_q, q, dim);
    memset(s, 0, n_q * KVC__ENTRIES * sizeof *s);
    for (uint32_t g = 0; g < x->l.n_group; g++) {
        const uint32_t end = dim - g * x->l.group < x->l.group ? dim : (g + 1) * x->l.group;
        vi acc[PAGE_ROWS][4];
        pack_zero(n_q, acc);
        for (uint32_t d = g * x->l.group; d < end; d += PACK_RUN) {
            const uint32_t n = end - d < PACK_RUN ? end - d : PACK_RUN;
            i8_query_next(&r, n_q, q, dim, d, n);
            for (uint32_t v = 0; v < 4; v += PAGE_DOTS(n_q)) {
                pack_dots(bits, n_q, PAGE_DOTS(n_q), v, &r, pack_word(x, d * bits / 32, 0),
                          pack_words(bits, n), acc);
            }
        }
        pack_add_group(n_q, x, g, &r, acc, s);
    }
}

/* 16 elements of a query from d on as the channels of block b take them: times their scales, and
 * what the middle of the codes adds to base. */
INLINE vf pack_channel(const pack_page *x, uint32_t b, const float *q, uint32_t d, vf *base) {
    const uint32_t n = x->l.dim - d;
    const size_t at = (size_t)b * x->l.dim + d;
    const vf scale = pack_scale(x, at, n), y = vf_load_n(q + d, n);
    const vf middle = vf_set1((float)(1u << (x->l.bits - 1)));
    *base = vf_fma(y, vf_fma(middle, scale, pack_min(x, at, n, scale)), *base);
    return vf_mul(y, scale);
}

INLINE void pack_score_q_channels(uint32_t bits, uint32_t n_q, const pack_page *x, const float *q,
                                  float *s) {
    const uint32_t dim = x->l.dim;
    i8_query r[2]; /* for either half of the entries */
    vf base[2][PAGE_ROWS];
    vi acc[PAGE_ROWS][4];
    for (uint32_t i = 0; i < 2 * n_q; i++) {
        vi amax = vi_zero();
        vf *sum = &base[i % 2][i / 2];
        *sum = vf_zero();
        for (uint32_t d = 0; d < dim; d += 16) {
            vf y = pack_channel(x, i % 2 * x->l.n_group / 2, q + (size_t)(i / 2) * dim, d, sum);
            amax = vi_max(amax, row_abs_bits(y));
        }
        i8_query_scale(&r[i % 2], i / 2, vi_max_all(amax));
    }
    pack_zero(n_q, acc);
    for (uint32_t d = 0; d < dim; d += PACK_RUN) {
        const uint32_t n = dim - d < PACK_RUN ? dim - d : PACK_RUN;
        for (uint32_t i = 0; i < 2 * n_q; i++) {
            vf unused = vf_zero();
            for (uint32_t j = 0; j < n; j += 16) {
                i8_query_put(&r[i % 2], i / 2, j,
                             pack_channel(x, i % 2 * x->l.n_group / 2, q + (size_t)(i / 2) * dim,
                                          d + j, &unused));
            }
        }
        for (uint32_t v = 0; v < 4; v += PAGE_HALF(n_q)) {
            pack_dots(bits, n_q, PAGE_HALF(n_q), v, &r[v / 2], pack_word(x, d * bits / 32, 0),
                      pack_words(bits, n), acc);
        }
    }
    UNROLL for (uint32_t i = 0; i < n_q; i++) {
        UNROLL for (uint32_t v = 0; v < 4; v++) {
            const int32_t middle = vi_sum(r[v / 2].sum[i]) * (1 << (bits - 1));
            const vf y = vf_from_vi(vi_sub(acc[i][v], vi_set1(middle)));
            const vf z = vf_set1(vf_sum(base[v / 2][i]));
            vf_store(s + i * KVC__ENTRIES + 16 * v, vf_fma(y, vf_set1(r[v / 2].d[i]), z));
        }
    }
}

INLINE void pack_score_q_rows(uint32_t bits, const kvc_packing *p, const void *src, const float *q,
                              uint32_t n_q, float *s) {
    const pack_page x = pack_open(p, src);
#define PACK_GROUPS(n)   pack_score_q_groups(bits, n, &x, q, s)
#define PACK_CHANNELS(n) pack_score_q_channels(bits, n, &x, q, s)
    while (n_q > 0) {
        const uint32_t n = n_q < PAGE_ROWS ? n_q : PAGE_ROWS;
        if (x.l.group > 0) {
            PAGE_BY_ROWS(n, PACK_GROUPS)
        } else {
            PAGE_BY_ROWS(n, PACK_CHANNELS)
        }
        n_q -= n;
        q += n * x.l.dim;
        s += n * KVC__ENTRIES;
    }
#undef PACK_GROUPS
#undef PACK_CHANNELS
}

/* ---- weights rounded to 14 bits and a sign */

#define WEIGHT_MOST (127.0f * 128.0f)

/* Rows of a page's weights: in units of step 128 × hi + lo, hi within ±127, lo from 0 to 127. */
typedef struct weights {
    int8_t hi[PAGE_ROWS][KVC__ENTRIES], lo[PAGE_ROWS][KVC__ENTRIES];
    float step[PAGE_ROWS];
    int32_t sum[PAGE_ROWS];
} weights;

/* Where the largest isn't finite all become 0, and the step makes the sums not a number. */
INLINE void weights_round(weights *x, uint32_t n_q, const float *w) {
    for (uint32_t i = 0; i < n_q; i++, w += KVC__ENTRIES) {
        const int32_t bits = row_amax_bits(w, KVC__ENTRIES);
        const float amax = half_float((uint32_t)bits);
        float inverse = amax > 0.0f ? WEIGHT_MOST / amax : 0.0f;
        inverse = inverse < INFINITY ? inverse : 0.0f;
        vi sum = vi_zero();
        for (uint32_t e = 0; e < KVC__ENTRIES; e += 16) {
            const vi r = row_round(vf_load(w + e), inverse, bits);
            vi_store_s8_n(x->hi[i] + e, vi_shr(r, 7), 16);
            vi_store_s8_n(x->lo[i] + e, vi_and(r, vi_set1(127)), 16);
            sum = vi_add(sum, r);
        }
        x->step[i] = amax / WEIGHT_MOST;
        x->sum[i] = vi_sum(sum);
    }
}

/* ---- mixes of bytes */

/* What the rounded weights of n_q rows make of n_vec vectors of elements. n_q and n_vec are
 * constants; n_vec 2: those of half `half` of vi_weave(), 1: of vi_quad(). A step takes 64 n_vec
 * bytes and n_vec n_q times 64 multiply-adds, in twice as many dots; these bound it. */
INLINE void i8_mix_q_dots(uint32_t n_q, uint32_t n_vec, uint32_t half, const uint8_t *values,
                          size_t stride, const weights *w, vf y[PAGE_ROWS][4]) {
    vw sum[PAGE_ROWS][2];
    UNROLL for (uint32_t i = 0; i < n_q; i++) {
        UNROLL for (uint32_t v = 0; v < n_vec; v++) {
            sum[i][v] = vw_zero();
        }
    }
    for (uint32_t e = 0; e < KVC__ENTRIES; e += 4) {
        vi x[2];
        vb b[2];
        if (n_vec == 2) {
            vi_weave(values + e * stride, stride, half, x);
        } else {
            x[0] = vi_quad(values + e * stride, stride);
        }
        UNROLL for (uint32_t v = 0; v < n_vec; v++) {
            b[v] = vb_of(x[v]);
        }
        UNROLL for (uint32_t i = 0; i < n_q; i++) {
            const vi h = vi_bytes4(w->hi[i] + e), l = vi_bytes4(w->lo[i] + e);
            UNROLL for (uint32_t v = 0; v < n_vec; v++) {
                sum[i][v] = vw_dot(sum[i][v], b[v], h, l);
            }
        }
    }
    UNROLL for (uint32_t i = 0; i < n_q; i++) {
        const vi off = vi_set1(VB_BIAS * w->sum[i]);
        UNROLL for (uint32_t v = 0; v < n_vec; v++) {
            y[i][n_vec * half + v] = vf_from_vi(vi_sub(vw_sum(sum[i][v]), off));
        }
    }
}

/* acc += step × y for the first n elements of n_vec vectors. */
INLINE void i8_mix_q_add(uint32_t n_q, uint32_t n_vec, uint32_t n, const weights *w,
                         vf y[PAGE_ROWS][4], float *acc, size_t stride) {
    UNROLL for (uint32_t i = 0; i < n_q; i++) {
        UNROLL for (uint32_t v = 0; v < n_vec; v++) {
            float *to = acc + i * stride + 16 * v;
            const vf sum = vf_fma(y[i][v], vf_set1(w->step[i]), vf_load_n(to, n - 16 * v));
            vf_store_n(to, sum, n - 16 * v);
        }
    }
}

/* The last n of a row's elements, fewer than 16. */
INLINE void i8_mix_q_end(uint32_t n_q, const uint8_t *values, size_t stride, uint32_t n,
                         const weights *w, float *acc) {
    uint8_t end[KVC__ENTRIES][16] = {{0}};
    vf y[PAGE_ROWS][4];
    for (uint32_t e = 0; e < KVC__ENTRIES; e++) {
        memcpy(end[e], values + e * stride, n);
    }
    i8_mix_q_dots(n_q, 1, 0, end[0], 16, w, y);
    i8_mix_q_add(n_q, 1, n, w, y, acc, stride);
}

INLINE void i8_mix_q_rows(uint32_t n_q, const uint8_t *src, uint32_t dim, const float *p,
                          float *acc) {
    float scaled[PAGE_ROWS * KVC__ENTRIES];
    weights w;
    for (uint32_t j = 0; j < n_q * KVC__ENTRIES; j += 16) {
        vf_store(scaled + j, vf_mul(vf_load(p + j), vf_load_f16(src + 2 * (j % KVC__ENTRIES))));
    }
    weights_round(&w, n_q, scaled);
    const uint8_t *values = src + I8_SCALES;
    vf y[PAGE_ROWS][4];
    uint32_t d = 0;
    for (; dim - d >= 64; d += 64) {
        i8_mix_q_dots(n_q, 2, 0, values + d, dim, &w, y);
        i8_mix_q_dots(n_q, 2, 1, values + d, dim, &w, y);
        UNROLL for (uint32_t i = 0; i < n_q; i++) {
            vf_unweave(y[i]);
        }
        i8_mix_q_add(n_q, 4, 64, &w, y, acc + d, dim);
    }
    for (; dim - d >= 16; d += 16) {
        i8_mix_q_dots(n_q, 1, 0, values + d, dim, &w, y);
        i8_mix_q_add(n_q, 1, 16, &w, y, acc + d, dim);
    }
    if (d < dim) {
        i8_mix_q_end(n_q, values + d, dim, dim - d, &w, acc + d);
    }
}

static void i8_mix_q(const void *src, uint32_t dim, const float *p, uint32_t n_q, float *acc) {
#define I8_CALL(n) i8_mix_q_rows(n, src, dim, p, acc)
    for (; n_q >= PAGE_ROWS; n_q -= PAGE_ROWS, p += PAGE_ROWS * KVC__ENTRIES) {
        I8_CALL(PAGE_ROWS);
        acc += PAGE_ROWS * dim;
    }
    if (n_q > 0) {
        PAGE_BY_ROWS(n_q, I8_CALL)
    }
#undef I8_CALL
}

/* ---- by bits */

static void pack_k(const kvc_packing *p, const float *rows, uint32_t stride, void *dst) {
    if (p->bits == 8) {
        i8_pack_k(rows, stride, p->dim, dst);
    } else {
        pack_rows(p, true, rows, stride, dst);
    }
}

static void pack_v(const kvc_packing *p, const float *rows, uint32_t stride, void *dst) {
    if (p->bits == 8) {
        i8_pack_v(rows, stride, p->dim, dst);
    } else {
        pack_rows(p, false, rows, stride, dst);
    }
}

static void unpack_k(const kvc_packing *p, const void *src, float *out) {
    if (p->bits == 8) {
        i8_unpack_k(src, p->dim, out);
    } else {
        pack_unrows(p, true, src, out);
    }
}

static void unpack_v(const kvc_packing *p, const void *src, float *out) {
    if (p->bits == 8) {
        i8_unpack_v(src, p->dim, out);
    } else {
        pack_unrows(p, false, src, out);
    }
}

static void pack_score_f(const kvc_packing *p, const void *src, const float *q, uint32_t n_q,
                         float *s) {
    switch (p->bits) {
    case 8:
        i8_score_f(src, p->dim, q, n_q, s);
        break;
    case 4:
        pack_score(4, p, src, q, n_q, s);
        break;
    default:
        pack_score(2, p, src, q, n_q, s);
        break;
    }
}

static void pack_score_q(const kvc_packing *p, const void *src, const float *q, uint32_t n_q,
                         float *s) {
    switch (p->bits) {
    case 8:
        i8_score_q(src, p->dim, q, n_q, s);
        break;
    case 4:
        pack_score_q_rows(4, p, src, q, n_q, s);
        break;
    default:
        pack_score_q_rows(2, p, src, q, n_q, s);
        break;
    }
}

static void pack_mix_f(const kvc_packing *p, const void *src, const float *w, uint32_t n_q,
                       float *acc) {
    switch (p->bits) {
    case 8:
        i8_mix_f(src, p->dim, w, n_q, acc);
        break;
    case 4:
        pack_mix_page(4, p, src, w, n_q, acc);
        break;
    default:
        pack_mix_page(2, p, src, w, n_q, acc);
        break;
    }
}

/* 4 and 2 bits: measured, dots after taking the codes apart cost as much as what they save. */
static void pack_mix_q(const kvc_packing *p, const void *src, const float *w, uint32_t n_q,
                       float *acc) {
    if (p->bits == 8) {
        i8_mix_q(src, p->dim, w, n_q, acc);
    } else {
        pack_mix_f(p, src, w, n_q, acc);
    }
}

#endif
