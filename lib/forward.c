/* SPDX-License-Identifier: MIT
 * forward.c: the model's definition, read from top to bottom: embedding, layers of attention and
 * feed-forward, final norm, head. Between projection and output, a layer's rows go through
 * attention page by page, and the cache's clock ticks there. */
#include "forward.h"

#include "os.h"

#include <string.h>

/* ---------------------------------------------------------------- products */

/* Tokens that a part has at least. Each part reads the weights anew: in pairs, with two threads,
 * parts of 32 tokens gained nothing, of 64 two hundredths, of 256 six. */
#define PART_TOKENS 64u
#define TILE_TOKENS 8u /* parts are whole tiles of tokens, but for the last */

/* Floats of a strip, see strip_of(): two of them and a group's weights stay in a core's own cache.
 */
#define STRIP_FLOATS 16384u

/* Some matrices that share their input: one phase over all their row groups, with what can be done
 * to a part of the outputs while it is at hand. */
struct product {
    const kvc__kern *kern;
    const kvc__mat *w[3];
    float *out[3];
    uint32_t first[4]; /* first item of each matrix, and one past */
    uint32_t unit;     /* groups of an item */
    uint32_t step;     /* groups that the two of a gated product take in turn */
    bool quantised;
    const kvc__act *act;
    kvc__work *work; /* for scratch of a thread */
    float *add;      /* of one matrix: what its product is added to; out isn't written then */
    void (*gate)(float *gate, const float *up, uint32_t n); /* of gated products */
    float cap;                                              /* of logits, 0: none */
    float *const *to;  /* of the head: [act->n] where each row of logits goes */
    kvc__act *gated;   /* what they give, rounded to int8; NULL: floats in out[0] */
    kvc__pool_fn span; /* does n_item items for all of act's rows */
    uint32_t n_item;
    uint32_t each; /* rows of a part */
};

/* Rows of w in its groups [g0, g1). */
static uint32_t rows_in(const kvc__mat *w, uint32_t g0, uint32_t g1) {
    const uint32_t end = g1 * KVC__GROUP;
    return (end < w->n_row ? end : w->n_row) - g0 * KVC__GROUP;
}

static void run_packed(const struct product *p, const kvc__mat *w, uint32_t n_group, float *out,
                       size_t stride, uint32_t thread) {
    if (p->quantised && kvc__mat_quantised(w->type)) {
        p->kern->mm_q(w, 0, n_group, p->act, out, stride);
    } else {
        p->kern->mm_f(w, 0, n_group, p->act, out, stride,
                      p->work->tile + thread * p->work->tile_floats);
    }
}

/* out[act->n, stride] = act × the rows of w[i] in groups [g0, g1), the first of them in column 0.
 */
static void run_groups(const struct product *p, uint32_t i, uint32_t g0, uint32_t g1, float *out,
                       size_t stride, uint32_t thread) {
    const kvc__mat *w = p->w[i];
    kvc__mat part = *w;
    if (w->data != NULL) {
        part.n_row = rows_in(w, g0, g1);
        part.n_group = g1 - g0;
        part.data += g0 * w->stride;
        run_packed(p, &part, part.n_group, out, stride, thread);
        return;
    }
    for (uint32_t g = g0; g < g1; g++, out += KVC__GROUP) {
        uint8_t *buf = (uint8_t *)(p->work->group + thread * p->work->tile_floats);
        kvc__mat_group(w, g, buf, &part);
        run_packed(p, &part, 1, out, stride, thread);
    }
}

/* A thread's strips: products of so many groups and all rows, for what is done to them at once. */
static float *strip_of(const struct product *p, uint32_t thread, uint32_t i) {
    return p->work->strip + (2 * (size_t)thread + i) * p->work->strip_floats;
}

/* Groups of a strip: whole items, and no more than stay in a core's cache. */
static uint32_t strip_groups(const struct product *p) {
    const uint32_t n = STRIP_FLOATS / (KVC__GROUP * p->act->n) / p->unit * p->unit;
    return n > p->unit ? n : p->unit;
}

/* add += act × the groups [g0, g1) of the one matrix. */
static void added_groups(const struct product *p, uint32_t g0, uint32_t g1, uint32_t thread) {
    const kvc__mat *w = p->w[0];
    float *strip = strip_of(p, thread, 0);
    const uint32_t take = strip_groups(p), stride = take * KVC__GROUP;
    for (uint32_t g = g0; g < g1; g += take) {
        const uint32_t stop = g + take < g1 ? g + take : g1, n = rows_in(w, g, stop);
        run_groups(p, 0, g, stop, strip, stride, thread);
        float *to = p->add + (size_t)g * KVC__GROUP;
        for (uint32_t t = 0; t < p->act->n; t++) {
            p->kern->add(to + (size_t)t * w->n_row, strip + (size_t)t * stride, n);
        }
    }
}

