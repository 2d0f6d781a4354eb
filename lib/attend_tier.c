/* SPDX-License-Identifier: MIT
 * attend_tier.c: which pages attention is going to read of those that are away. What the blocks in
 * hand read is known; what is read next is told from the order in which attention goes through the
 * layers. The pager brings both. */
#include "attend.h"

/* Whether a row of the blocks reads a page whose entries lie at positions [first, end). */
static bool is_read(const kvc__attend *a, const kvc__block *b, uint32_t n_block, uint32_t head,
                    uint32_t page, int32_t first, int32_t end) {
    const kvc__piece *p = &a->piece[b->piece];
    for (uint32_t row = p->row0 + b->t0; row < p->row0 + b[n_block - 1].t0 + b[n_block - 1].n;
         row++) {
        if (p->stack->select != NULL && !kvc__attend_selected(a, row, head, page)) {
            continue;
        }
        const kvc_range *r = a->range + (size_t)row * (KVC_MAX_RANGES + 1);
        for (uint32_t x = 0; x < a->n_rng[row]; x++) {
            if (r[x].first < end && first < r[x].end) {
                return true;
            }
        }
    }
    return false;
}

/* Where the entries of a page lie: positions [*first, *end). */
static void page_span(const kvc__store *s, uint32_t lane, uint32_t page, int32_t *first,
                      int32_t *end) {
    const kvc__ref *r = &s->lane[lane].page[page];
    int32_t pos[KVC_PAGE];
    if (r->moved == 0) {
        *first = r->pos0;
        *end = r->pos0 + (int32_t)r->n;
        return;
    }
    const uint32_t n = kvc__store_positions(s, lane, page, pos);
    *first = pos[0];
    *end = pos[n - 1] + 1;
}

/* Who reads in a layer. */
struct reads {
    const kvc__attend *a;
    const kvc__block *b; /* rows that read, or NULL: one row's ranges */
    uint32_t n_block;
    const kvc_range *range;
    uint32_t n_range;
};

static bool reads_page(const struct reads *r, uint32_t head, uint32_t page, int32_t first,
                       int32_t end) {
    if (r->b != NULL) {
        return is_read(r->a, r->b, r->n_block, head, page, first, end);
    }
    for (uint32_t x = 0; x < r->n_range; x++) {
        if (r->range[x].first < end && first < r->range[x].end) {
            return true;
        }
    }
    return false;
}

/* Lists the pages of a layer that are read and are away. */
static void list_pages(const kvc__store *s, uint32_t layer, const struct reads *r) {
    const uint32_t lane0 = s->lane0[layer], heads = s->lane0[layer + 1] - lane0;
    uint32_t n_page = 0;
    kvc__pager_list(s->pager, layer);
    for (uint32_t h = 0; h < heads; h++) {
        n_page = s->lane[lane0 + h].n_page > n_page ? s->lane[lane0 + h].n_page : n_page;
    }
    for (uint32_t range = 0; range * KVC__RANGE_PAGES < n_page; range++) {
        for (uint32_t h = 0; h < heads; h++) {
            const kvc__lane *l = &s->lane[lane0 + h];
            for (uint32_t at = 0; at < KVC__RANGE_PAGES; at++) {
                const uint32_t i = range * KVC__RANGE_PAGES + at;
                int32_t first, end;
                if (i >= l->n_page || l->page[i].live == 0 ||
                    !kvc__store_is_away(s, layer, &l->page[i])) {
                    continue;
                }
                page_span(s, lane0 + h, i, &first, &end);
                if (reads_page(r, h, i, first, end)) {
                    kvc__pager_want(s->pager, range, h, at, l->page[i].slot);
                }
            }
        }
    }
}

/* What the session's next pass will read, as far as can be told: the next piece in this layer, or
 * the next layer, or the first one for the token after these. A choice of pages can't be told. */
static void list_next(const kvc__attend *a, const kvc__piece *p) {
    const uint32_t next = p->more ? a->layer : (a->layer + 1) % a->model->hp.n_layer;
    const int32_t pos = p->pos0 + (int32_t)p->n - 1;
    kvc_range range[KVC_MAX_RANGES + 1];
    struct reads r = {.a = a, .range = range};
    if (p->stack->select != NULL ||
        kvc__stack_visible(p->stack, next, pos, range, &r.n_range) < 0) {
        return;
    }
    list_pages(p->store, next, &r);
    kvc__pager_ahead(p->store->pager);
}

void kvc__attend_bring(const kvc__attend *a) {
    for (uint32_t first = 0, n; first < a->n_block; first += n) {
        n = kvc__attend_same_piece(a, first);
        const kvc__piece *p = &a->piece[a->block[first].piece];
        if (p->store->pager == NULL) {
            continue;
        }
        const struct reads r = {.a = a, .b = &a->block[first], .n_block = n};
        list_pages(p->store, a->layer, &r);
        kvc__pager_begin(p->store->pager, a->model->hp.n_head_kv);
        list_next(a, p);
    }
}

void kvc__attend_brought(const kvc__attend *a) {
    for (uint32_t first = 0; first < a->n_block; first += kvc__attend_same_piece(a, first)) {
        kvc__store *s = a->piece[a->block[first].piece].store;
        if (s->pager != NULL) {
            kvc__pager_end(s->pager);
        }
    }
}
