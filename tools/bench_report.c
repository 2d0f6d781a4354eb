/* SPDX-License-Identifier: MIT
 * bench_report.c: the report of `kvcompare bench` as a table for a person, as CSV and as Markdown;
 * bench_json.c has the JSON. It runs nothing. */
#include "bench.h"

#include "report.h"

#include <math.h>
#include <string.h>

enum { C_DEPTH, C_SESSIONS, C_RATE, C_MIN, C_MAX, C_SHARE, C_MS, C_SLOPE, C_WAIT, N_COLUMN };

static const struct {
    int width;
    const char *head, *unit, *md;
} column[N_COLUMN] = {
    [C_DEPTH] = {6, "depth", "", "depth"},   [C_SESSIONS] = {4, "sess", "", "sessions"},
    [C_RATE] = {7, "median", "t/s", "t/s"},  [C_MIN] = {7, "min", "t/s", "min"},
    [C_MAX] = {7, "max", "t/s", "max"},      [C_SHARE] = {6, "share", "%", "share %"},
    [C_MS] = {7, "token", "ms", "ms/token"}, [C_SLOPE] = {7, "slope", "ms/1k", "slope ms/1k"},
    [C_WAIT] = {5, "wait", "%", "wait %"},
};

/* ---------------------------------------------------------------- cells */

/* Four digits or so; "-" when it isn't known. */
static const char *digits(double v, char *buf, size_t cap) {
    if (!isfinite(v)) {
        return "-";
    }
    const double size = fabs(v);
    snprintf(buf, cap, "%.*f", size < 10 ? 3 : size < 100 ? 2 : size < 10000 ? 1 : 0, v);
    return buf;
}

static const char *percent(double v, char *buf, size_t cap) {
    if (!isfinite(v)) {
        return "-";
    }
    snprintf(buf, cap, "%.1f", v * 100);
    return buf;
}

static const char *cell(const cmp_bench_row *r, int c, char *buf, size_t cap) {
    switch (c) {
    case C_DEPTH:
    case C_SESSIONS:
        snprintf(buf, cap, "%u", c == C_DEPTH ? r->depth : r->sessions);
        return buf;
    case C_RATE:
        return digits(r->median, buf, cap);
    case C_MIN:
        return digits(r->min, buf, cap);
    case C_MAX:
        return digits(r->max, buf, cap);
    case C_SHARE:
        return percent(r->share, buf, cap);
    case C_MS:
        return digits(r->ms, buf, cap);
    case C_SLOPE:
        return digits(r->slope, buf, cap);
    default:
        return percent(r->wait, buf, cap);
    }
}

/* Which columns a block has: sessions when there are several, waiting when a row waits. */
static int shown(const cmp_bench *b, uint32_t test, int c) {
    for (uint32_t i = 0; i < b->n_row; i++) {
        const cmp_bench_row *r = &b->row[i];
        if (r->test == test && (c != C_SESSIONS || r->sessions > 1) &&
            (c != C_WAIT || isfinite(r->wait))) {
            return 1;
        }
    }
    return 0;
}

static const char *mark(const cmp_bench_row *r) {
    return cmp_note_mark(r->notes & (CMP_BENCH_TRANSIENT | CMP_BENCH_CHUNKED));
}

/* ---------------------------------------------------------------- notes */

static void write_notes(FILE *out, const cmp_bench *b, const char *prefix, int width) {
    char text[512];
    uint32_t all = 0;
    for (uint32_t i = 0; i < b->n_row; i++) {
        const cmp_bench_row *r = &b->row[i];
        all |= r->notes;
        if ((r->notes & CMP_BENCH_NO_ROOM) != 0) {
            snprintf(text, sizeof text,
                     "Not measured: %u sessions of %.100s at depth %u don't fit into memory.",
                     r->sessions, r->spec, r->depth);
            cmp_text_wrap(out, prefix, text, width);
        }
    }
    if ((all & CMP_BENCH_TRANSIENT) != 0) {
        snprintf(text, sizeof text,
                 "[1] It computes all tokens again at each step: timed on at most %u steps, up to "
                 "depth %u; such a step has no share of what one token must read.",
                 CMP_TRANSIENT_STEPS, CMP_TRANSIENT_CTX);
        cmp_text_wrap(out, prefix, text, width);
    }
    if ((all & CMP_BENCH_CHUNKED) != 0) {
        cmp_text_wrap(out, prefix,
                      "[2] Its result depends on how the prompt is cut into calls, here of 512 "
                      "tokens.",
                      width);
    }
}

