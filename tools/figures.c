/* SPDX-License-Identifier: MIT
 * figures.c: the table of figures, and the sums behind them. All sums are taken in double in
 * ascending order, so that equal logits give equal figures. It knows nothing of sessions. */
#include "figures.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const cmp_figure cmp_figure_table[CMP_N_FIGURE] = {
    [CMP_PREFILL_TOK_S] = {"speed", "prefill_tok_s", 0},
    [CMP_TTFT_MS] = {"speed", "ttft_ms", 0},
    [CMP_DECODE_TOK_S] = {"speed", "decode_tok_s", 0},
    [CMP_DECODE_P50] = {"speed", "decode_ms.p50", 0},
    [CMP_DECODE_P95] = {"speed", "decode_ms.p95", 0},
    [CMP_DECODE_P99] = {"speed", "decode_ms.p99", 0},
    [CMP_TIMED_CTX] = {"speed", "timed_ctx", 1},
    [CMP_TIMED_STEPS] = {"speed", "timed_steps", 1},
    [CMP_KV_BYTES] = {"memory", "kv_bytes", 1},
    [CMP_KV_PEAK_BYTES] = {"memory", "kv_peak_bytes", 1},
    [CMP_BYTES_PER_TOKEN] = {"memory", "bytes_per_token", 0},
    [CMP_DISK_BYTES] = {"memory", "disk_bytes", 1},
    [CMP_KLD_MEAN] = {"divergence", "kld.mean", 0},
    [CMP_KLD_P99] = {"divergence", "kld.p99", 0},
    [CMP_KLD_MAX] = {"divergence", "kld.max", 0},
    [CMP_TOP1] = {"divergence", "top1_agreement", 0},
    [CMP_PPL] = {"divergence", "ppl", 0},
    [CMP_PPL_RATIO] = {"divergence", "ppl_ratio", 0},
    [CMP_FIRST_DIVERGENCE] = {"divergence", "first_divergence", 1},
    [CMP_SCORED] = {"divergence", "scored", 1},
    [CMP_GENERATED] = {"divergence", "generated", 1},
};

void cmp_row_init(cmp_row *row, const char *spec) {
    memset(row, 0, sizeof *row);
    row->spec = spec;
    for (size_t i = 0; i < CMP_N_FIGURE; i++) {
        row->v[i] = NAN;
    }
}

/* The largest logit; NaN are passed over here and show in the sum. */
static double logit_max(const float *logits, uint32_t n) {
    double max = -INFINITY;
    for (uint32_t i = 0; i < n; i++) {
        max = logits[i] > max ? (double)logits[i] : max;
    }
    return max;
}

double cmp_log_sum_exp(const float *logits, uint32_t n) {
    double max = logit_max(logits, n);
    double sum = 0;
    for (uint32_t i = 0; i < n; i++) {
        sum += exp((double)logits[i] - max);
    }
    return max + log(sum);
}

void cmp_dist_set(cmp_dist *d, const float *logits, uint32_t n) {
    d->lse = cmp_log_sum_exp(logits, n);
    d->logit = logits;
    d->n = n;
    for (uint32_t i = 0; i < n; i++) {
        d->p[i] = exp((double)logits[i] - d->lse);
    }
}

double cmp_kld(const cmp_dist *ref, const float *logits, double lse) {
    double sum = 0;
    for (uint32_t i = 0; i < ref->n; i++) {
        /* An impossible token adds nothing, and its logarithms would be infinite. */
        if (ref->p[i] != 0) {
            sum += ref->p[i] * (((double)ref->logit[i] - ref->lse) - ((double)logits[i] - lse));
        }
    }
    /* A divergence is never negative; rounding of nearly equal logits may say so. */
    return sum < 0 ? 0 : sum;
}

int32_t cmp_argmax(const float *logits, uint32_t n) {
    int32_t best = -1;
    for (uint32_t i = 0; i < n; i++) {
        if (!isnan(logits[i]) && (best < 0 || logits[i] > logits[best])) {
            best = (int32_t)i;
        }
    }
    return best;
}

static int compare_double(const void *a, const void *b) {
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

void cmp_sort(double *x, size_t n) {
    if (n > 1) {
        qsort(x, n, sizeof *x, compare_double);
    }
}

double cmp_percentile(const double *x, size_t n, uint32_t percent) {
    if (n == 0) {
        return NAN;
    }
    size_t rank = (n * percent + 99) / 100;
    return x[rank == 0 ? 0 : rank - 1];
}

double cmp_median(const double *x, size_t n) {
    if (n == 0) {
        return NAN;
    }
    return n % 2 == 1 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

void cmp_row_set_kld(cmp_row *row, double *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        sum += x[i];
    }
    if (n == 0 || !isfinite(sum)) {
        return;
    }
    cmp_sort(x, n);
    row->v[CMP_KLD_MEAN] = sum / (double)n;
    row->v[CMP_KLD_P99] = cmp_percentile(x, n, 99);
    row->v[CMP_KLD_MAX] = x[n - 1];
}
