/* SPDX-License-Identifier: MIT
 * vec_avx2.h: the vector vocabulary of vec_scalar.h, which says what each word means, in AVX2 with
 * FMA and F16C. A vector is two halves of 256 bits. There are no masked loads and stores of bytes
 * and 16-bit elements here, so the ends of rows go through a buffer. Included by kern_avx2.c
 * alone. */
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

/* A vector takes two of 16 registers. At most 6 float sums leave 4 registers for what is
 * multiplied; at least 4 hide the latency where there are as many. Dots of whole bytes need more
 * registers beside the sums. Of int8 products the sums over all blocks live in memory; the dots of
 * 4 tokens over one block are what registers hold, and 8 or 2 tokens measured slower. */
#define PAGE_ROWS      6u
#define PAGE_VECS(n)   ((n) == 1 ? 4u : (n) <= 3 ? 2u : 1u)
#define PAGE_DOTS(n)   ((n) == 1 ? 2u : 1u)
#define PAGE_HALF(n)   1u
#define MM_Q_TOKENS    4u
#define MM_Q_STEP      4u
#define MM_F_TOKENS    6u
#define MM_F_GROUPS(n) ((n) == 1 ? 4u : (n) <= 3 ? 2u : 1u)

typedef struct vf {
    __m256 a, b; /* lanes 0 to 7, 8 to 15 */
} vf;

typedef struct vi {
    __m256i a, b;
} vi;

/* All ones in the first n of 16 lanes. */
INLINE vi vec_mask(uint32_t n) {
    __m256i count = _mm256_set1_epi32((int32_t)(n < 16 ? n : 16));
    return (vi){_mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
                _mm256_cmpgt_epi32(count, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15))};
}

INLINE void vec_prefetch(const void *p) {
    _mm_prefetch((const char *)p, _MM_HINT_T0);
}

/* Empty, but the compiler can't see that it is. */
INLINE const void *vec_again(const void *p) {
    __asm__("" : "+r"(p));
    return p;
}

/* ---- floats */

