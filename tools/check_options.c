/* SPDX-License-Identifier: MIT
 * check_options.c: the command line of kvcheck, by argp. What can be refused before anything runs
 * is refused here. */
#include "check_options.h"

#include "options.h"

#include <argp.h>
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { KEY_SEED = 256, KEY_TIMEOUT, KEY_IN_PROCESS, KEY_LIST, KEY_PARAM, KEY_OUTPUT };

static const char doc[] =
    "Tests policies of a KV cache: whether a .so file keeps the contract of <kvc/policy.h>, "
    "whatever it is asked. It needs no model: it makes tiny random ones. Each test runs in a "
    "process of its own, so that a crash or a loop is a result like others.\n"
    "\n"
    "Examples:\n"
    "  kvcheck ./my.so\n"
    "  kvcheck ./my.so:size=64 ./other.so\n"
    "  kvcheck --test meaning/truncate --in-process ./my.so   (in a debugger)\n"
    "  kvcheck --list\n"
    "\v"
    "FILE.so may be followed by parameters, FILE.so:size=64:sinks=2, with which all tests run. "
    "Sessions have an n_ctx of 320, in few tests more, and texts are no longer: give small ones, "
    "since a window or a budget that is larger gives nothing up here.\n"
    "\n"
    "passed: keeps the contract. warned: works, but should be looked at. failed: breaks it. "
    "crashed: the process ended inside the test. skipped: there was nothing to test.\n"
    "\n"
    "Exit codes: 0 all passed, warned or skipped; 1 something failed or crashed; 2 the command "
    "line "
    "is wrong; 130 interrupted.";

static const struct argp_option option[] = {
    {0, 0, 0, 0, "What is tested:", 1},
    {"test", 't', "GROUP[/NAME]", 0, "only this group or test; may be given again", 0},
    {"param", KEY_PARAM, "KEY=VALUE", 0,
     "as if every FILE.so were followed by :KEY=VALUE; may be given again", 0},
    {"list", KEY_LIST, 0, 0, "print all tests and end", 0},
    {0, 0, 0, 0, "How:", 2},
    {"seed", KEY_SEED, "N", 0, "of texts, models and random values (default 1)", 0},
    {"timeout", KEY_TIMEOUT, "SECONDS", 0, "of each test (default 60)", 0},
    {"in-process", KEY_IN_PROCESS, 0, 0,
     "run the one test of --test in this process, without a time limit, for a debugger", 0},
    {0, 0, 0, 0, "Report:", 3},
    {"format", 'o', "table|json", 0, "of the report (default table)", 0},
    {"output", KEY_OUTPUT, "FILE", 0, "write it there, whole or not at all", 0},
    {"quiet", 'q', 0, 0, "say nothing of what passed", 0},
    {0, 0, 0, 0, 0, 0}};

static uint64_t number(struct argp_state *state, const char *name, const char *arg, uint64_t min,
                       uint64_t max) {
    char *end = NULL;
    errno = 0;
    const unsigned long long v = isdigit((unsigned char)arg[0]) ? strtoull(arg, &end, 10) : 0;
    if (end == NULL || *end != '\0' || errno != 0 || v < min || v > max) {
        argp_error(state, "--%s=%s: give a whole number from %llu to %llu", name, arg,
                   (unsigned long long)min, (unsigned long long)max);
    }
    return v;
}

static void *must(struct argp_state *state, void *p) {
    if (p == NULL) {
        argp_failure(state, 1, 0, "out of memory");
    }
    return p;
}

/* ---------------------------------------------------------------- files and tests */

/* Splits FILE.so:params at the first ':' behind the file's name. */
static void add_file(struct argp_state *state, chk_options *o, const char *arg) {
    char path[PATH_MAX];
    const char *slash = strrchr(arg, '/'), *params = strstr(slash != NULL ? slash : arg, ".so:");
    const size_t n = params != NULL ? (size_t)(params - arg) + 3 : strlen(arg);
    if (o->n_file == CHK_MAX_FILE) {
        argp_error(state, "more than %u files; test them in several runs", CHK_MAX_FILE);
    }
    char *given = must(state, strndup(arg, n));
    char *file = realpath(given, path) != NULL ? strdup(path) : NULL;
    if (file == NULL) {
        argp_error(state, "%s can't be read: %s", given, strerror(errno));
    }
    free(given);
    o->file[o->n_file] = must(state, file);
    o->params[o->n_file++] = must(state, strdup(params != NULL ? params + 4 : ""));
}

