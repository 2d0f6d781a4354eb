/* SPDX-License-Identifier: MIT
 * host.c: the table of services that a policy is given, and its extension for the store (kernels:
 * host_math.c, files: host_file.c). Every argument comes from a plugin and is checked. It trusts
 * ctx to be the stage that the table was made for. */
#include "os.h"
#include "scratch.h"
#include "stack.h"
#include "store.h"

#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------- basic services */

static void note_peak(kvc__stage *st) {
    const uint64_t now = kvc__stage_memory(st);
    uint64_t peak = atomic_load(&st->peak);
    while (now > peak && !atomic_compare_exchange_weak(&st->peak, &peak, now)) {
    }
}

static void *host_realloc(void *ctx, void *p, size_t old_size, size_t new_size, size_t align) {
    kvc__stage *st = ctx;
    if (new_size == 0) {
        align = 64;
    }
    if (align == 0 || (align & (align - 1)) != 0 || align > 4096) {
        return NULL;
    }
    void *q = kvc__realloc(&st->mem, p, old_size, new_size, align);
    note_peak(st);
    return q;
}

/* Sums may be below 0 for a moment, when threads tell of what they gave and took in another order;
 * whoever reads them takes that for 0. */
static void host_account(void *ctx, uint32_t kind, int64_t delta) {
    kvc__stage *st = ctx;
    if (kind == KVC_BYTES_MEMORY) {
        atomic_fetch_add(&st->other, delta);
        note_peak(st);
    } else if (kind == KVC_BYTES_DISK) {
        atomic_fetch_add(&st->disk, delta);
    }
}

static int32_t host_fail(void *ctx, int32_t code, const char *text) {
    kvc__stage *st = ctx;
    pthread_mutex_lock(&st->lock);
    snprintf(st->said.text, sizeof st->said.text, "%s", text != NULL ? text : "");
    pthread_mutex_unlock(&st->lock);
    return code;
}

static void host_log(void *ctx, uint32_t level, const char *text) {
    const kvc__stage *st = ctx;
    kvc__err line; /* as sentences are: one line, nothing in it that a terminal acts on */
    if (st->log != NULL && text != NULL) {
        (void)kvc__fail(&line, KVC_OK, "%s", text);
        st->log(st->log_user, level, line.text);
    }
}

struct for_arg {
    void (*fn)(void *arg, uint32_t i);
    void *arg;
};

static void for_span(void *arg, uint32_t first, uint32_t end, uint32_t thread) {
    const struct for_arg *f = arg;
    (void)thread;
    for (uint32_t i = first; i < end; i++) {
        f->fn(f->arg, i);
    }
}

static void host_parallel_for(void *ctx, uint32_t n, void (*fn)(void *arg, uint32_t i), void *arg) {
    kvc__stage *st = ctx;
    struct for_arg f = {fn, arg};
    if (fn != NULL) {
        kvc__pool_run(st->pool, n, for_span, &f);
    }
}

static uint64_t host_clock(void *ctx) {
    (void)ctx;
    return kvc__clock_ns();
}

