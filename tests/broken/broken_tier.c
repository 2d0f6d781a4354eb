/* SPDX-License-Identifier: MIT
 * broken_tier.c: tiers that break the contract, one break each, as broken.c does it for the rest.
 * Without a break pages would be kept nowhere: only the first calls matter here. */
#include <kvc/policy.h>

#if defined(BROKEN_TIER_OPEN_FAILS)
static int32_t open_tier(void *self, const kvc_layout *layout) {
    const kvc_host *host = self;
    (void)layout;
    return host->fail(host->ctx, KVC_E_IO, "open says no on purpose");
}
#define OPEN open_tier
#else
#define OPEN NULL
#endif

static int32_t put(void *self, kvc_tier_page *page, uint32_t n, uint32_t stride) {
    (void)self, (void)page, (void)n, (void)stride;
#if defined(BROKEN_TIER_PUT_CODE)
    return 5;
#else
    return KVC_OK;
#endif
}

static int32_t get(void *self, kvc_tier_page *page, uint32_t n, uint32_t stride, void *buffer,
                   size_t size) {
    (void)self, (void)n, (void)stride, (void)page, (void)buffer, (void)size;
#if defined(BROKEN_TIER_GET_CODE)
    return -12345;
#elif defined(BROKEN_TIER_GET_UNNAMED)
    return KVC_E_LOST;
#elif defined(BROKEN_TIER_GET_NOWHERE)
    return KVC_OK;
#elif defined(BROKEN_TIER_GET_OUTSIDE) || defined(BROKEN_TIER_GET_SHORT) ||                        \
    defined(BROKEN_TIER_GET_ODD) || defined(BROKEN_TIER_UNPACK_CODE)
    for (uint32_t i = 0; i < n; i++) {
        kvc_tier_page *p = kvc_tier_page_at(page, stride, i);
        p->record = buffer;
        p->record_bytes = size / n;
#if defined(BROKEN_TIER_GET_OUTSIDE)
        p->record_bytes = size + 1;
#elif defined(BROKEN_TIER_GET_SHORT)
        p->record_bytes -= 1;
#elif defined(BROKEN_TIER_GET_ODD)
        p->record = (char *)buffer + 32;
        p->record_bytes -= 64;
#endif
    }
    return KVC_OK;
#else
    page->status = KVC_E_LOST;
    return KVC_E_LOST;
#endif
}

#if defined(BROKEN_TIER_UNPACK_CODE)
static int32_t unpack(void *self, const kvc_tier_page *page, void *dst) {
    (void)self, (void)page, (void)dst;
    return 7;
}
#define UNPACK unpack
#else
#define UNPACK NULL
#endif

#if defined(BROKEN_TIER_RECORD0) || defined(BROKEN_TIER_RECORD_HUGE) ||                            \
    defined(BROKEN_TIER_RECORD_SHORT) || defined(BROKEN_TIER_GET_ODD)
static size_t record_bytes(void *self, uint32_t layer) {
    (void)self;
#if defined(BROKEN_TIER_RECORD0)
    return layer == 0 ? 1 << 20 : 0;
#elif defined(BROKEN_TIER_RECORD_HUGE)
    return layer == 0 ? 1 << 20 : SIZE_MAX;
#elif defined(BROKEN_TIER_RECORD_SHORT)
    return layer == 0 ? 1 << 20 : 1;
#else
    (void)layer;
    return 1 << 20;
#endif
}
#define RECORD_BYTES record_bytes
#else
#define RECORD_BYTES NULL
#endif

static void drop(void *self, const kvc_tier_page *page, uint32_t n, uint32_t stride) {
    (void)self, (void)page, (void)n, (void)stride;
}

enum { NOTHING, PUT, GET, DROP };
#if defined(BROKEN_TIER_NO_PUT)
#define LACKS PUT
#elif defined(BROKEN_TIER_NO_GET)
#define LACKS GET
#elif defined(BROKEN_TIER_NO_DROP)
#define LACKS DROP
#else
#define LACKS NOTHING
#endif

static const kvc_tier tier = {
#if defined(BROKEN_TIER_SIZE)
    .struct_size = 0,
#else
    .struct_size = sizeof tier,
#endif
    .open = OPEN,
    .put = LACKS == PUT ? NULL : put,
    .get = LACKS == GET ? NULL : get,
    .drop = LACKS == DROP ? NULL : drop,
    .record_bytes = RECORD_BYTES,
    .unpack = UNPACK,
};

static int32_t create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                      kvc_plan *plan, void **self) {
    (void)shape, (void)value;
    *self = (void *)(uintptr_t)host;
    plan->answers = KVC_ANSWERS_WHERE;
    plan->tier = &tier;
    plan->hot_bytes = KVC_HOT_LEAST;
#if defined(BROKEN_TIER_FORMAT)
    plan->answers |= KVC_ANSWERS_FORMAT;
#elif defined(BROKEN_TIER_UNSAID)
    plan->answers = KVC_ANSWERS_WHICH;
#elif defined(BROKEN_TIER_HOT)
    plan->hot_bytes = 1;
#endif
    return KVC_OK;
}

#if defined(BROKEN_TIER_HOOK)
static int32_t page_end(void *self, const kvc_step *step, uint32_t layer) {
    (void)self, (void)step, (void)layer;
    return KVC_OK;
}
#define HOOK_PAGE_END page_end
#else
#define HOOK_PAGE_END NULL
#endif

static const kvc_policy_api api = {
    .struct_size = sizeof api, .create = create, .page_end = HOOK_PAGE_END};

static const kvc_policy policy = {
    .struct_size = sizeof policy,
    .abi = KVC_POLICY_ABI,
    .abi_min = KVC_POLICY_ABI_MIN,
    .param_stride = sizeof(kvc_param),
    .name = BROKEN_NAME,
    .version = "1.0.0",
    .summary = "test: a tier that breaks the contract",
    .license = "MIT",
    .api = &api,
};

KVC_POLICY_EXPORT const kvc_policy *kvc_policy_entry(uint32_t host_abi, uint32_t index) {
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}
