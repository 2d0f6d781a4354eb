/* SPDX-License-Identifier: MIT
 * broken.c: policies that break the contract, one break each. Compiled once for every case, as
 * b_<what>.so, with -DBROKEN_<WHAT> and -DBROKEN_NAME="b_<what>". Without a case it is a sound
 * policy. The registry's tests load the first half, the stack's and the session's the second. */
#include <kvc/policy.h>

#include <math.h>

#ifndef BROKEN_NAME
#define BROKEN_NAME "b_nothing"
#endif

/* ---------------------------------------------------------------- what a file says of itself */

#if defined(BROKEN_ABI_OLD)
enum { ABI = KVC_POLICY_ABI_MIN - 1, ABI_MIN = KVC_POLICY_ABI_MIN - 1 };
#elif defined(BROKEN_ABI_NEW)
enum { ABI = KVC_POLICY_ABI + 1, ABI_MIN = KVC_POLICY_ABI + 1 };
#elif defined(BROKEN_ABI_MIN)
enum { ABI = KVC_POLICY_ABI, ABI_MIN = KVC_POLICY_ABI + 1 };
#else
enum { ABI = KVC_POLICY_ABI, ABI_MIN = KVC_POLICY_ABI_MIN };
#endif

#if defined(BROKEN_SIZE_TINY)
enum { POLICY_SIZE = 8 };
#elif defined(BROKEN_SIZE_SMALL)
enum { POLICY_SIZE = sizeof(kvc_policy) - 8 };
#else
enum { POLICY_SIZE = sizeof(kvc_policy) };
#endif

#if defined(BROKEN_SIZE_API)
enum { API_SIZE = sizeof(kvc_policy_api) - 8 };
#else
enum { API_SIZE = sizeof(kvc_policy_api) };
#endif

#if defined(BROKEN_NAME_BAD)
#define NAME "Bad Name"
#elif defined(BROKEN_NAME_LONG)
#define NAME "a23456789_123456789_123456789_123"
#elif defined(BROKEN_NAME_OTHER)
#define NAME "other"
#elif defined(BROKEN_NAME_NULL)
#define NAME NULL
#else
#define NAME BROKEN_NAME
#endif

/* The member that is missing; a choice of values, so that nothing else becomes unused. */
enum { NOTHING, API, CREATE, SUMMARY, PARAMS, PAGE_BYTES, ENCODE, DECODE };
#if defined(BROKEN_NO_API)
#define LACKS API
#elif defined(BROKEN_NO_CREATE)
#define LACKS CREATE
#elif defined(BROKEN_NO_SUMMARY)
#define LACKS SUMMARY
#elif defined(BROKEN_PARAM_NULL)
#define LACKS PARAMS
#elif defined(BROKEN_CODEC_PAGE_BYTES)
#define LACKS PAGE_BYTES
#elif defined(BROKEN_CODEC_ENCODE)
#define LACKS ENCODE
#elif defined(BROKEN_CODEC_DECODE)
#define LACKS DECODE
#else
#define LACKS NOTHING
#endif

#if defined(BROKEN_REQUIRES)
#define REQUIRES ((uint64_t)1 << 5)
#else
#define REQUIRES 0
#endif

/* ---------------------------------------------------------------- parameters */

#define ROW(kind, word)                                                                            \
    .struct_size = sizeof(kvc_param), .type = KVC_PARAM_##kind, .name = word, .help = "a parameter"

#if defined(BROKEN_PARAM_CHOICE) || defined(BROKEN_PARAM_CHOICE_DEF)
static const char *const choices[] = {
#if defined(BROKEN_PARAM_CHOICE_DEF)
    "a", "b",
#endif
    NULL};
#endif

