/* SPDX-License-Identifier: MIT
 * measure.h: one comparison: what it runs on and what it found. divergence.c steps all policies
 * over the same tokens, speed.c times each alone. Neither knows how a report looks. */
#ifndef KVC_MEASURE_H
#define KVC_MEASURE_H

#include "figures.h"

#include "kvc/kvc.h"

#include <stdint.h>

#define CMP_CHUNK 512u /* most prompt tokens of a call */
#define CMP_TRANSIENT_SCORE                                                                        \
    64u                           /* most scored tokens of a policy that computes all at each step \
                                   */
#define CMP_TRANSIENT_GREEDY 16u  /* most greedy tokens of one */
#define CMP_TRANSIENT_CTX    512u /* most positions that one is timed on */
#define CMP_TRANSIENT_STEPS  8u   /* most timed steps of one */

/** A comparison. */
typedef struct cmp_job {
    kvc_model *model;
    kvc_params *params; /* of the sessions; "compute" is set here for each pass */
    uint32_t n_vocab;
    int32_t eos, eot;     /* end of generated text, or -1 */
    const int32_t *token; /* [ctx] */
    uint32_t ctx;         /* prompt and scored tokens together */
    uint32_t n_score;     /* the last so many are scored; below ctx */
    uint32_t n_greedy;    /* greedy tokens that are compared */
    uint32_t n_step;      /* timed steps */
    uint32_t n_round;     /* rounds of the timed runs */
    const char *compute;  /* of the divergence pass: "f32" or "int8" */
    const char *baseline; /* its spec */
    uint32_t n_row;
    cmp_row *row; /* [n_row] */
    double baseline_ppl;
    cmp_row twin; /* compute=int8: the baseline in f32, held against itself in int8 */
    int has_twin;
    char error[1536]; /* what went wrong */
} cmp_job;

/** Fills memory and divergence of all rows. Needs about two probabilities tables of the vocabulary
 * and one session per policy. Returns KVC_OK or a status with job->error. */
int32_t cmp_measure_divergence(cmp_job *job);
/** Fills speed of all rows. Nothing to do when n_round or n_step is 0. */
int32_t cmp_measure_speed(cmp_job *job);

/** Opens a session of job's context that Ctrl-C cancels. */
int32_t cmp_session_open(cmp_job *job, const char *spec, const char *compute, kvc_session **out);
/** Closes it; NULL is legal. */
void cmp_session_close(kvc_session *session);
/** Keeps "SPEC: sentence" in job->error and returns status. */
int32_t cmp_session_fail(cmp_job *job, const char *spec, const kvc_session *session,
                         int32_t status);
/** 1 when the merged plan of session keeps nothing between calls. */
int cmp_session_transient(const kvc_session *session);

#endif
