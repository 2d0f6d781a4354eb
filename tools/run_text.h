/* SPDX-License-Identifier: MIT
 * run_text.h: bytes of an answer, as tokens give them, to text that may be shown. A token may end
 * inside a character, a stop text may lie across tokens, and a model may write what would drive a
 * terminal: nothing of that reaches the reader. It knows no model. */
#ifndef KVC_RUN_TEXT_H
#define KVC_RUN_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

/** How text is shown. */
enum {
    RUN_TEXT_CONTROLS = 1u << 0, /* control characters pass */
    RUN_TEXT_TRIM = 1u << 1      /* blanks at the beginning don't */
};

/** An answer on its way; begun by run_text_begin(). */
typedef struct run_text {
    FILE *out;
    const char *const *stop; /* [n_stop] */
    size_t n_stop;
    unsigned flags; /* RUN_TEXT_… */
    bool begun;     /* something but blanks came */
    bool stopped;   /* a stop text was met: what follows is dropped */
    bool failed;    /* out of memory */
    char *held;     /* bytes that may begin a stop text */
    size_t n_held, cap_held;
    unsigned char part[4]; /* a character that isn't whole, or a carriage return */
    size_t n_part;
} run_text;

/** Begins an answer that goes to out. Whole UTF-8 characters are written; each maximal part of a
 * broken one becomes U+FFFD, and so does, without RUN_TEXT_CONTROLS, each control character but
 * tab, line end and a carriage return before it. Where one of stop[n_stop] begins, the text ends;
 * the texts must live as long. */
void run_text_begin(run_text *t, FILE *out, const char *const *stop, size_t n_stop, unsigned flags);
/** Adds bytes and writes what can be written. Returns true once a stop text was met. */
bool run_text_add(run_text *t, const char *bytes, size_t n);
/** Ends it: what was held back is written. Frees. */
void run_text_end(run_text *t);

#endif
