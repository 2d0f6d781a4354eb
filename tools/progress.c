/* SPDX-License-Identifier: MIT
 * progress.c: the progress line. State is the process's, as its terminal is. It knows nothing of
 * what is measured. */
#include "progress.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define REDRAW_NS 100000000u

static uint64_t drawn_ns;
static int drawn;

uint64_t cmp_clock_ns(void) {
    struct timespec t = {0, 0};
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void cmp_progress(const char *what, uint32_t done, uint32_t total) {
    if (!isatty(STDERR_FILENO)) {
        return;
    }
    uint64_t now = cmp_clock_ns();
    if (drawn && now - drawn_ns < REDRAW_NS) {
        return;
    }
    drawn = 1;
    drawn_ns = now;
    fprintf(stderr, "\r\033[K%.60s: %u of %u", what, done, total);
    fflush(stderr);
}

void cmp_progress_end(void) {
    if (drawn) {
        fputs("\r\033[K", stderr);
        fflush(stderr);
        drawn = 0;
    }
}
