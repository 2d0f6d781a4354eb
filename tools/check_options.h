/* SPDX-License-Identifier: MIT
 * check_options.h: the command line of kvcheck. */
#ifndef KVC_CHECK_OPTIONS_H
#define KVC_CHECK_OPTIONS_H

#include "check_tests.h"

#define CHK_MAX_FILE 256u

/** The command line. Texts lead into argv, but for file[] and param. */
typedef struct chk_options {
    uint32_t n_file;
    char *file[CHK_MAX_FILE];   /* absolute paths; owned */
    char *params[CHK_MAX_FILE]; /* "size=64" or ""; owned */
    uint32_t n_select;
    const char *select[CHK_MAX_FILE]; /* GROUP or GROUP/NAME; none: all */
    char param[1024];                 /* of --param, for every file */
    uint64_t seed;
    uint32_t timeout; /* seconds */
    bool json, list, in_process, quiet;
    const char *output; /* NULL: standard output */
} chk_options;

/** Parses it. --help and --version end the process with 0, a mistake with 2 and a sentence. */
void chk_options_parse(int argc, char **argv, chk_options *out);
/** Frees what it owns. */
void chk_options_free(chk_options *o);
/** Whether the test was asked for. */
bool chk_options_selects(const chk_options *o, const chk_test *test);

#endif
