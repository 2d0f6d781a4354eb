/* SPDX-License-Identifier: MIT
 * snapkv: at the end of a prompt every KV head keeps the entries that the prompt's last queries
 * attend to most, and the last ones themselves. Li et al., "SnapKV: LLM Knows What You are Looking
 * for Before Generation", arXiv:2404.14469. With pyramid=β the budget falls linearly with depth, as
 * in Cai et al., "PyramidKV", arXiv:2406.02069.
 *
 * The budget is what is left of a prompt; generated tokens come on top and are all kept, so memory
 * is not bounded. The end of a later prompt of the same session (a turn of a chat) cuts again, what
 * was kept, generated and added since alike, as if all of it were the prompt; a prompt that is
 * shorter than the window is judged by its own queries alone.
 *
 * State: the last queries of the prompt that is being read, a ring for each head, given back when
 * the prompt ends. Going back to before what the ring holds means to compute from 0 again. */
#include <kvc/policy.h>

#include <string.h>

enum { BUDGET, WINDOW, POOL, KERNEL, PYRAMID, N_PARAM }; /* rows of the table */
enum { POOL_AVG, POOL_MAX };

static const char *const pools[] = {"avg", "max", NULL};

static const kvc_param params[N_PARAM] = {
    [BUDGET] = {.struct_size = sizeof(kvc_param),
                .type = KVC_PARAM_BUDGET,
                .name = "budget",
                .help = "entries that a head keeps of a prompt",
                .def = {.i = KVC_BUDGET_PERCENT(25)}},
    [WINDOW] = {.struct_size = sizeof(kvc_param),
                .type = KVC_PARAM_INT,
                .name = "window",
                .unit = "tokens",
                .help = "last tokens of a prompt: kept, and asked what they attend to",
                .def = {.i = 32},
                .min = {.i = 1},
                .max = {.i = 4096}},
    [POOL] = {.struct_size = sizeof(kvc_param),
              .type = KVC_PARAM_ENUM,
              .name = "pool",
              .help = "how an entry's score is made from its neighbours'",
              .choice = pools,
              .def = {.i = POOL_AVG}},
    [KERNEL] = {.struct_size = sizeof(kvc_param),
                .type = KVC_PARAM_INT,
                .name = "kernel",
                .unit = "entries",
                .help = "neighbours that are pooled, itself included; an odd number",
                .def = {.i = 7},
                .min = {.i = 1},
                .max = {.i = 255}},
    [PYRAMID] = {.struct_size = sizeof(kvc_param),
                 .type = KVC_PARAM_INT,
                 .name = "pyramid",
                 .help =
                     "the last layer keeps budget / pyramid beside its window, the first as much "
                     "more; 0: all layers alike",
                 .def = {.i = 0},
                 .min = {.i = 0},
                 .max = {.i = 1000}},
};

/* One (layer, KV head). */
typedef struct lane {
    float *q;           /* [window][wide], the query at position p in row p % window; or NULL */
    uint32_t wide;      /* floats of one position's queries */
    int32_t first, end; /* the prompt so far; first -1: none is being read */
    int32_t done;       /* the last prompt ended in front of it, and its queries are gone */
    int32_t chosen;     /* of a prompt's end: 1 a choice was made, 0 all are kept; or a status */
} lane;

typedef struct snapkv {
    const kvc_host *host;
    const kvc_host_store *store;
    const kvc_host_math *math;
    uint32_t n_layer, n_ctx, n_lane, most_head;
    uint32_t window, kernel, pyramid, pool;
    uint32_t *lane0; /* [n_layer + 1] first lane of a layer */
    lane *lane;      /* [n_lane] */
    float *score;    /* [most_head][2][n_ctx] masses; scores, then the numbers of what is kept */
    int32_t *pos;    /* [window] of the queries, row by row */
    uint64_t n_evicted;
    uint32_t layer, keep; /* of the prompt's end at hand */
} snapkv;

/* ---------------------------------------------------------------- making and freeing */

static void *array(const kvc_host *host, size_t n, size_t size) {
    return host->realloc(host->ctx, NULL, 0, n * size, 64);
}

static void array_free(const kvc_host *host, void *p, size_t n, size_t size) {
    host->realloc(host->ctx, p, n * size, 0, 64);
}

static int32_t ring_take(const snapkv *s, lane *l) {
    if (l->q == NULL) {
        l->q = array(s->host, (size_t)s->window * l->wide, sizeof *l->q);
    }
    return l->q != NULL ? KVC_OK : KVC_E_NOMEM;
}

