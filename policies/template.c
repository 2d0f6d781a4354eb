/* SPDX-License-Identifier: MIT
 * template: a policy to begin with. It attends to the latest `size` tokens. It compiles and runs as
 * it stands; docs/writing-a-policy.md explains each part and every hook that isn't used here.
 *
 * To make a policy of your own of it:
 *   1. Copy this file to NAME.c and put NAME for every "template" in it. A name is [a-z][a-z0-9_-]*
 *      and should be that of the file.
 *   2. List the parameters. The host parses, checks and documents them.
 *   3. Declare the instance: what one session needs. No mutable globals.
 *   4. create(): take the values, ask the host for what you need, fill in the plan.
 *   5. destroy(): give back what create() took.
 *   6. Write the hooks that your plan needs, and take out visible() if it isn't one of them.
 *   7. Enter them in the table of functions.
 *   8. Say in the description what the policy promises.
 *   9. Build: kvc_add_policy(NAME NAME.c) in CMake after find_package(kvc), or
 *      cc -shared -fPIC -fvisibility=hidden NAME.c $(pkg-config --cflags kvc) -o NAME.so
 *  10. Test: kvcheck ./NAME.so. Measure: kvcompare -m model.gguf -p full,./NAME.so */
#include <kvc/policy.h>

/* Step 2. One row for each parameter; value[] in create() is in this order. */
enum { SIZE, N_PARAM };

static const kvc_param params[N_PARAM] = {
    [SIZE] = {.struct_size = sizeof(kvc_param),
              .type = KVC_PARAM_INT,
              .name = "size",
              .unit = "tokens",
              .help = "latest tokens that are attended to",
              .def = {.i = 256},
              .min = {.i = 1},
              .max = {.i = INT32_MAX}},
};

/* Step 3. */
typedef struct instance {
    const kvc_host *host;
    int32_t size;
} instance;

/* Step 4. All memory comes from the host, is zero, and is counted as the policy's. shape and value
 * are gone when this returns. */
static int32_t create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                      kvc_plan *plan, void **self) {
    (void)shape;
    instance *t = host->realloc(host->ctx, NULL, 0, sizeof *t, _Alignof(instance));
    if (t == NULL) {
        return KVC_E_NOMEM;
    }
    *self = t; /* from here on destroy() is called, whatever this returns */
    t->host = host;
    t->size = (int32_t)value[SIZE].i;
    plan->answers = KVC_ANSWERS_WHICH;
    plan->flags = KVC_PLAN_BOUNDED;
    return KVC_OK;
}

/* Step 5. */
static void destroy(void *self) {
    instance *t = self;
    t->host->realloc(t->host->ctx, t, sizeof *t, 0, _Alignof(instance));
}

/* Step 6. The positions that the query at pos attends to, a pure function. What no later query will
 * see is freed by the store. */
static uint32_t visible(void *self, uint32_t layer, int32_t pos, kvc_range *out, uint32_t cap) {
    const instance *t = self;
    (void)layer, (void)cap;
    out[0].first = pos < t->size ? 0 : pos - t->size + 1;
    out[0].end = pos + 1;
    return 1;
}

/* Step 7. What is left out, the store does. */
static const kvc_policy_api api = {
    .struct_size = sizeof api,
    .create = create,
    .destroy = destroy,
    .visible = visible, /* which: ranges of positions */
    /* .select    which: pages that one query reads
     * .append    shows rows before they are stored
     * .page_end  a tick in each layer: may evict there
     * .end       a tick after all layers: may evict anywhere
     * .begin     a call is about to be computed
     * .rewind, .truncate   going back, for what the instance remembers
     * .save, .load         the same for forks and files, with KVC_PLAN_STATE
     * .stats     figures of the policy's own
     * A format is filled in in create(): kvc_plan_format(), or plan->codec; a tier: plan->tier. */
};

/* Step 8. */
static const kvc_policy policy = {
    .struct_size = sizeof policy,
    .abi = KVC_POLICY_ABI,
    .abi_min = KVC_POLICY_ABI_MIN,
    .n_param = N_PARAM,
    .param_stride = sizeof params[0],
    .caps = KVC_CAP_CHUNK_INVARIANT,
    .name = "template",
    .version = "0.1.0",
    .summary = "attends to the latest tokens: a policy to begin with",
    .license = "MIT",
    .param = params,
    .api = &api,
};

KVC_POLICY_EXPORT const kvc_policy *kvc_policy_entry(uint32_t host_abi, uint32_t index) {
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}
