/* SPDX-License-Identifier: MIT
 * recent.c: a policy outside kvc's tree, the smallest that gives entries up: a query may attend to
 * the `size` latest positions. Sees kvc/policy.h alone. */
#include <kvc/policy.h>

typedef struct recent {
    const kvc_host *host;
    int32_t size;
} recent;

static int32_t create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                      kvc_plan *plan, void **self) {
    (void)shape;
    recent *r = host->realloc(host->ctx, NULL, 0, sizeof *r, sizeof(void *));
    if (r == NULL) {
        return KVC_E_NOMEM;
    }
    r->host = host;
    r->size = (int32_t)value[0].i;
    plan->answers = KVC_ANSWERS_WHICH;
    plan->flags = KVC_PLAN_BOUNDED;
    *self = r;
    return KVC_OK;
}

static void destroy(void *self) {
    const kvc_host *host = ((recent *)self)->host;
    host->realloc(host->ctx, self, sizeof(recent), 0, sizeof(void *));
}

static uint32_t visible(void *self, uint32_t layer, int32_t pos, kvc_range *out, uint32_t cap) {
    const recent *r = self;
    (void)layer;
    (void)cap;
    out[0].first = pos >= r->size ? pos - r->size + 1 : 0;
    out[0].end = pos + 1;
    return 1;
}

static const kvc_param params[] = {
    {.struct_size = sizeof(kvc_param),
     .type = KVC_PARAM_INT,
     .name = "size",
     .unit = "tokens",
     .help = "latest positions that stay",
     .def = {.i = 64},
     .min = {.i = 1},
     .max = {.i = INT32_MAX}},
};

static const kvc_policy_api api = {
    .struct_size = sizeof api, .create = create, .destroy = destroy, .visible = visible};

static const kvc_policy policy = {.struct_size = sizeof policy,
                                  .abi = KVC_POLICY_ABI,
                                  .abi_min = KVC_POLICY_ABI_MIN,
                                  .n_param = 1,
                                  .param_stride = sizeof(kvc_param),
                                  .caps = KVC_CAP_CHUNK_INVARIANT,
                                  .name = "recent",
                                  .version = "1",
                                  .summary = "keeps the latest positions",
                                  .license = "MIT",
                                  .param = params,
                                  .api = &api};

KVC_POLICY_EXPORT
const kvc_policy *kvc_policy_entry(uint32_t host_abi, uint32_t index) {
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}
