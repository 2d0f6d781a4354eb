/* SPDX-License-Identifier: MIT
 * half.h: binary16 and bfloat16 in plain integer arithmetic: round to nearest even, subnormals,
 * infinities, NaN kept quiet with the upper bits of its payload, as the conversion instructions do.
 * It sits under the kernels and knows nothing of vectors. */
#ifndef KVC_HALF_H
#define KVC_HALF_H

#include <stdint.h>
#include <string.h>

static inline uint32_t half_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static inline float half_float(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static inline uint16_t half_f16(float x) {
    uint32_t u = half_bits(x);
    uint32_t sign = u >> 16 & 0x8000u;
    uint32_t a = u & 0x7fffffffu;
    if (a > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00u | (a >> 13 & 0x3ffu));
    }
    if (a >= 0x47800000u) { /* 65536 and above */
        return (uint16_t)(sign | 0x7c00u);
    }
    if (a < 0x38800000u) {
        /* Subnormal: adding 0.5 puts the unit 2^-24 into the last place, so the sum rounds it. */
        uint32_t r = half_bits(half_float(a) + 0.5f) - 0x3f000000u;
        return (uint16_t)(sign | r);
    }
    uint32_t odd = a >> 13 & 1u;
    return (uint16_t)(sign | ((a - 0x38000000u + 0xfffu + odd) >> 13));
}

static inline float half_of_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t e = h >> 10 & 0x1fu;
    uint32_t m = h & 0x3ffu;
    if (e == 0) {
        /* 2^-24 times the mantissa, exact. */
        return half_float(sign | half_bits((float)m * 5.9604644775390625e-8f));
    }
    if (e == 31) {
        uint32_t quiet = m != 0 ? 0x400000u : 0u;
        return half_float(sign | 0x7f800000u | quiet | m << 13);
    }
    return half_float(sign | (e + 112u) << 23 | m << 13);
}

static inline uint16_t half_bf16(float x) {
    uint32_t u = half_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)(u >> 16 | 0x40u);
    }
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

static inline float half_of_bf16(uint16_t h) {
    return half_float((uint32_t)h << 16);
}

#endif
