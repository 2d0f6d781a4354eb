/* SPDX-License-Identifier: MIT
 * t_tier: a tier for tests. Pages are kept by libc's malloc, counted as disk or, with memory, as
 * what they are, so whatever is not dropped is found by a leak checker; and calls fail when told
 * to. Records are the pages, or, with unpack, their bytes inverted, at odd places in the buffer. */
#include <kvc/policy.h>

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define HELP_NTH "this call of it fails, the first being 1; 0: none"

static const kvc_param params[] = {
    {.struct_size = sizeof(kvc_param),
     .type = KVC_PARAM_SIZE,
     .name = "hot",
     .unit = "bytes",
     .help = "bytes in memory; 0: the least",
     .max = {.i = INT64_MAX}},
    {.struct_size = sizeof(kvc_param),
     .type = KVC_PARAM_INT,
     .name = "fail_put",
     .help = "put: " HELP_NTH,
     .max = {.i = INT64_MAX}},
    {.struct_size = sizeof(kvc_param),
     .type = KVC_PARAM_INT,
     .name = "fail_get",
     .help = "get: " HELP_NTH,
     .max = {.i = INT64_MAX}},
    {.struct_size = sizeof(kvc_param),
     .type = KVC_PARAM_INT,
     .name = "lose",
     .help = "get: from this call on the first page of each call is lost; 0: none",
     .max = {.i = INT64_MAX}},
    {.struct_size = sizeof(kvc_param),
     .type = KVC_PARAM_INT,
     .name = "lose_n",
     .help = "get: how many calls lose a page",
     .def = {.i = 1},
     .max = {.i = INT64_MAX}},
    {.struct_size = sizeof(kvc_param),
     .type = KVC_PARAM_INT,
     .name = "slow",
     .unit = "microseconds",
     .help = "get: takes at least that long",
     .max = {.i = 999999}},
    {.struct_size = sizeof(kvc_param),
     .type = KVC_PARAM_INT,
     .name = "code",
     .help = "what a failing call answers",
     .def = {.i = KVC_E_IO},
     .min = {.i = -100},
     .max = {.i = 100}},
    {.struct_size = sizeof(kvc_param),
     .type = KVC_PARAM_BOOL,
     .name = "unpack",
     .help = "records are to be unpacked, and fail_get and lose speak of that"},
    {.struct_size = sizeof(kvc_param),
     .type = KVC_PARAM_BOOL,
     .name = "memory",
     .help = "pages are counted as memory, not as files"},
};
enum {
    P_HOT,
    P_FAIL_PUT,
    P_FAIL_GET,
    P_LOSE,
    P_LOSE_N,
    P_SLOW,
    P_CODE,
    P_UNPACK,
    P_MEMORY,
    N_PARAM
};

typedef struct t_tier {
    const kvc_host *host;
    const kvc_layout *layout;
    int64_t fail_put, fail_get, lose, lose_n, slow;
    int32_t code;
    bool unpack;
    uint32_t kind; /* KVC_BYTES_… that pages are counted as */
    atomic_int_least64_t n_put, n_back, live;
    atomic_uint putting, getting, unpacking; /* calls at once */
} t_tier;

/* Counts a call in; false when there are more at once than open() was told. */
static bool enter(atomic_uint *now, uint32_t most) {
    return atomic_fetch_add(now, 1) < most;
}

static int32_t leave(t_tier *t, atomic_uint *now, bool in_time, int32_t rc) {
    atomic_fetch_sub(now, 1);
    return in_time ? rc : t->host->fail(t->host->ctx, KVC_E_POLICY, "too many calls at once");
}

static int32_t open_tier(void *self, const kvc_layout *layout) {
    t_tier *t = self;
    t->layout = layout;
    return layout->n_put > 0 && layout->n_get > 0 && layout->n_unpack > 0 && layout->n_page > 0
               ? KVC_OK
               : KVC_E_ARG;
}