/* ---------------------------------------------------------------- table */

static void limits_text(const cmp_bench *b, char *buf, size_t cap) {
    char read[32], mac[32];
    snprintf(buf, cap, "read %s GB/s, int8 %s G multiply-adds/s (%s)",
             digits(b->limits.read_gb_s, read, sizeof read),
             digits(b->limits.int8_gmac_s, mac, sizeof mac), b->limits.instructions);
}

static void token_text(const cmp_bench *b, char *buf, size_t cap) {
    snprintf(buf, cap, "%.1f MB of weights to read, %.1f M multiply-adds in the layers",
             (double)b->info.read_bytes * 1e-6, (double)b->info.n_mac * 1e-6);
}

static void write_title(FILE *out, const cmp_bench *b, const cmp_machine *m, int width,
                        int colour) {
    char line[1024];
    cmp_text_bold(out, colour, "kvcompare bench", 0);
    fputc('\n', out);
    snprintf(line, sizeof line, "%.80s (%s, %s, %.1f MiB)",
             b->info.name[0] != '\0' ? b->info.name : b->o->model, b->info.arch, b->info.weights,
             (double)b->info.file_bytes / (1024.0 * 1024.0));
    cmp_text_wrap(out, "  model    ", line, width);
    char load[32] = "";
    if (m->load >= 0) {
        snprintf(load, sizeof load, ", load %.1f", m->load);
    }
    snprintf(line, sizeof line, "%s, %ld cores, %u threads, %s%s",
             m->cpu[0] != '\0' ? m->cpu : "unknown processor", m->n_core, b->info.n_threads,
             kvc_cpu_level(), load);
    cmp_text_wrap(out, "  machine  ", line, width);
    limits_text(b, line, sizeof line);
    cmp_text_wrap(out, "  limits   ", line, width);
    token_text(b, line, sizeof line);
    cmp_text_wrap(out, "  a token  ", line, width);
    snprintf(line, sizeof line, "%u round%s, policies in turn%s", b->o->rounds,
             b->o->rounds == 1 ? "" : "s", cmp_repack_text(b->o->no_repack));
    cmp_text_wrap(out, "  runs     ", line, width);
}

/* Columns of a block that fit beside the names, those that say which row it is in each part. */
typedef struct part {
    uint32_t test;
    int from, end; /* of the columns that may stand in another part */
} part;

static int in_part(const cmp_bench *b, part p, int c) {
    return (c < C_RATE || (c >= p.from && c < p.end)) && shown(b, p.test, c);
}

static part next_part(const cmp_bench *b, uint32_t test, int from, int width) {
    part p = {test, from, from};
    int used = CMP_LEAST_FIRST;
    for (int c = 0; c < C_RATE; c++) {
        used += shown(b, test, c) ? column[c].width + 1 : 0;
    }
    while (p.end < N_COLUMN) {
        used += shown(b, test, p.end) ? column[p.end].width + 1 : 0;
        if (used > width && p.end > from) {
            break;
        }
        p.end++;
    }
    return p;
}

static void write_head(FILE *out, const cmp_bench *b, part p, int first, int colour) {
    const uint32_t test = p.test;
    char title[64];
    snprintf(title, sizeof title, test == CMP_BENCH_PP ? "Prefill %u" : "Decode %u",
             test == CMP_BENCH_PP ? b->o->n_prompt : b->o->n_step);
    fputc('\n', out);
    cmp_text_bold(out, colour, title, first);
    for (int c = 0; c < N_COLUMN; c++) {
        if (in_part(b, p, c)) {
            cmp_text_right(out, column[c].head, column[c].width);
        }
    }
    fputc('\n', out);
    cmp_text_pad(out, first);
    for (int c = 0; c < N_COLUMN; c++) {
        if (in_part(b, p, c)) {
            cmp_text_right(out, column[c].unit, column[c].width);
        }
    }
    fputc('\n', out);
}

