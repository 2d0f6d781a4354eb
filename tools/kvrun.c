/* SPDX-License-Identifier: MIT
 * kvrun.c: runs a model: answers one prompt, or chats. Options, prompt, model, session, answer: in
 * this order, each its own file, put together here. It uses the public API alone. */
#include "input.h"
#include "interrupt.h"
#include "outcome.h"
#include "run_chat.h"
#include "run_figures.h"
#include "run_session.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---------------------------------------------------------------- the prompt */

/* The prompt, if there is one; without it *out is NULL. A file's last line end is left out. */
static int read_prompt(const run_options *o, cmp_bytes *out) {
    const char *path = o->file != NULL ? o->file : isatty(STDIN_FILENO) ? NULL : "-";
    if (o->prompt != NULL) {
        out->p = strdup(o->prompt);
        out->n = strlen(o->prompt);
        return out->p != NULL ? 0 : cmp_complain(CMP_EXIT_FAILED, "out of memory");
    }
    if (path == NULL) {
        return !o->raw && !o->json
                   ? 0
                   : cmp_complain(CMP_EXIT_USAGE, "%s needs a prompt: give --prompt or --file",
                                  o->raw ? "--raw" : "--format=json");
    }
    const int code = cmp_input_read(path, out);
    if (code == 0 && out->n > 0 && out->p[out->n - 1] == '\n') {
        out->n -= 1 + (size_t)(out->n > 1 && out->p[out->n - 2] == '\r');
    }
    return code;
}

/* The prompt's text as tokens, to go on with. */
static int tokenize(run_job *job, const cmp_bytes *prompt, run_tokens *out) {
    const uint32_t flags =
        KVC_TEXT_SPECIAL | (kvc_session_n_past(job->session) == 0 ? KVC_TEXT_BOS : 0u);
    out->cap = prompt->n + 8;
    out->p = malloc(out->cap * sizeof *out->p);
    if (out->p == NULL) {
        return cmp_complain(CMP_EXIT_FAILED, "out of memory");
    }
    const int32_t rc =
        kvc_model_tokenize(job->model, prompt->p, prompt->n, flags, out->p, out->cap, &out->n);
    return rc >= 0 ? 0
                   : cmp_complain(rc == KVC_E_UTF8 ? CMP_EXIT_USAGE : CMP_EXIT_FAILED,
                                  "the prompt: %s", kvc_model_error(job->model));
}

/* ---------------------------------------------------------------- one answer */

static int show(run_job *job, const run_answer *answer, FILE *stream, cmp_bytes *text) {
    const run_options *o = job->o;
    if (!o->json && answer->end == RUN_END_UNREAD) {
        return 0;
    }
    if (!o->json) {
        if (fputc('\n', stdout) == EOF || fflush(stdout) != 0) {
            return cmp_complain(CMP_EXIT_FAILED, "the answer can't be written");
        }
        if (!o->quiet) {
            run_figures_line(job, answer);
        }
        return 0;
    }
    cmp_bytes report = {NULL, 0};
    fflush(stream);
    FILE *out = open_memstream(&report.p, &report.n);
    if (out == NULL) {
        return cmp_complain(CMP_EXIT_FAILED, "out of memory for the report");
    }
    const int failed = run_figures_json(out, job, answer, text->p, text->n) != 0;
    return cmp_put(out, &report, failed, NULL);
}

/* Generates and shows the answer, be it cut off. Returns an exit code. */
static int generate(run_job *job, const run_tokens *prompt, run_answer *answer) {
    const run_options *o = job->o;
    cmp_bytes bytes = {NULL, 0};
    FILE *stream = o->json ? open_memstream(&bytes.p, &bytes.n) : stdout;
    if (stream == NULL) {
        return cmp_complain(CMP_EXIT_FAILED, "out of memory");
    }
    run_text text;
    run_text_begin(&text, stream, o->stop, o->n_stop,
                   (o->json ? (unsigned)RUN_TEXT_CONTROLS : 0u) |
                       (o->raw ? 0u : (unsigned)RUN_TEXT_TRIM));
    int code = run_generate(job, prompt->p, prompt->n, &text, answer);
    run_text_end(&text);
    cmp_interrupt_again();
    if (code == 0) {
        code = show(job, answer, stream, &bytes);
    }
    if (o->json) {
        fclose(stream);
        free(bytes.p);
    }
    return code;
}

