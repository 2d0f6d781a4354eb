/* SPDX-License-Identifier: MIT
 * pager.c: two lists of units and a ring of buffers, under one mutex.
 *
 * Jobs are handed out in the order of the list, so the units that are pinned or waited for are
 * always the oldest ones that were not used up; a ring of more units than there are threads can't
 * block. A buffer that was kept from an earlier pass may be taken from a unit late in the list for
 * one that is waited for. Of the buffers that nobody needs the one used last is overwritten first:
 * passes go through the layers in a circle, so what was used last is needed last. */
#include "pager.h"

#include "os.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#define NONE  UINT32_MAX
#define ALIGN ((size_t)KVC_FILE_ALIGN) /* of all arrays: records are read to them */

enum { EMPTY = 0, LOADING, READY, FAILED };

/* A buffer of the ring. */
struct kvc__unit {
    uint32_t state, layer, range;
    uint32_t n_pin;      /* jobs that use it now */
    uint32_t unit;       /* of the present list, or NONE */
    bool ahead;          /* the list of what is read ahead has it */
    int32_t status;      /* of a failed one */
    uint64_t used_at;    /* the later, the sooner overwritten */
    uint32_t *slot;      /* [width] KVC__NO_SLOT: not in it */
    uint8_t *record;     /* [width][record_bytes] */
    kvc_tier_page *page; /* [width] what was asked for; gaps are left out */
};
typedef kvc__unit entry;

typedef struct unit {
    uint32_t range;
    uint32_t entry; /* of the ring, or NONE */
    uint32_t n_use; /* times it will still be pinned; of the present list */
} unit;

typedef struct list {
    uint32_t layer, n, next; /* next: units before it have an entry */
    unit *unit;              /* [n_range] */
    uint32_t *slot;          /* [n_range][width] */
} list;

struct kvc__pager {
    kvc__pager_env env;
    uint32_t width; /* pages of a unit */
    pthread_mutex_t mutex;
    pthread_cond_t change;
    uint32_t n_waiting;
    kvc__io_source source;
    entry *entry; /* [n_entry] */
    list now, soon, draft;
    uint32_t *at; /* [n_range] the unit of a range in the present list, or NONE */
    uint64_t clock;
    uint32_t lost;
    atomic_uint_least64_t wait_ns;
    uint8_t *stage;   /* [n_head][page_bytes] */
    uint8_t *buffer;  /* [kvc__pager_room()] */
    uint8_t *scratch; /* [n_thread][KVC__RANGE_PAGES][page_bytes], when records are unpacked */
    uint8_t *memory;  /* of the arrays above */
};

/* ---------------------------------------------------------------- making and freeing */

uint32_t kvc__pager_least(uint32_t n_thread) {
    return n_thread + KVC__IO_THREADS + 1;
}

/* Takes n bytes of the block, from a multiple of ALIGN on. base NULL: only counts. */
static void *carve(uint8_t *base, size_t *used, size_t n) {
    void *p = base != NULL ? base + *used : NULL;
    *used += (n + ALIGN - 1) / ALIGN * ALIGN;
    return p;
}

static void carve_list(list *l, uint8_t *base, size_t *used, size_t n_range, size_t width) {
    l->unit = carve(base, used, n_range * sizeof(unit));
    l->slot = carve(base, used, n_range * width * sizeof(uint32_t));
}

/* Bytes of one thread's unpacked pages. */
static size_t scratch_bytes(const kvc__pager *p) {
    return kvc__tier_packs(p->env.arena->tier) ? KVC__RANGE_PAGES * p->env.page_bytes : 0;
}

