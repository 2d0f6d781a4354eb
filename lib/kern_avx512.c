/* SPDX-License-Identifier: MIT
 * kern_avx512.c: the kernels in AVX-512 with VNNI. Compiled with the flags of that level, so
 * nothing in it may run before kern.c has asked the processor. Empty where the compiler lacks the
 * flags. */
#include "kern_level.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) &&                      \
    defined(__AVX512VL__) && defined(__AVX512VNNI__)

#include "vec_avx512.h"
#include "kern_impl.h"

static const kvc__kern table = KERN_TABLE("avx512");

const kvc__kern *kvc__kern_avx512(void) {
    return &table;
}

#else

const kvc__kern *kvc__kern_avx512(void) {
    return NULL;
}

#endif
