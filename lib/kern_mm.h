/* SPDX-License-Identifier: MIT
 * kern_mm.h: products of packed weights and activations. A part of kern_impl.h, written in the
 * words of vec_*.h. Lanes are output rows; every output is one chain over the columns in ascending
 * order, so how many tokens and row groups are worked on side by side (the tiles below) changes
 * speed alone. It knows nothing of what a matrix is for. */
#ifndef KVC_KERN_MM_H
#define KVC_KERN_MM_H

#define MM_AHEAD 4096u /* bytes that weights are fetched ahead of use */

/* ---- blocks of quantised weights */

INLINE size_t mm_block_bytes(uint32_t type) {
    return type == KVC__T_Q8_0 ? 544 : type == KVC__T_Q4_0 ? 288 : 320;
}

/* The block's bytes, unsigned: vector i holds columns 4i to 4i + 3 of 16 rows. */
INLINE void mm_unpack(uint32_t type, const uint8_t *w, vi *out) {
    if (type == KVC__T_Q8_0) {
        UNROLL for (uint32_t i = 0; i < 8; i++) {
            out[i] = vi_load(w + 32 + 64 * i);
        }
        return;
    }
    const uint8_t *nibble = w + (type == KVC__T_Q4_0 ? 32 : 64);
    vi low = vi_set1(0x0f0f0f0f);
    UNROLL for (uint32_t i = 0; i < 4; i++) {
        vi v = vi_load(nibble + 64 * i);
        out[i] = vi_and(v, low);
        out[i + 4] = vi_and(vi_shr(v, 4), low);
    }
}

/* Asks for a block's lines. With one token the processor's own prefetching keeps up; with more it
 * falls behind the gaps that arithmetic makes. */
INLINE void mm_fetch(uint32_t type, const uint8_t *w) {
    UNROLL
    for (uint32_t i = 0; i < mm_block_bytes(type); i += 64) {
        vec_prefetch(w + i);
    }
}

/* What the unpacked bytes of a type are above their values. */
INLINE int32_t mm_bias(uint32_t type) {
    return type == KVC__T_Q8_0 ? 128 : type == KVC__T_Q4_0 ? 8 : 0;
}

/* ---- int8 products */

/* n_tok dots of one block of bytes with 16 rows: sums over 32 columns of value × q, side by side.
 */
INLINE void mm_q_bytes(uint32_t n_tok, const uint8_t *w, const int8_t *q, size_t q_stride,
                       const int32_t *sum, size_t sum_stride, vi *out) {
    UNROLL for (uint32_t t = 0; t < n_tok; t++) {
        out[t] = vi_set1(-VB_BIAS * sum[t * sum_stride]);
    }
    UNROLL for (uint32_t i = 0; i < 8; i++) {
        vb v = vb_load_biased(w + 32 + 64 * i);
        UNROLL for (uint32_t t = 0; t < n_tok; t++) {
            out[t] = vb_dot(out[t], v, vi_bytes4(q + t * q_stride + 4 * i));
        }
    }
}

/* The same of nibbles, unpacked where they are used: not every level has the registers to hold
 * them. */
INLINE void mm_q_nibbles(uint32_t type, uint32_t n_tok, const uint8_t *w, const int8_t *q,
                         size_t q_stride, const int32_t *sum, size_t sum_stride, vi *out) {
    vd acc[MM_Q_STEP];
    UNROLL for (uint32_t t = 0; t < n_tok; t++) {
        acc[t] = vd_start(vi_set1(-mm_bias(type) * sum[t * sum_stride]));
    }
    w += type == KVC__T_Q4_0 ? 32 : 64;
    UNROLL for (uint32_t i = 0; i < 4; i++) {
        vi v = vi_load(w + 64 * i);
        vi low = vi_and(v, vi_set1(0x0f0f0f0f));
        vi high = vi_and(vi_shr(v, 4), vi_set1(0x0f0f0f0f));
        UNROLL for (uint32_t t = 0; t < n_tok; t++) {
            const int8_t *at = q + t * q_stride + 4 * i;
            acc[t] = vd_dot(acc[t], low, vi_bytes4(at));
            acc[t] = vd_dot(acc[t], high, vi_bytes4(at + 16));
        }
    }
    UNROLL for (uint32_t t = 0; t < n_tok; t++) {
        out[t] = vd_sum(acc[t]);
    }
}

