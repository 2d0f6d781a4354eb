/* SPDX-License-Identifier: MIT
 * stack_state.c: what stages hold beside plan, pages and columns, to a stream and from one. What is
 * read may be hostile: a stage sees its own bytes and no others. */
#include "stack.h"

static int32_t stream_write(void *ctx, const void *bytes, size_t n) {
    return kvc__stream_write(ctx, bytes, n);
}

static int32_t stream_read(void *ctx, void *bytes, size_t n) {
    return kvc__stream_read(ctx, bytes, n);
}

static bool has_state(const kvc__stage *st) {
    return (st->plan.flags & KVC_PLAN_STATE) != 0;
}

int32_t kvc__stack_can_save(const kvc__stack *s, kvc__err *err) {
    for (uint32_t j = 0; j < s->n_stage; j++) {
        const kvc__stage *st = s->stage[j];
        if (has_state(st) && (st->policy.api.save == NULL || st->policy.api.load == NULL)) {
            return kvc__fail(err, KVC_E_UNSUPPORTED,
                             "policy '%s' has state that it can't save: a session with it can't be "
                             "saved or forked",
                             st->policy.desc.name);
        }
    }
    return KVC_OK;
}

/* One stage's state, with its length in front so that a reader can't go beyond it. */
static int32_t stage_save(kvc__stage *st, kvc__stream *out, kvc__err *err) {
    kvc__stream own = {0};
    /* A tier draws no numbers, and its stage may be another session's too. */
    const uint64_t rng = st->plan.tier == NULL ? st->rng : 0;
    KVC_TRY(kvc__stream_write(out, &rng, sizeof rng));
    KVC_TRY(kvc__stream_memory(out->mem, &own, err));
    int32_t rc = KVC_OK;
    if (has_state(st)) {
        const kvc_stream to = {.struct_size = sizeof to, .ctx = &own, .write = stream_write};
        rc = st->policy.api.save(st->self, &to);
        rc = rc == KVC_OK ? rc : kvc__stage_failed(st, rc, "save", KVC_ALL, 0, err);
    }
    const uint64_t n = own.n;
    if (rc == KVC_OK) {
        rc = kvc__stream_write(out, &n, sizeof n);
    }
    if (rc == KVC_OK) {
        rc = kvc__stream_write(out, own.buf, own.n);
    }
    kvc__stream_close(&own);
    return rc;
}

int32_t kvc__stack_save(kvc__stack *s, kvc__stream *out, kvc__err *err) {
    for (uint32_t j = 0; j < s->n_stage; j++) {
        KVC_TRY(stage_save(s->stage[j], out, err));
    }
    return KVC_OK;
}

/* Copies n bytes of a stream to one in memory. */
static int32_t stream_copy(kvc__stream *in, kvc__stream *own, uint64_t n) {
    uint8_t piece[4096];
    while (n > 0) {
        const size_t m = n < sizeof piece ? (size_t)n : sizeof piece;
        KVC_TRY(kvc__stream_read(in, piece, m));
        KVC_TRY(kvc__stream_write(own, piece, m));
        n -= m;
    }
    return KVC_OK;
}

static int32_t stage_load(kvc__stage *st, kvc__stream *in, kvc__err *err) {
    kvc__stream own = {0};
    uint64_t n;
    uint64_t rng;
    KVC_TRY(kvc__stream_read(in, &rng, sizeof rng));
    st->rng = st->plan.tier == NULL ? rng : st->rng;
    KVC_TRY(kvc__stream_read(in, &n, sizeof n));
    if (n > kvc__stream_left(in) || (n > 0 && !has_state(st))) {
        return kvc__fail(err, KVC_E_FORMAT, "the state of policy '%s' is damaged",
                         st->policy.desc.name);
    }
    KVC_TRY(kvc__stream_memory(in->mem, &own, err));
    int32_t rc = stream_copy(in, &own, n);
    if (rc == KVC_OK && has_state(st)) {
        const kvc_stream from = {.struct_size = sizeof from, .ctx = &own, .read = stream_read};
        rc = st->policy.api.load(st->self, &from);
        if (rc != KVC_OK && rc != KVC_E_NOMEM) {
            rc = kvc__fail(err, KVC_E_FORMAT, "policy '%s' refuses the state that was saved",
                           st->policy.desc.name);
        } else if (rc == KVC_OK && own.at != own.n) {
            rc = kvc__fail(err, KVC_E_FORMAT, "policy '%s' left part of its saved state unread",
                           st->policy.desc.name);
        }
    }
    kvc__stream_close(&own);
    return rc;
}

int32_t kvc__stack_load(kvc__stack *s, kvc__stream *in, kvc__err *err) {
    for (uint32_t j = 0; j < s->n_stage; j++) {
        KVC_TRY(stage_load(s->stage[j], in, err));
    }
    return KVC_OK;
}
