/* SPDX-License-Identifier: MIT
 * check_memory.c: the group "memory": what is taken is given back, also when there is none. One
 * life of a session is told as a list of steps; each allocation of it fails once. */
#include "check_kit.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N_CTX = CHK_CTX, N_PROMPT = 90, MAX_FAILURE = 5000 };

#define FILE_NAME "session"

/* ---------------------------------------------------------------- one life */

typedef struct life {
    chk *c;
    kvc_model *model;
    kvc_params *params;
    const char *spec;
    kvc_session *s, *other; /* the session; its fork, or the one that was loaded */
    bool quiet;             /* refusals to fork and save are no news */
    float row[CHK_N_VOCAB]; /* the logits at its end */
} life;

static int32_t step_open(life *l) {
    return kvc_session_open(l->model, l->spec, l->params, &l->s);
}

static int32_t step_prompt(life *l) {
    return kvc_session_prefill(l->s, chk_text(l->c, 0), N_PROMPT);
}

static int32_t step_decode(life *l) {
    return kvc_session_decode(l->s, chk_text(l->c, 0) + N_PROMPT, 45);
}

static int32_t step_fork(life *l) {
    return kvc_session_fork(l->s, &l->other);
}

static int32_t step_other(life *l) {
    return l->other == NULL ? KVC_OK
                            : kvc_session_decode(l->other, chk_text(l->c, 1) + N_PROMPT, 20);
}

static int32_t step_drop(life *l) {
    kvc_session_close(l->other);
    l->other = NULL;
    return KVC_OK;
}

static int32_t step_save(life *l) {
    return kvc_session_save(l->s, FILE_NAME);
}

static int32_t step_load(life *l) {
    if (access(FILE_NAME, F_OK) != 0) {
        return KVC_OK;
    }
    return kvc_session_load(l->model, FILE_NAME, l->params, &l->other);
}

static int32_t step_truncate(life *l) {
    return kvc_session_truncate(l->s, 70);
}

static int32_t step_last(life *l) {
    const int32_t rc = kvc_session_decode(l->s, chk_text(l->c, 2), 30);
    if (rc == KVC_OK) {
        memcpy(l->row, kvc_session_logits(l->s, 0), sizeof l->row);
    }
    return rc;
}

static const struct {
    const char *name;
    int32_t (*fn)(life *l);
    bool optional; /* may answer KVC_E_UNSUPPORTED */
} steps[] = {{"open", step_open, false},
             {"a prompt", step_prompt, false},
             {"decode", step_decode, false},
             {"fork", step_fork, true},
             {"decode of the fork", step_other, false},
             {"close of the fork", step_drop, false},
             {"save", step_save, true},
             {"load", step_load, false},
             {"decode of the loaded", step_other, false},
             {"close of the loaded", step_drop, false},
             {"truncate", step_truncate, false},
             {"decode", step_last, false}};

static const char *sentence(const life *l) {
    return l->s != NULL && kvc_session_error(l->s)[0] != '\0' ? kvc_session_error(l->s)
           : l->other != NULL && kvc_session_error(l->other)[0] != '\0'
               ? kvc_session_error(l->other)
               : kvc_params_error(l->params);
}

/* Without memory a call answers so and can be made again. A tier may say that it couldn't read or
 * write. */
static bool proper(const life *l, int32_t rc) {
    const bool tier = (l->c->plan.answers & KVC_ANSWERS_WHERE) != 0;
    return rc == KVC_E_NOMEM || (tier && (rc == KVC_E_IO || rc == KVC_E_LOST));
}

/* One step; when the allocation that fails is what it answers to, the same again, since the session
 * lives. A policy may do without what it doesn't get; then a refusal in a later step has nothing to
 * do with it. False: the answer was another than KVC_E_NOMEM, and that is said. */
static bool step_run(life *l, size_t i, unsigned long fail_at, int32_t *rc) {
    const bool before = atomic_load(&chk_memory.hit);
    *rc = steps[i].fn(l);
    const bool refused = before && steps[i].optional && *rc == KVC_E_UNSUPPORTED;
    if (*rc == KVC_OK || refused || !atomic_load(&chk_memory.hit) || chk_memory.fail_at == 0) {
        return true;
    }
    atomic_store(&chk_memory.fail_at, 0);
    if (!proper(l, *rc)) {
        chk_fail(l->c, "%s: when allocation %lu fails, %s answers %s instead of KVC_E_NOMEM: %s",
                 l->spec, fail_at, steps[i].name, kvc_status_name(*rc), sentence(l));
        return false;
    }
    *rc = steps[i].fn(l);
    return true;
}

/* Lives it to the end. fail_at: the call for memory that fails, 0 for none. False: something was
 * said. */
