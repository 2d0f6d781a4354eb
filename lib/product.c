/* SPDX-License-Identifier: MIT
 * product.c: matrix products in items of some groups of weight rows. Few rows of activations: the
 * threads share out the weights, which then are what must be read. Many: they share out the rows.
 * Which thread computes an item, and with which others, doesn't change a bit of it. */
#include "product.h"

#include <stdalign.h>
#include <string.h>

/* Each part of the rows reads the weights anew. In pairs, with two threads, parts of 32 rows gained
 * nothing, of 64 two hundredths, of 256 six. */
#define MOST_PARTS 8u
#define PART_ROWS  (KVC__MANY_ROWS / 2)
#define TILE_ROWS  8u /* parts are whole tiles of int8 products, but for the last */

/* Floats of a strip: two of them and a group's weights stay in a core's own cache. */
#define STRIP_FLOATS 16384u

/* Some matrices that share their input: one phase over all their groups. It lies in the caller's
 * frame, in lines of its own: those around are written while others read this. */
struct product {
    alignas(64) const kvc__products *with;
    kvc__act act;
    bool int8;
    const kvc__mat *w[3];
    float *out[3];
    uint32_t first[4]; /* first item of each matrix, and one past */
    uint32_t unit;     /* groups of an item */
    uint32_t step;     /* groups that the two of a gated product take in turn */
    float *add;        /* what the product is added to */
    float *const *to;  /* [act->n] where each row goes */
    float cap;         /* of those, 0: none */
    kvc__act rounded;  /* of a gated product in int8 */
    void (*gate)(float *, const float *, uint32_t);
    kvc__pool_fn span; /* does some of n_item items for all of act's rows */
    uint32_t n_item, n_part;
};

/* Rows of w in its groups [g0, g1). */
static uint32_t rows_in(const kvc__mat *w, uint32_t g0, uint32_t g1) {
    const uint32_t end = g1 * KVC__GROUP;
    return (end < w->n_row ? end : w->n_row) - g0 * KVC__GROUP;
}

static void run_packed(const struct product *p, const kvc__mat *w, float *out, size_t stride,
                       uint32_t thread) {
    const kvc__products *x = p->with;
    if (p->int8 && kvc__mat_quantised(w->type)) {
        x->kern->mm_q(w, &p->act, out, stride);
    } else {
        x->kern->mm_f(w, &p->act, out, stride, x->tile + thread * x->tile_floats);
    }
}

/* out[act->n, stride] = act × the rows of w[i] in groups [g0, g1), the first of them in column 0.
 */
static void run_groups(const struct product *p, uint32_t i, uint32_t g0, uint32_t g1, float *out,
                       size_t stride, uint32_t thread) {
    const kvc__mat *w = p->w[i];
    kvc__mat part;
    if (w->data != NULL) {
        part = kvc__mat_part(w, g0, g1);
        run_packed(p, &part, out, stride, thread);
        return;
    }
    for (uint32_t g = g0; g < g1; g++, out += KVC__GROUP) {
        float *buf = p->with->group + thread * p->with->tile_floats;
        kvc__mat_group(w, g, (uint8_t *)buf, &part);
        run_packed(p, &part, out, stride, thread);
    }
}

/* ---------------------------------------------------------------- strips */

/* A thread's strips: outputs of so many groups and all rows, for what is done to them at once. The
 * batch's own buffers would be other cores' lines, and rows far apart. */
static float *strip_of(const struct product *p, uint32_t thread, uint32_t i) {
    return p->with->strip + (2 * (size_t)thread + i) * p->with->strip_floats;
}

/* Floats between rows of a strip: an odd number of lines, so that rows don't share few places in
 * the cache. */
static uint32_t strip_stride(uint32_t n_group) {
    return (n_group | 1) * KVC__GROUP;
}

/* Groups of a strip: whole items, and no more than stay in a core's cache. */
static uint32_t strip_groups(const struct product *p) {
    const uint32_t fit = STRIP_FLOATS / (KVC__GROUP * p->act.n);
    const uint32_t n = fit > 0 ? (fit - 1) / p->unit * p->unit : 0;
    return n > p->unit ? n : p->unit;
}

/* Groups [g0, g1) of the one matrix, that fit into a strip: added, or sent to their rows. */
static void finish_groups(const struct product *p, uint32_t g0, uint32_t g1, uint32_t thread) {
    const kvc__kern *kern = p->with->kern;
    const kvc__mat *w = p->w[0];
    const uint32_t n = rows_in(w, g0, g1), stride = strip_stride(g1 - g0);
    const size_t col = (size_t)g0 * KVC__GROUP;
    const bool direct = p->to != NULL && p->act.n == 1;
    float *strip = direct ? p->to[0] + col : strip_of(p, thread, 0);
    run_groups(p, 0, g0, g1, strip, stride, thread);
    for (uint32_t t = 0; t < p->act.n; t++) {
        float *y = strip + (size_t)t * stride;
        if (p->add != NULL) {
            kern->add(p->add + (size_t)t * w->n_row + col, y, n);
            continue;
        }
        if (p->cap > 0.0f) {
            kern->soft_cap(y, p->cap, n);
        }
        if (!direct) {
            memcpy(p->to[t] + col, y, n * sizeof *y);
        }
    }
}

