/* SPDX-License-Identifier: MIT
 * outcome.h: how a tool ends: exit codes, its sentence on stderr, and its text on stdout or in a
 * file. It knows nothing of what was measured. */
#ifndef KVC_OUTCOME_H
#define KVC_OUTCOME_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/** Exit codes, beside 0. */
enum {
    CMP_EXIT_FAILED = 1,
    CMP_EXIT_USAGE = 2, /* the command line is wrong, a spec on it included */
    CMP_EXIT_GATE = 3,
    CMP_EXIT_INTERRUPTED = 130
};

/** Bytes that grow. */
typedef struct cmp_bytes {
    char *p;
    size_t n;
} cmp_bytes;

/** Puts /dev/null on descriptors 0 to 2 that are closed, so that no file that is opened later
 * becomes one of them; reading from them or writing to them fails. First of all in main(). */
void cmp_streams_hold(void);
/** Names the tool that speaks, "kvcompare" unless said; before anything else. Static text. */
void cmp_outcome_tool(const char *name);
/** Ends the progress line, prints the sentence and returns code; after Ctrl-C nothing is printed
 * and 130 returned. */
int cmp_complain(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
/** A status of the library as an exit code: what the command line names wrongly, or a failure. */
int cmp_exit_code(int32_t status);
/** A kvc_log_fn; user is an int, not 0: show notes too. Each line is shown once, since a policy is
 * opened many times. */
void cmp_log(void *user, uint32_t level, const char *text);
/** Puts a text that was written to stream (of open_memstream(), into *text) to path, or to stdout
 * when path is NULL. Closes stream and frees the text. failed: it can't be whole. */
int cmp_put(FILE *stream, cmp_bytes *text, int failed, const char *path);

#endif
