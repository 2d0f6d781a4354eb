/* SPDX-License-Identifier: MIT
 * run_edit.h: lines that a person types. run_edit.c lets them be edited, by libedit;
 * run_edit_plain.c takes them as the terminal gives them, for builds without it. Nothing is written
 * to a file. */
#ifndef KVC_RUN_EDIT_H
#define KVC_RUN_EDIT_H

#include <stdio.h>

/** What came. */
enum {
    RUN_EDIT_LINE = 0,
    RUN_EDIT_CLEARED, /* Ctrl-C, something was typed */
    RUN_EDIT_BREAK,   /* Ctrl-C on an empty line */
    RUN_EDIT_END      /* Ctrl-D, or the terminal is gone */
};

/** Starts; standard input is a terminal, prompts and the line go to out. Returns 0, or -1 without
 * memory. Ctrl-C is a key of the line while one is read. */
int run_edit_start(FILE *out);
/** Reads a line without its end into *line, which is valid until the next call; pasted text may
 * hold line ends. Returns RUN_EDIT_…; prompt is static. */
int run_edit_line(const char *prompt, const char **line);
/** Keeps a text, to be called back by the arrow keys. */
void run_edit_remember(const char *text);
/** Keys wait for the next line and aren't shown before, as far as that can be. Ctrl-C stays a
 * signal. */
void run_edit_hush(void);
/** Gives the terminal back as it was; also from another thread before the process ends. */
void run_edit_restore(void);
/** Ends and frees. */
void run_edit_end(void);

#endif
