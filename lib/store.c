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
    if (ref->slot == KVC__NO_SLOT) {
        return NULL;
    }
    return kvc__arena_page(s->arena, layer, ref->slot);
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
        per_seg[i] = s->stack->n_head_kv[i] * s->cap_page;
    }
    int32_t rc = kvc__arena_create(family, s->n_layer, page_bytes, per_seg, &s->arena, err);
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
    return KVC_OK;
}

int32_t kvc__store_create(kvc__mem *mem, kvc__mem *family, kvc__stack *stack,
                          const kvc__store *like, kvc__store *out, kvc__err *err) {
    memset(out, 0, sizeof *out);
    out->mem = mem;
    out->stack = stack;
    out->n_layer = stack->n_layer;
    out->cap_page = stack->n_ctx / KVC_PAGE + 1;
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
        if (s->arena->n_holder > 1) {
            kvc__store_truncate(s, 0); /* forks may hold the same slots */
        }
        kvc__arena_leave(s->arena);
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
    }
    return slot;
}

static void slot_give(kvc__store *s, uint32_t layer, uint32_t slot) {
    s->sealed_bytes -= s->stack->shape[layer].page_bytes;
    s->n_sealed--;
    kvc__arena_give(s->arena, layer, slot);
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

/* ---------------------------------------------------------------- growing */

void kvc__store_append(kvc__store *s, uint32_t layer, uint32_t head, uint32_t n, int32_t pos0,
                       const float *k, size_t k_stride, const float *v, size_t v_stride) {
    kvc__lane *l = kvc__store_lane(s, layer, head);
    const kvc__page_shape *sh = &s->stack->shape[layer];
    const kvc__kern *kern = s->stack->kern;
    if (l->open_n == 0) {
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
        uint32_t slot = l->n_page < s->cap_page ? slot_take(s, layer) : KVC__NO_SLOT;
        if (slot == KVC__NO_SLOT) {
            while (j-- > s->lane0[layer]) {
                slot_give(s, layer, s->lane[j].page[s->lane[j].n_page].slot);
            }
            return kvc__fail(err, KVC_E_NOMEM, "the cache has no room for another page in layer %u",
                             layer);
        }
        l->page[l->n_page] = (kvc__ref){
            .live = l->open_live, .pos0 = l->open_pos0, .slot = slot, .n = (uint16_t)l->open_n};
    }
    return KVC_OK;
}

int32_t kvc__store_seal_lane(kvc__store *s, uint32_t layer, uint32_t head,
                             kvc__codec_scratch *scratch) {
    const kvc__lane *l = kvc__store_lane(s, layer, head);
    const kvc__ref *r = &l->page[l->n_page];
    int32_t pos[KVC_PAGE];
    for (uint32_t e = 0; e < KVC_PAGE; e++) {
        pos[e] = r->pos0 + (int32_t)e;
    }
    uint8_t *dst = kvc__arena_page(s->arena, layer, r->slot);
    return kvc__codec_encode(&s->stack->codec, layer, head, r->n, pos, l->open_k, l->open_v, dst,
                             scratch);
}

void kvc__store_seal_end(kvc__store *s, uint32_t layer) {
    for (uint32_t j = s->lane0[layer]; j < s->lane0[layer + 1]; j++) {
        kvc__lane *l = &s->lane[j];
        l->n_page++;
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

/* Moves one entry with its position and columns. */
static int32_t move_entry(kvc__store *s, uint32_t layer, uint32_t lane, uint32_t to, uint32_t from,
                          int32_t pos) {
    kvc__lane *l = &s->lane[lane];
    const uint32_t tp = to / KVC_PAGE, te = to % KVC_PAGE, fp = from / KVC_PAGE,
                   fe = from % KVC_PAGE;
    uint8_t *dst = kvc__arena_page(s->arena, layer, l->page[tp].slot);
    const uint8_t *src = kvc__arena_page(s->arena, layer, l->page[fp].slot);
    if (to != from) {
        KVC_TRY(kvc__codec_move(&s->stack->codec, layer, dst, te, src, fe));
        for (uint32_t c = 0; c < s->n_column; c++) {
            kvc__store_column(s, lane, c, tp)[te] = kvc__store_column(s, lane, c, fp)[fe];
        }
    }
    moved_pos(s, lane, tp)[te] = pos;
    return KVC_OK;
}

/* Gives a lane copies of its own of the pages that forks hold too: what is moved must not change
 * for them. */
static int32_t unshare(kvc__store *s, uint32_t layer, kvc__lane *l) {
    for (uint32_t i = 0; i < l->n_page; i++) {
        kvc__ref *r = &l->page[i];
        if (r->slot == KVC__NO_SLOT || !kvc__arena_is_shared(s->arena, layer, r->slot)) {
            continue;
        }
        const uint32_t slot = slot_take(s, layer);
        if (slot == KVC__NO_SLOT) {
            return KVC_E_NOMEM;
        }
        memcpy(kvc__arena_page(s->arena, layer, slot), kvc__arena_page(s->arena, layer, r->slot),
               s->stack->shape[layer].page_bytes);
        slot_give(s, layer, r->slot);
        r->slot = slot;
    }
    return KVC_OK;
}

/* Moves the live entries of a lane's sealed pages to the front, order kept; the pages that are left
 * over are freed and the table ends with the last used one. Holes (freed pages) are closed first.
 */
static int32_t compact(kvc__store *s, uint32_t layer, uint32_t lane) {
    kvc__lane *l = &s->lane[lane];
    const uint32_t n_old = l->n_page;
    KVC_TRY(unshare(s, layer, l));
    uint32_t to = 0, slots = 0;
    int32_t pos[KVC_PAGE];
    /* Slots are handed out in table order, so a destination page is never behind its source. */
    for (uint32_t i = 0; i < n_old; i++) {
        const uint32_t n = kvc__store_positions(s, lane, i, pos);
        const uint64_t live = l->page[i].live;
        if (l->page[i].slot == KVC__NO_SLOT) {
            continue;
        }
        if (slots != i) {
            /* Close the hole: the page itself moves down the table, its bytes stay. */
            memmove(moved_pos(s, lane, slots), pos, n * sizeof *pos);
            for (uint32_t c = 0; c < s->n_column; c++) {
                memmove(kvc__store_column(s, lane, c, slots), kvc__store_column(s, lane, c, i),
                        KVC_PAGE * sizeof(float));
            }
            l->page[slots] = l->page[i];
            l->page[i].slot = KVC__NO_SLOT;
            l->page[i].live = 0;
            l->page[i].moved = 0;
        }
        for (uint64_t m = live; m != 0; m &= m - 1) {
            const uint32_t e = (uint32_t)__builtin_ctzll(m);
            KVC_TRY(move_entry(s, layer, lane, to, slots * KVC_PAGE + e, pos[e]));
            to++;
        }
        slots++;
    }
    /* From here on the index of a page doesn't tell its positions. */
    atomic_store(&s->evicted, 1);
    const uint32_t used = (to + KVC_PAGE - 1) / KVC_PAGE;
    for (uint32_t i = 0; i < slots; i++) {
        kvc__ref *r = &l->page[i];
        s->n_moved -= r->moved;
        r->moved = 0;
        if (i >= used) {
            slot_give(s, layer, r->slot);
            r->slot = KVC__NO_SLOT;
            r->live = 0;
            continue;
        }
        r->n = (uint16_t)(i + 1 < used ? KVC_PAGE : to - i * KVC_PAGE);
        r->live = bits_below(r->n);
        r->moved = 1;
        r->pos0 = moved_pos(s, lane, i)[0];
        s->n_moved++;
    }
    /* The open page's columns follow it to its new index. */
    for (uint32_t c = 0; used != n_old && c < s->n_column; c++) {
        memmove(kvc__store_column(s, lane, c, used), kvc__store_column(s, lane, c, n_old),
                KVC_PAGE * sizeof(float));
    }
    l->n_page = used;
    return KVC_OK;
}

int32_t kvc__store_settle(kvc__store *s, uint32_t layer) {
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

/* Whether the sealed pages around pos can be opened again, so that no row before it is lost. */
static bool reopens(const kvc__store *s, int32_t pos) {
    const uint32_t page = (uint32_t)pos / KVC_PAGE;
    bool held = kvc__codec_reopens(&s->stack->codec, s->n_layer);
    for (uint32_t i = 0; i < s->n_lane && held; i++) {
        held = page < s->lane[i].n_page && s->lane[i].page[page].slot != KVC__NO_SLOT;
    }
    return held;
}

int32_t kvc__store_rewind(const kvc__store *s, int32_t pos) {
    const kvc__lane *l = &s->lane[0];
    const int32_t end = l->open_n > 0 ? l->open_pos0 + (int32_t)l->open_n : -1;
    if (s->column != NULL || atomic_load(&s->evicted) != 0) {
        /* Masses and evictions of later tokens can't be taken back: only the present is left. */
        return pos == end ? pos : 0;
    }
    if ((l->open_n == 0 || pos < l->open_pos0) && !reopens(s, pos)) {
        pos -= pos % (int32_t)KVC_PAGE;
    }
    for (uint32_t i = 0; i < s->n_layer && s->stack->visible != NULL && pos > 0; i++) {
        kvc_range r[KVC_MAX_RANGES + 1];
        uint32_t n = 0;
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
    kvc__codec_reopen(&s->stack->codec, layer, kvc__store_page(s, layer, r), l->open_k, l->open_v);
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
    uint64_t pages = s->n_sealed;
    out->sealed = s->sealed_bytes;
    out->open = s->open_bytes;
    out->meta = (uint64_t)s->n_lane * s->cap_page * sizeof(kvc__ref) +
                s->n_lane * sizeof(kvc__lane) + s->n_moved * KVC_PAGE * sizeof(int32_t);
    out->column = (pages + s->n_lane) * s->n_column * KVC_PAGE * sizeof(float);
}

void kvc__store_note_peak(kvc__store *s) {
    kvc__store_bytes b;
    uint64_t memory, disk;
    kvc__store_count(s, &b);
    kvc__stack_bytes(s->stack, &memory, &disk);
    const uint64_t now = b.sealed + b.open + b.meta + b.column + memory;
    s->peak = now > s->peak ? now : s->peak;
}
