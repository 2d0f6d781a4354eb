/* SPDX-License-Identifier: MIT
 * check_report.c: results as text and as JSON. It runs nothing. */
#include "check_report.h"

#include "report.h"

#include <jansson.h>
#include <string.h>

#define WIDTH 80

/* ---------------------------------------------------------------- text */

static void paint(FILE *out, chk_style style, const char *code, const char *text) {
    if (style.colour) {
        fprintf(out, "\033[%sm%s\033[0m", code, text);
    } else {
        fputs(text, out);
    }
}

static const char *colour_of(int outcome) {
    static const char *const code[] = {"32", "33", "31", "31;1", "2"};
    return code[outcome];
}

void chk_report_head(FILE *out, chk_style style, const char *path, const char *params,
                     const char *name, uint64_t seed) {
    char line[4300];
    fputc('\n', out);
    if (name == NULL) {
        snprintf(line, sizeof line, "%s%s%s (seed %llu)", path, params[0] != '\0' ? ":" : "",
                 params, (unsigned long long)seed);
    } else {
        snprintf(line, sizeof line, "policy %s", name);
    }
    paint(out, style, "1", line);
    fputc('\n', out);
}

void chk_report_line(FILE *out, chk_style style, const chk_result *r) {
    const bool news = r->outcome != CHK_PASSED && r->outcome != CHK_SKIPPED;
    char name[48], time[24] = "";
    if (style.quiet && !news) {
        return;
    }
    snprintf(name, sizeof name, "%s/%s", r->test->group, r->test->name);
    if (r->seconds >= 0.05) {
        snprintf(time, sizeof time, "%.1f s", r->seconds);
    }
    paint(out, style, colour_of(r->outcome), chk_outcome_name(r->outcome));
    fprintf(out, "%*s %-23s %-40.40s %s\n", 7 - (int)strlen(chk_outcome_name(r->outcome)), "", name,
            r->test->help, time);
    for (uint32_t i = 0; i < r->n_note; i++) {
        if (!style.quiet || r->note[i].kind == CHK_FAIL || r->note[i].kind == CHK_WARN) {
            cmp_text_wrap(out, "        ", r->note[i].text, WIDTH);
        }
    }
}

void chk_report_count(const chk_report *r, uint32_t count[CHK_N_OUTCOME]) {
    memset(count, 0, CHK_N_OUTCOME * sizeof *count);
    for (uint32_t b = 0; b < r->n_book; b++) {
        for (uint32_t p = 0; p < r->book[b].n_part; p++) {
            const chk_part *part = &r->book[b].part[p];
            for (uint32_t i = 0; i < part->n; i++) {
                count[part->result[i].outcome] += !part->result[i].hidden;
            }
        }
    }
}

void chk_report_end(FILE *out, chk_style style, const chk_report *r) {
    uint32_t count[CHK_N_OUTCOME];
    chk_report_count(r, count);
    fputc('\n', out);
    for (int i = 0; i < CHK_N_OUTCOME; i++) {
        char text[32];
        snprintf(text, sizeof text, "%u %s", count[i], chk_outcome_name(i));
        paint(out, (chk_style){.colour = style.colour && count[i] > 0}, colour_of(i), text);
        fputs(i + 1 < CHK_N_OUTCOME ? ", " : "", out);
    }
    fprintf(out, " in %.1f s (seed %llu)\n", r->seconds, (unsigned long long)r->seed);
}

void chk_report_tests(FILE *out) {
    for (const chk_test *t = chk_tests; t->group != NULL; t++) {
        char name[48];
        snprintf(name, sizeof name, "%s/%s", t->group, t->name);
        fprintf(out, "%-23s %s\n", name, t->help);
    }
}

/* ---------------------------------------------------------------- JSON */

/* What policies and the system say may not be UTF-8. */
static json_t *text_json(const char *s) {
    json_t *value = json_string(s);
    char plain[1024];
    size_t n = 0;
    if (value != NULL) {
        return value;
    }
    for (; s[n] != '\0' && n + 1 < sizeof plain; n++) {
        plain[n] = '?';
        if ((unsigned char)s[n] < 0x80) {
            plain[n] = s[n];
        }
    }
    plain[n] = '\0';
    return json_string(plain);
}

static json_t *result_json(const chk_result *r) {
    json_t *notes = json_array();
    for (uint32_t i = 0; i < r->n_note; i++) {
        const char kind = r->note[i].kind;
        const char *word = kind == CHK_FAIL   ? "failure"
                           : kind == CHK_WARN ? "warning"
                           : kind == CHK_SKIP ? "skipped"
                                              : "info";
        json_array_append_new(
            notes, json_pack("{s:s, s:o}", "kind", word, "text", text_json(r->note[i].text)));
    }
    return json_pack("{s:s, s:s, s:s, s:f, s:o}", "group", r->test->group, "name", r->test->name,
                     "outcome", chk_outcome_name(r->outcome), "seconds", r->seconds, "notes",
                     notes);
}

static json_t *results_json(const chk_part *part) {
    json_t *list = json_array();
    for (uint32_t i = 0; i < part->n; i++) {
        if (!part->result[i].hidden) {
            json_array_append_new(list, result_json(&part->result[i]));
        }
    }
    return list;
}

/* The tables that file/table saw; null when it saw none. */
static json_t *tables_json(const chk_part *file) {
    for (uint32_t i = 0; i < file->n; i++) {
        if (file->result[i].table != NULL) {
            json_t *root = json_loads(file->result[i].table, 0, NULL);
            json_t *policies = json_incref(json_object_get(root, "policies"));
            json_decref(root);
            return policies != NULL ? policies : json_null();
        }
    }
    return json_null();
}

static json_t *book_json(const chk_book *b) {
    json_t *policies = json_array();
    for (uint32_t p = 1; p < b->n_part; p++) {
        json_array_append_new(policies, json_pack("{s:o, s:o}", "name", text_json(b->part[p].name),
                                                  "tests", results_json(&b->part[p])));
    }
    return json_pack("{s:o, s:o, s:o, s:o, s:o}", "file", text_json(b->path), "params",
                     text_json(b->params), "tables", tables_json(&b->part[0]), "tests",
                     results_json(&b->part[0]), "policies", policies);
}

int chk_report_json(FILE *out, const chk_report *r) {
    uint32_t count[CHK_N_OUTCOME];
    json_t *books = json_array(), *counts = json_object();
    chk_report_count(r, count);
    for (int i = 0; i < CHK_N_OUTCOME; i++) {
        json_object_set_new(counts, chk_outcome_name(i), json_integer(count[i]));
    }
    for (uint32_t i = 0; i < r->n_book; i++) {
        json_array_append_new(books, book_json(&r->book[i]));
    }
    json_t *root =
        json_pack("{s:s, s:s, s:s, s:I, s:f, s:o, s:o}", "schema", "kvcheck/1", "version",
                  kvc_version(), "level", kvc_cpu_level(), "seed", (json_int_t)r->seed, "seconds",
                  r->seconds, "counts", counts, "files", books);
    if (root == NULL) {
        return -1;
    }
    const int rc = json_dumpf(root, out, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
    fputc('\n', out);
    json_decref(root);
    return rc;
}