/* Lays the arrays out in a block; returns its size. */
static size_t lay_out(kvc__pager *p, uint8_t *base) {
    const kvc__pager_env *env = &p->env;
    const size_t width = p->width;
    size_t used = 0;
    p->entry = carve(base, &used, env->n_entry * sizeof(entry));
    carve_list(&p->now, base, &used, env->n_range, width);
    carve_list(&p->soon, base, &used, env->n_range, width);
    carve_list(&p->draft, base, &used, env->n_range, width);
    p->at = carve(base, &used, env->n_range * sizeof(uint32_t));
    p->stage = carve(base, &used, env->n_head * env->page_bytes);
    p->buffer = carve(base, &used, kvc__pager_room(p));
    p->scratch = carve(base, &used, env->n_thread * scratch_bytes(p));
    uint32_t *slot = carve(base, &used, env->n_entry * width * sizeof *slot);
    kvc_tier_page *page = carve(base, &used, env->n_entry * width * sizeof *page);
    for (uint32_t i = 0; i < env->n_entry; i++) {
        uint8_t *record = carve(base, &used, width * env->record_bytes);
        if (base != NULL) {
            p->entry[i].slot = slot + i * width;
            p->entry[i].page = page + i * width;
            p->entry[i].record = record;
        }
    }
    return used;
}

size_t kvc__pager_bytes(const kvc__pager_env *env) {
    kvc__pager p = {.env = *env, .width = env->n_head * KVC__RANGE_PAGES};
    return sizeof p + lay_out(&p, NULL);
}

static bool work(void *arg);

int32_t kvc__pager_create(const kvc__pager_env *env, kvc__pager **out, kvc__err *err) {
    kvc__pager *p = kvc__alloc(env->mem, sizeof *p);
    if (p != NULL) {
        p->env = *env;
        p->width = env->n_head * KVC__RANGE_PAGES;
        const size_t bytes = lay_out(p, NULL);
        p->memory = kvc__realloc(env->mem, NULL, 0, bytes, ALIGN);
        if (p->memory == NULL) {
            kvc__free(env->mem, p, sizeof *p);
            p = NULL;
        }
    }
    if (p == NULL) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for the buffers of a tier; lower hot");
    }
    lay_out(p, p->memory);
    p->lost = NONE;
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->change, NULL);
    p->source = (kvc__io_source){.work = work, .arg = p};
    kvc__io_add(env->io, &p->source);
    *out = p;
    return KVC_OK;
}

void kvc__pager_destroy(kvc__pager *p) {
    if (p == NULL) {
        return;
    }
    kvc__io_remove(p->env.io, &p->source);
    pthread_cond_destroy(&p->change);
    pthread_mutex_destroy(&p->mutex);
    kvc__mem *mem = p->env.mem;
    kvc__free(mem, p->memory, lay_out(p, NULL));
    kvc__free(mem, p, sizeof *p);
}

/* ---------------------------------------------------------------- buffers */

/* Somebody may wait for what has changed. */
static void changed(kvc__pager *p) {
    if (p->n_waiting > 0) {
        pthread_cond_broadcast(&p->change);
    }
}

/* A buffer that may be overwritten, or NULL. for_now: for the present pass, whose needs go before
 * what is read ahead. */
static entry *find_free(kvc__pager *p, bool for_now) {
    entry *best = NULL, *ahead = NULL;
    for (uint32_t i = 0; i < p->env.n_entry; i++) {
        entry *e = &p->entry[i];
        if (e->state == EMPTY) {
            return e;
        }
        if (e->state == LOADING || e->unit != NONE) {
            continue;
        }
        entry **kind = e->ahead ? &ahead : &best;
        if (*kind == NULL || e->used_at > (*kind)->used_at) {
            *kind = e;
        }
    }
    return best == NULL && for_now ? ahead : best;
}

/* Takes a buffer from the last unit of the present list behind `before` that nobody uses now. */
static entry *steal(kvc__pager *p, uint32_t before) {
    entry *last = NULL;
    for (uint32_t i = 0; i < p->env.n_entry; i++) {
        entry *e = &p->entry[i];
        if (e->state != LOADING && e->unit != NONE && e->unit > before && e->n_pin == 0 &&
            (last == NULL || e->unit > last->unit)) {
            last = e;
        }
    }
    if (last != NULL) {
        p->now.unit[last->unit].entry = NONE;
        p->now.next = last->unit < p->now.next ? last->unit : p->now.next;
    }
    return last;
}

/* Brings the records of n pages of a layer to a buffer that has room for them. */
static int32_t get(const kvc__pager *p, uint32_t layer, kvc_tier_page *page, uint32_t n,
                   uint8_t *record) {
    kvc__tier *tier = p->env.arena->tier;
    const size_t each = kvc__tier_record_bytes(tier, layer, p->env.arena->layer[layer].page_bytes);
    return kvc__tier_get(tier, page, n, record, n * each);
}

