/* SPDX-License-Identifier: MIT
 * err.c: writes the sentence that stands beside a status. At the bottom of the library: everything
 * calls it, it calls nothing. It must not know what a sentence is about. */
#include "err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Where text of n bytes is cut to keep at most cap: not inside a UTF-8 character. text[cap] must be
 * readable when n > cap. A character has at most three bytes after its first. */
static size_t cut_at_character(const char *text, size_t n, size_t cap) {
    if (n <= cap) {
        return n;
    }
    size_t cut = cap;
    while (cut > 0 && cap - cut < 3 && ((unsigned char)text[cut] & 0xC0u) == 0x80u) {
        cut--;
    }
    return cut;
}

/* Names out of a file end up in sentences and sentences on a terminal, so control characters are
 * not let through. */
static void mask_controls(char *text, size_t n) {
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c < 0x20u || c == 0x7Fu) {
            text[i] = '?';
        }
    }
}

int32_t kvc__fail(kvc__err *err, int32_t code, const char *format, ...) {
    if (!err) {
        return code;
    }
    /* Formatted aside, so that err's present text may be an argument; one byte longer, so that the
     * first byte cut off can be seen. */
    char text[sizeof(err->text) + 1];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    size_t cut = n < 0 ? 0 : cut_at_character(text, (size_t)n, sizeof(err->text) - 1);
    mask_controls(text, cut);
    memcpy(err->text, text, cut);
    err->text[cut] = '\0';
    return code;
}
