/* SPDX-License-Identifier: MIT
 * attend_range.c: attention's second phase: the rows of a block against one range of pages: what is
 * seen of a page, its scores, exponentials and mix. The order of arithmetic stands in attend.h. It
 * knows a range, not what comes before or after it. */
#include "attend_part.h"

#include <math.h>
#include <string.h>

/* ---------------------------------------------------------------- what a query sees of a page */

static uint64_t bits_between(int64_t first, int64_t end) {
    first = first < 0 ? 0 : first;
    end = end > 64 ? 64 : end;
    if (first >= end) {
        return 0;
    }
    const uint64_t below = end == 64 ? ~(uint64_t)0 : ((uint64_t)1 << end) - 1;
    return below & ~(((uint64_t)1 << first) - 1);
}

/* A page with the positions of its entries. */
struct view {
    uint64_t live;
    uint32_t n;
    bool moved;
    int32_t pos0;
    int32_t pos[KVC_PAGE]; /* of a moved page */
    const uint8_t *bytes;  /* sealed; NULL: open, freed, or away and not unpacked */
    bool open, freed;
};

static void view_page(const kvc__store *s, uint32_t layer, uint32_t head, uint32_t i,
                      struct view *v) {
    const kvc__lane *l = kvc__store_lane(s, layer, head);
    v->open = i == l->n_page;
    v->moved = !v->open && l->page[i].moved != 0;
    v->live = v->open ? l->open_live : l->page[i].live;
    v->n = v->open ? l->open_n : l->page[i].n;
    v->pos0 = v->open ? l->open_pos0 : l->page[i].pos0;
    v->freed = !v->open && l->page[i].slot == KVC__NO_SLOT;
    v->bytes = v->open ? NULL : kvc__store_page(s, layer, &l->page[i]);
    if (v->moved) {
        kvc__store_positions(s, s->lane0[layer] + head, i, v->pos);
    }
}

/* Entries of the page at positions of r. */
static uint64_t mask_range(const struct view *v, kvc_range r) {
    if (!v->moved) {
        return v->live & bits_between((int64_t)r.first - v->pos0, (int64_t)r.end - v->pos0);
    }
    uint64_t m = 0;
    for (uint32_t e = 0; e < v->n; e++) {
        m |= (uint64_t)(v->pos[e] >= r.first && v->pos[e] < r.end) << e;
    }
    return m & v->live;
}

/* ---------------------------------------------------------------- a page */

/* One job: the rows of a block against one range of one head after the other. */
struct job {
    kvc__attend *a;
    const kvc__block *b;
    const kvc__piece *p;
    const kvc__page_shape *sh;
    uint32_t thread;
    uint32_t head, range, group, rows;
    uint32_t place; /* of the range in the block */
    struct partial out;
    kvc__unit *unit;                           /* what the tier has brought of the range, or NULL */
    const uint8_t *unpacked[KVC__RANGE_PAGES]; /* of that, so far */
};

static kvc__attend_thread *scratch(const struct job *j) {
    return &j->a->thread[j->thread];
}

/* A sealed page as its codec is given it. */
static kvc_page page_of(const struct job *j, const uint8_t *bytes, uint32_t n) {
    return (kvc_page){.struct_size = sizeof(kvc_page),
                      .layer = j->a->layer,
                      .head = j->head,
                      .n = n,
                      .bytes = bytes};
}

static int32_t score_page(const struct job *j, const struct view *v, const float *q, float *s) {
    if (v->open) {
        const kvc__lane *l = kvc__store_lane(j->p->store, j->a->layer, j->head);
        j->a->kern->score(j->sh->open_type, l->open_k, j->sh->dim_k, q, j->rows, s, KVC_PAGE);
        return KVC_OK;
    }
    const kvc_page page = page_of(j, v->bytes, v->n);
    return kvc__codec_score(&j->p->stack->codec, &page, q, j->rows, s, &scratch(j)->codec);
}

static int32_t mix_page(const struct job *j, const struct view *v) {
    const float *e = scratch(j)->s;
    if (v->open) {
        const kvc__lane *l = kvc__store_lane(j->p->store, j->a->layer, j->head);
        j->a->kern->mix(j->sh->open_type, l->open_v, j->sh->dim_v, e, KVC_PAGE, j->rows,
                        j->out.acc);
        return KVC_OK;
    }
    const kvc_page page = page_of(j, v->bytes, v->n);
    return kvc__codec_mix(&j->p->stack->codec, &page, e, j->rows, j->out.acc, &scratch(j)->codec);
}

/* Takes the scores that the mask of each token covers from another pass, or, without one, leaves
 * these alone of what there is. */
