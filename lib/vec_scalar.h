/* SPDX-License-Identifier: MIT
 * vec_scalar.h: the vector vocabulary in plain C: 16 lanes as arrays. The kernels (kern_impl.h) are
 * written in these words alone; vec_avx512.h says the same with instructions, bit for bit.
 *   vf  16 floats      vi  16 int32, or 64 bytes
 *   _n  only the first n lanes (n may exceed 16): others load as 0 and are not stored */
#ifndef KVC_VEC_H
#define KVC_VEC_H

#include "half.h"

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline
#define UNROLL

/* How many results the kernels work on side by side, which changes speed alone; every level has its
 * own:
 *   PAGE_ROWS       query rows over a page, at most 6
 *   PAGE_VECS(n)    vectors of float sums for each of n rows: 1, 2 or 4
 *   PAGE_DOTS(n)    the same of integer sums
 *   PAGE_HALF(n)    the same where half the page is worked on: 1 or 2
 *   MM_Q_TOKENS     tokens of an int8 product: 4 or 8
 *   MM_Q_STEP       those of them whose dots are under way together
 *   MM_F_TOKENS     tokens of a float product with one group of rows, above 4
 *   MM_F_GROUPS(n)  groups of rows with n of 1 to 4 tokens: 1, 2 or 4 */
#define PAGE_ROWS      6u
#define PAGE_VECS(n)   4u
#define PAGE_DOTS(n)   4u
#define PAGE_HALF(n)   2u
#define MM_Q_TOKENS    8u
#define MM_Q_STEP      4u
#define MM_F_TOKENS    12u
#define MM_F_GROUPS(n) 4u

typedef struct vf {
    float l[16];
} vf;

typedef union vi {
    int32_t i[16];
    uint32_t u[16];
    uint8_t b[64];
    int8_t s[64];
} vi;

#define EACH for (uint32_t l = 0; l < 16; l++)

INLINE uint32_t vec_lanes(uint32_t n) {
    return n < 16 ? n : 16;
}

INLINE void vec_prefetch(const void *p) {
    (void)p;
}

/* p. Where registers are few, what is loaded through the result is loaded then, rather than kept
 * from an earlier load through p. */
INLINE const void *vec_again(const void *p) {
    return p;
}

/* ---- floats */

INLINE vf vf_set1(float x) {
    vf r;
    EACH {
        r.l[l] = x;
    }
    return r;
}

INLINE vf vf_zero(void) {
    return vf_set1(0.0f);
}

INLINE vf vf_load(const float *p) {
    vf r;
    memcpy(&r, p, sizeof r);
    return r;
}

INLINE vf vf_load_n(const float *p, uint32_t n) {
    vf r = vf_zero();
    memcpy(&r, p, vec_lanes(n) * sizeof *p);
    return r;
}

INLINE void vf_store(float *p, vf x) {
    memcpy(p, &x, sizeof x);
}

INLINE void vf_store_n(float *p, vf x, uint32_t n) {
    memcpy(p, &x, vec_lanes(n) * sizeof *p);
}

INLINE vf vf_add(vf a, vf b) {
    EACH {
        a.l[l] += b.l[l];
    }
    return a;
}

INLINE vf vf_sub(vf a, vf b) {
    EACH {
        a.l[l] -= b.l[l];
    }
    return a;
}

INLINE vf vf_mul(vf a, vf b) {
    EACH {
        a.l[l] *= b.l[l];
    }
    return a;
}

INLINE vf vf_div(vf a, vf b) {
    EACH {
        a.l[l] /= b.l[l];
    }
    return a;
}

INLINE vf vf_fma(vf a, vf b, vf c) {
    EACH {
        c.l[l] = fmaf(a.l[l], b.l[l], c.l[l]);
    }
    return c;
}

/* b where either is NaN or they are equal. */
INLINE vf vf_max(vf a, vf b) {
    EACH {
        b.l[l] = a.l[l] > b.l[l] ? a.l[l] : b.l[l];
    }
    return b;
}

INLINE vf vf_min(vf a, vf b) {
    EACH {
        b.l[l] = a.l[l] < b.l[l] ? a.l[l] : b.l[l];
    }
    return b;
}

/* x, but 0 where y < limit. */
INLINE vf vf_zero_below(vf x, vf y, vf limit) {
    EACH {
        x.l[l] = y.l[l] < limit.l[l] ? 0.0f : x.l[l];
    }
    return x;
}

