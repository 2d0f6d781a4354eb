/* SPDX-License-Identifier: MIT
 * attend.c: three phases over a layer's pieces. Rows: turn keys and queries unless that is done,
 * append, observe, select. Ranges (attend_range.c): items of one (block, range, some heads); pages
 * that come from a tier are brought by ranges, and there an item takes all blocks, so that a page
 * is unpacked once. Merge: ranges to one result, masses to their columns. */
#include "attend_part.h"

#include <math.h>
#include <string.h>

/* ---------------------------------------------------------------- failures of worker calls */

static const char *const call_name[] = {"visible", "append", "select", "score",
                                        "mix",     "get",    "unpack", "finite"};

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

/* Turns keys and queries of a head in n rows from row0 on. */
static void turn_rows(kvc__attend *a, uint32_t head, uint32_t row0, uint32_t n, int32_t pos0) {
    const kvc__hparams *hp = &a->model->hp;
    const uint32_t group = group_of(a);
    for (uint32_t t = 0; t < n; t++) {
        const size_t row = row0 + t, at = (row * hp->n_head_kv + head) * hp->dim_k;
        const float *q = a->q + at * group;
        float *qr = qrot_at(a, head, (uint32_t)row);
        turn(a, pos0 + (int32_t)t, a->k + at, a->krot + at);
        for (uint32_t g = 0; g < group; g++) {
            turn(a, pos0 + (int32_t)t, q + (size_t)g * hp->dim_k, qr + (size_t)g * hp->dim_k);
        }
    }
}

/* Brings turned queries and keys, and values, to the form in which pages hold and meet them. */
static void finish_rows(kvc__attend *a, const kvc__stack *stack, uint32_t head, uint32_t row0,
                        uint32_t n) {
    const kvc__hparams *hp = &a->model->hp;
    const kvc__page_shape *sh = &stack->shape[a->layer];
    const uint32_t wide_q = group_of(a) * hp->dim_k;
    for (uint32_t t = 0; t < n; t++) {
        const size_t at = (size_t)(row0 + t) * hp->n_head_kv + head;
        float *qr = qrot_at(a, head, row0 + t);
        a->kern->scale(qr, sh->scale, wide_q);
        if (sh->had_k > 1) {
            a->kern->hadamard(qr, sh->had_k, wide_q);
            a->kern->hadamard(a->krot + at * hp->dim_k, sh->had_k, hp->dim_k);
        }
        if (sh->had_v > 1) {
            a->kern->hadamard(a->v + at * hp->dim_v, sh->had_v, hp->dim_v);
        }
    }
}

/* Whether a policy is shown rows that are turned and not yet finished. */
static bool shows_rows(const kvc__stack *stack) {
    return stack->has_append != 0 || stack->select != NULL;
}

void kvc__attend_turn(kvc__attend *a, const kvc__stack *stack, uint32_t row, int32_t pos) {
    for (uint32_t head = 0; head < a->model->hp.n_head_kv; head++) {
        turn_rows(a, head, row, 1, pos);
        if (!shows_rows(stack)) {
            finish_rows(a, stack, head, row, 1);
        }
    }
}

