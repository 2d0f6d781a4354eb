/* SPDX-License-Identifier: MIT
 * kern_level.h: each level's table, for kern.c, which chooses among them. */
#ifndef KVC_KERN_LEVEL_H
#define KVC_KERN_LEVEL_H

#include "kern.h"

/** Plain C, on every machine. */
const kvc__kern *kvc__kern_scalar(void);
/** AVX2 with FMA and F16C; NULL in a build without it. Only for machines that have it. */
const kvc__kern *kvc__kern_avx2(void);
/** AVX-512 with VNNI; NULL in a build without it. Only for machines that have it. */
const kvc__kern *kvc__kern_avx512(void);

#endif
