/* SPDX-License-Identifier: MIT
 * fuzz.h: what the fuzz targets share: reading choices off the front of an input, and properties
 * that must hold. A target defines LLVMFuzzerTestOneInput(); libFuzzer's main() or that of replay.c
 * calls it. */
#ifndef KVC_FUZZ_H
#define KVC_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/** One input; 0. Whatever the bytes are, it returns. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/** What is left of an input. */
typedef struct fuzz_input {
    const uint8_t *p;
    size_t n;
} fuzz_input;

/** The next byte; 0 when there is none. */
static inline uint32_t fuzz_u8(fuzz_input *in) {
    if (in->n == 0) {
        return 0;
    }
    in->n--;
    return *in->p++;
}

/** The next two bytes. */
static inline uint32_t fuzz_u16(fuzz_input *in) {
    const uint32_t low = fuzz_u8(in);
    return low | fuzz_u8(in) << 8;
}

/** A property: what must be true of every input. Its failure is a crash, which a fuzzer keeps. */
static inline void fuzz_check(bool holds, const char *what, const char *more) {
    if (!holds) {
        fprintf(stderr, "not so: %s: %s\n", what, more);
        abort();
    }
}

#endif
