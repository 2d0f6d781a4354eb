/* SPDX-License-Identifier: MIT
 * h2o: keeps the entries that queries have attended to most so far, each KV head its own, and the
 * most recent ones. Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of
 * Large Language Models", arXiv:2306.14048.
 *
 * The mass of an entry is the sum of its attention probabilities over all queries since it was
 * appended and the query heads of its KV head (KVC_COLUMN_MASS). The paper gives up one entry at
 * each token; here a tick of the clock, every 64 tokens and at the end of a prompt, gives up what
 * is more than the budget less a page, so that the page to come has room and the budget is never
 * exceeded. With age=on the mass is divided by the number of queries that could see the entry, else
 * late entries of much attention lose against early ones that had more time. */
#include <kvc/policy.h>

#include <string.h>

enum { BUDGET, RECENT, AGE, N_PARAM }; /* rows of the table */

static const kvc_param params[N_PARAM] = {
    [BUDGET] = {.struct_size = sizeof(kvc_param),
                .type = KVC_PARAM_BUDGET,
                .name = "budget",
                .help = "most entries that a head holds at any time",
                .def = {.i = KVC_BUDGET_PERCENT(25)}},
    [RECENT] = {.struct_size = sizeof(kvc_param),
                .type = KVC_PARAM_INT,
                .name = "recent",
                .unit = "tokens",
                .help = "most recent entries that a tick never gives up; 0: half of what it keeps",
                .def = {.i = 0},
                .min = {.i = 0},
                .max = {.i = 1 << 30}},
    [AGE] = {.struct_size = sizeof(kvc_param),
             .type = KVC_PARAM_BOOL,
             .name = "age",
             .help = "divide an entry's mass by the number of queries that could see it",
             .def = {.i = 0}},
};

/* What a worker finds for one head. */
typedef struct choice {
    uint32_t n, n_keep; /* entries, and those to keep */
    int32_t status;
    uint32_t *key; /* [n_ctx] scores, then the numbers of what is kept */
} choice;

typedef struct h2o {
    const kvc_host *host;
    const kvc_host_store *store;
    uint32_t n_layer, n_ctx, most_head;
    uint32_t *n_head; /* [n_layer] KV heads */
    uint32_t recent;
    int age;
    choice *choice; /* [most_head] */
    uint32_t *key;  /* their memory */
    uint64_t n_evicted;
    /* of the tick at hand */
    uint32_t layer, keep;
    int32_t end; /* tokens so far */
} h2o;

static void *array(const kvc_host *host, size_t n, size_t size) {
    return host->realloc(host->ctx, NULL, 0, n * size, 64);
}

static int32_t make_arrays(h2o *h, const kvc_shape *shape) {
    h->n_head = array(h->host, h->n_layer, sizeof *h->n_head);
    if (h->n_head == NULL) {
        return KVC_E_NOMEM;
    }
    for (uint32_t i = 0; i < h->n_layer; i++) {
        h->n_head[i] = kvc_shape_layer(shape, i)->n_head_kv;
        h->most_head = h->n_head[i] > h->most_head ? h->n_head[i] : h->most_head;
    }
    h->choice = array(h->host, h->most_head, sizeof *h->choice);
    h->key = array(h->host, (size_t)h->most_head * h->n_ctx, sizeof *h->key);
    if (h->choice == NULL || h->key == NULL) {
        return KVC_E_NOMEM;
    }
    for (uint32_t i = 0; i < h->most_head; i++) {
        h->choice[i].key = h->key + (size_t)i * h->n_ctx;
    }
    return KVC_OK;
}

static int32_t create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                      kvc_plan *plan, void **self) {
    const kvc_host_store *store = host->extension(host->ctx, KVC_HOST_STORE);
    if (store == NULL || store->struct_size < sizeof *store) {
        return host->fail(host->ctx, KVC_E_UNSUPPORTED,
                          "this host lacks " KVC_HOST_STORE "; use h2o with a newer kvc");
    }
    h2o *h = array(host, 1, sizeof *h);
    if (h == NULL) {
        return KVC_E_NOMEM;
    }
    *self = h;
    h->host = host;
    h->store = store;
    h->n_layer = shape->n_layer;
    h->n_ctx = shape->n_ctx;
    h->recent = (uint32_t)value[RECENT].i;
    h->age = value[AGE].i != 0;
    plan->answers = KVC_ANSWERS_WHICH;
    plan->flags = KVC_PLAN_EVICTS | KVC_PLAN_BOUNDED;
    plan->observe = KVC_OBSERVE_MASS;
    plan->budget = value[BUDGET].i;
    plan->budget_least = KVC_PAGE + (h->recent > 0 ? h->recent : 2);
    return make_arrays(h, shape);
}

static void destroy(void *self) {
    h2o *h = self;
    const kvc_host *host = h->host;
    host->realloc(host->ctx, h->n_head, h->n_layer * sizeof *h->n_head, 0, 64);
    host->realloc(host->ctx, h->choice, h->most_head * sizeof *h->choice, 0, 64);
    host->realloc(host->ctx, h->key, (size_t)h->most_head * h->n_ctx * sizeof *h->key, 0, 64);
    host->realloc(host->ctx, h, sizeof *h, 0, 64);
}

