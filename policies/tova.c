/* SPDX-License-Identifier: MIT
 * tova: keeps the entries that the latest query attends to most, one set of positions for all heads
 * of a layer. Oren et al., "Transformers are Multi-State RNNs" (Token Omission Via Attention),
 * arXiv:2401.06104.
 *
 * The score of a position is the attention of the latest query, summed over the query heads of the
 * layer (KVC_COLUMN_MASS_LAST; the paper's mean orders alike). The paper asks each query and gives
 * up the least position at each token. Here only the query at a tick is asked, every 64 tokens and
 * at the end of a prompt, and all that is more than the budget less a page goes at once. So 63 of
 * 64 queries have no say, and an entry lives at least until the tick after it was appended. */
#include <kvc/policy.h>

static const kvc_param params[] = {{
    .struct_size = sizeof(kvc_param),
    .type = KVC_PARAM_BUDGET,
    .name = "budget",
    .help = "most entries that a head holds at any time",
    .def = {.i = KVC_BUDGET_PERCENT(25)},
}};

typedef struct tova {
    const kvc_host *host;
    const kvc_host_store *store;
    const kvc_host_math *math;
    uint32_t n_layer, n_ctx, most_head;
    uint32_t *n_head; /* [n_layer] KV heads */
    float *mass;      /* [most_head][n_ctx]; the first head's becomes the score */
    uint32_t *kept;   /* [n_ctx] */
    int32_t *status;  /* [most_head] */
    uint64_t n_evicted;
    uint32_t layer, n; /* of the tick at hand: the layer and its entries */
} tova;

static void *array(const kvc_host *host, size_t n, size_t size) {
    return host->realloc(host->ctx, NULL, 0, n * size, 64);
}

static int32_t make_arrays(tova *t, const kvc_shape *shape) {
    t->n_head = array(t->host, t->n_layer, sizeof *t->n_head);
    if (t->n_head == NULL) {
        return KVC_E_NOMEM;
    }
    for (uint32_t i = 0; i < t->n_layer; i++) {
        t->n_head[i] = kvc_shape_layer(shape, i)->n_head_kv;
        t->most_head = t->n_head[i] > t->most_head ? t->n_head[i] : t->most_head;
    }
    t->mass = array(t->host, (size_t)t->most_head * t->n_ctx, sizeof *t->mass);
    t->kept = array(t->host, t->n_ctx, sizeof *t->kept);
    t->status = array(t->host, t->most_head, sizeof *t->status);
    return t->mass == NULL || t->kept == NULL || t->status == NULL ? KVC_E_NOMEM : KVC_OK;
}

static int32_t create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                      kvc_plan *plan, void **self) {
    const kvc_host_store *store = host->extension(host->ctx, KVC_HOST_STORE);
    const kvc_host_math *math = host->extension(host->ctx, KVC_HOST_MATH);
    if (store == NULL || store->struct_size < sizeof *store || math == NULL ||
        math->struct_size < sizeof *math) {
        return host->fail(host->ctx, KVC_E_UNSUPPORTED,
                          "this host lacks " KVC_HOST_STORE " or " KVC_HOST_MATH
                          "; use tova with a newer kvc");
    }
    tova *t = array(host, 1, sizeof *t);
    if (t == NULL) {
        return KVC_E_NOMEM;
    }
    *self = t;
    t->host = host;
    t->store = store;
    t->math = math;
    t->n_layer = shape->n_layer;
    t->n_ctx = shape->n_ctx;
    plan->answers = KVC_ANSWERS_WHICH;
    plan->flags = KVC_PLAN_EVICTS | KVC_PLAN_BOUNDED;
    plan->observe = KVC_OBSERVE_MASS_LAST;
    plan->budget = value[0].i;
    plan->budget_least = KVC_PAGE + 1;
    return make_arrays(t, shape);
}

static void destroy(void *self) {
    tova *t = self;
    const kvc_host *host = t->host;
    const size_t mass = (size_t)t->most_head * t->n_ctx * sizeof *t->mass;
    host->realloc(host->ctx, t->n_head, t->n_layer * sizeof *t->n_head, 0, 64);
    host->realloc(host->ctx, t->mass, mass, 0, 64);
    host->realloc(host->ctx, t->kept, t->n_ctx * sizeof *t->kept, 0, 64);
    host->realloc(host->ctx, t->status, t->most_head * sizeof *t->status, 0, 64);
    host->realloc(host->ctx, t, sizeof *t, 0, 64);
}

static void read_mass(void *arg, uint32_t head) {
    const tova *t = arg;
    t->status[head] = t->store->get(t->host->ctx, t->layer, head, KVC_COLUMN_MASS_LAST, 0, t->n,
                                    t->mass + (size_t)head * t->n_ctx);
}

/* Adds the heads' masses in their order. */
static int32_t score(const tova *t, uint32_t n_head) {
    for (uint32_t head = 0; head < n_head; head++) {
        if (t->status[head] < 0) {
            return t->status[head];
        }
        for (uint32_t i = 0; i < t->n && head > 0; i++) {
            t->mass[i] += t->mass[(size_t)head * t->n_ctx + i];
        }
    }
    return KVC_OK;
}

static int32_t page_end(void *self, const kvc_step *step, uint32_t layer) {
    tova *t = self;
    const kvc_host *host = t->host;
    const uint32_t keep = t->store->budget(host->ctx) - KVC_PAGE;
    (void)step;
    t->layer = layer;
    t->n = t->store->count(host->ctx, layer, 0); /* every head has the same entries */
    if (t->n <= keep) {
        return KVC_OK;
    }
    host->parallel_for(host->ctx, t->n_head[layer], read_mass, t);
    const int32_t rc = score(t, t->n_head[layer]);
    if (rc < 0) {
        return rc;
    }
    t->math->top(host->ctx, t->mass, t->n, keep, t->kept);
    t->n_evicted += (uint64_t)(t->n - keep) * t->n_head[layer];
    return t->store->keep(host->ctx, layer, KVC_ALL, t->kept, keep);
}

static int32_t stats(void *self, kvc_claims *out) {
    const tova *t = self;
    out->n_evicted = t->n_evicted;
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
    .n_param = 1,
    .param_stride = sizeof params[0],
    .caps = KVC_CAP_CHUNK_INVARIANT,
    .name = "tova",
    .version = "1.0.0",
    .summary = "keeps what the latest query attends to, one set for all heads of a layer (TOVA)",
    .license = "MIT",
    .param = params,
    .api = &api,
};

KVC_POLICY_EXPORT const kvc_policy *kvc_policy_entry(uint32_t host_abi, uint32_t index) {
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}
