/* SPDX-License-Identifier: MIT
 * run_options.c: the command line of kvrun, by argp. What can be refused without a model is refused
 * here. Values that the library checks go to it as they were written. */
#include "run_options.h"

#include "options.h"
#include "outcome.h"

#include <argp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    KEY_RAW = 256,
    KEY_SYSTEM,
    KEY_TEMPLATE,
    KEY_STOP,
    KEY_TEMP,
    KEY_TOP_K,
    KEY_TOP_P,
    KEY_MIN_P,
    KEY_SEED,
    KEY_POLICY,
    KEY_CTX,
    KEY_THREADS,
    KEY_COMPUTE,
    KEY_SESSION
};

static const char doc[] =
    "Runs a model: answers one prompt, or chats in a terminal. What the cache keeps of the text is "
    "decided by --policy.\n"
    "\n"
    "Examples:\n"
    "  kvrun -m model.gguf\n"
    "  kvrun -m model.gguf -p 'Why is the sky blue?' --temp 0.7 --policy quant8\n"
    "  kvrun -m model.gguf --session trip.kvc --policy window:size=1024+quant8\n"
    "  kvrun -m model.gguf --raw -n 100 < beginning.txt\n"
    "\v"
    "The prompt is that of -p or -f, else standard input when that isn't a terminal; without one "
    "kvrun chats. It is put into the model's chat template; with --raw the model goes on with the "
    "text itself, in which words such as <|im_end|> are special tokens. A text's last line end is "
    "left out. The answer goes to standard output, all else to standard error.\n"
    "\n"
    "SPEC is a policy, quant8, with parameters, window:size=256, or a stack, window+quant8; "
    "kvcompare --list shows what there is. With --session, policy, context and way to compute are "
    "those of the saved session; others that are given must be the same.\n"
    "\n"
    "Ctrl-C ends an answer. At the chat's prompt it clears the line, Ctrl-D or /exit ends; /help "
    "lists the rest.\n"
    "\n"
    "Exit codes: 0 done, 1 failed (a full context included), 2 the command line is wrong: an "
    "option, a file or a policy that isn't there, a template; 130 interrupted.";

static const struct argp_option option[] = {
    {0, 0, 0, 0, "What is answered:", 1},
    {"model", 'm', "FILE", 0, "the model, a GGUF file", 0},
    {"prompt", 'p', "TEXT", 0, "answer it and end", 0},
    {"file", 'f', "FILE", 0, "the same with a file's text; - is standard input", 0},
    {"system", KEY_SYSTEM, "TEXT", 0, "system text, before the first message", 0},
    {"chat-template", KEY_TEMPLATE, "NAME", 0,
     "not the file's template but this one: chatml, llama2, llama3, gemma, mistral or zephyr", 0},
    {"raw", KEY_RAW, 0, 0, "no template: go on with the prompt's text", 0},
    {"no-chat", KEY_RAW, 0, OPTION_ALIAS, 0, 0},
    {0, 0, 0, 0, "How far:", 2},
    {"predict", 'n', "N", 0, "at most N tokens an answer (default: until the model ends it)", 0},
    {"stop", KEY_STOP, "TEXT", 0, "end the answer where TEXT would begin; may be given again", 0},
    {0, 0, 0, 0, "Which token:", 3},
    {"temp", KEY_TEMP, "X", 0, "temperature (default 0: always the likeliest token)", 0},
    {"top-k", KEY_TOP_K, "N", 0, "of the N likeliest (default 0: all)", 0},
    {"top-p", KEY_TOP_P, "X", 0, "of the likeliest that have X together (default 1)", 0},
    {"min-p", KEY_MIN_P, "X", 0, "of those that have X times the likeliest (default 0)", 0},
    {"seed", KEY_SEED, "N", 0,
     "of random numbers (default 0); the same seed gives the same answers", 0},
    {0, 0, 0, 0, "The cache:", 4},
    {"policy", KEY_POLICY, "SPEC", 0, "the KV cache policy (default full)", 0},
    {"session", KEY_SESSION, "FILE", 0,
     "go on with the conversation in FILE if it is there; at the end save to it", 0},
    {"ctx", KEY_CTX, "N", 0, "room for N tokens (default: the model's, at most 8192)", 0},
    {0, 0, 0, 0, "How:", 5},
    {"threads", KEY_THREADS, "N", 0, "threads that compute (default 0: one per core)", 0},
    {"compute", KEY_COMPUTE, "int8|f32", 0, "products (default int8; f32 is exact and slower)", 0},
    {"format", 'o', "text|json", 0, "of an answer to a prompt (default text)", 0},
    {"quiet", 'q', 0, 0, "no head, no last line with figures", 0},
    {"verbose", 'v', 0, 0, "show what policies log, not only their warnings", 0},
    {0, 0, 0, 0, 0, 0}};

