/* SPDX-License-Identifier: MIT
 * vec_avx512.h: the vector vocabulary of vec_scalar.h, which says what each word means, in AVX-512
 * (F, BW, DQ, VL, VNNI). Included by kern_avx512.c alone; the one file with intrinsics. */
#ifndef KVC_VEC_H
#define KVC_VEC_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
/* Accumulators stay in registers only when their loops are unrolled whole. */
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* A vector takes one of 32 registers: tiles of at most 24 accumulators leave enough for what is
 * multiplied. */
#define PAGE_ROWS      6u
#define PAGE_VECS(n)   4u
#define PAGE_DOTS(n)   4u
#define PAGE_HALF(n)   2u
#define MM_Q_TOKENS    8u
#define MM_Q_STEP      4u
#define MM_F_TOKENS    12u
#define MM_F_GROUPS(n) 4u

typedef __m512 vf;
typedef __m512i vi;

INLINE __mmask16 vec_mask(uint32_t n) {
    return (__mmask16)(n < 16 ? (1u << n) - 1u : 0xffffu);
}

INLINE void vec_prefetch(const void *p) {
    _mm_prefetch((const char *)p, _MM_HINT_T0);
}

INLINE const void *vec_again(const void *p) {
    return p;
}

/* ---- floats */

INLINE vf vf_set1(float x) {
    return _mm512_set1_ps(x);
}

INLINE vf vf_zero(void) {
    return _mm512_setzero_ps();
}

INLINE vf vf_load(const float *p) {
    return _mm512_loadu_ps(p);
}

INLINE vf vf_load_n(const float *p, uint32_t n) {
    return _mm512_maskz_loadu_ps(vec_mask(n), p);
}

INLINE void vf_store(float *p, vf x) {
    _mm512_storeu_ps(p, x);
}

INLINE void vf_store_n(float *p, vf x, uint32_t n) {
    _mm512_mask_storeu_ps(p, vec_mask(n), x);
}

INLINE vf vf_add(vf a, vf b) {
    return _mm512_add_ps(a, b);
}

INLINE vf vf_sub(vf a, vf b) {
    return _mm512_sub_ps(a, b);
}

INLINE vf vf_mul(vf a, vf b) {
    return _mm512_mul_ps(a, b);
}

INLINE vf vf_div(vf a, vf b) {
    return _mm512_div_ps(a, b);
}

INLINE vf vf_fma(vf a, vf b, vf c) {
    return _mm512_fmadd_ps(a, b, c);
}

INLINE vf vf_max(vf a, vf b) {
    return _mm512_max_ps(a, b);
}

INLINE vf vf_min(vf a, vf b) {
    return _mm512_min_ps(a, b);
}

INLINE vf vf_zero_below(vf x, vf y, vf limit) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(y, limit, _CMP_NLT_UQ), x);
}

INLINE vf vf_butterfly(vf x, uint32_t h) {
    switch (h) {
    case 1: {
        vf s = _mm512_permute_ps(x, 0xb1);
        return _mm512_mask_sub_ps(_mm512_add_ps(x, s), 0xaaaa, s, x);
    }
    case 2: {
        vf s = _mm512_permute_ps(x, 0x4e);
        return _mm512_mask_sub_ps(_mm512_add_ps(x, s), 0xcccc, s, x);
    }
    case 4: {
        vf s = _mm512_shuffle_f32x4(x, x, 0xb1);
        return _mm512_mask_sub_ps(_mm512_add_ps(x, s), 0xf0f0, s, x);
    }
    default: {
        vf s = _mm512_shuffle_f32x4(x, x, 0x4e);
        return _mm512_mask_sub_ps(_mm512_add_ps(x, s), 0xff00, s, x);
    }
    }
}

INLINE vf vf_pick(vf table, vi index) {
    return _mm512_permutexvar_ps(index, table);
}

INLINE float vf_sum(vf x) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

INLINE float vf_max_all(vf x) {
    __m256 a = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}

INLINE float vf_first(vf x) {
    return _mm512_cvtss_f32(x);
}

/* ---- halves */

INLINE vf vf_load_f16(const void *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

INLINE vf vf_load_f16_n(const void *p, uint32_t n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(vec_mask(n), p));
}

INLINE vf vf_load_bf16(const void *p) {
    __m512i h = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(h, 16));
}

INLINE vf vf_load_bf16_n(const void *p, uint32_t n) {
    __m512i h = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(vec_mask(n), p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(h, 16));
}

INLINE void vf_store_f16_n(void *p, vf x, uint32_t n) {
    __m256i h = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_mask_storeu_epi16(p, vec_mask(n), h);
}

INLINE void vf_store_bf16_n(void *p, vf x, uint32_t n) {
    __m512i u = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(r, nan, u, _mm512_set1_epi32(0x400000));
    __m256i h = _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
    _mm256_mask_storeu_epi16(p, vec_mask(n), h);
}

/* ---- integers */

INLINE vi vi_set1(int32_t x) {
    return _mm512_set1_epi32(x);
}

INLINE vi vi_zero(void) {
    return _mm512_setzero_si512();
}

