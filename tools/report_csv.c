/* SPDX-License-Identifier: MIT
 * report_csv.c: the report for spreadsheets, RFC 4180: comma, CRLF, quotes doubled. A figure's
 * column is named by its path in the JSON; one that isn't known is an empty field. */
#include "report.h"

#include <math.h>

void cmp_report_csv(FILE *out, const cmp_report *r) {
    fputs("spec,name", out);
    for (unsigned i = 0; i < CMP_N_FIGURE; i++) {
        fprintf(out, ",%s.%s", cmp_figure_table[i].group, cmp_figure_table[i].path);
    }
    fputs("\r\n", out);
    for (uint32_t k = 0; k < r->job->n_row; k++) {
        const cmp_row *row = &r->job->row[k];
        cmp_csv_field(out, row->spec);
        fputc(',', out);
        cmp_csv_field(out, row->name);
        for (unsigned i = 0; i < CMP_N_FIGURE; i++) {
            fputc(',', out);
            if (isfinite(row->v[i])) {
                fprintf(out, cmp_figure_table[i].integer ? "%.0f" : "%.12g", row->v[i]);
            }
        }
        fputs("\r\n", out);
    }
}
