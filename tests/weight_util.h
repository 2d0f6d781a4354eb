/* SPDX-License-Identifier: MIT
 * weight_util.h: rows of weights as files hold them, for tests: random ones of every type, and a
 * plain reading, element by element, that owes nothing to lib/mat.c. */
#ifndef KVC_TESTS_WEIGHT_UTIL_H
#define KVC_TESTS_WEIGHT_UTIL_H

#include "gguf.h"
#include "kern_util.h"

#include <stdbool.h>

#define N_TYPE  11u
#define N_FLOAT 3u /* the first of them are floats */

static const uint32_t weight_types[N_TYPE] = {KVC__T_F32,  KVC__T_F16,  KVC__T_BF16, KVC__T_Q8_0,
                                              KVC__T_Q4_0, KVC__T_Q4_1, KVC__T_Q5_0, KVC__T_Q5_1,
                                              KVC__T_Q4_K, KVC__T_Q5_K, KVC__T_Q6_K};

/* An element: fma(scale, value, min), with scale = d * sc. */
typedef struct weight {
    float value, scale, min;
    float d;
    int32_t sc;
} weight;

static inline uint32_t weight_columns(uint32_t type) {
    uint32_t columns = 0, bytes;
    const char *name;
    return kvc__type_info(type, &columns, &bytes, &name) ? columns : 0;
}

static inline size_t weight_bytes(uint32_t type, uint64_t n) {
    uint32_t columns = 1, bytes = 0;
    const char *name;
    return kvc__type_info(type, &columns, &bytes, &name) ? (size_t)(n / columns * bytes) : 0;
}

static inline bool weight_has_min(uint32_t type) {
    return type == KVC__T_Q4_1 || type == KVC__T_Q5_1 || type == KVC__T_Q4_K || type == KVC__T_Q5_K;
}

static inline void weight_put_half(uint8_t *p, float x) {
    const uint16_t h = kvc__f16(x);
    memcpy(p, &h, sizeof h);
}

static inline float weight_half(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return kvc__f32_of_f16(h);
}

/* n weights of that type at p. Any byte is a legal value; scales are sensible numbers. */
static inline void weight_fill(uint64_t *seed, uint32_t type, uint8_t *p, uint64_t n) {
    const size_t bytes = weight_bytes(type, n), block = weight_bytes(type, weight_columns(type));
    for (size_t i = 0; i < bytes; i++) {
        p[i] = (uint8_t)util_rand(seed);
    }
    for (size_t i = 0; i < bytes; i += block) {
        const float x = util_unit(seed), min = util_unit(seed);
        const uint16_t brain = kvc__bf16(x);
        switch (type) {
        case KVC__T_F32:
            memcpy(p + i, &x, sizeof x);
            break;
        case KVC__T_BF16:
            memcpy(p + i, &brain, sizeof brain);
            break;
        case KVC__T_F16:
            weight_put_half(p + i, x);
            break;
        case KVC__T_Q4_K:
        case KVC__T_Q5_K:
            weight_put_half(p + i, 0.001f * x);
            weight_put_half(p + i + 2, 0.005f * min);
            break;
        case KVC__T_Q6_K:
            weight_put_half(p + i + 208, 0.0005f * x);
            break;
        default:
            weight_put_half(p + i, 0.02f * x);
            if (weight_has_min(type)) {
                weight_put_half(p + i + 2, 0.1f * min);
            }
            break;
        }
    }
}

/* Of a block of Q4_K or Q5_K: the scale or minimum (what 1) of group g of 8. */
static inline int32_t weight_six(const uint8_t *p, uint32_t what, uint32_t g) {
    const uint8_t *s = p + 4;
    if (g < 4) {
        return s[4 * what + g] & 63;
    }
    const int32_t low = what == 0 ? s[4 + g] & 15 : s[4 + g] >> 4;
    return low | s[4 * what + g - 4] >> 6 << 4;
}

/* Element k of 256 of a K type's block. */
static inline weight weight_of_k(uint32_t type, const uint8_t *p, uint32_t k) {
    const uint32_t g = k / 32, l = k % 32;
    weight w = {.d = weight_half(p)};
    if (type == KVC__T_Q6_K) {
        const uint32_t n = k % 128 / 32; /* 128 elements: 64 bytes of low bits, 32 of high ones */
        const uint8_t low = p[k / 128 * 64 + n % 2 * 32 + l], high = p[128 + k / 128 * 32 + l];
        w.d = weight_half(p + 208);
        w.sc = (int8_t)p[192 + k / 16];
        w.value = (float)(((n < 2 ? low & 15 : low >> 4) | (high >> 2 * n & 3) << 4) - 32);
    } else {
        const uint8_t *low = p + (type == KVC__T_Q4_K ? 16 : 48) + g / 2 * 32;
        const int32_t high = type == KVC__T_Q4_K ? 0 : p[16 + l] >> g & 1;
        w.sc = weight_six(p, 0, g);
        w.min = -(weight_half(p + 2) * (float)weight_six(p, 1, g));
        w.value = (float)((g % 2 == 0 ? low[l] & 15 : low[l] >> 4) | high << 4);
    }
    w.scale = w.d * (float)w.sc;
    return w;
}

/* Element k of 32 of another quantised type's block. */
static inline weight weight_of_block(uint32_t type, const uint8_t *p, uint32_t k) {
    const uint32_t head = weight_has_min(type) ? 4 : 2;
    const bool five = type == KVC__T_Q5_0 || type == KVC__T_Q5_1;
    weight w = {.d = weight_half(p), .scale = weight_half(p), .sc = 1};
    if (type == KVC__T_Q8_0) {
        w.value = (float)(int8_t)p[2 + k];
        return w;
    }
    const uint8_t *low = p + head + (five ? 4 : 0);
    int32_t v = k < 16 ? low[k] & 15 : low[k - 16] >> 4;
    v |= five ? (p[head + k / 8] >> k % 8 & 1) << 4 : 0;
    if (head == 4) {
        w.min = weight_half(p + 2);
    } else {
        v -= five ? 16 : 8;
    }
    w.value = (float)v;
    return w;
}

/* Element col of a row of that type. */
static inline weight weight_at(uint32_t type, const uint8_t *row, uint32_t col) {
    weight w = {.scale = 1.0f, .d = 1.0f, .sc = 1};
    const uint32_t columns = weight_columns(type);
    const uint8_t *p = row + weight_bytes(type, col - col % columns);
    uint16_t h = 0;
    if (columns > 1) {
        return columns == 32 ? weight_of_block(type, p, col % 32) : weight_of_k(type, p, col % 256);
    }
    if (type == KVC__T_F32) {
        memcpy(&w.value, p, sizeof w.value);
        return w;
    }
    memcpy(&h, p, sizeof h);
    w.value = type == KVC__T_F16 ? kvc__f32_of_f16(h) : kvc__f32_of_bf16(h);
    return w;
}

#endif