static void ring_give(const snapkv *s, lane *l) {
    array_free(s->host, l->q, (size_t)s->window * l->wide, sizeof *l->q);
    l->q = NULL;
    l->first = -1;
    l->end = 0;
}

/* All memory that is needed is taken now, the rings' too, so that what a session will hold is known
 * when a tier divides the memory that it may use. */
static int32_t make_arrays(snapkv *s, const kvc_shape *shape) {
    int32_t rc = KVC_OK;
    s->lane0 = array(s->host, s->n_layer + 1, sizeof *s->lane0);
    for (uint32_t i = 0; s->lane0 != NULL && i < s->n_layer; i++) {
        const uint32_t n = kvc_shape_layer(shape, i)->n_head_kv;
        s->lane0[i + 1] = s->lane0[i] + n;
        s->n_lane += n;
        s->most_head = n > s->most_head ? n : s->most_head;
    }
    s->lane = array(s->host, s->n_lane, sizeof *s->lane);
    s->score = array(s->host, 2 * (size_t)s->most_head * s->n_ctx, sizeof *s->score);
    s->pos = array(s->host, s->window, sizeof *s->pos);
    if (s->lane0 == NULL || s->lane == NULL || s->score == NULL || s->pos == NULL) {
        return KVC_E_NOMEM;
    }
    for (uint32_t i = 0, layer = 0; rc == KVC_OK && i < s->n_lane; i++) {
        layer += i == s->lane0[layer + 1];
        const kvc_layer_shape *l = kvc_shape_layer(shape, layer);
        s->lane[i].wide = l->n_head / l->n_head_kv * l->dim_k;
        s->lane[i].first = -1;
        rc = ring_take(s, &s->lane[i]);
    }
    return rc;
}

static int32_t create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                      kvc_plan *plan, void **self) {
    const kvc_host_store *store = host->extension(host->ctx, KVC_HOST_STORE);
    const kvc_host_math *math = host->extension(host->ctx, KVC_HOST_MATH);
    if (store == NULL || store->struct_size < sizeof *store || math == NULL ||
        math->struct_size < sizeof *math) {
        return host->fail(host->ctx, KVC_E_UNSUPPORTED,
                          "this host lacks " KVC_HOST_STORE " or " KVC_HOST_MATH
                          "; use snapkv with a newer kvc");
    }
    if (value[KERNEL].i % 2 == 0) {
        return host->fail(host->ctx, KVC_E_PARAM, "kernel is to be an odd number, such as 7");
    }
    snapkv *s = array(host, 1, sizeof *s);
    if (s == NULL) {
        return KVC_E_NOMEM;
    }
    *self = s;
    *s = (snapkv){.host = host,
                  .store = store,
                  .math = math,
                  .n_layer = shape->n_layer,
                  .n_ctx = shape->n_ctx,
                  .window = (uint32_t)value[WINDOW].i,
                  .kernel = (uint32_t)value[KERNEL].i,
                  .pyramid = (uint32_t)value[PYRAMID].i,
                  .pool = (uint32_t)value[POOL].i};
    plan->answers = KVC_ANSWERS_WHICH;
    plan->flags = KVC_PLAN_EVICTS | KVC_PLAN_STATE;
    plan->observe = KVC_OBSERVE_QUERIES;
    plan->budget = value[BUDGET].i;
    plan->budget_least = s->window + 1;
    return make_arrays(s, shape);
}

static void destroy(void *self) {
    snapkv *s = self;
    const kvc_host *host = s->host;
    for (uint32_t i = 0; s->lane != NULL && i < s->n_lane; i++) {
        ring_give(s, &s->lane[i]);
    }
    array_free(host, s->score, 2 * (size_t)s->most_head * s->n_ctx, sizeof *s->score);
    array_free(host, s->pos, s->window, sizeof *s->pos);
    array_free(host, s->lane, s->n_lane, sizeof *s->lane);
    array_free(host, s->lane0, s->n_layer + 1, sizeof *s->lane0);
    array_free(host, s, 1, sizeof *s);
}

/* ---------------------------------------------------------------- the window's queries */

static float *row_of(const snapkv *s, const lane *l, int32_t pos) {
    return l->q + (size_t)((uint32_t)pos % s->window) * l->wide;
}

