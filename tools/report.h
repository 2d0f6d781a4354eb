/* SPDX-License-Identifier: MIT
 * report.h: a finished comparison as text. One file per format: report_table.c, report_json.c,
 * report_csv.c, report_md.c; report.c holds what they share and puts the text where it belongs. No
 * format runs or measures anything. */
#ifndef KVC_REPORT_H
#define KVC_REPORT_H

#include "machine.h"
#include "measure.h"

#include <stdio.h>

#define CMP_WIDTH       80 /* columns of a table that goes to a file */
#define CMP_LEAST_WIDTH 40 /* no table is narrower */
#define CMP_LEAST_FIRST 16 /* columns for names that a table has left beside its figures */

/** All that a report says. */
typedef struct cmp_report {
    const cmp_job *job;
    const cmp_machine *machine;
    const kvc_model_info *model;
    const char *model_path;
    const char *text;    /* "built-in" or the file's path */
    const char *version; /* of the library */
    const char *level;   /* its kernels */
    uint64_t seed;
    int no_repack;
} cmp_report;

/** Writes the report for a person at a terminal in lines of at most width columns (a longer spec
 * excepted); colour: escape sequences. */
void cmp_report_table(FILE *out, const cmp_report *r, int width, int colour);
/** Writes JSON, schema kvcompare/1. Returns 0, or -1 without memory. */
int cmp_report_json(FILE *out, const cmp_report *r);
/** Writes RFC 4180 CSV: a head and one line per policy. */
void cmp_report_csv(FILE *out, const cmp_report *r);
/** Writes a Markdown table. */
void cmp_report_md(FILE *out, const cmp_report *r);

/** Writes bytes to path, by a file beside it that is then renamed, or to stdout when path is NULL.
 * Returns 0, or -1 with a sentence in why[cap]. */
int cmp_report_put(const char *bytes, size_t n, const char *path, char *why, size_t cap);

/** Says in the head of a report that weights weren't repacked; "" when they were. */
const char *cmp_repack_text(int no_repack);
/** What a row's figures need said of them, one sentence per bit: see cmp_note_text(). */
enum { CMP_NOTE_TRANSIENT = 1u << 0, CMP_NOTE_CHUNKED = 1u << 1 };
/** The CMP_NOTE_ bits of a row. */
unsigned cmp_row_notes(const cmp_row *row);
/** Their marks behind the row's spec: "", " [1]", " [2]" or both. */
const char *cmp_note_mark(unsigned notes);
/** Writes the sentences that the rows of the report need, each behind its mark, with prefix before
 * each line and lines of at most width columns. */
void cmp_note_write(FILE *out, const cmp_report *r, const char *prefix, int width);
/** A figure as a person reads it, "-" when it isn't known. */
const char *cmp_figure_human(const cmp_row *row, unsigned figure, char *buf, size_t cap);
/** Writes n bytes of a text that may come from anywhere: control characters and what isn't UTF-8 as
 * question marks. */
void cmp_text_put(FILE *out, const char *text, size_t n);
/** Columns of a table on stdout: those of the terminal, or of the variable COLUMNS, from
 * CMP_LEAST_WIDTH to 80; 80 when nobody says. */
int cmp_text_columns(void);
/** Columns that UTF-8 text takes, one per character. */
int cmp_text_width(const char *text);
/** Writes text in lines of at most width columns, prefix before each, as cmp_text_put() does. */
void cmp_text_wrap(FILE *out, const char *prefix, const char *text, int width);
/** Writes n blanks. */
void cmp_text_pad(FILE *out, int n);
/** Writes a blank, then text at the right end of width columns. */
void cmp_text_right(FILE *out, const char *text, int width);
/** Writes text, bold with colour, and fills width columns. */
void cmp_text_bold(FILE *out, int colour, const char *text, int width);
/** Writes a field of CSV, in quotes where it needs them. */
void cmp_csv_field(FILE *out, const char *s);
/** Writes the text of a cell of Markdown: a bar would end it. */
void cmp_md_cell(FILE *out, const char *s);

#endif
