/* SPDX-License-Identifier: MIT
 * pool.c: the model's threads. The forward pass calls it some hundred times a token, so a run costs
 * about a microsecond while the threads spin. Which thread computes an item is left to chance:
 * results must not depend on it. It must not know what an item is. */
#include "pool.h"

#include "cpu.h"
#include "os.h"

#include <pthread.h>
#include <sched.h>
#include <stdalign.h>
#include <stdatomic.h>

/* How a run works. Every thread has a share: a span of the items, in one word with the run's
 * number. It takes a part of what is left from the front of its own share, whose line nobody else
 * touches meanwhile, and then from the back of the others', by compare-and-swap on the whole word,
 * so that one that comes late can't take an item of a later run by mistake. The caller waits for
 * items, not for threads: a thread that the system doesn't schedule holds nobody up. Between runs
 * all shares are used up, and only then what they say is replaced, the word last. */
enum {
    SPIN_NS = 50000,   /* how long a thread waits for work before it sleeps or yields */
    SPIN_BATCH = 32,   /* looks at the share between looks at the clock */
    SPAN_MOST = 65535, /* items of a run: next and end take 16 bits each */
    PART = 4           /* of what is left in a share, one part in so many is taken at once */
};

/* One thread's share of the present run, and what to do with it: all that it has to fetch from the
 * caller's core is this line. */
typedef struct share {
    alignas(64) _Atomic uint64_t left; /* run << 32 | next item << 16 | end */
    _Atomic(kvc__pool_fn) fn;
    _Atomic(void *) arg;
    _Atomic uint32_t base; /* added to items */
} share;

/* One started thread. */
typedef struct worker {
    pthread_t handle;
    struct kvc__pool *pool;
    uint32_t thread;
} worker;

struct kvc__pool {
    kvc__mem *mem;
    worker *worker;    /* [n_thread - 1] */
    uint32_t n_thread; /* with the caller */
    uint32_t n_started;
    bool crowded; /* more threads than cores: spinning keeps others from working */
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    atomic_bool running; /* a run is on: another one begun meanwhile stays with its caller */

    share *share; /* [n_thread] */

    /* Each line below is written by other threads than the ones before it. */
    alignas(64) _Atomic uint32_t n_done; /* items of the present run */
    alignas(64) _Atomic uint32_t n_asleep;
    atomic_bool stop;
};

static uint64_t run_of(uint64_t left) {
    return left >> 32;
}

/* Does the items of a share, from its front when it is the thread's own, else from its back;
 * returns how many, and in *run the run last seen. A thread that has taken items and not yet
 * counted them can't meet a later run here, since its own isn't over. fn, arg and base may be read
 * while they change, but then the share was used up before and the swap fails: that is what their
 * acquire loads are for. */
static uint32_t take_share(share *s, bool own, uint32_t thread, uint64_t *run) {
    uint32_t n = 0;
    uint64_t left = atomic_load_explicit(&s->left, memory_order_acquire);
    for (;;) {
        const uint32_t next = (uint32_t)left >> 16, end = (uint32_t)left & SPAN_MOST;
        kvc__pool_fn fn = atomic_load_explicit(&s->fn, memory_order_acquire);
        void *arg = atomic_load_explicit(&s->arg, memory_order_acquire);
        const uint32_t base = atomic_load_explicit(&s->base, memory_order_acquire);
        *run = run_of(left);
        if (next >= end) {
            return n;
        }
        const uint32_t take = (end - next + PART - 1) / PART;
        if (atomic_compare_exchange_weak_explicit(&s->left, &left,
                                                  own ? left + ((uint64_t)take << 16) : left - take,
                                                  memory_order_acq_rel, memory_order_acquire)) {
            const uint32_t first = base + (own ? next : end - take);
            fn(arg, first, first + take, thread);
            n += take;
            left = atomic_load_explicit(&s->left, memory_order_acquire);
        }
    }
}

