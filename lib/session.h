/* SPDX-License-Identifier: MIT
 * session.h: one sequence: its tokens, its stack, its store. Decoding drives forward over what the
 * store lacks, be it new or to be computed again; going back only lowers counts. */
#ifndef KVC_SESSION_H
#define KVC_SESSION_H

#include "err.h"
#include "forward.h"
#include "mem.h"
#include "model.h"
#include "params.h"
#include "stack.h"
#include "store.h"

#include "kvc/kvc.h"

#include <stdatomic.h>
#include <stdint.h>

/** The public handle. */
struct kvc_session {
    kvc_model *model;
    kvc__mem mem; /* counts the session's own and, as children, the stages' */
    kvc__stack stack;
    kvc__store store;
    uint32_t n_ctx, compute;
    int32_t *token;   /* [n_ctx] */
    uint8_t *flag;    /* [n_ctx] KVC__TOKEN_… */
    uint32_t n_token; /* tokens held: n_past */
    uint32_t n_valid; /* of them in the store */
    float *logits;    /* [cap_logits][n_vocab] */
    uint32_t n_logits, cap_logits;
    atomic_int cancel; /* 1: stop the call in progress, or the next */
    atomic_int busy;   /* 1: a call uses it */
    int32_t dead;      /* the status that killed it, or KVC_OK */
    /* of the decode call in progress */
    kvc_run *run;
    uint32_t n_old;  /* tokens before the call */
    uint32_t n_mark; /* what lies below has been computed before */
    bool recovered;  /* this call has computed a lost page again */
    uint64_t n_lost, n_computed, n_replayed, compute_ns, attention_ns, policy_ns;
    kvc__err err;
};

/** What a session is opened with. */
typedef struct kvc__session_setup {
    uint32_t n_ctx, compute;
    uint64_t seed;
    const kvc_allocator *allocator; /* NULL: libc */
    kvc_log_fn log;
    void *log_user;
    const kvc__search *search; /* for its policies; NULL with like */
    const kvc_session *like;   /* a session to take the policies of and share pages with, or NULL */
} kvc__session_setup;

/** The setup that params ask for; it leads into params and search. */
void kvc__session_setup_params(const struct kvc_params *params, kvc__search *search,
                               kvc__session_setup *out);
/** Opens a session; takes a hold of the model. */
int32_t kvc__session_open(kvc_model *model, const char *spec, const kvc__session_setup *setup,
                          kvc_session **out, kvc__err *err);
/** Closes it and drops the hold. */
void kvc__session_close(kvc_session *s);
/** As kvc_session_truncate(), the session being the caller's alone. */
int32_t kvc__session_truncate(kvc_session *s, uint32_t n_past);
/** Computes the runs of n sessions that were checked and taken; each s->run has its status set. */
void kvc__session_decode(kvc_session *const *s, uint32_t n);

#endif
