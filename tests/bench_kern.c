/* SPDX-License-Identifier: MIT
 * bench_kern.c: speed of the kernels: multiply-adds and bytes per second, per level, on one and two
 * threads. Weights are larger than the caches, so figures of few tokens show the memory, those of
 * many the arithmetic. Not a test: it checks nothing. Usage: [KVC_CPU=level] bench_kern [what] */
#include "kern.h"

#include "cpu.h"
#include "gguf.h"
#include "os.h"

#include "kvc/policy.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_COL   576u
#define N_COL_K 512u        /* of K types */
#define WEIGHTS (96u << 20) /* bytes of products with few tokens: beyond any cache */
#define MANY    512u        /* tokens of a prompt */
#define DIM     64u
#define N_PAGE  2048u
#define SECONDS 0.05

typedef struct job {
    const kvc__kern *k;
    void (*run)(struct job *j);
    kvc__mat mat;
    kvc__act act;
    uint32_t g0, g1; /* this thread's groups, or pages */
    uint32_t type, n_q;
    const kvc_packing *pack_k, *pack_v; /* NULL: plain pages of type */
    int rounded;                        /* 1: queries are, to int8 */
    float *out, *tile;
    uint8_t *page;
    size_t page_bytes;
} job;

static void run_mm_q(job *j) {
    const kvc__mat part = kvc__mat_part(&j->mat, j->g0, j->g1);
    j->k->mm_q(&part, &j->act, j->out + (size_t)KVC__GROUP * j->g0, j->mat.n_row);
}

static void run_mm_f(job *j) {
    const kvc__mat part = kvc__mat_part(&j->mat, j->g0, j->g1);
    j->k->mm_f(&part, &j->act, j->out + (size_t)KVC__GROUP * j->g0, j->mat.n_row, j->tile);
}

/* Score, softmax and mix of pages, as attention does. */
static void run_pages(job *j) {
    float s[64 * KVC__ENTRIES], acc[64 * DIM] = {0};
    for (uint32_t p = j->g0; p < j->g1; p++) {
        uint8_t *k = j->page + p * j->page_bytes, *v = k + j->page_bytes / 2;
        if (j->pack_k != NULL) {
            (j->rounded ? j->k->pack_score_q : j->k->pack_score_f)(j->pack_k, k, j->act.f, j->n_q,
                                                                   s);
            (j->rounded ? j->k->pack_mix_q : j->k->pack_mix_f)(j->pack_v, v, s, j->n_q, acc);
        } else {
            j->k->score(j->type, k, DIM, j->act.f, j->n_q, s, KVC__ENTRIES);
            j->k->mix(j->type, v, DIM, s, KVC__ENTRIES, j->n_q, acc);
        }
    }
    memcpy(j->out, acc, sizeof acc);
}

static void run_softmax(job *j) {
    float max[4] = {0}, sum[4] = {0}, down[4];
    for (uint32_t i = 0; i < 1000; i++) {
        memcpy(j->out, j->act.f, 256 * sizeof(float));
        j->k->soften(j->out, 4, max, sum, down);
    }
}

static void *thread_main(void *arg) {
    job *j = arg;
    j->run(j);
    return NULL;
}

/* Seconds of one pass over [0, n) on n_thread threads, the best of several. */
static double measure(job *j, uint32_t n, uint32_t n_thread) {
    job half[2] = {*j, *j};
    double best = 1e9, spent = 0;
    half[0].g1 = n_thread == 2 ? n / 2 : n;
    half[1].g0 = half[0].g1;
    half[1].g1 = n;
    half[1].out = j->out + 64 * DIM * (j->page != NULL ? 1u : 0u);
    half[1].tile = j->tile != NULL ? j->tile + 16 * 4096 : NULL;
    while (spent < SECONDS) {
        pthread_t other;
        const uint64_t t0 = kvc__clock_ns();
        if (n_thread == 2 && pthread_create(&other, NULL, thread_main, &half[1]) != 0) {
            return best;
        }
        half[0].run(&half[0]);
        if (n_thread == 2) {
            pthread_join(other, NULL);
        }
        const double t = (double)(kvc__clock_ns() - t0) * 1e-9;
        best = t < best ? t : best;
        spent += t;
    }
    return best;
}

