/* SPDX-License-Identifier: MIT
 * api_session.c: the public calls on sessions. Arguments are checked here, so that the modules
 * below can trust them. */
#include "session.h"

#include <stdio.h>
#include <string.h>

int32_t kvc_session_open(kvc_model *model, const char *spec, kvc_params *params,
                         kvc_session **out) {
    kvc__err ignored = {""};
    kvc__err *err = params != NULL ? &params->err : &ignored;
    if (out == NULL) {
        return kvc__fail(err, KVC_E_ARG, "kvc_session_open: out is NULL");
    }
    *out = NULL;
    if (model == NULL) {
        return kvc__fail(err, KVC_E_ARG, "kvc_session_open: model is NULL");
    }
    err->text[0] = '\0';
    kvc__search search;
    kvc__session_setup setup;
    kvc__session_setup_params(params != NULL ? params : &kvc__params_default, &search, &setup);
    return kvc__session_open(model, spec, &setup, out, err);
}

void kvc_session_close(kvc_session *session) {
    if (session != NULL) {
        kvc__session_close(session);
    }
}

/* ---------------------------------------------------------------- decode */

/* Run i of an array with the caller's stride. */
static kvc_run *run_at(kvc_run *run, uint32_t i, uint32_t stride) {
    return (kvc_run *)(void *)((char *)run + (size_t)i * stride);
}

/* Whether the run can be computed at all; the session is the caller's already. */
static int32_t check_run(kvc_session *s, const kvc_run *r) {
    if (s->dead != KVC_OK) {
        return KVC_E_DEAD; /* its sentence stays */
    }
    if (r->token == NULL || r->n_token == 0) {
        return kvc__fail(&s->err, KVC_E_ARG, "a run without tokens: give at least one");
    }
    if (r->wants > KVC_WANT_LIST) {
        return kvc__fail(&s->err, KVC_E_ARG, "a run's wants is %u, which is no KVC_WANT_ value",
                         r->wants);
    }
    if (r->wants == KVC_WANT_LIST && r->want == NULL) {
        return kvc__fail(&s->err, KVC_E_ARG, "a run with KVC_WANT_LIST has no list: set want");
    }
    if (r->n_token > s->n_ctx - s->n_token) {
        return kvc__fail(&s->err, KVC_E_FULL,
                         "the context is full: %u tokens held, %u more given, room for %u; raise "
                         "n_ctx or truncate",
                         s->n_token, r->n_token, s->n_ctx);
    }
    for (uint32_t i = 0; i < r->n_token; i++) {
        if (r->token[i] < 0 || (uint32_t)r->token[i] >= s->model->hp.n_vocab) {
            return kvc__fail(&s->err, KVC_E_RANGE,
                             "token %d at index %u is outside the vocabulary of %u",
                             (int)r->token[i], i, s->model->hp.n_vocab);
        }
    }
    return KVC_OK;
}

/* Takes the session of a run: refuses one that is in use, of another model, or computing another
 * way. */
static int32_t take_run(kvc_run *r, const kvc_session *first) {
    kvc_session *s = r->session;
    if (atomic_exchange(&s->busy, 1) != 0) {
        return KVC_E_BUSY;
    }
    s->err.text[0] = s->dead != KVC_OK ? s->err.text[0] : '\0';
    int32_t rc = KVC_OK;
    if (first != NULL && (first->model != s->model || first->compute != s->compute)) {
        rc = kvc__fail(&s->err, KVC_E_ARG,
                       "the sessions of a call must share the model and the way to compute");
    } else {
        rc = check_run(s, r);
    }
    if (rc < 0) {
        atomic_store(&s->busy, 0);
    }
    return rc;
}

/* Sessions computed at a time; more follow in a further round. */
#define ROUND 64u

