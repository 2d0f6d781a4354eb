/* SPDX-License-Identifier: MIT
 * cpu.h: which kernel level this machine runs, and the floating-point environment every computation
 * runs in. */
#ifndef KVC_CPU_H
#define KVC_CPU_H

#include <stdint.h>

/** Kernel levels, least first. */
enum {
    KVC__LEVEL_SCALAR = 0,
    KVC__LEVEL_AVX2 = 1,  /* AVX2, FMA, F16C */
    KVC__LEVEL_AVX512 = 2 /* F, BW, DQ, VL, VNNI */
};

/** The machine's best level. */
int kvc__cpu_best(void);
/** The level to use: the machine's best, or the lower one that KVC_CPU names. */
int kvc__cpu_level(void);

/** Sets round to nearest, denormals kept, exceptions masked for the calling thread; returns what to
 * restore. */
uint32_t kvc__fp_enter(void);
/** Restores what kvc__fp_enter() returned. */
void kvc__fp_leave(uint32_t saved);

#endif
