/* SPDX-License-Identifier: MIT
 * run_turn.h: turns of a chat as tokens to append to a session. What the model wrote stays in the
 * session as it wrote it; so a conversation goes on from a saved session, of which only tokens are
 * known. It knows no terminals. */
#ifndef KVC_RUN_TURN_H
#define KVC_RUN_TURN_H

#include "run_generate.h"

/** How the model's chats are written. */
typedef struct run_form {
    const char *family; /* NULL: the file's own */
    run_tokens close;   /* what ends an answer; its first token is the one the model gives */
} run_form;

/** Finds out, and refuses a model whose template isn't known. Returns 0, or an exit code after a
 * sentence. */
int run_form_init(run_job *job, run_form *out);
/** Frees what it owns. */
void run_form_free(run_form *form);
/** A message as tokens, from where the session with what is pending ends to where the answer
 * begins. out is emptied first. Returns 0, or an exit code after a sentence. */
int run_turn_message(run_job *job, const run_form *form, const char *text, size_t n,
                     run_tokens *out);
/** Makes what ends an answer pending. Returns 0, or an exit code after a sentence. */
int run_turn_close(run_job *job, const run_form *form);
/** A session that was loaded: its system text against --system, and an answer that is still open is
 * closed. Returns 0, or an exit code after a sentence. */
int run_turn_resume(run_job *job, const run_form *form);

#endif
