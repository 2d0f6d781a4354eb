/* SPDX-License-Identifier: MIT
 * probe_avx2.c: multiply-adds by AVX2, which takes three instructions for what VNNI does in one.
 * Compiled with the flags of that level, so nothing in it may run before probe.c has asked the
 * processor. */
#include "probe.h"

#if defined(__AVX2__)
#include <immintrin.h>

/* Sums that don't wait for each other: only the addition, one cycle, waits for the one before, so a
 * few are enough, and with eight gcc runs out of registers. Variables and not an array: it keeps
 * elements of one in memory. */
#define EACH(x) x(0) x(1) x(2) x(3)

#define BEGIN(i) __m256i sum##i = _mm256_set1_epi32(i);
/* The empty statement tells the compiler that a may have changed; else it would take the products,
 * the same each time, out of the loop. */
#define STEP(i)                                                                                    \
    __asm__ volatile("" : "+x"(a));                                                                \
    sum##i = _mm256_add_epi32(sum##i, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
#define END(i) all = _mm256_add_epi32(all, sum##i);

int32_t cmp_probe_int8_avx2(uint64_t n) {
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i b = _mm256_set1_epi8(2);
    __m256i a = _mm256_set1_epi8(1);
    EACH(BEGIN)
    for (; n > 0; n--) {
        EACH(STEP)
    }
    __m256i all = _mm256_setzero_si256();
    EACH(END)
    return _mm256_extract_epi32(all, 0);
}

#else

int32_t cmp_probe_int8_avx2(uint64_t n) {
    return (int32_t)n;
}

#endif