/* Logits of the groups [g0, g1). Rows that lie a multiple of 4 KiB apart would share few places in
 * a cache, so several are computed side by side in a strip. */
static void head_groups(const struct product *p, uint32_t g0, uint32_t g1, uint32_t thread) {
    const kvc__mat *w = p->w[0];
    const bool one = p->act->n == 1;
    const uint32_t take = strip_groups(p), stride = take * KVC__GROUP;
    for (uint32_t g = g0; g < g1; g += take) {
        const uint32_t stop = g + take < g1 ? g + take : g1, n = rows_in(w, g, stop);
        const size_t col = (size_t)g * KVC__GROUP;
        float *strip = one ? p->to[0] + col : strip_of(p, thread, 0);
        run_groups(p, 0, g, stop, strip, stride, thread);
        for (uint32_t t = 0; t < p->act->n; t++) {
            float *y = strip + (size_t)t * stride;
            if (p->cap > 0.0f) {
                p->kern->soft_cap(y, p->cap, n);
            }
            if (!one) {
                memcpy(p->to[t] + col, y, n * sizeof *y);
            }
        }
    }
}

static void head_span(void *arg, uint32_t first, uint32_t end, uint32_t thread) {
    const struct product *p = arg;
    const uint32_t g1 = end * p->unit, n = p->w[0]->n_group;
    head_groups(p, first * p->unit, g1 < n ? g1 : n, thread);
}

static void product_span(void *arg, uint32_t first, uint32_t end, uint32_t thread) {
    const struct product *p = arg;
    for (uint32_t i = 0; first < end; i++) {
        const uint32_t stop = end < p->first[i + 1] ? end : p->first[i + 1];
        if (first >= stop) {
            continue;
        }
        const kvc__mat *w = p->w[i];
        const uint32_t g0 = (first - p->first[i]) * p->unit, g = (stop - p->first[i]) * p->unit;
        const uint32_t g1 = g < w->n_group ? g : w->n_group;
        if (p->add != NULL) {
            added_groups(p, g0, g1, thread);
        } else {
            run_groups(p, i, g0, g1, p->out[i] + (size_t)g0 * KVC__GROUP, w->n_row, thread);
        }
        first = stop;
    }
}

/* Groups [g0, g1) of both matrices, which lie side by side, for one strip. */
static void gated_groups(const struct product *p, uint32_t g0, uint32_t g1, uint32_t thread) {
    const size_t n_row = p->w[0]->n_row, col = (size_t)g0 * KVC__GROUP;
    const uint32_t n = rows_in(p->w[0], g0, g1), width = (g1 - g0) * KVC__GROUP;
    float *up = strip_of(p, thread, 1), *gate = strip_of(p, thread, 0);
    size_t stride = width;
    if (p->gated == NULL) {
        gate = p->out[0] + col;
        stride = n_row;
    }
    for (uint32_t g = g0, stop; g < g1; g = stop) {
        const size_t at = (size_t)(g - g0) * KVC__GROUP;
        stop = g + p->step < g1 ? g + p->step : g1;
        run_groups(p, 0, g, stop, gate + at, stride, thread);
        run_groups(p, 1, g, stop, up + at, width, thread);
    }
    for (uint32_t t = 0; t < p->act->n; t++) {
        float *y = gate + t * stride;
        p->gate(y, up + (size_t)t * width, n);
        if (p->gated != NULL) {
            const size_t at = t * n_row + col, block = 2 * (at / KVC__BLOCK);
            p->kern->quantize(y, n, p->gated->q + at, p->gated->d + block, p->gated->sum + block);
        }
    }
}

static void gated_span(void *arg, uint32_t first, uint32_t end, uint32_t thread) {
    const struct product *p = arg;
    const uint32_t last = end * p->unit, take = strip_groups(p);
    const uint32_t g1 = last < p->w[0]->n_group ? last : p->w[0]->n_group;
    for (uint32_t g = first * p->unit; g < g1; g += take) {
        gated_groups(p, g, g + take < g1 ? g + take : g1, thread);
    }
}

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

/* Some items of one part of the rows: the product as if there were no others. */
static void part_span(const struct product *p, uint32_t t0, uint32_t first, uint32_t end,
                      uint32_t thread) {
    const uint32_t n = p->act->n - t0 < p->each ? p->act->n - t0 : p->each;
    const kvc__act act = act_part(p->act, t0, n);
    struct product part = *p;
    kvc__act gated;
    part.act = &act;
    for (uint32_t i = 0; i < 3 && p->out[i] != NULL; i++) {
        part.out[i] += (size_t)t0 * p->w[i]->n_row;
    }
    if (p->add != NULL) {
        part.add += (size_t)t0 * p->w[0]->n_row;
    }
    if (p->gated != NULL) {
        gated = act_part(p->gated, t0, n);
        part.gated = &gated;
    }
    p->span(&part, first, end, thread);
}