static int32_t append(void *self, const kvc_rows *rows) {
    const snapkv *s = self;
    lane *l = &s->lane[s->lane0[rows->layer] + rows->head];
    if (rows->phase == KVC_PHASE_DECODE) {
        return KVC_OK;
    }
    if (ring_take(s, l) < 0) {
        return KVC_E_NOMEM;
    }
    if (l->first < 0 || l->end != rows->pos[0]) {
        l->first = rows->pos[0]; /* a prompt begins */
    }
    for (uint32_t t = 0; t < rows->n; t++) {
        memcpy(row_of(s, l, rows->pos[t]), rows->q + (size_t)t * rows->q_stride,
               l->wide * sizeof *l->q);
    }
    l->end = rows->pos[rows->n - 1] + 1;
    return KVC_OK;
}

/* The first position that the ring of a prompt holds. */
static int32_t ring_first(const snapkv *s, const lane *l) {
    const int32_t low = l->end - (int32_t)s->window;
    return low > l->first ? low : l->first;
}

/* Adds what the window attends to, of all entries of a head, to mass. The ring is asked in the
 * order of positions: to its end, then from its beginning. */
static int32_t ask(const snapkv *s, const lane *l, uint32_t head, float *mass) {
    int32_t rc = KVC_OK;
    uint32_t n;
    for (int32_t p = ring_first(s, l); rc == KVC_OK && p < l->end; p += (int32_t)n) {
        const uint32_t row = (uint32_t)p % s->window, rest = (uint32_t)(l->end - p);
        n = rest < s->window - row ? rest : s->window - row;
        const kvc_rows rows = {.struct_size = sizeof rows,
                               .layer = s->layer,
                               .head = head,
                               .n = n,
                               .pos = s->pos + row,
                               .q = row_of(s, l, p),
                               .q_stride = l->wide};
        rc = s->store->mass(s->host->ctx, &rows, mass);
    }
    return rc;
}

/* ---------------------------------------------------------------- the choice */

/* Entries that a head of a layer keeps: budgets that fall with depth are rounded so that their sum
 * stays within that of equal ones. */
static uint32_t keep_of(const snapkv *s, uint32_t layer) {
    const uint64_t budget = s->store->budget(s->host->ctx), room = budget - s->window;
    uint64_t keep = budget;
    if (s->pyramid != 0 && s->n_layer > 1) {
        const uint64_t min = room / s->pyramid, max = 2 * room - min, steps = s->n_layer - 1;
        keep = s->window + max - ((max - min) * layer + steps - 1) / steps;
    }
    return keep < s->n_ctx ? (uint32_t)keep : s->n_ctx;
}

/* A head's scores, with the masses that they are made of in front. */
static float *score_of(const snapkv *s, uint32_t head) {
    return s->score + (2 * (size_t)head + 1) * s->n_ctx;
}

/* Pools the scores of n entries. Beyond the ends there is nothing, which an average counts as 0. */
static void pool(const snapkv *s, const float *mass, uint32_t n, float *score) {
    const uint32_t half = s->kernel / 2;
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t end = n - i > half ? i + half + 1 : n;
        float sum = 0.0f, max = 0.0f;
        for (uint32_t j = i > half ? i - half : 0; j < end; j++) {
            sum += mass[j];
            max = mass[j] > max ? mass[j] : max;
        }
        score[i] = s->pool == POOL_MAX ? max : sum / (float)s->kernel;
    }
}

/* What a head keeps: the window, and in front of it the entries of the largest pooled score. */
static void choose(void *arg, uint32_t head) {
    const snapkv *s = arg;
    lane *l = &s->lane[s->lane0[s->layer] + head];
    const uint32_t n = s->store->count(s->host->ctx, s->layer, head);
    l->chosen = 0;
    if (n <= s->keep) {
        return;
    }
    const uint32_t n_old = n - s->window, n_top = s->keep - s->window;
    float *score = score_of(s, head), *mass = score - s->n_ctx;
    uint32_t *kept = (uint32_t *)score;
    memset(mass, 0, n * sizeof *mass);
    const int32_t rc = ask(s, l, head, mass);
    pool(s, mass, n_old, score);
    s->math->top(s->host->ctx, score, n_old, n_top, kept);
    for (uint32_t i = 0; i < s->window; i++) {
        kept[n_top + i] = n_old + i;
    }
    l->chosen = rc < 0 ? rc : 1;
}

