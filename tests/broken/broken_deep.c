/* SPDX-License-Identifier: MIT
 * broken_deep.c: policies that load and run, and break a promise that only shows when they are
 * asked the right question, one each, as broken.c does it for the rest. tests/cli/kvcheck.sh says
 * which test of kvcheck finds which. The sound form gives up one entry at each tick. */
#include <kvc/policy.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(BROKEN_DEEP_GLOBAL) || defined(BROKEN_DEEP_REPEAT)
static int32_t shared;
#endif

#if defined(BROKEN_DEEP_CONSTRUCTOR)
static volatile int ready;
__attribute__((constructor)) static void prepare(void) {
    ready = 1;
}
#endif

#if defined(BROKEN_DEEP_EXPORTS)
KVC_POLICY_EXPORT int broken_deep_helper(void);
int broken_deep_helper(void) {
    return 1;
}
#endif

#if defined(BROKEN_DEEP_LINKS)
const char *kvc_version(void);
#endif

typedef struct deep {
    const kvc_host *host;
    const kvc_host_store *store;
    int32_t n_tick[8]; /* of each layer */
    int32_t n_row;     /* of layer 0, head 0 */
    int32_t which;     /* which entry goes at a tick */
    uint32_t n_layer, table[4];
    char *more, *spare;
    size_t dim_k[8], dim_v[8];
} deep;

enum { MORE_BYTES = 100 };

static const kvc_param params[] = {{
    .struct_size = sizeof(kvc_param),
    .type = KVC_PARAM_INT,
    .name = "value",
    .help = "does nothing",
    .def = {.i = 8},
    .min = {.i = 0},
    .max = {.i = 1000},
}};

/* ---------------------------------------------------------------- a codec that mixes entries up */

#if defined(BROKEN_DEEP_ENTRIES)
static size_t page_bytes(void *self, uint32_t layer) {
    const deep *d = self;
    return KVC_PAGE * (d->dim_k[layer] + d->dim_v[layer]) * sizeof(float);
}

static int32_t encode(void *self, const kvc_rows *rows, void *dst) {
    const deep *d = self;
    const size_t dim_k = d->dim_k[rows->layer], dim_v = d->dim_v[rows->layer];
    float *k = dst, *v = k + KVC_PAGE * dim_k;
    for (size_t i = 0; i < KVC_PAGE; i++) {
        const size_t from = KVC_PAGE - 1 - i;
        memcpy(k + i * dim_k, rows->k + from * rows->k_stride, dim_k * sizeof *k);
        memcpy(v + i * dim_v, rows->v + from * rows->v_stride, dim_v * sizeof *v);
    }
    return KVC_OK;
}

static int32_t decode(void *self, const kvc_page *page, float *k, float *v) {
    const deep *d = self;
    const size_t dim_k = d->dim_k[page->layer], dim_v = d->dim_v[page->layer];
    memcpy(k, page->bytes, KVC_PAGE * dim_k * sizeof *k);
    memcpy(v, (const float *)page->bytes + KVC_PAGE * dim_k, KVC_PAGE * dim_v * sizeof *v);
    return KVC_OK;
}

static const kvc_codec codec = {
    .struct_size = sizeof codec, .page_bytes = page_bytes, .encode = encode, .decode = decode};
#endif

/* ---------------------------------------------------------------- create and destroy */

static int32_t make_plan(deep *d, const kvc_shape *shape, kvc_plan *plan) {
    plan->answers = KVC_ANSWERS_WHICH;
    plan->flags = KVC_PLAN_EVICTS;
    d->n_layer = shape->n_layer;
#if defined(BROKEN_DEEP_BOUNDED)
    plan->flags |= KVC_PLAN_BOUNDED;
#elif defined(BROKEN_DEEP_LOAD) || defined(BROKEN_DEEP_UNSAVED)
    plan->flags |= KVC_PLAN_STATE;
#elif defined(BROKEN_DEEP_THREADS)
    d->which = (int32_t)shape->n_thread;
#elif defined(BROKEN_DEEP_SHAPES)
    if (kvc_shape_layer(shape, 0)->dim_k == 96) {
        return KVC_E_POLICY;
    }
#elif defined(BROKEN_DEEP_TRUNCATE)
    plan->flags = 0;
#elif defined(BROKEN_DEEP_LOSSLESS)
    plan->answers = KVC_ANSWERS_FORMAT;
    plan->flags = 0;
    for (uint32_t i = 0; i < shape->n_layer; i++) {
        kvc_plan_format(plan, i)->type_k = KVC_TYPE_BF16;
    }
#elif defined(BROKEN_DEEP_ENTRIES)
    plan->answers = KVC_ANSWERS_FORMAT;
    plan->flags = 0;
    plan->codec = &codec;
    for (uint32_t i = 0; i < shape->n_layer && i < 8; i++) {
        d->dim_k[i] = kvc_shape_layer(shape, i)->dim_k;
        d->dim_v[i] = kvc_shape_layer(shape, i)->dim_v;
    }
#endif
    return KVC_OK;
}

