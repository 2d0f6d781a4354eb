/* SPDX-License-Identifier: MIT
 * store_live.c: the store as its policies see it: live entries of a lane, numbered in ascending
 * position. Keeping and dropping only clear bits of masks; the store settles after the tick. */
#include "store.h"

#include <string.h>

static uint32_t popcount(uint64_t x) {
    return (uint32_t)__builtin_popcountll(x);
}

static uint64_t page_live(const kvc__lane *l, uint32_t i) {
    return i == l->n_page ? l->open_live : l->page[i].live;
}

/* A cursor over live entries in ascending order. */
struct walk {
    const kvc__lane *l;
    uint32_t page;
    uint64_t left;
};

static void walk_begin(struct walk *w, const kvc__lane *l) {
    *w = (struct walk){l, 0, page_live(l, 0)};
}

static bool walk_next(struct walk *w, uint32_t *page, uint32_t *entry) {
    while (w->left == 0) {
        if (w->page == w->l->n_page) {
            return false;
        }
        w->page++;
        w->left = page_live(w->l, w->page);
    }
    *page = w->page;
    *entry = (uint32_t)__builtin_ctzll(w->left);
    w->left &= w->left - 1;
    return true;
}

/* Skips whole pages up to the first live entry wanted. */
static void walk_skip(struct walk *w, uint32_t first) {
    while (first >= popcount(w->left) && w->page < w->l->n_page) {
        first -= popcount(w->left);
        w->page++;
        w->left = page_live(w->l, w->page);
    }
    for (; first > 0 && w->left != 0; first--) {
        w->left &= w->left - 1;
    }
}

static int32_t check_span(const kvc__lane *l, uint32_t first, uint32_t n, const void *p) {
    if (n > 0 && p == NULL) {
        return KVC_E_ARG;
    }
    return first <= l->n_live && n <= l->n_live - first ? KVC_OK : KVC_E_RANGE;
}

int32_t kvc__store_read_pos(const kvc__store *s, uint32_t lane, uint32_t first, uint32_t n,
                            int32_t *out) {
    const kvc__lane *l = &s->lane[lane];
    int32_t pos[KVC_PAGE];
    uint32_t page, e, have = UINT32_MAX;
    struct walk w;
    KVC_TRY(check_span(l, first, n, out));
    walk_begin(&w, l);
    walk_skip(&w, first);
    for (uint32_t i = 0; i < n && walk_next(&w, &page, &e); i++) {
        if (page != have) {
            kvc__store_positions(s, lane, page, pos);
            have = page;
        }
        out[i] = pos[e];
    }
    return KVC_OK;
}

int32_t kvc__store_column_get(const kvc__store *s, uint32_t lane, uint32_t col, uint32_t first,
                              uint32_t n, float *out) {
    uint32_t page, e;
    struct walk w;
    KVC_TRY(check_span(&s->lane[lane], first, n, out));
    walk_begin(&w, &s->lane[lane]);
    walk_skip(&w, first);
    for (uint32_t i = 0; i < n && walk_next(&w, &page, &e); i++) {
        out[i] = kvc__store_column(s, lane, col, page)[e];
    }
    return KVC_OK;
}

int32_t kvc__store_column_set(kvc__store *s, uint32_t lane, uint32_t col, uint32_t first,
                              uint32_t n, const float *in) {
    uint32_t page, e;
    struct walk w;
    KVC_TRY(check_span(&s->lane[lane], first, n, in));
    walk_begin(&w, &s->lane[lane]);
    walk_skip(&w, first);
    for (uint32_t i = 0; i < n && walk_next(&w, &page, &e); i++) {
        kvc__store_column(s, lane, col, page)[e] = in[i];
    }
    return KVC_OK;
}

static void set_live(kvc__store *s, kvc__lane *l, uint32_t page, uint64_t live) {
    uint64_t *mask = page == l->n_page ? &l->open_live : &l->page[page].live;
    if (*mask != live) {
        l->n_live -= popcount(*mask) - popcount(live);
        *mask = live;
        atomic_store(&s->evicted, 1);
    }
}

int32_t kvc__store_keep(kvc__store *s, uint32_t lane, const uint32_t *index, uint32_t n) {
    kvc__lane *l = &s->lane[lane];
    if (n > l->n_live || (n > 0 && index == NULL)) {
        return KVC_E_RANGE;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (index[i] >= l->n_live || (i > 0 && index[i] <= index[i - 1])) {
            return KVC_E_RANGE;
        }
    }
    uint32_t number = 0, i = 0;
    for (uint32_t p = 0; p <= l->n_page; p++) {
        uint64_t keep = 0;
        for (uint64_t m = page_live(l, p); m != 0; m &= m - 1, number++) {
            if (i < n && index[i] == number) {
                keep |= m & (~m + 1);
                i++;
            }
        }
        set_live(s, l, p, keep);
    }
    return KVC_OK;
}