/* Works until no item is left; returns the run of the thread's share last seen. */
static uint64_t take_items(kvc__pool *pool, uint32_t thread) {
    uint64_t run, other;
    uint32_t n = take_share(&pool->share[thread], true, thread, &run);
    for (uint32_t i = 1; i < pool->n_thread; i++) {
        n += take_share(&pool->share[(thread + i) % pool->n_thread], false, thread, &other);
    }
    if (n > 0) {
        atomic_fetch_add_explicit(&pool->n_done, n, memory_order_release);
    }
    return run;
}

/* True when there is something to do for a thread that has seen run `seen`. Sequentially consistent
 * for the sake of sleep_until_work(). */
static bool has_work(kvc__pool *pool, uint32_t thread, uint64_t seen) {
    return run_of(atomic_load(&pool->share[thread].left)) != seen || atomic_load(&pool->stop);
}

/* Spins for a bounded time; false when that was in vain. */
static bool spin_until_work(kvc__pool *pool, uint32_t thread, uint64_t seen) {
    uint64_t start = kvc__clock_ns();
    do {
        for (int i = 0; i < SPIN_BATCH; i++) {
            if (has_work(pool, thread, seen)) {
                return true;
            }
            kvc__pause();
        }
        if (pool->crowded) {
            sched_yield();
        }
    } while (kvc__clock_ns() - start < SPIN_NS);
    return false;
}

/* The sleeper first counts itself, then looks at its share; open_run() first changes the shares,
 * then looks at the count. In the one order that all threads agree on, one of the two sees the
 * other, so no wake-up is lost. */
static void sleep_until_work(kvc__pool *pool, uint32_t thread, uint64_t seen) {
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->n_asleep, 1);
    while (!has_work(pool, thread, seen)) {
        pthread_cond_wait(&pool->wake, &pool->mutex);
    }
    atomic_fetch_sub(&pool->n_asleep, 1);
    pthread_mutex_unlock(&pool->mutex);
}

static void *worker_main(void *arg) {
    worker *w = arg;
    kvc__pool *pool = w->pool;
    uint64_t seen = 0;
    (void)kvc__fp_enter();
    for (;;) {
        if (!spin_until_work(pool, w->thread, seen)) {
            sleep_until_work(pool, w->thread, seen);
        }
        if (atomic_load(&pool->stop)) {
            return NULL;
        }
        seen = take_items(pool, w->thread);
    }
}

