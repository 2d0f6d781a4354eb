/* SPDX-License-Identifier: MIT
 * options.c: the command line, by argp. All that can be refused without a model is refused here, so
 * that a mistake in the last option doesn't cost a run. */
#include "options.h"

#include "report.h"

#include "kvc/kvc.h"

#include <argp.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    KEY_BASELINE = 256,
    KEY_CTX,
    KEY_TOKENS,
    KEY_GENERATE,
    KEY_SPEED,
    KEY_ROUNDS,
    KEY_THREADS,
    KEY_NO_REPACK,
    KEY_SEED,
    KEY_COMPUTE,
    KEY_OUTPUT,
    KEY_FAIL,
    KEY_LIST
};

static const char doc[] =
    "Runs one model on one text under several KV cache policies and says what each costs and what "
    "it changes: speed, memory, divergence of the output.\n"
    "\n"
    "Examples:\n"
    "  kvcompare --list\n"
    "  kvcompare -m model.gguf -p full,window:size=256:sinks=4,quant8\n"
    "  kvcompare -m model.gguf -p quant8 -o json --fail-if 'quant8.kld.mean>1e-4'\n"
    "  kvcompare bench --help    speed at depth, beside the limits of the machine\n"
    "\v"
    "LIST is separated by commas. A policy may have parameters, window:size=256, and may be a "
    "stack "
    "of stages, window+quant8. The columns are explained in docs/measuring.md.\n"
    "\n"
    "A parameter that is a budget is given as tokens per head (h2o:budget=512; 2K is 2048), as a "
    "share of --ctx (25%, 12.5%), or as bytes of all that is packed (64KiB, 8MiB). Bytes are whole "
    "numbers in B, KiB, MiB or GiB; KB and MB are refused, since some read 1000 and some 1024.\n"
    "\n"
    "Exit codes: 0 done, 1 failed, be it by a policy that breaks its contract, 2 the command line "
    "is "
    "wrong: an option, a policy that isn't there or a parameter of one, 3 a gate of --fail-if was "
    "missed, 130 interrupted.";

static const struct argp_option option[] = {
    {0, 0, 0, 0, "What is compared:", 1},
    {"model", 'm', "FILE", 0, "the model, a GGUF file", 0},
    {"policy", 'p', "LIST", 0, "the policies; may be given again (default full,quant8)", 0},
    {"baseline", KEY_BASELINE, "SPEC", 0, "what they are held against (default full:type=f32)", 0},
    {"list", KEY_LIST, "json", OPTION_ARG_OPTIONAL,
     "print all policies that are found, with their parameters, and end", 0},
    {0, 0, 0, 0, "On what:", 2},
    {"file", 'f', "FILE", 0, "UTF-8 text, - is standard input (default: a built-in text)", 0},
    {"ctx", KEY_CTX, "N", 0, "tokens of prompt and scored tokens together (default 512)", 0},
    {"tokens", KEY_TOKENS, "N", 0, "scored one by one, the last N (default 256)", 0},
    {"generate", KEY_GENERATE, "N", 0,
     "greedy tokens in which to look for the first that differs, at most --tokens (default 64)", 0},
    {"speed-tokens", KEY_SPEED, "N", 0, "timed decode steps, 0: no timing (default 64)", 0},
    {"rounds", KEY_ROUNDS, "N", 0, "timed runs of each policy, 0: no timing (default 3)", 0},
    {0, 0, 0, 0, "How:", 3},
    {"threads", KEY_THREADS, "N", 0, "threads that compute (default 0: one per core)", 0},
    {"no-repack", KEY_NO_REPACK, 0, 0,
     "leave the weights as they lie in the file: less memory, the same results, slow", 0},
    {"seed", KEY_SEED, "N", 0, "seed of policies that use random numbers (default 0)", 0},
    {"compute", KEY_COMPUTE, "f32|int8", 0,
     "of the divergence pass; speed is always measured in int8 (default f32)", 0},
    {"verbose", 'v', 0, 0, "show what policies log, not only their warnings", 0},
    {0, 0, 0, 0, "Report:", 4},
    {"format", 'o', "table|json|csv|md", 0, "of the report (default table)", 0},
    {"output", KEY_OUTPUT, "FILE", 0, "write it there, whole or not at all", 0},
    {"fail-if", KEY_FAIL, "EXPR", 0,
     "end with 3 if EXPR holds: a policy of LIST, a figure, > >= < <= or ==, a number; may be "
     "given "
     "again. A figure that isn't known counts as missed",
     0},
    {0, 0, 0, 0, 0, 0}};

