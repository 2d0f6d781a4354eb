/* SPDX-License-Identifier: MIT
 * gate.c: parses and judges the limits of --fail-if. A spec may hold dots, colons and equals signs,
 * so an expression is read from the longest name that fits to the shortest. It runs nothing. */
#include "gate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *cmp_spec_name(const char *spec, size_t *n) {
    size_t len = strcspn(spec, ":+");
    const char *p = spec;
    for (size_t i = 0; i < len; i++) {
        if (spec[i] == '/') {
            p = spec + i + 1;
        }
    }
    len -= (size_t)(p - spec);
    if (p != spec && len > 3 && memcmp(p + len - 3, ".so", 3) == 0) {
        len -= 3;
    }
    *n = len;
    return p;
}

static const char *skip_space(const char *p) {
    return p + strspn(p, " \t");
}

/* The figure of that path, with its group in front or without; CMP_N_FIGURE when there is none. */
static uint32_t find_figure(const char *p, size_t len) {
    uint32_t i = 0;
    for (; i < CMP_N_FIGURE; i++) {
        const cmp_figure *f = &cmp_figure_table[i];
        size_t group = strlen(f->group);
        size_t skip =
            len > group && memcmp(p, f->group, group) == 0 && p[group] == '.' ? group + 1 : 0;
        if (strlen(f->path) == len - skip && memcmp(f->path, p + skip, len - skip) == 0) {
            break;
        }
    }
    return i;
}

/* Reads "PATH OP NUMBER" to the end of the text. */
static int parse_tail(const char *p, cmp_gate *out) {
    size_t len = strcspn(p, " \t<>=");
    uint32_t figure = find_figure(p, len);
    if (figure == CMP_N_FIGURE) {
        return -1;
    }
    p = skip_space(p + len);
    size_t n_op = strspn(p, "<>=");
    if (n_op == 0 || n_op > 2 || (n_op == 1 && *p == '=') || (n_op == 2 && p[1] != '=')) {
        return -1;
    }
    memcpy(out->op, p, n_op);
    out->op[n_op] = '\0';
    p = skip_space(p + n_op);
    char *end = NULL;
    out->limit = strtod(p, &end);
    if (end == p || *skip_space(end) != '\0' || !isfinite(out->limit)) {
        return -1;
    }
    out->figure = figure;
    return 0;
}

/* Tries name[len] as the policy of the expression. */
static int parse_as(const char *text, const char *name, size_t len, cmp_gate *out) {
    if (strncmp(text, name, len) != 0 || text[len] != '.') {
        return -1;
    }
    return parse_tail(text + len + 1, out);
}

/* Says what is wrong with an expression that fits no policy. */
static int explain(const char *text, const char *const *spec, uint32_t n, char *why, size_t cap) {
    for (uint32_t i = 0; i < n; i++) {
        size_t len = 0;
        const char *name = cmp_spec_name(spec[i], &len);
        if ((strncmp(text, spec[i], strlen(spec[i])) == 0 && text[strlen(spec[i])] == '.') ||
            (strncmp(text, name, len) == 0 && text[len] == '.')) {
            snprintf(
                why, cap,
                "gate '%s' can't be read: after the policy give a figure such as kld.mean, one "
                "of > >= < <= ==, and a number",
                text);
            return -1;
        }
    }
    snprintf(why, cap,
             "gate '%s' names no policy of this comparison: begin it with one of those of --policy "
             "and a dot, as in '%s.kld.mean>1e-4'",
             text, n > 0 ? spec[0] : "quant8");
    return -1;
}

/* Parses with the first stages' names; a name that two specs begin with is refused. */
static int parse_short(const char *text, const char *const *spec, uint32_t n, cmp_gate *out,
                       char *why, size_t cap) {
    const char *found = NULL;
    for (uint32_t i = 0; i < n; i++) {
        size_t len = 0;
        const char *name = cmp_spec_name(spec[i], &len);
        if (parse_as(text, name, len, out) != 0) {
            continue;
        }
        if (found != NULL && strcmp(found, spec[i]) != 0) {
            snprintf(why, cap, "gate '%s' fits both '%s' and '%s': name the one you mean in full",
                     text, found, spec[i]);
            return -1;
        }
        found = spec[i];
        out->row[i] = 1;
    }
    return found != NULL ? 0 : explain(text, spec, n, why, cap);
}

int cmp_gate_parse(const char *text, const char *const *spec, uint32_t n, cmp_gate *out, char *why,
                   size_t cap) {
    memset(out, 0, sizeof *out);
    out->text = text;
    text = skip_space(text);
    const char *longest = NULL;
    for (uint32_t i = 0; i < n; i++) {
        cmp_gate probe = *out;
        if (parse_as(text, spec[i], strlen(spec[i]), &probe) == 0 &&
            (longest == NULL || strlen(spec[i]) > strlen(longest))) {
            longest = spec[i];
        }
    }
    if (longest == NULL) {
        return parse_short(text, spec, n, out, why, cap);
    }
    for (uint32_t i = 0; i < n; i++) {
        out->row[i] = strcmp(spec[i], longest) == 0;
    }
    return parse_as(text, longest, strlen(longest), out);
}

int cmp_gate_missed(const cmp_gate *gate, const cmp_row *row, char *why, size_t cap) {
    double v = row->v[gate->figure];
    const char *path = cmp_figure_table[gate->figure].path;
    if (isnan(v)) {
        snprintf(why, cap, "gate missed: %s: %s of '%s' is not known", gate->text, path, row->spec);
        return 1;
    }
    int equal = gate->op[1] == '=';
    int missed = (gate->op[0] == '>' && v > gate->limit) ||
                 (gate->op[0] == '<' && v < gate->limit) ||
                 (equal && !(v < gate->limit) && !(v > gate->limit));
    if (missed) {
        snprintf(why, cap, "gate missed: %s: %s of '%s' is %.10g", gate->text, path, row->spec, v);
    }
    return missed;
}
