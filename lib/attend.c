/* SPDX-License-Identifier: MIT
 * attend.c: three phases over a layer's pieces. Rows: turn keys and queries, append, observe,
 * select. Ranges: scores, exponentials and mix of one (range, some heads, block) per job, a range's
 * jobs one after the other, since pages that come from a tier are brought by ranges; there a job
 * takes all blocks, so that a page is unpacked once. Merge: ranges to one result, masses to their
 * columns. */
#include "attend.h"

#include <math.h>
#include <string.h>

/* ---------------------------------------------------------------- geometry */

static uint32_t group_of(const kvc__attend *a) {
    return a->model->hp.n_head / a->model->hp.n_head_kv;
}

/* The block's range at place i. */
static uint32_t range_at(const kvc__block *b, uint32_t i) {
    const kvc__stretch *s = b->span;
    for (; i >= s->end - s->first; s++) {
        i -= s->end - s->first;
    }
    return s->first + i;
}

/* What one range of one head gives for the rows of a block. */
struct partial {
    float *acc; /* [rows][dim_v] exponentials times values */
    float *max; /* [rows] -INFINITY: nothing was seen */
    float *sum; /* [rows] of exponentials */
};

static struct partial partial_at(const kvc__attend *a, const kvc__block *b, uint32_t head,
                                 uint32_t place) {
    const size_t rows = (size_t)b->n * group_of(a);
    float *acc =
        a->partial + b->part + ((size_t)head * b->n_range + place) * kvc__partial_floats(a, rows);
    float *max = acc + rows * a->model->hp.dim_v;
    return (struct partial){acc, max, max + rows};
}

static float *prob_at(const kvc__attend *a, const kvc__block *b, uint32_t head, uint32_t row) {
    const size_t rows = (size_t)b->n * group_of(a), wide = (size_t)b->n_range * KVC__RANGE_ENTRIES;
    return a->prob + b->prob + ((size_t)head * rows + row) * wide;
}

static float *qrot_at(const kvc__attend *a, uint32_t head, uint32_t row) {
    const size_t wide = (size_t)group_of(a) * a->model->hp.dim_k;
    return a->qrot + ((size_t)head * a->n_batch + row) * wide;
}

static bool observes(const kvc__piece *p) {
    return (p->stack->observe & (KVC_OBSERVE_MASS | KVC_OBSERVE_MASS_LAST)) != 0;
}

/* Turns a key or a query of the layer by its position. */
static void turn(const kvc__attend *a, int32_t pos, const float *x, float *y) {
    const kvc__hparams *hp = &a->model->hp;
    const float *cs = a->model->rope[a->model->layer[a->layer].rope].cs + (size_t)pos * hp->n_rot;
    if (a->model->arch->rope_neox) {
        a->kern->rope_neox(x, cs, hp->n_rot, hp->dim_k, y);
    } else {
        a->kern->rope_norm(x, cs, hp->n_rot, hp->dim_k, y);
    }
}

/* ---------------------------------------------------------------- failures of worker calls */

/* Calls that may fail in workers; their numbers stand beside the status in `failed`. */
enum {
    CALL_VISIBLE = 0,
    CALL_APPEND,
    CALL_SELECT,
    CALL_SCORE,
    CALL_MIX,
    CALL_GET,
    CALL_UNPACK,
    CALL_FINITE
};
static const char *const call_name[] = {"visible", "append", "select", "score",
                                        "mix",     "get",    "unpack", "finite"};

/* Keeps the first failure of a (piece, head): status in the upper bits, the call in the lowest
 * three. */
static void note_failure(kvc__attend *a, uint32_t piece, uint32_t head, int32_t code, int call) {
    int none = 0;
    /* A plugin's status may be any number; only those that mean something here fit. */
    code = code < 0 && code > -64 ? code : KVC_E_POLICY;
    const int packed = code * 8 - call;
    atomic_compare_exchange_strong(&a->failed[(size_t)piece * a->model->hp.n_head_kv + head], &none,
                                   packed);
}