static void *room(size_t n) {
    uint8_t *p = aligned_alloc(64, (n + 63) / 64 * 64);
    if (p == NULL) {
        exit(1);
    }
    for (size_t i = 0; i < n; i++) {
        p[i] = (uint8_t)(i * 31 % 61); /* small positive halves and floats */
    }
    return p;
}

static void line(const job *j, const char *what, uint32_t n_tok, double macs, double bytes,
                 const double *t) {
    printf("%-7s %-10s %4u  %7.1f %7.1f G/s  %6.1f %6.1f GB/s", j->k->name, what, n_tok,
           macs / t[0] * 1e-9, macs / t[1] * 1e-9, bytes / t[0] * 1e-9, bytes / t[1] * 1e-9);
}

static const char *only = ""; /* what is measured begins with this */

/* n_row 0: as many as WEIGHTS holds. */
static void bench_product(job *j, const char *what, uint32_t type, int q, uint32_t n_tok,
                          uint32_t n_row) {
    double t[2];
    j->act.n_col = N_COL;
    if (kvc__mat_init(&j->mat, type, 16, j->act.n_col, NULL) != KVC_OK) {
        j->act.n_col = N_COL_K;
    }
    if (strncmp(what, only, strlen(only)) != 0 ||
        kvc__mat_init(&j->mat, type, 16, j->act.n_col, NULL) != KVC_OK) {
        return;
    }
    j->mat.n_group = n_row > 0 ? n_row / 16 : (uint32_t)(WEIGHTS / j->mat.group_bytes);
    j->mat.n_row = n_row = 16 * j->mat.n_group;
    j->mat.data = j->page;
    j->page = NULL;
    j->act.n = n_tok;
    j->run = q ? run_mm_q : run_mm_f;
    for (uint32_t n = 1; n <= 2; n++) {
        t[n - 1] = measure(j, j->mat.n_group, n);
    }
    line(j, what, n_tok, (double)n_row * j->act.n_col * n_tok, (double)kvc__mat_bytes(&j->mat), t);
    putchar('\n');
    j->page = j->mat.data;
}

static void bench_pages(job *j, const char *what, size_t half, uint32_t n_q) {
    double t[2];
    if (strncmp(what, only, strlen(only)) != 0) {
        return;
    }
    j->n_q = n_q;
    j->page_bytes = 2 * half;
    j->run = run_pages;
    const uint32_t n_page = n_q > 8 ? N_PAGE / 8 : N_PAGE;
    for (uint32_t n = 1; n <= 2; n++) {
        t[n - 1] = measure(j, n_page, n);
    }
    line(j, what, n_q, 2.0 * KVC__ENTRIES * DIM * n_page * n_q, 2.0 * (double)half * n_page, t);
    printf("  %6.1f %6.1f ns a page and row\n", t[0] * 1e9 / n_page / n_q,
           t[1] * 1e9 / n_page / n_q);
}

