/* SPDX-License-Identifier: MIT
 * check_run.h: runs one test in a process of its own, with a time limit, and says what became of
 * it.
 */
#ifndef KVC_CHECK_RUN_H
#define KVC_CHECK_RUN_H

#include "check_tests.h"

/** What became of a test. */
enum { CHK_PASSED, CHK_WARNED, CHK_FAILED, CHK_CRASHED, CHK_SKIPPED, CHK_N_OUTCOME };

/** A note that a test left. */
typedef struct chk_note {
    char kind;
    char *text;
} chk_note;

/** A test's result. */
typedef struct chk_result {
    const chk_test *test;
    int outcome;
    double seconds;
    bool hidden; /* ran for what it says of the file, and wasn't asked for */
    uint32_t n_note;
    chk_note *note; /* [n_note] */
    char *table;    /* of CHK_TABLE, or NULL */
} chk_result;

/** What a test is run on. */
typedef struct chk_target {
    const char *path, *name, *params;
    const char *dir;
    uint64_t seed;
    uint32_t timeout; /* seconds */
    bool in_process;
} chk_target;

/** Word of an outcome: "passed". */
const char *chk_outcome_name(int outcome);
/** Runs it. False, with a sentence on stderr: the system gave no process or memory. */
bool chk_run(const chk_target *target, const chk_test *test, chk_result *out);
/** A result without a run. */
bool chk_run_skip(const chk_test *test, const char *why, chk_result *out);
/** Frees what it owns. */
void chk_result_free(chk_result *r);
/** The process of the test that runs, or 0; for a handler of signals. */
extern volatile int chk_run_pid;

#endif