/* Lanes l and l + h of each 2h lanes become their sum and difference. h is 1, 2, 4 or 8. */
INLINE vf vf_butterfly(vf x, uint32_t h) {
    vf r;
    EACH {
        r.l[l] = (l & h) == 0 ? x.l[l] + x.l[l ^ h] : x.l[l ^ h] - x.l[l];
    }
    return r;
}

/* Lane by lane the element of the table that the low 4 bits of the index say. */
INLINE vf vf_pick(vf table, vi index) {
    vf r;
    EACH {
        r.l[l] = table.l[index.u[l] & 15];
    }
    return r;
}

/* The tree of kern.h. */
INLINE float vf_sum(vf x) {
    for (uint32_t h = 8; h > 0; h /= 2) {
        for (uint32_t l = 0; l < h; l++) {
            x.l[l] += x.l[l + h];
        }
    }
    return x.l[0];
}

INLINE float vf_max_all(vf x) {
    for (uint32_t h = 8; h > 0; h /= 2) {
        for (uint32_t l = 0; l < h; l++) {
            x.l[l] = x.l[l] > x.l[l + h] ? x.l[l] : x.l[l + h];
        }
    }
    return x.l[0];
}

INLINE float vf_first(vf x) {
    return x.l[0];
}

/* ---- halves */

INLINE vf vf_load_f16_n(const void *p, uint32_t n) {
    uint16_t h[16] = {0};
    vf r;
    memcpy(h, p, vec_lanes(n) * sizeof *h);
    EACH {
        r.l[l] = half_of_f16(h[l]);
    }
    return r;
}

INLINE vf vf_load_f16(const void *p) {
    return vf_load_f16_n(p, 16);
}

INLINE vf vf_load_bf16_n(const void *p, uint32_t n) {
    uint16_t h[16] = {0};
    vf r;
    memcpy(h, p, vec_lanes(n) * sizeof *h);
    EACH {
        r.l[l] = half_of_bf16(h[l]);
    }
    return r;
}

INLINE vf vf_load_bf16(const void *p) {
    return vf_load_bf16_n(p, 16);
}

INLINE void vf_store_f16_n(void *p, vf x, uint32_t n) {
    uint16_t h[16];
    EACH {
        h[l] = half_f16(x.l[l]);
    }
    memcpy(p, h, vec_lanes(n) * sizeof *h);
}

INLINE void vf_store_bf16_n(void *p, vf x, uint32_t n) {
    uint16_t h[16];
    EACH {
        h[l] = half_bf16(x.l[l]);
    }
    memcpy(p, h, vec_lanes(n) * sizeof *h);
}

/* ---- integers */

INLINE vi vi_set1(int32_t x) {
    vi r;
    EACH {
        r.i[l] = x;
    }
    return r;
}

INLINE vi vi_zero(void) {
    return vi_set1(0);
}

/* The four bytes at p in every lane. */
INLINE vi vi_bytes4(const int8_t *p) {
    int32_t x;
    memcpy(&x, p, sizeof x);
    return vi_set1(x);
}

INLINE vi vi_load(const void *p) {
    vi r;
    memcpy(&r, p, sizeof r);
    return r;
}

INLINE vi vi_add(vi a, vi b) {
    EACH {
        a.u[l] += b.u[l];
    }
    return a;
}

INLINE vi vi_sub(vi a, vi b) {
    EACH {
        a.u[l] -= b.u[l];
    }
    return a;
}

INLINE vi vi_and(vi a, vi b) {
    EACH {
        a.u[l] &= b.u[l];
    }
    return a;
}

INLINE vi vi_xor(vi a, vi b) {
    EACH {
        a.u[l] ^= b.u[l];
    }
    return a;
}

INLINE vi vi_shl(vi a, uint32_t n) {
    EACH {
        a.u[l] <<= n;
    }
    return a;
}

INLINE vi vi_shr(vi a, uint32_t n) {
    EACH {
        a.u[l] >>= n;
    }
    return a;
}

/* Byte j of each lane, sign-extended. */
INLINE vi vi_sbyte(vi a, uint32_t j) {
    vi r;
    EACH {
        r.i[l] = a.s[4 * l + j];
    }
    return r;
}

INLINE vi vi_max(vi a, vi b) {
    EACH {
        a.i[l] = a.i[l] > b.i[l] ? a.i[l] : b.i[l];
    }
    return a;
}

INLINE int32_t vi_max_all(vi a) {
    int32_t m = a.i[0];
    EACH {
        m = a.i[l] > m ? a.i[l] : m;
    }
    return m;
}

