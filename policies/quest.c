/* SPDX-License-Identifier: MIT
 * quest: keeps everything, but a query of generated text reads only the pages that promise it most.
 * It makes decoding faster, not the cache smaller. Tang et al., "Quest: Query-Aware Sparsity for
 * Efficient Long-Context LLM Inference", arXiv:2406.10774: the least and the greatest of every
 * element over a block of keys bound q·k for all of them. A page counts as its best block does.
 * Query heads that share a KV head read the same pages, those of the greatest bound of any head.
 *
 * Measured on SmolLM2-135M, a quarter of the pages read: KLD 3.5e-2 (2048 tokens), 19 of 24 pass
 * keys found (1200 tokens). By the sum of the heads' bounds 3.5e-2 and 14; with blocks of 64 keys
 * 4.6e-2 and 14. By the sum, without the first page, which is a sink, 4.5e-2 and more.
 *
 * Bounds are a function of what the store holds. They are taken of a page when it has been sealed,
 * and by an instance that has none yet (a fork, a session that was loaded) of all pages before the
 * next call is computed. So there is no state to save, and going back forgets exactly the bounds of
 * pages at and above the position. */
#include <kvc/policy.h>

#include <float.h>
#include <math.h>
#include <string.h>

enum { SHARE, LEAST, FIRST, RECENT, DENSE, BLOCK, PROMPT, N_PARAM }; /* rows of the table */
enum { WIDE = 16 }; /* blocks that are scored at once */

static const kvc_param params[N_PARAM] = {
    [SHARE] = {.struct_size = sizeof(kvc_param),
               .type = KVC_PARAM_INT,
               .name = "share",
               .unit = "per cent",
               .help = "sealed pages that a query reads, of those that it sees",
               .def = {.i = 25},
               .min = {.i = 0},
               .max = {.i = 100}},
    [LEAST] = {.struct_size = sizeof(kvc_param),
               .type = KVC_PARAM_INT,
               .name = "least",
               .unit = "pages",
               .help = "that it reads at least",
               .def = {.i = 4},
               .min = {.i = 0},
               .max = {.i = 1 << 20}},
    [FIRST] = {.struct_size = sizeof(kvc_param),
               .type = KVC_PARAM_INT,
               .name = "first",
               .unit = "pages",
               .help = "first pages that are always among them",
               .def = {.i = 1},
               .min = {.i = 0},
               .max = {.i = 1 << 20}},
    [RECENT] = {.struct_size = sizeof(kvc_param),
                .type = KVC_PARAM_INT,
                .name = "recent",
                .unit = "pages",
                .help = "latest sealed pages that are always among them",
                .def = {.i = 1},
                .min = {.i = 0},
                .max = {.i = 1 << 20}},
    [DENSE] = {.struct_size = sizeof(kvc_param),
               .type = KVC_PARAM_INT,
               .name = "dense",
               .unit = "layers",
               .help = "first layers that read everything",
               .def = {.i = 2},
               .min = {.i = 0},
               .max = {.i = 1 << 20}},
    [BLOCK] = {.struct_size = sizeof(kvc_param),
               .type = KVC_PARAM_INT,
               .name = "block",
               .unit = "tokens",
               .help = "keys that share bounds",
               .def = {.i = 16},
               .min = {.i = 1},
               .max = {.i = KVC_PAGE}},
    [PROMPT] = {.struct_size = sizeof(kvc_param),
                .type = KVC_PARAM_BOOL,
                .name = "prompt",
                .help = "queries of a prompt read a choice of pages too"},
};

typedef struct layer {
    uint32_t lane; /* first of its lanes */
    uint32_t n_head_kv, n_group, dim;
    uint32_t window; /* the model's own; 0: none */
    uint32_t n_page; /* pages whose bounds are known */
    uint32_t dense;  /* 1: reads everything */
} layer;

/* A lane's bounds lie as they are read: of WIDE blocks the greatest of element 0, their least, the
 * greatest of element 1, … */