INLINE vi vi_bytes4(const int8_t *p) {
    int32_t x;
    memcpy(&x, p, sizeof x);
    return _mm512_set1_epi32(x);
}

INLINE vi vi_load(const void *p) {
    return _mm512_loadu_si512(p);
}

INLINE vi vi_add(vi a, vi b) {
    return _mm512_add_epi32(a, b);
}

INLINE vi vi_sub(vi a, vi b) {
    return _mm512_sub_epi32(a, b);
}

INLINE vi vi_and(vi a, vi b) {
    return _mm512_and_si512(a, b);
}

INLINE vi vi_xor(vi a, vi b) {
    return _mm512_xor_si512(a, b);
}

INLINE vi vi_shl(vi a, uint32_t n) {
    return _mm512_slli_epi32(a, n);
}

INLINE vi vi_shr(vi a, uint32_t n) {
    return _mm512_srli_epi32(a, n);
}

INLINE vi vi_sbyte(vi a, uint32_t j) {
    return _mm512_srai_epi32(_mm512_slli_epi32(a, 24 - 8 * j), 24);
}

INLINE vi vi_max(vi a, vi b) {
    return _mm512_max_epi32(a, b);
}

INLINE int32_t vi_max_all(vi a) {
    return _mm512_reduce_max_epi32(a);
}

INLINE int32_t vi_sum(vi a) {
    return _mm512_reduce_add_epi32(a);
}

INLINE vi vi_load_s8(const int8_t *p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
}

INLINE vi vi_load_s8_n(const int8_t *p, uint32_t n) {
    return _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(vec_mask(n), p));
}

INLINE void vi_store_s8_n(int8_t *p, vi a, uint32_t n) {
    _mm512_mask_cvtepi32_storeu_epi8(p, vec_mask(n), a);
}

/* The rows side by side, then words of four bytes to their lanes' quarter, then bytes within. */
INLINE vi vi_quad(const uint8_t *p, size_t stride) {
    const __m512i words = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m128i bytes = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i x = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)p));
    for (uint32_t j = 1; j < 4; j++) {
        __m128i row = _mm_loadu_si128((const __m128i *)(const void *)(p + j * stride));
        x = _mm512_mask_broadcast_i32x4(x, (__mmask16)(0xfu << (4 * j)), row);
    }
    x = _mm512_permutexvar_epi32(words, x);
    return _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(bytes));
}

/* Unpacking works within quarters: quarter b of vector v gets bytes 16 b + 4 v and on. */
INLINE void vi_weave(const uint8_t *p, size_t stride, uint32_t half, vi out[2]) {
    vi r0 = vi_load(p), r1 = vi_load(p + stride);
    vi r2 = vi_load(p + 2 * stride), r3 = vi_load(p + 3 * stride);
    vi a = half == 0 ? _mm512_unpacklo_epi8(r0, r1) : _mm512_unpackhi_epi8(r0, r1);
    vi b = half == 0 ? _mm512_unpacklo_epi8(r2, r3) : _mm512_unpackhi_epi8(r2, r3);
    out[0] = _mm512_unpacklo_epi16(a, b);
    out[1] = _mm512_unpackhi_epi16(a, b);
}

INLINE void vf_unweave(vf x[4]) {
    vf a = _mm512_shuffle_f32x4(x[0], x[1], 0x44), b = _mm512_shuffle_f32x4(x[0], x[1], 0xee);
    vf c = _mm512_shuffle_f32x4(x[2], x[3], 0x44), d = _mm512_shuffle_f32x4(x[2], x[3], 0xee);
    x[0] = _mm512_shuffle_f32x4(a, c, 0x88);
    x[1] = _mm512_shuffle_f32x4(a, c, 0xdd);
    x[2] = _mm512_shuffle_f32x4(b, d, 0x88);
    x[3] = _mm512_shuffle_f32x4(b, d, 0xdd);
}

/* ---- dots of bytes: one instruction for all; its first factor is unsigned */

#define VB_BIAS 128

typedef vi vd, vb;

INLINE vi vi_dot(vi acc, vi u, vi s) {
    return _mm512_dpbusd_epi32(acc, u, s);
}

INLINE vd vd_start(vi x) {
    return x;
}

INLINE vd vd_dot(vd acc, vi u, vi s) {
    return vi_dot(acc, u, s);
}

INLINE vi vd_sum(vd acc) {
    return acc;
}

INLINE vb vb_load(const void *p) {
    return vi_xor(vi_load(p), vi_set1((int32_t)0x80808080u));
}

INLINE vb vb_of(vi x) {
    return vi_xor(x, vi_set1((int32_t)0x80808080u));
}

INLINE vb vb_load_biased(const void *p) {
    return vi_load(p);
}

INLINE vi vb_dot(vi acc, vb x, vi s) {
    return vi_dot(acc, x, s);
}

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
    return _mm512_castps_si512(x);
}

INLINE vf vf_bits(vi x) {
    return _mm512_castsi512_ps(x);
}

INLINE vf vf_from_vi(vi x) {
    return _mm512_cvtepi32_ps(x);
}

INLINE vi vi_from_vf(vf x) {
    return _mm512_cvt_roundps_epi32(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

#endif
