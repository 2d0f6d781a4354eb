/* SPDX-License-Identifier: MIT
 * speed.c: times each policy alone, in int8, in rounds that go from policy to policy so that a
 * machine that warms up or is disturbed does so for all. A fresh session each time; what is timed
 * is the call alone, without picking a token. */
#include "measure.h"

#include "interrupt.h"
#include "progress.h"

#include <math.h>
#include <stdlib.h>

/* One policy's times. */
typedef struct times {
    double *prefill;   /* [n_round] seconds */
    double *decode;    /* [n_round] seconds of all steps */
    double *step;      /* [n_round × n_step] milliseconds */
    uint32_t n_prompt; /* 0 until its first session is open */
    uint32_t n_step;
} times;

static uint32_t min_u32(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

/* Which positions are timed: after the prompt of the divergence pass, or earlier when the text has
 * no room for the steps behind it. A policy that computes all at each step is cut to what a person
 * would wait for. */
static void plan_positions(const cmp_job *job, int transient, times *t) {
    uint32_t ctx = transient ? min_u32(job->ctx, CMP_TRANSIENT_CTX) : job->ctx;
    uint32_t n_step = min_u32(job->n_step, ctx - 1);
    t->n_prompt = min_u32(job->ctx - job->n_score, ctx - n_step);
    t->n_step = transient ? min_u32(n_step, CMP_TRANSIENT_STEPS) : n_step;
}

static double seconds_since(uint64_t start) {
    return (double)(cmp_clock_ns() - start) * 1e-9;
}

/* One session from its first token to its last. */
static int32_t time_once(cmp_job *job, const cmp_row *row, uint32_t round, times *t) {
    kvc_session *s = NULL;
    int32_t rc = cmp_session_open(job, row->spec, "int8", &s);
    if (rc < 0) {
        return rc;
    }
    if (t->n_prompt == 0) {
        plan_positions(job, cmp_session_transient(s), t);
    }
    uint64_t start = cmp_clock_ns();
    rc = kvc_session_decode(s, job->token, t->n_prompt);
    t->prefill[round] = seconds_since(start);
    t->decode[round] = 0;
    for (uint32_t i = 0; rc >= 0 && i < t->n_step; i++) {
        start = cmp_clock_ns();
        rc = kvc_session_decode(s, job->token + t->n_prompt + i, 1);
        double sec = seconds_since(start);
        t->decode[round] += sec;
        t->step[(size_t)round * t->n_step + i] = sec * 1e3;
    }
    if (rc < 0) {
        cmp_session_fail(job, row->spec, s, rc);
    }
    cmp_session_close(s);
    return rc;
}

static void fill_row(cmp_row *row, times *t, uint32_t n_round) {
    size_t n = (size_t)n_round * t->n_step;
    cmp_sort(t->prefill, n_round);
    cmp_sort(t->decode, n_round);
    cmp_sort(t->step, n);
    double prefill = cmp_median(t->prefill, n_round);
    row->v[CMP_TTFT_MS] = prefill * 1e3;
    row->v[CMP_PREFILL_TOK_S] = t->n_prompt / prefill;
    row->v[CMP_DECODE_TOK_S] = t->n_step / cmp_median(t->decode, n_round);
    row->v[CMP_DECODE_P50] = cmp_percentile(t->step, n, 50);
    row->v[CMP_DECODE_P95] = cmp_percentile(t->step, n, 95);
    row->v[CMP_DECODE_P99] = cmp_percentile(t->step, n, 99);
    row->v[CMP_TIMED_CTX] = t->n_prompt + t->n_step;
    row->v[CMP_TIMED_STEPS] = t->n_step;
}

static int32_t run_rounds(cmp_job *job, times *t) {
    for (uint32_t round = 0; round < job->n_round; round++) {
        for (uint32_t i = 0; i < job->n_row; i++) {
            cmp_progress("speed, run", round * job->n_row + i + 1, job->n_round * job->n_row);
            int32_t rc = time_once(job, &job->row[i], round, &t[i]);
            if (rc < 0) {
                return rc;
            }
        }
    }
    for (uint32_t i = 0; i < job->n_row; i++) {
        fill_row(&job->row[i], &t[i], job->n_round);
    }
    return KVC_OK;
}

int32_t cmp_measure_speed(cmp_job *job) {
    if (job->n_round == 0 || job->n_step == 0) {
        return KVC_OK;
    }
    size_t per_row = (size_t)job->n_round * (2 + (size_t)job->n_step);
    times t[CMP_MAX_POLICY] = {{NULL, NULL, NULL, 0, 0}};
    double *all = calloc((size_t)job->n_row * per_row, sizeof *all);
    if (all == NULL) {
        return cmp_session_fail(job, "speed", NULL, KVC_E_NOMEM);
    }
    for (uint32_t i = 0; i < job->n_row; i++) {
        t[i].prefill = all + i * per_row;
        t[i].decode = t[i].prefill + job->n_round;
        t[i].step = t[i].decode + job->n_round;
    }
    int32_t rc = run_rounds(job, t);
    free(all);
    return rc;
}
