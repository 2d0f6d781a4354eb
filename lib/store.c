/* SPDX-License-Identifier: MIT
 * store.c: pages, lanes, masks and columns. Everything here is bookkeeping around a codec;
 * evictions only clear bits of live masks, and settling after a tick frees what is empty and moves
 * what can be moved. */
#include "store.h"

#include "os.h"

#include <string.h>

/* ---------------------------------------------------------------- small helpers */

static uint64_t bits_below(uint32_t n) {
    return n >= 64 ? ~(uint64_t)0 : ((uint64_t)1 << n) - 1;
}

static uint32_t popcount(uint64_t x) {
    return (uint32_t)__builtin_popcountll(x);
}

static int32_t *moved_pos(const kvc__store *s, uint32_t lane, uint32_t i) {
    return s->pos + ((size_t)lane * s->cap_page + i) * KVC_PAGE;
}

const uint8_t *kvc__store_page(const kvc__store *s, uint32_t layer, const kvc__ref *ref) {
    if (ref->slot == KVC__NO_SLOT || kvc__arena_is_away(s->arena, layer, ref->slot)) {
        return NULL;
    }
    return kvc__arena_page(s->arena, layer, ref->slot);
}

bool kvc__store_is_away(const kvc__store *s, uint32_t layer, const kvc__ref *ref) {
    return ref->slot != KVC__NO_SLOT && kvc__arena_is_away(s->arena, layer, ref->slot);
}

uint32_t kvc__store_positions(const kvc__store *s, uint32_t lane, uint32_t i, int32_t *out) {
    const kvc__lane *l = &s->lane[lane];
    const bool open = i == l->n_page;
    const uint32_t n = open ? l->open_n : l->page[i].n;
    if (!open && l->page[i].moved != 0) {
        memcpy(out, moved_pos(s, lane, i), n * sizeof *out);
        return n;
    }
    const int32_t pos0 = open ? l->open_pos0 : l->page[i].pos0;
    for (uint32_t e = 0; e < n; e++) {
        out[e] = pos0 + (int32_t)e;
    }
    return n;
}

float *kvc__store_column(const kvc__store *s, uint32_t lane, uint32_t col, uint32_t i) {
    if (s->column == NULL) {
        return NULL;
    }
    const size_t per = ((size_t)s->cap_page + 1) * KVC_PAGE;
    return s->column + ((size_t)lane * s->n_column + col) * per + (size_t)i * KVC_PAGE;
}

/* ---------------------------------------------------------------- making and freeing */

/* Reserves count × size bytes; zero of them is fine. */
static int32_t reserve_n(size_t count, size_t size, size_t *bytes, void **out, kvc__err *err) {
    size_t n;
    if (!kvc__mul_size(count, size, &n) || (n > 0 && (*out = kvc__reserve(n)) == NULL)) {
        return kvc__fail(err, KVC_E_NOMEM,
                         "can't reserve address space for the cache; lower n_ctx");
    }
    *bytes = n;
    return KVC_OK;
}

/* An arena of the store's own, or the one of a store like it. */
static int32_t arena_create(kvc__store *s, kvc__mem *family, const kvc__store *like,
                            kvc__err *err) {
    if (like != NULL) {
        KVC_TRY(kvc__arena_join(like->arena, err));
        s->arena = like->arena;
        return KVC_OK;
    }
    const size_t bytes = s->n_layer * (sizeof(size_t) + sizeof(uint32_t));
    size_t *page_bytes = kvc__alloc(s->mem, bytes);
    if (page_bytes == NULL) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for the cache's page tables");
    }
    uint32_t *per_seg = (uint32_t *)(page_bytes + s->n_layer);
    for (uint32_t i = 0; i < s->n_layer; i++) {
        page_bytes[i] = s->stack->shape[i].page_bytes;
        /* One more than the tables hold: compacting fills a page before it gives one up. */
        per_seg[i] = s->stack->n_head_kv[i] * s->cap_page + 1;
    }
    kvc__tier *tier = s->stack->tier != NULL ? &s->stack->tier->tier : NULL;
    int32_t rc = kvc__arena_create(family, tier, s->n_layer, page_bytes, per_seg, &s->arena, err);
    kvc__free(s->mem, page_bytes, bytes);
    return rc;
}