/* A piece's rows of a head: what kvc__attend_turn() has left to do, then they are appended. */
static void take_rows(kvc__attend *a, uint32_t pi, uint32_t head) {
    const kvc__hparams *hp = &a->model->hp;
    const kvc__piece *p = &a->piece[pi];
    const size_t sk = (size_t)hp->n_head_kv * hp->dim_k, sv = (size_t)hp->n_head_kv * hp->dim_v;
    if (p->status < 0) {
        return;
    }
    if (!a->turned) {
        turn_rows(a, head, p->row0, p->n, p->pos0);
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
    if (!a->turned || shows_rows(p->stack)) {
        finish_rows(a, p->stack, head, p->row0, p->n);
    }
    kvc__store_append(p->store, a->layer, head, p->n, p->pos0,
                      a->krot + p->row0 * sk + (size_t)head * hp->dim_k, sk,
                      a->v + p->row0 * sv + (size_t)head * hp->dim_v, sv);
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

/* ---------------------------------------------------------------- phase 2: ranges */

/* How many of the n blocks from `first` on, which are of one piece, are items of their own: with a
 * tier one item takes all. */
static uint32_t split_blocks(const kvc__attend *a, uint32_t first, uint32_t n) {
    return a->piece[a->block[first].piece].store->pager != NULL ? 1 : n;
}

/* Heads of an item: many when it decodes and all ranges together are work for all threads
 * nevertheless; one where what is kept of a page serves one head. */
static uint32_t heads_of_item(const kvc__attend *a, uint32_t first) {
    const kvc__block *b = &a->block[first];
    const kvc__piece *p = &a->piece[b->piece];
    const uint32_t heads = a->model->hp.n_head_kv;
    const uint32_t most = heads < KVC__ITEM_HEADS ? heads : KVC__ITEM_HEADS;
    const uint32_t n = heads * a->n_range / kvc__pool_n_thread(a->pool);
    if (b->n > 1 || p->store->pager != NULL || observes(p) || n < 1) {
        return 1;
    }
    return n < most ? n : most;
}

/* Item i of the n blocks from `first` on, which are of one piece: (block, range, heads), so that
 * a block's queries and results stay with few threads, as they do when they are merged. */
static void take_range(kvc__attend *a, uint32_t first, uint32_t n, uint32_t i, uint32_t thread) {
    const uint32_t heads = a->model->hp.n_head_kv;
    const uint32_t each = heads_of_item(a, first), n_head = (heads + each - 1) / each;
    const uint32_t block = i / n_head / a->block[first].n_range, head = i % n_head * each;
    kvc__attend_range(a, &a->block[first + block], n, i / n_head % a->block[first].n_range, head,
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

/* Merges the rows of a head in a block. */
static void merge_head(kvc__attend *a, const kvc__block *b, uint32_t head, uint32_t thread) {
    const kvc__hparams *hp = &a->model->hp;
    const uint32_t group = group_of(a);
    const kvc__piece *p = &a->piece[b->piece];
    const kvc__page_shape *sh = &p->stack->shape[a->layer];
    float *factor = a->thread[thread].s;
    for (uint32_t row = 0; row < b->n * group; row++) {
        const size_t token = p->row0 + b->t0 + row / group;
        float *out = a->out + (token * hp->n_head + (size_t)head * group + row % group) * hp->dim_v;
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

/* Items are (block, head). Masses are added up in the order of rows: there a piece's first block
 * stands for all of them. */
static void merge_span(void *arg, uint32_t first, uint32_t end, uint32_t thread) {
    kvc__attend *a = arg;
    const uint32_t heads = a->model->hp.n_head_kv;
    for (uint32_t i = first; i < end; i++) {
        const uint32_t b = i / heads, piece = a->block[b].piece;
        const kvc__piece *p = &a->piece[piece];
        const bool in_order = observes(p);
        if (p->status != KVC_OK || (in_order && b > 0 && a->block[b - 1].piece == piece)) {
            continue;
        }
        const uint32_t n = in_order ? kvc__attend_same_piece(a, b) : 1;
        for (uint32_t x = b; x < b + n; x++) {
            merge_head(a, &a->block[x], i % heads, thread);
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

/* Ranges' results that are merged at once rather than shared out: half of them lie in another
 * core's cache. With more, at 2,500 and 4,096 tokens, sharing out took 0.985 of a step's time. */
#define FEW_RESULTS 8u

/* The blocks collected so far, through ranges and merge. */
static void flush_blocks(kvc__attend *a) {
    const uint32_t heads = a->model->hp.n_head_kv;
    uint32_t items = 0, rows = 0, results = 0; /* results: of ranges, for each head */
    a->n_range = 0;
    for (uint32_t i = 0; i < a->n_block; i++) {
        a->n_range += a->block[i].n_range;
    }
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
    run_items(a, a->n_block * heads, rows <= 2 && results <= FEW_RESULTS, merge_span);
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
        kvc__attend_range(a, &a->block[0], 1, 0, head, 1, thread);
        merge_head(a, &a->block[0], head, thread);
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
    bool chooses = false;
    a->layer = layer;
    for (uint32_t i = 0; i < a->n_piece; i++) {
        kvc__piece *p = &a->piece[i];
        for (uint32_t h = 0; h < heads; h++) {
            atomic_store(&a->failed[(size_t)i * heads + h], 0);
        }
        rows += p->n;
        chooses |= p->stack->select != NULL;
        if (p->status == KVC_OK && find_ranges(a, p) < 0) {
            p->status = KVC_E_POLICY;
            p->call = call_name[CALL_VISIBLE];
            p->head = 0;
        }
    }
    if (attend_short(a)) {
        return;
    }
    run_items(a, a->n_piece * heads, rows <= 2 && !chooses, rows_span);
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