typedef struct lane {
    float *bound; /* [blocks / WIDE][dim][2][WIDE] */
    float *score; /* [n_page] of select(); then, in their place, the numbers of what is read */
    uint64_t n_selected, n_skipped;
} lane;

typedef struct quest {
    const kvc_host *host;
    const kvc_host_store *store;
    const kvc_host_math *math;
    uint32_t share, least, first, recent, prompt;
    uint32_t n_block; /* blocks of a page */
    uint32_t n_layer, n_lane, n_page;
    uint32_t n_head_kv, dim; /* the most of a layer */
    layer *layer;            /* [n_layer] */
    lane *lane;              /* [n_lane] */
    float *data;             /* of all lanes, scores, and rows */
    size_t n_data;
    float *rows;     /* [n_head_kv][KVC_PAGE, dim] keys of the page that is looked at */
    int32_t *status; /* [n_head_kv] what became of it */
    struct {
        uint32_t layer, page;
        int32_t end; /* positions that the store holds */
    } now;
} quest;

/* ---------------------------------------------------------------- bounds */

static float *bound_at(const lane *l, uint32_t dim, uint32_t block) {
    return l->bound + (size_t)(block / WIDE) * 2 * WIDE * dim + block % WIDE;
}

/* Takes the bounds of a block from n rows of keys. No rows leave bounds that no query prefers. */
static void bound_block(float *bound, const float *k, uint32_t n, uint32_t dim) {
    for (uint32_t d = 0; d < dim; d++, bound += 2 * WIDE) {
        float most = -FLT_MAX, least = FLT_MAX;
        for (uint32_t i = 0; i < n; i++) {
            const float x = k[(size_t)i * dim + d];
            most = x > most ? x : most;
            least = x < least ? x : least;
        }
        bound[0] = most;
        bound[WIDE] = least;
    }
}

/* The keys of a sealed page, in a lane of the store that holds positions below end; returns their
 * number, 0 for a page that was freed. */
static int32_t read_keys(const quest *q, uint32_t head, float *k) {
    const uint32_t index = q->now.layer;
    void *ctx = q->host->ctx;
    int32_t pos[KVC_PAGE];
    const int32_t n = q->store->page(ctx, index, head, q->now.page, pos);
    if (n <= 0) {
        return n;
    }
    /* Nothing behind a page that is there is freed, so entries are counted from the end. */
    const uint32_t behind = (uint32_t)(q->now.end - pos[0]);
    const uint32_t count = q->store->count(ctx, index, head);
    if (behind > count) {
        return KVC_E_RANGE;
    }
    const int32_t rc = q->store->read(ctx, index, head, count - behind, (uint32_t)n, k, NULL);
    return rc < 0 ? rc : n;
}

/* One head of the page that is looked at now. */
static void bound_head(void *self, uint32_t head) {
    const quest *q = self;
    const layer *y = &q->layer[q->now.layer];
    const lane *l = &q->lane[y->lane + head];
    float *k = q->rows + (size_t)head * KVC_PAGE * q->dim;
    const int32_t n = read_keys(q, head, k);
    const uint32_t have = n > 0 ? (uint32_t)n : 0, rows = KVC_PAGE / q->n_block;
    for (uint32_t b = 0; b < q->n_block; b++) {
        const uint32_t first = b * rows;
        const uint32_t m = first >= have ? 0 : have - first < rows ? have - first : rows;
        bound_block(bound_at(l, y->dim, q->now.page * q->n_block + b), k + (size_t)first * y->dim,
                    m, y->dim);
    }
    q->status[head] = n < 0 ? n : KVC_OK;
}

/* Takes the bounds of a layer's pages below n_page, as far as they aren't known. */
static int32_t bound_layer(quest *q, uint32_t index, uint32_t n_page, int32_t end) {
    layer *y = &q->layer[index];
    while (y->dense == 0 && y->n_page < n_page) {
        q->now.layer = index;
        q->now.page = y->n_page;
        q->now.end = end;
        q->host->parallel_for(q->host->ctx, y->n_head_kv, bound_head, q);
        for (uint32_t head = 0; head < y->n_head_kv; head++) {
            if (q->status[head] < 0) {
                return q->status[head];
            }
        }
        y->n_page++;
    }
    return KVC_OK;
}