INLINE void mm_q_dots(uint32_t type, uint32_t n_tok, const uint8_t *w, const int8_t *q,
                      size_t q_stride, const int32_t *sum, size_t sum_stride, vi *out) {
    if (type == KVC__T_Q8_0) {
        mm_q_bytes(n_tok, w, q, q_stride, sum, sum_stride, out);
    } else {
        mm_q_nibbles(type, n_tok, w, q, q_stride, sum, sum_stride, out);
    }
}

/* n_tok tokens from t0 on with the 16 rows of a group; n_tok is a constant. */
INLINE void mm_q_tile(uint32_t type, uint32_t n_tok, const uint8_t *w, uint32_t n_block,
                      const kvc__act *a, uint32_t t0, float *out, size_t out_stride,
                      uint32_t n_row) {
    const size_t stride = a->n_col / KVC__BLOCK;
    const uint32_t step = n_tok < MM_Q_STEP ? n_tok : MM_Q_STEP;
    const bool ahead = n_tok > 1 && t0 == 0;
    const int8_t *q = a->q + (size_t)t0 * a->n_col;
    const float *d = a->d + t0 * stride;
    const int32_t *sum = a->sum + t0 * stride;
    vf acc[MM_Q_TOKENS], accm[MM_Q_TOKENS];
    UNROLL for (uint32_t t = 0; t < n_tok; t++) {
        acc[t] = vf_zero();
        accm[t] = vf_zero();
    }
    for (uint32_t b = 0; b < n_block; b++, w += mm_block_bytes(type), q += KVC__BLOCK, d++, sum++) {
        vi dot[MM_Q_STEP];
        if (ahead) {
            mm_fetch(type, w + MM_AHEAD);
        }
        vf dw = vf_load_f16(w);
        UNROLL for (uint32_t t = 0; t < n_tok; t += step) {
            mm_q_dots(type, step, w, q + t * a->n_col, a->n_col, sum + t * stride, stride, dot);
            UNROLL for (uint32_t u = t; u < t + step; u++) {
                float da = d[u * stride];
                acc[u] = vf_fma(vf_mul(dw, vf_set1(da)), vf_from_vi(dot[u - t]), acc[u]);
                if (type == KVC__T_Q4_1) {
                    vf s = vf_set1(da * (float)sum[u * stride]);
                    accm[u] = vf_fma(vf_load_f16(w + 32), s, accm[u]);
                }
            }
        }
    }
    UNROLL for (uint32_t t = 0; t < n_tok; t++) {
        vf y = type == KVC__T_Q4_1 ? vf_add(acc[t], accm[t]) : acc[t];
        vf_store_n(out + t * out_stride, y, n_row);
    }
}

INLINE void mm_q_type(uint32_t type, const kvc__mat *w, uint32_t g0, uint32_t g1, const kvc__act *a,
                      float *out, size_t out_stride) {
    const uint32_t n_block = w->n_col / KVC__BLOCK;
    for (uint32_t g = g0; g < g1; g++) {
        const uint8_t *data = w->data + g * w->group_bytes;
        const uint32_t rows = w->n_row - KVC__GROUP * g;
        float *y = out + (size_t)KVC__GROUP * g;
        uint32_t t = 0;
        for (; a->n - t >= MM_Q_TOKENS; t += MM_Q_TOKENS) {
            mm_q_tile(type, MM_Q_TOKENS, data, n_block, a, t, y + t * out_stride, out_stride, rows);
        }
        if (MM_Q_TOKENS > 4 && ((a->n - t) & 4)) {
            mm_q_tile(type, 4, data, n_block, a, t, y + t * out_stride, out_stride, rows);
            t += 4;
        }
        if ((a->n - t) & 2) {
            mm_q_tile(type, 2, data, n_block, a, t, y + t * out_stride, out_stride, rows);
            t += 2;
        }
        if ((a->n - t) & 1) {
            mm_q_tile(type, 1, data, n_block, a, t, y + t * out_stride, out_stride, rows);
        }
    }
}

static void mm_q(const kvc__mat *w, uint32_t g0, uint32_t g1, const kvc__act *a, float *out,
                 size_t out_stride) {
    switch (w->type) {
    case KVC__T_Q8_0:
        mm_q_type(KVC__T_Q8_0, w, g0, g1, a, out, out_stride);
        break;
    case KVC__T_Q4_0:
        mm_q_type(KVC__T_Q4_0, w, g0, g1, a, out, out_stride);
        break;
    case KVC__T_Q4_1:
        mm_q_type(KVC__T_Q4_1, w, g0, g1, a, out, out_stride);
        break;
    default:
        break;
    }
}

/* ---- float products */

