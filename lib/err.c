/* SPDX-License-Identifier: MIT
 * err.c: writes the sentence that stands beside a status. At the bottom of the library: everything
 * calls it, it calls nothing. It must not know what a sentence is about. */
#include "err.h"

#include <stdarg.h>
#include <stdbool.h>
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

/* Bytes of the UTF-8 character at p, of n that are left; 0 when it is none. */
static size_t character(const unsigned char *p, size_t n) {
    const size_t len = p[0] < 0x80u                     ? 1
                       : p[0] >= 0xC2u && p[0] <= 0xDFu ? 2
                       : (p[0] & 0xF0u) == 0xE0u        ? 3
                       : p[0] >= 0xF0u && p[0] <= 0xF4u ? 4
                                                        : 0;
    if (len == 0 || len > n) {
        return 0;
    }
    for (size_t i = 1; i < len; i++) {
        if ((p[i] & 0xC0u) != 0x80u) {
            return 0;
        }
    }
    const bool wrong = (p[0] == 0xE0u && p[1] < 0xA0u) || (p[0] == 0xEDu && p[1] > 0x9Fu) ||
                       (p[0] == 0xF0u && p[1] < 0x90u) || (p[0] == 0xF4u && p[1] > 0x8Fu);
    return wrong ? 0 : len;
}

/* Names out of a file and texts of policies end up on a terminal, so control characters (of one
 * byte, and U+0080 to U+009F) and what isn't UTF-8 are not let through. */
static void mask_controls(char *text, size_t n) {
    for (size_t i = 0; i < n;) {
        const unsigned char *p = (const unsigned char *)text + i;
        const size_t len = character(p, n - i);
        if (len == 0 || p[0] < 0x20u || p[0] == 0x7Fu) {
            text[i] = '?';
        } else if (p[0] == 0xC2u && p[1] < 0xA0u) {
            text[i] = text[i + 1] = '?';
        }
        i += len > 0 ? len : 1;
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