static int32_t page_end(void *self, const kvc_step *step, uint32_t layer) {
    snapkv *s = self;
    void *ctx = s->host->ctx;
    lane *l = &s->lane[s->lane0[layer]];
    const uint32_t n_head = s->lane0[layer + 1] - s->lane0[layer];
    if (step->phase != KVC_PHASE_PROMPT_END) {
        return KVC_OK;
    }
    s->layer = layer;
    s->keep = keep_of(s, layer);
    for (int32_t p = ring_first(s, l); p < l->end; p++) {
        s->pos[(uint32_t)p % s->window] = p; /* every head was given the same rows */
    }
    s->host->parallel_for(ctx, n_head, choose, s);
    for (uint32_t head = 0; head < n_head; head++, l++) {
        const uint32_t n = s->store->count(ctx, layer, head);
        int32_t rc = l->chosen;
        if (rc > 0) {
            rc = s->store->keep(ctx, layer, head, (const uint32_t *)score_of(s, head), s->keep);
            s->n_evicted += n - s->keep;
        }
        if (rc < 0) {
            return rc;
        }
        ring_give(s, l);
        l->done = step->pos + (int32_t)step->n;
    }
    return KVC_OK;
}

/* ---------------------------------------------------------------- going back, save, load */

/* A ring that went round has lost what a prompt that ends earlier would ask. */
static int32_t rewind_to(void *self, int32_t pos) {
    const snapkv *s = self;
    for (uint32_t i = 0; i < s->n_lane; i++) {
        const lane *l = &s->lane[i];
        const int low =
            l->first >= 0 && pos > l->first && pos + 1 < l->end && ring_first(s, l) > l->first;
        if (pos < l->done || low) {
            return 0;
        }
    }
    return pos;
}

static int32_t truncate_to(void *self, int32_t pos) {
    const snapkv *s = self;
    for (uint32_t i = 0; i < s->n_lane; i++) {
        lane *l = &s->lane[i];
        l->done = pos < l->done ? pos : l->done;
        if (l->first >= pos) {
            ring_give(s, l);
        } else if (l->first >= 0 && l->end > pos) {
            l->end = pos;
        }
    }
    return KVC_OK;
}

static int32_t save(void *self, const kvc_stream *out) {
    const snapkv *s = self;
    int32_t rc = KVC_OK;
    for (uint32_t i = 0; rc == KVC_OK && i < s->n_lane; i++) {
        const lane *l = &s->lane[i];
        const int32_t head[] = {l->first, l->end, l->done};
        rc = out->write(out->ctx, head, sizeof head);
        for (int32_t p = ring_first(s, l); rc == KVC_OK && l->first >= 0 && p < l->end; p++) {
            rc = out->write(out->ctx, row_of(s, l, p), l->wide * sizeof *l->q);
        }
    }
    return rc;
}

static int32_t load_lane(const snapkv *s, lane *l, const kvc_stream *in) {
    int32_t head[3];
    int32_t rc = in->read(in->ctx, head, sizeof head);
    if (rc < 0) {
        return rc;
    }
    const int32_t first = head[0], end = head[1], done = head[2], most = (int32_t)s->n_ctx;
    if (first < -1 || end < 0 || end > most || first > end || done < 0 || done > most) {
        return KVC_E_FORMAT;
    }
    ring_give(s, l);
    l->done = done;
    if (first < 0) {
        return KVC_OK;
    }
    rc = ring_take(s, l);
    l->first = first;
    l->end = end;
    for (int32_t p = ring_first(s, l); rc == KVC_OK && p < end; p++) {
        rc = in->read(in->ctx, row_of(s, l, p), l->wide * sizeof *l->q);
    }
    return rc;
}

static int32_t load(void *self, const kvc_stream *in) {
    const snapkv *s = self;
    int32_t rc = KVC_OK;
    for (uint32_t i = 0; rc == KVC_OK && i < s->n_lane; i++) {
        rc = load_lane(s, &s->lane[i], in);
    }
    return rc;
}

static int32_t stats(void *self, kvc_claims *out) {
    const snapkv *s = self;
    out->n_evicted = s->n_evicted;
    return KVC_OK;
}

static const kvc_policy_api api = {.struct_size = sizeof api,
                                   .create = create,
                                   .destroy = destroy,
                                   .append = append,
                                   .page_end = page_end,
                                   .rewind = rewind_to,
                                   .truncate = truncate_to,
                                   .stats = stats,
                                   .save = save,
                                   .load = load};

static const kvc_policy policy = {
    .struct_size = sizeof policy,
    .abi = KVC_POLICY_ABI,
    .abi_min = KVC_POLICY_ABI_MIN,
    .n_param = N_PARAM,
    .param_stride = sizeof params[0],
    .caps = KVC_CAP_CHUNK_INVARIANT,
    .name = "snapkv",
    .version = "1.0.0",
    .summary = "cuts a prompt to what its last queries attend to (SnapKV, PyramidKV)",
    .license = "MIT",
    .param = params,
    .api = &api,
};

KVC_POLICY_EXPORT const kvc_policy *kvc_policy_entry(uint32_t host_abi, uint32_t index) {
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}
