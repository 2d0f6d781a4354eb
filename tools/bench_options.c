/* SPDX-License-Identifier: MIT
 * bench_options.c: the command line of `kvcompare bench`. What can be refused without a model is
 * refused here. */
#include "bench.h"
#include "options.h"

#include <argp.h>
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    KEY_SESSIONS = 256,
    KEY_ROUNDS,
    KEY_PP,
    KEY_HOT,
    KEY_THREADS,
    KEY_NO_REPACK,
    KEY_SEED,
    KEY_OUTPUT
};

static const char doc[] =
    "Times prefill and decode under KV cache policies at several depths of context, and holds each "
    "figure against the limits of this machine, which are measured in the same run.\n"
    "\n"
    "Examples:\n"
    "  kvcompare bench -m model.gguf -p full,quant8 -d 0,512,4096\n"
    "  kvcompare bench -m model.gguf -p full --pp 0 --sessions 1,8\n"
    "  kvcompare bench -m model.gguf -p quant8+offload --hot 16M,64M -o json\n"
    "\v"
    "A depth is the number of tokens that the cache holds when the clock starts. Decode is held "
    "against the bandwidth of memory: bytes that a step must read (weights and cache) per second. "
    "Prefill is held against the peak of 8-bit multiply-adds. A share of 100 % can't be beaten; "
    "docs/measuring.md has the formulas. Policies take turns in every round, so that a disturbance "
    "hits all of them: leave the machine alone, and look at min and max beside the median.\n"
    "\n"
    "LIST is separated by commas. Exit codes: 0 done, 1 failed, be it by a policy that breaks its "
    "contract, 2 the command line is wrong: an option, a policy that isn't there or a parameter of "
    "one, 130 interrupted.";

static const struct argp_option option[] = {
    {0, 0, 0, 0, "What is timed:", 1},
    {"model", 'm', "FILE", 0, "the model, a GGUF file", 0},
    {"policy", 'p', "LIST", 0, "the policies; may be given again (default full,quant8)", 0},
    {"depth", 'd', "LIST", 0, "tokens held before, at most 64 numbers (default 0,512,4096)", 0},
    {"steps", 'n', "N", 0, "decode steps of a run, 0: no decode (default 64)", 0},
    {"pp", KEY_PP, "N", 0, "tokens of a prompt, 0: no prefill (default 512)", 0},
    {"sessions", KEY_SESSIONS, "LIST", 0,
     "how many sessions decode together in one call, 1 to 64 each (default 1)", 0},
    {"hot", KEY_HOT, "LIST", 0,
     "repeat each policy that has a parameter 'hot' (offload) with these values of it", 0},
    {0, 0, 0, 0, "How:", 2},
    {"rounds", KEY_ROUNDS, "N", 0, "runs of each (default 3)", 0},
    {"threads", KEY_THREADS, "N", 0, "threads that compute (default 0: one per core)", 0},
    {"no-repack", KEY_NO_REPACK, 0, 0,
     "leave the weights as they lie in the file: less memory, the same results, slow", 0},
    {"seed", KEY_SEED, "N", 0, "of the tokens, which are random, and of policies (default 0)", 0},
    {"verbose", 'v', 0, 0, "show what policies log, not only their warnings", 0},
    {0, 0, 0, 0, "Report:", 3},
    {"format", 'o', "table|json|csv|md", 0, "of the report (default table)", 0},
    {"output", KEY_OUTPUT, "FILE", 0, "write it there, whole or not at all", 0},
    {0, 0, 0, 0, 0, 0}};