static void wake_all(kvc__pool *pool) {
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

static void open_run(kvc__pool *pool, uint32_t base, uint32_t n, kvc__pool_fn fn, void *arg) {
    const uint32_t threads = pool->n_thread;
    const uint64_t run =
        run_of(atomic_load_explicit(&pool->share[0].left, memory_order_relaxed)) + 1;
    atomic_store_explicit(&pool->n_done, 0, memory_order_relaxed);
    for (uint32_t i = 0; i < threads; i++) {
        share *s = &pool->share[i];
        const uint64_t first = (uint64_t)n * i / threads, end = (uint64_t)n * (i + 1) / threads;
        atomic_store_explicit(&s->fn, fn, memory_order_release);
        atomic_store_explicit(&s->arg, arg, memory_order_release);
        atomic_store_explicit(&s->base, base, memory_order_release);
        atomic_store(&s->left, run << 32 | first << 16 | end);
    }
    if (atomic_load(&pool->n_asleep) > 0) {
        wake_all(pool);
    }
}

/* One run of at most SPAN_MOST items. */
static void run_span(kvc__pool *pool, uint32_t base, uint32_t n, kvc__pool_fn fn, void *arg) {
    open_run(pool, base, n, fn, arg);
    take_items(pool, 0);
    uint64_t start = 0;
    for (uint32_t look = 1; atomic_load_explicit(&pool->n_done, memory_order_acquire) != n;
         look++) {
        kvc__pause();
        if (look % SPIN_BATCH != 0) {
            continue;
        }
        uint64_t now = kvc__clock_ns();
        start = start ? start : now;
        if (pool->crowded || now - start > SPIN_NS) {
            sched_yield();
        }
    }
}

void kvc__pool_run(kvc__pool *pool, uint32_t n, kvc__pool_fn fn, void *arg) {
    if (n <= 1 || pool->n_thread == 1 ||
        atomic_exchange_explicit(&pool->running, true, memory_order_acquire)) {
        if (n > 0) {
            fn(arg, 0, n, 0);
        }
        return;
    }
    for (uint32_t base = 0, span; base < n; base += span) {
        span = n - base < SPAN_MOST ? n - base : SPAN_MOST;
        run_span(pool, base, span, fn, arg);
    }
    atomic_store_explicit(&pool->running, false, memory_order_release);
}

static int32_t start_workers(kvc__pool *pool, kvc__err *err) {
    int failed = 0;
    while (!failed && pool->n_started + 1 < pool->n_thread) {
        worker *w = &pool->worker[pool->n_started];
        w->pool = pool;
        w->thread = pool->n_started + 1;
        failed = kvc__thread_start(&w->handle, worker_main, w);
        pool->n_started += failed ? 0 : 1;
    }
    if (failed) {
        return kvc__fail(err, KVC_E_NOMEM,
                         "thread %u of %u can't be started; ask for fewer with n_threads",
                         pool->n_started + 2, pool->n_thread);
    }
    return KVC_OK;
}

/* Sets up all but the threads; on failure nothing is held. */
static int32_t create_idle(kvc__mem *mem, uint32_t n_thread, kvc__pool **out, kvc__err *err) {
    kvc__pool *pool = kvc__alloc(mem, sizeof(*pool));
    share *shares = kvc__alloc_n(mem, n_thread, sizeof(*shares));
    worker *workers = n_thread > 1 ? kvc__alloc_n(mem, n_thread - 1, sizeof(*workers)) : NULL;
    if (!pool || !shares || (n_thread > 1 && !workers)) {
        goto nomem;
    }
    if (pthread_mutex_init(&pool->mutex, NULL) != 0) {
        goto nomem;
    }
    if (pthread_cond_init(&pool->wake, NULL) != 0) {
        pthread_mutex_destroy(&pool->mutex);
        goto nomem;
    }
    pool->mem = mem;
    pool->worker = workers;
    pool->share = shares;
    pool->n_thread = n_thread;
    pool->crowded = n_thread > kvc__n_core();
    atomic_init(&pool->running, false);
    *out = pool;
    return KVC_OK;
nomem:
    kvc__free(mem, workers, (n_thread - 1) * sizeof(*workers));
    kvc__free(mem, shares, n_thread * sizeof(*shares));
    kvc__free(mem, pool, sizeof(*pool));
    return kvc__fail(err, KVC_E_NOMEM, "out of memory for a pool of %u threads", n_thread);
}

int32_t kvc__pool_create(kvc__mem *mem, uint32_t n_thread, kvc__pool **out, kvc__err *err) {
    n_thread = n_thread < 1 ? 1 : n_thread > KVC__POOL_MAX ? KVC__POOL_MAX : n_thread;
    *out = NULL;
    kvc__pool *pool = NULL;
    KVC_TRY(create_idle(mem, n_thread, &pool, err));
    int32_t rc = start_workers(pool, err);
    if (rc < 0) {
        kvc__pool_destroy(pool);
        return rc;
    }
    *out = pool;
    return KVC_OK;
}

void kvc__pool_destroy(kvc__pool *pool) {
    if (!pool) {
        return;
    }
    atomic_store(&pool->stop, true);
    wake_all(pool);
    for (uint32_t i = 0; i < pool->n_started; i++) {
        pthread_join(pool->worker[i].handle, NULL);
    }
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    kvc__mem *mem = pool->mem;
    kvc__free(mem, pool->worker, (pool->n_thread - 1) * sizeof(*pool->worker));
    kvc__free(mem, pool->share, pool->n_thread * sizeof(*pool->share));
    kvc__free(mem, pool, sizeof(*pool));
}

uint32_t kvc__pool_n_thread(const kvc__pool *pool) {
    return pool->n_thread;
}