/* Brings a unit of l to a buffer; with the mutex held on entry and exit, not between. */
static void load(kvc__pager *p, list *l, uint32_t u, entry *e) {
    const uint32_t *slot = l->slot + (size_t)u * p->width;
    const bool now = l == &p->now;
    uint32_t n = 0;
    e->state = LOADING;
    e->layer = l->layer;
    e->range = l->unit[u].range;
    e->unit = now ? u : NONE;
    e->n_pin = 0;
    e->ahead = !now;
    l->unit[u].entry = (uint32_t)(e - p->entry);
    for (uint32_t i = 0; i < p->width; i++) {
        e->slot[i] = slot[i];
        if (slot[i] != KVC__NO_SLOT) {
            e->page[n++] = kvc__arena_away(p->env.arena, e->layer, slot[i]);
        }
    }
    pthread_mutex_unlock(&p->mutex);
    const int32_t rc = get(p, e->layer, e->page, n, e->record);
    pthread_mutex_lock(&p->mutex);
    e->state = rc == KVC_OK ? READY : FAILED;
    e->status = rc;
    e->used_at = ++p->clock;
    changed(p);
}

/* Whether a buffer has, or is about to have, all pages of unit u. */
static bool holds(const kvc__pager *p, const entry *e, const list *l, uint32_t u) {
    const uint32_t *slot = l->slot + (size_t)u * p->width;
    if (e->state == EMPTY || e->state == FAILED || e->layer != l->layer ||
        e->range != l->unit[u].range) {
        return false;
    }
    for (uint32_t i = 0; i < p->width; i++) {
        if (slot[i] != KVC__NO_SLOT && slot[i] != e->slot[i]) {
            return false;
        }
    }
    return true;
}

/* Gives unit u the buffer that holds it already; false when there is none. */
static bool find_held(kvc__pager *p, list *l, uint32_t u) {
    for (uint32_t i = 0; i < p->env.n_entry; i++) {
        entry *e = &p->entry[i];
        if (!holds(p, e, l, u)) {
            continue;
        }
        l->unit[u].entry = i;
        if (l == &p->now) {
            e->unit = u;
        } else {
            e->ahead = true;
        }
        return true;
    }
    return false;
}

/* Loads the next unit that a list lacks; false when there is none, or no buffer for it. */
static bool load_next(kvc__pager *p, list *l) {
    while (l->next < l->n && (l->unit[l->next].entry != NONE || find_held(p, l, l->next))) {
        l->next++;
    }
    if (l->next == l->n) {
        return false;
    }
    entry *e = find_free(p, l == &p->now);
    if (e == NULL) {
        return false;
    }
    load(p, l, l->next, e);
    return true;
}

static bool work(void *arg) {
    kvc__pager *p = arg;
    pthread_mutex_lock(&p->mutex);
    bool done = load_next(p, &p->now);
    if (!done && p->now.next == p->now.n) {
        done = load_next(p, &p->soon);
    }
    pthread_mutex_unlock(&p->mutex);
    return done;
}

/* ---------------------------------------------------------------- lists */

void kvc__pager_list(kvc__pager *p, uint32_t layer) {
    p->draft.layer = layer;
    p->draft.n = 0;
    p->draft.next = 0;
}

void kvc__pager_want(kvc__pager *p, uint32_t range, uint32_t head, uint32_t at, uint32_t slot) {
    list *l = &p->draft;
    if (l->n == 0 || l->unit[l->n - 1].range != range) {
        l->unit[l->n] = (unit){.range = range, .entry = NONE};
        for (uint32_t i = 0; i < p->width; i++) {
            l->slot[(size_t)l->n * p->width + i] = KVC__NO_SLOT;
        }
        l->n++;
    }
    l->slot[(size_t)(l->n - 1) * p->width + head * KVC__RANGE_PAGES + at] = slot;
}

static void swap_list(list *a, list *b) {
    const list t = *a;
    *a = *b;
    *b = t;
}

