/* SPDX-License-Identifier: MIT
 * run_figures.c: figures of an answer and of the cache, as the session counts them. It computes
 * nothing. */
#include "run_figures.h"

#include "report.h"
#include "report_json.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIB        (1024.0 * 1024.0)
#define SPEC_SHORT 24u

void run_note(const char *format, ...) {
    char text[4096];
    va_list args;
    const bool terminal = isatty(STDERR_FILENO), dim = terminal && getenv("NO_COLOR") == NULL;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fputs(dim ? "\033[2m" : "", stderr);
    if (terminal && cmp_text_width(text) > cmp_text_columns()) {
        cmp_text_wrap(stderr, "", text, cmp_text_columns());
        fputs(dim ? "\033[0m" : "", stderr);
    } else {
        cmp_text_put(stderr, text, strlen(text));
        fputs(dim ? "\033[0m\n" : "\n", stderr);
    }
}

static kvc_session_stats stats_of(const run_job *job) {
    kvc_session_stats stats = {.struct_size = sizeof stats};
    kvc_session_get_stats(job->session, &stats);
    return stats;
}

/* Tokens a second behind the first; NaN for a single one. */
static double speed(const run_answer *a) {
    return a->token.n > 1 && a->rest_ns > 0 ? 1e9 * (double)(a->token.n - 1) / (double)a->rest_ns
                                            : (double)NAN;
}

/* The policies: as they were given, or their names alone when that is long. */
static const char *policy_of(const run_job *job, const kvc_session_stats *stats, char *buf,
                             size_t cap) {
    size_t n = 0;
    if (strlen(job->spec) <= SPEC_SHORT) {
        return job->spec;
    }
    for (uint32_t i = 0; i < stats->n_stage && n < cap; i++) {
        kvc_stage_stats stage = {.struct_size = sizeof stage};
        kvc_session_get_stage(job->session, i, &stage);
        n += (size_t)snprintf(buf + n, cap - n, "%s%s", i > 0 ? "+" : "", stage.name);
    }
    return buf;
}

void run_figures_line(const run_job *job, const run_answer *a) {
    const kvc_session_stats stats = stats_of(job);
    char rate[48] = "", disk[48] = "", policy[256] = "";
    if (!isnan(speed(a))) {
        snprintf(rate, sizeof rate, "%.*f tokens/s, ", speed(a) < 100 ? 1 : 0, speed(a));
    }
    if (stats.disk_bytes > 0) {
        snprintf(disk, sizeof disk, ", disk %.1f MiB", (double)stats.disk_bytes / MIB);
    }
    run_note("[%u + %zu tokens, first in %.2f s, %scache %.1f MiB%s (%s)]", a->n_prompt, a->token.n,
             1e-9 * (double)a->first_ns, rate, (double)stats.kv_bytes / MIB, disk,
             policy_of(job, &stats, policy, sizeof policy));
}

void run_figures_stats(const run_job *job) {
    const kvc_session_stats s = stats_of(job);
    run_note("policy   %s", kvc_session_spec(job->session));
    run_note("context  %u of %u tokens", run_held(job), s.n_ctx);
    run_note("cache    %.2f MiB, at most %.2f MiB so far; %.2f MiB on disk",
             (double)s.kv_bytes / MIB, (double)s.kv_peak_bytes / MIB, (double)s.disk_bytes / MIB);
    run_note("tokens   %llu computed, %llu of them again", (unsigned long long)s.n_computed,
             (unsigned long long)s.n_replayed);
    for (uint32_t i = 0; i < s.n_stage; i++) {
        kvc_stage_stats st = {.struct_size = sizeof st};
        if (kvc_session_get_stage(job->session, i, &st) == KVC_OK && st.n_evicted > 0) {
            run_note("%-8s %llu entries given up", st.name, (unsigned long long)st.n_evicted);
        }
    }
}

/* ---------------------------------------------------------------- JSON */

static json_t *token_array(const run_tokens *token) {
    json_t *list = json_array();
    for (size_t i = 0; list != NULL && i < token->n; i++) {
        if (json_array_append_new(list, json_integer(token->p[i])) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

int run_figures_json(FILE *out, const run_job *job, const run_answer *a, const char *text,
                     size_t n) {
    static const char *const end[] = {"model",   "length",      "stop",
                                      "context", "interrupted", "interrupted"};
    const kvc_session_stats s = stats_of(job);
    json_t *root =
        json_pack("{s:s, s:o, s:o, s:i, s:o, s:o, s:s, s:o, s:o, s:I, s:I, s:I}", "schema",
                  "kvrun/1", "model", cmp_json_model(job->o->model, &job->info), "policy",
                  cmp_json_text(kvc_session_spec(job->session)), "prompt_tokens", (int)a->n_prompt,
                  "text", json_stringn(text, n), "tokens", token_array(&a->token), "end",
                  end[a->end], "first_token_ms",
                  a->end == RUN_END_UNREAD ? json_null() : json_real(1e-6 * (double)a->first_ns),
                  "tokens_per_s", cmp_json_number(speed(a), 0), "kv_bytes", (json_int_t)s.kv_bytes,
                  "disk_bytes", (json_int_t)s.disk_bytes, "n_past", (json_int_t)run_held(job));
    if (root == NULL) {
        return -1;
    }
    const int failed = json_dumpf(root, out, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) != 0 ||
                       fputc('\n', out) == EOF;
    json_decref(root);
    return failed ? -1 : 0;
}
