/* SPDX-License-Identifier: MIT
 * check_meaning.c: the group "meaning": a policy computes the same whatever the chunks, threads and
 * company, goes back where it is told to, and what it claims of itself is true. */
#include "check_kit.h"
#include "check_stages.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_CTX 384u

static const char *const computes[] = {"f32", "int8"};

/* Whether a result may depend on how it was computed; said once where it may and does. */
static void judge(chk *c, bool claimed, const char *stack, const char *what, const char *why) {
    if (claimed) {
        chk_fail(c, "%s: %s: %s", stack, what, why);
    } else {
        chk_info(c, "%s: %s: %s; it doesn't claim otherwise", stack, what, why);
    }
}

/* ---------------------------------------------------------------- it runs, and repeats */

static void runs(chk *c, kvc_model *model, const char *stack, const char *compute) {
    const chk_way way = {.n_prompt = 150, .n_step = 80};
    const int32_t *text = chk_text(c, 0);
    float *a = chk_rows(CHK_ROWS(way)), *b = chk_rows(CHK_ROWS(way));
    char why[128];
    if (chk_alone(c, model, stack, compute, N_CTX, text, way, a) &&
        chk_alone(c, model, stack, compute, N_CTX, text, way, b) &&
        !chk_equal(a, b, CHK_ROWS(way), why, sizeof why)) {
        chk_fail(c, "%s: the same text again gives another result: %s", stack, why);
    }
    free(a);
    free(b);
}

void chk_meaning_runs(chk *c) {
    if (!chk_prepare(c)) {
        return;
    }
    kvc_model *model = chk_open_model(c, &chk_base, 1);
    for (uint32_t i = 0; model != NULL && !c->failed && i < c->n_stack; i++) {
        for (uint32_t k = 0; !c->failed && k < 2; k++) {
            runs(c, model, c->stack[i], computes[k]);
        }
    }
    kvc_model_close(model);
}

/* ---------------------------------------------------------------- shapes */

/* One shape: opens, or is refused properly; the prompt at once equals the prompt in pieces. Returns
 * whether it opened. */
static bool try_shape(chk *c, const chk_shape *shape, const char *compute) {
    const chk_way whole = {.n_prompt = 200, .n_step = 3};
    const chk_way pieces = {.n_prompt = 200, .chunk = 37, .n_step = 3};
    kvc_model *model = chk_open_model(c, shape, 1);
    kvc_params *p = chk_params(c, compute, N_CTX, false);
    kvc_session *s = NULL;
    char why[128], what[96];
    snprintf(what, sizeof what, "heads of %u and %u, %u to a KV head", shape->dim_k, shape->dim_v,
             shape->group);
    const int32_t rc = model != NULL ? kvc_session_open(model, c->spec, p, &s) : KVC_E_ARG;
    kvc_session_close(s);
    if (rc == KVC_E_UNSUPPORTED && kvc_params_error(p)[0] != '\0') {
        chk_info(c, "%s: refused: %s", what, kvc_params_error(p));
    } else if (rc < 0) {
        chk_fail(c, "%s: %s (%s)", what, kvc_params_error(p), kvc_status_name(rc));
    } else {
        const int32_t *text = chk_text(c, 0);
        float *a = chk_rows(CHK_ROWS(whole)), *b = chk_rows(CHK_ROWS(pieces));
        if (chk_alone(c, model, c->spec, compute, N_CTX, text, whole, a) &&
            chk_alone(c, model, c->spec, compute, N_CTX, text, pieces, b) &&
            !chk_equal(a, b, CHK_ROWS(whole), why, sizeof why)) {
            judge(c, chk_claims(c, KVC_CAP_CHUNK_INVARIANT), what, "a prompt in pieces of 37", why);
        }
        free(a);
        free(b);
    }
    kvc_params_destroy(p);
    kvc_model_close(model);
    return rc == KVC_OK;
}