static void write_part(FILE *out, const cmp_bench *b, part p, int width, int colour) {
    const uint32_t test = p.test;
    const char *spec = NULL;
    int first = width;
    for (int c = 0; c < N_COLUMN; c++) {
        first -= in_part(b, p, c) ? column[c].width + 1 : 0;
    }
    write_head(out, b, p, first, colour);
    for (uint32_t i = 0; i < b->n_row; i++) {
        const cmp_bench_row *r = &b->row[i];
        int used = 0;
        if (r->test != test) {
            continue;
        }
        if (spec != r->spec) {
            used = cmp_text_width(r->spec) + cmp_text_width(mark(r));
            fprintf(out, "%s%s", r->spec, mark(r));
            if (used > first) {
                fputc('\n', out);
                used = 0;
            }
            spec = r->spec;
        }
        cmp_text_pad(out, first - used);
        for (int c = 0; c < N_COLUMN; c++) {
            char buf[64];
            if (in_part(b, p, c)) {
                cmp_text_right(out, cell(r, c, buf, sizeof buf), column[c].width);
            }
        }
        fputc('\n', out);
    }
}

static void write_block(FILE *out, const cmp_bench *b, uint32_t test, int width, int colour) {
    for (int from = C_RATE; from < N_COLUMN;) {
        const part p = next_part(b, test, from, width);
        write_part(out, b, p, width, colour);
        from = p.end;
    }
}

void cmp_bench_table(FILE *out, const cmp_bench *b, const cmp_machine *m, int width, int colour) {
    write_title(out, b, m, width, colour);
    for (uint32_t test = CMP_BENCH_PP; test <= CMP_BENCH_TG; test++) {
        if (shown(b, test, C_RATE)) {
            write_block(out, b, test, width, colour);
        }
    }
    uint32_t notes = 0;
    for (uint32_t i = 0; i < b->n_row; i++) {
        notes |= b->row[i].notes;
    }
    if (notes != 0) {
        fputc('\n', out);
        write_notes(out, b, "", width);
    }
}

/* ---------------------------------------------------------------- CSV and Markdown */

static void csv_number(FILE *out, double v) {
    fputc(',', out);
    if (isfinite(v)) {
        fprintf(out, "%.12g", v);
    }
}

void cmp_bench_csv(FILE *out, const cmp_bench *b) {
    fputs("spec,test,depth,n,sessions,tok_s.median,tok_s.min,tok_s.max,share,ms,slope_ms,"
          "wait_share,work,read_gb_s,int8_gmac_s\r\n",
          out);
    for (uint32_t i = 0; i < b->n_row; i++) {
        const cmp_bench_row *r = &b->row[i];
        const double v[] = {r->median,
                            r->min,
                            r->max,
                            r->share,
                            r->ms,
                            r->slope,
                            r->wait,
                            r->work,
                            b->limits.read_gb_s,
                            b->limits.int8_gmac_s};
        cmp_csv_field(out, r->spec);
        fprintf(out, ",%s,%u,%u,%u", r->test == CMP_BENCH_PP ? "pp" : "tg", r->depth, r->n,
                r->sessions);
        for (size_t k = 0; k < sizeof v / sizeof v[0]; k++) {
            csv_number(out, v[k]);
        }
        fputs("\r\n", out);
    }
}

void cmp_bench_md(FILE *out, const cmp_bench *b, const cmp_machine *m) {
    char line[512];
    fprintf(out, "%s, %s, %s, %u threads (%s)%s, median of %u rounds.\n\nLimits: ",
            b->info.name[0] != '\0' ? b->info.name : b->o->model, b->info.weights,
            m->cpu[0] != '\0' ? m->cpu : "unknown processor", b->info.n_threads, kvc_cpu_level(),
            cmp_repack_text(b->o->no_repack), b->o->rounds);
    limits_text(b, line, sizeof line);
    fprintf(out, "%s. A token: ", line);
    token_text(b, line, sizeof line);
    fprintf(out, "%s.\n\n| policy | test |", line);
    for (int c = 0; c < N_COLUMN; c++) {
        fprintf(out, " %s |", column[c].md);
    }
    fputs("\n|---|---|", out);
    for (int c = 0; c < N_COLUMN; c++) {
        fputs("---:|", out);
    }
    fputc('\n', out);
    for (uint32_t i = 0; i < b->n_row; i++) {
        const cmp_bench_row *r = &b->row[i];
        fputs("| `", out);
        cmp_md_cell(out, r->spec);
        fprintf(out, "`%s | %s%u |", mark(r), r->test == CMP_BENCH_PP ? "pp" : "tg", r->n);
        for (int c = 0; c < N_COLUMN; c++) {
            char buf[64];
            fprintf(out, " %s |", cell(r, c, buf, sizeof buf));
        }
        fputc('\n', out);
    }
    fputc('\n', out);
    write_notes(out, b, "", 1 << 20);
}