/* The open pages of all lanes, one after the other. */
static int32_t open_create(kvc__store *s, kvc__err *err) {
    size_t total = 0;
    for (uint32_t i = 0; i < s->n_layer; i++) {
        const kvc__page_shape *sh = &s->stack->shape[i];
        total += (s->lane0[i + 1] - s->lane0[i]) * (sh->open_k_bytes + sh->open_v_bytes);
    }
    s->open = kvc__alloc(s->mem, total);
    if (s->open == NULL) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for the cache's open pages (%zu bytes)",
                         total);
    }
    s->open_bytes = total;
    uint8_t *at = s->open;
    for (uint32_t i = 0; i < s->n_layer; i++) {
        const kvc__page_shape *sh = &s->stack->shape[i];
        for (uint32_t j = s->lane0[i]; j < s->lane0[i + 1]; j++) {
            s->lane[j].open_k = at;
            s->lane[j].open_v = at + sh->open_k_bytes;
            at += sh->open_k_bytes + sh->open_v_bytes;
        }
    }
    return KVC_OK;
}

static int32_t tables_create(kvc__store *s, kvc__err *err) {
    s->lane0 = kvc__alloc_n(s->mem, s->n_layer + 1, sizeof *s->lane0);
    if (s->lane0 == NULL) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for the cache's page tables");
    }
    for (uint32_t i = 0; i < s->n_layer; i++) {
        s->lane0[i + 1] = s->lane0[i] + s->stack->n_head_kv[i];
    }
    s->n_lane = s->lane0[s->n_layer];
    s->lane = kvc__alloc_n(s->mem, s->n_lane, sizeof *s->lane);
    s->refs = kvc__alloc_n(s->mem, (size_t)s->n_lane * s->cap_page, sizeof *s->refs);
    if (s->lane == NULL || s->refs == NULL) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for the cache's page tables");
    }
    for (uint32_t i = 0; i < s->n_lane; i++) {
        s->lane[i].page = s->refs + (size_t)i * s->cap_page;
    }
    return KVC_OK;
}

static int32_t store_build(kvc__store *s, kvc__mem *family, const kvc__store *like, kvc__err *err) {
    kvc__stack *stack = s->stack;
    KVC_TRY(tables_create(s, err));
    KVC_TRY(open_create(s, err));
    KVC_TRY(arena_create(s, family, like, err));
    const uint32_t mass = KVC_OBSERVE_MASS | KVC_OBSERVE_MASS_LAST;
    void *p = NULL;
    if ((stack->observe & mass) != 0 || stack->n_column > 0) {
        s->n_column = KVC__N_COL_ENGINE + stack->n_column;
        size_t per = ((size_t)s->cap_page + 1) * KVC_PAGE * s->n_column;
        KVC_TRY(reserve_n((size_t)s->n_lane * per, sizeof(float), &s->column_reserved, &p, err));
        s->column = p;
    }
    if ((stack->flags & KVC_PLAN_EVICTS) != 0) {
        size_t per = (size_t)s->cap_page * KVC_PAGE;
        p = NULL;
        KVC_TRY(reserve_n((size_t)s->n_lane * per, sizeof(int32_t), &s->pos_reserved, &p, err));
        s->pos = p;
    }
    if (s->column != NULL || s->pos != NULL) {
        KVC_TRY(kvc__store_journal_create(s, err));
    }
    return stack->tier != NULL ? kvc__store_tier_create(s, like != NULL, err) : KVC_OK;
}

int32_t kvc__store_create(kvc__mem *mem, kvc__mem *family, kvc__stack *stack,
                          const kvc__store *like, kvc__store *out, kvc__err *err) {
    memset(out, 0, sizeof *out);
    out->mem = mem;
    out->stack = stack;
    out->n_layer = stack->n_layer;
    out->cap_page = kvc__stack_max_page(stack);
    int32_t rc = store_build(out, family, like, err);
    if (rc < 0) {
        kvc__store_destroy(out);
        return rc;
    }
    kvc__store_note_peak(out);
    return KVC_OK;
}