/* Takes all sessions first, so that one given twice is found wherever it stands. */
static void take_all(kvc_run *run, uint32_t n, uint32_t stride) {
    const kvc_session *first = NULL;
    for (uint32_t i = 0; i < n; i++) {
        kvc_run *r = run_at(run, i, stride);
        r->n_logits = 0;
        r->status = KVC_E_ARG;
        if (r->session != NULL && r->struct_size >= sizeof *r) {
            r->status = take_run(r, first);
        }
        if (r->status == KVC_OK) {
            r->session->run = r;
            first = r->session;
        }
    }
}

int32_t kvc_decode(kvc_run *run, uint32_t n, uint32_t stride) {
    if (n == 0) {
        return KVC_OK;
    }
    if (run == NULL || stride < sizeof(kvc_run) || stride % _Alignof(kvc_run) != 0) {
        return KVC_E_ARG;
    }
    kvc_session *taken[ROUND];
    uint32_t n_taken = 0;
    int32_t status = KVC_OK;
    take_all(run, n, stride);
    for (uint32_t i = 0; i < n; i++) {
        kvc_run *r = run_at(run, i, stride);
        if (r->status == KVC_OK) {
            taken[n_taken++] = r->session;
        }
        if (n_taken == ROUND || (i + 1 == n && n_taken > 0)) {
            kvc__session_decode(taken, n_taken);
            while (n_taken > 0) {
                kvc_session *s = taken[--n_taken];
                s->run = NULL;
                atomic_store(&s->busy, 0);
            }
        }
    }
    for (uint32_t i = 0; i < n && status == KVC_OK; i++) {
        status = run_at(run, i, stride)->status;
    }
    return status;
}

int32_t kvc_session_decode(kvc_session *session, const int32_t *token, uint32_t n) {
    kvc_run run = {.struct_size = sizeof run,
                   .wants = KVC_WANT_LAST,
                   .session = session,
                   .token = token,
                   .n_token = n};
    return kvc_decode(&run, 1, sizeof run);
}

int32_t kvc_session_prefill(kvc_session *session, const int32_t *token, uint32_t n) {
    kvc_run run = {.struct_size = sizeof run,
                   .wants = KVC_WANT_NONE,
                   .session = session,
                   .token = token,
                   .n_token = n};
    return kvc_decode(&run, 1, sizeof run);
}

/* ---------------------------------------------------------------- the rest */

const float *kvc_session_logits(const kvc_session *session, uint32_t i) {
    if (session == NULL || i >= session->n_logits) {
        return NULL;
    }
    return session->logits + (size_t)i * session->model->hp.n_vocab;
}

uint32_t kvc_session_n_past(const kvc_session *session) {
    return session != NULL ? session->n_token : 0;
}

int32_t kvc_session_tokens(const kvc_session *session, uint32_t pos, uint32_t n, int32_t *out) {
    if (session == NULL || (out == NULL && n > 0)) {
        return KVC_E_ARG;
    }
    if (atomic_load(&session->busy) != 0) {
        return KVC_E_BUSY;
    }
    if (pos > session->n_token || n > session->n_token - pos) {
        return KVC_E_RANGE;
    }
    if (n > 0) {
        memcpy(out, session->token + pos, n * sizeof *out);
    }
    return KVC_OK;
}

int32_t kvc_session_truncate(kvc_session *session, uint32_t n_past) {
    if (session == NULL) {
        return KVC_E_ARG;
    }
    if (atomic_exchange(&session->busy, 1) != 0) {
        return KVC_E_BUSY;
    }
    int32_t rc = KVC_E_DEAD;
    if (session->dead == KVC_OK) {
        session->err.text[0] = '\0';
        pthread_mutex_lock(&session->model->lock);
        rc = kvc__session_truncate(session, n_past);
        pthread_mutex_unlock(&session->model->lock);
    }
    atomic_store(&session->busy, 0);
    return rc;
}

void kvc_session_cancel(kvc_session *session) {
    if (session != NULL) {
        atomic_store(&session->cancel, 1);
    }
}

const char *kvc_session_error(const kvc_session *session) {
    return session != NULL ? session->err.text : "";
}

