/* SPDX-License-Identifier: MIT
 * kern_util.h: what the kernels' tests share: random numbers, the levels of this machine, and
 * comparison bit for bit. */
#ifndef KVC_KERN_UTIL_H
#define KVC_KERN_UTIL_H

#include "cpu.h"
#include "kern.h"

#include <check.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define N_LEVEL 3u

/* Level i of the known ones, or NULL where this machine lacks it. */
static inline const kvc__kern *util_level(uint32_t i) {
    static const int level[N_LEVEL] = {KVC__LEVEL_SCALAR, KVC__LEVEL_AVX2, KVC__LEVEL_AVX512};
    return kvc__kern_level(level[i]);
}

static inline uint32_t util_rand(uint64_t *state) {
    *state += 0x9e3779b97f4a7c15u;
    uint64_t z = *state;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (uint32_t)(z >> 32);
}

/* Uniform in [-1, 1). */
static inline float util_unit(uint64_t *state) {
    return (float)((double)util_rand(state) / 2147483648.0 - 1.0);
}

static inline void util_fill(uint64_t *state, float *x, size_t n, float size) {
    for (size_t i = 0; i < n; i++) {
        x[i] = size * util_unit(state);
    }
}

/* The first place where the arrays differ in a bit (any two NaN are equal), or n. */
static inline size_t util_differ(const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (memcmp(a + i, b + i, sizeof *a) != 0 && !(isnan(a[i]) && isnan(b[i]))) {
            return i;
        }
    }
    return n;
}

/* ck_assert for the insides of loops: Check notes every assertion that holds, which takes longer
 * than what is tested here. */
#define util_check(condition)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            ck_abort_msg("%s", #condition);                                                        \
        }                                                                                          \
    } while (0)

#define util_same(a, b, n) util_check(util_differ((a), (b), (n)) == (n))

/* |got - want| within `relative` of `size`, the size of what was summed. */
#define util_near(got, want, size, relative)                                                       \
    do {                                                                                           \
        if (!(fabs((double)(got) - (want)) <= (relative) * (size) + 1e-37)) {                      \
            ck_abort_msg("got %.9g, want %.9g, size %g", (double)(got), (double)(want),            \
                         (double)(size));                                                          \
        }                                                                                          \
    } while (0)

#endif
