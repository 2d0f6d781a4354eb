/* SPDX-License-Identifier: MIT
 * pool.h: the model's threads. Fork and join: kvc__pool_run() hands out items and returns when all
 * are done. */
#ifndef KVC_POOL_H
#define KVC_POOL_H

#include "err.h"
#include "mem.h"

#include <stdint.h>

typedef struct kvc__pool kvc__pool;

/** Items [first, end) of a run. thread is below the pool's thread count and names scratch of its
 * own. */
typedef void (*kvc__pool_fn)(void *arg, uint32_t first, uint32_t end, uint32_t thread);

enum {
    KVC__POOL_MAX = 256 /* most threads of a pool */
};

/** Starts n_thread - 1 threads (the caller is the first); n_thread is brought into
 * [1, KVC__POOL_MAX]. KVC_E_NOMEM when one can't be started. The threads are the process's own: a
 * child made by fork() has none and must not use the pool, its parent goes on. */
int32_t kvc__pool_create(kvc__mem *mem, uint32_t n_thread, kvc__pool **out, kvc__err *err);
/** Joins the threads; NULL is legal. */
void kvc__pool_destroy(kvc__pool *pool);
/** Threads, the caller included. */
uint32_t kvc__pool_n_thread(const kvc__pool *pool);
/** Calls fn for spans that make up [0, n), each item in one of them, in any order, on all threads;
 * returns when all are done and their writes are visible. Spans are long at first and single items
 * at the end, so that threads end together and yet nearly all of a thread's items are neighbours:
 * an item should be as small as the work allows. Threads spin for a short while for the next run,
 * then sleep. A run that begins while another is on, from inside of its fn or from elsewhere, stays
 * on the thread that calls, as thread 0: only an fn that uses no scratch may be run so. */
void kvc__pool_run(kvc__pool *pool, uint32_t n, kvc__pool_fn fn, void *arg);

#endif