/* Every format of pages, and packings with queries as floats (f) and rounded (q). */
static void bench_formats(job *j, uint32_t n_q) {
    static const struct {
        const char *name;
        uint32_t type, bytes;
    } plain[] = {{"page f32", KVC_TYPE_F32, 4},
                 {"page f16", KVC_TYPE_F16, 2},
                 {"page bf16", KVC_TYPE_BF16, 2}};
    static const struct {
        const char *name;
        uint32_t bits, group_dim, group_entry; /* of keys */
    } packed[] = {{"i8", 8, 0, 1}, {"i4", 4, 32, 1}, {"kivi4", 4, 1, 32}, {"kivi2", 2, 1, 32}};
    for (size_t i = 0; i < sizeof plain / sizeof plain[0]; i++) {
        j->type = plain[i].type;
        j->pack_k = NULL;
        bench_pages(j, plain[i].name, (size_t)KVC__ENTRIES * DIM * plain[i].bytes, n_q);
    }
    for (size_t i = 0; i < 2 * sizeof packed / sizeof packed[0]; i++) {
        char name[32];
        kvc_packing k = {.struct_size = sizeof k,
                         .dim = DIM,
                         .bits = packed[i / 2].bits,
                         .group_dim = packed[i / 2].group_dim,
                         .group_entry = packed[i / 2].group_entry,
                         .flags = packed[i / 2].bits < 8 ? KVC_PACK_ZERO : 0};
        kvc_packing v = k;
        v.group_dim = k.bits < 8 ? 32 : 0;
        v.group_entry = 1;
        j->pack_k = &k;
        j->pack_v = &v;
        j->rounded = i % 2 != 0;
        snprintf(name, sizeof name, "%s %c", packed[i / 2].name, j->rounded ? 'q' : 'f');
        const size_t bytes_k = kvc__pack_bytes(&k), bytes_v = kvc__pack_bytes(&v);
        bench_pages(j, name, bytes_k > bytes_v ? bytes_k : bytes_v, n_q);
    }
}

static void bench_level(job *j) {
    static const struct {
        const char *name;
        uint32_t type;
        int q;
    } product[] = {
        {"q8_0 int8", KVC__T_Q8_0, 1}, {"q4_0 int8", KVC__T_Q4_0, 1}, {"q4_1 int8", KVC__T_Q4_1, 1},
        {"q5_0 int8", KVC__T_Q5_0, 1}, {"q5_1 int8", KVC__T_Q5_1, 1}, {"q4_k int8", KVC__T_Q4_K, 1},
        {"q5_k int8", KVC__T_Q5_K, 1}, {"q6_k int8", KVC__T_Q6_K, 1}, {"q6_k f32", KVC__T_Q6_K, 0},
        {"bf16", KVC__T_BF16, 0},      {"q8_0 f32", KVC__T_Q8_0, 0},  {"q4_1 f32", KVC__T_Q4_1, 0},
        {"f16", KVC__T_F16, 0},        {"f32", KVC__T_F32, 0}};
    static const uint32_t few[] = {1, 2, 4, 8, 16};
    for (size_t i = 0; i < sizeof product / sizeof product[0]; i++) {
        for (size_t n = 0; n < sizeof few / sizeof few[0]; n++) {
            if (n % 4 == 0 || product[i].q) {
                bench_product(j, product[i].name, product[i].type, product[i].q, few[n], 0);
            }
        }
        bench_product(j, product[i].name, product[i].type, product[i].q, MANY, 1536);
    }
    for (uint32_t n_q = 1; n_q <= 48; n_q = n_q == 1 ? 3 : n_q + 45) {
        bench_formats(j, n_q);
    }
    if (only[0] != 0) {
        return;
    }
    double t[2];
    j->run = run_softmax;
    t[0] = t[1] = measure(j, 1, 1);
    line(j, "softmax", 1, 256e3, 0, t);
    putchar('\n');
}

int main(int argc, char **argv) {
    job j = {.k = kvc__kern_get()};
    only = argc > 1 ? argv[1] : only;
    kvc__fp_enter();
    j.page = room(WEIGHTS);
    j.out = room(WEIGHTS / 4);
    j.tile = room((size_t)2 * 16 * 4096 * 4);
    j.act = (kvc__act){.n_col = N_COL, .f_stride = N_COL};
    j.act.f = room((size_t)MANY * N_COL * 4);
    j.act.q = room((size_t)MANY * N_COL);
    j.act.d = room((size_t)MANY * N_COL / 4);
    j.act.sum = room((size_t)MANY * N_COL / 4);
    printf("level   what       rows   1 thread 2 threads     1 thread 2 threads\n");
    bench_level(&j);
    return 0;
}
