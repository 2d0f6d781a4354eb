/* SPDX-License-Identifier: MIT
 * bench.c: `kvcompare bench` from its command line to its report: model, policies with the values
 * of --hot, random tokens, the run, the text. What is measured stands in bench_run.c. */
#include "bench.h"

#include "interrupt.h"
#include "options.h"
#include "outcome.h"
#include "progress.h"
#include "report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---------------------------------------------------------------- policies with --hot */

/* 1 when a policy of that name has a parameter `hot`. */
static int takes_hot(const void *user, const char *name, size_t n) {
    const kvc_policies *list = user;
    for (uint32_t i = 0; i < kvc_policies_count(list); i++) {
        kvc_policy_info info = {.struct_size = sizeof info};
        if (kvc_policies_get(list, i, &info) < 0 || strlen(info.name) != n ||
            memcmp(info.name, name, n) != 0) {
            continue;
        }
        for (uint32_t k = 0; k < info.n_param; k++) {
            const kvc_param *p = NULL;
            if (kvc_policies_param(list, i, k, &p) >= 0 && strcmp(p->name, "hot") == 0) {
                return 1;
            }
        }
    }
    return 0;
}

char *cmp_bench_with_hot(const char *spec, const char *value, size_t n,
                         int (*takes)(const void *user, const char *name, size_t n),
                         const void *user) {
    for (const char *stage = spec;;) {
        const size_t len = strcspn(stage, "+");
        const char *set = strstr(stage, ":hot=");
        const size_t before = (size_t)(stage - spec) + len;
        if (takes(user, stage, strcspn(stage, ":+")) && (set == NULL || set > stage + len)) {
            const size_t size = strlen(spec) + n + sizeof ":hot=";
            char *out = malloc(size);
            if (out != NULL) {
                snprintf(out, size, "%.*s:hot=%.*s%s", (int)before, spec, (int)n, value,
                         spec + before);
            }
            return out;
        }
        if (stage[len] == '\0') {
            return NULL;
        }
        stage += len + 1;
    }
}

/* Replaces spec i by one for each value of --hot; 1 when it takes them, negative: an exit code. */
static int repeat_spec(cmp_bench_options *o, const kvc_policies *list, char *spec) {
    int found = 0;
    for (const char *p = o->hot;; p++) {
        const size_t n = strcspn(p, ",");
        char *with = cmp_bench_with_hot(spec, p, n, takes_hot, list);
        if (with == NULL && found == 0) {
            with = strdup(spec);
            p = "";
        } else {
            found = 1;
            p += n;
        }
        if (with == NULL) {
            return -cmp_complain(CMP_EXIT_FAILED, "out of memory");
        }
        if (o->n_spec == CMP_MAX_POLICY) {
            free(with);
            return -cmp_complain(CMP_EXIT_USAGE,
                                 "--hot: more than %u policies in all; give fewer values",
                                 CMP_MAX_POLICY);
        }
        o->spec[o->n_spec++] = with;
        if (*p == '\0') {
            return found;
        }
    }
}

static int repeat_hot(cmp_bench_options *o, kvc_params *params) {
    char *spec[CMP_MAX_POLICY];
    const uint32_t n = o->n_spec;
    kvc_policies *list = NULL;
    int found = 0;
    int32_t rc = kvc_policies_open(params, &list);
    if (rc < 0) {
        return cmp_complain(cmp_exit_code(rc), "%s", kvc_params_error(params));
    }
    memcpy(spec, o->spec, sizeof spec);
    o->n_spec = 0;
    int code = 0;
    for (uint32_t i = 0; i < n; i++) {
        const int got = code == 0 ? repeat_spec(o, list, spec[i]) : 0;
        code = got < 0 ? -got : code;
        found |= got > 0;
        free(spec[i]);
    }
    kvc_policies_close(list);
    if (code == 0 && !found) {
        code = cmp_complain(CMP_EXIT_USAGE,
                            "--hot=%s: no policy of --policy has a parameter 'hot'; see "
                            "kvcompare --list",
                            o->hot);
    }
    return code;
}

/* ---------------------------------------------------------------- rows and tokens */

uint32_t cmp_bench_count_rows(const cmp_bench_options *o) {
    return o->n_spec * o->n_depth * ((o->n_prompt > 0) + (o->n_step > 0 ? o->n_count : 0));
}

static void set_row(cmp_bench_row *row, const char *spec, uint32_t test, uint32_t depth, uint32_t n,
                    uint32_t sessions, double *rate) {
    *row = (cmp_bench_row){.spec = spec,
                           .test = test,
                           .depth = depth,
                           .n = n,
                           .sessions = sessions,
                           .rate = rate,
                           .work = NAN,
                           .wait = NAN,
                           .median = NAN,
                           .min = NAN,
                           .max = NAN,
                           .share = NAN,
                           .ms = NAN,
                           .slope = NAN};
}

void cmp_bench_rows(cmp_bench *b, double *rate) {
    const cmp_bench_options *o = b->o;
    cmp_bench_row *row = b->row;
    for (uint32_t i = 0; i < o->n_spec; i++) {
        for (uint32_t k = 0; o->n_prompt > 0 && k < o->n_depth; k++, rate += o->rounds) {
            set_row(row++, o->spec[i], CMP_BENCH_PP, o->depth[k], o->n_prompt, 1, rate);
        }
        for (uint32_t c = 0; o->n_step > 0 && c < o->n_count; c++) {
            for (uint32_t k = 0; k < o->n_depth; k++, rate += o->rounds) {
                set_row(row++, o->spec[i], CMP_BENCH_TG, o->depth[k], o->n_step, o->count[c], rate);
            }
        }
    }
    b->n_row = (uint32_t)(row - b->row);
}