/* A block's 32 columns of 16 rows as floats: out[32][16]. */
INLINE void mm_floats(uint32_t type, const uint8_t *w, float *out) {
    vi v[8];
    mm_unpack(type, w, v);
    vf d = vf_load_f16(w);
    vi byte = vi_set1(0xff);
    vi bias = vi_set1(mm_bias(type));
    UNROLL for (uint32_t i = 0; i < 8; i++) {
        UNROLL for (uint32_t j = 0; j < 4; j++) {
            vf x = vf_from_vi(vi_sub(vi_and(vi_shr(v[i], 8 * j), byte), bias));
            x = type == KVC__T_Q4_1 ? vf_fma(d, x, vf_load_f16(w + 32)) : vf_mul(d, x);
            vf_store(out + (size_t)16 * (4 * i + j), x);
        }
    }
}

static void mm_block_floats(uint32_t type, const uint8_t *w, float *out) {
    switch (type) {
    case KVC__T_Q8_0:
        mm_floats(KVC__T_Q8_0, w, out);
        break;
    case KVC__T_Q4_0:
        mm_floats(KVC__T_Q4_0, w, out);
        break;
    default:
        mm_floats(KVC__T_Q4_1, w, out);
        break;
    }
}

/* Continues acc[n_grp][n_tok][16] over n_col columns of n_grp groups, w_stride bytes apart, held as
 * [n_col][16] of type F32 or F16. n_grp and n_tok are constants with a product of at most 16. */
INLINE void mm_f_tile(uint32_t type, uint32_t n_grp, uint32_t n_tok, const uint8_t *w,
                      size_t w_stride, uint32_t n_col, const float *x, size_t x_stride,
                      float *acc) {
    const size_t column = type == KVC__T_F32 ? 64 : 32;
    vf r[16];
    UNROLL for (uint32_t i = 0; i < n_grp * n_tok; i++) {
        r[i] = vf_load(acc + (size_t)16 * i);
    }
    for (uint32_t c = 0; c < n_col; c++) {
        UNROLL for (uint32_t g = 0; g < n_grp; g++) {
            const uint8_t *at = w + g * w_stride + c * column;
            vf v = type == KVC__T_F32 ? vf_load((const float *)(const void *)at) : vf_load_f16(at);
            UNROLL for (uint32_t t = 0; t < n_tok; t++) {
                vf xt = vf_set1(x[t * x_stride + c]);
                r[g * n_tok + t] = vf_fma(v, xt, r[g * n_tok + t]);
            }
        }
    }
    UNROLL for (uint32_t i = 0; i < n_grp * n_tok; i++) {
        vf_store(acc + (size_t)16 * i, r[i]);
    }
}

/* The same for any n_grp, in tiles of as many groups as fit. */
INLINE void mm_f_part(uint32_t type, uint32_t n_grp, uint32_t n_tok, const uint8_t *w,
                      size_t w_stride, uint32_t n_col, const float *x, size_t x_stride,
                      float *acc) {
    const uint32_t step = n_grp < MM_F_GROUPS(n_tok) ? n_grp : MM_F_GROUPS(n_tok);
    for (uint32_t g = 0; g < n_grp; g += step) {
        mm_f_tile(type, step, n_tok, w + g * w_stride, w_stride, n_col, x, x_stride,
                  acc + (size_t)16 * g * n_tok);
    }
}

/* The same for n_tok of 1 to 4, and of MM_F_TOKENS for a single group. */
INLINE void mm_f_some(uint32_t type, uint32_t n_grp, uint32_t n_tok, const uint8_t *w,
                      size_t w_stride, uint32_t n_col, const float *x, size_t x_stride,
                      float *acc) {
    switch (n_tok) {
    case 1:
        mm_f_part(type, n_grp, 1, w, w_stride, n_col, x, x_stride, acc);
        break;
    case 2:
        mm_f_part(type, n_grp, 2, w, w_stride, n_col, x, x_stride, acc);
        break;
    case 3:
        mm_f_part(type, n_grp, 3, w, w_stride, n_col, x, x_stride, acc);
        break;
    case 4:
        mm_f_part(type, n_grp, 4, w, w_stride, n_col, x, x_stride, acc);
        break;
    default:
        mm_f_tile(type, 1, MM_F_TOKENS, w, w_stride, n_col, x, x_stride, acc);
        break;
    }
}

