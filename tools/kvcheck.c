/* SPDX-License-Identifier: MIT
 * kvcheck.c: tests policies. For each file: the tests of the file, then those of each policy that
 * it holds, then the report. The tests are in check_GROUP.c, each run in a process of its own by
 * check_run.c. It uses the public API alone. */
#include "check_options.h"
#include "check_report.h"
#include "check_run.h"
#include "outcome.h"
#include "progress.h"
#include "report.h"

#include <errno.h>
#include <ftw.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { EXIT_BROKEN = 1, EXIT_INTERRUPTED = 130 };

/* What is needed while tests run. */
typedef struct job {
    const chk_options *o;
    chk_style style;
    FILE *out;        /* where lines go as they come; NULL for JSON */
    const char *path; /* the file */
    const char *params;
    uint32_t done, total;
} job;

static volatile sig_atomic_t interrupted;

/* The child's group is its own, so the terminal doesn't end it. */
static void on_signal(int sig) {
    (void)sig;
    interrupted = 1;
    if (chk_run_pid > 0) {
        (void)kill(-chk_run_pid, SIGKILL);
    }
}

/* ---------------------------------------------------------------- a directory for files of tests
 */

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw) {
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

static void remove_tree(const char *dir) {
    (void)nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* In memory where there is such a place: saved sessions are many and small. */
static bool make_dir(char *dir, size_t cap) {
    const char *given = getenv("TMPDIR");
    const char *place[] = {given != NULL ? given : "/dev/shm", "/tmp"};
    for (size_t i = 0; i < 2; i++) {
        snprintf(dir, cap, "%s/kvcheck-XXXXXX", place[i]);
        if (mkdtemp(dir) != NULL) {
            return true;
        }
    }
    fprintf(stderr, "kvcheck: no directory for files can be made: %s; set TMPDIR\n",
            strerror(errno));
    return false;
}

/* ---------------------------------------------------------------- tests of one part */

static bool add_result(chk_part *part, const chk_result *r) {
    chk_result *grown = realloc(part->result, (part->n + 1) * sizeof *grown);
    if (grown == NULL) {
        return false;
    }
    part->result = grown;
    part->result[part->n++] = *r;
    return true;
}

static bool bad(const chk_result *r) {
    return r->outcome == CHK_FAILED || r->outcome == CHK_CRASHED;
}

static bool is(const chk_test *t, const char *group, const char *name) {
    return strcmp(t->group, group) == 0 && strcmp(t->name, name) == 0;
}

/* What rests on a test that failed isn't run: it would fail for the same reason. */
static const char *rests_on(const chk_test *t) {
    static const char *const base[][3] = {{"file", "elf", "file/elf failed"},
                                          {"file", "load", "file/load failed"},
                                          {"parameters", "default", "parameters/default failed"},
                                          {"meaning", "runs", "meaning/runs failed"}};
    for (size_t i = 0; i < sizeof base / sizeof *base; i++) {
        if (is(t, base[i][0], base[i][1])) {
            return base[i][2];
        }
    }
    return NULL;
}

static bool run_one(job *j, const char *name, const chk_test *t, const char *why_not,
                    chk_part *part) {
    chk_result r;
    char dir[4096];
    bool good;
    cmp_progress(t->name, j->done++, j->total);
    if (why_not != NULL) {
        good = chk_run_skip(t, why_not, &r);
    } else {
        if (!make_dir(dir, sizeof dir)) {
            return false;
        }
        const chk_target target = {.path = j->path,
                                   .name = name,
                                   .params = j->params,
                                   .dir = dir,
                                   .seed = j->o->seed,
                                   .timeout = j->o->timeout,
                                   .in_process = j->o->in_process};
        good = chk_run(&target, t, &r);
        remove_tree(dir);
    }
    cmp_progress_end();
    if (!good || !add_result(part, &r)) {
        return false;
    }
    if (j->out != NULL && !interrupted) {
        chk_report_line(j->out, j->style, &r);
        if (fflush(j->out) != 0) {
            return false;
        }
    }
    return true;
}

static bool is_file_test(const chk_test *t) {
    return strcmp(t->group, "file") == 0;
}

/* Whether any test of policies was asked for. */
static bool wants_policies(const chk_options *o) {
    bool found = false;
    for (const chk_test *t = chk_tests; t->group != NULL; t++) {
        found |= !is_file_test(t) && chk_options_selects(o, t);
    }
    return found;
}

/* Runs the tests of the file (name NULL) or of one of its policies. file/table says which policies
 * there are, so it is run when it wasn't asked for too, and shown when it failed. */
static bool run_part(job *j, const char *name, chk_part *part) {
    const char *why_not = NULL;
    part->name = name;
    for (const chk_test *t = chk_tests; t->group != NULL && !interrupted; t++) {
        const bool silent =
            is(t, "file", "table") && !chk_options_selects(j->o, t) && wants_policies(j->o);
        if (is_file_test(t) != (name == NULL) || (!chk_options_selects(j->o, t) && !silent)) {
            continue;
        }
        FILE *out = j->out;
        j->out = silent ? NULL : out;
        const bool good = run_one(j, name, t, why_not, part);
        j->out = out;
        if (!good) {
            return false;
        }
        chk_result *r = &part->result[part->n - 1];
        r->hidden = silent && !bad(r);
        if (silent && !r->hidden && out != NULL) {
            chk_report_line(out, j->style, r);
        }
        if (why_not == NULL && bad(r)) {
            why_not = rests_on(t);
        }
    }
    return true;
}

/* ---------------------------------------------------------------- one file */

/* Names of the sound policies that file/table found, as JSON that the caller frees. */
static json_t *policies_of(const chk_part *file) {
    json_t *names = json_array();
    for (uint32_t i = 0; i < file->n; i++) {
        const char *text = file->result[i].table;
        json_t *root = text != NULL ? json_loads(text, 0, NULL) : NULL, *policy;
        size_t k;
        json_array_foreach(json_object_get(root, "policies"), k, policy) {
            if (!json_is_true(json_object_get(policy, "broken"))) {
                json_array_append(names, json_object_get(policy, "name"));
            }
        }
        json_decref(root);
    }
    return names;
}

static bool run_policies(job *j, json_t *names, chk_book *book) {
    for (size_t i = 0; i < json_array_size(names) && !interrupted; i++) {
        const char *name = json_string_value(json_array_get(names, i));
        char *copy = name != NULL ? strdup(name) : NULL;
        if (copy == NULL) {
            return false;
        }
        if (j->out != NULL && json_array_size(names) > 1) {
            chk_report_head(j->out, j->style, j->path, j->params, copy, j->o->seed);
        }
        const bool good = run_part(j, copy, &book->part[book->n_part++]);
        if (!good) {
            return false;
        }
    }
    return true;
}

/* Whether the file could be loaded, for all that its tests say. */
static bool usable(const chk_part *file) {
    for (uint32_t i = 0; i < file->n; i++) {
        const chk_test *t = file->result[i].test;
        if (bad(&file->result[i]) && (rests_on(t) != NULL)) {
            return false;
        }
    }
    return true;
}

static bool run_file(job *j, chk_book *book) {
    book->path = j->path;
    book->params = j->params;
    if (j->out != NULL) {
        chk_report_head(j->out, j->style, j->path, j->params, NULL, j->o->seed);
    }
    book->part = calloc(1, sizeof *book->part);
    book->n_part = book->part != NULL;
    if (book->part == NULL || !run_part(j, NULL, &book->part[0])) {
        return false;
    }
    json_t *names = usable(&book->part[0]) ? policies_of(&book->part[0]) : json_array();
    chk_part *grown = realloc(book->part, (1 + json_array_size(names)) * sizeof *grown);
    bool good = grown != NULL;
    if (good) {
        memset(grown + 1, 0, json_array_size(names) * sizeof *grown);
        book->part = grown;
        good = run_policies(j, names, book);
    }
    json_decref(names);
    return good;
}

/* ---------------------------------------------------------------- all together */

static void free_report(chk_report *r) {
    for (uint32_t b = 0; b < r->n_book; b++) {
        for (uint32_t p = 0; p < r->book[b].n_part; p++) {
            chk_part *part = &r->book[b].part[p];
            for (uint32_t i = 0; i < part->n; i++) {
                chk_result_free(&part->result[i]);
            }
            free(part->result);
            free((void *)(uintptr_t)part->name);
        }
        free(r->book[b].part);
    }
    free(r->book);
}

/* Writes what is not written yet: all of JSON, the last line of a table; --output wants all of
 * either. */
static int write_report(const chk_options *o, const chk_report *r, FILE *lines, char **text,
                        size_t *n) {
    char why[1024];
    int failed = 0;
    if (o->json) {
        failed = chk_report_json(lines, r) != 0;
    } else {
        chk_report_end(lines,
                       (chk_style){.colour = isatty(STDOUT_FILENO) && o->output == NULL &&
                                             getenv("NO_COLOR") == NULL},
                       r);
    }
    failed |= fflush(lines) != 0 || ferror(lines);
    if (failed) {
        fprintf(stderr, "kvcheck: the report can't be written: %s\n", strerror(errno));
    } else if (text != NULL && cmp_report_put(*text, *n, o->output, why, sizeof why) != 0) {
        fprintf(stderr, "kvcheck: %s\n", why);
        failed = 1;
    }
    return failed;
}

static int run_all(const chk_options *o, chk_report *r, FILE *lines) {
    job j = {.o = o, .out = o->json ? NULL : lines};
    j.style = (chk_style){.colour = lines == stdout && isatty(STDOUT_FILENO) &&
                                    getenv("NO_COLOR") == NULL,
                          .quiet = o->quiet};
    for (const chk_test *t = chk_tests; t->group != NULL; t++) {
        j.total += chk_options_selects(o, t) ? o->n_file : 0;
    }
    for (uint32_t i = 0; i < o->n_file && !interrupted; i++) {
        j.path = o->file[i];
        j.params = o->params[i];
        if (!run_file(&j, &r->book[r->n_book++])) {
            fprintf(stderr, "kvcheck: %s: %s\n",
                    ferror(lines) ? "the report can't be written" : "the tests can't go on",
                    strerror(errno));
            return EXIT_BROKEN;
        }
    }
    return interrupted ? EXIT_INTERRUPTED : 0;
}

static int check(const chk_options *o) {
    chk_report r = {.seed = o->seed, .book = calloc(o->n_file, sizeof *r.book)};
    char *text = NULL;
    size_t n = 0;
    const bool buffered = o->json || o->output != NULL;
    FILE *lines = buffered ? open_memstream(&text, &n) : stdout;
    int code = EXIT_BROKEN;
    if (r.book == NULL || lines == NULL) {
        fprintf(stderr, "kvcheck: out of memory\n");
    } else {
        const uint64_t start = cmp_clock_ns();
        code = run_all(o, &r, lines);
        r.seconds = (double)(cmp_clock_ns() - start) / 1e9;
        if (code == 0) {
            uint32_t count[CHK_N_OUTCOME];
            chk_report_count(&r, count);
            code = count[CHK_FAILED] + count[CHK_CRASHED] > 0 ? EXIT_BROKEN : 0;
            if (write_report(o, &r, lines, buffered ? &text : NULL, &n) != 0) {
                code = EXIT_BROKEN;
            }
        }
    }
    if (buffered && lines != NULL) {
        fclose(lines);
    }
    free(text);
    free_report(&r);
    return code;
}

int main(int argc, char **argv) {
    static chk_options options;
    const struct sigaction action = {.sa_handler = on_signal};
    cmp_streams_hold();
    chk_options_parse(argc, argv, &options);
    int code = 0;
    if (options.list) {
        chk_report_tests(stdout);
        if (fflush(stdout) != 0) {
            fprintf(stderr, "kvcheck: the list can't be written: %s\n", strerror(errno));
            code = EXIT_BROKEN;
        }
    } else {
        sigaction(SIGINT, &action, NULL);
        sigaction(SIGTERM, &action, NULL);
        code = check(&options);
    }
    chk_options_free(&options);
    return code;
}
