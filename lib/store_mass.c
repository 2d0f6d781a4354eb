/* SPDX-License-Identifier: MIT
 * store_mass.c: how much given queries attend to the live entries of a lane, for stages that ask at
 * a tick. It scores again what attend.c has scored, in the same order of arithmetic and with the
 * same kernels, but mixes no values: ranges of four pages, one maximum and one sum each, merged in
 * ascending order. It must not change the store. */
#include "store.h"

#include <math.h>
#include <string.h>

/* Floats of scores that a call holds at most, unless one query needs more: 4 MiB. */
#define SCRATCH ((size_t)1 << 20)

#define RANGE_ENTRIES (KVC__RANGE_PAGES * KVC_PAGE)
#define MAX_ROW       96u /* query rows that are scored at once, as codecs are promised */

/* One call's scratch, and the block of queries in hand. */
struct mass {
    const kvc__store *s;
    const kvc__lane *l;
    const kvc__page_shape *sh;
    uint32_t layer, head;
    uint32_t n_range; /* of the lane's table */
    uint32_t most;    /* queries of a block */
    uint32_t n, rows; /* queries of this one, and their heads */
    float *q;         /* [rows][dim_k] scaled, in the basis of the stored keys */
    float *e;         /* [rows][n_range × 256] scores, then exponentials */
    float *max, *sum; /* [rows][n_range] */
    float *tmp;       /* [rows][64] */
    kvc__codec_scratch codec;
    uint8_t *page;    /* room for one that has to be brought */
    kvc_range *range; /* [n][KVC_MAX_RANGES + 1] what each query sees */
    uint32_t *n_seen; /* [n] ranges of it */
};

/* ---------------------------------------------------------------- scratch */

/* Takes n bytes of the block, from a multiple of 64 on. base NULL: only counts. */
static void *carve(uint8_t *base, size_t *used, size_t n) {
    void *p = base != NULL ? base + *used : NULL;
    *used += (n + 63) & ~(size_t)63;
    return p;
}

/* Lays the scratch out in a block; returns its size. */
static size_t lay_out(struct mass *m, uint8_t *base) {
    const kvc__page_shape *sh = m->sh;
    const size_t rows = (size_t)m->most * sh->group, f = sizeof(float);
    size_t used = 0;
    m->page = carve(base, &used, kvc__store_room(m->s)); /* first: the most aligned */
    m->q = carve(base, &used, rows * sh->dim_k * f);
    m->e = carve(base, &used, rows * m->n_range * RANGE_ENTRIES * f);
    m->max = carve(base, &used, rows * m->n_range * f);
    m->sum = carve(base, &used, rows * m->n_range * f);
    m->tmp = carve(base, &used, rows * KVC_PAGE * f);
    m->codec.k = carve(base, &used, KVC_PAGE * sh->dim_k * f);
    m->codec.v = carve(base, &used, KVC_PAGE * sh->dim_v * f);
    m->codec.t = carve(base, &used, KVC_PAGE * sh->dim_k * f);
    m->range = carve(base, &used, m->most * (KVC_MAX_RANGES + 1) * sizeof *m->range);
    m->n_seen = carve(base, &used, m->most * sizeof *m->n_seen);
    return used;
}

/* Queries that are scored at once: codecs take so many rows, and the scratch so many scores. */
static uint32_t block_of(const struct mass *m, uint32_t n) {
    const uint32_t group = m->sh->group;
    const size_t fits = SCRATCH / ((size_t)group * m->n_range * RANGE_ENTRIES);
    uint32_t most = MAX_ROW / group;
    most = fits < most ? (uint32_t)fits : most;
    most = most > 0 ? most : 1;
    return most < n ? most : n;
}

/* ---------------------------------------------------------------- scores */

static uint64_t live_of(const kvc__lane *l, uint32_t page) {
    return page == l->n_page ? l->open_live : l->page[page].live;
}