void kvc__store_destroy(kvc__store *s) {
    if (s->arena != NULL) {
        if (s->arena->n_holder > 1 || s->n_away > 0) {
            kvc__store_truncate(s, 0); /* forks may hold the same slots, and the tier is to know */
        }
        kvc__store_tier_destroy(s);
        kvc__arena_leave(s->arena);
    }
    if (s->mem != NULL) {
        kvc__store_journal_destroy(s);
    }
    kvc__release(s->column, s->column_reserved);
    kvc__release(s->pos, s->pos_reserved);
    if (s->mem != NULL) {
        kvc__free(s->mem, s->open, s->open_bytes);
        kvc__free(s->mem, s->refs, (size_t)s->n_lane * s->cap_page * sizeof *s->refs);
        kvc__free(s->mem, s->lane, s->n_lane * sizeof *s->lane);
        kvc__free(s->mem, s->lane0, (s->n_layer + 1) * sizeof *s->lane0);
    }
    memset(s, 0, sizeof *s);
}

/* ---------------------------------------------------------------- slots */

static uint32_t slot_take(kvc__store *s, uint32_t layer) {
    const uint32_t slot = kvc__arena_take(s->arena, layer);
    if (slot != KVC__NO_SLOT) {
        s->sealed_bytes += s->stack->shape[layer].page_bytes;
        s->n_sealed++;
        if (s->resident != NULL) {
            s->resident[layer]++;
        }
    }
    return slot;
}

static void slot_give(kvc__store *s, uint32_t layer, uint32_t slot) {
    if (kvc__arena_is_away(s->arena, layer, slot)) {
        kvc__pager_forget(s->pager, layer, slot);
        kvc__store_count_away(s, layer, -1);
    }
    s->sealed_bytes -= s->stack->shape[layer].page_bytes;
    s->n_sealed--;
    if (s->resident != NULL) {
        s->resident[layer]--;
    }
    kvc__arena_give(s->arena, layer, slot);
}

uint8_t *kvc__store_fill(kvc__store *s, uint32_t layer, uint32_t head, uint32_t *slot) {
    *slot = slot_take(s, layer);
    if (*slot == KVC__NO_SLOT) {
        return NULL;
    }
    const bool leaves = s->pager != NULL && s->resident[layer] > s->share[layer];
    return leaves ? kvc__pager_stage(s->pager, head) : kvc__arena_page(s->arena, layer, *slot);
}

int32_t kvc__store_place(kvc__store *s, uint32_t layer, uint32_t head, uint32_t slot,
                         uint8_t *bytes) {
    const bool stays = bytes == kvc__arena_page(s->arena, layer, slot);
    return stays ? KVC_OK : kvc__arena_put(s->arena, layer, head, slot, bytes);
}

static void ref_free(kvc__store *s, uint32_t layer, kvc__lane *l, kvc__ref *r) {
    if (r->slot == KVC__NO_SLOT) {
        return;
    }
    slot_give(s, layer, r->slot);
    l->n_live -= popcount(r->live);
    r->slot = KVC__NO_SLOT;
    r->live = 0;
    s->n_moved -= r->moved;
    r->moved = 0;
}

void kvc__store_free_page(kvc__store *s, uint32_t layer, kvc__lane *l, uint32_t i) {
    ref_free(s, layer, l, &l->page[i]);
}

/* ---------------------------------------------------------------- growing */