int32_t kvc__store_drop(kvc__store *s, uint32_t lane, int32_t first, int32_t end) {
    kvc__lane *l = &s->lane[lane];
    int32_t pos[KVC_PAGE];
    for (uint32_t p = 0; p <= l->n_page; p++) {
        uint64_t keep = page_live(l, p);
        if (keep == 0) {
            continue;
        }
        const uint32_t n = kvc__store_positions(s, lane, p, pos);
        for (uint32_t e = 0; e < n; e++) {
            if (pos[e] >= first && pos[e] < end) {
                keep &= ~((uint64_t)1 << e);
            }
        }
        set_live(s, l, p, keep);
    }
    return KVC_OK;
}

/* Decodes page i of a lane to rows as they are stored; buffer: for a page that has to be brought.
 */
static int32_t decode_page(const kvc__store *s, uint32_t layer, uint32_t head, uint32_t i,
                           uint8_t *buffer, kvc__codec_scratch *rows) {
    const kvc__lane *l = kvc__store_lane(s, layer, head);
    const kvc__page_shape *sh = &s->stack->shape[layer];
    if (i == l->n_page) {
        s->stack->kern->get_k(sh->open_type, l->open_k, sh->dim_k, rows->k);
        s->stack->kern->get_v(sh->open_type, l->open_v, sh->dim_v, rows->v);
        return KVC_OK;
    }
    int32_t rc;
    kvc_page page = {.struct_size = sizeof page, .layer = layer, .head = head, .n = l->page[i].n};
    page.bytes = kvc__store_bring(s, layer, s->lane0[layer] + head, i, buffer, &rc);
    KVC_TRY(rc);
    return kvc__codec_decode(&s->stack->codec, &page, rows);
}

/* The same as observers saw them: a Hadamard rotation is its own inverse. */
static int32_t read_page(const kvc__store *s, uint32_t layer, uint32_t head, uint32_t i,
                         uint8_t *buffer, kvc__codec_scratch *rows) {
    const kvc__page_shape *sh = &s->stack->shape[layer];
    KVC_TRY(decode_page(s, layer, head, i, buffer, rows));
    if (sh->had_k > 1) {
        s->stack->kern->hadamard(rows->k, sh->had_k, KVC_PAGE * sh->dim_k);
    }
    if (sh->had_v > 1) {
        s->stack->kern->hadamard(rows->v, sh->had_v, KVC_PAGE * sh->dim_v);
    }
    return KVC_OK;
}

int32_t kvc__store_read(const kvc__store *s, uint32_t layer, uint32_t head, uint32_t first,
                        uint32_t n, float *k, float *v) {
    const kvc__lane *l = kvc__store_lane(s, layer, head);
    const kvc__page_shape *sh = &s->stack->shape[layer];
    KVC_TRY(check_span(l, first, n, s));
    const size_t row_bytes = KVC_PAGE * ((size_t)sh->dim_k + sh->dim_v) * sizeof(float);
    const size_t room = kvc__store_room(s), bytes = room + row_bytes;
    uint8_t *memory = kvc__realloc(s->mem, NULL, 0, bytes, KVC_FILE_ALIGN);
    if (memory == NULL) {
        return KVC_E_NOMEM;
    }
    float *rows = (float *)(void *)(memory + room);
    kvc__codec_scratch scratch = {rows, rows + KVC_PAGE * (size_t)sh->dim_k, NULL};
    int32_t rc = KVC_OK;
    uint32_t page, e, have = UINT32_MAX;
    struct walk w;
    walk_begin(&w, l);
    walk_skip(&w, first);
    for (uint32_t i = 0; i < n && walk_next(&w, &page, &e); i++) {
        if (page != have) {
            KVC_CHECK(read_page(s, layer, head, page, memory, &scratch));
            have = page;
        }
        if (k != NULL) {
            memcpy(k + (size_t)i * sh->dim_k, scratch.k + (size_t)e * sh->dim_k,
                   sh->dim_k * sizeof(float));
        }
        if (v != NULL) {
            memcpy(v + (size_t)i * sh->dim_v, scratch.v + (size_t)e * sh->dim_v,
                   sh->dim_v * sizeof(float));
        }
    }
out:
    kvc__free(s->mem, memory, bytes);
    return rc;
}