/* The n_top-th largest of key[n], found bit by bit. */
static uint32_t threshold(const uint32_t *key, uint32_t n, uint32_t n_top) {
    uint32_t t = 0;
    for (uint32_t bit = UINT32_C(1) << 31; bit != 0; bit >>= 1) {
        uint32_t count = 0;
        for (uint32_t i = 0; i < n; i++) {
            count += key[i] >= (t | bit);
        }
        t |= count >= n_top ? bit : 0;
    }
    return t;
}

/* The numbers of the n_top largest of key[n], ascending, in their place; of equal ones the later.
 */
static void choose_top(uint32_t *key, uint32_t n, uint32_t n_top) {
    const uint32_t t = threshold(key, n, n_top);
    uint32_t skip = 0, m = 0; /* of those equal to t the first are too many */
    for (uint32_t i = 0; i < n; i++) {
        skip += key[i] >= t;
    }
    skip -= n_top;
    for (uint32_t i = 0; i < n; i++) {
        if (key[i] > t || (key[i] == t && skip == 0)) {
            key[m++] = i;
        } else {
            skip -= key[i] == t;
        }
    }
}

/* Scores of a head's first n entries as keys: floats that aren't negative are ordered as their bits
 * are. */
static int32_t score(const h2o *h, uint32_t head, uint32_t n, uint32_t *key) {
    void *ctx = h->host->ctx;
    float mass[KVC_PAGE];
    int32_t pos[KVC_PAGE];
    for (uint32_t first = 0; first < n; first += KVC_PAGE) {
        const uint32_t m = n - first < KVC_PAGE ? n - first : KVC_PAGE;
        int32_t rc = h->store->get(ctx, h->layer, head, KVC_COLUMN_MASS, first, m, mass);
        if (rc == KVC_OK && h->age) {
            rc = h->store->pos(ctx, h->layer, head, first, m, pos);
        }
        if (rc < 0) {
            return rc;
        }
        for (uint32_t i = 0; i < m && h->age; i++) {
            mass[i] /= (float)(h->end - pos[i]);
        }
        memcpy(key + first, mass, m * sizeof *key);
    }
    return KVC_OK;
}

/* What a head keeps: the most recent entries, and of the others those of the largest score. */
static void choose(void *arg, uint32_t head) {
    const h2o *h = arg;
    choice *c = &h->choice[head];
    c->n = c->n_keep = h->store->count(h->host->ctx, h->layer, head);
    c->status = KVC_OK;
    if (c->n <= h->keep) {
        return;
    }
    const uint32_t recent = h->recent > 0 ? h->recent : h->keep / 2;
    const uint32_t n_old = c->n - recent, n_top = h->keep - recent;
    c->status = score(h, head, n_old, c->key);
    if (c->status < 0) {
        return;
    }
    choose_top(c->key, n_old, n_top);
    for (uint32_t i = 0; i < recent; i++) {
        c->key[n_top + i] = n_old + i;
    }
    c->n_keep = h->keep;
}

static int32_t page_end(void *self, const kvc_step *step, uint32_t layer) {
    h2o *h = self;
    const kvc_host *host = h->host;
    h->layer = layer;
    h->keep = h->store->budget(host->ctx) - KVC_PAGE;
    h->end = step->pos + (int32_t)step->n;
    host->parallel_for(host->ctx, h->n_head[layer], choose, h);
    for (uint32_t head = 0; head < h->n_head[layer]; head++) {
        const choice *c = &h->choice[head];
        int32_t rc = c->status;
        if (rc == KVC_OK && c->n_keep < c->n) {
            rc = h->store->keep(host->ctx, layer, head, c->key, c->n_keep);
            h->n_evicted += c->n - c->n_keep;
        }
        if (rc < 0) {
            return rc;
        }
    }
    return KVC_OK;
}

static int32_t stats(void *self, kvc_claims *out) {
    const h2o *h = self;
    out->n_evicted = h->n_evicted;
    return KVC_OK;
}

/* No state but the store's: rewind() stays NULL, and since entries are evicted the engine goes back
 * to 0. */
static const kvc_policy_api api = {.struct_size = sizeof api,
                                   .create = create,
                                   .destroy = destroy,
                                   .page_end = page_end,
                                   .stats = stats};

static const kvc_policy policy = {
    .struct_size = sizeof policy,
    .abi = KVC_POLICY_ABI,
    .abi_min = KVC_POLICY_ABI_MIN,
    .n_param = N_PARAM,
    .param_stride = sizeof params[0],
    .caps = KVC_CAP_CHUNK_INVARIANT,
    .name = "h2o",
    .version = "1.0.0",
    .summary = "keeps recent entries and those that got most attention so far (H2O)",
    .license = "MIT",
    .param = params,
    .api = &api,
};

KVC_POLICY_EXPORT const kvc_policy *kvc_policy_entry(uint32_t host_abi, uint32_t index) {
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}
