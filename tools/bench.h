/* SPDX-License-Identifier: MIT
 * bench.h: `kvcompare bench`: prefill and decode at several depths, each figure beside the limit of
 * the machine that it was measured on. bench.c puts the parts together: bench_options.c,
 * bench_run.c, bench_figures.c, bench_report.c. */
#ifndef KVC_BENCH_H
#define KVC_BENCH_H

#include "bench_figures.h"
#include "figures.h"
#include "machine.h"
#include "measure.h"
#include "probe.h"

#include <stdint.h>
#include <stdio.h>

#define CMP_BENCH_MAX_LIST     64u /* most depths, session counts, values of --hot */
#define CMP_BENCH_MAX_SESSIONS 64u /* most sessions that decode together */

/** The command line. Texts lead into argv, but for spec[]. */
typedef struct cmp_bench_options {
    const char *model;
    const char *output; /* NULL: standard output */
    int format;         /* CMP_FORMAT_… */
    int no_repack;
    int verbose;
    uint32_t n_step, n_prompt; /* timed tokens; 0: not timed */
    uint32_t rounds, threads;
    uint64_t seed;
    uint32_t n_spec, n_depth, n_count;
    char *spec[CMP_MAX_POLICY];         /* owned */
    uint32_t depth[CMP_BENCH_MAX_LIST]; /* ascending */
    uint32_t count[CMP_BENCH_MAX_LIST]; /* sessions, ascending */
    const char *hot;                    /* the list as it was given, or NULL */
} cmp_bench_options;

/** A run. */
typedef struct cmp_bench {
    const cmp_bench_options *o;
    cmp_job job; /* model, params, context and error of its sessions */
    kvc_model_info info;
    cmp_probe *probe; /* made by cmp_bench_run(), closed by its caller */
    cmp_limits limits;
    const int32_t *token; /* [ctx + CMP_BENCH_MAX_SESSIONS] */
    uint32_t n_row;
    cmp_bench_row *row; /* [n_row]: by spec; of each prefill, then decode by sessions; by depth */
} cmp_bench;

/** `kvcompare bench`; argv[0] is the subcommand. Returns the exit code. */
int cmp_bench_main(int argc, char **argv);
/** Parses the command line as cmp_options_parse() does. */
void cmp_bench_options_parse(int argc, char **argv, cmp_bench_options *out);
/** Frees what it owns. */
void cmp_bench_options_free(cmp_bench_options *o);
/** Reads "0,512,4096" into out[CMP_BENCH_MAX_LIST], ascending and each once. Returns their number,
 * 0 when the text is no list of whole numbers in [min, max]. */
uint32_t cmp_bench_parse_list(const char *text, uint32_t min, uint32_t max, uint32_t *out);
/** The spec with ":hot=value" behind its first stage that `takes` says has that parameter and whose
 * text doesn't set it; NULL when there is none. The caller frees it. */
char *cmp_bench_with_hot(const char *spec, const char *value, size_t n,
                         int (*takes)(const void *user, const char *name, size_t n),
                         const void *user);
/** Shapes the rows for options and model; rate[] leads into memory of rounds × n_row. */
void cmp_bench_rows(cmp_bench *b, double *rate);
/** Rows that cmp_bench_rows() makes. */
uint32_t cmp_bench_count_rows(const cmp_bench_options *o);
/** Fills the rates, works and waits of all rows, and the limits. Returns KVC_OK or a status with
 * job.error. */
int32_t cmp_bench_run(cmp_bench *b);

/** The report for a person, at most 80 columns. */
void cmp_bench_table(FILE *out, const cmp_bench *b, const cmp_machine *m, int width, int colour);
/** JSON, schema kvbench/1. Returns 0, or -1 without memory. */
int cmp_bench_json(FILE *out, const cmp_bench *b, const cmp_machine *m);
/** RFC 4180 CSV. */
void cmp_bench_csv(FILE *out, const cmp_bench *b);
/** A Markdown table. */
void cmp_bench_md(FILE *out, const cmp_bench *b, const cmp_machine *m);

#endif
