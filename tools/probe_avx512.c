/* SPDX-License-Identifier: MIT
 * probe_avx512.c: multiply-adds by AVX-512 VNNI, as many as the processor can do. Compiled with the
 * flags of that level, so nothing in it may run before probe.c has asked the processor. */
#include "probe.h"

#if defined(__AVX512F__) && defined(__AVX512VNNI__)
#include <immintrin.h>

/* Sums that don't wait for each other: one is ready again after 4 to 5 cycles, and up to two start
 * in each. Variables and not an array: gcc keeps elements of one in memory. */
#define EACH(x) x(0) x(1) x(2) x(3) x(4) x(5) x(6) x(7) x(8) x(9) x(10) x(11)

#define BEGIN(i) __m512i sum##i = _mm512_set1_epi32(i);
#define STEP(i)  sum##i = _mm512_dpbusd_epi32(sum##i, a, b);
#define END(i)   all = _mm512_add_epi32(all, sum##i);

int32_t cmp_probe_int8_avx512(uint64_t n) {
    const __m512i a = _mm512_set1_epi8(1);
    const __m512i b = _mm512_set1_epi8(2);
    EACH(BEGIN)
    for (; n > 0; n--) {
        EACH(STEP)
    }
    __m512i all = _mm512_setzero_si512();
    EACH(END)
    return _mm_cvtsi128_si32(_mm512_castsi512_si128(all)); /* adding the lanes may overflow */
}

#else

int32_t cmp_probe_int8_avx512(uint64_t n) {
    return (int32_t)n;
}

#endif
