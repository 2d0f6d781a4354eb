/* SPDX-License-Identifier: MIT
 * kern.h: the arithmetic, one table per kernel level. The order of operations is part of the
 * contract, so that every level gives the same bits: products and sums are single fused
 * multiply-adds in the order stated, lanes are independent results, and a sum over n values is
 * taken in 16 lanes (lane l holds l, l + 16, …, ascending) that are then added as a tree: 16 → 8 (l
 * and l + 8) → 4 → 2 → 1. Missing elements count as +0. */
#ifndef KVC_KERN_H
#define KVC_KERN_H

#include "mat.h"

#include "kvc/policy.h"

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define KVC__ENTRIES 64u /* entries of a page, as KVC_PAGE */

#define KVC__MM_F_GROUPS 4u /* groups that mm_f takes side by side for few tokens */

/** A level's kernels. All are [any]: no state but their arguments. Buffers are 4-byte aligned at
 * least; packed pages and weights 64-byte. No overlap unless said. */
typedef struct kvc__kern {
    const char *name; /* "scalar", "avx2", "avx512" */

    /* ---- products: out[t, row] for all rows of w and all a->n tokens; out is [n, out_stride].
     *
     * A quantised weight is scale * value + min: the scale is d, of Q4_K and Q5_K d * sc; min is m
     * of Q4_1 and Q5_1, -(dmin * mn) of Q4_K and Q5_K, and the others have none. Of Q6_K the scale
     * is d * sc[h] for half h of a block, 16 columns.
     *
     * mm_q (quantised types): blocks of 32 ascending; acc = fma(scale * da, (float)isum, acc), isum
     * the exact integer sum of value × q over the block; of Q6_K acc = fma(d * da, (float)(sc[0] *
     * isum[0] + sc[1] * isum[1]), acc), exact in the parentheses. Types with a min also accm =
     * fma(min, da * (float)sum, accm); that product is d[2b + 1] of quantize(). y = acc, or acc +
     * accm.
     *
     * mm_f (all types): w as float, which is exact but for the last sum (scale * value, or
     * fma(scale, value, min)), columns ascending, acc = fma(w, x, acc). tile: scratch of
     * kvc__tile_bytes(w). */
    void (*mm_q)(const kvc__mat *w, const kvc__act *a, float *out, size_t out_stride);
    void (*mm_f)(const kvc__mat *w, const kvc__act *a, float *out, size_t out_stride, float *tile);
    /* Rounds a row to int8 in blocks of 32: q = nearest-even(x * (127 / amax)), 0 where amax is 0
     * or not finite; sum[2b] of q over block b, sum[2b + 1] over its first 16; d[2b] = amax / 127,
     * d[2b + 1] = d[2b] * (float)sum[2b]. n a multiple of 32. */
    void (*quantize)(const float *x, uint32_t n, int8_t *q, float *d, int32_t *sum);

    /* ---- rows */
    /* y = x * (1 / sqrt(mean(x²) + eps)) * w, left to right. The sum of squares: lane sums by fma.
     * y may be x. */
    void (*rms_norm)(const float *x, const float *w, uint32_t n, float eps, float *y);
    /* x += y */
    void (*add)(float *x, const float *y, uint32_t n);
    /* x *= s */
    void (*scale)(float *x, float s, uint32_t n);
    /* gate = gate / (1 + exp(-gate)) * up; exp as in soften, its argument clamped to [-87, 88]. */
    void (*silu_mul)(float *gate, const float *up, uint32_t n);
    /* gate = gate / (1 + exp(-z)) * up with z = gate * fma(b, gate², a): GELU by tanh, for 0.5 * x
     * * (1 + tanh(z / 2)) is x / (1 + exp(-z)). exp and its argument as in silu_mul. */
    void (*gelu_mul)(float *gate, const float *up, uint32_t n);
    /* x = cap * tanh(x / cap), within 1e-6 * cap; NaN stays. */
    void (*soft_cap)(float *x, float cap, uint32_t n);
    /* Rotates adjacent pairs (2i, 2i + 1), i < n_rot / 2, by cs[i] = cos, cs[n_rot / 2 + i] = sin;
     * the rest is copied. y0 = fma(x0, cos, -(x1 * sin)), y1 = fma(x0, sin, x1 * cos). y may be x.
     */
    void (*rope_norm)(const float *x, const float *cs, uint32_t n_rot, uint32_t n, float *y);
    /* The same for pairs (i, i + n_rot / 2). */
    void (*rope_neox)(const float *x, const float *cs, uint32_t n_rot, uint32_t n, float *y);
    /* Walsh-Hadamard in blocks of b (a power of two dividing n), in place, butterflies of distance
     * 1, 2, 4, …, then × 1/sqrt(b) rounded to float. Its own inverse. */
    void (*hadamard)(float *x, uint32_t b, uint32_t n);

    /* ---- softmax, page by page */
    /* Takes the scores of one more page into the softmax of n_row rows: s[n_row][64] become
     * exponentials below the largest score so far, max[r], exactly 0 where s was -INFINITY, and
     * sum[r] = sum[r] * down[r] + their sum. down[r] is by what all that was made of the pages
     * before has to be multiplied: exp(max before - max), 1 where that changes nothing. max and sum
     * begin as -INFINITY and 0. exp: one polynomial for all levels, exp(0) exactly 1, 0 below -87,
     * relative error below 2e-7. */
    void (*soften)(float *s, uint32_t n_row, float *max, float *sum, float *down);
    /* exp as above for one value <= 0. */
    float (*exp1)(float x);
    /* The same for n values, in place; -INFINITY gives 0. */
    void (*exps)(float *x, uint32_t n);

    /* ---- plain pages. type: KVC_TYPE_F32, _F16, _BF16. Keys are held as [dim][64] (element d of
     * all entries side by side), values as [64][dim]. */
    /* Stores key row e (of 64) of a page. Conversions round to nearest even; beyond the largest
     * binary16 they give that. */
    void (*put_k)(uint32_t type, const float *x, uint32_t dim, uint32_t e, void *page_k);
    /* Stores value row e. */
    void (*put_v)(uint32_t type, const float *x, uint32_t dim, uint32_t e, void *page_v);
    /* All 64 keys as rows: out[64][dim]. */
    void (*get_k)(uint32_t type, const void *page_k, uint32_t dim, float *out);
    /* All 64 values: out[64][dim]. */
    void (*get_v)(uint32_t type, const void *page_v, uint32_t dim, float *out);
    /* s[i, e] = Σ_d q[i, d] × k[d, e], d ascending, acc from 0 by fma. s: [n_q][64], s_stride
     * floats apart; q: [n_q][dim], dense. */
    void (*score)(uint32_t type, const void *page_k, uint32_t dim, const float *q, uint32_t n_q,
                  float *s, size_t s_stride);
    /* acc[i, d] = fma(p[i, e], v[e, d], acc[i, d]), e ascending over all 64. p: [n_q][64], p_stride
     * apart; acc: [n_q][dim], dense. */
    void (*mix)(uint32_t type, const void *page_v, uint32_t dim, const float *p, size_t p_stride,
                uint32_t n_q, float *acc);
    /* y = fma(x, a, y) */
    void (*axpy)(float a, const float *x, float *y, uint32_t n);

    /* ---- packed half pages (kvc_packing of policy.h; layout in pack.h). pack: KVC_PAGE rows,
     * stride floats apart. unpack: out[64][dim]. q: [n_q][dim], s: [n_q][64], w: [n_q][64], acc:
     * [n_q][dim], all dense.
     *
     * 8 bits: scale = amax / 127 rounded to binary16, code = nearest-even(x / scale) clamped to
     * ±127, 0 where the scale is 0; x = code * scale.
     *
     * 4 and 2 bits: elements are clamped to ±65504, NaN to -65504. With KVC_PACK_ZERO min = the
     * group's least, rounded to binary16, and scale = max(largest - min, 0) / (2^bits - 1),
     * rounded; without, scale = peak * -2^(1 - bits), rounded, where peak is the element of the
     * largest magnitude (of two the positive one), and min = scale * -2^(bits - 1). code =
     * nearest-even((x - min) / scale) clamped to [0, 2^bits), 0 for 0 / 0; x = fma(code, scale,
     * min). */
    void (*pack_k)(const kvc_packing *p, const float *rows, uint32_t stride, void *dst);
    void (*pack_v)(const kvc_packing *p, const float *rows, uint32_t stride, void *dst);
    void (*unpack_k)(const kvc_packing *p, const void *src, float *out);
    void (*unpack_v)(const kvc_packing *p, const void *src, float *out);
    /* Float query. 8 bits: s = (Σ_d fma(q[d], code, acc)) * scale. Row groups: from s = 0, groups
     * ascending, s = fma(qmin, min, fma(acc, scale, s)), acc = Σ_d fma(q[d], code, acc), qmin the
     * group's Σ_d q[d] in 16 lanes. Channels: s = acc + base, acc = Σ_d fma(q[d] * scale[d], code,
     * acc), base = Σ_d fma(q[d], min[d], base) in 16 lanes. */
    void (*pack_score_f)(const kvc_packing *p, const void *src, const float *q, uint32_t n_q,
                         float *s);
    /* Query rounded to int8: dq = amax / 127, qi = nearest-even(q * (127 / amax)), 0 where amax is
     * 0; isum = Σ_d qi[d] × code, exact, as are all sums of integers here. 8 bits: s = (float)isum
     * * (dq * scale). Row groups: from s = 0, groups ascending, s = fma((float)qsum, dq * min,
     * fma((float)isum, dq * scale, s)), qsum = Σ qi over the group. Channels: q[d] * scale[d] is
     * rounded, for either half of the entries; s = fma((float)Σ_d qi[d] × (code - c), dq, base), c
     * = 2^(bits - 1), base = Σ_d fma(q[d], fma(c, scale[d], min[d]), base) in 16 lanes. */
    void (*pack_score_q)(const kvc_packing *p, const void *src, const float *q, uint32_t n_q,
                         float *s);
    /* Entries ascending. 8 bits: acc = fma(w[e] * scale, code, acc). Row groups: acc = acc + wmin,
     * wmin = Σ_e fma(w[e], min, wmin) in 16 lanes, then acc = fma(w[e] * scale, code, acc).
     * Channels: blocks of entries ascending, acc = fma(r, scale, fma(wsum, min, acc)), r = Σ_e
     * fma(w[e], code, r), wsum = Σ_e w[e] in 16 lanes. */
    void (*pack_mix_f)(const kvc_packing *p, const void *src, const float *w, uint32_t n_q,
                       float *acc);
    /* Weights rounded to 14 bits and a sign. 8 bits: of a row of 64, x = w[e] * scale, step = amax
     * / 16256, wi = nearest-even(x * (16256 / amax)), 0 where amax is 0, not finite, or so small
     * that the factor isn't; acc = fma((float)Σ_e wi[e] × code, step, acc), the sum exact. 4 and 2
     * bits: as pack_mix_f. */
    void (*pack_mix_q)(const kvc_packing *p, const void *src, const float *w, uint32_t n_q,
                       float *acc);
} kvc__kern;

/** Brings a page's exponentials, which are relative to the score `from`, down to `to`, the largest
 * of its range. */
static inline void kvc__level(const kvc__kern *kern, float *e, float from, float to) {
    if (from < to && from > -INFINITY) {
        kern->scale(e, kern->exp1(from - to), KVC__ENTRIES);
    }
}

/** The table of the level in use (kvc__cpu_level()). */
const kvc__kern *kvc__kern_get(void);
/** The table of one level, NULL when this machine or build lacks it; for tests. */
const kvc__kern *kvc__kern_level(int level);

/** Bytes of scratch that mm_f needs for w. */
size_t kvc__tile_bytes(const kvc__mat *w);
/** Bytes of a packed half page. */
size_t kvc__pack_bytes(const kvc_packing *p);

/** binary16 and bfloat16, round to nearest even; exact the other way. */
uint16_t kvc__f16(float x);
float kvc__f32_of_f16(uint16_t h);
uint16_t kvc__bf16(float x);
float kvc__f32_of_bf16(uint16_t h);

#endif
