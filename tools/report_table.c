/* SPDX-License-Identifier: MIT
 * report_table.c: the report for a person at a terminal: stacked blocks, speed, memory, divergence,
 * and what policies claim. A block that is wider than the terminal is cut into several, a spec too
 * long for its column gets a line of its own. */
#include "report.h"

#include <math.h>
#include <string.h>

/* One column of a block. */
typedef struct column {
    unsigned figure;
    int width;
    const char *head;
    const char *unit;
} column;

static const column speed[] = {
    {CMP_PREFILL_TOK_S, 9, "prefill", "t/s"}, {CMP_TTFT_MS, 9, "1st token", "ms"},
    {CMP_DECODE_TOK_S, 8, "decode", "t/s"},   {CMP_DECODE_P50, 8, "step p50", "ms"},
    {CMP_DECODE_P95, 8, "p95", "ms"},         {CMP_DECODE_P99, 8, "p99", "ms"},
};
static const column memory[] = {
    {CMP_KV_BYTES, 10, "KV", "MiB"},
    {CMP_KV_PEAK_BYTES, 10, "KV peak", "MiB"},
    {CMP_BYTES_PER_TOKEN, 12, "per token", "bytes"},
    {CMP_DISK_BYTES, 10, "disk", "MiB"},
};
static const column divergence[] = {
    {CMP_KLD_MEAN, 7, "KLD", "mean"},
    {CMP_KLD_P99, 7, "KLD", "p99"},
    {CMP_KLD_MAX, 7, "KLD", "max"},
    {CMP_TOP1, 6, "top-1", "%"},
    {CMP_PPL, 7, "ppl", ""},
    {CMP_PPL_RATIO, 7, "ppl", "ratio"},
    {CMP_FIRST_DIVERGENCE, 7, "departs", "token"},
};

static void write_head(FILE *out, const char *title, int first, const column *c, int n,
                       int colour) {
    fputc('\n', out);
    cmp_text_bold(out, colour, title, first);
    for (int i = 0; i < n; i++) {
        cmp_text_right(out, c[i].head, c[i].width);
    }
    fputc('\n', out);
    cmp_text_pad(out, first);
    for (int i = 0; i < n; i++) {
        cmp_text_right(out, c[i].unit, c[i].width);
    }
    fputc('\n', out);
}

/* Columns that fit beside the names, at least one. */
static int fitting(const column *c, int n, int width) {
    int fit = 0;
    for (int used = CMP_LEAST_FIRST; fit < n && used + c[fit].width + 1 <= width; fit++) {
        used += c[fit].width + 1;
    }
    return fit > 0 ? fit : 1;
}

/* Writes what a line begins with, and fills the first column, on a line of its own if need be. */
static void write_first(FILE *out, const char *name, const char *mark, int first) {
    int used = cmp_text_width(name) + cmp_text_width(mark);
    fprintf(out, "%s%s", name, mark);
    if (used > first) {
        fputc('\n', out);
        used = 0;
    }
    cmp_text_pad(out, first - used);
}

static void write_part(FILE *out, const cmp_report *r, const char *title, const column *c, int n,
                       int width, int colour) {
    int first = width;
    for (int i = 0; i < n; i++) {
        first -= c[i].width + 1;
    }
    write_head(out, title, first, c, n, colour);
    for (uint32_t k = 0; k < r->job->n_row; k++) {
        const cmp_row *row = &r->job->row[k];
        write_first(out, row->spec, cmp_note_mark(cmp_row_notes(row)), first);
        for (int i = 0; i < n; i++) {
            char buf[64];
            cmp_text_right(out, cmp_figure_human(row, c[i].figure, buf, sizeof buf), c[i].width);
        }
        fputc('\n', out);
    }
}

static void write_block(FILE *out, const cmp_report *r, const char *title, const column *c, int n,
                        int width, int colour) {
    for (int i = 0, fit; i < n; i += fit) {
        fit = fitting(c + i, n - i, width);
        write_part(out, r, title, c + i, fit, width, colour);
    }
}

/* ---------------------------------------------------------------- claims */

static int claims(const cmp_stage *s) {
    return s->n_evicted > 0 || s->n_selected > 0 || s->n_skipped > 0 || s->stored_bytes > 0;
}

