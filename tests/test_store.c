/* SPDX-License-Identifier: MIT
 * test_store.c: the store against a plain model of it. Random steps (append, seal, keep, drop,
 * settle, free, truncate) are made in both, and after each one every lane must hold the same
 * entries, and every page must be accounted for. The stack is made by hand: no policy is loaded. */
#include "store.h"

#include "kern.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

enum {
    N_LAYER = 2,
    N_HEAD = 3, /* of the second layer; the first has two */
    N_LANE = 5,
    N_CTX = 640,
    DIM_K = 8,
    DIM_V = 12,
    OWN = KVC__N_COL_ENGINE, /* a stage's own column */
    STEPS = 70
};

/* What the store is asked to do; a seed's low bits. */
enum { KEEPS_ALL = 0, SEES, EVICTS, EVICTS_UNMOVED, BOTH, N_KIND };

typedef struct entry {
    int32_t pos;
    float k[DIM_K], v[DIM_V], mass, own;
} entry;

typedef struct lane {
    uint32_t n, n_open; /* live entries; those of them in the open page */
    entry e[N_CTX];
} lane;

typedef struct world {
    kvc__mem mem;
    kvc__stack stack;
    kvc__stage sees, tier;
    kvc__pool *pool;
    kvc__io *io;
    size_t layer_bytes[N_LAYER];
    kvc_page_layout layout[N_LAYER];
    uint64_t n_kept; /* pages in the tier */
    kvc__store store;
    kvc__page_shape shape[N_LAYER];
    uint32_t n_head_kv[N_LAYER];
    kvc__codec_scratch scratch;
    float *rows; /* memory of scratch */
    kvc__err err;
    uint64_t rng;
    uint32_t kind;
    int32_t size, sinks;  /* of what is seen */
    int32_t end;          /* positions appended */
    bool evicted, gentle; /* gentle: it may evict and never does */
    bool tiered;
    bool held;         /* the last sealed pages' rows are still in the open ones */
    lane lane[N_LANE]; /* the plain model */
} world;

static uint32_t rnd(world *w, uint32_t n) {
    w->rng ^= w->rng << 13;
    w->rng ^= w->rng >> 7;
    w->rng ^= w->rng << 17;
    return (uint32_t)((w->rng >> 20) % n);
}

static uint32_t layer_of(uint32_t l) {
    return l < 2 ? 0 : 1;
}

static uint32_t head_of(uint32_t l) {
    return l < 2 ? l : l - 2;
}

/* ---------------------------------------------------------------- making one */

static uint32_t visible(void *self, uint32_t layer, int32_t pos, kvc_range *out, uint32_t cap) {
    const world *w = self;
    const int32_t size = w->size + 40 * (int32_t)layer;
    (void)cap;
    if (pos < size || pos - size < w->sinks) {
        out[0] = (kvc_range){0, pos + 1};
        return 1;
    }
    uint32_t n = 0;
    if (w->sinks > 0) {
        out[n++] = (kvc_range){0, w->sinks};
    }
    out[n++] = (kvc_range){pos - size + 1, pos + 1};
    return n;
}

/* A tier in libc's memory: what isn't dropped is found by a count and by leak checkers. */
static int32_t tier_put(void *self, kvc_tier_page *page, uint32_t n, uint32_t stride) {
    world *w = self;
    for (uint32_t i = 0; i < n; i++) {
        kvc_tier_page *p = kvc_tier_page_at(page, stride, i);
        const size_t bytes = w->layer_bytes[p->layer];
        p->key[0] = (uint64_t)(uintptr_t)memcpy(malloc(bytes), p->bytes, bytes);
        p->key[1] = p->layer * 100 + p->head;
        w->n_kept++;
    }
    return KVC_OK;
}

static int32_t tier_get(void *self, kvc_tier_page *page, uint32_t n, uint32_t stride, void *buffer,
                        size_t size) {
    const world *w = self;
    uint8_t *to = buffer;
    ck_assert_uint_eq((uintptr_t)buffer % KVC_FILE_ALIGN, 0);
    ck_assert_uint_eq(size, n * w->layer_bytes[page->layer]);
    for (uint32_t i = 0; i < n; i++) {
        kvc_tier_page *p = kvc_tier_page_at(page, stride, i);
        ck_assert_uint_eq(p->key[1], p->layer * 100 + p->head);
        p->record_bytes = w->layer_bytes[p->layer];
        p->record = memcpy(to, (const void *)(uintptr_t)p->key[0], p->record_bytes);
        to += p->record_bytes;
    }
    return KVC_OK;
}