/* Tokens that mean nothing: speed doesn't depend on them. splitmix64. */
static void fill_tokens(int32_t *token, size_t n, uint32_t n_vocab, uint64_t seed) {
    for (size_t i = 0; i < n; i++) {
        seed += 0x9e3779b97f4a7c15u;
        uint64_t x = (seed ^ (seed >> 30)) * 0xbf58476d1ce4e5b9u;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
        token[i] = (int32_t)((x ^ (x >> 31)) % n_vocab);
    }
}

/* ---------------------------------------------------------------- run and report */

static int write_report(const cmp_bench *b, const cmp_machine *machine) {
    const cmp_bench_options *o = b->o;
    cmp_bytes text = {NULL, 0};
    FILE *stream = open_memstream(&text.p, &text.n);
    if (stream == NULL) {
        return cmp_complain(CMP_EXIT_FAILED, "out of memory for the report");
    }
    int failed = 0;
    switch (o->format) {
    case CMP_FORMAT_JSON:
        failed = cmp_bench_json(stream, b, machine) != 0;
        break;
    case CMP_FORMAT_CSV:
        cmp_bench_csv(stream, b);
        break;
    case CMP_FORMAT_MD:
        cmp_bench_md(stream, b, machine);
        break;
    default:
        cmp_bench_table(stream, b, machine, o->output == NULL ? cmp_text_columns() : CMP_WIDTH,
                        o->output == NULL && isatty(STDOUT_FILENO) && getenv("NO_COLOR") == NULL);
    }
    return cmp_put(stream, &text, failed, o->output);
}

static int bench(cmp_bench *b, const cmp_machine *machine) {
    const cmp_bench_options *o = b->o;
    const uint32_t n_row = cmp_bench_count_rows(o);
    const uint32_t more = o->n_step > o->n_prompt ? o->n_step : o->n_prompt;
    b->job.ctx = o->depth[o->n_depth - 1] + more + 1;
    const size_t n_token = (size_t)b->job.ctx + CMP_BENCH_MAX_SESSIONS;
    int32_t *token = malloc(n_token * sizeof *token);
    double *rate = calloc((size_t)n_row * o->rounds, sizeof *rate);
    b->row = calloc(n_row, sizeof *b->row);
    int code = 0;
    if (token == NULL || rate == NULL || b->row == NULL) {
        code = cmp_complain(CMP_EXIT_FAILED, "out of memory");
    } else {
        fill_tokens(token, n_token, b->info.n_vocab, o->seed);
        b->token = token;
        cmp_bench_rows(b, rate);
        cmp_limits_init(&b->limits);
        const int32_t rc = cmp_bench_run(b);
        cmp_progress_end();
        code = rc < 0 || cmp_interrupted() ? cmp_complain(cmp_exit_code(rc), "%s", b->job.error)
                                           : write_report(b, machine);
    }
    cmp_probe_close(b->probe);
    free(b->row);
    free(rate);
    free(token);
    return code;
}

static int open_and_bench(cmp_bench_options *o, kvc_params *params) {
    cmp_machine machine;
    cmp_machine_read(&machine);
    if (kvc_params_set_i64(params, "n_threads", (int64_t)o->threads) < 0 ||
        kvc_params_set_i64(params, "repack", o->no_repack == 0) < 0 ||
        kvc_params_set_i64(params, "seed", (int64_t)o->seed) < 0) {
        return cmp_complain(CMP_EXIT_USAGE, "%s", kvc_params_error(params));
    }
    int code = o->hot != NULL ? repeat_hot(o, params) : 0;
    if (code != 0) {
        return code;
    }
    kvc_model *model = NULL;
    int32_t rc = kvc_model_open(o->model, params, &model);
    if (rc < 0) {
        return cmp_complain(cmp_exit_code(rc), "%s", kvc_params_error(params));
    }
    cmp_bench b = {.o = o, .job = {.model = model, .params = params}};
    b.info.struct_size = sizeof b.info;
    rc = kvc_model_get_info(model, &b.info);
    code =
        rc < 0 ? cmp_complain(CMP_EXIT_FAILED, "%s", kvc_model_error(model)) : bench(&b, &machine);
    kvc_model_close(model);
    return code;
}

int cmp_bench_main(int argc, char **argv) {
    cmp_bench_options o;
    cmp_bench_options_parse(argc, argv, &o);
    int code = CMP_EXIT_FAILED;
    kvc_params *params = NULL;
    if (cmp_interrupt_start() != 0) {
        cmp_complain(CMP_EXIT_FAILED, "no thread can be started to listen for Ctrl-C");
    } else if (kvc_params_create(&params) < 0) {
        cmp_complain(CMP_EXIT_FAILED, "out of memory");
    } else {
        kvc_params_set_log(params, cmp_log, &o.verbose);
        code = open_and_bench(&o, params);
    }
    kvc_params_destroy(params);
    cmp_bench_options_free(&o);
    return code;
}
