/* SPDX-License-Identifier: MIT
 * check_back.c: the rest of the group "meaning": sessions that go back, begin again, or are full. A
 * session that went back must go on as one that never was further. */
#include "check_kit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_BEFORE = 200, N_STEP = 3, N_CTX = 320 };

/* ---------------------------------------------------------------- truncate */

/* Two texts with one beginning: the first `pos` tokens of one, the rest of the other. */
static void join(chk *c, uint32_t pos, int32_t *out) {
    memcpy(out, chk_text(c, 0), pos * sizeof *out);
    memcpy(out + pos, chk_text(c, 1) + pos, (N_CTX - pos) * sizeof *out);
}

/* Goes to 200 tokens of one text, back to pos, on with the other; against a session that has never
 * seen the first one's end. */
static bool back_to(chk *c, kvc_model *model, const char *stack, uint32_t pos) {
    const chk_way way = {.n_prompt = N_BEFORE + 1, .n_step = N_STEP};
    const chk_way rest = {.n_prompt = N_BEFORE + 1 - pos, .n_step = N_STEP};
    static int32_t text[N_CTX];
    float *want = chk_rows(CHK_ROWS(way)), *got = chk_rows(CHK_ROWS(way));
    char why[128];
    join(c, pos, text);
    kvc_session *s = chk_open(c, model, stack, "f32", N_CTX);
    bool good = s != NULL && chk_prefill(c, s, chk_text(c, 0), N_BEFORE, 90);
    if (good && kvc_session_truncate(s, pos) < 0) {
        chk_fail(c, "%s: truncating %u tokens to %u: %s", stack, (unsigned)N_BEFORE, pos,
                 kvc_session_error(s));
        good = false;
    }
    if (good && kvc_session_n_past(s) != pos) {
        chk_fail(c, "%s: truncated to %u, a session says it holds %u", stack, pos,
                 kvc_session_n_past(s));
    }
    good = good && chk_go(c, s, text + pos, rest, got) &&
           chk_alone(c, model, stack, "f32", N_CTX, text, way, want);
    if (good && !chk_equal(want, got, CHK_ROWS(way), why, sizeof why)) {
        if (chk_claims(c, KVC_CAP_CHUNK_INVARIANT)) {
            chk_fail(c,
                     "%s: back from %u to %u and on with another text, against a fresh session: "
                     "%s",
                     stack, (unsigned)N_BEFORE, pos, why);
            good = false;
        } else {
            chk_info(c,
                     "%s: back to %u isn't what a fresh session gives: %s; it doesn't claim "
                     "that",
                     stack, pos, why);
        }
    }
    kvc_session_close(s);
    free(want);
    free(got);
    return good;
}

void chk_meaning_truncate(chk *c) {
    static const uint32_t pos[] = {199, 193, 192, 191, 150, 129, 128, 127, 65, 64, 63, 5, 1, 0};
    kvc_model *model = chk_prepare(c) ? chk_open_model(c, &chk_base, 1) : NULL;
    for (uint32_t i = 0; model != NULL && i < c->n_stack; i++) {
        bool good = true;
        for (size_t k = 0; good && k < sizeof pos / sizeof *pos; k++) {
            good = back_to(c, model, c->stack[i], pos[k]);
        }
    }
    kvc_model_close(model);
}

/* ---------------------------------------------------------------- clear */

/* After everything is forgotten the same text gives the same again, whatever a policy claims. */
void chk_meaning_clear(chk *c) {
    const chk_way way = {.n_prompt = 150, .chunk = 64, .n_step = 20};
    float *want = chk_rows(CHK_ROWS(way)), *got = chk_rows(CHK_ROWS(way));
    const int32_t *text = chk_text(c, 0);
    kvc_model *model = chk_prepare(c) ? chk_open_model(c, &chk_base, 1) : NULL;
    for (uint32_t i = 0; model != NULL && i < c->n_stack; i++) {
        char why[128];
        kvc_session *s = chk_open(c, model, c->stack[i], "int8", N_CTX);
        bool good = s != NULL && chk_go(c, s, text, way, want);
        if (good && kvc_session_truncate(s, 0) < 0) {
            chk_fail(c, "%s: clearing: %s", c->stack[i], kvc_session_error(s));
            good = false;
        }
        if (good && chk_stats(s).n_entry != 0) {
            chk_fail(c, "%s: a session that was cleared still has %llu live entries", c->stack[i],
                     (unsigned long long)chk_stats(s).n_entry);
        }
        if (good && chk_go(c, s, text, way, got) &&
            !chk_equal(want, got, CHK_ROWS(way), why, sizeof why)) {
            chk_fail(c, "%s: the same text after clearing: %s", c->stack[i], why);
        }
        kvc_session_close(s);
    }
    kvc_model_close(model);
    free(want);
    free(got);
}

/* ---------------------------------------------------------------- full */

static void fill(chk *c, kvc_model *model, const char *stack) {
    enum { FULL = CHK_CTX + 2, BACK = 290 };
    const chk_way way = {.n_prompt = FULL - 2, .n_step = 2};
    const chk_way again = {.n_prompt = FULL - BACK - 2, .n_step = 2};
    const int32_t *text = chk_text(c, 0);
    float *a = chk_rows(CHK_ROWS(way)), *b = chk_rows(CHK_ROWS(way));
    char why[128];
    kvc_session *s = chk_open(c, model, stack, "f32", FULL);
    if (s != NULL && chk_go(c, s, text, way, a)) {
        const int32_t rc = kvc_session_decode(s, text + FULL, 1);
        const uint32_t n = kvc_session_n_past(s);
        if (rc == KVC_OK) {
            chk_info(c, "%s: goes on past n_ctx", stack);
        } else if (rc != KVC_E_FULL || n != FULL) {
            chk_fail(c, "%s: one token more than n_ctx answers %s and leaves %u of %u tokens: %s",
                     stack, kvc_status_name(rc), n, (unsigned)FULL, kvc_session_error(s));
        }
        if (rc == KVC_E_FULL && kvc_session_truncate(s, BACK) < 0) {
            chk_fail(c, "%s: truncating a full session: %s", stack, kvc_session_error(s));
        } else if (rc == KVC_E_FULL && chk_go(c, s, text + BACK, again, b) &&
                   chk_claims(c, KVC_CAP_CHUNK_INVARIANT) && !chk_equal(a, b, 3, why, sizeof why)) {
            chk_fail(c, "%s: filled again after going back: %s", stack, why);
        }
    }
    kvc_session_close(s);
    free(a);
    free(b);
}

void chk_meaning_full(chk *c) {
    kvc_model *model = chk_prepare(c) ? chk_open_model(c, &chk_base, 1) : NULL;
    for (uint32_t i = 0; model != NULL && i < c->n_stack; i++) {
        fill(c, model, c->stack[i]);
    }
    kvc_model_close(model);
}
