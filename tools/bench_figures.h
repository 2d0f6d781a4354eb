/* SPDX-License-Identifier: MIT
 * bench_figures.h: the rows of `kvcompare bench` and the arithmetic behind their figures: spread,
 * share of the machine's limit, time per token, slope. It runs nothing. */
#ifndef KVC_BENCH_FIGURES_H
#define KVC_BENCH_FIGURES_H

#include "probe.h"

#include "kvc/kvc.h"

#include <stdint.h>

/** What a row times. */
enum {
    CMP_BENCH_PP = 0, /**< a prompt, computed in one call behind `depth` tokens */
    CMP_BENCH_TG = 1  /**< tokens one by one, behind `depth` tokens */
};

/** Why a row has no figures, or fewer. */
enum {
    CMP_BENCH_TRANSIENT = 1u << 0, /**< the policy computes all tokens at each step */
    CMP_BENCH_CHUNKED = 1u << 1,   /**< its result depends on how a prompt is cut */
    CMP_BENCH_NO_ROOM = 1u << 2    /**< the sessions don't fit into memory */
};

/** One measured thing. */
typedef struct cmp_bench_row {
    const char *spec;
    uint32_t test;           /* CMP_BENCH_PP or _TG */
    uint32_t depth;          /* tokens held before */
    uint32_t n;              /* tokens that are timed, per session */
    uint32_t sessions;       /* that decode together */
    uint32_t notes;          /* CMP_BENCH_… bits */
    uint32_t n_rate;         /* rounds so far */
    double *rate;            /* [rounds] tokens per second, of all sessions together */
    double work;             /* per token: bytes to read (TG), multiply-adds (PP); NaN: not known */
    double wait;             /* share of the threads' time spent waiting for pages; NaN: no tier */
    double median, min, max; /* of rate; NaN: not measured */
    double share;            /* of the machine's limit, 1 is all of it */
    double ms;               /* per token: 1000 / median */
    double slope;            /* ms per token that 1,000 tokens of depth add, from the shallowest */
} cmp_bench_row;

/** Bytes that a step of `sessions` sessions must read, per token: the weights once for all of them,
 * and each session's pages; payload is that of all sessions together. */
double cmp_bench_read(double weights, double payload, uint32_t sessions);
/** Payload that attention reads at one step: sealed pages, in memory or in a tier, times kept (what
 * select() left of them, 1 if nobody selects), and the rows in use of the open pages. */
double cmp_bench_payload(const kvc_session_stats *stats, double kept);
/** The part of the pages that select() left to be read; 1 when nobody did. */
double cmp_bench_kept(uint64_t selected, uint64_t skipped);
/** What is done in a second as a part of limit_g × 1e9; NaN when one isn't known. */
double cmp_bench_share(double work, double rate, double limit_g);
/** Milliseconds per 1,000 tokens of depth between two rows; NaN for one depth. */
double cmp_bench_slope(double ms, uint32_t depth, double ms0, uint32_t depth0);
/** Fills the figures of rows[n] from their rates, which are sorted on the way. A slope is taken
 * from the first measured row of the same spec, test and sessions; rows of one come by depth. */
void cmp_bench_finish(cmp_bench_row *row, uint32_t n, const cmp_limits *limits);

#endif
