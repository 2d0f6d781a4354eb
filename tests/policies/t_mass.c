/* SPDX-License-Identifier: MIT
 * t_mass: a policy for tests of eviction by attention mass. At each tick every head keeps the
 * `budget` entries that queries have looked at most, and its 32 most recent ones, each head its
 * own. It is a plain form of the idea of Zhang et al., "H2O", arXiv:2306.14048. */
#include <kvc/policy.h>

enum { RECENT = 32 };

static const kvc_param params[] = {{
    .struct_size = sizeof(kvc_param),
    .type = KVC_PARAM_INT,
    .name = "budget",
    .unit = "entries",
    .help = "entries of the largest mass that a head keeps",
    .def = {.i = 64},
    .min = {.i = 0},
    .max = {.i = 1 << 20},
}};

typedef struct t_mass {
    const kvc_host *host;
    const kvc_host_store *store;
    const kvc_host_math *math;
    uint32_t budget, n_layer, n_ctx;
    uint64_t n_evicted;
    uint32_t *n_head; /* [n_layer] KV heads */
    float *mass;      /* [n_ctx] of one head */
    uint32_t *index;  /* [n_ctx] what it keeps */
} t_mass;

static void *array(const kvc_host *host, size_t n, size_t size) {
    return host->realloc(host->ctx, NULL, 0, n * size, 64);
}

static int32_t create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                      kvc_plan *plan, void **self) {
    const kvc_host_store *store = host->extension(host->ctx, KVC_HOST_STORE);
    const kvc_host_math *math = host->extension(host->ctx, KVC_HOST_MATH);
    if (store == NULL || store->struct_size < sizeof *store || math == NULL ||
        math->struct_size < sizeof *math) {
        return host->fail(host->ctx, KVC_E_UNSUPPORTED,
                          "this host lacks " KVC_HOST_STORE " or " KVC_HOST_MATH);
    }
    t_mass *m = array(host, 1, sizeof *m);
    if (m == NULL) {
        return KVC_E_NOMEM;
    }
    *self = m;
    m->host = host;
    m->store = store;
    m->math = math;
    m->budget = (uint32_t)value[0].i;
    m->n_layer = shape->n_layer;
    m->n_ctx = shape->n_ctx;
    m->n_head = array(host, m->n_layer, sizeof *m->n_head);
    m->mass = array(host, m->n_ctx, sizeof *m->mass);
    m->index = array(host, m->n_ctx, sizeof *m->index);
    if (m->n_head == NULL || m->mass == NULL || m->index == NULL) {
        return KVC_E_NOMEM;
    }
    for (uint32_t i = 0; i < m->n_layer; i++) {
        m->n_head[i] = kvc_shape_layer(shape, i)->n_head_kv;
    }
    plan->answers = KVC_ANSWERS_WHICH;
    plan->flags = KVC_PLAN_EVICTS | KVC_PLAN_BOUNDED;
    plan->observe = KVC_OBSERVE_MASS;
    return KVC_OK;
}

static void destroy(void *self) {
    t_mass *m = self;
    const kvc_host *host = m->host;
    host->realloc(host->ctx, m->n_head, m->n_layer * sizeof *m->n_head, 0, 64);
    host->realloc(host->ctx, m->mass, m->n_ctx * sizeof *m->mass, 0, 64);
    host->realloc(host->ctx, m->index, m->n_ctx * sizeof *m->index, 0, 64);
    host->realloc(host->ctx, m, sizeof *m, 0, 64);
}

static int32_t page_end(void *self, const kvc_step *step, uint32_t layer) {
    (void)step;
    t_mass *m = self;
    void *ctx = m->host->ctx;
    for (uint32_t head = 0; head < m->n_head[layer]; head++) {
        uint32_t n = m->store->count(ctx, layer, head);
        if (n <= RECENT || n - RECENT <= m->budget) {
            continue;
        }
        int32_t rc = m->store->get(ctx, layer, head, KVC_COLUMN_MASS, 0, n - RECENT, m->mass);
        if (rc < 0) {
            return rc;
        }
        uint32_t n_keep = m->math->top(ctx, m->mass, n - RECENT, m->budget, m->index);
        for (uint32_t i = n - RECENT; i < n; i++) {
            m->index[n_keep++] = i;
        }
        rc = m->store->keep(ctx, layer, head, m->index, n_keep);
        if (rc < 0) {
            return rc;
        }
        m->n_evicted += n - n_keep;
    }
    return KVC_OK;
}

static int32_t stats(void *self, kvc_claims *out) {
    const t_mass *m = self;
    out->n_evicted = m->n_evicted;
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
    .name = "t_mass",
    .version = "1.0.0",
    .summary = "test: evicts by attention mass, each head for itself",
    .license = "MIT",
    .param = params,
    .api = &api,
};

KVC_POLICY_EXPORT const kvc_policy *kvc_policy_entry(uint32_t host_abi, uint32_t index) {
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}