static int32_t create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                      kvc_plan *plan, void **self) {
    deep *d = host->realloc(host->ctx, NULL, 0, sizeof *d, 64);
#if !defined(BROKEN_DEEP_NOMEM)
    if (d == NULL) {
        return KVC_E_NOMEM;
    }
#endif
    d->host = host;
    d->store = host->extension(host->ctx, KVC_HOST_STORE);
    d->more = host->realloc(host->ctx, NULL, 0, MORE_BYTES, 64);
    if (d->more == NULL) {
#if defined(BROKEN_DEEP_LOST)
        return KVC_E_NOMEM; /* and *self isn't set */
#elif defined(BROKEN_DEEP_CODE)
        *self = d;
        return KVC_E_UNSUPPORTED;
#endif
    }
    *self = d;
    if (d->more == NULL) {
        return KVC_E_NOMEM;
    }
#if defined(BROKEN_DEEP_PRINTS)
    printf("broken_deep is made\n");
#elif defined(BROKEN_DEEP_MALLOC)
    volatile char *leak = malloc(1000);
    leak[0] = 1;
#elif defined(BROKEN_DEEP_OVERRUN)
    ((volatile char *)d->more)[MORE_BYTES] = 1;
#elif defined(BROKEN_DEEP_UNSAVED)
    d->spare = host->realloc(host->ctx, NULL, 0, MORE_BYTES, 64); /* it can do without */
#elif defined(BROKEN_DEEP_GLOBAL)
    shared = 0;
#elif defined(BROKEN_DEEP_LINKS)
    (void)kvc_version();
#elif defined(BROKEN_DEEP_MUTE)
    if (value[0].i > 500 || value[0].i == 0) {
        return KVC_E_PARAM;
    }
#endif
    d->which = 1;
    d->table[0] = (uint32_t)value[0].i;
    return make_plan(d, shape, plan);
}

static void destroy(void *self) {
    deep *d = self;
#if defined(BROKEN_DEEP_SIZE)
    d->host->realloc(d->host->ctx, d->more, MORE_BYTES / 2, 0, 64);
#else
    d->host->realloc(d->host->ctx, d->more, d->more != NULL ? MORE_BYTES : 0, 0, 64);
#endif
    d->host->realloc(d->host->ctx, d->spare, d->spare != NULL ? MORE_BYTES : 0, 0, 64);
    d->host->realloc(d->host->ctx, d, sizeof *d, 0, 64);
}

/* ---------------------------------------------------------------- hooks */

/* The position that goes at the tick after `last`: one of its page, the same for all layers. */
static int32_t victim(deep *d, const kvc_step *step, uint32_t layer) {
    const int32_t last = step->pos + (int32_t)step->n - 1;
    int32_t which = d->which;
    d->n_tick[layer % 8]++;
#if defined(BROKEN_DEEP_CHUNKS)
    which = (int32_t)(step->n % 60);
#elif defined(BROKEN_DEEP_FORK)
    which = d->n_tick[layer % 8];
#elif defined(BROKEN_DEEP_REPEAT)
    which = shared++ % 60;
#elif defined(BROKEN_DEEP_GLOBAL)
    which = shared % 60;
    shared = last + d->n_tick[layer % 8];
#endif
    return last > which ? last - which : 0;
}

