/* SPDX-License-Identifier: MIT
 * forward.c: the model's definition, read from top to bottom: embedding, layers of attention and
 * feed-forward, final norm, head. Between projection and output, a layer's rows go through
 * attention page by page, and the cache's clock ticks there. */
#include "forward.h"

#include "os.h"

#include <stdalign.h>
#include <string.h>

/* ---------------------------------------------------------------- rows */

static bool wants_int8(uint32_t compute, const kvc__mat *w) {
    return compute == KVC_COMPUTE_INT8 && kvc__mat_quantised(w->type);
}

/* Work on rows that are independent of each other. It lies in the caller's frame, in lines of its
 * own: those around are written while others read this. */
struct rows {
    alignas(64) kvc_model *m;
    void (*fn)(struct rows *r, uint32_t row, uint32_t thread);
    const kvc__part *part;
    const kvc__layer *layer;
    const float *w;
    kvc__act act;
    float *x, *y;
    uint32_t n, width;
    uint32_t n_part;
    uint32_t each; /* rows of an item */
    bool int8;     /* y is wanted as int8 */
    bool floats;   /* y is wanted as floats */
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
    quantise(r, i, r->y + (size_t)i * r->width);
}

/* Floats that nobody reads stay in the thread's cache: lines of y cost more to take back from the
 * core that wrote to them last than the norm does. */