static uint64_t host_rand(void *ctx) {
    kvc__stage *st = ctx;
    uint64_t x = st->rng += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* ---------------------------------------------------------------- kvc.host.store/1 */

/* Answers a refused call; the reason stands where the policy's own sentence would, should it pass
 * the status on. */
static int32_t refuse(const kvc__stage *st, int32_t code, const char *text) {
    return host_fail((void *)(uintptr_t)st, code, text);
}

#define NO_LANE "there is no such layer or head in the store"

/* The lane of (layer, head), or a failure when there is none. */
static int32_t lane_of(const kvc__stage *st, uint32_t layer, uint32_t head, uint32_t *lane) {
    const kvc__store *s = st->stack != NULL ? st->stack->store : NULL;
    if (s == NULL || layer >= st->stack->n_layer || head >= st->stack->n_head_kv[layer]) {
        return refuse(st, KVC_E_RANGE, NO_LANE);
    }
    *lane = s->lane0[layer] + head;
    return KVC_OK;
}

/* The answer of a call about live entries [first, first + n), with its reason. */
static int32_t about_entries(const kvc__stage *st, int32_t rc) {
    return rc == KVC_E_RANGE ? refuse(st, rc,
                                      "there are fewer live entries: first + n is to be at "
                                      "most count()")
           : rc == KVC_E_ARG ? refuse(st, rc, "entries that are read or written want a place")
                             : rc;
}

static uint32_t store_count(void *ctx, uint32_t layer, uint32_t head) {
    const kvc__stage *st = ctx;
    uint32_t lane;
    return lane_of(st, layer, head, &lane) < 0 ? 0 : st->stack->store->lane[lane].n_live;
}

static int32_t store_pos(void *ctx, uint32_t layer, uint32_t head, uint32_t first, uint32_t n,
                         int32_t *out) {
    const kvc__stage *st = ctx;
    uint32_t lane;
    KVC_TRY(lane_of(st, layer, head, &lane));
    return about_entries(st, kvc__store_read_pos(st->stack->store, lane, first, n, out));
}

/* A stage's number of a column to the store's. */
static int32_t column_of(const kvc__stage *st, uint32_t col, bool write, uint32_t *out) {
    if (col == KVC_COLUMN_MASS && (st->plan.observe & KVC_OBSERVE_MASS) != 0) {
        *out = KVC__COL_MASS;
    } else if (col == KVC_COLUMN_MASS_LAST && (st->plan.observe & KVC_OBSERVE_MASS_LAST) != 0 &&
               !write) {
        *out = KVC__COL_MASS_LAST;
    } else if (col < st->plan.n_column) {
        *out = st->column + col;
    } else {
        return refuse(st, KVC_E_RANGE,
                      "there is no such column: set n_column or KVC_OBSERVE_MASS in the plan; the "
                      "engine's own are read-only but for the mass");
    }
    return KVC_OK;
}

static int32_t store_get(void *ctx, uint32_t layer, uint32_t head, uint32_t col, uint32_t first,
                         uint32_t n, float *out) {
    const kvc__stage *st = ctx;
    uint32_t lane, c;
    KVC_TRY(lane_of(st, layer, head, &lane));
    KVC_TRY(column_of(st, col, false, &c));
    return about_entries(st, kvc__store_column_get(st->stack->store, lane, c, first, n, out));
}

static int32_t store_set(void *ctx, uint32_t layer, uint32_t head, uint32_t col, uint32_t first,
                         uint32_t n, const float *in) {
    const kvc__stage *st = ctx;
    uint32_t lane, c;
    KVC_TRY(lane_of(st, layer, head, &lane));
    KVC_TRY(column_of(st, col, true, &c));
    return about_entries(st, kvc__store_column_set(st->stack->store, lane, c, first, n, in));
}

static int32_t may_evict(const kvc__stage *st, uint32_t layer) {
    if ((st->plan.flags & KVC_PLAN_EVICTS) == 0) {
        return refuse(st, KVC_E_UNSUPPORTED, "evicting needs KVC_PLAN_EVICTS in the plan");
    }
    if (st->evict == KVC__EVICT_NEVER) {
        return refuse(st, KVC_E_UNSUPPORTED, "evicting is for page_end() and end() alone");
    }
    if (st->evict == KVC__EVICT_LAYER && layer != st->evict_layer) {
        return refuse(st, KVC_E_RANGE, "page_end() may evict in its own layer alone");
    }
    return KVC_OK;
}

/* Heads [*head, *end) that a call means. */
static int32_t heads_of(const kvc__stage *st, uint32_t layer, uint32_t *head, uint32_t *end) {
    if (st->stack == NULL || st->stack->store == NULL || layer >= st->stack->n_layer) {
        return refuse(st, KVC_E_RANGE, NO_LANE);
    }
    const uint32_t n = st->stack->n_head_kv[layer];
    if (*head == KVC_ALL) {
        *head = 0;
        *end = n;
        return KVC_OK;
    }
    *end = *head + 1;
    return *head < n ? KVC_OK : refuse(st, KVC_E_RANGE, NO_LANE);
}

static int32_t store_keep(void *ctx, uint32_t layer, uint32_t head, const uint32_t *index,
                          uint32_t n) {
    const kvc__stage *st = ctx;
    uint32_t end;
    KVC_TRY(heads_of(st, layer, &head, &end));
    KVC_TRY(may_evict(st, layer));
    for (; head < end; head++) {
        kvc__store *s = st->stack->store;
        if (kvc__store_keep(s, s->lane0[layer] + head, index, n) < 0) {
            return refuse(st, KVC_E_RANGE, "keep() wants ascending numbers below count()");
        }
    }
    return KVC_OK;
}

static int32_t store_drop(void *ctx, uint32_t layer, uint32_t head, int32_t first, int32_t last) {
    const kvc__stage *st = ctx;
    uint32_t end;
    KVC_TRY(heads_of(st, layer, &head, &end));
    KVC_TRY(may_evict(st, layer));
    if (first > last) {
        return refuse(st, KVC_E_RANGE, "drop() wants a first position that isn't beyond its end");
    }
    for (; head < end; head++) {
        KVC_TRY(
            kvc__store_drop(st->stack->store, st->stack->store->lane0[layer] + head, first, last));
    }
    return KVC_OK;
}

static int32_t store_read(void *ctx, uint32_t layer, uint32_t head, uint32_t first, uint32_t n,
                          float *k, float *v) {
    const kvc__stage *st = ctx;
    uint32_t lane;
    KVC_TRY(lane_of(st, layer, head, &lane));
    return about_entries(st, kvc__store_read(st->stack->store, layer, head, first, n, k, v));
}

static int32_t store_page(void *ctx, uint32_t layer, uint32_t head, uint32_t page, int32_t *out) {
    const kvc__stage *st = ctx;
    uint32_t lane;
    KVC_TRY(lane_of(st, layer, head, &lane));
    const kvc__lane *l = &st->stack->store->lane[lane];
    if (page >= l->n_page) {
        return refuse(st, KVC_E_RANGE, "there is no such sealed page in the lane");
    }
    if (out == NULL) {
        return refuse(st, KVC_E_ARG, "page() wants a place for positions");
    }
    if (l->page[page].slot == KVC__NO_SLOT) {
        return 0;
    }
    return (int32_t)kvc__store_positions(st->stack->store, lane, page, out);
}

static size_t store_entry_bytes(void *ctx, uint32_t layer) {
    const kvc__stage *st = ctx;
    if (st->stack == NULL || layer >= st->stack->n_layer) {
        return 0;
    }
    return (st->stack->shape[layer].page_bytes + KVC_PAGE - 1) / KVC_PAGE;
}

static uint32_t store_budget(void *ctx) {
    const kvc__stage *st = ctx;
    return st->budget;
}

/* Queries of a plugin's own making: what is wrong with them, or NULL. rows: the host's copy. */
static const char *queries_wrong(const kvc__stage *st, const kvc_rows *rows, const float *out) {
    const kvc__page_shape *sh = &st->stack->shape[rows->layer];
    if (rows->n > 0 && (rows->pos == NULL || rows->q == NULL || out == NULL)) {
        return "mass() wants positions, queries and a place for what it adds";
    }
    if (rows->n > 1 && rows->q_stride < sh->group * sh->dim_k) {
        return "mass() wants q_stride to span the query heads of the lane";
    }
    for (uint32_t t = 0; t < rows->n; t++) {
        if (rows->pos[t] < 0 || (uint32_t)rows->pos[t] >= st->stack->n_ctx) {
            return "mass() wants positions from 0 to n_ctx - 1";
        }
    }
    return NULL;
}

static int32_t store_mass(void *ctx, const kvc_rows *queries, float *out) {
    const kvc__stage *st = ctx;
    kvc_rows rows = {0};
    uint32_t lane;
    if (queries == NULL || queries->struct_size < offsetof(kvc_rows, phase)) {
        return refuse(st, KVC_E_ARG, "mass() wants rows with their struct_size");
    }
    memcpy(&rows, queries, queries->struct_size < sizeof rows ? queries->struct_size : sizeof rows);
    KVC_TRY(lane_of(st, rows.layer, rows.head, &lane));
    const char *wrong = queries_wrong(st, &rows, out);
    if (wrong != NULL) {
        return refuse(st, KVC_E_ARG, wrong);
    }
    const int32_t rc = kvc__store_mass(st->stack->store, &rows, out);
    return rc == KVC_E_UNSUPPORTED
               ? refuse(st, rc, "mass() can't be had where gaps in the positions are closed")
               : rc;
}

static const kvc_host_store host_store = {.struct_size = sizeof(kvc_host_store),
                                          .count = store_count,
                                          .pos = store_pos,
                                          .get = store_get,
                                          .set = store_set,
                                          .keep = store_keep,
                                          .drop = store_drop,
                                          .read = store_read,
                                          .entry_bytes = store_entry_bytes,
                                          .page = store_page,
                                          .budget = store_budget,
                                          .mass = store_mass};

/* ---------------------------------------------------------------- the table */

static const void *host_extension(void *ctx, const char *id) {
    (void)ctx;
    if (id == NULL) {
        return NULL;
    }
    if (strcmp(id, KVC_HOST_STORE) == 0) {
        return &host_store;
    }
    if (strcmp(id, KVC_HOST_FILE) == 0) {
        return &kvc__host_file;
    }
    return strcmp(id, KVC_HOST_MATH) == 0 ? &kvc__host_math : NULL;
}

void kvc__host_init(kvc__stage *stage, const kvc__stack_env *env) {
    kvc__mem_init(&stage->mem, NULL, env->family);
    stage->mem.a = env->mem->a;
    stage->pool = env->pool;
    stage->kern = env->kern;
    stage->compute = env->shape->compute;
    stage->log = env->log;
    stage->log_user = env->log_user;
    atomic_init(&stage->other, 0);
    atomic_init(&stage->disk, 0);
    atomic_init(&stage->peak, 0);
    stage->host = (kvc_host){.struct_size = sizeof(kvc_host),
                             .abi = KVC_POLICY_ABI,
                             .ctx = stage,
                             .realloc = host_realloc,
                             .account = host_account,
                             .fail = host_fail,
                             .log = host_log,
                             .parallel_for = host_parallel_for,
                             .clock_ns = host_clock,
                             .rand_u64 = host_rand,
                             .extension = host_extension};
}