static void drop(void *self, const kvc_tier_page *page, uint32_t n, uint32_t stride) {
    t_tier *t = self;
    for (uint32_t i = 0; i < n; i++) {
        const kvc_tier_page *p =
            (const kvc_tier_page *)(const void *)((const char *)page + (size_t)i * stride);
        const size_t bytes = kvc_layout_layer(t->layout, p->layer)->page_bytes;
        free((void *)(uintptr_t)p->key[0]);
        atomic_fetch_sub(&t->live, 1);
        t->host->account(t->host->ctx, t->kind, -(int64_t)bytes);
    }
}

static int32_t put_pages(t_tier *t, kvc_tier_page *page, uint32_t n, uint32_t stride) {
    if (atomic_fetch_add(&t->n_put, 1) + 1 == t->fail_put) {
        return t->host->fail(t->host->ctx, t->code, "put was told to fail");
    }
    for (uint32_t i = 0; i < n; i++) {
        kvc_tier_page *p = kvc_tier_page_at(page, stride, i);
        const size_t bytes = kvc_layout_layer(t->layout, p->layer)->page_bytes;
        void *copy = malloc(bytes);
        if (copy == NULL) {
            drop(t, page, i, stride);
            return KVC_E_NOMEM;
        }
        memcpy(copy, p->bytes, bytes);
        p->key[0] = (uint64_t)(uintptr_t)copy;
        p->key[1] = (uint64_t)p->layer << 32 | p->head;
        atomic_fetch_add(&t->live, 1);
        t->host->account(t->host->ctx, t->kind, (int64_t)bytes);
    }
    return KVC_OK;
}

static int32_t put(void *self, kvc_tier_page *page, uint32_t n, uint32_t stride) {
    t_tier *t = self;
    const bool in_time = enter(&t->putting, t->layout->n_put);
    return leave(t, &t->putting, in_time, put_pages(t, page, n, stride));
}

/* What the next page, or call for pages, that comes back is to answer. */
static int32_t fate(t_tier *t) {
    const int64_t call = atomic_fetch_add(&t->n_back, 1) + 1;
    /* What was read ahead in vain is read again, so a tier that is to be found broken stays so. */
    const bool stays = t->code != KVC_E_IO && t->fail_get > 0 && call > t->fail_get;
    if (call == t->fail_get || stays) {
        return t->host->fail(t->host->ctx, t->code, "get was told to fail");
    }
    return t->lose > 0 && call >= t->lose && call < t->lose + t->lose_n ? KVC_E_LOST : KVC_OK;
}

static int32_t get_pages(t_tier *t, kvc_tier_page *page, uint32_t n, uint32_t stride, void *buffer,
                         size_t size) {
    const struct timespec pause = {.tv_nsec = (long)t->slow * 1000};
    const int32_t rc = t->unpack ? KVC_OK : fate(t);
    unsigned char *end = (unsigned char *)buffer + size;
    if (rc != KVC_OK && rc != KVC_E_LOST) {
        return rc;
    }
    if (t->slow > 0) {
        nanosleep(&pause, NULL);
    }
    for (uint32_t i = 0; i < n; i++) {
        kvc_tier_page *p = kvc_tier_page_at(page, stride, i);
        const size_t bytes = kvc_layout_layer(t->layout, p->layer)->page_bytes;
        if (p->key[1] != ((uint64_t)p->layer << 32 | p->head)) {
            return t->host->fail(t->host->ctx, KVC_E_POLICY, "asked for a page by a wrong key");
        }
        if (rc == KVC_E_LOST && i == 0) {
            p->status = KVC_E_LOST;
            continue;
        }
        end -= bytes;
        memcpy(end, (const void *)(uintptr_t)p->key[0], bytes);
        for (size_t k = 0; t->unpack && k < bytes; k++) {
            end[k] ^= 0xff;
        }
        p->record = end;
        p->record_bytes = bytes;
    }
    return rc;
}

static int32_t get(void *self, kvc_tier_page *page, uint32_t n, uint32_t stride, void *buffer,
                   size_t size) {
    t_tier *t = self;
    const bool in_time = enter(&t->getting, t->layout->n_get);
    return leave(t, &t->getting, in_time, get_pages(t, page, n, stride, buffer, size));
}

