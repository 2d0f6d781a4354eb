/* SPDX-License-Identifier: MIT
 * check_report.h: results of kvcheck for a person and for programs. */
#ifndef KVC_CHECK_REPORT_H
#define KVC_CHECK_REPORT_H

#include "check_run.h"

#include <stdio.h>

/** Results of one policy, or of a file before its policies. */
typedef struct chk_part {
    const char *name; /* of the policy; NULL: of the file */
    uint32_t n;
    chk_result *result; /* [n], owned */
} chk_part;

/** Results of one file. */
typedef struct chk_book {
    const char *path, *params;
    uint32_t n_part;
    chk_part *part; /* [n_part], owned: the file, then its policies */
} chk_book;

/** All results. */
typedef struct chk_report {
    uint64_t seed;
    double seconds;
    uint32_t n_book;
    chk_book *book; /* [n_book] */
} chk_report;

/** How results are written for a person. */
typedef struct chk_style {
    bool colour, quiet;
} chk_style;

/** Results of an outcome, by CHK_PASSED, …. */
void chk_report_count(const chk_report *r, uint32_t count[CHK_N_OUTCOME]);
/** Writes the head of a file or of a policy. */
void chk_report_head(FILE *out, chk_style style, const char *path, const char *params,
                     const char *name, uint64_t seed);
/** Writes one test's line and its notes, at most 80 columns. */
void chk_report_line(FILE *out, chk_style style, const chk_result *r);
/** Writes the last line. */
void chk_report_end(FILE *out, chk_style style, const chk_report *r);
/** Writes JSON, schema kvcheck/1. Returns 0, or -1 without memory. */
int chk_report_json(FILE *out, const chk_report *r);
/** Lists the tests. */
void chk_report_tests(FILE *out);

#endif
