/* SPDX-License-Identifier: MIT
 * kvcompare.c: compares KV cache policies; `bench` is a subcommand of its own (bench.h). Options,
 * text, model, the two passes, the report, the gates: in this order, each its own file, put
 * together here. It uses the public API alone. */
#include "bench.h"
#include "input.h"
#include "interrupt.h"
#include "measure.h"
#include "options.h"
#include "outcome.h"
#include "policy_list.h"
#include "progress.h"
#include "report.h"
#include "text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---------------------------------------------------------------- text */

static int read_builtin(cmp_bytes *out) {
    size_t n = 0;
    for (size_t i = 0; cmp_text[i] != NULL; i++) {
        n += strlen(cmp_text[i]);
    }
    out->p = malloc(n + 1);
    if (out->p == NULL) {
        return cmp_complain(CMP_EXIT_FAILED, "out of memory");
    }
    for (size_t i = 0; cmp_text[i] != NULL; i++) {
        size_t len = strlen(cmp_text[i]);
        memcpy(out->p + out->n, cmp_text[i], len);
        out->n += len;
    }
    return 0;
}

static int read_text(const char *path, cmp_bytes *out) {
    return path != NULL ? cmp_input_read(path, out) : read_builtin(out);
}

/* The first ctx tokens of the text; *out is the caller's to free. */
static int tokenize(const cmp_options *o, kvc_model *model, int32_t **out) {
    cmp_bytes text = {NULL, 0};
    int code = read_text(o->file, &text);
    size_t n = 0;
    int32_t *token = malloc((text.n + 8) * sizeof *token);
    if (code == 0 && token == NULL) {
        code = cmp_complain(CMP_EXIT_FAILED, "out of memory");
    }
    if (code == 0) {
        int32_t rc = kvc_model_tokenize(model, text.p, text.n, KVC_TEXT_BOS, token, text.n + 8, &n);
        if (rc < 0) {
            code = cmp_complain(cmp_exit_code(rc), "%s: %s", o->file != NULL ? o->file : "the text",
                                kvc_model_error(model));
        } else if (n < o->ctx && o->file == NULL) {
            code =
                cmp_complain(CMP_EXIT_USAGE,
                             "--ctx=%u needs more than the %zu tokens of the built-in text: give a "
                             "longer text with --file, or a smaller --ctx",
                             o->ctx, n);
        } else if (n < o->ctx) {
            code = cmp_complain(
                CMP_EXIT_USAGE,
                "--ctx=%u needs more than the %zu tokens of %s: give a longer text, or "
                "a smaller --ctx",
                o->ctx, n, o->file);
        }
    }
    free(text.p);
    if (code != 0) {
        free(token);
        token = NULL;
    }
    *out = token;
    return code;
}

/* ---------------------------------------------------------------- report */

static int write_report(const cmp_options *o, const cmp_report *r) {
    cmp_bytes text = {NULL, 0};
    FILE *stream = open_memstream(&text.p, &text.n);
    if (stream == NULL) {
        return cmp_complain(CMP_EXIT_FAILED, "out of memory for the report");
    }
    int failed = 0;
    switch (o->format) {
    case CMP_FORMAT_JSON:
        failed = cmp_report_json(stream, r) != 0;
        break;
    case CMP_FORMAT_CSV:
        cmp_report_csv(stream, r);
        break;
    case CMP_FORMAT_MD:
        cmp_report_md(stream, r);
        break;
    default:
        cmp_report_table(stream, r, o->output == NULL ? cmp_text_columns() : CMP_WIDTH,
                         o->output == NULL && isatty(STDOUT_FILENO) && getenv("NO_COLOR") == NULL);
    }
    return cmp_put(stream, &text, failed, o->output);
}

static int list_policies(const cmp_options *o, kvc_params *params) {
    kvc_policies *list = NULL;
    int32_t rc = kvc_policies_open(params, &list);
    if (rc < 0) {
        return cmp_complain(cmp_exit_code(rc), "%s", kvc_params_error(params));
    }
    cmp_bytes text = {NULL, 0};
    FILE *stream = open_memstream(&text.p, &text.n);
    int code = CMP_EXIT_FAILED;
    if (stream == NULL) {
        cmp_complain(CMP_EXIT_FAILED, "out of memory for the list");
    } else {
        int failed = 0;
        if (o->list == CMP_LIST_JSON) {
            failed = cmp_list_json(stream, list) != 0;
        } else {
            cmp_list_text(stream, list, o->output == NULL ? cmp_text_columns() : CMP_WIDTH);
        }
        code = cmp_put(stream, &text, failed, o->output);
    }
    kvc_policies_close(list);
    return code;
}

