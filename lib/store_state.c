/* SPDX-License-Identifier: MIT
 * store_state.c: a store copied for a fork, written to a stream, read from one. What is read may be
 * hostile: counts, positions and masks are checked before they are used; the bytes of pages may be
 * anything, codecs must bear it. */
#include "store.h"

#include <string.h>

/* Floats of one column of page index i. */
#define COLUMN_BYTES (KVC_PAGE * sizeof(float))

static uint32_t popcount(uint64_t x) {
    return (uint32_t)__builtin_popcountll(x);
}

static int32_t *moved_pos(const kvc__store *s, uint32_t lane, uint32_t i) {
    return s->pos + ((size_t)lane * s->cap_page + i) * KVC_PAGE;
}

/* ---------------------------------------------------------------- fork */

void kvc__store_copy(kvc__store *to, const kvc__store *from) {
    memcpy(to->open, from->open, from->open_bytes);
    for (uint32_t i = 0; i < from->n_layer; i++) {
        for (uint32_t j = from->lane0[i]; j < from->lane0[i + 1]; j++) {
            const kvc__lane *a = &from->lane[j];
            kvc__lane *b = &to->lane[j];
            b->n_page = a->n_page;
            b->open_n = a->open_n;
            b->open_live = a->open_live;
            b->open_pos0 = a->open_pos0;
            b->n_live = a->n_live;
            b->held = a->held;
            memcpy(b->page, a->page, a->n_page * sizeof *a->page);
            for (uint32_t p = 0; p < a->n_page; p++) {
                if (a->page[p].slot != KVC__NO_SLOT) {
                    kvc__arena_share(from->arena, i, a->page[p].slot);
                }
                if (a->page[p].moved != 0) {
                    memcpy(moved_pos(to, j, p), moved_pos(from, j, p), KVC_PAGE * sizeof(int32_t));
                }
            }
            for (uint32_t c = 0; c < from->n_column; c++) {
                memcpy(kvc__store_column(to, j, c, 0), kvc__store_column(from, j, c, 0),
                       (a->n_page + 1) * COLUMN_BYTES);
            }
        }
    }
    atomic_store(&to->evicted, atomic_load(&from->evicted));
    to->sealed_bytes = from->sealed_bytes;
    to->n_sealed = from->n_sealed;
    to->n_moved = from->n_moved;
    to->away_bytes = from->away_bytes;
    to->n_away = from->n_away;
    for (uint32_t i = 0; from->pager != NULL && i < from->n_layer; i++) {
        to->resident[i] = from->resident[i];
    }
    kvc__store_note_peak(to);
}

/* ---------------------------------------------------------------- save */

#define PUT(value) KVC_TRY(kvc__stream_write(out, &(value), sizeof(value)))

static int32_t put_columns(const kvc__store *s, uint32_t lane, uint32_t page, kvc__stream *out) {
    for (uint32_t c = 0; c < s->n_column; c++) {
        KVC_TRY(kvc__stream_write(out, kvc__store_column(s, lane, c, page), COLUMN_BYTES));
    }
    return KVC_OK;
}

/* A page for saving, which may have to be brought back. Saving doesn't hold the model's lock. */
static int32_t bring_page(const kvc__store *s, uint32_t layer, uint32_t lane, uint32_t i,
                          const uint8_t **bytes, kvc__stream *out) {
    const kvc__ref *r = &s->lane[lane].page[i];
    int32_t rc;
    *bytes = kvc__store_page(s, layer, r);
    if (*bytes != NULL) {
        return KVC_OK;
    }
    pthread_mutex_lock(&s->arena->tier->outside);
    *bytes = kvc__store_bring(s, layer, lane, i, kvc__store_buffer(s), &rc);
    pthread_mutex_unlock(&s->arena->tier->outside);
    return rc == KVC_OK ? rc
                        : kvc__stack_blame(s->stack, rc, "get", layer, lane - s->lane0[layer],
                                           r->pos0, out->err);
}