static void tier_drop(void *self, const kvc_tier_page *page, uint32_t n, uint32_t stride) {
    world *w = self;
    (void)stride;
    ck_assert_uint_eq(n, 1);
    free((void *)(uintptr_t)page->key[0]);
    w->n_kept--;
}

static void world_tier(world *w) {
    w->tier.tier.api = (kvc_tier){
        .struct_size = sizeof(kvc_tier), .put = tier_put, .get = tier_get, .drop = tier_drop};
    w->tier.tier.self = w;
    w->tier.tier.layer = w->layout;
    w->tier.plan.hot_bytes = KVC_HOT_LEAST;
    w->stack.tier = &w->tier;
    for (uint32_t i = 0; i < N_LAYER; i++) {
        w->layer_bytes[i] = w->shape[i].page_bytes;
        w->layout[i].page_bytes = w->layer_bytes[i];
    }
    ck_assert_int_eq(kvc__pool_create(&w->mem, 1, &w->pool, &w->err), KVC_OK);
    ck_assert_int_eq(kvc__io_create(&w->mem, &w->io, &w->err), KVC_OK);
    w->stack.pool = w->pool;
    w->stack.io = w->io;
}

static void world_stack(world *w, uint32_t open, uint32_t sealed, bool columns) {
    for (uint32_t i = 0; i < N_LAYER; i++) {
        kvc__page_shape *s = &w->shape[i];
        *s = (kvc__page_shape){.dim_k = DIM_K,
                               .dim_v = DIM_V,
                               .group = 1,
                               .type_k = sealed,
                               .type_v = sealed,
                               .open_type = open,
                               .scale = 1.0f};
        s->page_bytes = kvc__plain_bytes(s) + 64 * i; /* layers of different size */
        s->open_k_bytes = KVC_PAGE * DIM_K * kvc__type_bytes(open);
        s->open_v_bytes = KVC_PAGE * DIM_V * kvc__type_bytes(open);
    }
    w->n_head_kv[0] = 2;
    w->n_head_kv[1] = N_HEAD;
    w->stack = (kvc__stack){.mem = &w->mem,
                            .kern = kvc__kern_get(),
                            .n_layer = N_LAYER,
                            .shape = w->shape,
                            .n_head_kv = w->n_head_kv};
    if (w->kind >= EVICTS) {
        w->stack.flags = KVC_PLAN_EVICTS;
    }
    if (columns) {
        w->stack.observe = KVC_OBSERVE_MASS;
        w->stack.n_column = 1;
    }
    if (w->kind == SEES || w->kind == BOTH) {
        w->sees.policy.api.visible = visible;
        w->sees.self = w;
        w->stack.visible = &w->sees;
    }
    kvc__codec_plain(&w->stack.codec, w->stack.kern, w->stack.shape);
    if (w->kind == EVICTS_UNMOVED) {
        w->stack.codec.api.flags = 0;
    }
}

static world *world_sized(uint32_t kind, uint64_t seed, uint32_t n_ctx, bool tiered) {
    static const uint32_t types[] = {KVC_TYPE_F32, KVC_TYPE_F16, KVC_TYPE_BF16};
    world *w = calloc(1, sizeof *w);
    ck_assert_ptr_nonnull(w);
    w->kind = kind;
    w->rng = seed * 0x9e3779b97f4a7c15u + 1;
    (void)rnd(w, 2);
    w->size = 1 + (int32_t)rnd(w, 200);
    w->sinks = rnd(w, 2) != 0 ? (int32_t)rnd(w, 100) : 0;
    kvc__mem_init(&w->mem, NULL, NULL);
    w->rows = calloc(3 * KVC_PAGE * (size_t)DIM_V, sizeof(float));
    w->scratch =
        (kvc__codec_scratch){w->rows, w->rows + KVC_PAGE * DIM_V, w->rows + 2 * KVC_PAGE * DIM_V};
    world_stack(w, types[rnd(w, 3)], types[rnd(w, 3)], rnd(w, 2) != 0);
    w->stack.n_ctx = n_ctx;
    w->tiered = tiered;
    if (tiered) {
        world_tier(w);
    }
    ck_assert_int_eq(kvc__store_create(&w->mem, &w->mem, &w->stack, NULL, &w->store, &w->err),
                     KVC_OK);
    for (uint32_t i = 0; tiered && i < N_LAYER; i++) {
        w->store.share[i] = rnd(w, 4); /* of pages that stay in memory */
    }
    return w;
}

