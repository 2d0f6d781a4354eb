/* SPDX-License-Identifier: MIT
 * top.h: the largest of some scores. What host_math.c lends to policies that keep or read what
 * scores most. It knows numbers, not entries or pages. */
#ifndef KVC_TOP_H
#define KVC_TOP_H

#include <stdint.h>

/** Writes the numbers of the n_top largest of score[n] to index, ascending, and returns how many
 * they are: n_top, or n if that is less. Of equal ones the later are taken; -0 equals 0; NaN counts
 * as less than everything, and as equal to NaN. index may be score itself. */
uint32_t kvc__top(const float *score, uint32_t n, uint32_t n_top, uint32_t *index);

#endif