/* Takes the present pass's and the next one's claims off all buffers. */
static void release_all(kvc__pager *p) {
    for (uint32_t i = 0; i < p->env.n_entry; i++) {
        p->entry[i].unit = NONE;
        p->entry[i].ahead = false;
    }
    p->now.n = p->now.next = 0;
    p->soon.n = p->soon.next = 0;
}

void kvc__pager_begin(kvc__pager *p, uint32_t n_use) {
    pthread_mutex_lock(&p->mutex);
    release_all(p);
    swap_list(&p->now, &p->draft);
    for (uint32_t i = 0; i < p->env.n_range; i++) {
        p->at[i] = NONE;
    }
    for (uint32_t u = 0; u < p->now.n; u++) {
        p->at[p->now.unit[u].range] = u;
        p->now.unit[u].n_use = n_use;
        (void)find_held(p, &p->now, u);
    }
    pthread_mutex_unlock(&p->mutex);
    kvc__io_wake(p->env.io);
}

void kvc__pager_ahead(kvc__pager *p) {
    pthread_mutex_lock(&p->mutex);
    swap_list(&p->soon, &p->draft);
    for (uint32_t u = 0; u < p->soon.n; u++) {
        (void)find_held(p, &p->soon, u);
    }
    pthread_mutex_unlock(&p->mutex);
    kvc__io_wake(p->env.io);
}

void kvc__pager_end(kvc__pager *p) {
    pthread_mutex_lock(&p->mutex);
    for (uint32_t i = 0; i < p->env.n_entry; i++) {
        p->entry[i].unit = NONE;
    }
    p->now.n = p->now.next = 0;
    pthread_mutex_unlock(&p->mutex);
    kvc__io_wake(p->env.io);
}

/* ---------------------------------------------------------------- using */

/* Does something useful while unit u is not there: brings it, or another one, or waits. */
static void make_progress(kvc__pager *p, uint32_t u) {
    unit *mine = &p->now.unit[u];
    if (mine->entry == NONE && find_held(p, &p->now, u)) {
        return;
    }
    if (mine->entry == NONE) {
        entry *e = find_free(p, true);
        e = e == NULL ? steal(p, u) : e;
        if (e != NULL) {
            load(p, &p->now, u, e);
            return;
        }
    } else if (load_next(p, &p->now)) {
        return;
    }
    const uint64_t t0 = kvc__clock_ns();
    p->n_waiting++;
    pthread_cond_wait(&p->change, &p->mutex);
    p->n_waiting--;
    atomic_fetch_add(&p->wait_ns, kvc__clock_ns() - t0);
}

/* Notes which pages of a failed buffer are lost. */
static void note_lost(kvc__pager *p, const entry *e) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->width; i++) {
        if (e->slot[i] != KVC__NO_SLOT && e->page[n++].status == KVC_E_LOST) {
            const uint32_t page = e->range * KVC__RANGE_PAGES + i % KVC__RANGE_PAGES;
            p->lost = page < p->lost ? page : p->lost;
        }
    }
}

int32_t kvc__pager_pin(kvc__pager *p, uint32_t range, kvc__unit **out) {
    int32_t rc = KVC_OK;
    *out = NULL;
    pthread_mutex_lock(&p->mutex);
    const uint32_t u = p->at[range];
    if (u == NONE || u >= p->now.n) {
        pthread_mutex_unlock(&p->mutex);
        return KVC_OK;
    }
    const unit *mine = &p->now.unit[u];
    while (mine->entry == NONE || p->entry[mine->entry].state == LOADING) {
        make_progress(p, u);
    }
    entry *e = &p->entry[mine->entry];
    e->n_pin++;
    *out = e;
    if (e->state == FAILED) {
        rc = e->status;
        note_lost(p, e);
    }
    pthread_mutex_unlock(&p->mutex);
    return rc;
}

void kvc__pager_unpin(kvc__pager *p, uint32_t range) {
    bool wake = false;
    pthread_mutex_lock(&p->mutex);
    const uint32_t u = p->at[range];
    if (u != NONE && u < p->now.n) {
        unit *mine = &p->now.unit[u];
        entry *e = &p->entry[mine->entry];
        e->n_pin--;
        if (--mine->n_use == 0) {
            e->unit = NONE;
            e->used_at = ++p->clock;
            wake = p->now.next < p->now.n || p->soon.next < p->soon.n;
            changed(p);
        }
    }
    pthread_mutex_unlock(&p->mutex);
    if (wake) {
        kvc__io_wake(p->env.io);
    }
}