/* Gives pieces that failed in the phase behind us their status, lowest head first. */
static void collect_failures(kvc__attend *a) {
    const uint32_t heads = a->model->hp.n_head_kv;
    for (uint32_t i = 0; i < a->n_piece; i++) {
        for (uint32_t h = 0; h < heads; h++) {
            const int packed = atomic_load(&a->failed[(size_t)i * heads + h]);
            if (packed != 0 && a->piece[i].status == KVC_OK) {
                a->piece[i].status = packed / 8;
                a->piece[i].call = call_name[-(packed % 8)];
                a->piece[i].head = h;
            }
        }
    }
}

/* ---------------------------------------------------------------- phase 1: rows */

static float round_open(uint32_t type, float x) {
    switch (type) {
    case KVC_TYPE_F16:
        x = x > 65504.0f ? 65504.0f : x;
        return kvc__f32_of_f16(kvc__f16(x < -65504.0f ? -65504.0f : x));
    case KVC_TYPE_BF16:
        return kvc__f32_of_bf16(kvc__bf16(x));
    default:
        return x;
    }
}

/* Shows the rows to observers as the open page holds them, but before a Hadamard rotation. */
static int32_t show_rows(kvc__attend *a, const kvc__piece *p, uint32_t head) {
    const kvc__hparams *hp = &a->model->hp;
    const uint32_t sk = hp->n_head_kv * hp->dim_k, sv = hp->n_head_kv * hp->dim_v;
    const uint32_t type = p->stack->shape[a->layer].open_type;
    int32_t pos[KVC_PAGE];
    for (uint32_t t = 0; t < p->n; t++) {
        const size_t at_k = (size_t)(p->row0 + t) * sk + (size_t)head * hp->dim_k;
        const size_t at_v = (size_t)(p->row0 + t) * sv + (size_t)head * hp->dim_v;
        pos[t] = p->pos0 + (int32_t)t;
        for (uint32_t d = 0; d < hp->dim_k; d++) {
            a->kobs[at_k + d] = round_open(type, a->krot[at_k + d]);
        }
        for (uint32_t d = 0; d < hp->dim_v; d++) {
            a->vobs[at_v + d] = round_open(type, a->v[at_v + d]);
        }
    }
    const size_t first_k = (size_t)p->row0 * sk + (size_t)head * hp->dim_k;
    kvc_rows rows = {.struct_size = sizeof rows,
                     .layer = a->layer,
                     .head = head,
                     .n = p->n,
                     .pos = pos,
                     .k = a->kobs + first_k,
                     .v = a->vobs + (size_t)p->row0 * sv + (size_t)head * hp->dim_v,
                     .k_raw = a->k + first_k,
                     .q = qrot_at(a, head, p->row0),
                     .k_stride = sk,
                     .v_stride = sv,
                     .q_stride = group_of(a) * hp->dim_k,
                     .phase = p->phase};
    return kvc__stack_append(p->stack, &rows);
}

/* Asks which pages each query of the piece reads. */
static int32_t select_pages(kvc__attend *a, const kvc__piece *p, uint32_t head) {
    const kvc__hparams *hp = &a->model->hp;
    const kvc__lane *l = kvc__store_lane(p->store, a->layer, head);
    for (uint32_t t = 0; t < p->n; t++) {
        const int32_t pos = p->pos0 + (int32_t)t;
        uint64_t *bits = kvc__attend_sel_at(a, p->row0 + t, head);
        memset(bits, 0, a->max_word * sizeof *bits);
        for (uint32_t i = 0; i < l->n_page; i++) {
            bits[i / 64] |= (uint64_t)1 << (i % 64);
        }
        kvc_rows rows = {.struct_size = sizeof rows,
                         .layer = a->layer,
                         .head = head,
                         .n = 1,
                         .pos = &pos,
                         .q = qrot_at(a, head, p->row0 + t),
                         .q_stride = group_of(a) * hp->dim_k,
                         .phase = t + 1 < p->n && p->phase == KVC_PHASE_PROMPT_END
                                      ? KVC_PHASE_PROMPT
                                      : p->phase};
        KVC_TRY(kvc__stack_select(p->stack, &rows, bits, l->n_page));
    }
    return KVC_OK;
}