/* One line: what a stage says it did, in words, for only some of it is ever said. */
static void write_claim(FILE *out, const cmp_row *row, const cmp_stage *s, int width) {
    char text[1400], part[4][80];
    size_t n = 0, used;
    if (s->n_evicted > 0) {
        snprintf(part[n++], sizeof part[0], "%llu entries given up",
                 (unsigned long long)s->n_evicted);
    }
    if (s->n_selected > 0) {
        snprintf(part[n++], sizeof part[0], "%llu pages selected",
                 (unsigned long long)s->n_selected);
    }
    if (s->n_skipped > 0) {
        snprintf(part[n++], sizeof part[0], "%llu pages skipped", (unsigned long long)s->n_skipped);
    }
    if (s->stored_bytes > 0) {
        snprintf(part[n++], sizeof part[0], "%.3f MiB stored", (double)s->stored_bytes / 1048576.0);
    }
    used = (size_t)snprintf(text, sizeof text, "%.1000s:%s%s", row->spec,
                            row->n_stage > 1 ? " " : "", row->n_stage > 1 ? s->name : "");
    for (size_t i = 0; i < n; i++) {
        used +=
            (size_t)snprintf(text + used, sizeof text - used, "%s %s", i > 0 ? "," : "", part[i]);
    }
    cmp_text_wrap(out, "  ", text, width);
}

/* What stages say of themselves, so that one that only looks on has something to show. */
static void write_claims(FILE *out, const cmp_report *r, int width, int colour) {
    int any = 0;
    for (uint32_t k = 0; k < r->job->n_row; k++) {
        const cmp_row *row = &r->job->row[k];
        for (uint32_t i = 0; i < row->n_stage; i++) {
            if (!claims(&row->stage[i])) {
                continue;
            }
            if (!any) {
                fputc('\n', out);
                cmp_text_bold(out, colour, "Claims", 0);
                fputs(" of the policies, which nobody measured\n", out);
            }
            any = 1;
            write_claim(out, row, &row->stage[i], width);
        }
    }
}

static void write_title(FILE *out, const cmp_report *r, int width, int colour) {
    char line[1024];
    const cmp_job *job = r->job;
    cmp_text_bold(out, colour, "kvcompare", 0);
    fputc('\n', out);
    snprintf(line, sizeof line, "%.80s (%s, %s, %.1f MiB)",
             r->model->name[0] != '\0' ? r->model->name : r->model_path, r->model->arch,
             r->model->weights, (double)r->model->file_bytes / (1024.0 * 1024.0));
    cmp_text_wrap(out, "  model    ", line, width);
    snprintf(line, sizeof line, "%s, %ld cores, %u threads, %s%s",
             r->machine->cpu[0] != '\0' ? r->machine->cpu : "unknown processor", r->machine->n_core,
             r->model->n_threads, r->level, cmp_repack_text(r->no_repack));
    cmp_text_wrap(out, "  machine  ", line, width);
    snprintf(line, sizeof line, "%u tokens of %.200s: %u prompt, %u scored", job->ctx, r->text,
             job->ctx - job->n_score, job->n_score);
    cmp_text_wrap(out, "  context  ", line, width);
    char ppl[32] = "-";
    if (isfinite(job->baseline_ppl)) {
        snprintf(ppl, sizeof ppl, "%.3f", job->baseline_ppl);
    }
    snprintf(line, sizeof line, "%.300s, perplexity %s; divergence in %s, speed in int8",
             job->baseline, ppl, job->compute);
    cmp_text_wrap(out, "  baseline ", line, width);
}

void cmp_report_table(FILE *out, const cmp_report *r, int width, int colour) {
    write_title(out, r, width, colour);
    if (r->job->n_round > 0 && r->job->n_step > 0) {
        write_block(out, r, "Speed", speed, (int)(sizeof speed / sizeof speed[0]), width, colour);
    }
    write_block(out, r, "Memory", memory, (int)(sizeof memory / sizeof memory[0]), width, colour);
    write_block(out, r, "Divergence", divergence, (int)(sizeof divergence / sizeof divergence[0]),
                width, colour);
    write_claims(out, r, width, colour);
    unsigned notes = r->job->has_twin ? 1u : 0u;
    for (uint32_t k = 0; k < r->job->n_row; k++) {
        notes |= cmp_row_notes(&r->job->row[k]);
    }
    if (notes != 0) {
        fputc('\n', out);
        cmp_note_write(out, r, "", width);
    }
}
