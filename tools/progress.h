/* SPDX-License-Identifier: MIT
 * progress.h: one line on stderr that says what is being done, only when stderr is a terminal. */
#ifndef KVC_PROGRESS_H
#define KVC_PROGRESS_H

#include <stdint.h>

/** Nanoseconds of a clock that only goes forward. */
uint64_t cmp_clock_ns(void);
/** Redraws the line, at most ten times a second: "what: done of total". */
void cmp_progress(const char *what, uint32_t done, uint32_t total);
/** Erases the line. */
void cmp_progress_end(void);

#endif