static world *world_new(uint32_t kind, uint64_t seed) {
    return world_sized(kind, seed, N_CTX, seed % 2 != 0);
}

static void world_free(world *w) {
    kvc__store_destroy(&w->store);
    ck_assert_uint_eq(w->n_kept, 0);
    kvc__io_destroy(w->io);
    kvc__pool_destroy(w->pool);
    ck_assert_uint_eq(atomic_load(&w->mem.used), 0);
    free(w->rows);
    free(w);
}

/* ---------------------------------------------------------------- the same step in both */

static uint32_t n_open(const world *w) {
    return (uint32_t)w->end % KVC_PAGE;
}

/* Numbers that every float type holds exactly. */
static void entry_fill(world *w, entry *e, int32_t pos) {
    e->pos = pos;
    e->mass = e->own = 0;
    for (uint32_t d = 0; d < DIM_K; d++) {
        e->k[d] = (float)rnd(w, 201) - 100;
    }
    for (uint32_t d = 0; d < DIM_V; d++) {
        e->v[d] = (float)rnd(w, 201) - 100;
    }
}

static void seal_all(world *w) {
    w->held = true;
    for (uint32_t i = 0; i < N_LAYER; i++) {
        ck_assert_int_eq(kvc__store_seal_begin(&w->store, i, &w->err), KVC_OK);
        for (uint32_t h = 0; h < w->n_head_kv[i]; h++) {
            const char *call;
            ck_assert_int_eq(kvc__store_seal_lane(&w->store, i, h, &w->scratch, &call), KVC_OK);
        }
        kvc__store_seal_end(&w->store, i);
    }
    for (uint32_t l = 0; l < N_LANE; l++) {
        w->lane[l].n_open = 0;
    }
}

static void do_append(world *w, uint32_t n) {
    float k[KVC_PAGE][DIM_K + 3], v[KVC_PAGE][DIM_V + 1];
    const uint32_t room = KVC_PAGE - n_open(w);
    n = n < room ? n : room;
    w->held = false;
    for (uint32_t l = 0; l < N_LANE; l++) {
        lane *y = &w->lane[l];
        for (uint32_t i = 0; i < n; i++) {
            entry *e = &y->e[y->n + i];
            entry_fill(w, e, w->end + (int32_t)i);
            memcpy(k[i], e->k, sizeof e->k);
            memcpy(v[i], e->v, sizeof e->v);
        }
        kvc__store_append(&w->store, layer_of(l), head_of(l), n, w->end, k[0], DIM_K + 3, v[0],
                          DIM_V + 1);
        y->n += n;
        y->n_open += n;
    }
    w->end += (int32_t)n;
    if (n_open(w) == 0) {
        seal_all(w);
    }
}

/* Keeps the entries for which keep[] is 1 in the plain model. */
static void lane_filter(world *w, uint32_t l, const uint8_t *keep) {
    lane *y = &w->lane[l];
    uint32_t m = 0;
    const uint32_t sealed = y->n - y->n_open;
    for (uint32_t i = 0; i < y->n; i++) {
        if (keep[i] != 0) {
            y->e[m++] = y->e[i];
        } else {
            y->n_open -= i >= sealed;
        }
    }
    w->evicted |= m != y->n && w->kind != SEES;
    y->n = m;
}

static void do_keep(world *w) {
    const uint32_t l = rnd(w, N_LANE), share = rnd(w, 101);
    lane *y = &w->lane[l];
    uint8_t keep[N_CTX];
    uint32_t index[N_CTX], n = 0;
    for (uint32_t i = 0; i < y->n; i++) {
        keep[i] = rnd(w, 100) < share;
        if (keep[i] != 0) {
            index[n++] = i;
        }
    }
    ck_assert_int_eq(kvc__store_keep(&w->store, l, index, n), KVC_OK);
    lane_filter(w, l, keep);
}

static void do_drop(world *w) {
    const uint32_t l = rnd(w, N_LANE);
    lane *y = &w->lane[l];
    uint8_t keep[N_CTX];
    const int32_t first = (int32_t)rnd(w, (uint32_t)w->end + 1), end = first + (int32_t)rnd(w, 150);
    for (uint32_t i = 0; i < y->n; i++) {
        keep[i] = y->e[i].pos < first || y->e[i].pos >= end;
    }
    ck_assert_int_eq(kvc__store_drop(&w->store, l, first, end), KVC_OK);
    lane_filter(w, l, keep);
}

