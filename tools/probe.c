/* SPDX-License-Identifier: MIT
 * probe.c: measures the limits of the machine: threads, clocks, and which instructions to use. What
 * they execute stands in probe_avx*.c. A run is timed from the first thread's start to the last
 * one's end, so that threads that take turns on one core don't count twice. */
#define _DEFAULT_SOURCE /* madvise */
#include "probe.h"

#include "progress.h"

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define BEST_OF     5
#define HUGE_PAGE   ((size_t)2 << 20)   /* looking up addresses is no part of reading */
#define LEAST_BYTES ((size_t)256 << 20) /* read by all threads together, */
#define CACHES      8u                  /* and so many times the last cache at least */
#define RUN_NS      30000000u           /* least time of a run of multiply-adds */
#define MAC_GENERIC 1024u

/* A sanitizer's check of each word would take many times as long as reading it. */
#if defined(__GNUC__)
#define UNCHECKED __attribute__((no_sanitize("address", "undefined", "thread")))
#else
#define UNCHECKED
#endif

enum { WAIT = 0, GO, GIVE_UP };

/* What one thread does. */
typedef struct work {
    pthread_t thread;
    atomic_uint *ready; /* threads that wait */
    atomic_int *go;
    uint64_t *word; /* [n_word] to read */
    size_t n_word;
    int32_t (*multiply)(uint64_t n); /* NULL: read */
    uint64_t n_round;
    uint64_t begin_ns, end_ns;
    uint64_t result; /* kept, so that no work is left out */
} work;

struct cmp_probe {
    uint32_t n_thread;
    work *work; /* [n_thread] */
};

/* ---------------------------------------------------------------- what is executed */

/* Products of bytes in whatever instructions the compiler takes. */
static int32_t multiply_generic(uint64_t n) {
    int8_t a[MAC_GENERIC], b[MAC_GENERIC];
    int32_t sum = 0;
    memset(a, 1, sizeof a);
    memset(b, 2, sizeof b);
    while (n-- > 0) {
        a[n % MAC_GENERIC] ^= 1;
        for (size_t i = 0; i < MAC_GENERIC; i++) {
            sum += a[i] * b[i];
        }
        sum &= 0xffff;
    }
    return sum;
}

/* The best instructions that this processor has, and how many multiply-adds a round is. */
static const char *choose(int32_t (**multiply)(uint64_t n), uint64_t *per_round) {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni")) {
        *multiply = cmp_probe_int8_avx512;
        *per_round = CMP_PROBE_MAC_AVX512;
        return "avx512vnni";
    }
    if (__builtin_cpu_supports("avx2")) {
        *multiply = cmp_probe_int8_avx2;
        *per_round = CMP_PROBE_MAC_AVX2;
        return "avx2";
    }
#endif
    *multiply = multiply_generic;
    *per_round = MAC_GENERIC;
    return "generic";
}