/* The block's queries as attention scores them, and what each sees. */
static int32_t take_queries(struct mass *m, const kvc_rows *r, uint32_t first) {
    const kvc__page_shape *sh = m->sh;
    const kvc__kern *kern = m->s->stack->kern;
    const uint32_t wide = sh->group * sh->dim_k;
    for (uint32_t t = 0; t < m->n; t++) {
        float *q = m->q + (size_t)t * wide;
        memcpy(q, r->q + (size_t)(first + t) * r->q_stride, wide * sizeof *q);
        kern->scale(q, sh->scale, wide);
        if (sh->had_k > 1) {
            kern->hadamard(q, sh->had_k, wide);
        }
        KVC_TRY(kvc__stack_visible(m->s->stack, m->layer, r->pos[first + t],
                                   m->range + (size_t)t * (KVC_MAX_RANGES + 1), &m->n_seen[t]));
        if (m->n_seen[t] > 1 && m->s->stack->positions == KVC_POSITIONS_CACHE) {
            return KVC_E_UNSUPPORTED; /* the queries would have to be turned again */
        }
    }
    return KVC_OK;
}

/* Entries of a page that query t of the block sees. */
static uint64_t seen_by(const struct mass *m, uint32_t t, uint64_t live, const int32_t *pos) {
    const kvc_range *range = m->range + (size_t)t * (KVC_MAX_RANGES + 1);
    uint64_t seen = 0;
    for (uint64_t left = live; left != 0; left &= left - 1) {
        const uint32_t e = (uint32_t)__builtin_ctzll(left);
        for (uint32_t x = 0; x < m->n_seen[t]; x++) {
            seen |= (uint64_t)(pos[e] >= range[x].first && pos[e] < range[x].end) << e;
        }
    }
    return seen;
}

/* Scores of a page for all rows into tmp. */
static int32_t score_page(struct mass *m, uint32_t i) {
    const kvc__stack *stack = m->s->stack;
    if (i == m->l->n_page) {
        stack->kern->score(m->sh->open_type, m->l->open_k, m->sh->dim_k, m->q, m->rows, m->tmp,
                           KVC_PAGE);
        return KVC_OK;
    }
    int32_t rc;
    kvc_page page = {
        .struct_size = sizeof page, .layer = m->layer, .head = m->head, .n = m->l->page[i].n};
    page.bytes = kvc__store_bring(m->s, m->layer, m->s->lane0[m->layer] + m->head, i, m->page, &rc);
    KVC_TRY(rc);
    return kvc__codec_score(&stack->codec, &page, m->q, m->rows, m->tmp, &m->codec);
}

/* The scores of page i that are seen, to their places in e. */
static int32_t take_scores(struct mass *m, uint32_t i) {
    const size_t wide = (size_t)m->n_range * RANGE_ENTRIES;
    const uint64_t live = live_of(m->l, i);
    uint64_t seen[MAX_ROW], any = 0;
    int32_t pos[KVC_PAGE];
    if (live == 0) {
        return KVC_OK;
    }
    kvc__store_positions(m->s, m->s->lane0[m->layer] + m->head, i, pos);
    for (uint32_t t = 0; t < m->n; t++) {
        seen[t] = seen_by(m, t, live, pos);
        any |= seen[t];
    }
    if (any == 0) {
        return KVC_OK;
    }
    KVC_TRY(score_page(m, i));
    kvc__cap_scores(m->s->stack->kern, m->sh, m->tmp, m->rows);
    for (uint32_t r = 0; r < m->rows; r++) {
        float *e = m->e + r * wide + (size_t)i * KVC_PAGE;
        for (uint64_t left = seen[r / m->sh->group]; left != 0; left &= left - 1) {
            const uint32_t x = (uint32_t)__builtin_ctzll(left);
            e[x] = m->tmp[(size_t)r * KVC_PAGE + x];
        }
    }
    return KVC_OK;
}

/* ---------------------------------------------------------------- probabilities */

/* Turns the scores of one range into exponentials below its largest one, page by page as attention
 * does. */