/* After settling nothing is held for nothing. */
static void do_settle(world *w) {
    for (uint32_t i = 0; i < N_LAYER; i++) {
        ck_assert_int_eq(kvc__store_settle(&w->store, i), KVC_OK);
    }
    bool idle = false;
    for (uint32_t l = 0; l < N_LANE; l++) {
        const kvc__lane *s = &w->store.lane[l];
        const uint32_t sealed = w->lane[l].n - w->lane[l].n_open;
        if (w->kind == EVICTS || w->kind == BOTH) {
            ck_assert_uint_eq(s->n_page, (sealed + KVC_PAGE - 1) / KVC_PAGE);
        }
        for (uint32_t p = 0; p < s->n_page; p++) {
            idle |= (s->page[p].slot == KVC__NO_SLOT) != (s->page[p].live == 0);
        }
    }
    w->evicted |= w->store.n_moved > 0;
    ck_assert_msg(!idle, "a page without live entries is held");
}

static bool is_seen(world *w, uint32_t layer, int32_t from, int32_t pos) {
    kvc_range r[KVC_MAX_RANGES];
    const uint32_t n = visible(w, layer, from, r, KVC_MAX_RANGES);
    for (uint32_t i = 0; i < n; i++) {
        if (pos >= r[i].first && pos < r[i].end) {
            return true;
        }
    }
    return pos >= from;
}

/* Marks the live entries of the lane's pages that no query from floor on can see. */
static void mark_unseen(world *w, uint32_t l, int32_t floor, uint8_t *keep) {
    const kvc__lane *s = &w->store.lane[l];
    uint32_t at = 0;
    for (uint32_t p = 0; p < s->n_page; p++) {
        int32_t pos[KVC_PAGE];
        const uint32_t n = kvc__store_positions(&w->store, l, p, pos);
        bool seen = false;
        for (uint32_t e = 0; e < n; e++) {
            seen |= is_seen(w, layer_of(l), floor, pos[e]);
        }
        const uint32_t live = (uint32_t)__builtin_popcountll(s->page[p].live);
        memset(keep + at, seen, live);
        at += live;
    }
    memset(keep + at, 1, N_CTX - at);
}

/* Frees what isn't seen from floor on: whole pages, in the model as in the store. */
static void do_free(world *w) {
    const int32_t floor = w->end - (int32_t)rnd(w, 130);
    if (floor < 0) {
        return;
    }
    for (uint32_t l = 0; l < N_LANE; l++) {
        uint8_t keep[N_CTX];
        mark_unseen(w, l, floor, keep);
        const bool before = w->evicted;
        lane_filter(w, l, keep);
        w->evicted = before;
    }
    const uint64_t held = w->store.n_sealed + w->store.n_away;
    for (uint32_t i = 0; i < N_LAYER; i++) {
        ck_assert_int_eq(kvc__store_free_unseen(&w->store, i, floor), KVC_OK);
    }
    /* The hole is closed at a tick that a replay would meet at another position. */
    w->evicted |=
        (w->stack.flags & KVC_PLAN_EVICTS) != 0 && w->store.n_sealed + w->store.n_away < held;
}

static bool holds(const lane *y, int32_t pos) {
    for (uint32_t i = 0; i < y->n; i++) {
        if (y->e[i].pos == pos) {
            return true;
        }
    }
    return false;
}

/* Whether the page of pos is held everywhere in the open type, so that it can be opened again. */
static bool reopens(world *w, int32_t pos) {
    bool yes = pos < w->end;
    for (uint32_t i = 0; i < N_LAYER; i++) {
        yes &= w->shape[i].type_k == w->shape[i].open_type &&
               w->shape[i].type_v == w->shape[i].open_type;
    }
    for (uint32_t l = 0; l < N_LANE; l++) {
        yes &= holds(&w->lane[l], pos - pos % (int32_t)KVC_PAGE);
        const uint32_t page = (uint32_t)pos / KVC_PAGE;
        yes &= page >= w->store.lane[l].n_page ||
               !kvc__store_is_away(&w->store, layer_of(l), &w->store.lane[l].page[page]);
    }
    return yes;
}

/* What rewind() must answer. */
static int32_t rewind_expected(world *w, int32_t pos) {
    if (w->store.n_column > 0 || w->evicted) {
        return pos == w->end && n_open(w) > 0 ? pos : 0;
    }
    const bool held = w->held && pos > w->end - (int32_t)KVC_PAGE;
    if ((n_open(w) == 0 || pos < w->end - (int32_t)n_open(w)) && !reopens(w, pos) && !held) {
        pos -= pos % (int32_t)KVC_PAGE;
    }
    for (uint32_t l = 0; w->stack.visible != NULL && l < N_LANE; l++) {
        for (int32_t p = 0; p < pos; p++) {
            if (is_seen(w, layer_of(l), pos, p) && !holds(&w->lane[l], p)) {
                return 0;
            }
        }
    }
    return pos;
}

