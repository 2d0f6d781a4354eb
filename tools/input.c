/* SPDX-License-Identifier: MIT
 * input.c: reads to the end of a file or of standard input, which may have none. It knows nothing
 * of what it is for. */
#include "input.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* More than any context holds; a device or a pipe may never end. */
#define MOST ((size_t)64 << 20)

static int read_stream(FILE *f, const char *path, cmp_bytes *out) {
    size_t cap = 0;
    for (;;) {
        if (out->n == MOST && getc(f) != EOF) {
            return cmp_complain(CMP_EXIT_FAILED,
                                "%s has more than %zu MiB of text: give a shorter text", path,
                                MOST >> 20);
        }
        if (out->n == cap && cap < MOST) {
            cap = cap > 0 ? 2 * cap : 1u << 16;
            char *p = realloc(out->p, cap);
            if (p == NULL) {
                return cmp_complain(CMP_EXIT_FAILED, "out of memory");
            }
            out->p = p;
        }
        size_t n = fread(out->p + out->n, 1, cap - out->n, f);
        out->n += n;
        if (n == 0) {
            break;
        }
    }
    return ferror(f) ? cmp_complain(CMP_EXIT_FAILED, "%s can't be read: %s", path, strerror(errno))
                     : 0;
}

int cmp_input_read(const char *path, cmp_bytes *out) {
    *out = (cmp_bytes){NULL, 0};
    if (strcmp(path, "-") == 0) {
        return read_stream(stdin, "standard input", out);
    }
    FILE *f = fopen(path, "r");
    if (f == NULL) {
        return cmp_complain(errno == ENOENT ? CMP_EXIT_USAGE : CMP_EXIT_FAILED,
                            "%s can't be opened: %s", path, strerror(errno));
    }
    int rc = read_stream(f, path, out);
    fclose(f);
    return rc;
}