void chk_meaning_shapes(chk *c) {
    static const uint32_t dim[] = {32, 64, 96, 128, 256};
    static const uint32_t uneven[][2] = {{64, 32}, {96, 128}, {36, 20}};
    uint32_t n = 0, n_open = 0;
    if (!chk_prepare(c)) {
        return;
    }
    for (uint32_t group = 1; !c->failed && group <= 4; group++) {
        for (uint32_t i = 0; !c->failed && i < 8; i++) {
            chk_shape s = chk_base;
            s.group = group;
            s.n_layer = 1 + (i + group) % 2;
            s.n_head_kv = 1 + group % 2;
            s.dim_k = i < 5 ? dim[i] : uneven[i - 5][0];
            s.dim_v = i < 5 ? dim[i] : uneven[i - 5][1];
            n_open += try_shape(c, &s, computes[(i + group) % 2]);
            n++;
        }
    }
    if (n_open == 0) {
        chk_fail(c, "it opens with none of %u shapes", n);
    }
    chk_info(c, "opened with %u of %u shapes", n_open, n);
}

/* ---------------------------------------------------------------- chunks, threads, company */

static void chunks(chk *c, kvc_model *model, const char *stack, const char *compute) {
    static const uint32_t chunk[] = {1, 7, 64, 100};
    const int32_t *text = chk_text(c, 1);
    chk_way way = {.n_prompt = 230, .n_step = 30};
    float *want = chk_rows(CHK_ROWS(way)), *got = chk_rows(CHK_ROWS(way));
    char why[128], what[64];
    bool good = chk_alone(c, model, stack, compute, N_CTX, text, way, want);
    for (size_t i = 0; good && i < sizeof chunk / sizeof *chunk; i++) {
        way.chunk = chunk[i];
        good = chk_alone(c, model, stack, compute, N_CTX, text, way, got);
        if (good && !chk_equal(want, got, CHK_ROWS(way), why, sizeof why)) {
            snprintf(what, sizeof what, "%s, a prompt in pieces of %u", compute, chunk[i]);
            judge(c, chk_claims(c, KVC_CAP_CHUNK_INVARIANT), stack, what, why);
            good = false;
        }
    }
    free(want);
    free(got);
}

void chk_meaning_chunks(chk *c) {
    if (!chk_prepare(c)) {
        return;
    }
    kvc_model *model = chk_open_model(c, &chk_base, 1);
    for (uint32_t i = 0; model != NULL && i < c->n_stack; i++) {
        for (uint32_t k = 0; k < 2; k++) {
            chunks(c, model, c->stack[i], computes[k]);
        }
    }
    kvc_model_close(model);
}

void chk_meaning_threads(chk *c) {
    const chk_way way = {.n_prompt = 200, .n_step = 20};
    float *want = chk_rows(CHK_ROWS(way)), *got = chk_rows(CHK_ROWS(way));
    const int32_t *text = chk_text(c, 0);
    bool good = chk_prepare(c);
    for (uint32_t i = 0; good && i < c->n_stack; i++) {
        for (uint32_t n = 1; good && n <= 3; n++) {
            char why[128];
            kvc_model *model = chk_open_model(c, &chk_base, n);
            good = model != NULL &&
                   chk_alone(c, model, c->stack[i], "int8", N_CTX, text, way, n == 1 ? want : got);
            if (good && n > 1 && !chk_equal(want, got, CHK_ROWS(way), why, sizeof why)) {
                chk_fail(c, "%s: with %u threads instead of 1: %s", c->stack[i], n, why);
            }
            kvc_model_close(model);
        }
    }
    free(want);
    free(got);
}