static void do_truncate(world *w) {
    const int32_t back = rnd(w, 2) != 0 ? (int32_t)rnd(w, 70) : (int32_t)rnd(w, N_CTX);
    const int32_t pos = rnd(w, 5) == 0 || back > w->end ? w->end : w->end - back;
    const int32_t to = kvc__store_rewind(&w->store, pos);
    ck_assert_int_eq(to, rewind_expected(w, pos));
    kvc__store_truncate(&w->store, to);
    w->held &= to == w->end;
    for (uint32_t l = 0; l < N_LANE; l++) {
        lane *y = &w->lane[l];
        while (y->n > 0 && y->e[y->n - 1].pos >= to) {
            y->n--;
        }
        y->n_open = 0;
        for (uint32_t i = 0; i < y->n; i++) {
            y->n_open += y->e[i].pos >= to - to % (int32_t)KVC_PAGE;
        }
    }
    w->end = to;
    w->evicted &= to != 0;
}

static void do_columns(world *w) {
    const uint32_t l = rnd(w, N_LANE);
    lane *y = &w->lane[l];
    const uint32_t first = rnd(w, y->n + 1), n = rnd(w, y->n - first + 1);
    float value[N_CTX];
    if (w->store.n_column == 0) {
        return;
    }
    const bool own = rnd(w, 2) != 0;
    for (uint32_t i = 0; i < n; i++) {
        value[i] = (float)rnd(w, 1000);
        *(own ? &y->e[first + i].own : &y->e[first + i].mass) = value[i];
    }
    const uint32_t col = own ? OWN : KVC__COL_MASS;
    ck_assert_int_eq(kvc__store_column_set(&w->store, l, col, first, n, value), KVC_OK);
}

/* ---------------------------------------------------------------- comparing */

/* Entries [first, first + n) of a lane, as the store tells them. */
static void check_span(world *w, uint32_t l, uint32_t first, uint32_t n) {
    const lane *y = &w->lane[l];
    const kvc__store *s = &w->store;
    static int32_t pos[N_CTX];
    static float k[N_CTX][DIM_K], v[N_CTX][DIM_V], mass[N_CTX], own[N_CTX];
    ck_assert_int_eq(kvc__store_read_pos(s, l, first, n, pos), KVC_OK);
    ck_assert_int_eq(kvc__store_read(s, layer_of(l), head_of(l), first, n, k[0], v[0]), KVC_OK);
    if (s->n_column > 0) {
        ck_assert_int_eq(kvc__store_column_get(s, l, KVC__COL_MASS, first, n, mass), KVC_OK);
        ck_assert_int_eq(kvc__store_column_get(s, l, OWN, first, n, own), KVC_OK);
    }
    for (uint32_t i = 0; i < n; i++) {
        const entry *e = &y->e[first + i];
        const bool same = pos[i] == e->pos && memcmp(k[i], e->k, sizeof e->k) == 0 &&
                          memcmp(v[i], e->v, sizeof e->v) == 0 &&
                          (s->n_column == 0 || (mass[i] == e->mass && own[i] == e->own));
        if (!same) {
            ck_abort_msg("lane %u, entry %u: position %d, not %d, or its rows or columns differ", l,
                         first + i, pos[i], e->pos);
        }
    }
}

