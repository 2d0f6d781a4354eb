/* SPDX-License-Identifier: MIT
 * bench_figures.c: from the times of a run to the figures of its rows. The formulas stand in
 * docs/measuring.md. It knows nothing of sessions but their counters. */
#include "bench_figures.h"

#include "figures.h"

#include <math.h>
#include <string.h>

double cmp_bench_read(double weights, double payload, uint32_t sessions) {
    return (weights + payload) / sessions;
}

double cmp_bench_payload(const kvc_session_stats *stats, double kept) {
    const uint32_t held = stats->n_past > 0 ? (stats->n_past - 1) % KVC_PAGE + 1 : 0;
    return (double)(stats->sealed_bytes + stats->tier_bytes) * kept +
           (double)stats->open_bytes * held / KVC_PAGE;
}

double cmp_bench_kept(uint64_t selected, uint64_t skipped) {
    const uint64_t all = selected + skipped;
    return all > 0 ? (double)selected / (double)all : 1;
}

double cmp_bench_share(double work, double rate, double limit_g) {
    return limit_g > 0 ? work * rate / (limit_g * 1e9) : NAN;
}

double cmp_bench_slope(double ms, uint32_t depth, double ms0, uint32_t depth0) {
    return depth > depth0 ? (ms - ms0) / (depth - depth0) * 1e3 : NAN;
}

/* Where the slope of row i begins. */
static const cmp_bench_row *shallowest(const cmp_bench_row *row, uint32_t i) {
    const cmp_bench_row *first = &row[i];
    for (uint32_t k = 0; k < i; k++) {
        if (row[k].test == row[i].test && row[k].sessions == row[i].sessions && row[k].n_rate > 0 &&
            strcmp(row[k].spec, row[i].spec) == 0) {
            first = &row[k];
            break;
        }
    }
    return first;
}

void cmp_bench_finish(cmp_bench_row *row, uint32_t n, const cmp_limits *limits) {
    for (uint32_t i = 0; i < n; i++) {
        cmp_bench_row *r = &row[i];
        cmp_sort(r->rate, r->n_rate);
        r->median = cmp_median(r->rate, r->n_rate);
        r->min = r->n_rate > 0 ? r->rate[0] : NAN;
        r->max = r->n_rate > 0 ? r->rate[r->n_rate - 1] : NAN;
        r->ms = 1e3 / r->median;
        r->share = cmp_bench_share(
            r->work, r->median, r->test == CMP_BENCH_PP ? limits->int8_gmac_s : limits->read_gb_s);
        const cmp_bench_row *first = shallowest(row, i);
        r->slope = cmp_bench_slope(r->ms, r->depth, first->ms, first->depth);
    }
}
