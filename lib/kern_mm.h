/* SPDX-License-Identifier: MIT
 * kern_mm.h: products of packed weights and activations. A part of kern_impl.h, written in the
 * words of vec_*.h. Lanes are output rows; every output is one chain over the columns in ascending
 * order, so how many tokens and row groups are worked on side by side (the tiles below) changes
 * speed alone. It knows nothing of what a matrix is for. */
#ifndef KVC_KERN_MM_H
#define KVC_KERN_MM_H

#define MM_AHEAD 4096u /* bytes that weights are fetched ahead of use */

/* ---- blocks of quantised weights; mat.h has their layouts. A block is 32 columns of 16 rows. */

/* Types whose heads are shared by 8 blocks. */
INLINE bool mm_is_k(uint32_t type) {
    return type == KVC__T_Q4_K || type == KVC__T_Q5_K || type == KVC__T_Q6_K;
}

INLINE bool mm_has_min(uint32_t type) {
    return type == KVC__T_Q4_1 || type == KVC__T_Q5_1 || type == KVC__T_Q4_K || type == KVC__T_Q5_K;
}

/* Blocks that share a head. */
INLINE uint32_t mm_shared(uint32_t type) {
    return mm_is_k(type) ? 8 : 1;
}

INLINE uint32_t mm_bits(uint32_t type) {
    switch (type) {
    case KVC__T_Q8_0:
        return 8;
    case KVC__T_Q6_K:
        return 6;
    case KVC__T_Q5_0:
    case KVC__T_Q5_1:
    case KVC__T_Q5_K:
        return 5;
    default:
        return 4;
    }
}

/* What the unpacked bytes of a type are above their values. */
INLINE int32_t mm_bias(uint32_t type) {
    switch (type) {
    case KVC__T_Q8_0:
        return 128;
    case KVC__T_Q6_K:
        return 32;
    case KVC__T_Q5_0:
        return 16;
    case KVC__T_Q4_0:
        return 8;
    default:
        return 0;
    }
}

INLINE uint32_t mm_head_bytes(uint32_t type) {
    return mm_has_min(type) ? (mm_is_k(type) ? 256 : 64) : 32;
}

/* A block without its head; Q6_K has two scales of its own in front. */
INLINE uint32_t mm_body_bytes(uint32_t type) {
    return 64 * mm_bits(type) + (type == KVC__T_Q6_K ? 32 : 0);
}

/* A block with its share of the head. */
INLINE uint32_t mm_block_bytes(uint32_t type) {
    return mm_body_bytes(type) + mm_head_bytes(type) / mm_shared(type);
}

/* The six bits of block s in the scales (what 0) or minima (1) of Q4_K and Q5_K: of the words the
 * first holds scales, the second minima of blocks 0 to 3; their top bits with the third's nibbles
 * are those of blocks 4 to 7. */
INLINE vi mm_six_bits(const uint8_t *words, uint32_t what, uint32_t s) {
    const uint32_t at = 8 * (s % 4);
    vi own = vi_shr(vi_load(words + 64 * what), at);
    if (s < 4) {
        return vi_and(own, vi_set1(0x3f));
    }
    vi low = vi_shr(vi_load(words + 128), at + 4 * what);
    return vi_xor(vi_and(low, vi_set1(0x0f)), vi_and(vi_shr(own, 2), vi_set1(0x30)));
}

/* The scale of block s below a head; of Q6_K without the two of the block. Products of d with six
 * bits are exact. */
INLINE vf mm_scale(uint32_t type, const uint8_t *head, uint32_t s) {
    vf d = vf_load_f16(head);
    if (mm_is_k(type) && mm_has_min(type)) {
        d = vf_mul(d, vf_from_vi(mm_six_bits(head + 64, 0, s)));
    }
    return d;
}

/* What is added to scale × value. */
INLINE vf mm_min(uint32_t type, const uint8_t *head, uint32_t s) {
    vf m = vf_load_f16(head + 32);
    if (mm_is_k(type)) {
        m = vf_mul(m, vf_from_vi(mm_six_bits(head + 64, 1, s)));
        m = vf_bits(vi_xor(vi_bits(m), vi_set1(INT32_MIN)));
    }
    return m;
}

/* Of Q6_K: the scale of a block's columns 16 half to 16 half + 15. */
INLINE vf mm_half_scale(const uint8_t *body, uint32_t half) {
    return vf_from_vi(vi_load_s8((const int8_t *)body + (size_t)16 * half));
}