static void parts_span(void *arg, uint32_t first, uint32_t end, uint32_t thread) {
    const struct product *p = arg;
    while (first < end) {
        const uint32_t i = first / p->n_item, item0 = i * p->n_item;
        const uint32_t stop = end - item0 < p->n_item ? end : item0 + p->n_item;
        part_span(p, i * p->each, first - item0, stop - item0, thread);
        first = stop;
    }
}

/* Runs a product of n_item items. A prompt's rows are divided among the threads, since those that a
 * thread has just rounded or normed lie in its cache: phases over rows are shared out in the same
 * order. Weights that are packed at each use are packed once, for all rows. */
static void run_product(kvc_model *m, struct product *p, uint32_t n_item, kvc__pool_fn span) {
    const uint32_t n = p->act->n, threads = kvc__pool_n_thread(m->pool);
    uint32_t n_part = n / PART_TOKENS < threads ? n / PART_TOKENS : threads;
    if (n_part < 2 || p->w[0]->data == NULL) {
        kvc__pool_run(m->pool, n_item, span, p);
        return;
    }
    p->span = span;
    p->n_item = n_item;
    p->each = ((n + n_part - 1) / n_part + TILE_TOKENS - 1) / TILE_TOKENS * TILE_TOKENS;
    n_part = (n + p->each - 1) / p->each;
    kvc__pool_run(m->pool, n_item * n_part, parts_span, p);
}

/* A product of n matrices. */
static struct product product_of(kvc_model *m, const kvc__act *act, bool quantised, uint32_t n,
                                 const kvc__mat *const *w, float *const *out) {
    struct product p = {
        .kern = m->kern, .quantised = quantised, .act = act, .unit = 1, .step = 1, .work = m->work};
    for (uint32_t i = 0; i < n; i++) {
        p.w[i] = w[i];
        p.out[i] = out[i];
        if (!quantised || !kvc__mat_quantised(w[i]->type)) {
            p.unit = p.step = KVC__MM_F_GROUPS;
        }
    }
    return p;
}

/* out[i][act->n, n_row] = act × w[i]ᵀ for n matrices; when add is given, add += act × w[0]ᵀ. */
static void multiply(kvc_model *m, const kvc__act *act, bool quantised, uint32_t n,
                     const kvc__mat *const *w, float *const *out, float *add) {
    struct product p = product_of(m, act, quantised, n, w, out);
    p.add = add;
    for (uint32_t i = 0; i < n; i++) {
        p.first[i + 1] = p.first[i] + (w[i]->n_group + p.unit - 1) / p.unit;
    }
    run_product(m, &p, p.first[n], product_span);
}

/* out[0] = gate(act × w[0]ᵀ) × (act × w[1]ᵀ), rounded too when gated isn't NULL: then an item's
 * groups are whole blocks. */
static void multiply_gated(kvc_model *m, const kvc__act *act, bool quantised,
                           const kvc__mat *const *w, float *const *out, kvc__act *gated) {
    struct product p = product_of(m, act, quantised, 2, w, out);
    const uint32_t whole = KVC__BLOCK / KVC__GROUP;
    p.gate = m->arch->gelu ? m->kern->gelu_mul : m->kern->silu_mul;
    p.gated = gated;
    p.unit = p.unit > whole ? p.unit : whole;
    run_product(m, &p, (w[0]->n_group + p.unit - 1) / p.unit, gated_span);
}

/* to[i][n_row] = row i of act × w[0]ᵀ, capped. */
static void multiply_head(kvc_model *m, const kvc__act *act, bool quantised,
                          const kvc__mat *const *w, float *const *to) {
    struct product p = product_of(m, act, quantised, 1, w, (float *const[]){NULL});
    p.to = to;
    p.cap = m->hp.logit_cap;
    kvc__pool_run(m->pool, (w[0]->n_group + p.unit - 1) / p.unit, head_span, &p);
}

/* ---------------------------------------------------------------- rows */

static bool wants_int8(uint32_t compute, const kvc__mat *w) {
    return compute == KVC_COMPUTE_INT8 && kvc__mat_quantised(w->type);
}

/* Work on rows that are independent of each other. */
struct rows {
    kvc_model *m;
    void (*fn)(struct rows *r, uint32_t row, uint32_t thread);
    const kvc__part *part;
    const kvc__layer *layer;
    const float *w;
    kvc__act act;
    float *x, *y;
    uint32_t n, width;
    uint32_t each;       /* rows of an item */
    bool quantise;       /* y is wanted in int8 too, */
    bool quantised_only; /* or nothing else of it */
};

static void rows_span(void *arg, uint32_t first, uint32_t end, uint32_t thread) {
    struct rows *r = arg;
    for (uint32_t i = first * r->each; i < r->n && i < end * r->each; i++) {
        r->fn(r, i, thread);
    }
}