/* ---------------------------------------------------------------- messages */

/* While options are parsed stderr is memory: argp and getopt write what was typed as it is. */
static FILE *terminal;
static char *said;
static size_t n_said;

/* A sentence, in which any line end was typed, then argp's own lines on where to look. */
static void say(void) {
    static const char look[] = "\nTry `";
    if (terminal == NULL) {
        return;
    }
    fclose(stderr);
    stderr = terminal;
    terminal = NULL;
    size_t n = n_said;
    n -= n > 0 && said[n - 1] == '\n';
    size_t end = n;
    for (size_t i = 0; i + sizeof look <= n + 1; i++) {
        if (memcmp(said + i, look, sizeof look - 1) == 0) {
            end = i;
        }
    }
    if (n > 0) {
        cmp_text_put(stderr, said, end);
        fputc('\n', stderr);
    }
    for (size_t at = end + 1, len; at < n; at += len + 1) {
        for (len = 0; at + len < n && said[at + len] != '\n'; len++) {
        }
        cmp_text_put(stderr, said + at, len);
        fputc('\n', stderr);
    }
    free(said);
}

int cmp_option_parse(const struct argp *parser, int argc, char **argv, void *out) {
    FILE *memory = open_memstream(&said, &n_said);
    if (memory == NULL || atexit(say) != 0) {
        return ENOMEM;
    }
    terminal = stderr;
    stderr = memory;
    const int rc = argp_parse(parser, argc, argv, 0, NULL, out);
    say();
    return rc;
}

/* ---------------------------------------------------------------- values */

uint64_t cmp_option_number(struct argp_state *state, const char *name, const char *arg,
                           uint64_t min, uint64_t max) {
    char *end = NULL;
    errno = 0;
    unsigned long long v = isdigit((unsigned char)arg[0]) ? strtoull(arg, &end, 10) : 0;
    if (end == NULL || *end != '\0' || errno != 0 || v < min || v > max) {
        argp_error(state, "--%s=%s: give a whole number from %llu to %llu", name, arg,
                   (unsigned long long)min, (unsigned long long)max);
    }
    return v;
}

static uint32_t number32(struct argp_state *state, const char *name, const char *arg, uint32_t min,
                         uint32_t max) {
    return (uint32_t)cmp_option_number(state, name, arg, min, max);
}

int cmp_option_choice(struct argp_state *state, const char *name, const char *arg,
                      const char *const *word, int n) {
    for (int i = 0; i < n; i++) {
        if (strcmp(arg, word[i]) == 0) {
            return i;
        }
    }
    argp_error(state, "--%s=%s: unknown, see --help for what may be given", name, arg);
    return 0;
}

void cmp_option_specs(struct argp_state *state, const char *list, char **spec, uint32_t *n_spec) {
    for (const char *p = list;; p++) {
        size_t n = strcspn(p, ",");
        if (n == 0) {
            argp_error(state, "--policy=%s: a policy is missing before or after a comma", list);
        }
        if (*n_spec == CMP_MAX_POLICY) {
            argp_error(state, "--policy: more than %u policies; compare them in several runs",
                       CMP_MAX_POLICY);
        }
        spec[*n_spec] = strndup(p, n);
        if (spec[*n_spec] == NULL) {
            argp_failure(state, 1, 0, "out of memory");
        }
        (*n_spec)++;
        p += n;
        if (*p == '\0') {
            return;
        }
    }
}

