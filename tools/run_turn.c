/* SPDX-License-Identifier: MIT
 * run_turn.c: what a chat's form puts around messages is found by writing chats that differ in one
 * text and comparing their tokens: the template itself is the library's matter. */
#include "run_turn.h"

#include "outcome.h"

#include <stdlib.h>
#include <string.h>

/* Two answers that share no token at either end. */
#define ONE   "a"
#define OTHER "b2"

static kvc_chat_message message(const char *role, const char *text, size_t n) {
    return (kvc_chat_message){.role = role, .content = text, .n_content = n};
}

/* A model whose template isn't known, or a name that isn't. */
static int refuse(const run_job *job, const run_form *form) {
    const char *why = kvc_model_error(job->model);
    return form->family != NULL
               ? cmp_complain(CMP_EXIT_USAGE, "--chat-template=%s: %s", form->family, why)
               : cmp_complain(CMP_EXIT_USAGE,
                              "%s: %s (--chat-template names a family, --raw goes on with the "
                              "prompt's text)",
                              job->o->model, why);
}

/* A chat's tokens, into out, which is emptied first. */
static int write_chat(run_job *job, const run_form *form, const kvc_chat_message *m, uint32_t n,
                      uint32_t flags, run_tokens *out) {
    size_t need = 0;
    for (int i = 0; i < 2; i++) {
        const int32_t rc = kvc_model_chat(job->model, form->family, m, n, sizeof *m, flags, out->p,
                                          out->cap, &need);
        if (rc == KVC_E_UNSUPPORTED) {
            return refuse(job, form);
        }
        if (rc < 0) {
            return cmp_complain(rc == KVC_E_UTF8 ? CMP_EXIT_USAGE : CMP_EXIT_FAILED, "%s",
                                kvc_model_error(job->model));
        }
        if (need <= out->cap) {
            break;
        }
        int32_t *grown = realloc(out->p, need * sizeof *grown);
        if (grown == NULL) {
            return cmp_complain(CMP_EXIT_FAILED, "out of memory");
        }
        out->p = grown;
        out->cap = need;
    }
    out->n = need;
    return 0;
}

/* A user's message and an answer. */
static int write_pair(run_job *job, const run_form *form, const char *answer, run_tokens *out) {
    const kvc_chat_message m[] = {message("user", ONE, strlen(ONE)),
                                  message("assistant", answer, strlen(answer))};
    return write_chat(job, form, m, 2, 0, out);
}

int run_form_init(run_job *job, run_form *out) {
    run_tokens one = {0}, other = {0};
    *out = (run_form){.family = job->o->chat_template};
    int code = write_pair(job, out, ONE, &one);
    code = code != 0 ? code : write_pair(job, out, OTHER, &other);
    size_t same = 0;
    while (code == 0 && same < one.n && same < other.n &&
           one.p[one.n - 1 - same] == other.p[other.n - 1 - same]) {
        same++;
    }
    if (code == 0 && run_tokens_add(&out->close, one.p + one.n - same, same) != 0) {
        code = cmp_complain(CMP_EXIT_FAILED, "out of memory");
    }
    free(one.p);
    free(other.p);
    return code;
}

void run_form_free(run_form *form) {
    free(form->close.p);
    form->close = (run_tokens){0};
}

/* The first message of a session, behind the system text. */
static int write_first(run_job *job, const run_form *form, const char *text, size_t n,
                       run_tokens *out) {
    const char *system = job->o->system;
    const kvc_chat_message m[] = {message("system", system, system != NULL ? strlen(system) : 0),
                                  message("user", text, n)};
    const uint32_t skip = system == NULL;
    return write_chat(job, form, m + skip, 2 - skip, KVC_CHAT_PROMPT, out);
}

int run_turn_message(run_job *job, const run_form *form, const char *text, size_t n,
                     run_tokens *out) {
    if (kvc_session_n_past(job->session) + job->pending.n == 0) {
        return write_first(job, form, text, n, out);
    }
    /* What follows an answer is what a longer chat has beyond a shorter one. */
    run_tokens before = {0};
    const kvc_chat_message m[] = {message("user", ONE, strlen(ONE)),
                                  message("assistant", ONE, strlen(ONE)), message("user", text, n)};
    int code = write_pair(job, form, ONE, &before);
    code = code != 0 ? code : write_chat(job, form, m, 3, KVC_CHAT_PROMPT, out);
    if (code == 0 &&
        (out->n < before.n || memcmp(out->p, before.p, before.n * sizeof *before.p) != 0)) {
        code = cmp_complain(CMP_EXIT_FAILED, "the chat template doesn't append turns");
    }
    if (code == 0) {
        out->n -= before.n;
        memmove(out->p, out->p + before.n, out->n * sizeof *out->p);
    }
    free(before.p);
    return code;
}