/* Bits 4 and up of columns 4i to 4i + 3, in their places. */
INLINE vi mm_upper(uint32_t type, const uint8_t *body, uint32_t i) {
    if (type == KVC__T_Q6_K) {
        vi v = vi_load(body + 32 + (size_t)64 * (i / 4));
        v = i % 4 < 2 ? vi_shl(v, 4 - 2 * (i % 4)) : vi_shr(v, 2 * (i % 4) - 4);
        return vi_and(v, vi_set1(0x30303030));
    }
    vi v = vi_load(body);
    v = i < 4 ? vi_shl(v, 4 - i) : vi_shr(v, i - 4);
    return vi_and(v, vi_set1(0x10101010));
}

/* Columns 4i to 4i + 3 of a block's 16 rows, as bytes without sign. */
INLINE vi mm_values(uint32_t type, const uint8_t *body, uint32_t i) {
    const uint32_t bits = mm_bits(type);
    if (bits == 8) {
        return vi_load(body + (size_t)64 * i);
    }
    vi v = vi_load(body + mm_body_bytes(type) - 256 + (size_t)64 * (i % 4));
    v = vi_and(i < 4 ? v : vi_shr(v, 4), vi_set1(0x0f0f0f0f));
    return bits > 4 ? vi_xor(v, mm_upper(type, body, i)) : v;
}

/* Asks for a block's lines. With one token the core's own reading ahead keeps up, and asking for as
 * little as one line a block cost a tenth of the time; with more tokens it falls behind the gaps
 * that arithmetic makes. */
INLINE void mm_fetch(uint32_t type, const uint8_t *w) {
    UNROLL
    for (uint32_t i = 0; i < mm_block_bytes(type); i += 64) {
        vec_prefetch(w + i);
    }
}

/* ---- int8 products */

/* n_tok dots of one block of bytes with 16 rows: sums over 32 columns of value × q, side by side.
 */
INLINE void mm_q_bytes(uint32_t n_tok, const uint8_t *body, const int8_t *q, size_t q_stride,
                       const int32_t *sum, size_t sum_stride, vf *out) {
    vi acc[MM_Q_STEP];
    UNROLL for (uint32_t t = 0; t < n_tok; t++) {
        acc[t] = vi_set1(-VB_BIAS * sum[t * sum_stride]);
    }
    UNROLL for (uint32_t i = 0; i < 8; i++) {
        vb v = vb_load_biased(body + 64 * i);
        UNROLL for (uint32_t t = 0; t < n_tok; t++) {
            acc[t] = vb_dot(acc[t], v, vi_bytes4(q + t * q_stride + 4 * i));
        }
    }
    UNROLL for (uint32_t t = 0; t < n_tok; t++) {
        out[t] = vf_from_vi(acc[t]);
    }
}

/* The same of nibbles and of five bits, unpacked where they are used: not every level has the
 * registers to hold them. */
INLINE void mm_q_nibbles(uint32_t type, uint32_t n_tok, const uint8_t *body, const int8_t *q,
                         size_t q_stride, const int32_t *sum, size_t sum_stride, vf *out) {
    vd acc[MM_Q_STEP];
    UNROLL for (uint32_t t = 0; t < n_tok; t++) {
        acc[t] = vd_start(vi_set1(-mm_bias(type) * sum[t * sum_stride]));
    }
    UNROLL for (uint32_t i = 0; i < 4; i++) {
        vi low = mm_values(type, body, i);
        vi high = mm_values(type, body, i + 4);
        UNROLL for (uint32_t t = 0; t < n_tok; t++) {
            const int8_t *at = q + t * q_stride + 4 * i;
            acc[t] = mm_bits(type) == 5 && i == 2 ? vd_start(vd_sum(acc[t])) : acc[t];
            acc[t] = vd_dot(acc[t], low, vi_bytes4(at));
            acc[t] = vd_dot(acc[t], high, vi_bytes4(at + 16));
        }
    }
    UNROLL for (uint32_t t = 0; t < n_tok; t++) {
        out[t] = vf_from_vi(vd_sum(acc[t]));
    }
}