/* A row takes about as long as handing it out does. */
static void each_row(struct rows *r) {
    r->each = r->n <= 2 ? r->n : (r->n + 15) / 16;
    r->each = r->each > 8 ? 8 : r->each;
    kvc__pool_run(r->m->pool, (r->n + r->each - 1) / r->each, rows_span, r);
}

/* Row i of the activations, y, in int8. */
static void quantise(struct rows *r, uint32_t i, const float *y) {
    const size_t at = (size_t)i * r->width, block = 2 * (at / KVC__BLOCK);
    r->m->kern->quantize(y, r->width, r->act.q + at, r->act.d + block, r->act.sum + block);
}

static void quantise_row(struct rows *r, uint32_t i, uint32_t thread) {
    (void)thread;
    if (r->quantise) {
        quantise(r, i, r->y + (size_t)i * r->width);
    }
}

/* Floats that nobody reads stay in the thread's cache: lines of y cost more to take back from the
 * core that wrote to them last than the norm does. */
static void norm_row(struct rows *r, uint32_t i, uint32_t thread) {
    const size_t at = (size_t)i * r->width;
    const kvc__work *w = r->m->work;
    float *y = r->quantised_only ? w->row + thread * w->widest : r->y + at;
    r->m->kern->rms_norm(r->x + at, r->w, r->width, r->m->hp.norm_eps, y);
    if (r->quantise) {
        quantise(r, i, y);
    }
}

/* x += the norm of y, where the architecture norms what a branch adds. */
static void add_normed_row(struct rows *r, uint32_t i, uint32_t thread) {
    (void)thread;
    float *x = r->x + (size_t)i * r->width, *y = r->y + (size_t)i * r->width;
    r->m->kern->rms_norm(y, r->w, r->width, r->m->hp.norm_eps, y);
    r->m->kern->add(x, y, r->width);
}

/* Biases of a token's queries, keys and values. */
static void bias_row(struct rows *r, uint32_t i, uint32_t thread) {
    (void)thread;
    const kvc__hparams *hp = &r->m->hp;
    const kvc__attend *a = &r->m->work->attend;
    const uint32_t q = hp->n_head * hp->dim_k, k = hp->n_head_kv * hp->dim_k;
    const uint32_t v = hp->n_head_kv * hp->dim_v;
    r->m->kern->add(a->q + (size_t)i * q, r->layer->q_bias, q);
    r->m->kern->add(a->k + (size_t)i * k, r->layer->k_bias, k);
    r->m->kern->add(a->v + (size_t)i * v, r->layer->v_bias, v);
}

/* The norm of each head of a token's queries and keys. */
static void head_norms_row(struct rows *r, uint32_t i, uint32_t thread) {
    (void)thread;
    const kvc__hparams *hp = &r->m->hp;
    const kvc__attend *a = &r->m->work->attend;
    for (uint32_t h = 0; h < hp->n_head + hp->n_head_kv; h++) {
        const bool is_q = h < hp->n_head;
        const size_t at =
            is_q ? (size_t)i * hp->n_head + h : (size_t)i * hp->n_head_kv + h - hp->n_head;
        float *x = (is_q ? a->q : a->k) + at * hp->dim_k;
        r->m->kern->rms_norm(x, is_q ? r->layer->q_norm : r->layer->k_norm, hp->dim_k, hp->norm_eps,
                             x);
    }
}

static struct rows rows_of(kvc_model *m, uint32_t n, uint32_t width, float *x, float *y) {
    struct rows r = {.m = m, .x = x, .y = y, .n = n, .width = width};
    r.act = m->work->rounded[0];
    r.act.n = n;
    r.act.n_col = width;
    r.act.f = y;
    r.act.f_stride = width;
    return r;
}

/* The activations of n rows at y, [n, width], in the forms in which n_mat matrices want them. */
static struct rows act_of(kvc_model *m, uint32_t n, uint32_t width, float *x, float *y,
                          uint32_t compute, uint32_t n_mat, const kvc__mat *const *w) {
    struct rows r = rows_of(m, n, width, x, y);
    uint32_t rounded = 0;
    for (uint32_t i = 0; i < n_mat; i++) {
        rounded += wants_int8(compute, w[i]) ? 1 : 0;
    }
    r.quantise = rounded > 0;
    r.quantised_only = rounded == n_mat;
    return r;
}

static void norm(struct rows *r, const float *w) {
    r->w = w;
    r->fn = norm_row;
    each_row(r);
}

/* x += the norm of y, when the architecture has weights for that; else x has y already. */
static void add_normed(kvc_model *m, uint32_t n, float *x, float *y, const float *w) {
    if (w != NULL) {
        struct rows r = rows_of(m, n, m->hp.n_embd, x, y);
        r.w = w;
        r.fn = add_normed_row;
        each_row(&r);
    }
}

static const kvc__part *part_of(const kvc__part *p, uint32_t row) {
    while (row >= p->row0 + p->n) {
        p++;
    }
    return p;
}