static int32_t put_page(const kvc__store *s, uint32_t layer, uint32_t lane, uint32_t i,
                        kvc__stream *out) {
    const kvc__ref *r = &s->lane[lane].page[i];
    const uint32_t n = r->n, moved = r->moved, held = r->slot != KVC__NO_SLOT;
    PUT(r->live);
    PUT(r->pos0);
    PUT(n);
    PUT(moved);
    PUT(held);
    if (moved != 0) {
        KVC_TRY(kvc__stream_write(out, moved_pos(s, lane, i), KVC_PAGE * sizeof(int32_t)));
    }
    if (held != 0) {
        const uint8_t *bytes;
        KVC_TRY(bring_page(s, layer, lane, i, &bytes, out));
        KVC_TRY(kvc__stream_write(out, bytes, s->stack->shape[layer].page_bytes));
    }
    return put_columns(s, lane, i, out);
}

static int32_t put_lane(const kvc__store *s, uint32_t layer, uint32_t lane, kvc__stream *out) {
    const kvc__lane *l = &s->lane[lane];
    const kvc__page_shape *sh = &s->stack->shape[layer];
    PUT(l->n_page);
    PUT(l->open_n);
    PUT(l->open_pos0);
    PUT(l->open_live);
    for (uint32_t i = 0; i < l->n_page; i++) {
        KVC_TRY(put_page(s, layer, lane, i, out));
    }
    KVC_TRY(put_columns(s, lane, l->n_page, out));
    if (l->open_n > 0) {
        KVC_TRY(kvc__stream_write(out, l->open_k, sh->open_k_bytes));
        KVC_TRY(kvc__stream_write(out, l->open_v, sh->open_v_bytes));
    }
    return KVC_OK;
}

int32_t kvc__store_save(const kvc__store *s, kvc__stream *out) {
    const uint32_t evicted = (uint32_t)atomic_load(&s->evicted);
    PUT(evicted);
    for (uint32_t i = 0; i < s->n_layer; i++) {
        for (uint32_t j = s->lane0[i]; j < s->lane0[i + 1]; j++) {
            KVC_TRY(put_lane(s, i, j, out));
        }
    }
    return KVC_OK;
}

/* ---------------------------------------------------------------- load */

#define GET(value) KVC_TRY(kvc__stream_read(in, &(value), sizeof(value)))

static int32_t damaged(kvc__stream *in, uint32_t lane, const char *what) {
    return kvc__fail(in->err, KVC_E_FORMAT, "%s: damaged: lane %u has %s",
                     in->path != NULL ? in->path : "state", lane, what);
}

static int32_t get_columns(const kvc__store *s, uint32_t lane, uint32_t page, kvc__stream *in) {
    for (uint32_t c = 0; c < s->n_column; c++) {
        KVC_TRY(kvc__stream_read(in, kvc__store_column(s, lane, c, page), COLUMN_BYTES));
    }
    return KVC_OK;
}

/* Positions of a moved page ascend, from above `before` to below n_valid. */
static int32_t check_moved(kvc__stream *in, uint32_t lane, const int32_t *pos, uint32_t n,
                           int32_t before, uint32_t n_valid) {
    for (uint32_t e = 0; e < n; e++) {
        if (pos[e] <= before || (uint32_t)pos[e] >= n_valid) {
            return damaged(in, lane, "positions out of order");
        }
        before = pos[e];
    }
    return KVC_OK;
}

