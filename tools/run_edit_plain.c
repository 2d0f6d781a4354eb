/* SPDX-License-Identifier: MIT
 * run_edit_plain.c: the chat's line as the terminal gives it, in builds without libedit: it can be
 * erased, not edited or called back. Ctrl-C is made a character that ends a line. */
#include "run_edit.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#define BREAK '\003'

static FILE *screen;
static char *text;
static size_t cap;
static struct termios saved;
static bool is_saved;

int run_edit_start(FILE *out) {
    screen = out;
    is_saved = tcgetattr(STDIN_FILENO, &saved) == 0;
    return 0;
}

static void listen_for_break(void) {
    if (is_saved) {
        struct termios t = saved;
        t.c_cc[VINTR] = _POSIX_VDISABLE;
        t.c_cc[VEOL] = BREAK;
        tcsetattr(STDIN_FILENO, TCSANOW, &t);
    }
}

/* Up to the end of a line, its end included. Returns the length, 0 at the end of input. */
static size_t read_line(void) {
    size_t n = 0;
    for (;;) {
        if (cap - n < 4096) {
            char *grown = realloc(text, cap + 8192);
            if (grown == NULL) {
                return 0;
            }
            text = grown;
            cap += 8192;
        }
        const ssize_t got = read(STDIN_FILENO, text + n, cap - n - 1);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return n;
        }
        n += (size_t)got;
        if (text[n - 1] == '\n' || text[n - 1] == BREAK) {
            return n;
        }
    }
}

int run_edit_line(const char *prompt, const char **line) {
    *line = "";
    listen_for_break();
    fputs(prompt, screen);
    fflush(screen);
    const size_t n = read_line();
    if (is_saved) {
        tcsetattr(STDIN_FILENO, TCSANOW, &saved);
    }
    if (n == 0) {
        return RUN_EDIT_END;
    }
    if (text[n - 1] == BREAK) {
        fputc('\n', screen);
        return n == 1 ? RUN_EDIT_BREAK : RUN_EDIT_CLEARED;
    }
    text[text[n - 1] == '\n' ? n - 1 : n] = '\0';
    *line = text;
    return RUN_EDIT_LINE;
}

void run_edit_remember(const char *message) {
    (void)message;
}

void run_edit_restore(void) {
    if (is_saved) {
        tcsetattr(STDIN_FILENO, TCSANOW, &saved);
    }
}

/* Lines that are typed ahead would not be shown later either. */
void run_edit_hush(void) {
}

void run_edit_end(void) {
    free(text);
    text = NULL;
    cap = 0;
}
