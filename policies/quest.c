/* SPDX-License-Identifier: MIT
 * quest: keeps everything, but a query of generated text reads only the pages that promise it most.
 * It makes decoding faster, not the cache smaller. Tang et al., "Quest: Query-Aware Sparsity for
 * Efficient Long-Context LLM Inference", arXiv:2406.10774: the least and the greatest of every
 * element over a block of keys bound q·k for all of them. A page counts as its best block does.
 * Query heads that share a KV head read the same pages, those of the greatest bound of any head.
 *
 * Measured on SmolLM2-135M, a quarter of the pages read: KLD 3.5e-2 (2048 tokens), 18 of 24 pass
 * keys found (1200 tokens). By the sum of the heads' bounds 3.5e-2 and 14; with blocks of 64 keys
 * 4.6e-2 and 14. By the sum, without the first page, which is a sink, 4.5e-2 and more.
 *
 * A block's bounds are one row of packed keys: its greatest elements, behind them its least, as
 * int8 with a scale. What it promises is the dot of that row with the query's positive elements
 * and, behind them, its negative ones. Rounded like that they bound q·k only nearly, the less so
 * the more one element of a key outweighs the others; on that model bounds as floats, measured
 * beside them, gave the figures above too. A token at 8000 reads 5 MB of bounds, a quarter of what
 * floats take.
 *
 * Bounds are a function of what the store holds. They are taken of a page when it has been sealed,
 * and by an instance that has none yet (a fork, a session that was loaded) of all pages before the
 * next call is computed. So there is no state to save, and going back forgets exactly the bounds of
 * pages at and above the position. */
#include <kvc/policy.h>

#include <math.h>

enum { SHARE, LEAST, FIRST, RECENT, DENSE, BLOCK, PROMPT, N_PARAM }; /* rows of the table */

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
    uint32_t window;     /* the model's own; 0: none */
    uint32_t n_page;     /* pages whose bounds are known */
    uint32_t dense;      /* 1: reads everything */
    kvc_packing packing; /* of bounds: KVC_PAGE blocks, both bounds of each */
    size_t size;         /* bytes of that many */
} layer;

typedef struct lane {
    uint8_t *bound; /* [blocks / KVC_PAGE][size] */
    float *score;   /* [n_page] of select(); then, in their place, the numbers of what is read */
    uint64_t n_selected, n_skipped;
} lane;

/* Scratch of one head; layers take turns. */
typedef struct room {
    float *key; /* [KVC_PAGE, dim] of the page that is looked at */
    float *row; /* [KVC_PAGE, packing.dim] bounds of its blocks; what follows is packed in vain */
    uint8_t *packed; /* [size] the same, packed */
    float *query;    /* [n_group, packing.dim] the query's positive elements, then the negative */
    float *score;    /* [n_group, KVC_PAGE] */
    int32_t status;  /* what became of the page */
} room;

typedef struct quest {
    const kvc_host *host;
    const kvc_host_store *store;
    const kvc_host_math *math;
    uint32_t share, least, first, recent, prompt;
    uint32_t n_block; /* blocks of a page */
    uint32_t n_layer, n_lane, n_page, n_room;
    layer *layer;  /* [n_layer] */
    lane *lane;    /* [n_lane] */
    room *room;    /* [n_room] heads, the most of a layer */
    uint8_t *data; /* [n_data] what lanes and heads point to */
    size_t n_data;
    struct {
        uint32_t layer, page;
        int32_t end; /* positions that the store holds */
    } now;
} quest;

/* ---------------------------------------------------------------- bounds */

