/* SPDX-License-Identifier: MIT
 * run_text.c: two filters in a row. The first holds back bytes that may begin a stop text, the
 * second characters that aren't whole. It must not know where bytes come from. */
#include "run_text.h"

#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- characters */

static void put(run_text *t, const void *p, size_t n) {
    fwrite(p, 1, n, t->out);
}

static void put_broken(run_text *t) {
    put(t, "\xEF\xBF\xBD", 3);
}

/* Bytes of the character that begins with b; 0 when none does. */
static size_t length_of(unsigned char b) {
    return b < 0x80u                  ? 1
           : b >= 0xC2u && b <= 0xDFu ? 2
           : (b & 0xF0u) == 0xE0u     ? 3
           : b >= 0xF0u && b <= 0xF4u ? 4
                                      : 0;
}

/* Whether b may stand at index i, 1 to 3, of the character that begins with first (Unicode 15,
 * table 3-7: no long forms, no surrogates, nothing above U+10FFFF). */
static bool may_follow(unsigned char first, size_t i, unsigned char b) {
    if (i == 1) {
        const unsigned char least = first == 0xE0u ? 0xA0u : first == 0xF0u ? 0x90u : 0x80u;
        const unsigned char most = first == 0xEDu ? 0x9Fu : first == 0xF4u ? 0x8Fu : 0xBFu;
        return b >= least && b <= most;
    }
    return (b & 0xC0u) == 0x80u;
}

/* A whole character, which stands in part. */
static void put_character(run_text *t) {
    const unsigned char *p = t->part;
    const bool control =
        (t->n_part == 1 && (p[0] < 0x20u || p[0] == 0x7Fu) && p[0] != '\n' && p[0] != '\t') ||
        (t->n_part == 2 && p[0] == 0xC2u && p[1] < 0xA0u);
    if (control && (t->flags & RUN_TEXT_CONTROLS) == 0) {
        put_broken(t);
    } else {
        put(t, p, t->n_part);
    }
    t->n_part = 0;
}

/* What has come of a character will not become whole: one sign for all of it. */
static void break_part(run_text *t) {
    if (t->n_part == 1 && t->part[0] == '\r') {
        put_character(t);
    } else if (t->n_part > 0) {
        put_broken(t);
        t->n_part = 0;
    }
}

static void add_byte(run_text *t, unsigned char b) {
    if (!t->begun && b == ' ' && (t->flags & RUN_TEXT_TRIM) != 0) {
        return;
    }
    t->begun = true;
    if (t->n_part > 0 && t->part[0] == '\r') {
        if (b == '\n') {
            put(t, "\r\n", 2);
            t->n_part = 0;
            return;
        }
        break_part(t);
    } else if (t->n_part > 0 && !may_follow(t->part[0], t->n_part, b)) {
        break_part(t);
    }
    if (t->n_part == 0 && length_of(b) == 0) {
        put_broken(t);
        return;
    }
    t->part[t->n_part++] = b;
    if (t->part[0] != '\r' && t->n_part == length_of(t->part[0])) {
        put_character(t);
    }
}

static void add_bytes(run_text *t, const char *p, size_t n) {
    for (size_t i = 0; i < n; i++) {
        add_byte(t, (unsigned char)p[i]);
    }
}

/* ---------------------------------------------------------------- stop texts */

/* Bytes that a stop text and p[0, n) share from their beginnings on. */
static size_t shared(const char *stop, const char *p, size_t n) {
    size_t i = 0;
    while (i < n && stop[i] != '\0' && stop[i] == p[i]) {
        i++;
    }
    return i;
}

/* Bytes of held that can be written: up to the first place where a stop text stands, which sets
 * stopped, or where one may begin, unless nothing follows. */
static size_t free_bytes(run_text *t, bool last) {
    for (size_t at = 0; at < t->n_held; at++) {
        bool may = false;
        for (size_t i = 0; i < t->n_stop; i++) {
            const size_t n = shared(t->stop[i], t->held + at, t->n_held - at);
            t->stopped |= t->stop[i][n] == '\0';
            may |= !last && at + n == t->n_held;
        }
        if (t->stopped || may) {
            return at;
        }
    }
    return t->n_held;
}

static bool hold(run_text *t, const char *bytes, size_t n) {
    if (t->cap_held - t->n_held < n) {
        char *grown = realloc(t->held, t->n_held + n + 256);
        if (grown == NULL) {
            t->failed = true;
            return false;
        }
        t->held = grown;
        t->cap_held = t->n_held + n + 256;
    }
    memcpy(t->held + t->n_held, bytes, n);
    t->n_held += n;
    return true;
}

/* ---------------------------------------------------------------- an answer */

void run_text_begin(run_text *t, FILE *out, const char *const *stop, size_t n_stop,
                    unsigned flags) {
    *t = (run_text){.out = out, .stop = stop, .n_stop = n_stop, .flags = flags};
}

bool run_text_add(run_text *t, const char *bytes, size_t n) {
    if (t->stopped || n == 0 || !hold(t, bytes, n)) {
        return t->stopped;
    }
    const size_t ready = free_bytes(t, false);
    add_bytes(t, t->held, ready);
    t->n_held -= ready;
    memmove(t->held, t->held + ready, t->n_held);
    return t->stopped;
}

void run_text_end(run_text *t) {
    if (!t->stopped) {
        add_bytes(t, t->held, free_bytes(t, true));
    }
    break_part(t);
    free(t->held);
    t->held = NULL;
    t->n_held = t->cap_held = 0;
}