static int32_t page_end(void *self, const kvc_step *step, uint32_t layer) {
    deep *d = self;
    const int32_t at = victim(d, step, layer);
#if defined(BROKEN_DEEP_LOSSLESS) || defined(BROKEN_DEEP_ENTRIES) || defined(BROKEN_DEEP_TRUNCATE)
    (void)at;
    return KVC_OK;
#else
#if defined(BROKEN_DEEP_EXITS)
    exit(0);
#elif defined(BROKEN_DEEP_CRASHES)
    if (step->pos >= 170) {
        volatile int *volatile nowhere = NULL;
        *nowhere = 1;
    }
#elif defined(BROKEN_DEEP_ACCEPTS)
    if (d->table[0] == 1000) {
        return d->host->fail(d->host->ctx, KVC_E_POLICY, "1000 is too much after all");
    }
#elif defined(BROKEN_DEEP_BOUNDED)
    for (int32_t pos = at > 64 ? at - 64 : 0; pos < at; pos += 2) {
        const int32_t rc = d->store->drop(d->host->ctx, layer, KVC_ALL, pos, pos + 1);
        if (rc < 0) {
            return rc;
        }
    }
#endif
    return d->store->drop(d->host->ctx, layer, KVC_ALL, at, at + 1);
#endif
}

static int32_t truncate_to(void *self, int32_t pos) {
    deep *d = self;
    if (pos == 0) {
        memset(d->n_tick, 0, sizeof d->n_tick);
    }
    return KVC_OK;
}

/* Counts rows, forgets to count back, and then reads less. */
#if defined(BROKEN_DEEP_TRUNCATE)
#define APPEND append
#define SELECT select_pages
static int32_t append(void *self, const kvc_rows *rows) {
    deep *d = self;
    if (rows->layer == 0 && rows->head == 0) {
        d->n_row += (int32_t)rows->n;
    }
    return KVC_OK;
}

static int32_t select_pages(void *self, const kvc_rows *query, uint64_t *page, uint32_t n_page) {
    const deep *d = self;
    if (query->layer == 0 && query->head == 0 && n_page > 0 && d->n_row > query->pos[0] + 64) {
        page[0] &= ~(uint64_t)1;
    }
    return KVC_OK;
}
#else
#define APPEND NULL
#define SELECT NULL
#endif

#if defined(BROKEN_DEEP_LOAD)
#define SAVE save
#define LOAD load
static int32_t save(void *self, const kvc_stream *out) {
    const deep *d = self;
    const uint32_t index[16] = {0};
    (void)d;
    return out->write(out->ctx, index, sizeof index);
}

static int32_t load(void *self, const kvc_stream *in) {
    deep *d = self;
    uint32_t index[16];
    const int32_t rc = in->read(in->ctx, index, sizeof index);
    for (uint32_t i = 0; rc == KVC_OK && i < 16; i++) {
        ((volatile uint32_t *)d->table)[index[i]]++; /* anywhere */
    }
    return rc;
}
#else
#define SAVE NULL
#define LOAD NULL
#endif

static const kvc_policy_api api = {.struct_size = sizeof api,
                                   .create = create,
                                   .destroy = destroy,
                                   .page_end = page_end,
                                   .append = APPEND,
                                   .select = SELECT,
                                   .truncate = truncate_to,
                                   .save = SAVE,
                                   .load = LOAD};

#if defined(BROKEN_DEEP_LOSSLESS)
#define CAPS (KVC_CAP_LOSSLESS | KVC_CAP_CHUNK_INVARIANT)
#else
#define CAPS KVC_CAP_CHUNK_INVARIANT
#endif

#define POLICY(word)                                                                               \
    {                                                                                              \
        .struct_size = sizeof(kvc_policy), .abi = KVC_POLICY_ABI, .abi_min = KVC_POLICY_ABI_MIN,   \
        .n_param = 1, .param_stride = sizeof params[0], .caps = CAPS, .name = word,                \
        .version = "1.0.0", .summary = "test: breaks a promise", .license = "MIT",                 \
        .param = params, .api = &api                                                               \
    }

static const kvc_policy policy[] = {
    POLICY(BROKEN_NAME),
#if defined(BROKEN_DEEP_PAIR)
    POLICY(BROKEN_NAME "-2"), /* sound: a file may hold several */
#endif
};

KVC_POLICY_EXPORT const kvc_policy *kvc_policy_entry(uint32_t host_abi, uint32_t index) {
    (void)host_abi;
    return index < sizeof policy / sizeof policy[0] ? &policy[index] : NULL;
}