static void turn_row(struct rows *r, uint32_t i, uint32_t thread) {
    const kvc__part *p = part_of(r->part, i);
    (void)thread;
    kvc__attend_turn(&r->m->work->attend, p->stack, i, p->pos0 + (int32_t)(i - p->row0));
}

/* What stands between a layer's projections and attention. */
static void finish_projections(kvc_model *m, uint32_t n, uint32_t il) {
    const kvc__layer *layer = &m->layer[il];
    kvc__attend *a = &m->work->attend;
    struct rows r = {.m = m, .n = n, .layer = layer, .part = m->work->part};
    if (layer->q_bias != NULL) {
        r.fn = bias_row;
        each_row(&r);
    }
    if (layer->q_norm != NULL) {
        r.fn = head_norms_row;
        each_row(&r);
    }
    a->layer = il;
    a->turned = n >= PART_TOKENS;
    if (a->turned) {
        r.fn = turn_row;
        each_row(&r);
    }
}

/* ---------------------------------------------------------------- attention and the clock */

static bool ends(const kvc__part *p, uint32_t t) {
    return (p->flag[t] & KVC__TOKEN_ENDS) != 0;
}

uint32_t kvc__part_length(const kvc__stack *stack, const uint8_t *flag, int32_t pos0, uint32_t n) {
    if (stack->has_end == 0) {
        return n;
    }
    for (uint32_t t = 0; t < n; t++) {
        if (kvc__stack_cuts(stack, pos0 + (int32_t)t, (flag[t] & KVC__TOKEN_ENDS) != 0)) {
            return t + 1;
        }
    }
    return n;
}

/* Whether rows that a policy is shown must end with token t: what follows is of another phase. */
static bool phase_ends(const kvc__part *p, uint32_t t) {
    if ((p->stack->has_append == 0 && p->stack->select == NULL) || t + 1 == p->n) {
        return false;
    }
    const uint32_t phase = kvc__token_phase(p->flag[t]), next = kvc__token_phase(p->flag[t + 1]);
    return phase == KVC_PHASE_PROMPT_END || (phase == KVC_PHASE_DECODE && next != phase);
}

/* The rows of a part that come next: to the end of their page, to a tick, or to another phase. */
static uint32_t piece_length(const kvc__part *p) {
    const int32_t pos = p->pos0 + (int32_t)p->cursor;
    uint32_t n = KVC_PAGE - (uint32_t)pos % KVC_PAGE;
    n = n < p->n - p->cursor ? n : p->n - p->cursor;
    for (uint32_t t = 0; t < n; t++) {
        if (kvc__stack_ticks(p->stack, pos + (int32_t)t, ends(p, p->cursor + t)) ||
            phase_ends(p, p->cursor + t)) {
            return t + 1;
        }
    }
    return n;
}

static kvc_step step_of(const kvc__part *p, uint32_t first, uint32_t n) {
    return (kvc_step){.struct_size = sizeof(kvc_step),
                      .n = n,
                      .pos = p->pos0 + (int32_t)first,
                      .phase = kvc__token_phase(p->flag[first + n - 1]),
                      .replay = p->pos0 + (int32_t)first < p->new_pos,
                      .last = p->last && first + n == p->n,
                      .token = p->token + first};
}

struct seal {
    kvc__store *store;
    kvc__attend *attend;
    uint32_t layer;
    atomic_int failed; /* the lowest head's: (head × 2 + put) × 64 − status, 0: none */
};

static void seal_head(struct seal *s, uint32_t head, uint32_t thread) {
    const char *call;
    int32_t rc =
        kvc__store_seal_lane(s->store, s->layer, head, &s->attend->thread[thread].codec, &call);
    if (rc == KVC_OK) {
        return;
    }
    const int where = (int)head * 2 + (call[0] == 'p');
    const int mine = where * 64 + (rc < 0 && rc > -64 ? -rc : -KVC_E_POLICY);
    int seen = atomic_load(&s->failed);
    while ((seen == 0 || mine < seen) && !atomic_compare_exchange_weak(&s->failed, &seen, mine)) {
    }
}

static void seal_span(void *arg, uint32_t first, uint32_t end, uint32_t thread) {
    for (uint32_t head = first; head < end; head++) {
        seal_head(arg, head, thread);
    }
}

/* Seals a layer's full open pages. */
static int32_t seal(kvc_model *m, const kvc__part *p, uint32_t layer, int32_t pos) {
    struct seal s = {.store = p->store, .attend = &m->work->attend, .layer = layer};
    atomic_init(&s.failed, 0);
    KVC_TRY(kvc__store_seal_begin(p->store, layer, p->err));
    kvc__pool_run(m->pool, m->hp.n_head_kv, seal_span, &s);
    kvc__store_seal_end(p->store, layer);
    const int failed = atomic_load(&s.failed);
    if (failed != 0) {
        const uint32_t where = (uint32_t)failed / 64;
        return kvc__stack_blame(p->stack, -(failed % 64), where % 2 != 0 ? "put" : "encode", layer,
                                where / 2, pos, p->err);
    }
    return KVC_OK;
}

