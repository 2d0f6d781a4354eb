/* SPDX-License-Identifier: MIT
 * test_pool.c: pool.c: every item once, for all shapes of work and thread counts; cheap runs;
 * waking from sleep; starting and stopping. Meant to be run under ThreadSanitizer too. */
#include "cpu.h"
#include "mem.h"
#include "os.h"
#include "pool.h"

#include <check.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Sanitizers slow everything down; times are only checked without. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLOW 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SLOW 1
#endif
#endif
#ifndef SLOW
#define SLOW 0
#endif

enum { MOST_ITEMS = 1000 };
static const uint32_t thread_counts[] = {1, 2, 5};
enum { N_THREAD_COUNT = sizeof(thread_counts) / sizeof(thread_counts[0]) };

static kvc__mem mem;

static kvc__pool *start(uint32_t n_thread) {
    kvc__pool *pool = NULL;
    kvc__err err = {.text = ""};
    kvc__mem_init(&mem, NULL, NULL);
    ck_assert_int_eq(kvc__pool_create(&mem, n_thread, &pool, &err), KVC_OK);
    ck_assert_uint_eq(kvc__pool_n_thread(pool), n_thread);
    return pool;
}

static void stop(kvc__pool *pool) {
    kvc__pool_destroy(pool);
    ck_assert_uint_eq(atomic_load(&mem.used), 0);
}

/* Plain memory on purpose: the pool alone orders what items write and the caller reads. */
typedef struct work {
    uint32_t n_thread;
    uint32_t round;
    uint32_t seen[MOST_ITEMS];       /* rounds in which the item was done */
    uint64_t sum_of_thread[300];     /* scratch of each thread's own */
    uint32_t bad_thread[MOST_ITEMS]; /* items given to a thread that isn't there */
} work;

/* Item by item: what most tests are about. */
typedef struct items {
    void (*fn)(void *arg, uint32_t item, uint32_t thread);
    void *arg;
} items;

static void items_span(void *arg, uint32_t first, uint32_t end, uint32_t thread) {
    const items *i = arg;
    for (; first < end; first++) {
        i->fn(i->arg, first, thread);
    }
}

static void run_items(kvc__pool *pool, uint32_t n, void (*fn)(void *, uint32_t, uint32_t),
                      void *arg) {
    items i = {fn, arg};
    kvc__pool_run(pool, n, items_span, &i);
}

static void do_item(void *arg, uint32_t item, uint32_t thread) {
    work *w = arg;
    w->bad_thread[item] = thread >= w->n_thread;
    w->seen[item] += 1;
    w->sum_of_thread[thread] += item + w->round;
}

/* Long enough for the other threads to take their share. */
static void do_slow_item(void *arg, uint32_t item, uint32_t thread) {
    for (uint32_t i = 0; i < 20 + item % 3 * 10; i++) {
        kvc__pause();
    }
    do_item(arg, item, thread);
}

static void do_nothing(void *arg, uint32_t item, uint32_t thread) {
    (void)arg;
    (void)item;
    (void)thread;
}

/* One run of n items: each is done once, and the threads' sums make the whole. */
static void check_run(kvc__pool *pool, work *w, uint32_t n) {
    memset(w, 0, sizeof(*w));
    w->n_thread = kvc__pool_n_thread(pool);
    w->round = n % 7;
    run_items(pool, n, do_item, w);
    uint64_t sum = 0;
    for (uint32_t i = 0; i < w->n_thread; i++) {
        sum += w->sum_of_thread[i];
    }
    ck_assert_uint_eq(sum, (uint64_t)n * (n - 1) / 2 + (uint64_t)n * w->round);
    for (uint32_t i = 0; i < MOST_ITEMS; i++) {
        if (w->seen[i] != (i < n) || w->bad_thread[i] != 0) {
            ck_abort_msg("item %u of %u was done %u times", i, n, w->seen[i]);
        }
    }
}

static void note_span(void *arg, uint32_t first, uint32_t end, uint32_t thread) {
    work *w = arg;
    (void)thread;
    for (uint32_t i = first; i < end && end <= MOST_ITEMS; i++) {
        w->seen[i] = end - first;
    }
}

/* A thread takes a quarter of what is left of a share: none has much more to do than the others
 * when the others are done. */
START_TEST(spans_get_shorter) {
    work *w = malloc(sizeof(*w));
    ck_assert_ptr_nonnull(w);
    kvc__pool *pool = start(2);
    for (int round = 0; round < 100; round++) {
        memset(w, 0, sizeof *w);
        kvc__pool_run(pool, 80, note_span, w);
        uint32_t most = 0, single = 0;
        for (uint32_t i = 0; i < 80; i++) {
            ck_assert_uint_ge(w->seen[i], 1);
            most = w->seen[i] > most ? w->seen[i] : most;
            single += w->seen[i] == 1;
        }
        ck_assert_uint_eq(most, 10); /* a quarter of a half */
        ck_assert_uint_ge(single, 2);
    }
    stop(pool);
    pool = start(1);
    kvc__pool_run(pool, 80, note_span, w);
    ck_assert_uint_eq(w->seen[0], 80);
    stop(pool);
    free(w);
}
END_TEST

