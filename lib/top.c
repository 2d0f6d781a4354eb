/* SPDX-License-Identifier: MIT
 * top.c: the largest of some scores. Numbers are put in an order of integers, so the least of those
 * that are taken is found bit by bit: at most 32 times the scores are counted that reach a bound.
 * Counting is a loop without branches that compilers turn into vector code; a selection that moves
 * numbers about needs a copy of them and took twice as long (8192 scores). */
#include "top.h"

#include <string.h>

#define ZERO UINT32_C(0x80000000) /* the key of 0, and the bit of the sign */
#define INF  UINT32_C(0x7f800000) /* the bits of infinity */

/* A number's bits in an order of integers: sign and magnitude to an offset. */
static uint32_t key_of(const float *x) {
    uint32_t bits;
    memcpy(&bits, x, sizeof bits);
    const uint32_t magnitude = bits & ~ZERO;
    if (magnitude > INF) {
        return 0; /* not a number */
    }
    return bits == magnitude ? ZERO + magnitude : ZERO - magnitude;
}

/* The number of a key. Keys beyond those of the infinities give NaN, which no score reaches. */
static float of_key(uint32_t key) {
    const uint32_t bits = key >= ZERO ? key - ZERO : ZERO + (ZERO - key);
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static uint32_t count_from(const float *score, uint32_t n, float least) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < n; i++) {
        count += score[i] >= least;
    }
    return count;
}

/* A key that n_top scores or more reach, and if more, then because scores equal it; *n_from says
 * how many. The bits are tried from the highest down. */
static uint32_t threshold(const float *score, uint32_t n, uint32_t n_top, uint32_t *n_from) {
    uint32_t key = 0;
    *n_from = n;
    for (uint32_t bit = ZERO; bit != 0 && *n_from != n_top; bit >>= 1) {
        const uint32_t count = count_from(score, n, of_key(key | bit));
        if (count >= n_top) {
            key |= bit;
            *n_from = count;
        }
    }
    return key;
}

/* Scores are read as their bits and each before its place is written, so index may be score. */
uint32_t kvc__top(const float *score, uint32_t n, uint32_t n_top, uint32_t *index) {
    uint32_t n_from, m = 0;
    n_top = n_top < n ? n_top : n;
    const uint32_t least = threshold(score, n, n_top, &n_from);
    uint32_t skip = n_from - n_top; /* of those equal to the least the first are too many */
    for (uint32_t i = 0; m < n_top; i++) {
        const uint32_t key = key_of(score + i);
        const uint32_t equal = key == least, taken = (key > least) | (equal & (skip == 0));
        index[m] = i;
        m += taken;
        skip -= equal & ~taken;
    }
    return m;
}