/* What happens in a layer when a piece is through attention: sealing, ticks, freeing. */
static int32_t finish_piece(kvc_model *m, kvc__part *p, uint32_t layer, uint32_t n) {
    const int32_t last = p->pos0 + (int32_t)(p->cursor + n) - 1;
    const bool end = ends(p, p->cursor + n - 1);
    const bool full = (last + 1) % (int32_t)KVC_PAGE == 0;
    if (full) {
        KVC_TRY(seal(m, p, layer, last));
    }
    if (p->stack->has_page_end != 0 && kvc__stack_ticks(p->stack, last, end)) {
        const kvc_step step = step_of(p, p->cursor, n);
        const uint64_t t0 = kvc__clock_ns();
        KVC_TRY(kvc__stack_page_end(p->stack, &step, layer, end, p->err));
        m->work->policy_ns += kvc__clock_ns() - t0;
        if ((p->stack->flags & KVC_PLAN_EVICTS) != 0) {
            int32_t rc = kvc__store_settle(p->store, layer);
            if (rc < 0) {
                return kvc__stack_blame(p->stack, rc, "move", layer, 0, last, p->err);
            }
        }
    }
    if (full && kvc__stack_hides(p->stack, layer)) {
        /* One page more than queries can see is kept, so that going back a little needs no long
         * replay. */
        const int32_t page = (int32_t)KVC_PAGE, floor = last + 1 > page ? last + 1 - page : 0;
        int32_t rc = kvc__store_free_unseen(p->store, layer, floor);
        if (rc < 0) {
            return kvc__stack_blame(p->stack, rc, "visible", layer, 0, floor, p->err);
        }
    }
    return KVC_OK;
}

/* Cuts the next piece from every part that has rows left. */
static uint32_t next_pieces(kvc__attend *a, kvc__part *part, uint32_t n_part) {
    a->n_piece = 0;
    for (uint32_t i = 0; i < n_part; i++) {
        kvc__part *p = &part[i];
        if (p->status < 0 || p->cursor == p->n) {
            continue;
        }
        const uint32_t n = piece_length(p);
        a->piece[a->n_piece++] = (kvc__piece){.stack = p->stack,
                                              .store = p->store,
                                              .row0 = p->row0 + p->cursor,
                                              .n = n,
                                              .pos0 = p->pos0 + (int32_t)p->cursor,
                                              .phase = kvc__token_phase(p->flag[p->cursor + n - 1]),
                                              .part = i,
                                              .more = p->cursor + n < p->n};
    }
    return a->n_piece;
}

/* Attention of one layer for all parts, piece by piece. */
static void attend_layer(kvc_model *m, uint32_t layer, kvc__part *part, uint32_t n_part) {
    kvc__attend *a = &m->work->attend;
    for (uint32_t i = 0; i < n_part; i++) {
        part[i].cursor = 0;
    }
    while (next_pieces(a, part, n_part) > 0) {
        kvc__attend_run(a, layer);
        for (uint32_t i = 0; i < a->n_piece; i++) {
            const kvc__piece *pc = &a->piece[i];
            kvc__part *p = &part[pc->part];
            if (pc->status < 0) {
                p->status = kvc__stack_blame(p->stack, pc->status, pc->call, layer, pc->head,
                                             pc->pos0, p->err);
                continue;
            }
            p->status = finish_piece(m, p, layer, pc->n);
            p->cursor += pc->n;
        }
    }
}

/* ---------------------------------------------------------------- a layer, and the whole */

static void layer_attention(kvc_model *m, uint32_t il, uint32_t n_part, uint32_t n,
                            uint32_t compute) {
    kvc__work *w = m->work;
    const kvc__layer *l = &m->layer[il];
    const kvc__hparams *hp = &m->hp;
    const kvc__mat *const qkv[] = {&l->q, &l->k, &l->v}, *const o[] = {&l->o};
    float *const to[] = {w->attend.q, w->attend.k, w->attend.v};
    struct rows r = act_of(m, n, hp->n_embd, w->x, w->h, compute, 3, qkv);
    norm(&r, l->attn_norm);
    multiply(m, &r.act, r.quantise, 3, qkv, to, NULL);
    finish_projections(m, n, il);

    const uint64_t t0 = kvc__clock_ns();
    attend_layer(m, il, w->part, n_part);
    w->attention_ns += kvc__clock_ns() - t0;

    r = act_of(m, n, hp->n_head * hp->dim_v, NULL, w->attend.out, compute, 1, o);
    r.fn = quantise_row;
    each_row(&r);
    multiply(m, &r.act, r.quantise, 1, o, &w->h, l->attn_post == NULL ? w->x : NULL);
    add_normed(m, n, w->x, w->h, l->attn_post);
}