static void take_scores(const struct job *j, const float *from, const uint64_t *mask) {
    for (uint32_t r = 0; r < j->rows; r++) {
        const uint64_t m = mask[r / j->group];
        float *s = scratch(j)->s + (size_t)r * KVC_PAGE;
        if (from == NULL && m == ~(uint64_t)0) {
            continue;
        }
        for (uint32_t e = 0; e < KVC_PAGE; e++) {
            const bool taken = (m >> e & 1) != 0;
            if (from == NULL) {
                s[e] = taken ? s[e] : -INFINITY;
            } else {
                s[e] = taken ? from[(size_t)r * KVC_PAGE + e] : s[e];
            }
        }
    }
}

/* The block's queries, turned for the gap in front of the range that is `back` ranges before their
 * own: as if the positions between the ranges didn't exist. */
static void shift_queries(const struct job *j, uint32_t back) {
    const kvc__attend *a = j->a;
    const kvc__hparams *hp = &a->model->hp;
    for (uint32_t t = 0; t < j->b->n; t++) {
        const uint32_t row = j->p->row0 + j->b->t0 + t;
        const kvc_range *rng = a->range + (size_t)row * (KVC_MAX_RANGES + 1);
        const uint32_t n = a->n_rng[row];
        int32_t pos = j->p->pos0 + (int32_t)(j->b->t0 + t);
        for (uint32_t x = n - 1; back < n && x > n - 1 - back; x--) {
            pos -= rng[x].first - rng[x - 1].end;
        }
        for (uint32_t g = 0; g < j->group; g++) {
            const float *q =
                a->q + ((size_t)row * hp->n_head + (size_t)j->head * j->group + g) * hp->dim_k;
            float *out = scratch(j)->q + ((size_t)t * j->group + g) * hp->dim_k;
            turn(a, pos, q, out);
        }
    }
    const uint32_t n = j->rows * hp->dim_k;
    a->kern->scale(scratch(j)->q, j->sh->scale, n);
    if (j->sh->had_k > 1) {
        a->kern->hadamard(scratch(j)->q, j->sh->had_k, n);
    }
}

/* The masks of the block's tokens for one page. back < 0: all ranges; else only the one that many
 * before the last. Answers whether any entry is seen; KVC_E_POLICY when a range holds a page that
 * was given up. */
static int32_t page_masks(const struct job *j, const struct view *v, uint32_t page, int32_t back,
                          uint64_t *mask, bool *any) {
    const kvc__attend *a = j->a;
    const bool gone = v->freed;
    const bool strict = gone && (j->p->stack->flags & KVC_PLAN_EVICTS) == 0;
    for (uint32_t t = 0; t < j->b->n; t++) {
        const uint32_t row = j->p->row0 + j->b->t0 + t;
        const kvc_range *rng = a->range + (size_t)row * (KVC_MAX_RANGES + 1);
        const uint32_t n = a->n_rng[row];
        uint64_t m = 0;
        for (uint32_t x = 0; x < n; x++) {
            if (back >= 0 && x + 1 + (uint32_t)back != n) {
                continue;
            }
            if (strict && rng[x].first < v->pos0 + (int32_t)v->n && v->pos0 < rng[x].end) {
                return KVC_E_POLICY;
            }
            m |= gone ? 0 : mask_range(v, rng[x]);
        }
        if (j->p->stack->select != NULL && !v->open &&
            !kvc__attend_selected(a, row, j->head, page)) {
            m = 0;
        }
        mask[t] = m;
        *any |= m != 0;
    }
    return KVC_OK;
}

/* Makes sure that page `at` of the range, which is seen, is in memory. */
static int32_t unpack_page(struct job *j, struct view *v, uint32_t at) {
    if (v->open || v->bytes != NULL) {
        return KVC_OK;
    }
    if (j->unpacked[at] == NULL) {
        int32_t rc;
        j->unpacked[at] = kvc__pager_page(j->p->store->pager, j->unit, j->head, at, j->thread, &rc);
        KVC_TRY(rc);
    }
    v->bytes = j->unpacked[at];
    return KVC_OK;
}

/* Scores one page of the range for all that is seen of it: in one pass, or, when gaps are closed,
 * in one pass for each range of positions. */
static int32_t score_seen(struct job *j, struct view *v, uint32_t page, uint32_t at, bool *seen,
                          int *call) {
    const kvc__attend *a = j->a;
    const float *own = qrot_at(a, j->head, j->p->row0 + j->b->t0);
    const bool closes = j->p->stack->positions == KVC_POSITIONS_CACHE;
    uint64_t mask[KVC_PAGE];
    *call = CALL_VISIBLE;
    for (int32_t back = closes ? 0 : -1; back <= (closes ? (int32_t)KVC_MAX_RANGES : -1); back++) {
        bool any = false;
        KVC_TRY(page_masks(j, v, page, back, mask, &any));
        if (!any) {
            continue;
        }
        if (back > 0) {
            shift_queries(j, (uint32_t)back);
        }
        *call = CALL_UNPACK;
        KVC_TRY(unpack_page(j, v, at));
        *call = CALL_SCORE;
        float *to = *seen ? scratch(j)->tmp : scratch(j)->s;
        KVC_TRY(score_page(j, v, back > 0 ? scratch(j)->q : own, to));
        kvc__cap_scores(a->kern, j->sh, to, j->rows);
        *call = CALL_VISIBLE;
        take_scores(j, *seen ? to : NULL, mask);
        *seen = true;
    }
    return KVC_OK;
}