static void check(struct argp_state *state, cmp_options *o) {
    if (o->list != CMP_LIST_NONE) {
        return;
    }
    if (o->model == NULL) {
        argp_error(state, "give a model with --model");
    }
    if (o->n_spec == 0) {
        cmp_option_specs(state, "full,quant8", o->spec, &o->n_spec);
    }
    if (o->tokens >= o->ctx) {
        argp_error(state,
                   "--tokens=%u leaves no prompt in --ctx=%u: give fewer tokens or more context",
                   o->tokens, o->ctx);
    }
    for (uint32_t i = 0; i < o->n_gate; i++) {
        char why[1024];
        if (cmp_gate_parse(o->gate_text[i], (const char *const *)o->spec, o->n_spec, &o->gate[i],
                           why, sizeof why) != 0) {
            argp_error(state, "%s", why);
        }
    }
}

static error_t parse_report(int key, char *arg, struct argp_state *state) {
    static const char *const format[] = {"table", "json", "csv", "md"};
    static const char *const list[] = {"text", "json"};
    cmp_options *o = state->input;
    switch (key) {
    case 'o':
        o->format = cmp_option_choice(state, "format", arg, format, 4);
        return 0;
    case KEY_OUTPUT:
        o->output = arg;
        return 0;
    case KEY_FAIL:
        if (o->n_gate == CMP_MAX_GATE) {
            argp_error(state, "--fail-if: more than %u gates", CMP_MAX_GATE);
        }
        o->gate_text[o->n_gate++] = arg;
        return 0;
    case KEY_LIST:
        o->list = arg == NULL ? CMP_LIST_TEXT
                              : CMP_LIST_TEXT + cmp_option_choice(state, "list", arg, list, 2);
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
    static const char *const compute[] = {"f32", "int8"};
    cmp_options *o = state->input;
    switch (key) {
    case 'm':
        o->model = arg;
        return 0;
    case 'v':
        o->verbose = 1;
        return 0;
    case 'p':
        cmp_option_specs(state, arg, o->spec, &o->n_spec);
        return 0;
    case 'f':
        o->file = arg;
        return 0;
    case KEY_BASELINE:
        o->baseline = arg;
        return 0;
    case KEY_CTX:
        o->ctx = number32(state, "ctx", arg, 2, 1u << 24);
        return 0;
    case KEY_TOKENS:
        o->tokens = number32(state, "tokens", arg, 1, 1u << 24);
        return 0;
    case KEY_GENERATE:
        o->generate = number32(state, "generate", arg, 0, 1u << 24);
        return 0;
    case KEY_SPEED:
        o->speed_tokens = number32(state, "speed-tokens", arg, 0, 1u << 24);
        return 0;
    case KEY_ROUNDS:
        o->rounds = number32(state, "rounds", arg, 0, 1000);
        return 0;
    case KEY_THREADS:
        o->threads = number32(state, "threads", arg, 0, CMP_MAX_THREADS);
        return 0;
    case KEY_NO_REPACK:
        o->no_repack = 1;
        return 0;
    case KEY_SEED:
        o->seed = cmp_option_number(state, "seed", arg, 0, INT64_MAX);
        return 0;
    case KEY_COMPUTE:
        o->compute = compute[cmp_option_choice(state, "compute", arg, compute, 2)];
        return 0;
    default:
        return parse_report(key, arg, state);
    }
}

static void print_version(FILE *out, struct argp_state *state) {
    (void)state;
    fprintf(out, "kvcompare %s\n", kvc_version());
}

void cmp_options_parse(int argc, char **argv, cmp_options *out) {
    static const struct argp parser = {option, parse_option, NULL, doc, NULL, NULL, NULL};
    memset(out, 0, sizeof *out);
    out->baseline = "full:type=f32";
    out->compute = "f32";
    out->ctx = 512;
    out->tokens = 256;
    out->generate = 64;
    out->speed_tokens = 64;
    out->rounds = 3;
    argp_err_exit_status = 2;
    argp_program_version_hook = print_version;
    /* Everything is refused inside by argp_error(); what is left is memory. */
    if (cmp_option_parse(&parser, argc, argv, out) != 0) {
        fprintf(stderr, "kvcompare: out of memory\n");
        exit(1);
    }
    out->generate = out->generate < out->tokens ? out->generate : out->tokens;
}

void cmp_options_free(cmp_options *o) {
    for (uint32_t i = 0; i < o->n_spec; i++) {
        free(o->spec[i]);
    }
}