/* Keys and queries of a piece's head are turned, its rows shown and appended. */
static void take_rows(kvc__attend *a, uint32_t pi, uint32_t head) {
    const kvc__hparams *hp = &a->model->hp;
    const uint32_t group = group_of(a);
    const kvc__piece *p = &a->piece[pi];
    const kvc__page_shape *sh = &p->stack->shape[a->layer];
    const size_t sk = (size_t)hp->n_head_kv * hp->dim_k, sv = (size_t)hp->n_head_kv * hp->dim_v;
    if (p->status < 0) {
        return;
    }
    float *k0 = a->krot + p->row0 * sk + (size_t)head * hp->dim_k;
    float *v0 = a->v + p->row0 * sv + (size_t)head * hp->dim_v;
    for (uint32_t t = 0; t < p->n; t++) {
        const size_t row = p->row0 + t;
        const int32_t pos = p->pos0 + (int32_t)t;
        const float *q = a->q + (row * hp->n_head + (size_t)head * group) * hp->dim_k;
        float *qr = qrot_at(a, head, (uint32_t)row);
        turn(a, pos, a->k + row * sk + (size_t)head * hp->dim_k, k0 + t * sk);
        for (uint32_t g = 0; g < group; g++) {
            turn(a, pos, q + (size_t)g * hp->dim_k, qr + (size_t)g * hp->dim_k);
        }
    }
    if (p->stack->has_append != 0) {
        int32_t rc = show_rows(a, p, head);
        if (rc < 0) {
            note_failure(a, pi, head, rc, CALL_APPEND);
            return;
        }
    }
    if (p->stack->select != NULL) {
        int32_t rc = select_pages(a, p, head);
        if (rc < 0) {
            note_failure(a, pi, head, rc, CALL_SELECT);
            return;
        }
    }
    for (uint32_t t = 0; t < p->n; t++) {
        float *qr = qrot_at(a, head, p->row0 + t);
        a->kern->scale(qr, sh->scale, group * hp->dim_k);
        if (sh->had_k > 1) {
            a->kern->hadamard(qr, sh->had_k, group * hp->dim_k);
            a->kern->hadamard(k0 + t * sk, sh->had_k, hp->dim_k);
        }
        if (sh->had_v > 1) {
            a->kern->hadamard(v0 + t * sv, sh->had_v, hp->dim_v);
        }
    }
    kvc__store_append(p->store, a->layer, head, p->n, p->pos0, k0, sk, v0, sv);
}

/* Items are (piece, head). */
static void rows_span(void *arg, uint32_t first, uint32_t end, uint32_t thread) {
    kvc__attend *a = arg;
    const uint32_t heads = a->model->hp.n_head_kv;
    (void)thread;
    for (uint32_t i = first; i < end; i++) {
        take_rows(a, i / heads, i % heads);
    }
}

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

/* ---------------------------------------------------------------- phase 2: ranges */

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