/* Groups [g0, g1) of both matrices of a gated product, that fit into strips. */
static void gate_groups(const struct product *p, uint32_t g0, uint32_t g1, uint32_t thread) {
    const size_t n_row = p->w[0]->n_row, col = (size_t)g0 * KVC__GROUP;
    const uint32_t n = rows_in(p->w[0], g0, g1), stride = strip_stride(g1 - g0);
    const bool rounds = p->rounded.q != NULL;
    float *up = strip_of(p, thread, 1), *gate = rounds ? strip_of(p, thread, 0) : p->out[0] + col;
    const size_t gate_stride = rounds ? stride : n_row;
    for (uint32_t g = g0, stop; g < g1; g = stop) {
        const size_t at = (size_t)(g - g0) * KVC__GROUP;
        stop = g + p->step < g1 ? g + p->step : g1;
        run_groups(p, 0, g, stop, gate + at, gate_stride, thread);
        run_groups(p, 1, g, stop, up + at, stride, thread);
    }
    for (uint32_t t = 0; t < p->act.n; t++) {
        float *y = gate + t * gate_stride;
        p->gate(y, up + (size_t)t * stride, n);
        if (rounds) {
            const size_t at = t * n_row + col, block = 2 * (at / KVC__BLOCK);
            p->with->kern->quantize(y, n, p->rounded.q + at, p->rounded.d + block,
                                    p->rounded.sum + block);
        }
    }
}

/* Does items [first, end) strip by strip. */
static void each_strip(const struct product *p, uint32_t first, uint32_t end, uint32_t thread,
                       void (*fn)(const struct product *, uint32_t g0, uint32_t g1,
                                  uint32_t thread)) {
    const uint32_t last = end * p->unit, take = strip_groups(p);
    const uint32_t g1 = last < p->w[0]->n_group ? last : p->w[0]->n_group;
    for (uint32_t g = first * p->unit; g < g1; g += take) {
        fn(p, g, g1 - g < take ? g1 : g + take, thread);
    }
}

/* ---------------------------------------------------------------- items */

static void finish_span(void *arg, uint32_t first, uint32_t end, uint32_t thread) {
    each_strip(arg, first, end, thread, finish_groups);
}

static void gate_span(void *arg, uint32_t first, uint32_t end, uint32_t thread) {
    each_strip(arg, first, end, thread, gate_groups);
}

static void plain_span(void *arg, uint32_t first, uint32_t end, uint32_t thread) {
    const struct product *p = arg;
    for (uint32_t i = 0; first < end; i++) {
        const uint32_t stop = end < p->first[i + 1] ? end : p->first[i + 1];
        if (first >= stop) {
            continue;
        }
        const kvc__mat *w = p->w[i];
        const uint32_t g0 = (first - p->first[i]) * p->unit, g = (stop - p->first[i]) * p->unit;
        run_groups(p, i, g0, g < w->n_group ? g : w->n_group, p->out[i] + (size_t)g0 * KVC__GROUP,
                   w->n_row, thread);
        first = stop;
    }
}

/* ---------------------------------------------------------------- parts of the rows */

/* Rows [t0, t0 + n) of activations. */
static kvc__act act_part(const kvc__act *a, uint32_t t0, uint32_t n) {
    const size_t value = (size_t)t0 * a->n_col, block = 2 * (value / KVC__BLOCK);
    return (kvc__act){.n = n,
                      .n_col = a->n_col,
                      .f = a->f + t0 * a->f_stride,
                      .f_stride = a->f_stride,
                      .q = a->q + value,
                      .d = a->d + block,
                      .sum = a->sum + block};
}

/* First row of part i: whole tiles, shared out evenly. */
static uint32_t part_begin(const struct product *p, uint32_t i) {
    const uint32_t n = p->act.n, tiles = (n + TILE_ROWS - 1) / TILE_ROWS;
    const uint32_t row = tiles * i / p->n_part * TILE_ROWS;
    return row < n ? row : n;
}

/* Some items of one part of the rows: the product as if there were no others. */
static void part_span(const struct product *p, uint32_t i, uint32_t first, uint32_t end,
                      uint32_t thread) {
    const uint32_t t0 = part_begin(p, i), n = part_begin(p, i + 1) - t0;
    struct product part = *p;
    part.act = act_part(&p->act, t0, n);
    for (uint32_t k = 0; k < 3 && p->out[k] != NULL; k++) {
        part.out[k] += (size_t)t0 * p->w[k]->n_row;
    }
    if (p->add != NULL) {
        part.add += (size_t)t0 * p->w[0]->n_row;
    }
    if (p->rounded.q != NULL) {
        part.rounded = act_part(&p->rounded, t0, n);
    }
    p->span(&part, first, end, thread);
}