static int32_t page_end(void *self, const kvc_step *step, uint32_t index) {
    const int32_t end = step->pos + (int32_t)step->n;
    return bound_layer(self, index, (uint32_t)end / KVC_PAGE, end);
}

/* What the store holds and isn't known: all of it in a fork. Where a page is lost the session has
 * to go back to. */
static int32_t begin(void *self, const kvc_step *step, int32_t *from) {
    quest *q = self;
    for (uint32_t i = 0; i < q->n_layer; i++) {
        const int32_t rc = bound_layer(q, i, (uint32_t)*from / KVC_PAGE, step->pos);
        if (rc == KVC_E_LOST) {
            *from = (int32_t)(q->layer[i].n_page * KVC_PAGE);
        } else if (rc < 0) {
            return rc;
        }
    }
    return KVC_OK;
}

static int32_t truncate(void *self, int32_t pos) {
    quest *q = self;
    const uint32_t n_page = (uint32_t)pos / KVC_PAGE;
    for (uint32_t i = 0; i < q->n_layer; i++) {
        q->layer[i].n_page = q->layer[i].n_page < n_page ? q->layer[i].n_page : n_page;
    }
    return KVC_OK;
}

/* ---------------------------------------------------------------- the choice */

/* The greatest that q·k can be in each of WIDE blocks: an element of q that is positive meets the
 * greatest of the keys, one that is negative the least. On its own, gcc 12 makes vectors of it. */
__attribute__((noinline)) static void score_blocks(const float *bound, const float *q, uint32_t dim,
                                                   float out[WIDE]) {
    float acc[WIDE] = {0};
    for (uint32_t d = 0; d < dim; d++, bound += 2 * WIDE) {
        const float x = q[d], *limit = x < 0 ? bound + WIDE : bound;
        for (uint32_t w = 0; w < WIDE; w++) {
            acc[w] += x * limit[w];
        }
    }
    memcpy(out, acc, sizeof acc);
}

/* The same for any of n_q queries. What isn't a number counts as infinite. */
static void best_of_blocks(const float *bound, const float *q, uint32_t n_q, uint32_t dim,
                           float best[WIDE]) {
    for (uint32_t w = 0; w < WIDE; w++) {
        best[w] = -INFINITY;
    }
    for (uint32_t h = 0; h < n_q; h++) {
        float score[WIDE];
        score_blocks(bound, q + (size_t)h * dim, dim, score);
        for (uint32_t w = 0; w < WIDE; w++) {
            best[w] = score[w] <= best[w] ? best[w] : isnan(score[w]) ? INFINITY : score[w];
        }
    }
}

/* score[] of pages [first, end): the best of their blocks for any head of the group. */
static void score_pages(const quest *q, const layer *y, lane *l, const float *query, uint32_t first,
                        uint32_t end) {
    float score[WIDE];
    uint32_t b = first * q->n_block, wide = UINT32_MAX;
    for (uint32_t i = first; i < end; i++) {
        float best = -INFINITY;
        for (const uint32_t stop = b + q->n_block; b < stop; b++) {
            if (b / WIDE != wide) {
                wide = b / WIDE;
                best_of_blocks(bound_at(l, y->dim, wide * WIDE), query, y->n_group, y->dim, score);
            }
            best = score[b % WIDE] > best ? score[b % WIDE] : best;
        }
        l->score[i] = best;
    }
}

static uint32_t least_of(uint32_t a, uint32_t b) {
    return a < b ? a : b;
}

/* Clears the pages [first, end) but the n_read of the greatest scores; of equal ones the later
 * stay. */
static void choose(const quest *q, lane *l, uint32_t first, uint32_t end, uint32_t n_read,
                   uint64_t *page) {
    float *score = l->score + first;
    uint32_t *read = (uint32_t *)score;
    n_read = q->math->top(q->host->ctx, score, end - first, n_read, read);
    for (uint32_t i = first; i < end; i++) {
        page[i / 64] &= ~((uint64_t)1 << (i % 64));
    }
    for (uint32_t i = 0; i < n_read; i++) {
        page[(first + read[i]) / 64] |= (uint64_t)1 << ((first + read[i]) % 64);
    }
}