int run_turn_close(run_job *job, const run_form *form) {
    run_tokens *p = &job->pending;
    if (p->n > 0 && kvc_model_is_end(job->model, p->p[p->n - 1])) {
        p->n--; /* the form's own end takes its place */
    }
    return run_tokens_add(p, form->close.p, form->close.n) == 0
               ? 0
               : cmp_complain(CMP_EXIT_FAILED, "out of memory");
}

/* ---------------------------------------------------------------- sessions that were loaded */

/* Whether the session holds token[n] from pos on. */
static bool holds(const run_job *job, uint32_t pos, const int32_t *token, uint32_t n) {
    int32_t *have = malloc((n + 1u) * sizeof *have);
    const bool same = have != NULL && kvc_session_tokens(job->session, pos, n, have) >= 0 &&
                      memcmp(have, token, n * sizeof *token) == 0;
    free(have);
    return same;
}

/* The tokens before the first message, which two chats have in common. */
static int check_system(run_job *job, const run_form *form) {
    run_tokens one = {0}, other = {0};
    int code = write_first(job, form, ONE, strlen(ONE), &one);
    code = code != 0 ? code : write_first(job, form, OTHER, strlen(OTHER), &other);
    uint32_t n = 0;
    while (code == 0 && n < one.n && n < other.n && one.p[n] == other.p[n]) {
        n++;
    }
    if (code == 0 && !holds(job, 0, one.p, n)) {
        code = cmp_complain(CMP_EXIT_USAGE,
                            "%s began with another system text or template: leave --system out, or "
                            "name another --session",
                            job->o->session);
    }
    free(one.p);
    free(other.p);
    return code;
}

/* Whether the session begins and ends as chats of this form do; in *code what went wrong. */
static bool is_form(run_job *job, const run_form *form, int *code) {
    const kvc_chat_message m[] = {message("system", ONE, strlen(ONE)),
                                  message("user", ONE, strlen(ONE))};
    const uint32_t n_past = kvc_session_n_past(job->session), n = (uint32_t)form->close.n;
    run_tokens with = {0}, without = {0};
    *code = write_chat(job, form, m, 2, KVC_CHAT_PROMPT, &with);
    *code = *code != 0 ? *code : write_chat(job, form, m + 1, 1, KVC_CHAT_PROMPT, &without);
    uint32_t same = 0;
    while (*code == 0 && same < with.n && same < without.n && with.p[same] == without.p[same]) {
        same++;
    }
    const bool is = *code == 0 && n > 0 && n_past >= n + same && holds(job, 0, with.p, same) &&
                    holds(job, n_past - n, form->close.p, n);
    free(with.p);
    free(without.p);
    return is;
}

/* --chat-template against a session that is plainly a chat of another. A text of --raw is none, and
 * may become a chat of any. */
static int check_family(run_job *job, const run_form *form) {
    static const char *const family[] = {"chatml", "llama2",  "llama3",
                                         "gemma",  "mistral", "zephyr"};
    int code = 0;
    bool other = false;
    if (is_form(job, form, &code) || code != 0) {
        return code;
    }
    for (size_t i = 0; code == 0 && !other && i < sizeof family / sizeof *family; i++) {
        run_job as = *job;
        run_options o = *job->o;
        run_form f = {0};
        as.o = &o;
        o.chat_template = family[i];
        code = run_form_init(&as, &f);
        other = code == 0 && is_form(&as, &f, &code);
        run_form_free(&f);
    }
    return code != 0 || !other
               ? code
               : cmp_complain(CMP_EXIT_USAGE,
                              "%s began with another template: leave --chat-template out, or name "
                              "another --session",
                              job->o->session);
}

int run_turn_resume(run_job *job, const run_form *form) {
    const uint32_t n_past = kvc_session_n_past(job->session), n = (uint32_t)form->close.n;
    if (n_past == 0) {
        return 0;
    }
    int code = job->o->chat_template != NULL ? check_family(job, form) : 0;
    code = code == 0 && job->o->system != NULL ? check_system(job, form) : code;
    if (code != 0 || (n_past >= n && holds(job, n_past - n, form->close.p, n))) {
        return code;
    }
    return run_turn_close(job, form);
}