/* ---------------------------------------------------------------- the run */

/* A policy whose logits are no numbers gives figures that are unknown; that is a failure, not a
 * result. */
static int check_finite(const cmp_job *job) {
    int code = 0;
    for (uint32_t k = 0; k < job->n_row; k++) {
        const cmp_row *row = &job->row[k];
        if (row->v[CMP_SCORED] > 0 && isnan(row->v[CMP_KLD_MEAN])) {
            code = cmp_complain(
                CMP_EXIT_FAILED,
                "%s: its logits are not finite, so nothing can be said of its divergence: the "
                "policy, or the model, is broken",
                row->spec);
        }
    }
    return code;
}

static int judge(const cmp_options *o, const cmp_job *job) {
    int code = 0;
    for (uint32_t i = 0; i < o->n_gate; i++) {
        for (uint32_t k = 0; k < job->n_row; k++) {
            char why[1024];
            if (o->gate[i].row[k] && cmp_gate_missed(&o->gate[i], &job->row[k], why, sizeof why)) {
                code = cmp_complain(CMP_EXIT_GATE, "%s", why);
            }
        }
    }
    return code;
}

static int measure_and_report(const cmp_options *o, cmp_job *job, const kvc_model_info *info,
                              const cmp_machine *machine) {
    int32_t rc = cmp_measure_divergence(job);
    if (rc >= 0) {
        rc = cmp_measure_speed(job);
    }
    cmp_progress_end();
    if (rc < 0 || cmp_interrupted()) {
        return cmp_complain(cmp_exit_code(rc), "%s", job->error);
    }
    cmp_report report = {.job = job,
                         .machine = machine,
                         .model = info,
                         .model_path = o->model,
                         .text = o->file != NULL ? o->file : "built-in",
                         .version = kvc_version(),
                         .level = kvc_cpu_level(),
                         .seed = o->seed,
                         .no_repack = o->no_repack};
    int code = write_report(o, &report);
    code = code != 0 ? code : check_finite(job);
    return code != 0 ? code : judge(o, job);
}

static int compare(const cmp_options *o, kvc_params *params, kvc_model *model,
                   const cmp_machine *machine) {
    kvc_model_info info = {.struct_size = sizeof info};
    int32_t rc = kvc_model_get_info(model, &info);
    if (rc < 0) {
        return cmp_complain(CMP_EXIT_FAILED, "%s", kvc_model_error(model));
    }
    int32_t *token = NULL;
    int code = tokenize(o, model, &token);
    cmp_row *row = calloc(o->n_spec, sizeof *row);
    if (code == 0 && row == NULL) {
        code = cmp_complain(CMP_EXIT_FAILED, "out of memory");
    }
    if (code == 0) {
        for (uint32_t i = 0; i < o->n_spec; i++) {
            cmp_row_init(&row[i], o->spec[i]);
        }
        cmp_job job = {.model = model,
                       .params = params,
                       .n_vocab = info.n_vocab,
                       .eos = info.token_eos,
                       .eot = info.token_eot,
                       .token = token,
                       .ctx = o->ctx,
                       .n_score = o->tokens,
                       .n_greedy = o->generate,
                       .n_step = o->speed_tokens,
                       .n_round = o->rounds,
                       .compute = o->compute,
                       .baseline = o->baseline,
                       .n_row = o->n_spec,
                       .row = row};
        code = measure_and_report(o, &job, &info, machine);
    }
    free(row);
    free(token);
    return code;
}

static int run(const cmp_options *o, kvc_params *params) {
    if (o->list != CMP_LIST_NONE) {
        return list_policies(o, params);
    }
    cmp_machine machine;
    cmp_machine_read(&machine);
    if (kvc_params_set_i64(params, "n_threads", (int64_t)o->threads) < 0 ||
        kvc_params_set_i64(params, "repack", o->no_repack == 0) < 0 ||
        kvc_params_set_i64(params, "seed", (int64_t)o->seed) < 0) {
        return cmp_complain(CMP_EXIT_USAGE, "%s", kvc_params_error(params));
    }
    kvc_model *model = NULL;
    int32_t rc = kvc_model_open(o->model, params, &model);
    if (rc < 0) {
        return cmp_complain(cmp_exit_code(rc), "%s", kvc_params_error(params));
    }
    int code = compare(o, params, model, &machine);
    kvc_model_close(model);
    return code;
}

int main(int argc, char **argv) {
    cmp_streams_hold();
    if (argc > 1 && strcmp(argv[1], "bench") == 0) {
        return cmp_bench_main(argc - 1, argv + 1);
    }
    cmp_options options;
    cmp_options_parse(argc, argv, &options);
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
    cmp_options_free(&options);
    return code;
}