/* Of Q6_K, a half's 16 columns; q and sum are those of the half. */
INLINE void mm_q_sixes(uint32_t n_tok, const uint8_t *body, uint32_t half, const int8_t *q,
                       size_t q_stride, const int32_t *sum, size_t sum_stride, vi *out) {
    vd acc[MM_Q_STEP];
    UNROLL for (uint32_t t = 0; t < n_tok; t++) {
        const int32_t *s = sum + t * sum_stride;
        acc[t] = vd_start(vi_set1(-mm_bias(KVC__T_Q6_K) * (half == 0 ? s[1] : s[0] - s[1])));
    }
    UNROLL for (uint32_t i = 0; i < 4; i++) {
        vi v = mm_values(KVC__T_Q6_K, body, 4 * half + i);
        UNROLL for (uint32_t t = 0; t < n_tok; t++) {
            acc[t] = i == 2 ? vd_start(vd_sum(acc[t])) : acc[t];
            acc[t] = vd_dot(acc[t], v, vi_bytes4(q + t * q_stride + 16 * half + 4 * i));
        }
    }
    UNROLL for (uint32_t t = 0; t < n_tok; t++) {
        out[t] = vd_sum(acc[t]);
    }
}

/* The dots of both halves, each times its scale: integers below 2^24, which floats hold exactly. */
INLINE void mm_q_halves(uint32_t n_tok, const uint8_t *body, const int8_t *q, size_t q_stride,
                        const int32_t *sum, size_t sum_stride, vf *out) {
    vi dot[MM_Q_STEP];
    mm_q_sixes(n_tok, body, 0, q, q_stride, sum, sum_stride, dot);
    UNROLL for (uint32_t t = 0; t < n_tok; t++) {
        out[t] = vf_mul(mm_half_scale(body, 0), vf_from_vi(dot[t]));
    }
    mm_q_sixes(n_tok, body, 1, q, q_stride, sum, sum_stride, dot);
    UNROLL for (uint32_t t = 0; t < n_tok; t++) {
        out[t] = vf_fma(mm_half_scale(body, 1), vf_from_vi(dot[t]), out[t]);
    }
}

INLINE void mm_q_dots(uint32_t type, uint32_t n_tok, const uint8_t *body, const int8_t *q,
                      size_t q_stride, const int32_t *sum, size_t sum_stride, vf *out) {
    if (type == KVC__T_Q8_0) {
        mm_q_bytes(n_tok, body, q, q_stride, sum, sum_stride, out);
    } else if (type == KVC__T_Q6_K) {
        mm_q_halves(n_tok, body, q, q_stride, sum, sum_stride, out);
    } else {
        mm_q_nibbles(type, n_tok, body, q, q_stride, sum, sum_stride, out);
    }
}

/* Continues the sums of n_tok tokens over block s below the head at w; q, d and sum are those of
 * its columns. */
INLINE void mm_q_block(uint32_t type, uint32_t n_tok, const uint8_t *w, uint32_t s,
                       const kvc__act *a, const int8_t *q, const float *d, const int32_t *sum,
                       vf *acc, vf *accm) {
    const size_t stride = a->n_col / KVC__BLOCK;
    const uint32_t step = n_tok < MM_Q_STEP ? n_tok : MM_Q_STEP;
    const uint8_t *body = w + mm_head_bytes(type) + (size_t)s * mm_body_bytes(type);
    vf dot[MM_Q_STEP];
    vf dw = mm_scale(type, w, s);
    UNROLL for (uint32_t t = 0; t < n_tok; t += step) {
        mm_q_dots(type, step, body, q + t * a->n_col, a->n_col, sum + 2 * t * stride, 2 * stride,
                  dot);
        UNROLL for (uint32_t u = t; u < t + step; u++) {
            const float *da = d + 2 * u * stride;
            acc[u] = vf_fma(vf_mul(dw, vf_set1(da[0])), dot[u - t], acc[u]);
            if (mm_has_min(type)) {
                accm[u] = vf_fma(mm_min(type, w, s), vf_set1(da[1]), accm[u]);
            }
        }
    }
}