/* Turns a page's scores into exponentials below the largest score so far, to which what was summed
 * and mixed before is brought down too. */
static void soften_rows(const struct job *j) {
    const kvc__kern *kern = j->a->kern;
    const uint32_t dim = j->sh->dim_v;
    float *down = scratch(j)->down;
    kern->soften(scratch(j)->s, j->rows, j->out.max, j->out.sum, down);
    for (uint32_t r = 0; r < j->rows; r++) {
        if (down[r] != 1.0f) {
            kern->scale(j->out.acc + (size_t)r * dim, down[r], dim);
        }
    }
}

/* Keeps a page's exponentials for observers, zeros where nothing is seen, and the score that they
 * are relative to. */
static void keep_page(const struct job *j, uint32_t at, bool seen) {
    const size_t page = (size_t)j->range * KVC__RANGE_PAGES + at;
    for (uint32_t r = 0; r < j->rows; r++) {
        float *to = prob_at(j->a, j->b, j->head, r) + page * KVC_PAGE;
        if (seen) {
            memcpy(to, scratch(j)->s + (size_t)r * KVC_PAGE, KVC_PAGE * sizeof *to);
        } else {
            memset(to, 0, KVC_PAGE * sizeof *to);
        }
        scratch(j)->max[(size_t)at * j->a->max_row + r] = j->out.max[r];
    }
}

/* Brings what was kept down to the range's largest score. */
static void level_pages(const struct job *j) {
    for (uint32_t at = 0; at < KVC__RANGE_PAGES; at++) {
        const size_t page = (size_t)j->range * KVC__RANGE_PAGES + at;
        for (uint32_t r = 0; r < j->rows; r++) {
            kvc__level(j->a->kern, prob_at(j->a, j->b, j->head, r) + page * KVC_PAGE,
                       scratch(j)->max[(size_t)at * j->a->max_row + r], j->out.max[r]);
        }
    }
}

/* What is known of a page before it is read: that no token of the block sees any of it, that all
 * see it in full and where its bytes are, or neither. Most are one of the first two. */
struct look {
    bool seen;
    const uint8_t *whole; /* NULL: not in full, or not in memory */
};

static struct look look_at(const struct job *j, uint32_t head, uint32_t page) {
    const kvc__attend *a = j->a;
    const kvc__store *s = j->p->store;
    const kvc__lane *l = kvc__store_lane(s, a->layer, head);
    if (page >= l->n_page || l->page[page].moved != 0) {
        return (struct look){.seen = page <= l->n_page};
    }
    const kvc__ref *ref = &l->page[page];
    const int32_t first = ref->pos0, end = ref->pos0 + ref->n;
    /* Whoever sees a page that was given up is told so, whether it is read or not. */
    const bool all = j->p->stack->select == NULL || ref->slot == KVC__NO_SLOT;
    bool seen = false, whole = ref->live == ~(uint64_t)0;
    for (uint32_t row = j->p->row0 + j->b->t0; row < j->p->row0 + j->b->t0 + j->b->n; row++) {
        const kvc_range *r = a->range + (size_t)row * (KVC_MAX_RANGES + 1);
        bool covers = false, meets = false;
        for (uint32_t x = 0; x < a->n_rng[row]; x++) {
            covers |= r[x].first <= first && end <= r[x].end;
            meets |= r[x].first < end && first < r[x].end;
        }
        const bool read = meets && (all || kvc__attend_selected(a, row, head, page));
        seen |= read;
        whole &= read && covers;
    }
    whole &= j->p->stack->positions != KVC_POSITIONS_CACHE;
    return (struct look){seen, whole ? kvc__store_page(s, a->layer, ref) : NULL};
}

/* A page that is seen in full, number `at` of the range: scores, exponentials, mix. */
static int32_t attend_whole(const struct job *j, uint32_t at, const uint8_t *bytes, int *call) {
    const kvc__codec *codec = &j->p->stack->codec;
    const kvc_page page = page_of(j, bytes, KVC_PAGE);
    const float *q = qrot_at(j->a, j->head, j->p->row0 + j->b->t0);
    *call = CALL_SCORE;
    KVC_TRY(kvc__codec_score(codec, &page, q, j->rows, scratch(j)->s, &scratch(j)->codec));
    kvc__cap_scores(j->a->kern, j->sh, scratch(j)->s, j->rows);
    soften_rows(j);
    if (observes(j->p)) {
        keep_page(j, at, true);
    }
    *call = CALL_MIX;
    return kvc__codec_mix(codec, &page, scratch(j)->s, j->rows, j->out.acc, &scratch(j)->codec);
}