/* Every slot has one owner, and the figures are those of the pages that are held. */
static void check_pages(world *w) {
    uint64_t pages = 0, sealed = 0, moved = 0, used = 0, away = 0;
    bool bad = false;
    const kvc__store *s = &w->store;
    for (uint32_t i = 0; i < N_LAYER; i++) {
        uint8_t owned[N_HEAD * (N_CTX / KVC_PAGE + 1) + 1] = {0};
        uint32_t resident = 0;
        for (uint32_t h = 0; h < w->n_head_kv[i]; h++) {
            const kvc__lane *l = kvc__store_lane(s, i, h);
            for (uint32_t p = 0; p < l->n_page; p++) {
                const kvc__ref *r = &l->page[p];
                bad |= !w->evicted && r->pos0 != (int32_t)(p * KVC_PAGE);
                if (r->slot == KVC__NO_SLOT) {
                    bad |= r->live != 0 || kvc__store_page(s, i, r) != NULL;
                    continue;
                }
                bad |= r->slot >= s->arena->layer[i].per_seg || owned[r->slot]++ != 0;
                pages++;
                moved += r->moved;
                if (kvc__store_is_away(s, i, r)) {
                    away++;
                } else {
                    resident++;
                    sealed += w->shape[i].page_bytes;
                }
            }
        }
        for (uint32_t x = 0; x < s->arena->layer[i].per_seg; x++) {
            used += s->arena->layer[i].holder[x];
        }
        bad |= w->tiered && (resident != s->resident[i] || resident > s->share[i]);
    }
    kvc__store_bytes b;
    kvc__store_count(s, &b);
    ck_assert_msg(!bad, "a page is at the wrong place, or a slot has two owners or none");
    ck_assert_uint_eq(s->n_sealed, pages - away);
    ck_assert_uint_eq(s->n_away, away);
    ck_assert_uint_eq(w->n_kept, away);
    ck_assert_uint_eq(used, pages);
    ck_assert_uint_eq(s->n_moved, moved);
    ck_assert_uint_eq(b.sealed, sealed);
    ck_assert_uint_eq(b.open, s->open_bytes);
    /* The journal has room for a copy of tables and columns. */
    const uint64_t copies = s->journal.ref != NULL ? 2 : 1;
    ck_assert_uint_eq(b.column, copies * (pages + N_LANE) * s->n_column * KVC_PAGE * sizeof(float));
    ck_assert_uint_eq(b.meta, copies * N_LANE * w->store.cap_page * sizeof(kvc__ref) +
                                  copies * N_LANE * sizeof(kvc__lane) +
                                  (copies - 1) * N_LAYER * sizeof(kvc__journal_layer) +
                                  moved * KVC_PAGE * sizeof(int32_t) +
                                  pages * kvc__arena_slot_bytes(s->arena));
    kvc__store_note_peak(&w->store);
    ck_assert_uint_ge(s->peak, b.sealed + b.open + b.meta + b.column);
}

static void check_all(world *w, bool whole) {
    for (uint32_t l = 0; l < N_LANE; l++) {
        const lane *y = &w->lane[l];
        ck_assert_uint_eq(w->store.lane[l].n_live, y->n);
        ck_assert_uint_eq(w->store.lane[l].open_n, n_open(w));
        const uint32_t first = whole ? 0 : rnd(w, y->n + 1);
        check_span(w, l, first, whole ? y->n : rnd(w, y->n - first + 1));
    }
    check_pages(w);
}

/* ---------------------------------------------------------------- tests */

static void step(world *w) {
    const uint32_t what = rnd(w, 16);
    if (what < 8) {
        if (w->end < N_CTX) {
            do_append(w, 1 + rnd(w, 64));
        }
    } else if (what < 10) {
        do_columns(w);
    } else if (what == 10) {
        do_truncate(w);
    } else if (w->stack.visible != NULL && (w->kind == SEES || what == 11)) {
        do_free(w);
    } else if (w->kind >= EVICTS) {
        if (what == 15 || w->gentle) {
            do_settle(w);
        } else if (what < 13) {
            do_keep(w);
        } else {
            do_drop(w);
        }
    }
}

START_TEST(equals_a_plain_model) {
    world *w = world_new((uint32_t)_i % N_KIND, (uint64_t)_i);
    w->gentle = _i / N_KIND % 3 == 0;
    for (uint32_t i = 0; i < STEPS; i++) {
        step(w);
        check_all(w, i + 1 == STEPS);
    }
    world_free(w);
}
END_TEST

START_TEST(free_keeps_what_is_seen) {
    world *w = world_new(SEES, (uint64_t)_i);
    while (w->end < N_CTX) {
        do_append(w, 64);
        const int32_t floor = w->end > 64 ? w->end - 64 : 0;
        for (uint32_t i = 0; i < N_LAYER; i++) {
            ck_assert_int_eq(kvc__store_free_unseen(&w->store, i, floor), KVC_OK);
        }
        for (uint32_t l = 0; l < N_LANE; l++) {
            static int32_t pos[N_CTX];
            static uint8_t there[N_CTX];
            const uint32_t n = w->store.lane[l].n_live;
            memset(there, 0, sizeof there);
            ck_assert_int_eq(kvc__store_read_pos(&w->store, l, 0, n, pos), KVC_OK);
            for (uint32_t i = 0; i < n; i++) {
                there[pos[i]] = 1;
            }
            for (int32_t q = floor; q < w->end; q += 7) {
                for (int32_t p = 0; p < w->end; p++) {
                    if (there[p] == 0 && is_seen(w, layer_of(l), q, p)) {
                        ck_abort_msg("%d sees %d, which was freed", q, p);
                    }
                }
            }
            /* Sinks, the window, a page more for going back and the ends of pages. */
            const int32_t most = w->sinks + w->size + 40 * (int32_t)layer_of(l) + 4 * 64;
            ck_assert_int_le((int32_t)n, most);
        }
    }
    world_free(w);
}
END_TEST