INLINE vf vf_set1(float x) {
    return (vf){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}

INLINE vf vf_zero(void) {
    return (vf){_mm256_setzero_ps(), _mm256_setzero_ps()};
}

INLINE vf vf_load(const float *p) {
    return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}

INLINE vf vf_load_n(const float *p, uint32_t n) {
    if (n >= 16) {
        return vf_load(p);
    }
    vi m = vec_mask(n);
    return (vf){_mm256_maskload_ps(p, m.a), _mm256_maskload_ps(p + 8, m.b)};
}

INLINE void vf_store(float *p, vf x) {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}

INLINE void vf_store_n(float *p, vf x, uint32_t n) {
    if (n >= 16) {
        vf_store(p, x);
        return;
    }
    vi m = vec_mask(n);
    _mm256_maskstore_ps(p, m.a, x.a);
    _mm256_maskstore_ps(p + 8, m.b, x.b);
}

INLINE vf vf_add(vf x, vf y) {
    return (vf){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}

INLINE vf vf_sub(vf x, vf y) {
    return (vf){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)};
}

INLINE vf vf_mul(vf x, vf y) {
    return (vf){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}

INLINE vf vf_div(vf x, vf y) {
    return (vf){_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
}

INLINE vf vf_fma(vf x, vf y, vf z) {
    return (vf){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}

INLINE vf vf_max(vf x, vf y) {
    return (vf){_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)};
}

INLINE vf vf_min(vf x, vf y) {
    return (vf){_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)};
}

INLINE vf vf_zero_below(vf x, vf y, vf limit) {
    return (vf){_mm256_and_ps(x.a, _mm256_cmp_ps(y.a, limit.a, _CMP_NLT_UQ)),
                _mm256_and_ps(x.b, _mm256_cmp_ps(y.b, limit.b, _CMP_NLT_UQ))};
}

/* One half's butterfly of distance 1, 2 or 4. */
INLINE __m256 vec_butterfly8(__m256 x, uint32_t h) {
    switch (h) {
    case 1: {
        __m256 s = _mm256_permute_ps(x, 0xb1);
        return _mm256_blend_ps(_mm256_add_ps(x, s), _mm256_sub_ps(s, x), 0xaa);
    }
    case 2: {
        __m256 s = _mm256_permute_ps(x, 0x4e);
        return _mm256_blend_ps(_mm256_add_ps(x, s), _mm256_sub_ps(s, x), 0xcc);
    }
    default: {
        __m256 s = _mm256_permute2f128_ps(x, x, 0x01);
        return _mm256_blend_ps(_mm256_add_ps(x, s), _mm256_sub_ps(s, x), 0xf0);
    }
    }
}

INLINE vf vf_butterfly(vf x, uint32_t h) {
    if (h == 8) {
        return (vf){_mm256_add_ps(x.a, x.b), _mm256_sub_ps(x.a, x.b)};
    }
    return (vf){vec_butterfly8(x.a, h), vec_butterfly8(x.b, h)};
}

INLINE __m256 vec_pick8(vf table, __m256i index) {
    __m256 low = _mm256_permutevar8x32_ps(table.a, index);
    __m256 high = _mm256_permutevar8x32_ps(table.b, index);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}

INLINE vf vf_pick(vf table, vi index) {
    return (vf){vec_pick8(table, index.a), vec_pick8(table, index.b)};
}

INLINE float vf_sum(vf x) {
    __m256 a = _mm256_add_ps(x.a, x.b);
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

INLINE float vf_max_all(vf x) {
    __m256 a = _mm256_max_ps(x.a, x.b);
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
}

INLINE float vf_first(vf x) {
    return _mm256_cvtss_f32(x.a);
}

/* ---- halves */

/* The first n of 16 elements of 16 bits, the others 0. */
INLINE __m256i vec_load16_n(const void *p, uint32_t n) {
    uint16_t h[16] = {0};
    if (n >= 16) {
        return _mm256_loadu_si256((const __m256i *)p);
    }
    memcpy(h, p, n * sizeof *h);
    return _mm256_loadu_si256((const __m256i *)(const void *)h);
}

INLINE void vec_store16_n(void *p, __m256i x, uint32_t n) {
    uint16_t h[16];
    if (n >= 16) {
        _mm256_storeu_si256((__m256i *)p, x);
        return;
    }
    _mm256_storeu_si256((__m256i *)(void *)h, x);
    memcpy(p, h, n * sizeof *h);
}

INLINE vf vec_of_f16(__m256i h) {
    return (vf){_mm256_cvtph_ps(_mm256_castsi256_si128(h)),
                _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1))};
}

INLINE vf vf_load_f16(const void *p) {
    const __m128i *h = (const __m128i *)p;
    return (vf){_mm256_cvtph_ps(_mm_loadu_si128(h)), _mm256_cvtph_ps(_mm_loadu_si128(h + 1))};
}

INLINE vf vf_load_f16_n(const void *p, uint32_t n) {
    return vec_of_f16(vec_load16_n(p, n));
}

INLINE __m256 vec_of_bf16(__m128i h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

INLINE vf vf_load_bf16(const void *p) {
    const __m128i *h = (const __m128i *)p;
    return (vf){vec_of_bf16(_mm_loadu_si128(h)), vec_of_bf16(_mm_loadu_si128(h + 1))};
}

INLINE vf vf_load_bf16_n(const void *p, uint32_t n) {
    __m256i h = vec_load16_n(p, n);
    return (vf){vec_of_bf16(_mm256_castsi256_si128(h)),
                vec_of_bf16(_mm256_extracti128_si256(h, 1))};
}

INLINE void vf_store_f16_n(void *p, vf x, uint32_t n) {
    __m128i a = _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m128i b = _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    vec_store16_n(p, _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1), n);
}

/* The upper halves of x rounded to nearest even, as integers; NaN is kept, and quiet. */
INLINE __m256i vec_bf16(__m256 x) {
    __m256i u = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(r, quiet, nan), 16);
}

/* Two vectors of 8 integers below 2^16 to 16 elements of 16 bits, in order. */
INLINE __m256i vec_narrow(__m256i a, __m256i b) {
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(a, b), 0xd8);
}

INLINE void vf_store_bf16_n(void *p, vf x, uint32_t n) {
    vec_store16_n(p, vec_narrow(vec_bf16(x.a), vec_bf16(x.b)), n);
}

/* ---- integers */

INLINE vi vi_set1(int32_t x) {
    return (vi){_mm256_set1_epi32(x), _mm256_set1_epi32(x)};
}

INLINE vi vi_zero(void) {
    return (vi){_mm256_setzero_si256(), _mm256_setzero_si256()};
}

INLINE vi vi_bytes4(const int8_t *p) {
    int32_t x;
    memcpy(&x, p, sizeof x);
    return vi_set1(x);
}

