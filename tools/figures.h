/* SPDX-License-Identifier: MIT
 * figures.h: what kvcompare finds out about one policy, as one table of figures that every output
 * format and every gate reads, and the statistics that make them. It knows nothing of sessions or
 * of how a figure was measured. */
#ifndef KVC_FIGURES_H
#define KVC_FIGURES_H

#include <stddef.h>
#include <stdint.h>

#define CMP_MAX_POLICY 64u /* most policies of one comparison */

/** The figures of a policy, in the order of the report. */
enum {
    CMP_PREFILL_TOK_S,
    CMP_TTFT_MS,
    CMP_DECODE_TOK_S,
    CMP_DECODE_P50,
    CMP_DECODE_P95,
    CMP_DECODE_P99,
    CMP_TIMED_CTX,
    CMP_TIMED_STEPS,
    CMP_KV_BYTES,
    CMP_KV_PEAK_BYTES,
    CMP_BYTES_PER_TOKEN,
    CMP_DISK_BYTES,
    CMP_KLD_MEAN,
    CMP_KLD_P99,
    CMP_KLD_MAX,
    CMP_TOP1,
    CMP_PPL,
    CMP_PPL_RATIO,
    CMP_FIRST_DIVERGENCE,
    CMP_SCORED,
    CMP_GENERATED,
    CMP_N_FIGURE
};

/** One figure's place in the report. */
typedef struct cmp_figure {
    const char *group; /* "speed", "memory", "divergence" */
    const char *path;  /* inside the group, '.' between levels: "kld.mean" */
    int integer;       /* 1: counted, printed without a fraction */
} cmp_figure;

/** [CMP_N_FIGURE] */
extern const cmp_figure cmp_figure_table[CMP_N_FIGURE];

#define CMP_MAX_STAGE 8u /* most stages of a policy */

/** What one stage of a policy holds and takes, in the divergence pass. */
typedef struct cmp_stage {
    char name[40];
    uint64_t memory_bytes, peak_bytes, payload_bytes, disk_bytes, stored_bytes;
    uint64_t hook_ns, worker_ns, tier_ns;
    uint64_t n_evicted, n_selected, n_skipped, n_put, n_get;
} cmp_stage;

/** One policy of the comparison. */
typedef struct cmp_row {
    const char *spec; /* as the user wrote it */
    char name[256];   /* the names of its stages, '+' between them */
    char full[1024];  /* the spec with every parameter filled in */
    int transient;    /* 1: keeps nothing between calls, so every step computes everything */
    int chunked;      /* 1: its result depends on how the prompt is cut into calls */
    uint32_t n_stage; /* 0 until it was measured */
    cmp_stage stage[CMP_MAX_STAGE];
    double v[CMP_N_FIGURE]; /* NaN: not known */
} cmp_row;

/** Empties a row: every figure is unknown. */
void cmp_row_init(cmp_row *row, const char *spec);

/** A reference distribution over the vocabulary. */
typedef struct cmp_dist {
    double *p;  /* [n] probabilities; the caller's memory */
    double lse; /* log of the sum of exp(logit) */
    const float *logit;
    uint32_t n;
} cmp_dist;

/** Takes logits[n] as the reference; d->p has room for n. logits must outlive the use of d. */
void cmp_dist_set(cmp_dist *d, const float *logits, uint32_t n);
/** log Σ exp(logits[i]). */
double cmp_log_sum_exp(const float *logits, uint32_t n);
/** KL divergence of the distribution of logits from the reference, in nats; lse is
 * cmp_log_sum_exp() of logits. Exactly 0 for identical logits. */
double cmp_kld(const cmp_dist *ref, const float *logits, double lse);
/** The lowest id among those with the largest logit; NaN is never picked; -1 when all are NaN. */
int32_t cmp_argmax(const float *logits, uint32_t n);

/** Sorts x[n] ascending. */
void cmp_sort(double *x, size_t n);
/** The percent-th percentile of sorted x[n] by nearest rank; NaN when n is 0. */
double cmp_percentile(const double *x, size_t n, uint32_t percent);
/** The middle of sorted x[n], the mean of the two middle ones when n is even; NaN when n is 0. */
double cmp_median(const double *x, size_t n);
/** Fills the three figures of a row from x[n], which is sorted on the way: mean, p99 and max. They
 * stay unknown when a value is not finite. */
void cmp_row_set_kld(cmp_row *row, double *x, size_t n);

#endif