static int32_t score_page(const struct job *j, const struct view *v, const float *q, float *s) {
    if (v->open) {
        const kvc__lane *l = kvc__store_lane(j->p->store, j->a->layer, j->head);
        j->a->kern->score(j->sh->open_type, l->open_k, j->sh->dim_k, q, j->rows, s, KVC_PAGE);
        return KVC_OK;
    }
    kvc_page page = {.struct_size = sizeof page,
                     .layer = j->a->layer,
                     .head = j->head,
                     .n = v->n,
                     .bytes = v->bytes};
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
    kvc_page page = {.struct_size = sizeof page,
                     .layer = j->a->layer,
                     .head = j->head,
                     .n = v->n,
                     .bytes = v->bytes};
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
            (kvc__attend_sel_at(a, row, j->head)[page / 64] >> (page % 64) & 1) == 0) {
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

/* Page `at` of the range: scores, exponentials, mix. */
static int32_t attend_page(struct job *j, uint32_t at, int *call) {
    const uint32_t page = j->range * KVC__RANGE_PAGES + at;
    struct view v;
    bool seen = false;
    if (page <= kvc__store_lane(j->p->store, j->a->layer, j->head)->n_page) {
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
 * cost more than reading. A head that fails is left, and doesn't hold up the others. */
static void attend_block(struct job *j, const kvc__block *b, uint32_t head, uint32_t n) {
    const uint32_t heads = j->a->model->hp.n_head_kv;
    j->b = b;
    j->rows = b->n * j->group;
    for (uint32_t h = head; h < head + n; h++) {
        take_head(j, h);
        begin_rows(j);
    }
    for (uint32_t at = 0; at < KVC__RANGE_PAGES; at++) {
        for (uint32_t h = head; h < head + n; h++) {
            int call = CALL_VISIBLE;
            if (atomic_load(&j->a->failed[(size_t)b->piece * heads + h]) != 0) {
                continue;
            }
            take_head(j, h);
            const int32_t rc = attend_page(j, at, &call);
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

/* How many of the n blocks from `first` on, which are of one piece, are items of their own: with a
 * tier one item takes all. */
static uint32_t split_blocks(const kvc__attend *a, uint32_t first, uint32_t n) {
    return a->piece[a->block[first].piece].store->pager != NULL ? 1 : n;
}

/* Heads of an item: many when it decodes and there is work for all threads nevertheless; one where
 * what is kept of a page serves one head. */
static uint32_t heads_of_item(const kvc__attend *a, uint32_t first) {
    const kvc__block *b = &a->block[first];
    const kvc__piece *p = &a->piece[b->piece];
    const uint32_t heads = a->model->hp.n_head_kv;
    const uint32_t n = heads * b->n_range / (4 * kvc__pool_n_thread(a->pool));
    if (b->n > 1 || p->store->pager != NULL || observes(p) || n < 1) {
        return 1;
    }
    return n < heads ? n : heads;
}

/* The range at a place of a block for `take` heads; with a tier of the n blocks from b on, which
 * are of one piece. */
static void attend_range(kvc__attend *a, const kvc__block *b, uint32_t n, uint32_t place,
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

/* Item i of the n blocks from `first` on, which are of one piece: (range, heads, block). */
static void take_range(kvc__attend *a, uint32_t first, uint32_t n, uint32_t i, uint32_t thread) {
    const uint32_t heads = a->model->hp.n_head_kv, split = split_blocks(a, first, n);
    const uint32_t each = heads_of_item(a, first), n_head = (heads + each - 1) / each;
    const uint32_t head = i / split % n_head * each;
    attend_range(a, &a->block[first + i % split], n, i / split / n_head, head,
                 heads - head < each ? heads - head : each, thread);
}

static void ranges_span(void *arg, uint32_t first, uint32_t end, uint32_t thread) {
    kvc__attend *a = arg;
    uint32_t b = 0, n = kvc__attend_same_piece(a, 0);
    while (first < end) {
        while (first >= a->item[b + n]) {
            b += n;
            n = kvc__attend_same_piece(a, b);
        }
        for (; first < end && first < a->item[b + n]; first++) {
            take_range(a, b, n, first - a->item[b], thread);
        }
    }
}

/* ---------------------------------------------------------------- phase 3: merge */

/* Adds a row's probabilities to the lane's mass column; the last query's alone to MASS_LAST.
 * factor[r]: what turns a range's exponentials into probabilities. */
static void add_mass(const kvc__attend *a, const kvc__block *b, const kvc__piece *p, uint32_t head,
                     uint32_t row, const float *factor) {
    const kvc__lane *l = kvc__store_lane(p->store, a->layer, head);
    const uint32_t lane = p->store->lane0[a->layer] + head, group = group_of(a);
    const bool last = b->t0 + row / group + 1 == p->n;
    const float *e = prob_at(a, b, head, row);
    for (uint32_t i = 0; i <= l->n_page; i++) {
        float *mass = kvc__store_column(p->store, lane, KVC__COL_MASS, i);
        float *mass_last = kvc__store_column(p->store, lane, KVC__COL_MASS_LAST, i);
        const float f = factor[i / KVC__RANGE_PAGES];
        if (last && row % group == 0) {
            memset(mass_last, 0, KVC_PAGE * sizeof *mass_last);
        }
        for (uint32_t x = 0; x < KVC_PAGE; x++) {
            const float prob = e[(size_t)i * KVC_PAGE + x] * f;
            mass[x] += prob;
            mass_last[x] += last ? prob : 0.0f;
        }
    }
}

/* Merges the ranges of one row into out[dim_v]; factor gets exp(m_r - M) / S for each range. */
static void merge_row(const kvc__attend *a, const kvc__block *b, uint32_t head, uint32_t row,
                      float *factor, float *out, uint32_t dim) {
    float max = -INFINITY, sum = 0.0f;
    for (uint32_t r = 0; r < b->n_range; r++) {
        factor[r] = partial_at(a, b, head, r).max[row];
        max = factor[r] > max ? factor[r] : max;
    }
    for (uint32_t r = 0; r < b->n_range; r++) {
        factor[r] -= max > -INFINITY ? max : 0.0f;
    }
    a->kern->exps(factor, b->n_range);
    memset(out, 0, dim * sizeof *out);
    for (uint32_t r = 0; r < b->n_range; r++) {
        const struct partial part = partial_at(a, b, head, r);
        if (part.max[row] == -INFINITY) {
            continue;
        }
        sum = fmaf(factor[r], part.sum[row], sum);
        a->kern->axpy(factor[r], part.acc + (size_t)row * dim, out, dim);
    }
    const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
    a->kern->scale(out, inverse, dim);
    for (uint32_t r = 0; r < b->n_range; r++) {
        factor[r] *= inverse;
    }
}

/* Whether all of x[n] are finite. */
static bool finite_row(const float *x, size_t n) {
    uint32_t odd = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        odd |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    return odd == 0;
}

/* Pages of a policy's codec may hold anything. Numbers that aren't finite would spread over all
 * that is computed from here on, so they end the step here, unless the query brought them. */
static void check_finite(kvc__attend *a, const kvc__block *b, const kvc__piece *p, uint32_t head,
                         uint32_t row, const float *out, uint32_t dim) {
    if (p->stack->codec.owner == NULL || finite_row(out, dim)) {
        return;
    }
    const kvc__hparams *hp = &a->model->hp;
    const float *q = qrot_at(a, head, p->row0 + b->t0 + row / group_of(a));
    if (finite_row(q, (size_t)group_of(a) * hp->dim_k)) {
        note_failure(a, b->piece, head, KVC_E_POLICY, CALL_FINITE);
    }
}

/* Merges the rows of a head in all blocks of a piece, which begin with block `first`, in ascending
 * order. */
static void merge_head(kvc__attend *a, uint32_t first, uint32_t head, uint32_t thread) {
    const kvc__hparams *hp = &a->model->hp;
    const uint32_t group = group_of(a), piece = a->block[first].piece;
    const kvc__piece *p = &a->piece[piece];
    const kvc__page_shape *sh = &p->stack->shape[a->layer];
    float *factor = a->thread[thread].s;
    for (uint32_t bi = first; bi < a->n_block && a->block[bi].piece == piece; bi++) {
        const kvc__block *b = &a->block[bi];
        for (uint32_t row = 0; row < b->n * group; row++) {
            const size_t token = p->row0 + b->t0 + row / group;
            float *out =
                a->out + (token * hp->n_head + (size_t)head * group + row % group) * hp->dim_v;
            merge_row(a, b, head, row, factor, out, hp->dim_v);
            check_finite(a, b, p, head, row, out, hp->dim_v);
            if (sh->had_v > 1) {
                a->kern->hadamard(out, sh->had_v, hp->dim_v);
            }
            if (observes(p)) {
                add_mass(a, b, p, head, row, factor);
            }
        }
    }
}

/* Items are (block, head); a piece's first block stands for all. */
static void merge_span(void *arg, uint32_t first, uint32_t end, uint32_t thread) {
    kvc__attend *a = arg;
    const uint32_t heads = a->model->hp.n_head_kv;
    for (uint32_t i = first; i < end; i++) {
        const uint32_t b = i / heads, piece = a->block[b].piece;
        if (a->piece[piece].status == KVC_OK && (b == 0 || a->block[b - 1].piece != piece)) {
            merge_head(a, b, i % heads, thread);
        }
    }
}

/* ---------------------------------------------------------------- driving */

/* Runs items on the pool, or here when they are too few and small to be worth a crossing. */
static void run_items(kvc__attend *a, uint32_t n, bool small, kvc__pool_fn fn) {
    if (!small) {
        kvc__pool_run(a->pool, n, fn, a);
        return;
    }
    fn(a, 0, n, 0);
}

/* The blocks collected so far, through ranges and merge. */
static void flush_blocks(kvc__attend *a) {
    const uint32_t heads = a->model->hp.n_head_kv;
    uint32_t items = 0, rows = 0, results = 0; /* results: of ranges, for each head */
    for (uint32_t first = 0, n; first < a->n_block; first += n) {
        n = kvc__attend_same_piece(a, first);
        const uint32_t each = heads_of_item(a, first);
        a->item[first] = items;
        items += (heads + each - 1) / each * a->block[first].n_range * split_blocks(a, first, n);
        for (uint32_t i = first; i < first + n; i++) {
            rows += a->block[i].n;
            results += a->block[i].n * a->block[i].n_range;
        }
    }
    a->item[a->n_block] = items;
    kvc__attend_bring(a);
    kvc__pool_run(a->pool, items, ranges_span, a);
    kvc__attend_brought(a);
    collect_failures(a);
    run_items(a, a->n_block * heads, rows <= 2 && results <= 24, merge_span);
    collect_failures(a);
    a->n_block = 0;
}

/* Puts a span behind the block's others, or makes it one with the last when there is no gap. */
static void add_span(kvc__block *b, uint32_t first, uint32_t end) {
    kvc__stretch *last = b->n_span > 0 ? &b->span[b->n_span - 1] : NULL;
    if (last != NULL && first <= last->end) {
        last->end = end > last->end ? end : last->end;
    } else {
        b->span[b->n_span++] = (kvc__stretch){first, end};
    }
}

/* The ranges of n in which a row of the piece may see anything. Where entries are evicted a page's
 * place says nothing of its positions, and observers are told of all pages. */
static void find_spans(const kvc__attend *a, const kvc__piece *p, uint32_t n, kvc__block *b) {
    const kvc_range *rng = a->range + (size_t)p->row0 * (KVC_MAX_RANGES + 1);
    const uint32_t *n_rng = a->n_rng + p->row0;
    const bool all = (p->stack->flags & KVC_PLAN_EVICTS) != 0 || observes(p);
    b->n_span = 0;
    for (uint32_t x = 0; !all && x < n_rng[0]; x++) {
        int32_t first = INT32_MAX, end = 0;
        for (uint32_t t = 0; t < p->n; t++) {
            const kvc_range *of = rng + (size_t)t * (KVC_MAX_RANGES + 1);
            /* Rows that see another number of ranges make one of all. */
            const uint32_t from = n_rng[t] == n_rng[0] ? x : 0;
            const uint32_t to = n_rng[t] == n_rng[0] ? x : n_rng[t] - 1;
            first = of[from].first < first ? of[from].first : first;
            end = of[to].end > end ? of[to].end : end;
        }
        const uint32_t last = ((uint32_t)end - 1) / KVC__RANGE_ENTRIES + 1;
        add_span(b, (uint32_t)first / KVC__RANGE_ENTRIES, last < n ? last : n);
    }
    if (b->n_span == 0) {
        add_span(b, 0, n);
    }
    b->n_range = 0;
    for (uint32_t i = 0; i < b->n_span; i++) {
        b->n_range += b->span[i].end - b->span[i].first;
    }
}

/* Cuts a piece into blocks of at most max_row query rows, as even as can be, and flushes when
 * scratch is full. */
static void add_blocks(kvc__attend *a, uint32_t pi, size_t *part, size_t *prob) {
    const kvc__piece *p = &a->piece[pi];
    const uint32_t group = group_of(a), heads = a->model->hp.n_head_kv;
    uint32_t n_page = 0;
    for (uint32_t h = 0; h < heads; h++) {
        const kvc__lane *l = kvc__store_lane(p->store, a->layer, h);
        n_page = l->n_page > n_page ? l->n_page : n_page;
    }
    kvc__block whole = {.piece = pi};
    find_spans(a, p, n_page / KVC__RANGE_PAGES + 1, &whole);
    const uint32_t n_range = whole.n_range;
    /* As many tokens as their results have room for; there is room for one. */
    const size_t token = (size_t)heads * n_range;
    size_t most = a->max_row / group,
           fits = a->cap_partial / (token * kvc__partial_floats(a, group));
    most = fits < most ? fits : most;
    fits = observes(p) ? a->cap_prob / (token * group * KVC__RANGE_ENTRIES) : most;
    most = fits < most ? fits : most;
    const uint32_t n_block = (p->n + (uint32_t)most - 1) / (uint32_t)most;
    const uint32_t each = (p->n + n_block - 1) / n_block;
    for (uint32_t t = 0; t < p->n; t += each) {
        const uint32_t n = p->n - t < each ? p->n - t : each;
        const size_t rows = (size_t)n * group;
        const size_t need = token * kvc__partial_floats(a, rows);
        const size_t wide = observes(p) ? rows * token * KVC__RANGE_ENTRIES : 0;
        if (*part + need > a->cap_partial || *prob + wide > a->cap_prob ||
            a->n_block == a->n_batch) {
            flush_blocks(a);
            *part = 0;
            *prob = 0;
        }
        kvc__block *b = &a->block[a->n_block++];
        *b = whole;
        b->t0 = t;
        b->n = n;
        b->part = *part;
        b->prob = *prob;
        *part += need;
        *prob += wide;
    }
}

/* What each token of a piece sees in this layer. */
static int32_t find_ranges(kvc__attend *a, const kvc__piece *p) {
    for (uint32_t t = 0; t < p->n; t++) {
        const uint32_t row = p->row0 + t;
        KVC_TRY(kvc__stack_visible(p->stack, a->layer, p->pos0 + (int32_t)t,
                                   a->range + (size_t)row * (KVC_MAX_RANGES + 1), &a->n_rng[row]));
    }
    return KVC_OK;
}

/* Items are heads of the one block, which has one token and one range: all three phases. */
static void whole_span(void *arg, uint32_t first, uint32_t end, uint32_t thread) {
    kvc__attend *a = arg;
    for (uint32_t head = first; head < end; head++) {
        take_rows(a, 0, head);
        attend_range(a, &a->block[0], 1, 0, head, 1, thread);
        merge_head(a, 0, head, thread);
    }
}

/* One token that sees little: what a head needs is done by one thread, for a crossing would cost as
 * much as a phase. False when it isn't so, and nothing was done. */
static bool attend_short(kvc__attend *a) {
    const kvc__piece *p = &a->piece[0];
    size_t part = 0, prob = 0;
    if (a->n_piece != 1 || p->n != 1 || p->status < 0 || p->store->pager != NULL || observes(p)) {
        return false;
    }
    add_blocks(a, 0, &part, &prob);
    const bool is_short = a->block[0].n_range == 1;
    if (is_short) {
        kvc__pool_run(a->pool, a->model->hp.n_head_kv, whole_span, a);
        collect_failures(a);
    }
    a->n_block = 0;
    return is_short;
}

void kvc__attend_run(kvc__attend *a, uint32_t layer) {
    const uint32_t heads = a->model->hp.n_head_kv;
    uint32_t rows = 0;
    size_t part = 0, prob = 0;
    a->layer = layer;
    for (uint32_t i = 0; i < a->n_piece; i++) {
        kvc__piece *p = &a->piece[i];
        for (uint32_t h = 0; h < heads; h++) {
            atomic_store(&a->failed[(size_t)i * heads + h], 0);
        }
        rows += p->n;
        if (p->status == KVC_OK && find_ranges(a, p) < 0) {
            p->status = KVC_E_POLICY;
            p->call = call_name[CALL_VISIBLE];
            p->head = 0;
        }
    }
    if (attend_short(a)) {
        return;
    }
    run_items(a, a->n_piece * heads, rows <= 2, rows_span);
    collect_failures(a);
    for (uint32_t i = 0; i < a->n_piece; i++) {
        if (a->piece[i].status == KVC_OK) {
            add_blocks(a, i, &part, &prob);
        }
    }
    if (a->n_block > 0) {
        flush_blocks(a);
    }
}