static void parts_span(void *arg, uint32_t first, uint32_t end, uint32_t thread) {
    const struct product *p = arg;
    while (first < end) {
        const uint32_t i = first / p->n_item, item0 = i * p->n_item;
        const uint32_t stop = end - item0 < p->n_item ? end : item0 + p->n_item;
        part_span(p, i, first - item0, stop - item0, thread);
        first = stop;
    }
}

/* Runs n_item items. Many rows are divided among the threads, since those that a thread has just
 * rounded or normed lie in its cache: phases over rows are shared out in the same order. Weights
 * that are packed at each use are packed once, for all rows. */
static void run(struct product *p, uint32_t n_item, kvc__pool_fn span) {
    const uint32_t n = p->act.n / PART_ROWS, threads = kvc__pool_n_thread(p->with->pool);
    const uint32_t most = threads < MOST_PARTS ? threads : MOST_PARTS;
    p->n_part = n < most ? n : most;
    if (p->n_part < 2 || p->w[0]->data == NULL) {
        kvc__pool_run(p->with->pool, n_item, span, p);
        return;
    }
    p->span = span;
    p->n_item = n_item;
    kvc__pool_run(p->with->pool, n_item * p->n_part, parts_span, p);
}

/* ---------------------------------------------------------------- products */

static struct product product_of(const kvc__products *with, const kvc__act *act, bool int8,
                                 uint32_t n, const kvc__mat *const *w) {
    struct product p = {.with = with, .int8 = int8, .act = *act, .unit = 1, .step = 1};
    for (uint32_t i = 0; i < n; i++) {
        p.w[i] = w[i];
        if (!int8 || !kvc__mat_quantised(w[i]->type)) {
            p.unit = p.step = KVC__MM_F_GROUPS;
        }
    }
    return p;
}

static uint32_t items_of(const struct product *p, const kvc__mat *w) {
    return (w->n_group + p->unit - 1) / p->unit;
}

void kvc__multiply(const kvc__products *with, const kvc__act *act, bool int8, uint32_t n,
                   const kvc__mat *const *w, float *const *out) {
    struct product p = product_of(with, act, int8, n, w);
    for (uint32_t i = 0; i < n; i++) {
        p.out[i] = out[i];
        p.first[i + 1] = p.first[i] + items_of(&p, w[i]);
    }
    run(&p, p.first[n], plain_span);
}

void kvc__multiply_add(const kvc__products *with, const kvc__act *act, bool int8, const kvc__mat *w,
                       float *x) {
    struct product p = product_of(with, act, int8, 1, &w);
    p.add = x;
    run(&p, items_of(&p, w), finish_span);
}

void kvc__multiply_gated(const kvc__products *with, const kvc__act *act, bool int8,
                         const kvc__mat *const w[2], void (*gate)(float *, const float *, uint32_t),
                         float *out, const kvc__act *rounded) {
    const uint32_t block = KVC__BLOCK / KVC__GROUP; /* an item is whole blocks of what is rounded */
    struct product p = product_of(with, act, int8, 2, w);
    p.gate = gate;
    p.out[0] = out;
    if (rounded != NULL) {
        p.rounded = *rounded;
    }
    p.unit = p.unit > block ? p.unit : block;
    run(&p, items_of(&p, w[0]), gate_span);
}

void kvc__multiply_rows(const kvc__products *with, const kvc__act *act, bool int8,
                        const kvc__mat *w, float cap, float *const *to) {
    struct product p = product_of(with, act, int8, 1, &w);
    p.to = to;
    p.cap = cap;
    kvc__pool_run(with->pool, items_of(&p, w), finish_span, &p);
}

/* ---------------------------------------------------------------- scratch */

bool kvc__products_init(kvc__products *p, kvc__mem *mem, const kvc__kern *kern, kvc__pool *pool,
                        uint32_t n_batch, size_t tile_bytes, bool packs) {
    const size_t n = kvc__pool_n_thread(pool);
    const size_t least = (size_t)n_batch * strip_stride(KVC__MM_F_GROUPS);
    *p = (kvc__products){.kern = kern,
                         .pool = pool,
                         .tile_floats = (tile_bytes / sizeof(float) + 15) & ~(size_t)15,
                         .strip_floats = least > STRIP_FLOATS ? least : STRIP_FLOATS};
    p->tile = kvc__alloc_n(mem, n * p->tile_floats, sizeof(float));
    p->strip = kvc__alloc_n(mem, n * 2 * p->strip_floats, sizeof(float));
    if (packs) {
        p->group = kvc__alloc_n(mem, n * p->tile_floats, sizeof(float));
    }
    return p->tile != NULL && p->strip != NULL && (p->group != NULL || !packs);
}

void kvc__products_free(kvc__products *p, kvc__mem *mem) {
    const size_t n = p->pool != NULL ? kvc__pool_n_thread(p->pool) * sizeof(float) : 0;
    kvc__free(mem, p->tile, n * p->tile_floats);
    kvc__free(mem, p->group, n * p->tile_floats);
    kvc__free(mem, p->strip, n * 2 * p->strip_floats);
    *p = (kvc__products){0};
}