static void norm_row(struct rows *r, uint32_t i, uint32_t thread) {
    const size_t at = (size_t)i * r->width;
    const kvc__work *w = r->m->work;
    float *y = r->floats ? r->y + at : w->row + thread * w->widest;
    r->m->kern->rms_norm(r->x + at, r->w, r->width, r->m->hp.norm_eps, y);
    if (r->int8) {
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
    for (uint32_t i = 0; i < n_mat; i++) {
        const bool int8 = wants_int8(compute, w[i]);
        r.int8 |= int8;
        r.floats |= !int8;
    }
    return r;
}

static void norm(struct rows *r, const float *w) {
    r->w = w;
    r->fn = norm_row;
    each_row(r);
}

/* x += act × wᵀ, or its norm where the architecture has weights for that. */
static void add_branch(kvc_model *m, const kvc__act *act, bool int8, const kvc__mat *mat,
                       const float *norm_w) {
    kvc__work *w = m->work;
    if (norm_w == NULL) {
        kvc__multiply_add(&w->products, act, int8, mat, w->x);
        return;
    }
    struct rows r = rows_of(m, act->n, m->hp.n_embd, w->x, w->h);
    r.w = norm_w;
    r.fn = add_normed_row;
    kvc__multiply(&w->products, act, int8, 1, &mat, &w->h);
    each_row(&r);
}

/* The part that a row belongs to. */
static const kvc__part *part_of(const struct rows *r, uint32_t row) {
    uint32_t at = 0, end = r->n_part;
    while (end - at > 1) {
        const uint32_t middle = (at + end) / 2;
        if (r->part[middle].row0 <= row) {
            at = middle;
        } else {
            end = middle;
        }
    }
    return &r->part[at];
}

static void turn_row(struct rows *r, uint32_t i, uint32_t thread) {
    const kvc__part *p = part_of(r, i);
    (void)thread;
    kvc__attend_turn(&r->m->work->attend, p->stack, i, p->pos0 + (int32_t)(i - p->row0));
}

/* What stands between a layer's projections and attention in some architectures. */
static void finish_projections(kvc_model *m, uint32_t n, const kvc__layer *layer) {
    struct rows r = {.m = m, .n = n, .layer = layer};
    if (layer->q_bias != NULL) {
        r.fn = bias_row;
        each_row(&r);
    }
    if (layer->q_norm != NULL) {
        r.fn = head_norms_row;
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

/* Turns the rows of a prompt in front of attention, where one thread has a row whole: those of few
 * tokens are turned there, for a phase of their own would cost more. */
static void turn_layer(kvc_model *m, uint32_t il, uint32_t n_part, uint32_t n) {
    kvc__attend *a = &m->work->attend;
    a->layer = il;
    a->turned = n >= KVC__MANY_ROWS;
    if (a->turned) {
        struct rows r = {.m = m, .fn = turn_row, .n = n, .part = m->work->part, .n_part = n_part};
        each_row(&r);
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
    kvc__multiply(&w->products, &r.act, r.int8, 3, qkv, to);
    finish_projections(m, n, l);

    const uint64_t t0 = kvc__clock_ns();
    turn_layer(m, il, n_part, n);
    attend_layer(m, il, w->part, n_part);
    w->attention_ns += kvc__clock_ns() - t0;

    r = act_of(m, n, hp->n_head * hp->dim_v, NULL, w->attend.out, compute, 1, o);
    if (r.int8) {
        r.fn = quantise_row;
        each_row(&r);
    }
    add_branch(m, &r.act, r.int8, &l->o, l->attn_post);
}

static void layer_feed_forward(kvc_model *m, uint32_t il, uint32_t n, uint32_t compute) {
    kvc__work *w = m->work;
    const kvc__layer *l = &m->layer[il];
    const kvc__hparams *hp = &m->hp;
    const kvc__mat *const gate_up[] = {&l->gate, &l->up};
    struct rows r = act_of(m, n, hp->n_embd, w->x, w->h, compute, 2, gate_up);
    norm(&r, l->ffn_norm);
    const bool rounds = wants_int8(compute, &l->down);
    kvc__act gated = w->rounded[1];
    gated.n = n;
    gated.n_col = hp->n_ff;
    gated.f = w->gate;
    gated.f_stride = hp->n_ff;
    kvc__multiply_gated(&w->products, &r.act, r.int8, gate_up,
                        m->arch->gelu ? m->kern->gelu_mul : m->kern->silu_mul, w->gate,
                        rounds ? &gated : NULL);
    add_branch(m, &gated, rounds, &l->down, l->ffn_post);
}

static void embed_row(struct rows *r, uint32_t i, uint32_t thread) {
    (void)thread;
    const kvc__part *p = part_of(r, i);
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
    kvc__multiply_rows(&w->products, &r.act, r.int8, &m->head, m->hp.logit_cap, to);
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
    r.n_part = n_part;
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

static size_t tile_bytes(const kvc_model *m) {
    size_t most = kvc__tile_bytes(&m->head);
    for (uint32_t i = 0; i < m->hp.n_layer; i++) {
        const kvc__layer *l = &m->layer[i];
        const kvc__mat *const w[] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
        for (size_t k = 0; k < sizeof w / sizeof *w; k++) {
            const size_t bytes = kvc__tile_bytes(w[k]);
            most = bytes > most ? bytes : most;
        }
    }
    return most;
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
    w->part = kvc__alloc_n(&m->mem, n, sizeof *w->part);
    w->want = kvc__alloc_n(&m->mem, n, sizeof *w->want);
    w->x = kvc__alloc_n(&m->mem, n * hp->n_embd, sizeof(float));
    w->h = kvc__alloc_n(&m->mem, n * hp->n_embd, sizeof(float));
    w->gate = kvc__alloc_n(&m->mem, n * hp->n_ff, sizeof(float));
    w->row = kvc__alloc_n(&m->mem, w->widest * kvc__pool_n_thread(m->pool), sizeof(float));
    bool held = true;
    for (uint32_t i = 0; i < 2; i++) {
        kvc__act *a = &w->rounded[i];
        a->q = kvc__alloc_n(&m->mem, n * w->widest, 1);
        a->d = kvc__alloc_n(&m->mem, n * w->widest / 16, sizeof(float));
        a->sum = kvc__alloc_n(&m->mem, n * w->widest / 16, sizeof(int32_t));
        held &= a->q != NULL && a->d != NULL && a->sum != NULL;
    }
    held &= kvc__products_init(&w->products, &m->mem, m->kern, m->pool, m->n_batch, tile_bytes(m),
                               m->weight == NULL);
    if (w->part == NULL || w->want == NULL || w->x == NULL || w->h == NULL || w->gate == NULL ||
        w->row == NULL || !held) {
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
    kvc__free(m, w->row, w->widest * kvc__pool_n_thread(model->pool) * f);
    for (uint32_t i = 0; i < 2; i++) {
        kvc__free(m, w->rounded[i].q, n * w->widest);
        kvc__free(m, w->rounded[i].d, n * w->widest / 16 * f);
        kvc__free(m, w->rounded[i].sum, n * w->widest / 16 * sizeof(int32_t));
    }
    kvc__products_free(&w->products, m);
    kvc__free(m, w, sizeof *w);
    model->work = NULL;
}