UNCHECKED static uint64_t read_words(const uint64_t *p, size_t n) {
    uint64_t sum[8] = {0};
    for (size_t i = 0; i + 8 <= n; i += 8) {
        for (size_t k = 0; k < 8; k++) {
            sum[k] += p[i + k];
        }
    }
    return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

/* ---------------------------------------------------------------- threads */

static void *run_part(void *arg) {
    work *w = arg;
    atomic_fetch_add(w->ready, 1);
    while (atomic_load(w->go) == WAIT) {
        sched_yield();
    }
    if (atomic_load(w->go) == GIVE_UP) {
        return NULL;
    }
    w->begin_ns = cmp_clock_ns();
    w->result += w->multiply == NULL ? read_words(w->word, w->n_word)
                                     : (uint64_t)(int64_t)w->multiply(w->n_round);
    w->end_ns = cmp_clock_ns();
    return NULL;
}

/* Seconds from the first thread's start to the last one's end; 0 when one can't be started. The
 * calling thread does the first part. */
static double run_all(work *w, uint32_t n) {
    atomic_uint ready = 0;
    atomic_int go = WAIT;
    uint32_t started = 1;
    for (uint32_t i = 0; i < n; i++) {
        w[i].ready = &ready;
        w[i].go = &go;
    }
    while (started < n && pthread_create(&w[started].thread, NULL, run_part, &w[started]) == 0) {
        started++;
    }
    while (atomic_load(&ready) + 1 < started) {
        sched_yield();
    }
    atomic_store(&go, started == n ? GO : GIVE_UP);
    run_part(&w[0]);
    uint64_t begin = w[0].begin_ns, end = w[0].end_ns;
    for (uint32_t i = 1; i < started; i++) {
        pthread_join(w[i].thread, NULL);
        begin = w[i].begin_ns < begin ? w[i].begin_ns : begin;
        end = w[i].end_ns > end ? w[i].end_ns : end;
    }
    return started == n ? (double)(end - begin) * 1e-9 : 0;
}

/* amount / seconds of the best of some runs, in units of 1e9; NaN when threads fail. */
static double best_rate(work *w, uint32_t n, double amount, int runs) {
    double best = 0;
    for (int i = 0; i < runs; i++) {
        const double sec = run_all(w, n);
        if (!(sec > 0)) {
            return NAN;
        }
        best = fmax(best, amount / sec * 1e-9);
    }
    return best;
}

/* ---------------------------------------------------------------- reading */

/* Bytes that each thread reads, of so many in all or of as many as it takes. */
static size_t part_bytes(uint32_t n_thread, size_t bytes) {
    size_t all = bytes > 0 ? bytes : LEAST_BYTES;
#ifdef _SC_LEVEL3_CACHE_SIZE
    const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    const size_t want = bytes == 0 && cache > 0 ? (size_t)cache * CACHES : 0;
    all = want > all ? want : all;
#endif
    return (all / n_thread + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
}

static double read_rate(cmp_probe *p, int runs) {
    double bytes = 0;
    for (uint32_t i = 0; i < p->n_thread; i++) {
        p->work[i].multiply = NULL;
        bytes += (double)(p->work[i].n_word * sizeof *p->work[i].word);
    }
    return best_rate(p->work, p->n_thread, bytes, runs);
}

/* ---------------------------------------------------------------- multiplying */

static double multiply_rate(cmp_probe *p, const char **instructions) {
    int32_t (*multiply)(uint64_t n) = NULL;
    uint64_t per_round = 0, n_round = 1u << 10;
    double sec = 0;
    *instructions = choose(&multiply, &per_round);
    for (uint32_t i = 0; i < p->n_thread; i++) {
        p->work[i].multiply = multiply;
    }
    while (sec < RUN_NS * 1e-9 && n_round < UINT64_MAX / 4) {
        n_round *= 2;
        p->work[0].n_round = n_round;
        sec = run_all(p->work, 1);
    }
    for (uint32_t i = 0; i < p->n_thread; i++) {
        p->work[i].n_round = n_round;
    }
    return best_rate(p->work, p->n_thread,
                     (double)n_round * (double)per_round * (double)p->n_thread, BEST_OF);
}

/* ---------------------------------------------------------------- the probe */

void cmp_limits_init(cmp_limits *l) {
    *l = (cmp_limits){.read_gb_s = NAN, .int8_gmac_s = NAN, .instructions = ""};
}

cmp_probe *cmp_probe_open(uint32_t n_thread, size_t read_bytes) {
    cmp_probe *p = calloc(1, sizeof *p);
    if (p == NULL) {
        return NULL;
    }
    p->work = calloc(n_thread, sizeof *p->work);
    const size_t bytes = part_bytes(n_thread, read_bytes);
    while (p->work != NULL && p->n_thread < n_thread) {
        work *w = &p->work[p->n_thread];
        w->word = aligned_alloc(HUGE_PAGE, bytes);
        if (w->word == NULL) {
            break;
        }
#ifdef MADV_HUGEPAGE
        (void)madvise(w->word, bytes, MADV_HUGEPAGE);
#endif
        memset(w->word, 1, bytes);
        w->n_word = bytes / sizeof *w->word;
        p->n_thread++;
    }
    if (p->n_thread < n_thread) {
        cmp_probe_close(p);
        p = NULL;
    }
    return p;
}

void cmp_probe_close(cmp_probe *p) {
    if (p == NULL) {
        return;
    }
    for (uint32_t i = 0; i < p->n_thread; i++) {
        free(p->work[i].word);
    }
    free(p->work);
    free(p);
}

int cmp_probe_run(cmp_probe *p, cmp_limits *l) {
    const double mac = multiply_rate(p, &l->instructions);
    const double read = read_rate(p, BEST_OF);
    /* fmax() takes the number where one of two is none. */
    l->int8_gmac_s = fmax(l->int8_gmac_s, mac);
    l->read_gb_s = fmax(l->read_gb_s, read);
    return isnan(mac) || isnan(read) ? -1 : 0;
}

void cmp_probe_read(cmp_probe *p, cmp_limits *l) {
    l->read_gb_s = fmax(l->read_gb_s, read_rate(p, 1));
}
