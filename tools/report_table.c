/* SPDX-License-Identifier: MIT
 * report_table.c: the report for a person at a terminal: three stacked blocks of at most 80
 * columns, speed, memory, divergence. A spec too long for its column gets a line of its own. */
#include "report.h"

#include <math.h>
#include <string.h>

#define WIDTH 80

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

static void write_block(FILE *out, const cmp_report *r, const char *title, const column *c, int n,
                        int colour) {
    int first = WIDTH;
    for (int i = 0; i < n; i++) {
        first -= c[i].width + 1;
    }
    write_head(out, title, first, c, n, colour);
    for (uint32_t k = 0; k < r->job->n_row; k++) {
        const cmp_row *row = &r->job->row[k];
        const char *mark = cmp_note_mark(cmp_row_notes(row));
        int used = cmp_text_width(row->spec) + cmp_text_width(mark);
        fprintf(out, "%s%s", row->spec, mark);
        if (used > first) {
            fputc('\n', out);
            used = 0;
        }
        cmp_text_pad(out, first - used);
        for (int i = 0; i < n; i++) {
            char buf[64];
            cmp_text_right(out, cmp_figure_human(row, c[i].figure, buf, sizeof buf), c[i].width);
        }
        fputc('\n', out);
    }
}

static void write_title(FILE *out, const cmp_report *r, int colour) {
    char line[1024];
    const cmp_job *job = r->job;
    cmp_text_bold(out, colour, "kvcompare", 0);
    fputc('\n', out);
    snprintf(line, sizeof line, "%.80s (%s, %s, %.1f MiB)",
             r->model->name[0] != '\0' ? r->model->name : r->model_path, r->model->arch,
             r->model->weights, (double)r->model->file_bytes / (1024.0 * 1024.0));
    cmp_text_wrap(out, "  model    ", line, WIDTH);
    snprintf(line, sizeof line, "%s, %ld cores, %u threads, %s",
             r->machine->cpu[0] != '\0' ? r->machine->cpu : "unknown processor", r->machine->n_core,
             r->model->n_threads, r->level);
    cmp_text_wrap(out, "  machine  ", line, WIDTH);
    snprintf(line, sizeof line, "%u tokens of %.200s: %u prompt, %u scored", job->ctx, r->text,
             job->ctx - job->n_score, job->n_score);
    cmp_text_wrap(out, "  context  ", line, WIDTH);
    char ppl[32] = "-";
    if (isfinite(job->baseline_ppl)) {
        snprintf(ppl, sizeof ppl, "%.3f", job->baseline_ppl);
    }
    snprintf(line, sizeof line, "%.300s, perplexity %s; divergence in %s, speed in int8",
             job->baseline, ppl, job->compute);
    cmp_text_wrap(out, "  baseline ", line, WIDTH);
}

void cmp_report_table(FILE *out, const cmp_report *r, int colour) {
    write_title(out, r, colour);
    if (r->job->n_round > 0 && r->job->n_step > 0) {
        write_block(out, r, "Speed", speed, (int)(sizeof speed / sizeof speed[0]), colour);
    }
    write_block(out, r, "Memory", memory, (int)(sizeof memory / sizeof memory[0]), colour);
    write_block(out, r, "Divergence", divergence, (int)(sizeof divergence / sizeof divergence[0]),
                colour);
    unsigned notes = r->job->has_twin ? 1u : 0u;
    for (uint32_t k = 0; k < r->job->n_row; k++) {
        notes |= cmp_row_notes(&r->job->row[k]);
    }
    if (notes != 0) {
        fputc('\n', out);
        cmp_note_write(out, r, "", WIDTH);
    }
}