static const kvc_param params[] = {
    {ROW(INT, "sound"), .def = {.i = 2}, .min = {.i = 1}, .max = {.i = 3}},
#if defined(BROKEN_PARAM_TWICE)
    {ROW(BOOL, "sound")},
#elif defined(BROKEN_PARAM_NAME)
    {ROW(BOOL, "Un-sound")},
#elif defined(BROKEN_PARAM_NAME_NULL)
    {ROW(BOOL, NULL)},
#elif defined(BROKEN_PARAM_TYPE)
    {.struct_size = sizeof(kvc_param), .type = 99, .name = "unsound", .help = "a parameter"},
#elif defined(BROKEN_PARAM_HELP)
    {.struct_size = sizeof(kvc_param), .type = KVC_PARAM_BOOL, .name = "unsound"},
#elif defined(BROKEN_PARAM_DEF)
    {ROW(INT, "unsound"), .def = {.i = 4}, .min = {.i = 1}, .max = {.i = 3}},
#elif defined(BROKEN_PARAM_NAN)
    {ROW(FLOAT, "unsound"), .def = {.f = NAN}, .min = {.f = 0}, .max = {.f = 1}},
#elif defined(BROKEN_PARAM_INF)
    {ROW(FLOAT, "unsound"), .def = {.f = 0}, .min = {.f = 0}, .max = {.f = INFINITY}},
#elif defined(BROKEN_PARAM_BOOL)
    {ROW(BOOL, "unsound"), .def = {.i = 2}},
#elif defined(BROKEN_PARAM_CHOICE_NULL)
    {ROW(ENUM, "unsound")},
#elif defined(BROKEN_PARAM_CHOICE) || defined(BROKEN_PARAM_CHOICE_DEF)
    {ROW(ENUM, "unsound"), .choice = choices, .def = {.i = 2}},
#elif defined(BROKEN_PARAM_SIZE)
    {.struct_size = 8, .type = KVC_PARAM_BOOL, .name = "unsound", .help = "a parameter"},
#endif
};

#if defined(BROKEN_PARAM_MANY)
enum { N_PARAM = 65 };
#else
enum { N_PARAM = sizeof params / sizeof params[0] };
#endif

#if defined(BROKEN_PARAM_STRIDE)
enum { STRIDE = 4 };
#else
enum { STRIDE = sizeof(kvc_param) };
#endif

/* ---------------------------------------------------------------- a plan that can't be */

/* A codec whose pages are always the same and hold nothing. */
static int32_t encode(void *self, const kvc_rows *rows, void *dst) {
    (void)self, (void)rows;
    *(char *)dst = 0;
#if defined(BROKEN_ENCODE_FAILS)
    return KVC_E_POLICY;
#else
    return KVC_OK;
#endif
}

static int32_t decode(void *self, const kvc_page *page, float *k, float *v) {
    (void)self, (void)page;
    k[0] = v[0] = 0;
#if defined(BROKEN_CODEC_NAN)
    v[0] = NAN;
#endif
#if defined(BROKEN_DECODE_FAILS)
    return KVC_E_POLICY;
#else
    return KVC_OK;
#endif
}

static size_t page_bytes(void *self, uint32_t layer) {
    (void)self, (void)layer;
#if defined(BROKEN_CODEC_PAGE0)
    return 0;
#elif defined(BROKEN_CODEC_PAGE_HUGE)
    return SIZE_MAX;
#else
    return 1;
#endif
}

static const kvc_codec codec = {
#if defined(BROKEN_CODEC_SIZE)
    .struct_size = 8,
#else
    .struct_size = sizeof codec,
#endif
#if defined(BROKEN_CODEC_MOVE)
    .flags = KVC_CODEC_MOVABLE,
#endif
    .page_bytes = LACKS == PAGE_BYTES ? NULL : page_bytes,
    .encode = LACKS == ENCODE ? NULL : encode,
    .decode = LACKS == DECODE ? NULL : decode,
};