/* Takes the bounds of a block from n rows of keys. */
static void bound_block(const layer *y, float *row, const float *k, uint32_t n) {
    const uint32_t dim = y->dim;
    for (uint32_t d = 0; d < dim; d++) {
        float most = -INFINITY, least = INFINITY;
        for (uint32_t i = 0; i < n; i++) {
            const float x = k[(size_t)i * dim + d];
            most = x > most ? x : most;
            least = x < least ? x : least;
        }
        row[d] = most;
        row[dim + d] = least;
    }
    for (uint32_t d = 2 * dim; d < y->packing.dim; d++) {
        row[d] = 0;
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

/* One head of the page that is looked at now. A page that was freed is seen by no query, so it
 * needs no bounds. */
static void bound_head(void *self, uint32_t head) {
    const quest *q = self;
    const layer *y = &q->layer[q->now.layer];
    const lane *l = &q->lane[y->lane + head];
    room *r = &q->room[head];
    const uint32_t rows = KVC_PAGE / q->n_block, to = q->now.page * q->n_block % KVC_PAGE;
    uint8_t *bound = l->bound + q->now.page * q->n_block / KVC_PAGE * y->size;
    const int32_t n = read_keys(q, head, r->key);
    r->status = n < 0 ? n : KVC_OK;
    if (n != KVC_PAGE) {
        return;
    }
    for (uint32_t b = 0; b < q->n_block; b++) {
        bound_block(y, r->row + (size_t)b * y->packing.dim, r->key + (size_t)b * rows * y->dim,
                    rows);
    }
    q->math->pack_k(q->host->ctx, &y->packing, r->row, y->packing.dim, r->packed);
    for (uint32_t b = 0; b < q->n_block; b++) {
        q->math->move_k(q->host->ctx, &y->packing, bound, to + b, r->packed, b);
    }
}

/* Takes the bounds of a layer's pages below n_page, as far as they aren't known. */
static int32_t bound_layer(quest *q, uint32_t index, uint32_t n_page, int32_t end) {
    layer *y = &q->layer[index];
    while (y->dense == 0 && y->n_page < n_page) {
        q->now.layer = index;
        q->now.page = y->n_page;
        q->now.end = end;
        q->host->parallel_for(q->host->ctx, y->n_head_kv, bound_head, q);
        for (uint32_t i = 0; i < y->n_head_kv; i++) {
            if (q->room[i].status < 0) {
                return q->room[i].status;
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

/* The query as bounds are met with: an element that is positive meets the greatest of the keys, one
 * that is negative the least. */
static void split_query(const layer *y, const float *q, float *out) {
    for (uint32_t i = 0; i < y->n_group; i++, q += y->dim, out += y->packing.dim) {
        for (uint32_t d = 0; d < y->dim; d++) {
            out[d] = q[d] < 0 ? 0 : q[d];
            out[y->dim + d] = q[d] < 0 ? q[d] : 0;
        }
        for (uint32_t d = 2 * y->dim; d < y->packing.dim; d++) {
            out[d] = 0;
        }
    }
}

/* The best of each block's scores, of any head of the group, into the first head's. What isn't
 * finite counts as infinite: of keys that aren't, packed bounds have but that they aren't. */
static void best_of_group(float *score, uint32_t n_group) {
    for (uint32_t i = 0; i < n_group; i++) {
        for (uint32_t b = 0; b < KVC_PAGE; b++) {
            const float x = score[i * KVC_PAGE + b], y = isfinite(x) ? x : INFINITY;
            score[b] = y > score[b] || i == 0 ? y : score[b];
        }
    }
}

/* score[] of pages [first, end): the best of their blocks for any head of the group. */
static void score_pages(const quest *q, const layer *y, const lane *l, const room *r,
                        const float *query, uint32_t first, uint32_t end) {
    const uint32_t wide = KVC_PAGE / q->n_block; /* pages whose bounds lie together */
    split_query(y, query, r->query);
    for (uint32_t i = first; i < end; i++) {
        if (i == first || i % wide == 0) {
            q->math->score(q->host->ctx, &y->packing, l->bound + i / wide * y->size, r->query,
                           y->n_group, r->score);
            best_of_group(r->score, y->n_group);
        }
        const float *block = r->score + i % wide * q->n_block;
        l->score[i] = block[0];
        for (uint32_t b = 1; b < q->n_block; b++) {
            l->score[i] = block[b] > l->score[i] ? block[b] : l->score[i];
        }
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
        score_pages(q, y, l, &q->room[query->head], query->q, first, last);
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

static void *array(const kvc_host *host, size_t n, size_t size) {
    return host->realloc(host->ctx, NULL, 0, n * size, 64);
}

/* The next part of the data, as long as there is none only its size. */
static void *part(quest *q, size_t n, size_t size) {
    void *at = q->data == NULL ? NULL : q->data + q->n_data;
    q->n_data += (n * size + 63) / 64 * 64;
    return at;
}

/* Gives lanes and heads their parts. */
static void parts_set(quest *q) {
    uint32_t n_group = 0, dim = 0, wide = 0;
    size_t size = 0;
    q->n_data = 0;
    for (uint32_t i = 0; i < q->n_layer; i++) {
        const layer *y = &q->layer[i];
        const size_t n = ((size_t)q->n_page * q->n_block + KVC_PAGE - 1) / KVC_PAGE;
        for (uint32_t j = y->lane; j < y->lane + y->n_head_kv; j++) {
            q->lane[j].bound = part(q, y->dense != 0 ? 0 : n, y->size);
            q->lane[j].score = part(q, q->n_page, sizeof(float));
        }
        n_group = y->n_group > n_group ? y->n_group : n_group;
        dim = y->dim > dim ? y->dim : dim;
        wide = y->packing.dim > wide ? y->packing.dim : wide;
        size = y->size > size ? y->size : size;
    }
    for (uint32_t i = 0; i < q->n_room; i++) {
        room *r = &q->room[i];
        r->key = part(q, (size_t)KVC_PAGE * dim, sizeof(float));
        r->row = part(q, (size_t)KVC_PAGE * wide, sizeof(float));
        r->packed = part(q, 1, size);
        r->query = part(q, (size_t)n_group * wide, sizeof(float));
        r->score = part(q, (size_t)n_group * KVC_PAGE, sizeof(float));
    }
}

/* The layers of the model. */
static int32_t layers_set(quest *q, const kvc_shape *shape, int64_t dense) {
    for (uint32_t i = 0; i < q->n_layer; i++) {
        const kvc_layer_shape *s = kvc_shape_layer(shape, i);
        layer *y = &q->layer[i];
        *y = (layer){.lane = q->n_lane,
                     .n_head_kv = s->n_head_kv,
                     .n_group = s->n_head / s->n_head_kv,
                     .dim = s->dim_k,
                     .window = s->window,
                     .dense = i < dense,
                     .packing = {.struct_size = sizeof(kvc_packing),
                                 .dim = (2 * s->dim_k + 3) / 4 * 4,
                                 .bits = 8,
                                 .group_entry = 1}};
        if (y->dense == 0 && q->math->check(q->host->ctx, &y->packing) < 0) {
            return q->host->fail(q->host->ctx, KVC_E_UNSUPPORTED,
                                 "quest: this host can't pack the bounds of heads as wide as this "
                                 "model's; use another policy");
        }
        y->size = y->dense == 0 ? q->math->bytes(q->host->ctx, &y->packing) : 0;
        q->n_lane += s->n_head_kv;
        q->n_room = s->n_head_kv > q->n_room ? s->n_head_kv : q->n_room;
    }
    return KVC_OK;
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
    rc = layers_set(q, shape, value[DENSE].i);
    if (rc < 0) {
        return rc;
    }
    q->lane = array(host, q->n_lane, sizeof *q->lane);
    q->room = array(host, q->n_room, sizeof *q->room);
    if (q->lane == NULL || q->room == NULL) {
        return KVC_E_NOMEM;
    }
    parts_set(q);
    q->data = array(host, q->n_data, 1);
    if (q->data == NULL) {
        return KVC_E_NOMEM;
    }
    parts_set(q);
    plan->answers = KVC_ANSWERS_WHICH;
    return KVC_OK;
}

static void destroy(void *self) {
    quest *q = self;
    const kvc_host *host = q->host;
    host->realloc(host->ctx, q->layer, q->n_layer * sizeof *q->layer, 0, 64);
    host->realloc(host->ctx, q->lane, q->n_lane * sizeof *q->lane, 0, 64);
    host->realloc(host->ctx, q->room, q->n_room * sizeof *q->room, 0, 64);
    host->realloc(host->ctx, q->data, q->n_data, 0, 64);
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
