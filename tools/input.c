/* SPDX-License-Identifier: MIT
 * input.c: reads to the end of a file or of standard input. It knows nothing of what it is for. */
#include "input.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int read_stream(FILE *f, const char *path, cmp_bytes *out) {
    size_t cap = 0;
    for (;;) {
        if (out->n == cap) {
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