static void plan_break(kvc_plan *plan) {
    plan->answers = KVC_ANSWERS_WHICH;
#if defined(BROKEN_PLAN_ANSWERS)
    plan->answers = 0;
#elif defined(BROKEN_PLAN_ANSWERS_BITS)
    plan->answers = 1u << 9;
#elif defined(BROKEN_PLAN_WHERE)
    plan->answers = KVC_ANSWERS_WHERE;
#elif defined(BROKEN_PLAN_QUANTUM)
    plan->quantum = 3;
#elif defined(BROKEN_PLAN_COLUMNS)
    plan->n_column = 1000;
#elif defined(BROKEN_PLAN_OBSERVE)
    plan->observe = 1u << 9;
#elif defined(BROKEN_PLAN_POSITIONS)
    plan->positions = 9;
#elif defined(BROKEN_PLAN_CACHE_EVICTS)
    plan->positions = KVC_POSITIONS_CACHE;
    plan->flags = KVC_PLAN_EVICTS;
#elif defined(BROKEN_PLAN_TYPE)
    plan->answers = KVC_ANSWERS_FORMAT;
    kvc_plan_format(plan, 0)->type_k = 77;
#elif defined(BROKEN_PLAN_UNSAID)
    kvc_plan_format(plan, 0)->type_k = KVC_TYPE_F32;
#endif
#if defined(BROKEN_CODEC_PAGE0) || defined(BROKEN_CODEC_PAGE_HUGE) ||                              \
    defined(BROKEN_CODEC_SIZE) || defined(BROKEN_CODEC_MOVE) ||                                    \
    defined(BROKEN_CODEC_PAGE_BYTES) || defined(BROKEN_CODEC_ENCODE) ||                            \
    defined(BROKEN_CODEC_DECODE) || defined(BROKEN_CODEC_NAN) || defined(BROKEN_ENCODE_FAILS) ||   \
    defined(BROKEN_DECODE_FAILS)
    plan->answers = KVC_ANSWERS_FORMAT;
    plan->codec = &codec;
#else
    (void)codec;
#endif
#if defined(BROKEN_KEEP_ORDER) || defined(BROKEN_KEEP_RANGE) || defined(BROKEN_KEEP_IN_BEGIN)
    plan->flags = KVC_PLAN_EVICTS;
#endif
}

/* ---------------------------------------------------------------- hooks that fail */

static int32_t create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                      kvc_plan *plan, void **self) {
    (void)shape, (void)value;
    *self = (void *)(uintptr_t)host;
    plan_break(plan);
#if defined(BROKEN_LEAKS)
    host->account(host->ctx, KVC_BYTES_MEMORY, 1000); /* and never back */
#endif
#if defined(BROKEN_CREATE_FAILS)
    return host->fail(host->ctx, KVC_E_PARAM, "create says no on purpose");
#elif defined(BROKEN_CREATE_MUTE)
    return KVC_E_POLICY;
#elif defined(BROKEN_CREATE_NOMEM)
    return KVC_E_NOMEM;
#elif defined(BROKEN_CREATE_CODE)
    return -12345;
#else
    return KVC_OK;
#endif
}

#if defined(BROKEN_BEGIN_FAILS) || defined(BROKEN_BEGIN_NOMEM) || defined(BROKEN_BEGIN_HIGH) ||    \
    defined(BROKEN_BEGIN_NEGATIVE) || defined(BROKEN_KEEP_IN_BEGIN)
#define HOOK_BEGIN begin
static int32_t begin(void *self, const kvc_step *step, int32_t *from) {
    const kvc_host *host = self;
    (void)from;
#if defined(BROKEN_BEGIN_NOMEM)
    (void)host;
    return step->pos > 0 ? KVC_E_NOMEM : KVC_OK;
#elif defined(BROKEN_BEGIN_HIGH)
    (void)host;
    *from = step->pos + 1;
    return KVC_OK;
#elif defined(BROKEN_BEGIN_NEGATIVE)
    (void)host, (void)step;
    *from = -1;
    return KVC_OK;
#elif defined(BROKEN_KEEP_IN_BEGIN)
    const kvc_host_store *store = host->extension(host->ctx, KVC_HOST_STORE);
    const uint32_t index = 0;
    return step->pos > 0 ? store->keep(host->ctx, 0, 0, &index, 1) : KVC_OK;
#else
    return step->pos > 0 ? host->fail(host->ctx, KVC_E_IO, "begin says no on purpose") : KVC_OK;
#endif
}
#else
#define HOOK_BEGIN NULL
#endif

#if defined(BROKEN_APPEND_FAILS)
#define HOOK_APPEND append
static int32_t append(void *self, const kvc_rows *rows) {
    const kvc_host *host = self;
    (void)rows;
    return host->fail(host->ctx, KVC_E_POLICY, "append says no on purpose");
}
#else
#define HOOK_APPEND NULL
#endif

#if defined(BROKEN_SELECT_FAILS)
#define HOOK_SELECT select_pages
static int32_t select_pages(void *self, const kvc_rows *query, uint64_t *page, uint32_t n_page) {
    const kvc_host *host = self;
    (void)query, (void)page, (void)n_page;
    return host->fail(host->ctx, KVC_E_POLICY, "select says no on purpose");
}
#else
#define HOOK_SELECT NULL
#endif

#if defined(BROKEN_PAGE_END_FAILS) || defined(BROKEN_KEEP_ORDER) || defined(BROKEN_KEEP_RANGE) ||  \
    defined(BROKEN_KEEP_UNSAID) || defined(BROKEN_HANGS)