static bool live(life *l, unsigned long fail_at) {
    const size_t n = sizeof steps / sizeof *steps;
    bool good = true;
    (void)unlink(FILE_NAME);
    chk_memory_fail(fail_at);
    for (size_t i = 0; good && i < n; i++) {
        int32_t rc;
        if (!step_run(l, i, fail_at, &rc)) {
            good = false;
            break;
        }
        if (rc == KVC_E_UNSUPPORTED && steps[i].optional) {
            if (!l->quiet) {
                chk_info(l->c, "%s: no %s: %s", l->spec, steps[i].name, sentence(l));
            }
        } else if (rc < 0) {
            chk_fail(l->c, "%s: %s%s answers %s: %s", l->spec, steps[i].name,
                     fail_at > 0 ? " after an allocation had failed" : "", kvc_status_name(rc),
                     sentence(l));
            good = false;
        }
    }
    kvc_session_close(l->other);
    kvc_session_close(l->s);
    l->other = l->s = NULL;
    atomic_store(&chk_memory.fail_at, 0);
    (void)unlink(FILE_NAME);
    return good;
}

static bool life_begin(life *l, chk *c, kvc_model *model, const char *spec) {
    memset(l, 0, sizeof *l);
    l->c = c;
    l->model = model;
    l->spec = spec;
    l->params = chk_params(c, "int8", N_CTX, true);
    return live(l, 0);
}

/* A model as small as may be, so that many lives take little time. */
static kvc_model *small_model(chk *c) {
    chk_shape shape = chk_base;
    shape.n_layer = 2;
    shape.n_head_kv = 1;
    shape.n_embd = shape.n_ff = shape.dim_k = shape.dim_v = 32;
    return chk_open_model(c, &shape, 1);
}

/* ---------------------------------------------------------------- tests */

void chk_memory_balance(chk *c) {
    kvc_model *model = chk_prepare(c) ? small_model(c) : NULL;
    for (uint32_t i = 0; model != NULL && i < c->n_stack; i++) {
        life l;
        life_begin(&l, c, model, c->stack[i]);
        kvc_params_destroy(l.params);
        chk_memory_judge(c, c->stack[i]);
    }
    kvc_model_close(model);
}

static void fail_each(chk *c, kvc_model *model, const char *spec) {
    life l;
    float want[CHK_N_VOCAB];
    unsigned long n = 1;
    char when[64], why[128];
    bool good = life_begin(&l, c, model, spec);
    l.quiet = true;
    memcpy(want, l.row, sizeof want);
    for (bool hit = true; good && hit && n <= MAX_FAILURE; n += hit) {
        good = live(&l, n);
        hit = atomic_load(&chk_memory.hit);
        snprintf(when, sizeof when, "allocation %lu fails", n);
        chk_memory_judge(c, when);
        good = good && !c->failed;
        if (good && chk_claims(c, KVC_CAP_CHUNK_INVARIANT) &&
            !chk_equal(want, l.row, 1, why, sizeof why)) {
            chk_fail(c, "%s: after allocation %lu had failed and the call was made again: %s", spec,
                     n, why);
            good = false;
        }
    }
    if (good) {
        chk_info(c, "%s: %lu allocations failed, one by one", spec, n - 1);
    }
    kvc_params_destroy(l.params);
}

void chk_memory_failures(chk *c) {
    kvc_model *model = chk_prepare(c) ? small_model(c) : NULL;
    if (model != NULL) {
        fail_each(c, model, c->stack[0]);
    }
    kvc_model_close(model);
}

/* Memory that a policy takes by itself, behind the host's back: libc says what is in use. What it
 * keeps for reuse comes and goes; a leak grows in every round. */
void chk_memory_outside(chk *c) {
    enum { N_ROUND = 4, N = 25, LEAST = 16 };
    kvc_model *model = chk_prepare(c) ? small_model(c) : NULL;
    life l;
    size_t used[N_ROUND + 1] = {0}, least = SIZE_MAX;
    bool good = model != NULL && life_begin(&l, c, model, c->stack[0]);
    for (uint32_t round = 0; good && round <= N_ROUND; round++) {
        l.quiet = true;
        for (uint32_t i = 0; good && i < N; i++) {
            good = live(&l, 0);
        }
        used[round] = mallinfo2().uordblks;
        const size_t grown =
            round > 0 && used[round] > used[round - 1] ? (used[round] - used[round - 1]) / N : 0;
        least = round > 0 && grown < least ? grown : least;
    }
    if (good && least >= LEAST) {
        chk_warn(c, "%zu bytes of libc's memory are not given back by each session", least);
    }
    if (model != NULL) {
        kvc_params_destroy(l.params);
    }
    kvc_model_close(model);
}