const char *kvc_session_spec(const kvc_session *session) {
    return session != NULL && session->stack.spec != NULL ? session->stack.spec : "";
}

/* Copies a result that the library filled to a caller's struct of perhaps another size. */
static int32_t give(void *out, const void *ours, size_t size) {
    uint32_t theirs;
    memcpy(&theirs, out, sizeof theirs);
    if (theirs < sizeof theirs) {
        return KVC_E_ARG;
    }
    memcpy(out, ours, theirs < size ? theirs : size);
    memcpy(out, &theirs, sizeof theirs);
    return KVC_OK;
}

static uint64_t live_entries(const kvc__store *s) {
    uint64_t n = 0;
    for (uint32_t i = 0; i < s->n_lane; i++) {
        n += s->lane[i].n_live;
    }
    return n;
}

int32_t kvc_session_get_stats(const kvc_session *session, kvc_session_stats *out) {
    if (session == NULL || out == NULL) {
        return KVC_E_ARG;
    }
    if (atomic_load(&session->busy) != 0) {
        return KVC_E_BUSY;
    }
    kvc__store_bytes b;
    uint64_t memory, disk;
    kvc__store_count(&session->store, &b);
    kvc__stack_bytes(&session->stack, &memory, &disk);
    const uint64_t now = kvc__store_held(&session->store);
    const kvc_session_stats s = {
        .n_past = session->n_token,
        .n_ctx = session->n_ctx,
        .n_stage = session->stack.n_stage,
        .kv_bytes = now,
        .sealed_bytes = b.sealed,
        .open_bytes = b.open,
        .meta_bytes = b.meta,
        .column_bytes = b.column,
        .stage_bytes = memory,
        .disk_bytes = disk,
        .kv_peak_bytes = session->store.peak > now ? session->store.peak : now,
        .n_computed = session->n_computed,
        .n_replayed = session->n_replayed,
        .n_entry = live_entries(&session->store),
        .compute_ns = session->compute_ns,
        .attention_ns = session->attention_ns,
        .policy_ns = session->policy_ns,
        .chunk_invariant = session->stack.chunk_invariant,
        .flags = session->stack.flags,
        .buffer_bytes = b.buffer,
        .tier_bytes = session->store.away_bytes,
        .n_lost = session->n_lost,
        .wait_ns = session->store.pager != NULL ? kvc__pager_wait_ns(session->store.pager) : 0,
        .compute = session->compute};
    return give(out, &s, sizeof s);
}

int32_t kvc_session_get_stage(const kvc_session *session, uint32_t i, kvc_stage_stats *out) {
    if (session == NULL || out == NULL) {
        return KVC_E_ARG;
    }
    if (atomic_load(&session->busy) != 0) {
        return KVC_E_BUSY;
    }
    if (i >= session->stack.n_stage) {
        return KVC_E_RANGE;
    }
    kvc__stage *st = session->stack.stage[i];
    kvc_claims claims;
    kvc__stack_claims(st, &claims);
    const bool format = (st->plan.answers & KVC_ANSWERS_FORMAT) != 0;
    const kvc__store *store = &session->store;
    const kvc_stage_stats s = {.name = st->policy.desc.name,
                               .path = st->policy.path != NULL ? st->policy.path : "",
                               .memory_bytes = kvc__stage_memory(st),
                               .peak_bytes = atomic_load(&st->peak),
                               .disk_bytes = kvc__stage_disk(st),
                               .hook_ns = st->hook_ns,
                               .n_evicted = claims.n_evicted,
                               .n_selected = claims.n_selected,
                               .n_skipped = claims.n_skipped,
                               .stored_bytes = claims.stored_bytes,
                               .tier_ns = atomic_load(&st->tier.ns),
                               .n_put = atomic_load(&st->tier.n_put),
                               .n_get = atomic_load(&st->tier.n_get),
                               .worker_ns = atomic_load(&st->worker_ns),
                               .payload_bytes =
                                   format ? store->sealed_bytes + store->away_bytes : 0};
    return give(out, &s, sizeof s);
}