/* What an answer's end means for who started the program. */
static int code_of(const run_job *job, const run_answer *answer) {
    kvc_session_stats stats = {.struct_size = sizeof stats};
    switch (answer->end) {
    case RUN_END_CONTEXT:
        kvc_session_get_stats(job->session, &stats);
        return cmp_complain(CMP_EXIT_FAILED,
                            "the context of %u tokens is full, the answer is cut off: %s, or give "
                            "--predict to end before",
                            stats.n_ctx, job->way_out);
    case RUN_END_UNREAD:
        return cmp_complain(CMP_EXIT_INTERRUPTED,
                            "interrupted while the prompt was read; nothing is saved");
    case RUN_END_INTERRUPTED:
        return CMP_EXIT_INTERRUPTED;
    default:
        return 0;
    }
}

/* What follows the answer before the session is saved. */
static int close_turn(run_job *job, const run_form *form) {
    run_tokens *p = &job->pending;
    if (!job->o->raw) {
        return run_turn_close(job, form);
    }
    if (p->n > 0 && kvc_model_is_end(job->model, p->p[p->n - 1])) {
        p->n--; /* a text may go on, an end can't */
    }
    return 0;
}

static int answer_prompt(run_job *job, const run_form *form, const cmp_bytes *prompt) {
    const run_options *o = job->o;
    run_tokens token = {0};
    run_answer answer = {0};
    if (!o->raw && prompt->n == 0) {
        return cmp_complain(CMP_EXIT_USAGE, "the prompt is empty: give some text");
    }
    int code = o->raw ? tokenize(job, prompt, &token)
                      : run_turn_message(job, form, prompt->p, prompt->n, &token);
    code = code != 0 ? code : generate(job, &token, &answer);
    if (code == 0) {
        code = code_of(job, &answer);
        if (o->session != NULL && answer.end != RUN_END_UNREAD) {
            int failed = close_turn(job, form);
            failed = failed != 0 ? failed : run_session_save(job, o->session);
            code = failed != 0 ? failed : code;
        }
    }
    free(token.p);
    free(answer.token.p);
    return code;
}

/* ---------------------------------------------------------------- the run */

static int run_session(run_job *job, const cmp_bytes *prompt) {
    run_form form = {0};
    int code = run_session_open(job);
    if (code == 0) {
        job->way_out =
            kvc_session_n_past(job->session) > 0 ? "name another --session" : "give a larger --ctx";
    }
    if (code == 0 && !job->o->raw) {
        code = run_form_init(job, &form);
        code = code != 0 ? code : run_turn_resume(job, &form);
    }
    if (code == 0) {
        code = prompt->p != NULL ? answer_prompt(job, &form, prompt) : run_chat(job, &form);
    }
    run_form_free(&form);
    run_session_close(job);
    kvc_sampler_destroy(job->sampler);
    free(job->pending.p);
    return code;
}

static int run(const run_options *o, kvc_params *params) {
    cmp_bytes prompt = {NULL, 0};
    run_job job = {.o = o, .params = params, .info = {.struct_size = sizeof job.info}};
    int code = run_options_apply(o, params);
    code = code != 0 ? code : read_prompt(o, &prompt);
    if (code == 0) {
        const int32_t rc = kvc_model_open(o->model, params, &job.model);
        code = rc >= 0 ? 0 : cmp_complain(cmp_exit_code(rc), "%s", kvc_params_error(params));
    }
    if (code == 0) {
        kvc_model_get_info(job.model, &job.info);
        code = run_session(&job, &prompt);
    }
    kvc_model_close(job.model);
    free(prompt.p);
    return code;
}

int main(int argc, char **argv) {
    run_options options;
    cmp_streams_hold();
    run_options_parse(argc, argv, &options);
    cmp_outcome_tool("kvrun");
    int code = CMP_EXIT_FAILED;
    kvc_params *params = NULL;
    if (cmp_interrupt_start() != 0) {
        cmp_complain(CMP_EXIT_FAILED, "no thread can be started to listen for Ctrl-C");
    } else if (kvc_params_create(&params) < 0) {
        cmp_complain(CMP_EXIT_FAILED, "out of memory");
    } else {
        kvc_params_set_log(params, cmp_log, &options.verbose);
        code = run(&options, params);
    }
    kvc_params_destroy(params);
    return code;
}
