/* SPDX-License-Identifier: MIT
 * kern.c: chooses the level's kernels, and what is the same at every level: sizes of scratch and
 * conversions of single halves. It knows levels, not instructions. */
#include "kern.h"

#include "cpu.h"
#include "half.h"
#include "kern_level.h"
#include "pack.h"

const kvc__kern *kvc__kern_level(int level) {
    switch (level) {
    case KVC__LEVEL_SCALAR:
        return kvc__kern_scalar();
    case KVC__LEVEL_AVX2:
        return kvc__cpu_best() >= KVC__LEVEL_AVX2 ? kvc__kern_avx2() : NULL;
    case KVC__LEVEL_AVX512:
        return kvc__cpu_best() >= KVC__LEVEL_AVX512 ? kvc__kern_avx512() : NULL;
    default:
        return NULL;
    }
}

const kvc__kern *kvc__kern_get(void) {
    const kvc__kern *k = kvc__kern_level(kvc__cpu_level());
    return k != NULL ? k : kvc__kern_scalar();
}

size_t kvc__tile_bytes(const kvc__mat *w) {
    return (size_t)w->n_col * KVC__GROUP * sizeof(float);
}

size_t kvc__pack_bytes(const kvc_packing *p) {
    const pack_layout l = pack_layout_of(p);
    return pack_bytes(&l);
}

uint16_t kvc__f16(float x) {
    return half_f16(x);
}

float kvc__f32_of_f16(uint16_t h) {
    return half_of_f16(h);
}

uint16_t kvc__bf16(float x) {
    return half_bf16(x);
}

float kvc__f32_of_bf16(uint16_t h) {
    return half_of_bf16(h);
}