/* n_tok tokens from t0 on with the 16 rows of a group; n_tok is a constant. */
INLINE void mm_q_tile(uint32_t type, uint32_t n_tok, const uint8_t *w, uint32_t n_block,
                      const kvc__act *a, uint32_t t0, float *out, size_t out_stride,
                      uint32_t n_row) {
    const size_t stride = a->n_col / KVC__BLOCK;
    const bool ahead = n_tok > 1 && t0 == 0;
    const int8_t *q = a->q + (size_t)t0 * a->n_col;
    const float *d = a->d + 2 * t0 * stride;
    const int32_t *sum = a->sum + 2 * t0 * stride;
    vf acc[MM_Q_TOKENS], accm[MM_Q_TOKENS];
    UNROLL for (uint32_t t = 0; t < n_tok; t++) {
        acc[t] = vf_zero();
        accm[t] = vf_zero();
    }
    for (uint32_t b = 0; b < n_block; b += mm_shared(type)) {
        for (uint32_t s = 0; s < mm_shared(type); s++, q += KVC__BLOCK, d += 2, sum += 2) {
            if (ahead) {
                mm_fetch(type, w + (size_t)s * mm_block_bytes(type) + MM_AHEAD);
            }
            mm_q_block(type, n_tok, w, s, a, q, d, sum, acc, accm);
        }
        w += (size_t)mm_shared(type) * mm_block_bytes(type);
    }
    UNROLL for (uint32_t t = 0; t < n_tok; t++) {
        vf y = mm_has_min(type) ? vf_add(acc[t], accm[t]) : acc[t];
        vf_store_n(out + t * out_stride, y, n_row);
    }
}

INLINE void mm_q_type(uint32_t type, const kvc__mat *w, const kvc__act *a, float *out,
                      size_t out_stride) {
    const uint32_t n_block = w->n_col / KVC__BLOCK;
    for (uint32_t g = 0; g < w->n_group; g++) {
        const uint8_t *data = w->data + g * w->stride;
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

/* One case for each quantised type. */
#define MM_BY_TYPE(call)                                                                           \
    case KVC__T_Q8_0:                                                                              \
        call(KVC__T_Q8_0);                                                                         \
        break;                                                                                     \
    case KVC__T_Q4_0:                                                                              \
        call(KVC__T_Q4_0);                                                                         \
        break;                                                                                     \
    case KVC__T_Q4_1:                                                                              \
        call(KVC__T_Q4_1);                                                                         \
        break;                                                                                     \
    case KVC__T_Q5_0:                                                                              \
        call(KVC__T_Q5_0);                                                                         \
        break;                                                                                     \
    case KVC__T_Q5_1:                                                                              \
        call(KVC__T_Q5_1);                                                                         \
        break;                                                                                     \
    case KVC__T_Q4_K:                                                                              \
        call(KVC__T_Q4_K);                                                                         \
        break;                                                                                     \
    case KVC__T_Q5_K:                                                                              \
        call(KVC__T_Q5_K);                                                                         \
        break;                                                                                     \
    case KVC__T_Q6_K:                                                                              \
        call(KVC__T_Q6_K);                                                                         \
        break;

static void mm_q(const kvc__mat *w, const kvc__act *a, float *out, size_t out_stride) {
#define MM_CALL(type) mm_q_type(type, w, a, out, out_stride)
    switch (w->type) {
        MM_BY_TYPE(MM_CALL)
    default:
        break;
    }
#undef MM_CALL
}

/* ---- float products */

/* The 32 columns of block s below the head at w, of 16 rows, as floats: out[32][16]. */
INLINE void mm_floats(uint32_t type, const uint8_t *w, uint32_t s, float *out) {
    const uint8_t *body = w + mm_head_bytes(type) + (size_t)s * mm_body_bytes(type);
    vf d = mm_scale(type, w, s);
    vi byte = vi_set1(0xff);
    vi bias = vi_set1(mm_bias(type));
    UNROLL for (uint32_t i = 0; i < 8; i++) {
        vi v = mm_values(type, body, i);
        vf scale = type == KVC__T_Q6_K ? vf_mul(d, mm_half_scale(body, i / 4)) : d;
        UNROLL for (uint32_t j = 0; j < 4; j++) {
            vf x = vf_from_vi(vi_sub(vi_and(vi_shr(v, 8 * j), byte), bias));
            x = mm_has_min(type) ? vf_fma(scale, x, mm_min(type, w, s)) : vf_mul(scale, x);
            vf_store(out + (size_t)16 * (4 * i + j), x);
        }
    }
}

/* Block b of a group's data. */
static void mm_block_floats(uint32_t type, const uint8_t *data, uint32_t b, float *out) {
#define MM_CALL(type)                                                                              \
    mm_floats(type, data + (size_t)(b - b % mm_shared(type)) * mm_block_bytes(type),               \
              b % mm_shared(type), out)
    switch (type) {
        MM_BY_TYPE(MM_CALL)
    default:
        break;
    }
#undef MM_CALL
}

/* One column of 16 rows of float weights. */
INLINE vf mm_f_column(uint32_t type, const uint8_t *at) {
    switch (type) {
    case KVC__T_F32:
        return vf_load((const float *)(const void *)at);
    case KVC__T_F16:
        return vf_load_f16(at);
    default:
        return vf_load_bf16(at);
    }
}

/* Continues acc[n_grp][n_tok][16] over n_col columns of n_grp groups, w_stride bytes apart, held as
 * [n_col][16] of type F32, F16 or BF16. n_grp and n_tok are constants with a product of at most 16.
 */
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
            vf v = mm_f_column(type, at);
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
        mm_f_some(type, n_grp, n, data, w->stride, w->n_col, a->f + t * a->f_stride, a->f_stride,
                  acc);
        mm_f_store(w, g, n_grp, t, n, acc, out, out_stride);
    }
}