INLINE int32_t vi_sum(vi a) {
    uint32_t s = 0;
    EACH {
        s += a.u[l];
    }
    return (int32_t)s;
}

INLINE vi vi_load_s8_n(const int8_t *p, uint32_t n) {
    vi r;
    EACH {
        r.i[l] = l < n ? p[l] : 0;
    }
    return r;
}

INLINE vi vi_load_s8(const int8_t *p) {
    return vi_load_s8_n(p, 16);
}

/* The low bytes. */
INLINE void vi_store_s8_n(int8_t *p, vi a, uint32_t n) {
    for (uint32_t l = 0; l < vec_lanes(n); l++) {
        p[l] = a.s[4 * l];
    }
}

/* 16 bytes each of four rows: byte j of lane l is byte l of row j. */
INLINE vi vi_quad(const uint8_t *p, size_t stride) {
    vi r;
    EACH {
        for (uint32_t j = 0; j < 4; j++) {
            r.b[4 * l + j] = p[j * stride + l];
        }
    }
    return r;
}

/* Half of 64 bytes each of four rows, as two times vi_quad(), but which words are in which of the
 * four vectors is the level's own order. */
INLINE void vi_weave(const uint8_t *p, size_t stride, uint32_t half, vi out[2]) {
    out[0] = vi_quad(p + 32 * half, stride);
    out[1] = vi_quad(p + 32 * half + 16, stride);
}

/* Back into the order of the bytes. */
INLINE void vf_unweave(vf x[4]) {
    (void)x;
}

/* ---- dots of bytes; s is at least -127 */

/* acc + the four products of unsigned bytes u and signed bytes s in each lane; exact. What the
 * following are made of where there is an instruction for it; no level has to have it. */
INLINE vi vi_dot(vi acc, vi u, vi s) {
    EACH {
        int32_t sum = 0;
        for (uint32_t j = 0; j < 4; j++) {
            sum += u.b[4 * l + j] * s.s[4 * l + j];
        }
        acc.u[l] += (uint32_t)sum;
    }
    return acc;
}

/* At most 8 dots of bytes u of at most 15, under way. */
typedef vi vd;

/* Dots that are added to x. */
INLINE vd vd_start(vi x) {
    return x;
}

INLINE vd vd_dot(vd acc, vi u, vi s) {
    return vi_dot(acc, u, s);
}

INLINE vi vd_sum(vd acc) {
    return acc;
}

/* 64 signed bytes for vb_dot(). They may be held VB_BIAS too high, and so may its products: that
 * many times the sum of s is left to be taken off. */
typedef vi vb;
#define VB_BIAS 128

INLINE vb vb_load(const void *p) {
    return vi_xor(vi_load(p), vi_set1((int32_t)0x80808080u));
}

INLINE vb vb_of(vi x) {
    return vi_xor(x, vi_set1((int32_t)0x80808080u));
}

/* Bytes that lie at p as value + 128. */
INLINE vb vb_load_biased(const void *p) {
    return vi_load(p);
}

/* acc + the four products in each lane; exact. */
INLINE vi vb_dot(vi acc, vb x, vi s) {
    return vi_dot(acc, x, s);
}

/* Dots of vb with weights of two bytes, 128 × hi + lo, hi within ±127, lo from 0 to 127, the same
 * four in all lanes; at most 16 under way. */
typedef struct vw {
    vi hi, lo;
} vw;

INLINE vw vw_zero(void) {
    return (vw){vi_zero(), vi_zero()};
}

INLINE vw vw_dot(vw acc, vb x, vi hi, vi lo) {
    return (vw){vb_dot(acc.hi, x, hi), vb_dot(acc.lo, x, lo)};
}

INLINE vi vw_sum(vw acc) {
    return vi_add(vi_shl(acc.hi, 7), acc.lo);
}

/* ---- between the two */

INLINE vi vi_bits(vf x) {
    vi r;
    memcpy(&r, &x, sizeof r);
    return r;
}

INLINE vf vf_bits(vi x) {
    vf r;
    memcpy(&r, &x, sizeof r);
    return r;
}

INLINE vf vf_from_vi(vi x) {
    vf r;
    EACH {
        r.l[l] = (float)x.i[l];
    }
    return r;
}

/* Nearest even; |x| below 2^22. Adding 1.5 * 2^23 leaves the integer in the low bits. */
INLINE vi vi_from_vf(vf x) {
    return vi_sub(vi_bits(vf_add(x, vf_set1(12582912.0f))), vi_set1(0x4b400000));
}

#endif