static void layer_feed_forward(kvc_model *m, uint32_t il, uint32_t n, uint32_t compute) {
    kvc__work *w = m->work;
    const kvc__layer *l = &m->layer[il];
    const kvc__hparams *hp = &m->hp;
    const kvc__mat *const gate_up[] = {&l->gate, &l->up}, *const down[] = {&l->down};
    struct rows r = act_of(m, n, hp->n_embd, w->x, w->h, compute, 2, gate_up);
    norm(&r, l->ffn_norm);
    const bool rounds = wants_int8(compute, &l->down);
    kvc__act gated = w->rounded[1];
    gated.n = n;
    gated.n_col = hp->n_ff;
    gated.f = w->gate;
    gated.f_stride = hp->n_ff;
    multiply_gated(m, &r.act, r.quantise, gate_up, (float *const[]){w->gate, NULL},
                   rounds ? &gated : NULL);
    multiply(m, &gated, rounds, 1, down, &w->h, l->ffn_post == NULL ? w->x : NULL);
    add_normed(m, n, w->x, w->h, l->ffn_post);
}

static void embed_row(struct rows *r, uint32_t i, uint32_t thread) {
    (void)thread;
    const kvc__part *p = part_of(r->part, i);
    float *x = r->x + (size_t)i * r->width;
    kvc__mat_row(&r->m->embd, (uint32_t)p->token[i - p->row0], x);
    if (r->m->hp.embd_scale != 1.0f) {
        r->m->kern->scale(x, r->m->hp.embd_scale, r->width);
    }
}

/* Logits of up to KVC__HEAD_ROWS gathered rows at h. */
static void head_rows(kvc_model *m, uint32_t n, float *const *to, uint32_t compute) {
    kvc__work *w = m->work;
    const kvc__mat *const head[] = {&m->head};
    struct rows r = act_of(m, n, m->hp.n_embd, w->h, w->h, compute, 1, head);
    norm(&r, m->out_norm);
    multiply_head(m, &r.act, r.quantise, head, to);
}

/* Logits of the tokens that were asked for. */
static void output(kvc_model *m, uint32_t n_part, uint32_t compute) {
    kvc__work *w = m->work;
    const size_t embd = m->hp.n_embd;
    float *to[KVC__HEAD_ROWS];
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_part; i++) {
        const kvc__part *p = &w->part[i];
        for (uint32_t t = 0; p->status == KVC_OK && t < p->n; t++) {
            if (p->want[t] < 0) {
                continue;
            }
            memcpy(w->h + n * embd, w->x + (p->row0 + t) * embd, embd * sizeof(float));
            to[n++] = p->logits + (size_t)p->want[t] * m->hp.n_vocab;
            if (n == KVC__HEAD_ROWS) {
                head_rows(m, n, to, compute);
                n = 0;
            }
        }
    }
    if (n > 0) {
        head_rows(m, n, to, compute);
    }
}

/* Marks the parts whose caller cancelled; false when none is left to compute. */
static bool any_left(kvc__part *part, uint32_t n_part) {
    bool left = false;
    for (uint32_t i = 0; i < n_part; i++) {
        kvc__part *p = &part[i];
        if (p->status == KVC_OK && atomic_load(p->cancel) != 0) {
            p->status = kvc__fail(p->err, KVC_E_CANCELLED, "the call was cancelled");
        }
        left |= p->status == KVC_OK;
    }
    return left;
}

void kvc__forward(kvc_model *m, uint32_t n_part, uint32_t compute) {
    kvc__work *w = m->work;
    uint32_t n = 0;
    for (uint32_t i = 0; i < n_part; i++) {
        w->part[i].row0 = n;
        w->part[i].status = KVC_OK;
        n += w->part[i].n;
    }
    struct rows r = rows_of(m, n, m->hp.n_embd, w->x, w->x);
    r.fn = embed_row;
    r.part = w->part;
    each_row(&r);
    for (uint32_t il = 0; il < m->hp.n_layer; il++) {
        if (!any_left(w->part, n_part)) {
            return;
        }
        layer_attention(m, il, n_part, n, compute);
        layer_feed_forward(m, il, n, compute);
    }
    output(m, n_part, compute);
}

/* ---------------------------------------------------------------- scratch */

static size_t max3(size_t a, size_t b, size_t c) {
    a = a > b ? a : b;
    return a > c ? a : c;
}

static size_t tile_floats(const kvc_model *m) {
    size_t most = kvc__tile_bytes(&m->head);
    for (uint32_t i = 0; i < m->hp.n_layer; i++) {
        const kvc__layer *l = &m->layer[i];
        most =
            max3(most, max3(kvc__tile_bytes(&l->q), kvc__tile_bytes(&l->k), kvc__tile_bytes(&l->v)),
                 kvc__tile_bytes(&l->o));
        most = max3(
            most,
            max3(kvc__tile_bytes(&l->gate), kvc__tile_bytes(&l->up), kvc__tile_bytes(&l->down)), 0);
    }
    return (most / sizeof(float) + 15) & ~(size_t)15;
}