/* Float weights are read where they are: four groups side by side hide the latency when there are
 * too few tokens to. */
INLINE void mm_f_plain(uint32_t type, const kvc__mat *w, const kvc__act *a, float *out,
                       size_t out_stride) {
    const uint32_t g1 = w->n_group;
    uint32_t g = 0;
    for (; a->n <= 4 && g + KVC__MM_F_GROUPS <= g1; g += KVC__MM_F_GROUPS) {
        mm_f_groups(type, KVC__MM_F_GROUPS, w, g, w->data + g * w->stride, a, out, out_stride);
    }
    for (; g < g1; g++) {
        mm_f_groups(type, 1, w, g, w->data + g * w->stride, a, out, out_stride);
    }
}

/* Quantised weights for at most 4 tokens: block by block through a buffer that stays in the first
 * cache. n_grp is 1 or KVC__MM_F_GROUPS. */
INLINE void mm_f_blocks(uint32_t n_grp, const kvc__mat *w, uint32_t g, const kvc__act *a,
                        float *out, size_t out_stride) {
    const uint8_t *data = w->data + g * w->stride;
    float acc[16 * 16] = {0};
    float buf[KVC__MM_F_GROUPS][KVC__BLOCK * 16];
    for (uint32_t b = 0; b < w->n_col / KVC__BLOCK; b++) {
        for (uint32_t i = 0; i < n_grp; i++) {
            mm_block_floats(w->type, data + i * w->stride, b, buf[i]);
        }
        mm_f_some(KVC__T_F32, n_grp, a->n, (const uint8_t *)buf, sizeof buf[0], KVC__BLOCK,
                  a->f + (size_t)b * KVC__BLOCK, a->f_stride, acc);
    }
    mm_f_store(w, g, n_grp, 0, a->n, acc, out, out_stride);
}

static void mm_f_quantised(const kvc__mat *w, const kvc__act *a, float *out, size_t out_stride,
                           float *tile) {
    const uint32_t g1 = w->n_group;
    uint32_t g = 0;
    for (; a->n <= 4 && g + KVC__MM_F_GROUPS <= g1; g += KVC__MM_F_GROUPS) {
        mm_f_blocks(KVC__MM_F_GROUPS, w, g, a, out, out_stride);
    }
    for (; a->n <= 4 && g < g1; g++) {
        mm_f_blocks(1, w, g, a, out, out_stride);
    }
    for (; g < g1; g++) {
        for (uint32_t b = 0; b < w->n_col / KVC__BLOCK; b++) {
            mm_block_floats(w->type, w->data + g * w->stride, b,
                            tile + (size_t)b * KVC__BLOCK * 16);
        }
        mm_f_groups(KVC__T_F32, 1, w, g, (const uint8_t *)tile, a, out, out_stride);
    }
}

static void mm_f(const kvc__mat *w, const kvc__act *a, float *out, size_t out_stride, float *tile) {
    switch (w->type) {
    case KVC__T_F32:
        mm_f_plain(KVC__T_F32, w, a, out, out_stride);
        break;
    case KVC__T_F16:
        mm_f_plain(KVC__T_F16, w, a, out, out_stride);
        break;
    case KVC__T_BF16:
        mm_f_plain(KVC__T_BF16, w, a, out, out_stride);
        break;
    default:
        if (a->n > 0) {
            mm_f_quantised(w, a, out, out_stride, tile);
        }
        break;
    }
}

#endif
