/* SPDX-License-Identifier: MIT
 * report_md.c: the report for documents: a Markdown table with the conditions above it. */
#include "report.h"

#include <string.h>

static const struct {
    unsigned figure;
    const char *head;
} column[] = {
    {CMP_PREFILL_TOK_S, "prefill t/s"},
    {CMP_TTFT_MS, "first token ms"},
    {CMP_DECODE_TOK_S, "decode t/s"},
    {CMP_DECODE_P50, "p50 ms"},
    {CMP_DECODE_P95, "p95 ms"},
    {CMP_DECODE_P99, "p99 ms"},
    {CMP_KV_BYTES, "KV MiB"},
    {CMP_KV_PEAK_BYTES, "KV peak MiB"},
    {CMP_BYTES_PER_TOKEN, "bytes/token"},
    {CMP_DISK_BYTES, "disk MiB"},
    {CMP_KLD_MEAN, "KLD mean"},
    {CMP_KLD_P99, "KLD p99"},
    {CMP_KLD_MAX, "KLD max"},
    {CMP_TOP1, "top-1 %"},
    {CMP_PPL, "perplexity"},
    {CMP_PPL_RATIO, "ratio"},
    {CMP_FIRST_DIVERGENCE, "departs at"},
};
enum { N_COLUMN = sizeof column / sizeof column[0] };

void cmp_report_md(FILE *out, const cmp_report *r) {
    const cmp_job *job = r->job;
    const char *name = r->model->name[0] != '\0' ? r->model->name : r->model_path;
    cmp_text_put(out, name, strlen(name));
    fprintf(out, " %s, %s, %u threads (%s)%s, context %u, %u tokens scored in %s against `%s`.\n\n",
            r->model->weights, r->machine->cpu[0] != '\0' ? r->machine->cpu : "unknown processor",
            r->model->n_threads, r->level, cmp_repack_text(r->no_repack), job->ctx, job->n_score,
            job->compute, job->baseline);
    fputs("| policy |", out);
    for (int i = 0; i < N_COLUMN; i++) {
        fprintf(out, " %s |", column[i].head);
    }
    fputs("\n|---|", out);
    for (int i = 0; i < N_COLUMN; i++) {
        fputs("---:|", out);
    }
    fputc('\n', out);
    for (uint32_t k = 0; k < job->n_row; k++) {
        const cmp_row *row = &job->row[k];
        fputs("| `", out);
        cmp_md_cell(out, row->spec);
        fprintf(out, "`%s |", cmp_note_mark(cmp_row_notes(row)));
        for (int i = 0; i < N_COLUMN; i++) {
            char buf[64];
            fprintf(out, " %s |", cmp_figure_human(row, column[i].figure, buf, sizeof buf));
        }
        fputc('\n', out);
    }
    fputc('\n', out);
    cmp_note_write(out, r, "", 1 << 20);
}