static int32_t work_create(kvc_model *m, kvc__err *err) {
    kvc__work *w = kvc__alloc(&m->mem, sizeof *w);
    if (w == NULL) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for a batch's scratch");
    }
    m->work = w;
    m->work_free = kvc__work_free;
    const kvc__hparams *hp = &m->hp;
    const size_t n = m->n_batch;
    w->widest = max3(hp->n_embd, hp->n_ff, (size_t)hp->n_head * hp->dim_v);
    w->widest = (w->widest + 31) & ~(size_t)31;
    w->tile_floats = tile_floats(m);
    w->part = kvc__alloc_n(&m->mem, n, sizeof *w->part);
    w->want = kvc__alloc_n(&m->mem, n, sizeof *w->want);
    w->x = kvc__alloc_n(&m->mem, n * hp->n_embd, sizeof(float));
    w->h = kvc__alloc_n(&m->mem, n * hp->n_embd, sizeof(float));
    w->gate = kvc__alloc_n(&m->mem, n * hp->n_ff, sizeof(float));
    w->strip_floats = max3(n * KVC__MM_F_GROUPS * KVC__GROUP, STRIP_FLOATS, 0);
    w->strip =
        kvc__alloc_n(&m->mem, 2 * w->strip_floats * kvc__pool_n_thread(m->pool), sizeof(float));
    w->row = kvc__alloc_n(&m->mem, w->widest * kvc__pool_n_thread(m->pool), sizeof(float));
    bool held = true;
    for (uint32_t i = 0; i < 2; i++) {
        kvc__act *a = &w->rounded[i];
        a->q = kvc__alloc_n(&m->mem, n * w->widest, 1);
        a->d = kvc__alloc_n(&m->mem, n * w->widest / 16, sizeof(float));
        a->sum = kvc__alloc_n(&m->mem, n * w->widest / 16, sizeof(int32_t));
        held &= a->q != NULL && a->d != NULL && a->sum != NULL;
    }
    w->tile = kvc__alloc_n(&m->mem, w->tile_floats * kvc__pool_n_thread(m->pool), sizeof(float));
    if (m->weight == NULL) {
        w->group =
            kvc__alloc_n(&m->mem, w->tile_floats * kvc__pool_n_thread(m->pool), sizeof(float));
        held &= w->group != NULL;
    }
    if (w->part == NULL || w->want == NULL || w->x == NULL || w->h == NULL || w->gate == NULL ||
        w->strip == NULL || w->row == NULL || !held || w->tile == NULL) {
        kvc__work_free(m);
        return kvc__fail(err, KVC_E_NOMEM, "no memory for a batch's scratch; lower n_batch");
    }
    return KVC_OK;
}

int32_t kvc__work_reserve(kvc_model *model, uint32_t n_ctx, bool observe, bool select,
                          kvc__err *err) {
    if (model->work == NULL) {
        KVC_TRY(work_create(model, err));
    }
    return kvc__attend_reserve(&model->work->attend, model, n_ctx, observe, select, err);
}

void kvc__work_free(kvc_model *model) {
    kvc__work *w = model->work;
    if (w == NULL) {
        return;
    }
    const kvc__hparams *hp = &model->hp;
    kvc__mem *m = &model->mem;
    const size_t n = model->n_batch, f = sizeof(float);
    kvc__attend_free(&w->attend, model);
    kvc__free(m, w->part, n * sizeof *w->part);
    kvc__free(m, w->want, n * sizeof *w->want);
    kvc__free(m, w->x, n * hp->n_embd * f);
    kvc__free(m, w->h, n * hp->n_embd * f);
    kvc__free(m, w->gate, n * hp->n_ff * f);
    kvc__free(m, w->strip, 2 * w->strip_floats * kvc__pool_n_thread(model->pool) * f);
    kvc__free(m, w->row, w->widest * kvc__pool_n_thread(model->pool) * f);
    for (uint32_t i = 0; i < 2; i++) {
        kvc__free(m, w->rounded[i].q, n * w->widest);
        kvc__free(m, w->rounded[i].d, n * w->widest / 16 * f);
        kvc__free(m, w->rounded[i].sum, n * w->widest / 16 * sizeof(int32_t));
    }
    kvc__free(m, w->tile, w->tile_floats * kvc__pool_n_thread(model->pool) * f);
    kvc__free(m, w->group,
              w->group != NULL ? w->tile_floats * kvc__pool_n_thread(model->pool) * f : 0);
    kvc__free(m, w, sizeof *w);
    model->work = NULL;
}