INLINE vi vi_load(const void *p) {
    const __m256i *v = (const __m256i *)p;
    return (vi){_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)};
}

INLINE vi vi_add(vi x, vi y) {
    return (vi){_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)};
}

INLINE vi vi_sub(vi x, vi y) {
    return (vi){_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)};
}

INLINE vi vi_and(vi x, vi y) {
    return (vi){_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)};
}

INLINE vi vi_xor(vi x, vi y) {
    return (vi){_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)};
}

INLINE vi vi_shl(vi x, uint32_t n) {
    return (vi){_mm256_slli_epi32(x.a, (int)n), _mm256_slli_epi32(x.b, (int)n)};
}

INLINE vi vi_shr(vi x, uint32_t n) {
    return (vi){_mm256_srli_epi32(x.a, (int)n), _mm256_srli_epi32(x.b, (int)n)};
}

INLINE vi vi_sbyte(vi x, uint32_t j) {
    const int up = (int)(24 - 8 * j);
    return (vi){_mm256_srai_epi32(_mm256_slli_epi32(x.a, up), 24),
                _mm256_srai_epi32(_mm256_slli_epi32(x.b, up), 24)};
}

INLINE vi vi_max(vi x, vi y) {
    return (vi){_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)};
}

INLINE int32_t vi_max_all(vi x) {
    __m256i a = _mm256_max_epi32(x.a, x.b);
    __m128i b = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    b = _mm_max_epi32(b, _mm_shuffle_epi32(b, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(b, _mm_shuffle_epi32(b, 0xb1)));
}

INLINE int32_t vi_sum(vi x) {
    __m256i a = _mm256_add_epi32(x.a, x.b);
    __m128i b = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    b = _mm_add_epi32(b, _mm_shuffle_epi32(b, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(b, _mm_shuffle_epi32(b, 0xb1)));
}

INLINE vi vi_load_s8(const int8_t *p) {
    __m128i x = _mm_loadu_si128((const __m128i *)(const void *)p);
    return (vi){_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(x, x))};
}

INLINE vi vi_load_s8_n(const int8_t *p, uint32_t n) {
    int8_t s[16] = {0};
    if (n >= 16) {
        return vi_load_s8(p);
    }
    memcpy(s, p, n);
    return vi_load_s8(s);
}

/* The low bytes of the lanes. */
INLINE __m128i vec_low_bytes(vi x) {
    __m256i a = _mm256_shuffle_epi8(x.a, _mm256_set1_epi64x((int64_t)0x808080800c080400));
    __m256i b = _mm256_shuffle_epi8(x.b, _mm256_set1_epi64x(0x0c08040080808080));
    __m256i y = _mm256_or_si256(a, b); /* lanes 0-3, 8-11, .., .., 4-7, 12-15 */
    return _mm_unpacklo_epi32(_mm256_castsi256_si128(y), _mm256_extracti128_si256(y, 1));
}

INLINE void vi_store_s8_n(int8_t *p, vi x, uint32_t n) {
    int8_t end[16];
    if (n >= 16) {
        _mm_storeu_si128((__m128i *)(void *)p, vec_low_bytes(x));
        return;
    }
    _mm_storeu_si128((__m128i *)(void *)end, vec_low_bytes(x));
    memcpy(p, end, n);
}

INLINE vi vi_quad(const uint8_t *p, size_t stride) {
    __m128i r[4];
    for (uint32_t j = 0; j < 4; j++) {
        r[j] = _mm_loadu_si128((const __m128i *)(const void *)(p + j * stride));
    }
    __m128i a = _mm_unpacklo_epi8(r[0], r[1]), b = _mm_unpackhi_epi8(r[0], r[1]);
    __m128i c = _mm_unpacklo_epi8(r[2], r[3]), d = _mm_unpackhi_epi8(r[2], r[3]);
    return (vi){_mm256_set_m128i(_mm_unpackhi_epi16(a, c), _mm_unpacklo_epi16(a, c)),
                _mm256_set_m128i(_mm_unpackhi_epi16(b, d), _mm_unpacklo_epi16(b, d))};
}

/* Unpacking works within quarters: of 32 bytes, each half of a vector gets four of the first 16 and
 * four of the last. */
INLINE void vi_weave(const uint8_t *p, size_t stride, uint32_t half, vi out[2]) {
    __m256i r[4];
    for (uint32_t j = 0; j < 4; j++) {
        r[j] = _mm256_loadu_si256((const __m256i *)(const void *)(p + 32 * half + j * stride));
    }
    __m256i a = _mm256_unpacklo_epi8(r[0], r[1]), b = _mm256_unpackhi_epi8(r[0], r[1]);
    __m256i c = _mm256_unpacklo_epi8(r[2], r[3]), d = _mm256_unpackhi_epi8(r[2], r[3]);
    out[0] = (vi){_mm256_unpacklo_epi16(a, c), _mm256_unpackhi_epi16(a, c)};
    out[1] = (vi){_mm256_unpacklo_epi16(b, d), _mm256_unpackhi_epi16(b, d)};
}

INLINE void vf_unweave(vf x[4]) {
    for (uint32_t i = 0; i < 4; i += 2) {
        vf u = x[i], v = x[i + 1];
        x[i] = (vf){_mm256_permute2f128_ps(u.a, u.b, 0x20), _mm256_permute2f128_ps(v.a, v.b, 0x20)};
        x[i + 1] =
            (vf){_mm256_permute2f128_ps(u.a, u.b, 0x31), _mm256_permute2f128_ps(v.a, v.b, 0x31)};
    }
}

/* ---- dots of bytes
 *
 * maddubs multiplies unsigned by signed bytes and adds neighbours in 16 bits, where it saturates.
 * A sum of 16 products of nibbles, each at most 15 * 127, fits. */

typedef struct vd {
    vi start;
    __m256i a, b; /* sums in 16 bits */
} vd;

INLINE vd vd_start(vi x) {
    return (vd){x, _mm256_setzero_si256(), _mm256_setzero_si256()};
}

INLINE vd vd_dot(vd acc, vi u, vi s) {
    acc.a = _mm256_add_epi16(acc.a, _mm256_maddubs_epi16(u.a, s.a));
    acc.b = _mm256_add_epi16(acc.b, _mm256_maddubs_epi16(u.b, s.b));
    return acc;
}

INLINE vi vd_sum(vd acc) {
    __m256i one = _mm256_set1_epi16(1);
    vi sum = {_mm256_madd_epi16(acc.a, one), _mm256_madd_epi16(acc.b, one)};
    return vi_add(acc.start, sum);
}

/* Whole bytes don't fit (255 * 127 * 2), but 128 * 127 * 2 does: the sign of one factor goes over
 * to the other, and each sum of two is widened before the next. (Measured against widening the
 * bytes first and against splitting them into nibbles, which both multiply less: those need more
 * registers than there are.) */
#define VB_BIAS 0

typedef vi vb;

INLINE vb vb_load(const void *p) {
    return vi_load(p);
}

INLINE vb vb_of(vi x) {
    return x;
}

INLINE vb vb_load_biased(const void *p) {
    return vi_xor(vi_load(p), vi_set1((int32_t)0x80808080u));
}

INLINE __m256i vec_dot(__m256i acc, __m256i x, __m256i s) {
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(s, x));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

INLINE vi vb_dot(vi acc, vb x, vi s) {
    return (vi){vec_dot(acc.a, x.a, s.a), vec_dot(acc.b, x.b, s.b)};
}

/* With weights in two bytes: products with the upper ones count 128 times when pairs are widened,
 * so one sum is enough. */
typedef vi vw;

INLINE vw vw_zero(void) {
    return vi_zero();
}

INLINE __m256i vec_weigh(__m256i acc, __m256i x, __m256i hi, __m256i lo) {
    __m256i h = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(hi, x));
    __m256i l = _mm256_maddubs_epi16(lo, x);
    acc = _mm256_add_epi32(acc, _mm256_madd_epi16(h, _mm256_set1_epi16(128)));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(l, _mm256_set1_epi16(1)));
}

INLINE vw vw_dot(vw acc, vb x, vi hi, vi lo) {
    return (vw){vec_weigh(acc.a, x.a, hi.a, lo.a), vec_weigh(acc.b, x.b, hi.a, lo.a)};
}

INLINE vi vw_sum(vw acc) {
    return acc;
}

/* ---- between the two */

INLINE vi vi_bits(vf x) {
    return (vi){_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)};
}

INLINE vf vf_bits(vi x) {
    return (vf){_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)};
}

INLINE vf vf_from_vi(vi x) {
    return (vf){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)};
}

/* In the rounding mode of kvc__fp_enter(). */
INLINE vi vi_from_vf(vf x) {
    return (vi){_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)};
}

#endif