static void check(struct argp_state *state, const run_options *o) {
    if (o->model == NULL) {
        argp_error(state, "give a model with --model");
    }
    if (o->prompt != NULL && o->file != NULL) {
        argp_error(state, "--prompt and --file are both given: one prompt is answered");
    }
    if (o->raw && o->system != NULL) {
        argp_error(state, "--raw has no place for --system: put the text into the prompt");
    }
    if (o->raw && o->chat_template != NULL) {
        argp_error(state, "--raw uses no template: leave out --raw or --chat-template");
    }
}

static void add_stop(struct argp_state *state, run_options *o, const char *arg) {
    if (arg[0] == '\0') {
        argp_error(state, "--stop: the text is empty");
    }
    if (o->n_stop == RUN_MAX_STOP) {
        argp_error(state, "--stop: given more than %u times", RUN_MAX_STOP);
    }
    o->stop[o->n_stop++] = arg;
}

/* Options that only keep their text. */
static const char **text_of(run_options *o, int key) {
    switch (key) {
    case 'm':
        return &o->model;
    case 'p':
        return &o->prompt;
    case 'f':
        return &o->file;
    case KEY_SYSTEM:
        return &o->system;
    case KEY_TEMPLATE:
        return &o->chat_template;
    case KEY_SESSION:
        return &o->session;
    case KEY_POLICY:
        return &o->policy;
    case KEY_TEMP:
        return &o->temperature;
    case KEY_TOP_K:
        return &o->top_k;
    case KEY_TOP_P:
        return &o->top_p;
    case KEY_MIN_P:
        return &o->min_p;
    default:
        return NULL;
    }
}

static error_t parse_option(int key, char *arg, struct argp_state *state) {
    static const char *const compute[] = {"int8", "f32"}, *const format[] = {"text", "json"};
    run_options *o = state->input;
    const char **text = text_of(o, key);
    if (text != NULL) {
        *text = arg;
        return 0;
    }
    switch (key) {
    case 'n':
        o->predict = (uint32_t)cmp_option_number(state, "predict", arg, 1, 1u << 24);
        return 0;
    case 'o':
        o->json = cmp_option_choice(state, "format", arg, format, 2) == 1;
        return 0;
    case 'q':
        o->quiet = true;
        return 0;
    case 'v':
        o->verbose = 1;
        return 0;
    case KEY_RAW:
        o->raw = true;
        return 0;
    case KEY_STOP:
        add_stop(state, o, arg);
        return 0;
    case KEY_SEED:
        o->seed = cmp_option_number(state, "seed", arg, 0, INT64_MAX);
        return 0;
    case KEY_CTX:
        o->ctx = (uint32_t)cmp_option_number(state, "ctx", arg, 2, 1u << 20);
        return 0;
    case KEY_THREADS:
        o->threads = (uint32_t)cmp_option_number(state, "threads", arg, 0, CMP_MAX_THREADS);
        return 0;
    case KEY_COMPUTE:
        o->compute = compute[cmp_option_choice(state, "compute", arg, compute, 2)];
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "'%s' is not an option; a prompt is given with --prompt", arg);
        return 0;
    case ARGP_KEY_END:
        check(state, o);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static void print_version(FILE *out, struct argp_state *state) {
    (void)state;
    fprintf(out, "kvrun %s\n", kvc_version());
}

void run_options_parse(int argc, char **argv, run_options *out) {
    static const struct argp parser = {option, parse_option, NULL, doc, NULL, NULL, NULL};
    memset(out, 0, sizeof *out);
    argp_err_exit_status = 2;
    argp_program_version_hook = print_version;
    if (cmp_option_parse(&parser, argc, argv, out) != 0) {
        fprintf(stderr, "kvrun: out of memory\n");
        exit(1);
    }
}

int run_options_apply(const run_options *o, kvc_params *params) {
    const struct {
        const char *option, *name, *value;
    } text[] = {{"temp", "temperature", o->temperature},
                {"top-k", "top_k", o->top_k},
                {"top-p", "top_p", o->top_p},
                {"min-p", "min_p", o->min_p},
                {"compute", "compute", o->compute}};
    for (size_t i = 0; i < sizeof text / sizeof *text; i++) {
        if (text[i].value != NULL && kvc_params_set_str(params, text[i].name, text[i].value) < 0) {
            return cmp_complain(CMP_EXIT_USAGE, "--%s: %s", text[i].option,
                                kvc_params_error(params));
        }
    }
    if (kvc_params_set_i64(params, "n_threads", (int64_t)o->threads) < 0 ||
        kvc_params_set_i64(params, "n_ctx", (int64_t)o->ctx) < 0 ||
        kvc_params_set_i64(params, "seed", (int64_t)o->seed) < 0) {
        return cmp_complain(CMP_EXIT_USAGE, "%s", kvc_params_error(params));
    }
    return 0;
}