START_TEST(bad_requests_change_nothing) {
    world *w = world_new(EVICTS, (uint64_t)_i);
    float x[4] = {0};
    int32_t pos[4];
    while (w->end < 150) {
        do_append(w, 150 - (uint32_t)w->end);
    }
    const kvc__store *s = &w->store;
    ck_assert_int_eq(kvc__store_read_pos(s, 0, 150, 1, pos), KVC_E_RANGE);
    ck_assert_int_eq(kvc__store_read_pos(s, 0, 151, 0, pos), KVC_E_RANGE);
    ck_assert_int_eq(kvc__store_read_pos(s, 0, 1, UINT32_MAX, pos), KVC_E_RANGE);
    ck_assert_int_eq(kvc__store_read_pos(s, 0, 0, 1, NULL), KVC_E_ARG);
    ck_assert_int_eq(kvc__store_read_pos(s, 0, 150, 0, NULL), KVC_OK);
    ck_assert_int_eq(kvc__store_column_get(s, 0, 0, 149, 2, x), KVC_E_RANGE);
    ck_assert_int_eq(kvc__store_column_get(s, 0, 0, 0, 1, NULL), KVC_E_ARG);
    ck_assert_int_eq(kvc__store_column_set(&w->store, 0, 0, 149, 2, x), KVC_E_RANGE);
    ck_assert_int_eq(kvc__store_read(s, 0, 0, 149, 2, x, NULL), KVC_E_RANGE);
    ck_assert_int_eq(kvc__store_read(s, 0, 0, 0, 2, NULL, NULL), KVC_OK);
    static const uint32_t order[] = {3, 2}, twice[] = {3, 3}, far[] = {0, 150};
    ck_assert_int_eq(kvc__store_keep(&w->store, 0, order, 2), KVC_E_RANGE);
    ck_assert_int_eq(kvc__store_keep(&w->store, 0, twice, 2), KVC_E_RANGE);
    ck_assert_int_eq(kvc__store_keep(&w->store, 0, far, 2), KVC_E_RANGE);
    ck_assert_int_eq(kvc__store_keep(&w->store, 0, NULL, 1), KVC_E_RANGE);
    ck_assert_int_eq(kvc__store_keep(&w->store, 0, far, 151), KVC_E_RANGE);
    ck_assert_int_eq(kvc__store_drop(&w->store, 0, 150, 1000), KVC_OK);
    ck_assert_int_eq(kvc__store_drop(&w->store, 0, 9, 3), KVC_OK);
    ck_assert_int_eq(kvc__store_drop(&w->store, 0, INT32_MIN, 0), KVC_OK);
    ck_assert_int_eq(w->store.evicted, 0);
    check_all(w, true);
    world_free(w);
}
END_TEST

/* Fills the open pages of all lanes without the plain model. */
static void fill_open(world *w, uint32_t page) {
    const float row[DIM_V] = {0};
    for (uint32_t l = 0; l < N_LANE; l++) {
        for (uint32_t e = 0; e < KVC_PAGE; e++) {
            kvc__store_append(&w->store, layer_of(l), head_of(l), 1, (int32_t)(page * KVC_PAGE + e),
                              row, 0, row, 0);
        }
    }
}

/* All slots can be used again and again; one page more than there is room for is refused, and the
 * store is as before. */