/* Reads page i. *before: the last position so far. */
static int32_t get_page(kvc__store *s, uint32_t layer, uint32_t lane, uint32_t i, uint32_t n_valid,
                        int32_t *before, kvc__stream *in) {
    kvc__lane *l = &s->lane[lane];
    uint64_t live;
    int32_t pos0;
    uint32_t n, moved, held;
    GET(live);
    GET(pos0);
    GET(n);
    GET(moved);
    GET(held);
    if (n == 0 || n > KVC_PAGE || (n < KVC_PAGE && live >> n != 0) || moved > 1 || held > 1 ||
        (held == 0 && live != 0) || (moved != 0 && s->pos == NULL)) {
        return damaged(in, lane, "an impossible page");
    }
    if (moved != 0) {
        int32_t *pos = moved_pos(s, lane, i);
        KVC_TRY(kvc__stream_read(in, pos, KVC_PAGE * sizeof *pos));
        KVC_TRY(check_moved(in, lane, pos, n, *before, n_valid));
        *before = pos[n - 1];
    } else {
        if (pos0 <= *before || (int64_t)pos0 + n > n_valid) {
            return damaged(in, lane, "pages out of order");
        }
        *before = pos0 + (int32_t)n - 1;
    }
    l->page[i] = (kvc__ref){.live = live,
                            .pos0 = pos0,
                            .slot = KVC__NO_SLOT,
                            .n = (uint16_t)n,
                            .moved = (uint16_t)moved};
    l->n_page = i + 1;
    s->n_moved += moved;
    if (held != 0) {
        uint32_t slot;
        uint8_t *bytes = kvc__store_fill(s, layer, lane - s->lane0[layer], &slot);
        if (bytes == NULL) {
            return damaged(in, lane, "more pages than there is room for");
        }
        l->page[i].slot = slot;
        l->n_live += popcount(live);
        KVC_TRY(kvc__stream_read(in, bytes, s->stack->shape[layer].page_bytes));
        int32_t rc = kvc__store_place(s, layer, lane - s->lane0[layer], slot, bytes);
        if (rc < 0) {
            return kvc__stack_blame(s->stack, rc, "put", layer, lane - s->lane0[layer], pos0,
                                    in->err);
        }
        if (kvc__store_is_away(s, layer, &l->page[i])) {
            kvc__store_count_away(s, layer, 1);
        }
    }
    return get_columns(s, lane, i, in);
}

static int32_t get_lane(kvc__store *s, uint32_t layer, uint32_t lane, uint32_t n_valid,
                        kvc__stream *in) {
    kvc__lane *l = &s->lane[lane];
    const kvc__page_shape *sh = &s->stack->shape[layer];
    uint32_t n_page, open_n;
    int32_t open_pos0, before = -1;
    uint64_t open_live;
    GET(n_page);
    GET(open_n);
    GET(open_pos0);
    GET(open_live);
    /* The open page holds what is left of n_valid after whole pages, at its place. */
    if (n_page >= s->cap_page || open_n != n_valid % KVC_PAGE || (open_live >> open_n) != 0 ||
        (open_n > 0 && open_pos0 != (int32_t)(n_valid - open_n))) {
        return damaged(in, lane, "an impossible table");
    }
    for (uint32_t i = 0; i < n_page; i++) {
        KVC_TRY(get_page(s, layer, lane, i, n_valid, &before, in));
    }
    KVC_TRY(get_columns(s, lane, n_page, in));
    if (open_n > 0) {
        if (before >= open_pos0) {
            return damaged(in, lane, "pages behind the open one");
        }
        KVC_TRY(kvc__stream_read(in, l->open_k, sh->open_k_bytes));
        KVC_TRY(kvc__stream_read(in, l->open_v, sh->open_v_bytes));
    }
    l->open_n = open_n;
    l->open_pos0 = open_pos0;
    l->open_live = open_live;
    l->n_live += popcount(open_live);
    return KVC_OK;
}

/* Without evictions page i of every lane holds positions 64 i to 64 i + 63: rewinding counts on it.
 */
static int32_t check_plain(const kvc__store *s, uint32_t n_valid, kvc__stream *in) {
    for (uint32_t j = 0; j < s->n_lane; j++) {
        const kvc__lane *l = &s->lane[j];
        bool plain = l->n_page == n_valid / KVC_PAGE;
        for (uint32_t i = 0; i < l->n_page; i++) {
            plain &= l->page[i].moved == 0 && l->page[i].n == KVC_PAGE &&
                     l->page[i].pos0 == (int32_t)(i * KVC_PAGE);
        }
        if (!plain) {
            return damaged(in, j, "pages that don't follow each other");
        }
    }
    return KVC_OK;
}

int32_t kvc__store_load(kvc__store *s, uint32_t n_valid, kvc__stream *in) {
    uint32_t evicted;
    GET(evicted);
    if (evicted > 1 || (evicted == 1 && s->pos == NULL)) {
        return damaged(in, 0, "evictions that its policies don't make");
    }
    for (uint32_t i = 0; i < s->n_layer; i++) {
        for (uint32_t j = s->lane0[i]; j < s->lane0[i + 1]; j++) {
            KVC_TRY(get_lane(s, i, j, n_valid, in));
        }
    }
    atomic_store(&s->evicted, (int)evicted);
    kvc__store_note_peak(s);
    return evicted == 0 ? check_plain(s, n_valid, in) : KVC_OK;
}