/* acc[n_grp][n_tok][16] to the output of groups g and up, tokens t and up. */
static void mm_f_store(const kvc__mat *w, uint32_t g, uint32_t n_grp, uint32_t t, uint32_t n_tok,
                       const float *acc, float *out, size_t out_stride) {
    for (uint32_t i = 0; i < n_grp; i++) {
        const uint32_t row = KVC__GROUP * (g + i);
        for (uint32_t j = 0; j < n_tok; j++, acc += 16) {
            vf_store_n(out + (t + j) * out_stride + row, vf_load(acc), w->n_row - row);
        }
    }
}

/* All tokens with n_grp groups from g on that are held as floats at data. */
INLINE void mm_f_groups(uint32_t type, uint32_t n_grp, const kvc__mat *w, uint32_t g,
                        const uint8_t *data, const kvc__act *a, float *out, size_t out_stride) {
    for (uint32_t t = 0, n; t < a->n; t += n) {
        float acc[16 * 16] = {0};
        n = a->n - t;
        n = n >= MM_F_TOKENS && n_grp == 1 ? MM_F_TOKENS : n >= 4 ? 4 : n;
        mm_f_some(type, n_grp, n, data, w->group_bytes, w->n_col, a->f + t * a->f_stride,
                  a->f_stride, acc);
        mm_f_store(w, g, n_grp, t, n, acc, out, out_stride);
    }
}

/* Float weights are read where they are: four groups side by side hide the latency when there are
 * too few tokens to. */
INLINE void mm_f_plain(uint32_t type, const kvc__mat *w, uint32_t g, uint32_t g1, const kvc__act *a,
                       float *out, size_t out_stride) {
    for (; a->n <= 4 && g + 4 <= g1; g += 4) {
        mm_f_groups(type, 4, w, g, w->data + g * w->group_bytes, a, out, out_stride);
    }
    for (; g < g1; g++) {
        mm_f_groups(type, 1, w, g, w->data + g * w->group_bytes, a, out, out_stride);
    }
}

/* Quantised weights for at most 4 tokens: block by block through a buffer that stays in the first
 * cache. n_grp is 1 or 4. */
INLINE void mm_f_blocks(uint32_t n_grp, const kvc__mat *w, uint32_t g, const kvc__act *a,
                        float *out, size_t out_stride) {
    const size_t block = mm_block_bytes(w->type);
    const uint8_t *data = w->data + g * w->group_bytes;
    float acc[16 * 16] = {0};
    float buf[4][KVC__BLOCK * 16];
    for (uint32_t b = 0; b < w->n_col / KVC__BLOCK; b++) {
        for (uint32_t i = 0; i < n_grp; i++) {
            const uint8_t *at = data + i * w->group_bytes + b * block;
            mm_block_floats(w->type, at, buf[i]);
        }
        mm_f_some(KVC__T_F32, n_grp, a->n, (const uint8_t *)buf, sizeof buf[0], KVC__BLOCK,
                  a->f + (size_t)b * KVC__BLOCK, a->f_stride, acc);
    }
    mm_f_store(w, g, n_grp, 0, a->n, acc, out, out_stride);
}

static void mm_f_quantised(const kvc__mat *w, uint32_t g, uint32_t g1, const kvc__act *a,
                           float *out, size_t out_stride, float *tile) {
    const size_t block = mm_block_bytes(w->type);
    for (; a->n <= 4 && g + 4 <= g1; g += 4) {
        mm_f_blocks(4, w, g, a, out, out_stride);
    }
    for (; a->n <= 4 && g < g1; g++) {
        mm_f_blocks(1, w, g, a, out, out_stride);
    }
    for (; g < g1; g++) {
        for (uint32_t b = 0; b < w->n_col / KVC__BLOCK; b++) {
            mm_block_floats(w->type, w->data + g * w->group_bytes + b * block,
                            tile + (size_t)b * KVC__BLOCK * 16);
        }
        mm_f_groups(KVC__T_F32, 1, w, g, (const uint8_t *)tile, a, out, out_stride);
    }
}

static void mm_f(const kvc__mat *w, uint32_t g0, uint32_t g1, const kvc__act *a, float *out,
                 size_t out_stride, float *tile) {
    switch (w->type) {
    case KVC__T_F32:
        mm_f_plain(KVC__T_F32, w, g0, g1, a, out, out_stride);
        break;
    case KVC__T_F16:
        mm_f_plain(KVC__T_F16, w, g0, g1, a, out, out_stride);
        break;
    case KVC__T_Q8_0:
    case KVC__T_Q4_0:
    case KVC__T_Q4_1:
        if (a->n > 0) {
            mm_f_quantised(w, g0, g1, a, out, out_stride, tile);
        }
        break;
    default:
        break;
    }
}

#endif