/* Any page of the range. */
static int32_t attend_page(struct job *j, uint32_t at, bool may_be_seen, int *call) {
    const uint32_t page = j->range * KVC__RANGE_PAGES + at;
    struct view v;
    bool seen = false;
    if (may_be_seen) {
        view_page(j->p->store, j->a->layer, j->head, page, &v);
        KVC_TRY(score_seen(j, &v, page, at, &seen, call));
    }
    if (seen) {
        soften_rows(j);
    }
    if (observes(j->p)) {
        keep_page(j, at, seen);
    }
    *call = CALL_MIX;
    return seen ? mix_page(j, &v) : KVC_OK;
}

static void begin_rows(const struct job *j) {
    memset(j->out.acc, 0, (size_t)j->rows * j->sh->dim_v * sizeof(float));
    for (uint32_t r = 0; r < j->rows; r++) {
        j->out.max[r] = -INFINITY;
        j->out.sum[r] = 0.0f;
    }
}

static void take_head(struct job *j, uint32_t head) {
    j->head = head;
    j->out = partial_at(j->a, j->b, head, j->place);
}

/* The range of n heads, page by page in the order in which they most often lie in memory: jumps
 * cost more than reading. Where the pages are is found out for all of them in front, since those
 * loads don't wait for each other, while the kernels' in between would wait for them. A head that
 * fails is left, and doesn't hold up the others. */
static void attend_block(struct job *j, const kvc__block *b, uint32_t head, uint32_t n) {
    const uint32_t heads = j->a->model->hp.n_head_kv;
    struct look look[KVC__ITEM_HEADS][KVC__RANGE_PAGES];
    j->b = b;
    j->rows = b->n * j->group;
    for (uint32_t h = head; h < head + n; h++) {
        take_head(j, h);
        begin_rows(j);
        for (uint32_t at = 0; at < KVC__RANGE_PAGES; at++) {
            look[h - head][at] = look_at(j, h, j->range * KVC__RANGE_PAGES + at);
        }
    }
    for (uint32_t at = 0; at < KVC__RANGE_PAGES; at++) {
        for (uint32_t h = head; h < head + n; h++) {
            int call = CALL_VISIBLE;
            if (atomic_load(&j->a->failed[(size_t)b->piece * heads + h]) != 0) {
                continue;
            }
            take_head(j, h);
            const struct look x = look[h - head][at];
            const int32_t rc = x.whole != NULL ? attend_whole(j, at, x.whole, &call)
                                               : attend_page(j, at, x.seen, &call);
            if (rc != KVC_OK) {
                note_failure(j->a, b->piece, h, rc < 0 ? rc : KVC_E_POLICY, call);
            }
        }
    }
    for (uint32_t h = head; h < head + n && observes(j->p); h++) {
        take_head(j, h);
        level_pages(j);
    }
}

/* All blocks of a piece for one head, with what the range needs of the tier. */
static void attend_pinned(struct job *j, const kvc__block *b, uint32_t n, uint32_t head) {
    kvc__pager *pager = j->p->store->pager;
    const int32_t rc = kvc__pager_pin(pager, j->range, &j->unit);
    if (rc != KVC_OK) {
        note_failure(j->a, b->piece, head, rc < 0 ? rc : KVC_E_POLICY, CALL_GET);
    }
    for (uint32_t i = 0; rc == KVC_OK && i < n; i++) {
        attend_block(j, &b[i], head, 1);
    }
    kvc__pager_unpin(pager, j->range);
}

/* The block's range at place i. */
static uint32_t range_at(const kvc__block *b, uint32_t i) {
    const kvc__stretch *s = b->span;
    for (; i >= s->end - s->first; s++) {
        i -= s->end - s->first;
    }
    return s->first + i;
}

void kvc__attend_range(kvc__attend *a, const kvc__block *b, uint32_t n, uint32_t place,
                       uint32_t head, uint32_t take, uint32_t thread) {
    const kvc__piece *p = &a->piece[b->piece];
    struct job j = {.a = a,
                    .p = p,
                    .sh = &p->stack->shape[a->layer],
                    .thread = thread,
                    .range = range_at(b, place),
                    .place = place,
                    .group = group_of(a)};
    if (p->status < 0) {
        return;
    }
    if (p->store->pager != NULL) {
        attend_pinned(&j, b, n, head);
    } else {
        attend_block(&j, b, head, take);
    }
}