static int compare_u32(const void *a, const void *b) {
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

uint32_t cmp_bench_parse_list(const char *text, uint32_t min, uint32_t max, uint32_t *out) {
    uint32_t n = 0, kept = 0;
    for (const char *p = text;; p++) {
        char *end = NULL;
        errno = 0;
        const unsigned long long v = isdigit((unsigned char)*p) ? strtoull(p, &end, 10) : 0;
        if (end == NULL || (*end != ',' && *end != '\0') || errno != 0 || v < min || v > max ||
            n == CMP_BENCH_MAX_LIST) {
            return 0;
        }
        out[n++] = (uint32_t)v;
        p = end;
        if (*p == '\0') {
            break;
        }
    }
    qsort(out, n, sizeof *out, compare_u32);
    for (uint32_t i = 0; i < n; i++) {
        if (i == 0 || out[i] != out[kept - 1]) {
            out[kept++] = out[i];
        }
    }
    return kept;
}

static uint32_t list(struct argp_state *state, const char *name, const char *arg, uint32_t min,
                     uint32_t max, uint32_t *out) {
    const uint32_t n = cmp_bench_parse_list(arg, min, max, out);
    if (n == 0) {
        argp_error(state,
                   "--%s=%s: give whole numbers from %u to %u, at most %u, with commas between",
                   name, arg, min, max, CMP_BENCH_MAX_LIST);
    }
    return n;
}

static void check(struct argp_state *state, cmp_bench_options *o) {
    if (o->model == NULL) {
        argp_error(state, "give a model with --model");
    }
    if (o->n_spec == 0) {
        cmp_option_specs(state, "full,quant8", o->spec, &o->n_spec);
    }
    if (o->n_step == 0 && o->n_prompt == 0) {
        argp_error(state, "--steps=0 with --pp=0 leaves nothing to time: give one of them");
    }
}

static error_t parse_more(int key, char *arg, struct argp_state *state) {
    static const char *const format[] = {"table", "json", "csv", "md"};
    cmp_bench_options *o = state->input;
    switch (key) {
    case 'o':
        o->format = cmp_option_choice(state, "format", arg, format, 4);
        return 0;
    case KEY_OUTPUT:
        o->output = arg;
        return 0;
    case KEY_THREADS:
        o->threads = (uint32_t)cmp_option_number(state, "threads", arg, 0, CMP_MAX_THREADS);
        return 0;
    case KEY_NO_REPACK:
        o->no_repack = 1;
        return 0;
    case KEY_SEED:
        o->seed = cmp_option_number(state, "seed", arg, 0, INT64_MAX);
        return 0;
    case 'v':
        o->verbose = 1;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "'%s' is not an option", arg);
        return 0;
    case ARGP_KEY_END:
        check(state, o);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static error_t parse_option(int key, char *arg, struct argp_state *state) {
    cmp_bench_options *o = state->input;
    switch (key) {
    case 'm':
        o->model = arg;
        return 0;
    case 'p':
        cmp_option_specs(state, arg, o->spec, &o->n_spec);
        return 0;
    case 'd':
        o->n_depth = list(state, "depth", arg, 0, 1u << 24, o->depth);
        return 0;
    case 'n':
        o->n_step = (uint32_t)cmp_option_number(state, "steps", arg, 0, 1u << 20);
        return 0;
    case KEY_PP:
        o->n_prompt = (uint32_t)cmp_option_number(state, "pp", arg, 0, 1u << 20);
        return 0;
    case KEY_SESSIONS:
        o->n_count = list(state, "sessions", arg, 1, CMP_BENCH_MAX_SESSIONS, o->count);
        return 0;
    case KEY_HOT:
        o->hot = arg;
        return 0;
    case KEY_ROUNDS:
        o->rounds = (uint32_t)cmp_option_number(state, "rounds", arg, 1, 1000);
        return 0;
    default:
        return parse_more(key, arg, state);
    }
}

void cmp_bench_options_parse(int argc, char **argv, cmp_bench_options *out) {
    static const struct argp parser = {option, parse_option, NULL, doc, NULL, NULL, NULL};
    static char name[] = "kvcompare bench";
    memset(out, 0, sizeof *out);
    out->n_step = 64;
    out->n_prompt = 512;
    out->rounds = 3;
    out->n_depth = cmp_bench_parse_list("0,512,4096", 0, 4096, out->depth);
    out->n_count = cmp_bench_parse_list("1", 1, 1, out->count);
    argp_err_exit_status = 2;
    argv[0] = name;
    if (cmp_option_parse(&parser, argc, argv, out) != 0) {
        fprintf(stderr, "kvcompare: out of memory\n");
        exit(1);
    }
}

void cmp_bench_options_free(cmp_bench_options *o) {
    for (uint32_t i = 0; i < o->n_spec; i++) {
        free(o->spec[i]);
    }
}