#define HOOK_PAGE_END page_end
static int32_t page_end(void *self, const kvc_step *step, uint32_t layer) {
    const kvc_host *host = self;
    (void)step, (void)layer;
#if defined(BROKEN_PAGE_END_FAILS)
    return host->fail(host->ctx, KVC_E_POLICY, "page_end says no on purpose");
#elif defined(BROKEN_HANGS)
    volatile int for_ever = host != NULL;
    while (for_ever != 0) {
    }
    return KVC_OK;
#else
    const kvc_host_store *store = host->extension(host->ctx, KVC_HOST_STORE);
#if defined(BROKEN_KEEP_ORDER)
    const uint32_t index[] = {1, 0};
#elif defined(BROKEN_KEEP_RANGE)
    const uint32_t index[] = {0, 1u << 30};
#else
    const uint32_t index[] = {0, 1};
#endif
    return store->keep(host->ctx, layer, 0, index, 2);
#endif
}
#else
#define HOOK_PAGE_END NULL
#endif

#if defined(BROKEN_END_FAILS)
#define HOOK_END end
static int32_t end(void *self, const kvc_step *step) {
    const kvc_host *host = self;
    (void)step;
    return host->fail(host->ctx, KVC_E_POLICY, "end says no on purpose");
}
#else
#define HOOK_END NULL
#endif

#if defined(BROKEN_VISIBLE_ORDER) || defined(BROKEN_VISIBLE_MANY) ||                               \
    defined(BROKEN_VISIBLE_FUTURE) || defined(BROKEN_VISIBLE_NONE)
#define HOOK_VISIBLE visible
static uint32_t visible(void *self, uint32_t layer, int32_t pos, kvc_range *out, uint32_t cap) {
    (void)self, (void)layer, (void)pos, (void)cap;
#if defined(BROKEN_VISIBLE_ORDER)
    out[0] = (kvc_range){pos, pos + 1};
    out[1] = (kvc_range){0, 1};
    return 2;
#elif defined(BROKEN_VISIBLE_MANY)
    out[0] = (kvc_range){0, pos + 1};
    return cap + 1;
#elif defined(BROKEN_VISIBLE_FUTURE)
    out[0] = (kvc_range){0, pos + 100};
    return 1;
#else
    (void)out;
    return 0;
#endif
}
#else
#define HOOK_VISIBLE NULL
#endif

#if defined(BROKEN_REWIND_HIGH)
#define HOOK_REWIND rewind_high
static int32_t rewind_high(void *self, int32_t pos) {
    (void)self;
    return pos + 1;
}
#else
#define HOOK_REWIND NULL
#endif

static const kvc_policy_api api = {.struct_size = API_SIZE,
                                   .create = LACKS == CREATE ? NULL : create,
                                   .visible = HOOK_VISIBLE,
                                   .begin = HOOK_BEGIN,
                                   .append = HOOK_APPEND,
                                   .select = HOOK_SELECT,
                                   .page_end = HOOK_PAGE_END,
                                   .end = HOOK_END,
                                   .rewind = HOOK_REWIND};

static const kvc_policy policy = {
    .struct_size = POLICY_SIZE,
    .abi = ABI,
    .abi_min = ABI_MIN,
    .n_param = N_PARAM,
    .param_stride = STRIDE,
    .requires_host = REQUIRES,
    .name = NAME,
    .version = "1.0.0",
    .summary = LACKS == SUMMARY ? NULL : "test: breaks the contract",
    .license = "MIT",
    .param = LACKS == PARAMS ? NULL : params,
    .api = LACKS == API ? NULL : &api,
};

#if defined(BROKEN_NO_SYMBOL)
#define kvc_policy_entry kvc_policy_entrance
const kvc_policy *kvc_policy_entry(uint32_t host_abi, uint32_t index);
#endif

KVC_POLICY_EXPORT const kvc_policy *kvc_policy_entry(uint32_t host_abi, uint32_t index) {
    (void)host_abi;
#if defined(BROKEN_NULL_TABLE)
    (void)index, (void)policy;
    return NULL;
#elif defined(BROKEN_ENDLESS)
    (void)index;
    return &policy;
#elif defined(BROKEN_TWO)
    return index < 2 ? &policy : NULL;
#else
    return index == 0 ? &policy : NULL;
#endif
}