static bool matches(const char *select, const chk_test *t) {
    const size_t n = strlen(t->group);
    return strncmp(select, t->group, n) == 0 &&
           (select[n] == '\0' || (select[n] == '/' && strcmp(select + n + 1, t->name) == 0));
}

bool chk_options_selects(const chk_options *o, const chk_test *test) {
    bool found = o->n_select == 0;
    for (uint32_t i = 0; i < o->n_select; i++) {
        found |= matches(o->select[i], test);
    }
    return found;
}

static void add_select(struct argp_state *state, chk_options *o, const char *arg) {
    bool known = false;
    for (const chk_test *t = chk_tests; t->group != NULL; t++) {
        known |= matches(arg, t);
    }
    if (!known) {
        argp_error(state, "--test=%s: there is no such group or test; see --list", arg);
    }
    if (o->n_select == CHK_MAX_FILE) {
        argp_error(state, "--test: given more than %u times", CHK_MAX_FILE);
    }
    o->select[o->n_select++] = arg;
}

static void add_param(struct argp_state *state, chk_options *o, const char *arg) {
    const size_t n = strlen(o->param);
    if (strchr(arg, '=') == NULL || strpbrk(arg, ":+,") != NULL) {
        argp_error(state, "--param=%s: give KEY=VALUE", arg);
    }
    if (n + strlen(arg) + 2 > sizeof o->param) {
        argp_error(state, "--param: too many");
    }
    snprintf(o->param + n, sizeof o->param - n, "%s%s", n > 0 ? ":" : "", arg);
}

static void join_params(struct argp_state *state, chk_options *o) {
    for (uint32_t i = 0; o->param[0] != '\0' && i < o->n_file; i++) {
        const size_t cap = strlen(o->params[i]) + strlen(o->param) + 2;
        char *both = must(state, malloc(cap));
        snprintf(both, cap, "%s%s%s", o->params[i], o->params[i][0] != '\0' ? ":" : "", o->param);
        free(o->params[i]);
        o->params[i] = both;
    }
}

/* ---------------------------------------------------------------- all together */

static void check(struct argp_state *state, chk_options *o) {
    if (o->list) {
        return;
    }
    if (o->n_file == 0) {
        argp_error(state, "give the .so file of a policy");
    }
    if (o->in_process &&
        (o->n_file != 1 || o->n_select != 1 || strchr(o->select[0], '/') == NULL)) {
        argp_error(state, "--in-process runs one test of one file: give --test GROUP/NAME");
    }
    join_params(state, o);
}

static error_t parse_option(int key, char *arg, struct argp_state *state) {
    chk_options *o = state->input;
    switch (key) {
    case 't':
        add_select(state, o, arg);
        return 0;
    case KEY_PARAM:
        add_param(state, o, arg);
        return 0;
    case KEY_LIST:
        o->list = true;
        return 0;
    case KEY_SEED:
        o->seed = number(state, "seed", arg, 0, INT64_MAX);
        return 0;
    case KEY_TIMEOUT:
        o->timeout = (uint32_t)number(state, "timeout", arg, 1, 86400);
        return 0;
    case KEY_IN_PROCESS:
        o->in_process = true;
        return 0;
    case KEY_OUTPUT:
        o->output = arg;
        return 0;
    case 'q':
        o->quiet = true;
        return 0;
    case 'o':
        o->json = strcmp(arg, "json") == 0;
        if (!o->json && strcmp(arg, "table") != 0) {
            argp_error(state, "--format=%s: unknown, see --help for what may be given", arg);
        }
        return 0;
    case ARGP_KEY_ARG:
        add_file(state, o, arg);
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
    fprintf(out, "kvcheck %s\n", kvc_version());
}

void chk_options_parse(int argc, char **argv, chk_options *out) {
    static const struct argp parser = {option, parse_option, "FILE.so[:KEY=VALUE...]...", doc, NULL,
                                       NULL,   NULL};
    memset(out, 0, sizeof *out);
    out->seed = 1;
    out->timeout = 60;
    argp_err_exit_status = 2;
    argp_program_version_hook = print_version;
    if (cmp_option_parse(&parser, argc, argv, out) != 0) {
        fprintf(stderr, "kvcheck: out of memory\n");
        exit(1);
    }
}

void chk_options_free(chk_options *o) {
    for (uint32_t i = 0; i < o->n_file; i++) {
        free(o->file[i]);
        free(o->params[i]);
    }
}
