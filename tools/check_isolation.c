/* SPDX-License-Identifier: MIT
 * check_isolation.c: the group "isolation": instances of a policy share nothing. Two in one program
 * compute what each computes alone. */
#include "check_kit.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_CTX = 320 };

static const chk_way way = {.n_prompt = 130, .n_step = 60};

static chk_shape other_shape(void) {
    chk_shape shape = chk_base;
    shape.seed = 2;
    shape.dim_k = shape.dim_v = 32;
    shape.n_layer = 2;
    return shape;
}

static void judge(chk *c, const char *stack, const char *how, float *const want[2],
                  float *const got[2]) {
    for (int i = 0; i < 2; i++) {
        char why[128];
        if (!chk_equal(want[i], got[i], CHK_ROWS(way), why, sizeof why)) {
            chk_fail(c, "%s: %s, not as each alone: %s", stack, how, why);
            return;
        }
    }
}

/* ---------------------------------------------------------------- one thread, turn by turn */

static void turns(chk *c, kvc_model *const model[2], const char *stack) {
    float *want[2], *got[2];
    kvc_session *s[2] = {NULL, NULL};
    bool good = true;
    for (uint32_t i = 0; i < 2; i++) {
        want[i] = chk_rows(CHK_ROWS(way));
        got[i] = chk_rows(CHK_ROWS(way));
        good = good && chk_alone(c, model[i], stack, "int8", N_CTX, chk_text(c, i), way, want[i]);
    }
    for (uint32_t i = 0; good && i < 2; i++) {
        s[i] = chk_open(c, model[i], stack, "int8", N_CTX);
        good = s[i] != NULL;
    }
    for (uint32_t step = 0; good && step < CHK_ROWS(way); step++) {
        for (uint32_t i = 0; good && i < 2; i++) {
            const chk_way one = {.n_prompt = step == 0 ? way.n_prompt : 1};
            const uint32_t at = step == 0 ? 0 : way.n_prompt + step - 1;
            good = chk_go(c, s[i], chk_text(c, i) + at, one, got[i] + (size_t)step * CHK_N_VOCAB);
        }
    }
    if (good) {
        judge(c, stack, "two sessions, turn by turn", want, got);
    }
    for (uint32_t i = 0; i < 2; i++) {
        kvc_session_close(s[i]);
        free(want[i]);
        free(got[i]);
    }
}

void chk_isolation_interleaved(chk *c) {
    const chk_shape shape = other_shape();
    if (!chk_prepare(c)) {
        return;
    }
    kvc_model *same = chk_open_model(c, &chk_base, 1), *other = chk_open_model(c, &shape, 1);
    for (uint32_t i = 0; same != NULL && other != NULL && i < c->n_stack; i++) {
        turns(c, (kvc_model *[2]){same, same}, c->stack[i]);
        turns(c, (kvc_model *[2]){same, other}, c->stack[i]);
    }
    kvc_model_close(same);
    kvc_model_close(other);
}

/* ---------------------------------------------------------------- two threads */

typedef struct worker {
    kvc_session *s;
    const int32_t *text;
    float *out;
    int32_t status;
} worker;

/* As chk_go(), but nothing is said from a thread. */
static void *work(void *arg) {
    worker *w = arg;
    w->status = KVC_OK;
    for (uint32_t i = 0; i < CHK_ROWS(way) && w->status == KVC_OK; i++) {
        const uint32_t at = i == 0 ? 0 : way.n_prompt + i - 1;
        w->status = kvc_session_decode(w->s, w->text + at, i == 0 ? way.n_prompt : 1);
        if (w->status == KVC_OK) {
            memcpy(w->out + (size_t)i * CHK_N_VOCAB, kvc_session_logits(w->s, 0),
                   CHK_N_VOCAB * sizeof *w->out);
        }
    }
    return NULL;
}

static bool run_both(chk *c, worker w[2]) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, work, &w[1]) != 0) {
        chk_fail(c, "no thread can be started");
        return false;
    }
    work(&w[0]);
    pthread_join(thread, NULL);
    for (int i = 0; i < 2; i++) {
        if (w[i].status < 0) {
            chk_fail(c, "two threads at once: %s", kvc_session_error(w[i].s));
            return false;
        }
    }
    return true;
}

static void threads(chk *c, kvc_model *const model[2], const char *stack) {
    float *want[2], *got[2];
    worker w[2] = {{.s = NULL}, {.s = NULL}};
    bool good = true;
    for (uint32_t i = 0; i < 2; i++) {
        want[i] = chk_rows(CHK_ROWS(way));
        got[i] = chk_rows(CHK_ROWS(way));
        good = good && chk_alone(c, model[i], stack, "int8", N_CTX, chk_text(c, i), way, want[i]);
        w[i] = (worker){.text = chk_text(c, i), .out = got[i]};
    }
    for (uint32_t round = 0; good && round < 3; round++) {
        for (uint32_t i = 0; good && i < 2; i++) {
            w[i].s = chk_open(c, model[i], stack, "int8", N_CTX);
            good = w[i].s != NULL;
        }
        good = good && run_both(c, w);
        if (good) {
            judge(c, stack, "two threads at once", want, got);
            good = !c->failed;
        }
        for (uint32_t i = 0; i < 2; i++) {
            kvc_session_close(w[i].s);
            w[i].s = NULL;
        }
    }
    for (uint32_t i = 0; i < 2; i++) {
        free(want[i]);
        free(got[i]);
    }
}

void chk_isolation_threads(chk *c) {
    const chk_shape shape = other_shape();
    if (!chk_prepare(c)) {
        return;
    }
    kvc_model *model[2] = {chk_open_model(c, &chk_base, 1), chk_open_model(c, &shape, 1)};
    for (uint32_t i = 0; model[0] != NULL && model[1] != NULL && i < c->n_stack; i++) {
        threads(c, model, c->stack[i]);
    }
    kvc_model_close(model[0]);
    kvc_model_close(model[1]);
}
