/* SPDX-License-Identifier: MIT
 * run_generate.c: reads a prompt in pieces, then samples and decodes token by token. Ctrl-C cancels
 * the decode call that runs (interrupt.h); the call's status is what says so, and the session is
 * then as before it. It must not know what a chat is. */
#include "run_generate.h"

#include "interrupt.h"
#include "outcome.h"
#include "progress.h"

#include <stdlib.h>
#include <string.h>

#define PIECE_LEAST 64u
#define PIECE_MOST  512u
#define PIECE_NS    500000000u /* a piece that takes longer isn't doubled */

int run_tokens_add(run_tokens *t, const int32_t *token, size_t n) {
    if (t->cap - t->n < n) {
        const size_t cap = 2 * t->cap + n + 64;
        int32_t *grown = realloc(t->p, cap * sizeof *grown);
        if (grown == NULL) {
            return -1;
        }
        t->p = grown;
        t->cap = cap;
    }
    if (n > 0) {
        memcpy(t->p + t->n, token, n * sizeof *token);
    }
    t->n += n;
    return 0;
}

static int no_memory(void) {
    return cmp_complain(CMP_EXIT_FAILED, "out of memory");
}

static kvc_session_stats stats_of(const run_job *job) {
    kvc_session_stats stats = {.struct_size = sizeof stats};
    kvc_session_get_stats(job->session, &stats);
    return stats;
}

/* ---------------------------------------------------------------- computing */

/* One call. A cancellation that nobody asked for is what is left of an earlier Ctrl-C, which came
 * when no call ran. */
static int32_t compute(run_job *job, const int32_t *token, uint32_t n, bool logits) {
    for (;;) {
        const int32_t rc = logits ? kvc_session_decode(job->session, token, n)
                                  : kvc_session_prefill(job->session, token, n);
        if (rc != KVC_E_CANCELLED || cmp_interrupted()) {
            return rc;
        }
    }
}

/* All of pending, piece by piece. Pieces follow the clock, so that the progress line moves; for a
 * policy whose result depends on them they don't. */
static int32_t read_pending(run_job *job, bool logits) {
    const uint32_t n = (uint32_t)job->pending.n;
    uint32_t piece = stats_of(job).chunk_invariant != 0 ? PIECE_LEAST : PIECE_MOST;
    for (uint32_t at = 0; at < n;) {
        const uint64_t from = cmp_clock_ns();
        const uint32_t now = n - at < piece ? n - at : piece;
        if (n > PIECE_MOST) {
            cmp_progress("reading", at, n);
        }
        const int32_t rc = compute(job, job->pending.p + at, now, logits && at + now == n);
        if (rc < 0) {
            return rc;
        }
        at += now;
        if (piece < PIECE_MOST && cmp_clock_ns() - from < PIECE_NS) {
            piece *= 2;
        }
    }
    cmp_progress_end();
    return KVC_OK;
}

uint32_t run_held(const run_job *job) {
    const kvc_session_stats stats = stats_of(job);
    return stats.n_past +
           (job->pending.n <= stats.n_ctx - stats.n_past ? (uint32_t)job->pending.n : 0u);
}

static int check_room(const run_job *job, size_t n) {
    const kvc_session_stats stats = stats_of(job);
    const uint32_t room = stats.n_ctx - stats.n_past;
    if (room == 0) {
        return cmp_complain(CMP_EXIT_FAILED, "the context of %u tokens is full: %s", stats.n_ctx,
                            job->way_out);
    }
    if (n <= room) {
        return 0;
    }
    return cmp_complain(CMP_EXIT_FAILED,
                        "the prompt is too long: it has %zu tokens, and of the context of %u "
                        "tokens %u are left; give a shorter one, or %s",
                        n, stats.n_ctx, room, job->way_out);
}

/* With nothing to compute: the session's last token once more, for its logits. */
static int take_last(run_job *job) {
    const uint32_t n = kvc_session_n_past(job->session);
    int32_t last = 0;
    if (n == 0) {
        return cmp_complain(CMP_EXIT_USAGE, "the prompt is empty: give some text");
    }
    if (kvc_session_tokens(job->session, n - 1, 1, &last) < 0 ||
        kvc_session_truncate(job->session, n - 1) < 0) {
        return cmp_complain(CMP_EXIT_FAILED, "%s", kvc_session_error(job->session));
    }
    return run_tokens_add(&job->pending, &last, 1) == 0 ? 0 : no_memory();
}

/* The prompt, behind what is pending. On failure and after Ctrl-C the session and what is pending
 * are as before; the latter sets *unread. */
static int read_prompt(run_job *job, const int32_t *token, size_t n, bool *unread) {
    const size_t n_before = job->pending.n;
    const uint32_t n_past = kvc_session_n_past(job->session);
    *unread = false;
    int code = check_room(job, n_before + n);
    if (code != 0) {
        return code;
    }
    if (run_tokens_add(&job->pending, token, n) != 0) {
        return no_memory();
    }
    if (job->pending.n == 0) {
        code = take_last(job);
        if (code != 0) {
            return code;
        }
    }
    const int32_t rc = read_pending(job, true);
    if (rc >= 0) {
        job->pending.n = 0;
        return 0;
    }
    cmp_progress_end();
    if (rc == KVC_E_CANCELLED) {
        *unread = true;
    } else {
        code = cmp_complain(cmp_exit_code(rc), "%s", kvc_session_error(job->session));
    }
    job->pending.n = n_before + (n_before + n == 0);
    if (kvc_session_truncate(job->session, n_past - (n_before + n == 0)) < 0) {
        code = cmp_complain(CMP_EXIT_FAILED, "%s", kvc_session_error(job->session));
    }
    return code;
}