/* One byte more than the page: records end at the buffer's end, so they begin at odd places. */
static size_t record_bytes(void *self, uint32_t layer) {
    const t_tier *t = self;
    return kvc_layout_layer(t->layout, layer)->page_bytes + 1;
}

static int32_t unpack_page(t_tier *t, const kvc_tier_page *page, unsigned char *dst) {
    const unsigned char *record = page->record;
    if (page->key[1] != ((uint64_t)page->layer << 32 | page->head) ||
        page->record_bytes != kvc_layout_layer(t->layout, page->layer)->page_bytes) {
        return t->host->fail(t->host->ctx, KVC_E_POLICY, "a page to unpack isn't as it came");
    }
    for (size_t k = 0; k < page->record_bytes; k++) {
        dst[k] = record[k] ^ 0xff;
    }
    return fate(t);
}

static int32_t unpack(void *self, const kvc_tier_page *page, void *dst) {
    t_tier *t = self;
    const bool in_time = enter(&t->unpacking, t->layout->n_unpack);
    return leave(t, &t->unpacking, in_time, unpack_page(t, page, dst));
}

static const kvc_tier plain = {
    .struct_size = sizeof plain, .open = open_tier, .put = put, .get = get, .drop = drop};

static const kvc_tier packed = {.struct_size = sizeof packed,
                                .open = open_tier,
                                .put = put,
                                .get = get,
                                .drop = drop,
                                .record_bytes = record_bytes,
                                .unpack = unpack};

static int32_t create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                      kvc_plan *plan, void **self) {
    t_tier *t = host->realloc(host->ctx, NULL, 0, sizeof *t, _Alignof(t_tier));
    (void)shape;
    if (t == NULL) {
        return KVC_E_NOMEM;
    }
    *self = t;
    t->host = host;
    t->fail_put = value[P_FAIL_PUT].i;
    t->fail_get = value[P_FAIL_GET].i;
    t->lose = value[P_LOSE].i;
    t->lose_n = value[P_LOSE_N].i;
    t->slow = value[P_SLOW].i;
    t->code = (int32_t)value[P_CODE].i;
    t->unpack = value[P_UNPACK].i != 0;
    t->kind = value[P_MEMORY].i != 0 ? KVC_BYTES_MEMORY : KVC_BYTES_DISK;
    plan->answers = KVC_ANSWERS_WHERE;
    plan->tier = t->unpack ? &packed : &plain;
    plan->hot_bytes = value[P_HOT].i != 0 ? (uint64_t)value[P_HOT].i : KVC_HOT_LEAST;
    return KVC_OK;
}

static void destroy(void *self) {
    t_tier *t = self;
    if (atomic_load(&t->live) != 0) {
        t->host->log(t->host->ctx, KVC_LOG_WARN, "t_tier: pages were not dropped");
    }
    t->host->realloc(t->host->ctx, t, sizeof *t, 0, _Alignof(t_tier));
}

static int32_t stats(void *self, kvc_claims *out) {
    const t_tier *t = self;
    out->stored_bytes = (uint64_t)atomic_load(&t->live);
    return KVC_OK;
}

static const kvc_policy_api api = {
    .struct_size = sizeof api, .create = create, .destroy = destroy, .stats = stats};

static const kvc_policy policy = {
    .struct_size = sizeof policy,
    .abi = KVC_POLICY_ABI,
    .abi_min = KVC_POLICY_ABI_MIN,
    .n_param = N_PARAM,
    .param_stride = sizeof params[0],
    .caps = KVC_CAP_CHUNK_INVARIANT | KVC_CAP_LOSSLESS,
    .name = "t_tier",
    .version = "1.0.0",
    .summary = "pages in libc's memory, for tests",
    .license = "MIT",
    .param = params,
    .api = &api,
};

KVC_POLICY_EXPORT const kvc_policy *kvc_policy_entry(uint32_t host_abi, uint32_t index) {
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}