START_TEST(every_item_is_done_once) {
    static const uint32_t counts[] = {1, 2, 3, 4, 5, 6, 17, 64, MOST_ITEMS};
    work *w = malloc(sizeof(*w));
    ck_assert_ptr_nonnull(w);
    kvc__pool *pool = start(thread_counts[_i]);
    for (int round = 0; round < 40; round++) {
        for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
            check_run(pool, w, counts[i]);
        }
    }
    stop(pool);
    free(w);
}
END_TEST

/* Runs close behind each other, with another function, argument and count each time: a thread that
 * comes late must not mix two. */
START_TEST(runs_back_to_back_do_not_mix) {
    work *w = calloc(2, sizeof(*w));
    ck_assert_ptr_nonnull(w);
    kvc__pool *pool = start(thread_counts[_i]);
    w[0].n_thread = w[1].n_thread = thread_counts[_i];
    uint32_t want[2][MOST_ITEMS] = {{0}};
    for (uint32_t round = 0; round < 4000; round++) {
        uint32_t n = round * 7 % 13;
        run_items(pool, n, round % 5 < 2 ? do_slow_item : do_item, &w[round % 2]);
        for (uint32_t i = 0; i < n; i++) {
            want[round % 2][i]++;
        }
        run_items(pool, round % 3, do_nothing, NULL);
    }
    ck_assert_mem_eq(w[0].seen, want[0], sizeof(want[0]));
    ck_assert_mem_eq(w[1].seen, want[1], sizeof(want[1]));
    stop(pool);
    free(w);
}
END_TEST

static void count_item(void *arg, uint32_t item, uint32_t thread) {
    (void)thread;
    atomic_fetch_add(&((atomic_uint *)arg)[item], 1);
}

START_TEST(more_items_than_a_share_can_name) {
    enum { MANY = 200001 };
    atomic_uint *seen = calloc(MANY, sizeof *seen);
    ck_assert_ptr_nonnull(seen);
    kvc__pool *pool = start(thread_counts[_i]);
    run_items(pool, MANY, count_item, seen);
    for (uint32_t i = 0; i < MANY; i++) {
        ck_assert_uint_eq(atomic_load(&seen[i]), 1);
    }
    stop(pool);
    free(seen);
}
END_TEST

START_TEST(no_items_call_nothing) {
    kvc__pool *pool = start(thread_counts[_i]);
    kvc__pool_run(pool, 0, NULL, NULL);
    stop(pool);
}
END_TEST

typedef struct callers {
    pthread_t caller;
    uint32_t n_run;
    uint32_t n_other; /* runs on another thread, or of another item */
} callers;

static void note_caller(void *arg, uint32_t item, uint32_t thread) {
    callers *c = arg;
    c->n_run++;
    c->n_other += item != 0 || thread != 0 || !pthread_equal(c->caller, pthread_self());
}

START_TEST(a_single_item_runs_on_the_caller) {
    kvc__pool *pool = start(thread_counts[_i]);
    callers c = {.caller = pthread_self()};
    for (int i = 0; i < 500000; i++) {
        run_items(pool, 1, note_caller, &c);
    }
    ck_assert_uint_eq(c.n_run, 500000);
    ck_assert_uint_eq(c.n_other, 0);
    stop(pool);
}
END_TEST

START_TEST(twenty_thousand_empty_runs_take_under_a_second) {
    kvc__pool *pool = start(thread_counts[_i]);
    uint64_t before = kvc__clock_ns();
    for (int i = 0; i < 20000; i++) {
        run_items(pool, 2, do_nothing, NULL);
    }
    uint64_t ns = kvc__clock_ns() - before;
    ck_assert(SLOW || ns < 1000000000u);
    stop(pool);
}
END_TEST

/* Longer than threads spin: they sleep and are woken. The short pauses end near the moment at which
 * they fall asleep. */
START_TEST(a_run_wakes_threads_that_sleep) {
    work *w = malloc(sizeof(*w));
    ck_assert_ptr_nonnull(w);
    kvc__pool *pool = start(thread_counts[_i]);
    for (int round = 0; round < 200; round++) {
        long us = round < 10 ? 5000 : 30 + round % 60;
        struct timespec t = {.tv_nsec = us * 1000};
        nanosleep(&t, NULL);
        check_run(pool, w, 8);
    }
    stop(pool);
    free(w);
}
END_TEST