int run_settle(run_job *job) {
    if (job->pending.n == 0) {
        return 0;
    }
    const int32_t rc = read_pending(job, false);
    cmp_progress_end();
    if (rc < 0) {
        return cmp_complain(cmp_exit_code(rc), "%s", kvc_session_error(job->session));
    }
    job->pending.n = 0;
    return 0;
}

/* ---------------------------------------------------------------- tokens */

/* The next token. The random number of a token is the one that stands at its position in the seed's
 * sequence, so that an answer is the same whether its session was saved and loaded in between or
 * not; each call of a sampler takes one, be there a single token to choose from. */
static int32_t sample(run_job *job) {
    const uint32_t pos = kvc_session_n_past(job->session);
    const float none = 0;
    if (job->sampler != NULL && job->n_drawn > pos) {
        kvc_sampler_destroy(job->sampler);
        job->sampler = NULL;
    }
    if (job->sampler == NULL) {
        const int32_t rc = kvc_sampler_create(job->params, &job->sampler);
        if (rc < 0) {
            return rc;
        }
        job->n_drawn = 0;
    }
    for (; job->n_drawn < pos; job->n_drawn++) {
        kvc_sampler_sample(job->sampler, &none, 1);
    }
    job->n_drawn++;
    return kvc_sampler_sample(job->sampler, kvc_session_logits(job->session, 0), job->info.n_vocab);
}

/* Writes a token's text. Returns 0, 1 when a stop text was met, or -1 after a failure. */
static int write_token(run_job *job, int32_t token, run_text *text) {
    char buf[256], *p = buf;
    size_t n = 0;
    if (kvc_model_detokenize(job->model, &token, 1, 0, buf, sizeof buf, &n) < 0) {
        return -1;
    }
    if (n > sizeof buf) {
        p = malloc(n);
        if (p == NULL || kvc_model_detokenize(job->model, &token, 1, 0, p, n, &n) < 0) {
            free(p);
            return -1;
        }
    }
    const bool stopped = run_text_add(text, p, n);
    if (p != buf) {
        free(p);
    }
    return text->failed || fflush(text->out) != 0 ? -1 : stopped;
}

/* Takes one token into the answer. Returns whether it goes on; if not, out->end says why, or *code
 * is not 0. */
static bool take_token(run_job *job, int32_t token, run_text *text, run_answer *out, int *code) {
    if (token < 0) {
        *code = cmp_complain(CMP_EXIT_FAILED, "no token can be chosen: %s",
                             token == KVC_E_ARG ? "the model's logits are no numbers"
                                                : kvc_status_text(token));
        return false;
    }
    if (run_tokens_add(&job->pending, &token, 1) != 0) {
        *code = no_memory();
        return false;
    }
    if (kvc_model_is_end(job->model, token)) {
        out->end = RUN_END_MODEL;
        return false;
    }
    const int written = write_token(job, token, text);
    if (written < 0 || run_tokens_add(&out->token, &token, 1) != 0) {
        *code = cmp_complain(CMP_EXIT_FAILED, "the answer can't be written");
        return false;
    }
    out->end = written > 0 ? RUN_END_STOP : RUN_END_LENGTH;
    return written == 0 && (job->o->predict == 0 || out->token.n < job->o->predict);
}

/* Computes the token that is pending. Returns whether the answer goes on. */
static bool step(run_job *job, run_answer *out, int *code) {
    const int32_t rc = compute(job, job->pending.p, 1, true);
    if (rc >= 0) {
        job->pending.n = 0;
        return true;
    }
    out->end = rc == KVC_E_FULL ? RUN_END_CONTEXT : RUN_END_INTERRUPTED;
    if (rc != KVC_E_FULL && rc != KVC_E_CANCELLED) {
        *code = cmp_complain(cmp_exit_code(rc), "%s", kvc_session_error(job->session));
    }
    return false;
}

int run_generate(run_job *job, const int32_t *token, size_t n, run_text *text, run_answer *out) {
    *out = (run_answer){.n_prompt = (uint32_t)(job->pending.n + n)};
    const uint64_t from = cmp_clock_ns();
    bool unread = false;
    int code = read_prompt(job, token, n, &unread);
    if (code != 0 || unread) {
        out->end = RUN_END_UNREAD;
        out->n_prompt = 0;
        return code;
    }
    uint64_t first = 0;
    for (;;) {
        const int32_t next = sample(job);
        const uint64_t now = cmp_clock_ns();
        first = first != 0 ? first : now;
        out->first_ns = first - from;
        out->rest_ns = now - first;
        if (!take_token(job, next, text, out, &code) || !step(job, out, &code)) {
            return code;
        }
    }
}
