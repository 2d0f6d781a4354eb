/* SPDX-License-Identifier: MIT
 * run_figures.h: what kvrun says beside the answers: notes, the last line, JSON. */
#ifndef KVC_RUN_FIGURES_H
#define KVC_RUN_FIGURES_H

#include "run_generate.h"

/** A line on stderr, dim in a terminal. */
void run_note(const char *format, ...) __attribute__((format(printf, 1, 2)));
/** The line behind an answer: tokens of prompt and answer, time, speed, bytes of the cache. */
void run_figures_line(const run_job *job, const run_answer *answer);
/** What the session holds, in a few lines. */
void run_figures_stats(const run_job *job);
/** Writes an answer as JSON, schema kvrun/1. Returns 0, or -1 without memory. */
int run_figures_json(FILE *out, const run_job *job, const run_answer *answer, const char *text,
                     size_t n);

#endif