typedef struct meeting {
    atomic_uint n_here;
    atomic_uint n_met;
} meeting;

/* Waits, at most two seconds, until two threads are inside at once. */
static void meet(void *arg, uint32_t item, uint32_t thread) {
    meeting *m = arg;
    const uint32_t n = 2;
    (void)item;
    (void)thread;
    uint64_t start_ns = kvc__clock_ns();
    atomic_fetch_add(&m->n_here, 1);
    while (atomic_load(&m->n_here) < n && kvc__clock_ns() - start_ns < 2000000000u) {
        kvc__pause();
    }
    atomic_fetch_add(&m->n_met, atomic_load(&m->n_here) >= n);
}

START_TEST(threads_work_at_the_same_time_also_after_sleep) {
    kvc__pool *pool = start(2);
    for (int round = 0; round < 5; round++) {
        struct timespec t = {.tv_nsec = 5000000};
        nanosleep(&t, NULL);
        meeting m = {0, 0};
        run_items(pool, 2, meet, &m);
        ck_assert_uint_eq(atomic_load(&m.n_met), 2);
    }
    stop(pool);
}
END_TEST

typedef struct nest {
    kvc__pool *pool;
    atomic_uint n_inner;
    atomic_uint n_strange; /* inner items on another thread than their run's caller */
} nest;

typedef struct inner {
    nest *of;
    pthread_t caller;
} inner;

static void inner_item(void *arg, uint32_t item, uint32_t thread) {
    inner *in = arg;
    (void)item;
    atomic_fetch_add(&in->of->n_inner, 1);
    atomic_fetch_add(&in->of->n_strange, thread != 0 || !pthread_equal(in->caller, pthread_self()));
}

static void outer_item(void *arg, uint32_t item, uint32_t thread) {
    nest *n = arg;
    inner in = {n, pthread_self()};
    (void)item;
    (void)thread;
    run_items(n->pool, 5, inner_item, &in);
}

/* It stays on the thread that began it, and the outer run goes on. */
START_TEST(a_run_inside_a_run_stays_with_its_caller) {
    work *w = malloc(sizeof(*w));
    ck_assert_ptr_nonnull(w);
    nest n = {.pool = start(thread_counts[_i])};
    for (int round = 0; round < 500; round++) {
        run_items(n.pool, 7, outer_item, &n);
    }
    ck_assert_uint_eq(atomic_load(&n.n_inner), 500 * 7 * 5);
    ck_assert_uint_eq(atomic_load(&n.n_strange), 0);
    check_run(n.pool, w, 64);
    stop(n.pool);
    free(w);
}
END_TEST

static void *run_beside(void *arg) {
    kvc__pool *pool = arg;
    work *w = malloc(sizeof(*w));
    ck_assert_ptr_nonnull(w);
    for (int round = 0; round < 500; round++) {
        memset(w, 0, sizeof(*w));
        w->n_thread = kvc__pool_n_thread(pool);
        run_items(pool, 9, do_slow_item, w);
        for (uint32_t i = 0; i < 9; i++) {
            ck_assert_uint_eq(w->seen[i], 1);
        }
    }
    free(w);
    return NULL;
}

START_TEST(two_callers_do_not_mix) {
    kvc__pool *pool = start(thread_counts[_i]);
    pthread_t other;
    ck_assert_int_eq(pthread_create(&other, NULL, run_beside, pool), 0);
    run_beside(pool);
    ck_assert_int_eq(pthread_join(other, NULL), 0);
    stop(pool);
}
END_TEST

START_TEST(pools_come_and_go) {
    work *w = malloc(sizeof(*w));
    ck_assert_ptr_nonnull(w);
    for (int round = 0; round < 60; round++) {
        kvc__pool *pool = start(thread_counts[_i]);
        if (round % 3 != 0) {
            check_run(pool, w, 9);
        }
        if (round % 10 == 0) {
            struct timespec t = {.tv_nsec = 1000000};
            nanosleep(&t, NULL);
        }
        stop(pool);
    }
    kvc__pool_destroy(NULL);
    free(w);
}
END_TEST

START_TEST(the_count_of_threads_is_brought_into_range) {
    kvc__mem_init(&mem, NULL, NULL);
    kvc__pool *pool = NULL;
    ck_assert_int_eq(kvc__pool_create(&mem, 0, &pool, NULL), KVC_OK);
    ck_assert_uint_eq(kvc__pool_n_thread(pool), 1);
    stop(pool);
    ck_assert_int_eq(kvc__pool_create(&mem, 100000, &pool, NULL), KVC_OK);
    ck_assert_uint_eq(kvc__pool_n_thread(pool), KVC__POOL_MAX);
    stop(pool);
}
END_TEST