START_TEST(no_slot_is_no_memory) {
    world *w = world_sized(EVICTS, 1, 3000, false);
    kvc__slots *a = &w->store.arena->layer[1];
    for (int turn = 0; turn < 2; turn++) {
        for (uint32_t l = 0; l < N_LANE; l++) {
            ck_assert_int_eq(kvc__store_drop(&w->store, l, 0, INT32_MAX), KVC_OK);
        }
        do_settle(w);
        for (uint32_t i = 0; i < w->store.cap_page; i++) {
            fill_open(w, i);
            seal_all(w);
        }
    }
    const uint64_t before = w->store.n_sealed;
    ck_assert_int_eq(kvc__store_seal_begin(&w->store, 1, &w->err), KVC_E_NOMEM);
    ck_assert_ptr_nonnull(strstr(w->err.text, "layer 1"));
    ck_assert_uint_eq(w->store.n_sealed, before);
    /* Two of three lanes get a slot. */
    kvc__store_truncate(&w->store, (int32_t)((w->store.cap_page - 1) * KVC_PAGE));
    const uint32_t n_slot = a->per_seg;
    a->per_seg = (w->store.cap_page - 1) * N_HEAD + 2;
    fill_open(w, w->store.cap_page - 1);
    ck_assert_int_eq(kvc__store_seal_begin(&w->store, 1, &w->err), KVC_E_NOMEM);
    ck_assert_uint_eq(w->store.n_sealed, before - N_LANE);
    a->per_seg = n_slot;
    a->first_free = 0;
    ck_assert_int_eq(kvc__store_seal_begin(&w->store, 1, &w->err), KVC_OK);
    world_free(w);
}
END_TEST

static int32_t move_result;

static int32_t move_fails(void *self, uint32_t layer, void *dst, uint32_t to, const void *src,
                          uint32_t from) {
    (void)self, (void)layer, (void)dst, (void)to, (void)src, (void)from;
    return move_result;
}

/* What a codec answers is brought to the two statuses that a session knows, and the store can still
 * be emptied. */
START_TEST(move_that_fails) {
    static const int32_t answer[][2] = {{KVC_E_NOMEM, KVC_E_NOMEM},
                                        {KVC_E_IO, KVC_E_POLICY},
                                        {1, KVC_E_POLICY},
                                        {-12345, KVC_E_POLICY}};
    world *w = world_new(EVICTS, 1);
    while (w->end < 320) {
        do_append(w, 64);
    }
    move_result = answer[_i][0];
    w->stack.codec.api.move = move_fails;
    ck_assert_int_eq(kvc__store_drop(&w->store, 3, 10, 100), KVC_OK);
    ck_assert_int_eq(kvc__store_settle(&w->store, 1), answer[_i][1]);
    ck_assert_int_eq(kvc__store_rewind(&w->store, 320), 0);
    kvc__store_truncate(&w->store, 0);
    w->end = 0;
    for (uint32_t l = 0; l < N_LANE; l++) {
        w->lane[l].n = w->lane[l].n_open = 0;
    }
    check_all(w, true);
    ck_assert_uint_eq(w->store.n_sealed, 0);
    do_append(w, 20);
    check_all(w, true);
    world_free(w);
}
END_TEST

/* ---- memory that fails */

struct failing {
    int left; /* allocations that still succeed */
    size_t held;
};

static void *failing_realloc(void *ctx, void *p, size_t old_size, size_t new_size, size_t align) {
    struct failing *f = ctx;
    void *q = NULL;
    if (new_size == 0) {
        f->held -= old_size;
        free(p);
        return NULL;
    }
    if (f->left-- <= 0 || posix_memalign(&q, align, new_size) != 0) {
        return NULL;
    }
    ck_assert_ptr_null(p);
    f->held += new_size;
    return q;
}

START_TEST(create_without_memory) {
    struct failing f = {0, 0};
    const kvc_allocator a = {.struct_size = sizeof a, .ctx = &f, .realloc = failing_realloc};
    int32_t rc = KVC_E_NOMEM;
    int n = 0;
    for (; rc != KVC_OK; n++) {
        world *w = world_new(EVICTS, 3);
        kvc__store s = {0};
        kvc__mem mem;
        kvc__mem_init(&mem, &a, NULL);
        f.left = n;
        rc = kvc__store_create(&mem, &mem, &w->stack, NULL, &s, &w->err);
        ck_assert(rc == KVC_OK || rc == KVC_E_NOMEM);
        ck_assert((rc == KVC_OK) == (w->err.text[0] == '\0'));
        kvc__store_destroy(&s);
        ck_assert_uint_eq(f.held, 0);
        world_free(w);
    }
    ck_assert_int_gt(n, 5);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("store");
    TCase *tc = tcase_create("store");
    suite_add_tcase(suite, tc);
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, equals_a_plain_model, 0, 300);
    tcase_add_loop_test(tc, free_keeps_what_is_seen, 0, 20);
    tcase_add_loop_test(tc, bad_requests_change_nothing, 0, 4);
    tcase_add_test(tc, no_slot_is_no_memory);
    tcase_add_loop_test(tc, move_that_fails, 0, 4);
    tcase_add_test(tc, create_without_memory);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
