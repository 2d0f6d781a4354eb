/* SPDX-License-Identifier: MIT
 * none: keeps nothing between calls: every token of the text is computed again for each new one.
 * The baseline that shows what a cache is for. Within one call it is `full` of the same type, so
 * its results are those of `full`, at a cost that grows with the square of the text. */
#include <kvc/policy.h>

static const char *const types[] = {"f16", "f32", "bf16", NULL};
static const uint32_t type_of[] = {KVC_TYPE_F16, KVC_TYPE_F32, KVC_TYPE_BF16};

static const kvc_param params[] = {{
    .struct_size = sizeof(kvc_param),
    .type = KVC_PARAM_ENUM,
    .name = "type",
    .help = "number format of keys and values within a call",
    .choice = types,
    .def = {.i = 0},
}};

static int32_t create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                      kvc_plan *plan, void **self) {
    (void)host, (void)self;
    uint32_t type = type_of[value[0].i];
    plan->answers = KVC_ANSWERS_FORMAT;
    plan->flags = KVC_PLAN_TRANSIENT;
    for (uint32_t i = 0; i < shape->n_layer; i++) {
        kvc_format *format = kvc_plan_format(plan, i);
        format->type_k = format->type_v = format->open_type = type;
    }
    return KVC_OK;
}

static const kvc_policy_api api = {.struct_size = sizeof api, .create = create};

static const kvc_policy policy = {
    .struct_size = sizeof policy,
    .abi = KVC_POLICY_ABI,
    .abi_min = KVC_POLICY_ABI_MIN,
    .n_param = 1,
    .param_stride = sizeof params[0],
    .caps = KVC_CAP_CHUNK_INVARIANT | KVC_CAP_LOSSLESS,
    .name = "none",
    .version = "1.0.0",
    .summary = "keeps nothing between calls; computes the whole text again",
    .license = "MIT",
    .param = params,
    .api = &api,
};

KVC_POLICY_EXPORT const kvc_policy *kvc_policy_entry(uint32_t host_abi, uint32_t index) {
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}
