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

typedef struct h2o {
    const kvc_host *host;
    const kvc_host_store *store;
    const kvc_host_math *math;
    uint32_t n_layer, n_ctx, most_head;
    uint32_t *n_head; /* [n_layer] KV heads */
    uint32_t recent;
    int age;
    float *score;    /* [most_head][n_ctx]; then, in their place, the numbers of what is kept */
    int32_t *choice; /* [most_head] 1: of the head's entries, 0: all are kept; or a status */
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
    h->score = array(h->host, (size_t)h->most_head * h->n_ctx, sizeof *h->score);
    h->choice = array(h->host, h->most_head, sizeof *h->choice);
    return h->score == NULL || h->choice == NULL ? KVC_E_NOMEM : KVC_OK;
}

static int32_t create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                      kvc_plan *plan, void **self) {
    const kvc_host_store *store = host->extension(host->ctx, KVC_HOST_STORE);
    const kvc_host_math *math = host->extension(host->ctx, KVC_HOST_MATH);
    if (store == NULL || store->struct_size < sizeof *store || math == NULL ||
        math->struct_size < sizeof *math) {
        return host->fail(host->ctx, KVC_E_UNSUPPORTED,
                          "this host lacks " KVC_HOST_STORE " or " KVC_HOST_MATH
                          "; use h2o with a newer kvc");
    }
    h2o *h = array(host, 1, sizeof *h);
    if (h == NULL) {
        return KVC_E_NOMEM;
    }
    *self = h;
    h->host = host;
    h->store = store;
    h->math = math;
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
    host->realloc(host->ctx, h->score, (size_t)h->most_head * h->n_ctx * sizeof *h->score, 0, 64);
    host->realloc(host->ctx, h->choice, h->most_head * sizeof *h->choice, 0, 64);
    host->realloc(host->ctx, h, sizeof *h, 0, 64);
}

/* Scores of a head's first n entries. */
static int32_t score(const h2o *h, uint32_t head, uint32_t n, float *out) {
    void *ctx = h->host->ctx;
    int32_t pos[KVC_PAGE];
    int32_t rc = h->store->get(ctx, h->layer, head, KVC_COLUMN_MASS, 0, n, out);
    for (uint32_t first = 0; rc == KVC_OK && h->age && first < n; first += KVC_PAGE) {
        const uint32_t m = n - first < KVC_PAGE ? n - first : KVC_PAGE;
        rc = h->store->pos(ctx, h->layer, head, first, m, pos);
        for (uint32_t i = 0; rc == KVC_OK && i < m; i++) {
            out[first + i] /= (float)(h->end - pos[i]);
        }
    }
    return rc;
}

/* What a head keeps: the most recent entries, and of the others those of the largest score. */
static void choose(void *arg, uint32_t head) {
    const h2o *h = arg;
    const uint32_t n = h->store->count(h->host->ctx, h->layer, head);
    const uint32_t recent = h->recent > 0 ? h->recent : h->keep / 2, n_top = h->keep - recent;
    h->choice[head] = KVC_OK;
    if (n <= h->keep) {
        return;
    }
    float *scores = h->score + (size_t)head * h->n_ctx;
    uint32_t *kept = (uint32_t *)scores;
    const int32_t rc = score(h, head, n - recent, scores);
    if (rc == KVC_OK) {
        h->math->top(h->host->ctx, scores, n - recent, n_top, kept);
    }
    for (uint32_t i = 0; i < recent; i++) {
        kept[n_top + i] = n - recent + i;
    }
    h->choice[head] = rc < 0 ? rc : 1;
}

static int32_t page_end(void *self, const kvc_step *step, uint32_t layer) {
    h2o *h = self;
    const kvc_host *host = h->host;
    h->layer = layer;
    h->keep = h->store->budget(host->ctx) - KVC_PAGE;
    h->end = step->pos + (int32_t)step->n;
    host->parallel_for(host->ctx, h->n_head[layer], choose, h);
    for (uint32_t head = 0; head < h->n_head[layer]; head++) {
        const uint32_t n = h->store->count(host->ctx, layer, head);
        const uint32_t *kept = (const uint32_t *)(h->score + (size_t)head * h->n_ctx);
        int32_t rc = h->choice[head];
        if (rc > 0) {
            rc = h->store->keep(host->ctx, layer, head, kept, h->keep);
            h->n_evicted += n - h->keep;
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
