/* SPDX-License-Identifier: MIT
 * window: attends to the most recent `size` tokens and to the first `sinks` ones, and gives up what
 * lies between, so that memory stops growing with the text. A pure function of the position: no
 * state, no eviction of its own. The store frees what visible() will never name again.
 *
 * Sinks: Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (StreamingLLM),
 * arXiv:2309.17453. The first tokens draw much of the attention whatever they say, and a window
 * without them breaks the model. With positions=cache, as in the paper, distances are those in the
 * cache: the gap between sinks and window is closed. */
#include <kvc/policy.h>

enum { SIZE, SINKS, POSITIONS, N_PARAM }; /* rows of the table */

static const char *const positions[] = {"original", "cache", NULL};

static const kvc_param params[N_PARAM] = {
    [SIZE] = {.struct_size = sizeof(kvc_param),
              .type = KVC_PARAM_INT,
              .name = "size",
              .unit = "tokens",
              .help = "most recent tokens that are attended to, the present one included",
              .def = {.i = 1024},
              .min = {.i = 1},
              .max = {.i = INT32_MAX}},
    [SINKS] = {.struct_size = sizeof(kvc_param),
               .type = KVC_PARAM_INT,
               .name = "sinks",
               .unit = "tokens",
               .help = "first tokens that are always attended to",
               .def = {.i = 4},
               .min = {.i = 0},
               .max = {.i = INT32_MAX}},
    [POSITIONS] = {.struct_size = sizeof(kvc_param),
                   .type = KVC_PARAM_ENUM,
                   .name = "positions",
                   .help = "distances are those in the text (original) or in the cache",
                   .choice = positions,
                   .def = {.i = 0}},
};

typedef struct window {
    const kvc_host *host;
    int32_t size, sinks;
} window;

static int32_t create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                      kvc_plan *plan, void **self) {
    (void)shape;
    window *w = host->realloc(host->ctx, NULL, 0, sizeof *w, _Alignof(window));
    if (w == NULL) {
        return KVC_E_NOMEM;
    }
    *self = w;
    w->host = host;
    w->size = (int32_t)value[SIZE].i;
    w->sinks = (int32_t)value[SINKS].i;
    plan->answers = KVC_ANSWERS_WHICH;
    plan->flags = KVC_PLAN_BOUNDED;
    plan->positions = value[POSITIONS].i ? KVC_POSITIONS_CACHE : KVC_POSITIONS_ORIGINAL;
    return KVC_OK;
}

static void destroy(void *self) {
    window *w = self;
    w->host->realloc(w->host->ctx, w, sizeof *w, 0, _Alignof(window));
}

static uint32_t visible(void *self, uint32_t layer, int32_t pos, kvc_range *out, uint32_t cap) {
    (void)layer, (void)cap;
    const window *w = self;
    if (pos < w->size || pos - w->size < w->sinks) {
        out[0] = (kvc_range){0, pos + 1};
        return 1;
    }
    kvc_range recent = {pos - w->size + 1, pos + 1};
    if (w->sinks == 0) {
        out[0] = recent;
        return 1;
    }
    out[0] = (kvc_range){0, w->sinks};
    out[1] = recent;
    return 2;
}

static const kvc_policy_api api = {
    .struct_size = sizeof api, .create = create, .destroy = destroy, .visible = visible};

static const kvc_policy policy = {
    .struct_size = sizeof policy,
    .abi = KVC_POLICY_ABI,
    .abi_min = KVC_POLICY_ABI_MIN,
    .n_param = N_PARAM,
    .param_stride = sizeof params[0],
    .caps = KVC_CAP_CHUNK_INVARIANT,
    .name = "window",
    .version = "1.0.0",
    .summary = "attends to the most recent tokens and to the first few (StreamingLLM)",
    .license = "MIT",
    .param = params,
    .api = &api,
};

KVC_POLICY_EXPORT const kvc_policy *kvc_policy_entry(uint32_t host_abi, uint32_t index) {
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}