void kvc__store_append(kvc__store *s, uint32_t layer, uint32_t head, uint32_t n, int32_t pos0,
                       const float *k, size_t k_stride, const float *v, size_t v_stride) {
    kvc__lane *l = kvc__store_lane(s, layer, head);
    const kvc__page_shape *sh = &s->stack->shape[layer];
    const kvc__kern *kern = s->stack->kern;
    if (l->open_n == 0) {
        l->held = 0;
        l->open_pos0 = pos0;
        l->open_live = 0;
        for (uint32_t c = 0; c < s->n_column; c++) {
            memset(kvc__store_column(s, s->lane0[layer] + head, c, l->n_page), 0,
                   KVC_PAGE * sizeof(float));
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        kern->put_k(sh->open_type, k + i * k_stride, sh->dim_k, l->open_n + i, l->open_k);
        kern->put_v(sh->open_type, v + i * v_stride, sh->dim_v, l->open_n + i, l->open_v);
    }
    l->open_live |= bits_below(n) << l->open_n;
    l->open_n += n;
    l->n_live += n;
}

int32_t kvc__store_seal_begin(kvc__store *s, uint32_t layer, kvc__err *err) {
    for (uint32_t j = s->lane0[layer]; j < s->lane0[layer + 1]; j++) {
        kvc__lane *l = &s->lane[j];
        uint32_t slot = KVC__NO_SLOT;
        uint8_t *bytes =
            l->n_page < s->cap_page ? kvc__store_fill(s, layer, j - s->lane0[layer], &slot) : NULL;
        if (bytes == NULL) {
            while (j-- > s->lane0[layer]) {
                slot_give(s, layer, s->lane[j].page[s->lane[j].n_page].slot);
            }
            return kvc__fail(err, KVC_E_NOMEM, "the cache has no room for another page in layer %u",
                             layer);
        }
        l->leaves = bytes != kvc__arena_page(s->arena, layer, slot);
        l->page[l->n_page] = (kvc__ref){
            .live = l->open_live, .pos0 = l->open_pos0, .slot = slot, .n = (uint16_t)l->open_n};
    }
    return KVC_OK;
}

int32_t kvc__store_seal_lane(kvc__store *s, uint32_t layer, uint32_t head,
                             kvc__codec_scratch *scratch, const char **call) {
    const kvc__lane *l = kvc__store_lane(s, layer, head);
    const kvc__ref *r = &l->page[l->n_page];
    int32_t pos[KVC_PAGE];
    for (uint32_t e = 0; e < KVC_PAGE; e++) {
        pos[e] = r->pos0 + (int32_t)e;
    }
    uint8_t *dst = l->leaves != 0 ? kvc__pager_stage(s->pager, head)
                                  : kvc__arena_page(s->arena, layer, r->slot);
    *call = "encode";
    KVC_TRY(kvc__codec_encode(&s->stack->codec, layer, head, r->n, pos, l->open_k, l->open_v, dst,
                              scratch));
    *call = "put";
    return kvc__store_place(s, layer, head, r->slot, dst);
}

void kvc__store_seal_end(kvc__store *s, uint32_t layer) {
    for (uint32_t j = s->lane0[layer]; j < s->lane0[layer + 1]; j++) {
        kvc__lane *l = &s->lane[j];
        if (kvc__store_is_away(s, layer, &l->page[l->n_page])) {
            kvc__store_count_away(s, layer, 1);
        }
        l->n_page++;
        l->held = 1;
        l->open_n = 0;
        l->open_live = 0;
    }
    kvc__store_note_peak(s);
}

/* ---------------------------------------------------------------- giving up */

/* Whether an entry of page i of a lane lies at floor or above, or in one of the ranges. */
static bool page_seen(const kvc__store *s, uint32_t lane, uint32_t i, int32_t floor,
                      const kvc_range *range, uint32_t n_range) {
    int32_t pos[KVC_PAGE];
    const uint32_t n = kvc__store_positions(s, lane, i, pos);
    for (uint32_t e = 0; e < n; e++) {
        for (uint32_t x = 0; x < n_range; x++) {
            if (pos[e] >= range[x].first && pos[e] < range[x].end) {
                return true;
            }
        }
    }
    return n > 0 && pos[n - 1] >= floor;
}

int32_t kvc__store_free_unseen(kvc__store *s, uint32_t layer, int32_t floor) {
    kvc_range range[KVC_MAX_RANGES + 1];
    uint32_t n = 0;
    if (s->journal.on) {
        s->journal.layer[layer].floor = floor;
        return KVC_OK;
    }
    KVC_TRY(kvc__stack_visible(s->stack, layer, floor, range, &n));
    for (uint32_t j = s->lane0[layer]; j < s->lane0[layer + 1]; j++) {
        kvc__lane *l = &s->lane[j];
        for (uint32_t i = 0; i < l->n_page; i++) {
            kvc__ref *r = &l->page[i];
            if (r->slot != KVC__NO_SLOT && !page_seen(s, j, i, floor, range, n)) {
                ref_free(s, layer, l, r);
                /* Where entries are evicted too, the hole is closed at a tick that a replay would
                 * meet earlier. */
                if ((s->stack->flags & KVC_PLAN_EVICTS) != 0) {
                    atomic_store(&s->evicted, 1);
                }
            }
        }
    }
    return KVC_OK;
}

/* A lane being compacted: live entries go to new pages, so that neither a fork nor a page in the
 * tier sees a change. */
struct compaction {
    kvc__store *s;
    uint32_t layer, lane, head;
    uint32_t to;       /* entries placed so far */
    uint32_t slot;     /* of the page that is being filled, or KVC__NO_SLOT */
    uint8_t *page;     /* its memory */
    uint8_t *buffer;   /* for a page that has to be brought */
    uint32_t n_source; /* pages in front of it are given up */
};

/* The page that was being filled takes its place in the table. */
static int32_t compaction_place(struct compaction *c, uint32_t n) {
    kvc__store *s = c->s;
    const uint32_t i = (c->to - 1) / KVC_PAGE;
    kvc__ref *r = &s->lane[c->lane].page[i];
    *r = (kvc__ref){.live = bits_below(n),
                    .pos0 = moved_pos(s, c->lane, i)[0],
                    .slot = c->slot,
                    .n = (uint16_t)n,
                    .moved = 1};
    s->n_moved++;
    const int32_t rc = kvc__store_place(s, c->layer, c->head, c->slot, c->page);
    if (kvc__store_is_away(s, c->layer, r)) {
        kvc__store_count_away(s, c->layer, 1);
    }
    c->slot = KVC__NO_SLOT;
    return rc;
}

/* Moves one entry with its position and columns. */
static int32_t compaction_move(struct compaction *c, const uint8_t *from, uint32_t page, uint32_t e,
                               int32_t pos) {
    kvc__store *s = c->s;
    const uint32_t tp = c->to / KVC_PAGE, te = c->to % KVC_PAGE;
    if (c->slot == KVC__NO_SLOT) {
        c->page = kvc__store_fill(s, c->layer, c->head, &c->slot);
        if (c->page == NULL) {
            return KVC_E_NOMEM;
        }
    }
    KVC_TRY(kvc__codec_move(&s->stack->codec, c->layer, c->page, te, from, e));
    for (uint32_t k = 0; k < s->n_column; k++) {
        kvc__store_column(s, c->lane, k, tp)[te] = kvc__store_column(s, c->lane, k, page)[e];
    }
    moved_pos(s, c->lane, tp)[te] = pos;
    c->to++;
    return KVC_OK;
}

/* Moves the live entries of page i, and gives it up. Some entry in front of it was given up before,
 * so the page that they fill has a lower index. */
static int32_t compaction_page(struct compaction *c, uint32_t i) {
    kvc__store *s = c->s;
    kvc__lane *l = &s->lane[c->lane];
    kvc__ref *r = &l->page[i];
    int32_t pos[KVC_PAGE], rc = KVC_OK;
    if (r->slot == KVC__NO_SLOT) {
        return KVC_OK;
    }
    kvc__store_positions(s, c->lane, i, pos);
    const uint8_t *from = kvc__store_bring(s, c->layer, c->lane, i, c->buffer, &rc);
    KVC_TRY(rc);
    for (uint64_t m = r->live; m != 0; m &= m - 1) {
        const uint32_t e = (uint32_t)__builtin_ctzll(m);
        KVC_TRY(compaction_move(c, from, i, e, pos[e]));
        if (c->to % KVC_PAGE == 0) {
            KVC_TRY(compaction_place(c, KVC_PAGE));
        }
    }
    l->n_live += popcount(r->live); /* they were moved, not given up */
    ref_free(s, c->layer, l, r);
    return KVC_OK;
}

/* Moves the live entries of a lane's sealed pages to the front, order kept; the pages that are left
 * over are freed and the table ends with the last used one. Full pages at the front stay. A failure
 * leaves a table that is only good to be freed. */
static int32_t compact(kvc__store *s, uint32_t layer, uint32_t lane) {
    kvc__lane *l = &s->lane[lane];
    const uint32_t n_old = l->n_page;
    struct compaction c = {.s = s,
                           .layer = layer,
                           .lane = lane,
                           .head = lane - s->lane0[layer],
                           .slot = KVC__NO_SLOT,
                           .buffer = kvc__store_buffer(s)};
    uint32_t first = 0;
    while (first < n_old && l->page[first].live == ~(uint64_t)0) {
        first++;
    }
    c.to = first * KVC_PAGE;
    atomic_store(&s->evicted, 1); /* the index of a page doesn't tell its positions any more */
    int32_t rc = KVC_OK;
    for (uint32_t i = first; i < n_old && rc == KVC_OK; i++) {
        rc = compaction_page(&c, i);
    }
    if (rc == KVC_OK && c.slot != KVC__NO_SLOT) {
        rc = compaction_place(&c, (c.to - 1) % KVC_PAGE + 1);
    }
    if (c.slot != KVC__NO_SLOT) {
        slot_give(s, layer, c.slot);
    }
    KVC_TRY(rc);
    const uint32_t used = (c.to + KVC_PAGE - 1) / KVC_PAGE;
    /* The open page's columns follow it to its new index. */
    for (uint32_t k = 0; used != n_old && k < s->n_column; k++) {
        memmove(kvc__store_column(s, lane, k, used), kvc__store_column(s, lane, k, n_old),
                KVC_PAGE * sizeof(float));
    }
    l->n_page = used;
    l->held = 0;
    return KVC_OK;
}

int32_t kvc__store_settle(kvc__store *s, uint32_t layer) {
    if (s->journal.on) {
        s->journal.layer[layer].settle = true;
        return KVC_OK;
    }
    const bool movable = kvc__codec_movable(&s->stack->codec);
    for (uint32_t j = s->lane0[layer]; j < s->lane0[layer + 1]; j++) {
        kvc__lane *l = &s->lane[j];
        uint32_t held = 0, live = 0;
        for (uint32_t i = 0; i < l->n_page; i++) {
            kvc__ref *r = &l->page[i];
            if (r->slot != KVC__NO_SLOT && r->live == 0) {
                ref_free(s, layer, l, r);
            }
            held += r->slot != KVC__NO_SLOT;
            live += popcount(r->live);
        }
        if (movable && (live + KVC_PAGE - 1) / KVC_PAGE < l->n_page &&
            ((live + KVC_PAGE - 1) / KVC_PAGE < held || held < l->n_page)) {
            KVC_TRY(compact(s, layer, j));
        }
    }
    return KVC_OK;
}

/* ---------------------------------------------------------------- going back */

/* Whether a lane can return to pos without losing a row before it: pos lies in its open page, or in
 * a sealed one that can be opened again. */
static bool lane_returns(const kvc__store *s, uint32_t layer, const kvc__lane *l, int32_t pos) {
    const uint32_t page = (uint32_t)pos / KVC_PAGE;
    if (page == l->n_page && l->open_n > 0) {
        return pos <= l->open_pos0 + (int32_t)l->open_n;
    }
    if (page + 1 == l->n_page && l->held != 0) {
        return true;
    }
    return page < l->n_page && kvc__codec_reopens(&s->stack->codec, s->n_layer) &&
           kvc__store_page(s, layer, &l->page[page]) != NULL;
}

/* Whether all lanes can; else they return to where a page begins. */
static bool returns(const kvc__store *s, int32_t pos) {
    for (uint32_t i = 0; i < s->n_layer; i++) {
        for (uint32_t j = s->lane0[i]; j < s->lane0[i + 1]; j++) {
            if (!lane_returns(s, i, &s->lane[j], pos)) {
                return false;
            }
        }
    }
    return true;
}

int32_t kvc__store_rewind(const kvc__store *s, int32_t pos) {
    const kvc__lane *l = &s->lane[0];
    const int32_t end = l->open_n > 0 ? l->open_pos0 + (int32_t)l->open_n : -1;
    if (s->column != NULL || atomic_load(&s->evicted) != 0) {
        /* Masses and evictions of later tokens can't be taken back: only the present is left. */
        return pos == end ? pos : 0;
    }
    if (pos % (int32_t)KVC_PAGE != 0 && !returns(s, pos)) {
        pos -= pos % (int32_t)KVC_PAGE;
    }
    for (uint32_t i = 0; i < s->n_layer && pos > 0; i++) {
        kvc_range r[KVC_MAX_RANGES + 1];
        uint32_t n = 0;
        if (!kvc__stack_hides(s->stack, i)) {
            continue;
        }
        if (kvc__stack_visible(s->stack, i, pos, r, &n) < 0) {
            return 0;
        }
        l = &s->lane[s->lane0[i]];
        for (uint32_t x = 0; x < n; x++) {
            /* pos itself is seen too, but is to be computed anyway. */
            const int32_t stop = r[x].end < pos ? r[x].end : pos;
            for (int32_t p = r[x].first / (int32_t)KVC_PAGE; p * (int32_t)KVC_PAGE < stop; p++) {
                if ((uint32_t)p < l->n_page && l->page[p].slot == KVC__NO_SLOT) {
                    return 0;
                }
            }
        }
    }
    return pos;
}

/* Opens a lane's last sealed page again, with the rows below pos. */
static void reopen(kvc__store *s, uint32_t layer, kvc__lane *l, int32_t pos) {
    kvc__ref *r = &l->page[l->n_page - 1];
    if (l->held == 0) {
        kvc__codec_reopen(&s->stack->codec, layer, kvc__store_page(s, layer, r), l->open_k,
                          l->open_v);
    }
    l->held = 0;
    l->open_pos0 = r->pos0;
    l->open_n = (uint32_t)(pos - r->pos0);
    l->open_live = r->live & bits_below(l->open_n);
    ref_free(s, layer, l, r);
    l->n_live += popcount(l->open_live);
    l->n_page--;
}

/* Cuts one lane at pos: a page boundary, a row of the open page, or one of a page that reopens. */
static void lane_truncate(kvc__store *s, uint32_t layer, kvc__lane *l, int32_t pos) {
    if (l->open_n > 0 && pos > l->open_pos0) {
        const uint32_t keep = (uint32_t)(pos - l->open_pos0);
        if (keep < l->open_n) {
            const uint64_t gone = l->open_live & ~bits_below(keep);
            l->n_live -= popcount(gone);
            l->open_live &= bits_below(keep);
            l->open_n = keep;
        }
        return;
    }
    l->n_live -= popcount(l->open_live);
    l->open_n = 0;
    l->open_live = 0;
    while (l->n_page > 0 && (pos == 0 || l->page[l->n_page - 1].pos0 >= pos)) {
        ref_free(s, layer, l, &l->page[l->n_page - 1]);
        l->n_page--;
        l->held = 0;
    }
    if (pos == 0) {
        l->n_live = 0; /* whatever a failed compaction left */
    }
    if (l->n_page > 0 && l->page[l->n_page - 1].pos0 + (int32_t)l->page[l->n_page - 1].n > pos) {
        reopen(s, layer, l, pos);
    }
}

void kvc__store_truncate(kvc__store *s, int32_t pos) {
    for (uint32_t i = 0; i < s->n_layer; i++) {
        for (uint32_t j = s->lane0[i]; j < s->lane0[i + 1]; j++) {
            lane_truncate(s, i, &s->lane[j], pos);
        }
    }
    if (pos == 0) {
        atomic_store(&s->evicted, 0);
    }
}

/* ---------------------------------------------------------------- counting */

void kvc__store_count(const kvc__store *s, kvc__store_bytes *out) {
    const uint64_t pages = s->n_sealed + s->n_away;
    out->sealed = s->sealed_bytes;
    out->open = s->open_bytes;
    out->meta = (uint64_t)s->n_lane * s->cap_page * sizeof(kvc__ref) +
                s->n_lane * sizeof(kvc__lane) + pages * kvc__arena_slot_bytes(s->arena) +
                s->n_moved * KVC_PAGE * sizeof(int32_t);
    out->column = (pages + s->n_lane) * s->n_column * KVC_PAGE * sizeof(float);
    if (s->journal.ref != NULL) {
        out->meta += (uint64_t)s->n_lane * (s->cap_page * sizeof(kvc__ref) + sizeof(kvc__lane)) +
                     s->n_layer * sizeof(kvc__journal_layer);
        out->column *= 2;
    }
    out->buffer = s->pager_bytes;
}

uint64_t kvc__store_held(const kvc__store *s) {
    kvc__store_bytes b;
    uint64_t memory, disk;
    kvc__store_count(s, &b);
    kvc__stack_bytes(s->stack, &memory, &disk);
    return b.sealed + b.open + b.meta + b.column + b.buffer + memory;
}

void kvc__store_note_peak(kvc__store *s) {
    const uint64_t now = kvc__store_held(s);
    s->peak = now > s->peak ? now : s->peak;
}