/* The row of what was asked for that belongs to place i of a unit. */
static kvc_tier_page *page_at(const entry *e, uint32_t i) {
    uint32_t n = 0;
    for (uint32_t k = 0; k < i; k++) {
        n += e->slot[k] != KVC__NO_SLOT;
    }
    return &e->page[n];
}

const uint8_t *kvc__pager_page(kvc__pager *p, entry *e, uint32_t head, uint32_t at, uint32_t thread,
                               int32_t *rc) {
    kvc_tier_page *page = page_at(e, head * KVC__RANGE_PAGES + at);
    uint8_t *scratch = p->scratch + thread * scratch_bytes(p) + at * p->env.page_bytes;
    const uint8_t *bytes = kvc__tier_unpack(p->env.arena->tier, page, scratch, rc);
    if (*rc == KVC_E_LOST) {
        /* As if it had been lost on the way: the next time it is read again. */
        pthread_mutex_lock(&p->mutex);
        page->status = KVC_E_LOST;
        e->state = FAILED;
        e->status = KVC_E_LOST;
        note_lost(p, e);
        pthread_mutex_unlock(&p->mutex);
    }
    return bytes;
}

/* ---------------------------------------------------------------- the rest */

/* Whether a buffer has, or is about to have, a slot of a layer. */
static bool has_slot(const kvc__pager *p, const entry *e, uint32_t layer, uint32_t slot) {
    if (e->state == EMPTY || e->layer != layer) {
        return false;
    }
    for (uint32_t i = 0; i < p->width; i++) {
        if (e->slot[i] == slot) {
            return true;
        }
    }
    return false;
}

void kvc__pager_forget(kvc__pager *p, uint32_t layer, uint32_t slot) {
    pthread_mutex_lock(&p->mutex);
    p->soon.n = p->soon.next = 0;
    for (uint32_t i = 0; i < p->env.n_entry; i++) {
        entry *e = &p->entry[i];
        e->ahead = false;
        while (has_slot(p, e, layer, slot) && e->state == LOADING) {
            p->n_waiting++;
            pthread_cond_wait(&p->change, &p->mutex);
            p->n_waiting--;
        }
        if (has_slot(p, e, layer, slot)) {
            e->state = EMPTY;
        }
    }
    pthread_mutex_unlock(&p->mutex);
}

uint32_t kvc__pager_take_lost(kvc__pager *p) {
    pthread_mutex_lock(&p->mutex);
    const uint32_t lost = p->lost;
    p->lost = NONE;
    pthread_mutex_unlock(&p->mutex);
    return lost;
}

void kvc__pager_note_lost(kvc__pager *p, uint32_t page) {
    pthread_mutex_lock(&p->mutex);
    p->lost = page < p->lost ? page : p->lost;
    pthread_mutex_unlock(&p->mutex);
}

uint64_t kvc__pager_wait_ns(const kvc__pager *p) {
    return atomic_load(&p->wait_ns);
}

uint8_t *kvc__pager_stage(const kvc__pager *p, uint32_t head) {
    return p->stage + (size_t)head * p->env.page_bytes;
}

uint8_t *kvc__pager_buffer(const kvc__pager *p) {
    return p->buffer;
}

size_t kvc__pager_room(const kvc__pager *p) {
    const bool packs = kvc__tier_packs(p->env.arena->tier);
    return p->env.record_bytes + (packs ? p->env.page_bytes : 0);
}

const uint8_t *kvc__pager_bring(const kvc__pager *p, uint32_t layer, uint32_t slot, uint8_t *room,
                                int32_t *rc) {
    kvc_tier_page page = kvc__arena_away(p->env.arena, layer, slot);
    *rc = get(p, layer, &page, 1, room);
    return *rc == KVC_OK
               ? kvc__tier_unpack(p->env.arena->tier, &page, room + p->env.record_bytes, rc)
               : NULL;
}