static void softmax_range(const kvc__kern *kern, float *e, float *max, float *sum) {
    float at_page[KVC__RANGE_PAGES], down;
    *max = -INFINITY;
    *sum = 0.0f;
    for (uint32_t i = 0; i < KVC__RANGE_PAGES; i++) {
        kern->soften(e + (size_t)i * KVC_PAGE, 1, max, sum, &down);
        at_page[i] = *max;
    }
    for (uint32_t i = 0; i < KVC__RANGE_PAGES; i++) {
        kvc__level(kern, e + (size_t)i * KVC_PAGE, at_page[i], *max);
    }
}

/* Turns a row's scores into exponentials, range by range, and max into what makes probabilities of
 * each range's: exp(max_r - max) / sum. */
static void softmax_row(struct mass *m, uint32_t r) {
    const kvc__kern *kern = m->s->stack->kern;
    float *max = m->max + (size_t)r * m->n_range, *sum = m->sum + (size_t)r * m->n_range;
    float top = -INFINITY, all = 0.0f;
    for (uint32_t i = 0; i < m->n_range; i++) {
        float *e = m->e + ((size_t)r * m->n_range + i) * RANGE_ENTRIES;
        softmax_range(kern, e, &max[i], &sum[i]);
        top = max[i] > top ? max[i] : top;
    }
    for (uint32_t i = 0; i < m->n_range; i++) {
        max[i] = max[i] == -INFINITY ? 0.0f : kern->exp1(max[i] - top);
        all = fmaf(max[i], sum[i], all);
    }
    const float inverse = all > 0.0f ? 1.0f / all : 0.0f;
    for (uint32_t i = 0; i < m->n_range; i++) {
        max[i] *= inverse;
    }
}

/* Adds a row's probabilities to the live entries in their order. */
static void add_row(const struct mass *m, uint32_t r, float *out) {
    const float *e = m->e + (size_t)r * m->n_range * RANGE_ENTRIES;
    const float *factor = m->max + (size_t)r * m->n_range;
    for (uint32_t i = 0; i <= m->l->n_page; i++, e += KVC_PAGE) {
        const float f = factor[i / KVC__RANGE_PAGES];
        for (uint64_t left = live_of(m->l, i); left != 0; left &= left - 1) {
            *out++ += e[__builtin_ctzll(left)] * f;
        }
    }
}

static int32_t mass_block(struct mass *m, const kvc_rows *queries, uint32_t first, float *out) {
    const size_t n = (size_t)m->rows * m->n_range * RANGE_ENTRIES;
    KVC_TRY(take_queries(m, queries, first));
    for (size_t i = 0; i < n; i++) {
        m->e[i] = -INFINITY;
    }
    for (uint32_t i = 0; i <= m->l->n_page; i++) {
        KVC_TRY(take_scores(m, i));
    }
    for (uint32_t r = 0; r < m->rows; r++) {
        softmax_row(m, r);
        add_row(m, r, out);
    }
    return KVC_OK;
}

int32_t kvc__store_mass(const kvc__store *s, const kvc_rows *queries, float *out) {
    struct mass m = {.s = s,
                     .l = kvc__store_lane(s, queries->layer, queries->head),
                     .sh = &s->stack->shape[queries->layer],
                     .layer = queries->layer,
                     .head = queries->head};
    int32_t rc = KVC_OK;
    m.n_range = m.l->n_page / KVC__RANGE_PAGES + 1;
    m.most = block_of(&m, queries->n);
    const size_t bytes = lay_out(&m, NULL);
    uint8_t *base = kvc__realloc(s->mem, NULL, 0, bytes, KVC_FILE_ALIGN);
    if (base == NULL) {
        return KVC_E_NOMEM;
    }
    lay_out(&m, base);
    for (uint32_t first = 0; first < queries->n && rc == KVC_OK; first += m.n) {
        m.n = queries->n - first < m.most ? queries->n - first : m.most;
        m.rows = m.n * m.sh->group;
        rc = mass_block(&m, queries, first, out);
    }
    kvc__free(s->mem, base, bytes);
    return rc;
}
