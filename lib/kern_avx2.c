/* SPDX-License-Identifier: MIT
 * kern_avx2.c: the kernels in AVX2 with FMA and F16C. Compiled with the flags of that level, so
 * nothing in it may run before kern.c has asked the processor. Empty where the compiler lacks the
 * flags. */
#include "kern_level.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "vec_avx2.h"
#include "kern_impl.h"

static const kvc__kern table = KERN_TABLE("avx2");

const kvc__kern *kvc__kern_avx2(void) {
    return &table;
}

#else

const kvc__kern *kvc__kern_avx2(void) {
    return NULL;
}

#endif