static int32_t select_pages(void *self, const kvc_rows *query, uint64_t *page, uint32_t n_page) {
    const quest *q = self;
    const layer *y = &q->layer[query->layer];
    lane *l = &q->lane[y->lane + query->head];
    /* Pages in front of the model's own window aren't seen, whatever is answered. */
    const uint32_t end = (uint32_t)query->pos[0] + 1;
    const uint32_t hidden = y->window != 0 && end > y->window ? (end - y->window) / KVC_PAGE : 0;
    const uint32_t c0 = least_of(hidden, n_page), n = n_page - c0;
    /* Read whatever their bounds say: the first, the recent, and those without bounds. */
    const uint32_t first = least_of(q->first > c0 ? q->first : c0, n_page);
    const uint32_t known = least_of(n_page - least_of(q->recent, n_page), y->n_page);
    const uint32_t last = known > first ? known : first, always = n - (last - first);
    uint32_t n_read = (uint32_t)(((uint64_t)n * q->share + 99) / 100);
    n_read = n_read < q->least ? q->least : n_read;
    n_read = n_read < always ? always : n_read;
    const int chooses = y->dense == 0 && (query->phase == KVC_PHASE_DECODE || q->prompt != 0);
    if (!chooses || n_read >= n) {
        l->n_selected += n;
        return KVC_OK;
    }
    l->n_selected += n_read;
    l->n_skipped += n - n_read;
    if (n_read > always) {
        score_pages(q, y, l, query->q, first, last);
    }
    choose(q, l, first, last, n_read - always, page);
    return KVC_OK;
}

/* ---------------------------------------------------------------- an instance */

static int32_t stats(void *self, kvc_claims *out) {
    const quest *q = self;
    for (uint32_t i = 0; i < q->n_lane; i++) {
        out->n_selected += q->lane[i].n_selected;
        out->n_skipped += q->lane[i].n_skipped;
    }
    return KVC_OK;
}

static size_t lane_floats(const quest *q, const layer *y) {
    const size_t n = ((size_t)q->n_page * q->n_block + WIDE - 1) / WIDE * WIDE;
    return y->dense != 0 ? 0 : 2 * n * y->dim;
}

static void *array(const kvc_host *host, size_t n, size_t size) {
    return host->realloc(host->ctx, NULL, 0, n * size, 64);
}

/* Gives every lane its part of data. */
static void lanes_set(quest *q) {
    float *data = q->data;
    for (uint32_t i = 0; i < q->n_layer; i++) {
        const layer *y = &q->layer[i];
        for (uint32_t n = y->lane; n < y->lane + y->n_head_kv; n++) {
            lane *l = &q->lane[n];
            if (y->dense == 0) {
                l->bound = data;
                data += lane_floats(q, y);
            }
            l->score = data;
            data += q->n_page;
        }
    }
    q->rows = data;
}

/* The layers of the model, and what all their lanes need. */
static void layers_set(quest *q, const kvc_shape *shape, int64_t dense) {
    for (uint32_t i = 0; i < q->n_layer; i++) {
        const kvc_layer_shape *s = kvc_shape_layer(shape, i);
        layer *y = &q->layer[i];
        *y = (layer){.lane = q->n_lane,
                     .n_head_kv = s->n_head_kv,
                     .n_group = s->n_head / s->n_head_kv,
                     .dim = s->dim_k,
                     .window = s->window,
                     .dense = i < dense};
        q->n_lane += s->n_head_kv;
        q->n_data += s->n_head_kv * (lane_floats(q, y) + q->n_page);
        q->n_head_kv = s->n_head_kv > q->n_head_kv ? s->n_head_kv : q->n_head_kv;
        q->dim = s->dim_k > q->dim ? s->dim_k : q->dim;
    }
    q->n_data += (size_t)q->n_head_kv * KVC_PAGE * q->dim;
}