/* Fails at the call whose number is left in ctx. */
static void *failing_realloc(void *ctx, void *p, size_t old_size, size_t new_size, size_t align) {
    int *left = ctx;
    void *q = NULL;
    (void)old_size;
    if (new_size == 0) {
        free(p);
        return NULL;
    }
    if (p || (*left)-- == 0 || posix_memalign(&q, align, new_size) != 0) {
        return NULL;
    }
    return q;
}

START_TEST(no_memory_is_answered_and_nothing_leaks) {
    int left = _i;
    kvc_allocator a = {.struct_size = sizeof(a), .ctx = &left, .realloc = failing_realloc};
    kvc__pool *pool = NULL;
    kvc__err err = {.text = ""};
    kvc__mem_init(&mem, &a, NULL);
    ck_assert_int_eq(kvc__pool_create(&mem, 3, &pool, &err), KVC_E_NOMEM);
    ck_assert_ptr_null(pool);
    ck_assert_str_ne(err.text, "");
    ck_assert_uint_eq(atomic_load(&mem.used), 0);
}
END_TEST

typedef struct masks {
    int term_blocked[2];
    int segv_blocked[2];
    uint32_t fp[2];
    meeting both;
} masks;

static void read_mask(void *arg, uint32_t item, uint32_t thread) {
    masks *m = arg;
    sigset_t set;
    meet(&m->both, item, thread);
    pthread_sigmask(SIG_SETMASK, NULL, &set);
    m->term_blocked[thread] = sigismember(&set, SIGTERM);
    m->segv_blocked[thread] = sigismember(&set, SIGSEGV);
    m->fp[thread] = kvc__fp_enter() & ~0x3Fu; /* the flags that operations raise */
}

START_TEST(workers_take_no_signals_and_compute_like_the_caller) {
    masks m;
    memset(&m, 0, sizeof(m));
    uint32_t saved = kvc__fp_enter();
    kvc__pool *pool = start(2);
    run_items(pool, 2, read_mask, &m);
    stop(pool);
    kvc__fp_leave(saved);
    ck_assert_int_eq(m.term_blocked[0], 0);
    ck_assert_int_eq(m.term_blocked[1], 1);
    ck_assert_int_eq(m.segv_blocked[1], 0);
    ck_assert_uint_eq(m.fp[1], m.fp[0]);
}
END_TEST

START_TEST(the_parent_goes_on_after_fork) {
    work *w = malloc(sizeof(*w));
    ck_assert_ptr_nonnull(w);
    kvc__pool *pool = start(2);
    check_run(pool, w, 50);
    pid_t child = fork();
    if (child == 0) {
        _exit(0);
    }
    ck_assert_int_gt(child, 0);
    check_run(pool, w, 50);
    ck_assert_int_eq(waitpid(child, NULL, 0), child);
    check_run(pool, w, 50);
    stop(pool);
    free(w);
}
END_TEST

static Suite *pool_suite(void) {
    Suite *s = suite_create("pool");
    TCase *t = tcase_create("runs");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, spans_get_shorter);
    tcase_add_loop_test(t, every_item_is_done_once, 0, N_THREAD_COUNT);
    tcase_add_loop_test(t, runs_back_to_back_do_not_mix, 0, N_THREAD_COUNT);
    tcase_add_loop_test(t, more_items_than_a_share_can_name, 0, N_THREAD_COUNT);
    tcase_add_loop_test(t, no_items_call_nothing, 0, N_THREAD_COUNT);
    tcase_add_loop_test(t, a_single_item_runs_on_the_caller, 0, N_THREAD_COUNT);
    tcase_add_loop_test(t, twenty_thousand_empty_runs_take_under_a_second, 0, N_THREAD_COUNT);
    tcase_add_loop_test(t, a_run_wakes_threads_that_sleep, 0, N_THREAD_COUNT);
    tcase_add_test(t, threads_work_at_the_same_time_also_after_sleep);
    tcase_add_loop_test(t, a_run_inside_a_run_stays_with_its_caller, 0, N_THREAD_COUNT);
    tcase_add_loop_test(t, two_callers_do_not_mix, 0, N_THREAD_COUNT);
    suite_add_tcase(s, t);
    t = tcase_create("life");
    tcase_set_timeout(t, 60);
    tcase_add_loop_test(t, pools_come_and_go, 0, N_THREAD_COUNT);
    tcase_add_test(t, the_count_of_threads_is_brought_into_range);
    tcase_add_loop_test(t, no_memory_is_answered_and_nothing_leaks, 0, 2);
    tcase_add_test(t, workers_take_no_signals_and_compute_like_the_caller);
    tcase_add_test(t, the_parent_goes_on_after_fork);
    suite_add_tcase(s, t);
    return s;
}

int main(void) {
    SRunner *runner = srunner_create(pool_suite());
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