/* Two sessions of the policy and one without any, of other texts, in every call. */
static void company(chk *c, kvc_model *model, const char *stack) {
    const chk_way way = {.n_prompt = 100, .n_step = 40};
    const char *spec[3] = {stack, stack, ""};
    const uint32_t n_prompt[3] = {100, 77, 130};
    kvc_session *s[3] = {NULL};
    const int32_t *text[3] = {chk_text(c, 0), chk_text(c, 1), chk_text(c, 2)};
    float *want = chk_rows(CHK_ROWS(way)), *got = chk_rows(CHK_ROWS(way));
    char why[128];
    bool good = chk_alone(c, model, stack, "int8", N_CTX, text[0], way, want);
    for (uint32_t i = 0; good && i < 3; i++) {
        s[i] = chk_open(c, model, spec[i], "int8", N_CTX);
        good = s[i] != NULL;
    }
    for (uint32_t step = 0; good && step <= way.n_step; step++) {
        kvc_run run[3];
        for (uint32_t i = 0; i < 3; i++) {
            const uint32_t at = step > 0 ? n_prompt[i] + step - 1 : 0;
            run[i] = (kvc_run){.struct_size = sizeof run[i],
                               .session = s[i],
                               .token = text[i] + at,
                               .n_token = step > 0 ? 1 : n_prompt[i]};
        }
        if (kvc_decode(run, 3, sizeof run[0]) < 0) {
            const uint32_t i = run[0].status < 0 ? 0 : run[1].status < 0 ? 1 : 2;
            chk_fail(c, "%s in company: %s", stack, kvc_session_error(s[i]));
            good = false;
        } else {
            memcpy(got + (size_t)step * CHK_N_VOCAB, kvc_session_logits(s[0], 0),
                   CHK_N_VOCAB * sizeof *got);
        }
    }
    if (good && !chk_equal(want, got, CHK_ROWS(way), why, sizeof why)) {
        chk_fail(c, "%s: with other sessions in the same calls: %s", stack, why);
    }
    for (uint32_t i = 0; i < 3; i++) {
        kvc_session_close(s[i]);
    }
    free(want);
    free(got);
}

void chk_meaning_company(chk *c) {
    if (!chk_prepare(c)) {
        return;
    }
    kvc_model *model = chk_open_model(c, &chk_base, 2);
    for (uint32_t i = 0; model != NULL && i < c->n_stack; i++) {
        company(c, model, c->stack[i]);
    }
    kvc_model_close(model);
}

/* ---------------------------------------------------------------- lossless */

void chk_meaning_lossless(chk *c) {
    const chk_way way = {.n_prompt = 230, .chunk = 50, .n_step = 30};
    const int32_t *text = chk_text(c, 1);
    if (!chk_prepare(c)) {
        return;
    }
    if (!chk_claims(c, KVC_CAP_LOSSLESS)) {
        chk_skip(c, "it doesn't claim to be lossless");
        return;
    }
    kvc_model *model = chk_open_model(c, &chk_base, 1);
    float *want = chk_rows(CHK_ROWS(way)), *got = chk_rows(CHK_ROWS(way));
    for (uint32_t i = 0; model != NULL && i < 2 * c->n_stack; i++) {
        const char *stack = c->stack[i / 2], *base = c->base[i / 2], *compute = computes[i % 2];
        char why[128];
        if (chk_alone(c, model, base, compute, N_CTX, text, way, want) &&
            chk_alone(c, model, stack, compute, N_CTX, text, way, got) &&
            !chk_equal(want, got, CHK_ROWS(way), why, sizeof why)) {
            chk_fail(c, "%s claims to be lossless, but isn't %s (%s): %s", stack,
                     base[0] != '\0' ? base : "plain f16", compute, why);
        }
    }
    free(want);
    free(got);
    kvc_model_close(model);
}

/* ---------------------------------------------------------------- divergence */

void chk_meaning_divergence(chk *c) {
    const chk_way way = {.n_prompt = 256, .n_step = 64};
    const int32_t *text = chk_text(c, 3);
    float *want = chk_rows(CHK_ROWS(way)), *got = chk_rows(CHK_ROWS(way));
    kvc_model *model = chk_prepare(c) ? chk_open_model(c, &chk_base, 1) : NULL;
    if (model != NULL && chk_alone(c, model, CHK_F32, "f32", N_CTX, text, way, want) &&
        chk_alone(c, model, c->spec, "f32", N_CTX, text, way, got)) {
        double sum = 0, most = 0;
        uint32_t agree = 0;
        for (uint32_t i = 1; i < CHK_ROWS(way); i++) {
            bool top;
            const double kld =
                chk_kld(want + (size_t)i * CHK_N_VOCAB, got + (size_t)i * CHK_N_VOCAB, &top);
            sum += kld;
            most = kld > most ? kld : most;
            agree += top;
        }
        const double mean = sum / way.n_step;
        chk_info(c, "KLD from plain f32 on a random model: mean %.1e, max %.1e; top-1 %.0f%%", mean,
                 most, 100.0 * agree / way.n_step);
    }
    kvc_model_close(model);
    free(want);
    free(got);
}