static int32_t check(const kvc_host *host, const kvc_host_store *store, const kvc_host_math *math,
                     const kvc_value *value) {
    if (store == NULL || store->struct_size < sizeof *store || math == NULL ||
        math->struct_size < sizeof *math) {
        return host->fail(host->ctx, KVC_E_UNSUPPORTED,
                          "this host lacks " KVC_HOST_STORE " or " KVC_HOST_MATH
                          "; use quest with a newer kvc");
    }
    if (KVC_PAGE % value[BLOCK].i != 0) {
        return host->fail(host->ctx, KVC_E_PARAM,
                          "quest: block must divide a page: 1, 2, 4, 8, 16, 32 or 64");
    }
    return KVC_OK;
}

static int32_t create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                      kvc_plan *plan, void **self) {
    const kvc_host_store *store = host->extension(host->ctx, KVC_HOST_STORE);
    const kvc_host_math *math = host->extension(host->ctx, KVC_HOST_MATH);
    int32_t rc = check(host, store, math, value);
    quest *q = rc < 0 ? NULL : array(host, 1, sizeof *q);
    if (q == NULL) {
        return rc < 0 ? rc : KVC_E_NOMEM;
    }
    *self = q;
    q->host = host;
    q->store = store;
    q->math = math;
    q->share = (uint32_t)value[SHARE].i;
    q->least = (uint32_t)value[LEAST].i;
    q->first = (uint32_t)value[FIRST].i;
    q->recent = (uint32_t)value[RECENT].i;
    q->prompt = (uint32_t)value[PROMPT].i;
    q->n_block = KVC_PAGE / (uint32_t)value[BLOCK].i;
    q->n_page = (shape->n_ctx + KVC_PAGE - 1) / KVC_PAGE;
    q->layer = array(host, shape->n_layer, sizeof *q->layer);
    if (q->layer == NULL) {
        return KVC_E_NOMEM;
    }
    q->n_layer = shape->n_layer;
    layers_set(q, shape, value[DENSE].i);
    q->lane = array(host, q->n_lane, sizeof *q->lane);
    q->data = array(host, q->n_data, sizeof *q->data);
    q->status = array(host, q->n_head_kv, sizeof *q->status);
    if (q->lane == NULL || q->data == NULL || q->status == NULL) {
        return KVC_E_NOMEM;
    }
    lanes_set(q);
    plan->answers = KVC_ANSWERS_WHICH;
    return KVC_OK;
}

static void destroy(void *self) {
    quest *q = self;
    const kvc_host *host = q->host;
    host->realloc(host->ctx, q->layer, q->n_layer * sizeof *q->layer, 0, 64);
    host->realloc(host->ctx, q->lane, q->n_lane * sizeof *q->lane, 0, 64);
    host->realloc(host->ctx, q->data, q->n_data * sizeof *q->data, 0, 64);
    host->realloc(host->ctx, q->status, q->n_head_kv * sizeof *q->status, 0, 64);
    host->realloc(host->ctx, q, sizeof *q, 0, 64);
}

static const kvc_policy_api api = {.struct_size = sizeof api,
                                   .create = create,
                                   .destroy = destroy,
                                   .begin = begin,
                                   .select = select_pages,
                                   .page_end = page_end,
                                   .truncate = truncate,
                                   .stats = stats};

static const kvc_policy policy = {
    .struct_size = sizeof policy,
    .abi = KVC_POLICY_ABI,
    .abi_min = KVC_POLICY_ABI_MIN,
    .n_param = N_PARAM,
    .param_stride = sizeof params[0],
    .caps = KVC_CAP_CHUNK_INVARIANT,
    .name = "quest",
    .version = "1.0.0",
    .summary = "reads the pages alone whose key bounds promise the query most (Quest)",
    .license = "MIT",
    .param = params,
    .api = &api,
};

KVC_POLICY_EXPORT const kvc_policy *kvc_policy_entry(uint32_t host_abi, uint32_t index) {
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}
