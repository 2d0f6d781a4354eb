/* SPDX-License-Identifier: MIT
 * run_generate.h: one answer: tokens of a prompt in, text out. It knows tokens and sessions, no
 * chats, files or terminals. */
#ifndef KVC_RUN_GENERATE_H
#define KVC_RUN_GENERATE_H

#include "run_options.h"
#include "run_text.h"

#include "kvc/kvc.h"

/** Tokens that grow. */
typedef struct run_tokens {
    int32_t *p;
    size_t n, cap;
} run_tokens;

/** Adds n tokens. Returns 0, or -1 without memory. */
int run_tokens_add(run_tokens *t, const int32_t *token, size_t n);

/** What runs. pending follows what the session holds and is computed before anything else: the last
 * token of an answer, what closes a turn. */
typedef struct run_job {
    const run_options *o;
    kvc_params *params;
    kvc_model *model;
    kvc_model_info info;
    kvc_session *session; /* watched by interrupt.h */
    char *spec;           /* of its policies, as it was given */
    kvc_sampler *sampler;
    uint32_t n_drawn; /* random numbers that the sampler has given */
    run_tokens pending;
    const char *way_out; /* what to do when the context is full, behind "or" */
} run_job;

/** How an answer ended. */
enum {
    RUN_END_MODEL = 0,   /* the model ended it */
    RUN_END_LENGTH,      /* --predict */
    RUN_END_STOP,        /* --stop */
    RUN_END_CONTEXT,     /* the context is full */
    RUN_END_INTERRUPTED, /* Ctrl-C */
    RUN_END_UNREAD       /* Ctrl-C while the prompt was read: the session is as before */
};

/** An answer's figures. */
typedef struct run_answer {
    int end;                    /* RUN_END_… */
    uint32_t n_prompt;          /* tokens computed before the first; 0: RUN_END_UNREAD */
    uint64_t first_ns, rest_ns; /* until the first token, and from there to the last */
    run_tokens token;           /* of the answer, without the end; the caller's to free */
} run_answer;

/** Computes what is pending and token[n], then generates into text until something ends it. What
 * the session then lacks is pending. With nothing to compute it goes on from the session's last
 * token, and refuses when the context is full. Returns 0, or an exit code after a sentence; the
 * session is then as before, or dead. */
int run_generate(run_job *job, const int32_t *token, size_t n, run_text *text, run_answer *out);
/** Tokens that a session saved now holds: with what is pending, unless that has no room. */
uint32_t run_held(const run_job *job);
/** Computes what is pending, so that the session can be saved. Returns 0, or an exit code after a
 * sentence. */
int run_settle(run_job *job);

#endif
