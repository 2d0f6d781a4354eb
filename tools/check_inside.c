/* SPDX-License-Identifier: MIT
 * check_inside.c: the group "inside": what the cache holds, as a probe in the same stack sees it,
 * and whether a cache that is said to be bounded is. */
#include "check_kit.h"
#include "check_stages.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_CTX = 384 };

/* Runs the stack with the probe; chk_seen has the result. After it the last tick is the end of the
 * prompt. *out: the session's figures then. */
static bool observe(chk *c, kvc_model *model, const char *stack, kvc_session_stats *out) {
    const chk_way way = {.n_prompt = 170, .chunk = 70, .n_step = 100};
    const chk_way end = {.n_prompt = 20};
    const int32_t *text = chk_text(c, 0);
    float *row = chk_rows(CHK_ROWS(way));
    char spec[1200];
    snprintf(spec, sizeof spec, "%s+%s", stack, CHK_PROBE);
    chk_probe_reset((c->plan.answers & KVC_ANSWERS_WHICH) == 0);
    kvc_session *s = chk_open(c, model, spec, "f32", N_CTX);
    bool good = s != NULL && chk_go(c, s, text, way, row);
    /* Back and on, so that what was dropped may be appended again, and a prompt's end is last. */
    good = good && kvc_session_truncate(s, 230) == KVC_OK && chk_prefill(c, s, text + 230, 60, 0) &&
           chk_go(c, s, text + 290, end, row);
    if (good) {
        *out = chk_stats(s);
    }
    kvc_session_close(s);
    free(row);
    return good;
}

static void observe_all(chk *c,
                        void (*judge)(chk *c, const char *stack, const kvc_session_stats *st)) {
    kvc_model *model = chk_prepare(c) ? chk_open_model(c, &chk_base, 1) : NULL;
    for (uint32_t i = 0; model != NULL && i < c->n_stack; i++) {
        kvc_session_stats st;
        if (observe(c, model, c->stack[i], &st)) {
            judge(c, c->stack[i], &st);
        }
    }
    kvc_model_close(model);
}

static void judge_positions(chk *c, const char *stack, const kvc_session_stats *st) {
    const bool gives_up = (st->flags & KVC_PLAN_EVICTS) != 0 || c->api.visible != NULL;
    if (chk_seen.wrong[0] != '\0') {
        chk_fail(c, "%s: %s", stack, chk_seen.wrong);
    } else if (chk_seen.n_look == 0) {
        chk_fail(c, "%s: there was no tick at which the probe could look", stack);
    } else if (gives_up && chk_seen.n_dropped == 0) {
        chk_warn(c,
                 "%s: nothing was given up in %u tokens, so little of it was tested: give "
                 "parameters of a smaller bound, FILE.so:key=value",
                 stack, st->n_past);
    } else {
        chk_info(c, "%s: looked at %llu lanes; %llu entries were given up", stack,
                 (unsigned long long)chk_seen.n_look, (unsigned long long)chk_seen.n_dropped);
    }
}

void chk_inside_positions(chk *c) {
    observe_all(c, judge_positions);
}

/* ---------------------------------------------------------------- what entries read as */

static void judge_entries(chk *c, const char *stack, const kvc_session_stats *st) {
    const double n = chk_seen.n_read > 0 ? (double)chk_seen.n_read : 1;
    const double most = fmax(chk_seen.worst_k, chk_seen.worst_v);
    (void)st;
    chk_info(c, "%s: error of keys %.1e (most %.1e), of values %.1e (most %.1e)", stack,
             chk_seen.sum_k / n, chk_seen.worst_k, chk_seen.sum_v / n, chk_seen.worst_v);
    if (!isfinite(most)) {
        chk_fail(c, "%s: entries read as what isn't finite", stack);
    } else if (chk_claims(c, KVC_CAP_LOSSLESS) && stack == c->stack[0] && chk_seen.n_inexact > 0) {
        chk_fail(c,
                 "%s claims to be lossless, but %llu of %llu entries don't read as they were "
                 "appended",
                 stack, (unsigned long long)chk_seen.n_inexact,
                 (unsigned long long)chk_seen.n_read);
    } else if (most > 0.5) {
        chk_warn(c,
                 "%s: an entry reads as something else than was appended: its error is %.1f "
                 "times its length",
                 stack, most);
    }
}

void chk_inside_entries(chk *c) {
    observe_all(c, judge_entries);
}

/* ---------------------------------------------------------------- how many there are */

/* What visible() hides is freed after the tick, and end() evicts after it. */
static void judge_count(chk *c, const char *stack, const kvc_session_stats *st) {
    const bool later = c->api.visible != NULL || c->api.end != NULL;
    const bool transient = (st->flags & KVC_PLAN_TRANSIENT) != 0;
    if (!transient && (later ? st->n_entry > chk_seen.n_live : st->n_entry != chk_seen.n_live)) {
        chk_fail(c, "%s: the session counts %llu live entries, the store's lanes have %llu", stack,
                 (unsigned long long)st->n_entry, (unsigned long long)chk_seen.n_live);
    }
    chk_info(c, "%s: %llu live entries after %u tokens", stack, (unsigned long long)chk_seen.n_live,
             st->n_past);
}

void chk_inside_count(chk *c) {
    observe_all(c, judge_count);
}

/* ---------------------------------------------------------------- bounded */

/* A plan with KVC_PLAN_BOUNDED promises that entries stop growing: the second half of a long text
 * may not need more than the first, but for a page in each lane. */
void chk_inside_bounded(chk *c) {
    enum { N = 4096, STEP = 64 };
    chk_shape shape = chk_base;
    shape.n_layer = 1;
    shape.n_embd = shape.n_ff = shape.dim_k = shape.dim_v = 32;
    if (!chk_prepare(c)) {
        return;
    }
    if ((c->plan.flags & KVC_PLAN_BOUNDED) == 0) {
        chk_skip(c, "its plan isn't KVC_PLAN_BOUNDED");
        return;
    }
    kvc_model *model = chk_open_model(c, &shape, 2);
    kvc_session *s = model != NULL ? chk_open(c, model, c->spec, "int8", N) : NULL;
    const int32_t *text = chk_text(c, 0);
    uint64_t most[2] = {0, 0};
    bool good = s != NULL;
    for (uint32_t at = 0; good && at < N; at += STEP) {
        good = chk_prefill(c, s, text + at, STEP, 0);
        const uint64_t n = chk_stats(s).n_entry;
        most[at >= N / 2] = n > most[at >= N / 2] ? n : most[at >= N / 2];
    }
    const uint64_t all = (uint64_t)N * shape.n_head_kv;
    if (good && most[1] >= all) {
        chk_warn(c,
                 "no entry was given up in %u tokens, though its plan is KVC_PLAN_BOUNDED; "
                 "check it with parameters of a smaller bound",
                 (unsigned)N);
    } else if (good && most[1] > most[0] + (uint64_t)STEP * shape.n_head_kv) {
        chk_fail(c,
                 "its plan is KVC_PLAN_BOUNDED, but live entries grow: %llu at most in the "
                 "first %u tokens, %llu in the next",
                 (unsigned long long)most[0], (unsigned)N / 2, (unsigned long long)most[1]);
    } else if (good) {
        chk_info(c, "at most %llu of %llu entries are live", (unsigned long long)most[1],
                 (unsigned long long)all);
    }
    kvc_session_close(s);
    kvc_model_close(model);
}
