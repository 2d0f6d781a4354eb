/* SPDX-License-Identifier: MIT
 * offload: sealed pages live on disk, in a scratch file of the host (KVC_HOST_FILE), compressed
 * without loss (offload_page.c). A record has a checksum (XXH3), so what the disk lost or mixed up
 * is found and computed again, never used. Pages whose records lie side by side are read at once.
 */
#include "offload_page.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include <xxhash.h>

enum { P_DIR, P_HOT, P_LEVEL, P_FILTER, N_PARAM };
enum { FILTER_PLANES, FILTER_NONE };

static const char *const filters[] = {"planes", "none", NULL};

static const kvc_param params[N_PARAM] = {
    [P_DIR] = {.struct_size = sizeof(kvc_param),
               .type = KVC_PARAM_STRING,
               .name = "dir",
               .help = "directory of the file; the user's cache directory when not given"},
    [P_HOT] = {.struct_size = sizeof(kvc_param),
               .type = KVC_PARAM_SIZE,
               .name = "hot",
               .unit = "bytes",
               .help = "most memory of the cache; 0: the least that is possible and 8 MiB",
               .max = {.i = INT64_MAX}},
    [P_LEVEL] = {.struct_size = sizeof(kvc_param),
                 .type = KVC_PARAM_INT,
                 .name = "level",
                 .help = "level of zstd; 0: don't compress",
                 .def = {.i = 1},
                 .max = {.i = 19}},
    [P_FILTER] = {.struct_size = sizeof(kvc_param),
                  .type = KVC_PARAM_ENUM,
                  .name = "filter",
                  .help = "how the bytes of a page are sorted before they are compressed",
                  .choice = filters,
                  .def = {.i = FILTER_PLANES}}};

enum {
    READ_BYTES = 192 * 1024, /* read at once, or one page */
    READ_OVER = 4 * 1024     /* bytes between two records that are read rather than skipped */
};

/* What one call works with. */
typedef struct context {
    atomic_bool busy;
    offload_coder coder; /* zeroed at level 0 */
    size_t counted;      /* bytes of the coder that the host knows of */
    uint8_t *record;     /* [record_bytes] */
    uint32_t *order;     /* [n_page] */
} context;

typedef struct offload {
    const kvc_host *host;
    const kvc_host_file *io;
    kvc_file *file;
    int level;
    bool sort;
    uint32_t n_layer, n_context, n_page;
    size_t page_bytes;    /* most of a layer's */
    size_t record_bytes;  /* of a context's buffer */
    offload_shape *shape; /* [n_layer] */
    context *context;     /* [n_context] */
    atomic_uint_least64_t stored;
} offload;

/* What records are read into is aligned as they are on disk. */
static void *take(const offload *o, size_t bytes) {
    return o->host->realloc(o->host->ctx, NULL, 0, bytes, KVC_FILE_ALIGN);
}

static void give(const offload *o, void *p, size_t bytes) {
    (void)o->host->realloc(o->host->ctx, p, bytes, 0, KVC_FILE_ALIGN);
}

static uint64_t aligned(uint64_t n) {
    return (n + KVC_FILE_ALIGN - 1) / KVC_FILE_ALIGN * KVC_FILE_ALIGN;
}

/* Tells the host what zstd holds. */
static void count(const offload *o, context *c) {
    const size_t now = offload_coder_bytes(&c->coder);
    if (now != c->counted) {
        o->host->account(o->host->ctx, KVC_BYTES_MEMORY, (int64_t)now - (int64_t)c->counted);
        c->counted = now;
    }
}

/* ---------------------------------------------------------------- keys */

/* Where a page's record is. In key[0]: the place in units of KVC_FILE_ALIGN, its bytes, a bit. */
typedef struct place {
    uint64_t at;
    uint32_t bytes;
    bool packed;
} place;

#define MAX_PLACE ((uint64_t)1 << 34)

static uint64_t key_of(place p) {
    return (p.at / KVC_FILE_ALIGN) << 30 | (uint64_t)p.bytes << 1 | p.packed;
}

static place place_of(const kvc_tier_page *page) {
    const uint64_t key = page->key[0];
    return (place){.at = (key >> 30) * KVC_FILE_ALIGN,
                   .bytes = (uint32_t)(key >> 1) & ((1u << 29) - 1),
                   .packed = key & 1};
}

/* ---------------------------------------------------------------- the tier */

/* A context that nobody uses: there are as many as calls at once. */
static context *enter(offload *o) {
    for (uint32_t i = 0;; i = (i + 1) % o->n_context) {
        if (!atomic_exchange_explicit(&o->context[i].busy, true, memory_order_acquire)) {
            return &o->context[i];
        }
    }
}

static void leave(context *c) {
    atomic_store_explicit(&c->busy, false, memory_order_release);
}

static void drop(void *self, const kvc_tier_page *page, uint32_t n, uint32_t stride) {
    offload *o = self;
    for (uint32_t i = 0; i < n; i++) {
        const place p = place_of(kvc_tier_page_at(page, stride, i));
        o->io->drop(o->host->ctx, o->file, p.at, p.bytes);
        atomic_fetch_sub(&o->stored, p.bytes);
    }
}

static int32_t put_page(offload *o, context *c, kvc_tier_page *page) {
    const offload_shape *s = &o->shape[page->layer];
    const uint32_t n = o->level > 0 ? offload_pack(&c->coder, s, page->bytes, c->record) : 0;
    const uint8_t *record = n > 0 ? c->record : page->bytes;
    place p = {.bytes = n > 0 ? n : s->page_bytes, .packed = n > 0};
    const int32_t rc = o->io->put(o->host->ctx, o->file, page->layer, record, p.bytes, &p.at);
    if (rc < 0) {
        return rc;
    }
    if (p.at / KVC_FILE_ALIGN >= MAX_PLACE) {
        o->io->drop(o->host->ctx, o->file, p.at, p.bytes);
        return o->host->fail(o->host->ctx, KVC_E_IO, "the file of offload has become too large");
    }
    page->key[0] = key_of(p);
    page->key[1] = XXH3_64bits(record, p.bytes);
    atomic_fetch_add(&o->stored, p.bytes);
    return KVC_OK;
}

static int32_t put(void *self, kvc_tier_page *page, uint32_t n, uint32_t stride) {
    offload *o = self;
    context *c = enter(o);
    int32_t rc = KVC_OK;
    for (uint32_t i = 0; i < n && rc == KVC_OK; i++) {
        rc = put_page(o, c, kvc_tier_page_at(page, stride, i));
        if (rc < 0) {
            drop(o, page, i, stride);
        }
    }
    if (o->level > 0) {
        count(o, c);
    }
    leave(c);
    return rc;
}

/* Fills a page from its record. */
static bool get_page(offload *o, context *c, kvc_tier_page *page, const uint8_t *record) {
    const offload_shape *s = &o->shape[page->layer];
    const place p = place_of(page);
    if (XXH3_64bits(record, p.bytes) != page->key[1]) {
        return false;
    }
    if (p.packed) {
        return o->level > 0 && offload_unpack(&c->coder, s, record, p.bytes, page->bytes);
    }
    memcpy(page->bytes, record, p.bytes);
    return true;
}

/* What get() works on: the pages of a call, in c->order by their place. */
typedef struct reading {
    offload *o;
    context *c;
    kvc_tier_page *page;
    uint32_t stride, n_lost;
} reading;

static kvc_tier_page *nth(const reading *r, uint32_t i) {
    return kvc_tier_page_at(r->page, r->stride, r->c->order[i]);
}

/* Whether a key can be one of ours. */
static bool plausible(const offload *o, const kvc_tier_page *page) {
    const place p = place_of(page);
    if (page->layer >= o->n_layer || p.bytes == 0) {
        return false;
    }
    const uint32_t bytes = o->shape[page->layer].page_bytes;
    return p.packed ? p.bytes < bytes : p.bytes == bytes;
}

/* Reads pages [i, j) at once; if that fails one by one, so that as few as possible are lost. */
static void read_run(reading *r, uint32_t i, uint32_t j, uint64_t end) {
    const uint64_t from = place_of(nth(r, i)).at;
    uint8_t *record = r->c->record;
    if (r->o->io->get(r->o->host->ctx, r->o->file, from, record, (size_t)(end - from)) == KVC_OK) {
        for (; i < j; i++) {
            kvc_tier_page *page = nth(r, i);
            if (!get_page(r->o, r->c, page, record + (place_of(page).at - from))) {
                page->status = KVC_E_LOST;
                r->n_lost++;
            }
        }
    } else if (j - i > 1) {
        for (; i < j; i++) {
            const place p = place_of(nth(r, i));
            read_run(r, i, i + 1, aligned(p.at + p.bytes));
        }
    } else {
        nth(r, i)->status = KVC_E_LOST;
        r->n_lost++;
    }
}

/* Sorts pages [first, first + n) by place into c->order; returns how many there are to read. */
static uint32_t sort_pages(reading *r, uint32_t first, uint32_t n) {
    uint32_t *order = r->c->order, n_good = 0;
    for (uint32_t i = first; i < first + n; i++) {
        kvc_tier_page *page = kvc_tier_page_at(r->page, r->stride, i);
        if (!plausible(r->o, page)) {
            page->status = KVC_E_LOST;
            r->n_lost++;
            continue;
        }
        uint32_t k = n_good++;
        for (; k > 0 && nth(r, k - 1)->key[0] > page->key[0]; k--) {
            order[k] = order[k - 1];
        }
        order[k] = i;
    }
    return n_good;
}

/* Reads pages [first, first + n), n <= n_page: records that lie near each other at once. */
static void read_pages(reading *r, uint32_t first, uint32_t n) {
    n = sort_pages(r, first, n);
    for (uint32_t i = 0; i < n;) {
        const place p = place_of(nth(r, i));
        uint64_t end = aligned(p.at + p.bytes);
        uint32_t j = i + 1;
        for (; j < n; j++) {
            const place q = place_of(nth(r, j));
            const uint64_t last = aligned(q.at + q.bytes), q_end = last > end ? last : end;
            if (q.at > end + READ_OVER || q_end - p.at > r->o->record_bytes) {
                break;
            }
            end = q_end;
        }
        read_run(r, i, j, end);
        i = j;
    }
}

static int32_t get(void *self, kvc_tier_page *page, uint32_t n, uint32_t stride) {
    offload *o = self;
    reading r = {.o = o, .c = enter(o), .page = page, .stride = stride};
    for (uint32_t i = 0; i < n; i += o->n_page) {
        read_pages(&r, i, n - i < o->n_page ? n - i : o->n_page);
    }
    leave(r.c);
    if (r.n_lost == 0) {
        return KVC_OK;
    }
    char text[128];
    snprintf(text, sizeof text,
             "%u of %u pages of layer %u can't be read or are damaged on disk; they are computed "
             "again",
             (unsigned)r.n_lost, (unsigned)n, (unsigned)page->layer);
    o->host->log(o->host->ctx, KVC_LOG_WARN, text);
    return o->host->fail(o->host->ctx, KVC_E_LOST, text);
}

/* ---------------------------------------------------------------- the instance */

/* The shape of each layer's pages. */
static int32_t open_shapes(offload *o, const kvc_layout *layout) {
    o->n_layer = layout->n_layer;
    o->shape = take(o, o->n_layer * sizeof *o->shape);
    if (o->shape == NULL) {
        return KVC_E_NOMEM;
    }
    for (uint32_t i = 0; i < o->n_layer; i++) {
        const kvc_page_layout *l = kvc_layout_layer(layout, i);
        if (l->page_bytes == 0 || l->page_bytes >= OFFLOAD_MAX_BYTES) {
            char text[128];
            snprintf(text, sizeof text,
                     "layer %u has pages of %zu bytes; offload takes less than %u", (unsigned)i,
                     l->page_bytes, (unsigned)OFFLOAD_MAX_BYTES);
            return o->host->fail(o->host->ctx, KVC_E_UNSUPPORTED, text);
        }
        uint8_t *map = take(o, l->page_bytes);
        if (map == NULL) {
            return KVC_E_NOMEM;
        }
        offload_shape_make(&o->shape[i], l, o->sort, map);
        give(o, map, l->page_bytes);
        o->page_bytes = l->page_bytes > o->page_bytes ? l->page_bytes : o->page_bytes;
        const int32_t rc = o->io->expect(o->host->ctx, o->file, i, l->n_page, l->page_bytes);
        if (rc < 0) {
            return rc;
        }
    }
    return KVC_OK;
}

static int32_t open_context(offload *o, context *c) {
    c->record = take(o, o->record_bytes);
    c->order = take(o, o->n_page * sizeof *c->order);
    if (c->record == NULL || c->order == NULL) {
        return KVC_E_NOMEM;
    }
    if (o->level == 0) {
        return KVC_OK;
    }
    c->coder.planes = take(o, o->page_bytes);
    c->coder.staging = take(o, o->page_bytes);
    if (c->coder.planes == NULL || c->coder.staging == NULL) {
        return KVC_E_NOMEM;
    }
    const int32_t rc = offload_coder_open(&c->coder, o->level, o->page_bytes);
    count(o, c);
    return rc != KVC_E_UNSUPPORTED
               ? rc
               : o->host->fail(o->host->ctx, rc, "this zstd refuses a setting; use a newer one");
}

static void close_context(offload *o, context *c) {
    offload_coder_close(&c->coder);
    count(o, c);
    give(o, c->record, o->record_bytes);
    give(o, c->order, o->n_page * sizeof *c->order);
    give(o, c->coder.planes, o->page_bytes);
    give(o, c->coder.staging, o->page_bytes);
}

static int32_t open(void *self, const kvc_layout *layout) {
    offload *o = self;
    const int32_t rc = open_shapes(o, layout);
    if (rc < 0) {
        return rc;
    }
    const size_t one = aligned(o->page_bytes + OFFLOAD_SLACK);
    o->n_page = layout->n_page > 0 ? layout->n_page : 1;
    o->record_bytes = o->n_page * one < READ_BYTES ? o->n_page * one : READ_BYTES;
    o->record_bytes = one > o->record_bytes ? one : o->record_bytes;
    o->n_context = layout->n_call > 0 ? layout->n_call : 1;
    o->context = take(o, o->n_context * sizeof *o->context);
    if (o->context == NULL) {
        return KVC_E_NOMEM;
    }
    for (uint32_t i = 0; i < o->n_context; i++) {
        const int32_t failed = open_context(o, &o->context[i]);
        if (failed < 0) {
            return failed;
        }
    }
    return KVC_OK;
}

static const kvc_tier tier = {
    .struct_size = sizeof tier, .open = open, .put = put, .get = get, .drop = drop};

static int32_t create(const kvc_host *host, const kvc_shape *model, const kvc_value *value,
                      kvc_plan *plan, void **self) {
    const kvc_host_file *io = host->extension(host->ctx, KVC_HOST_FILE);
    (void)model;
    if (io == NULL || io->struct_size < sizeof *io) {
        return host->fail(host->ctx, KVC_E_UNSUPPORTED,
                          "this host lacks " KVC_HOST_FILE "; use offload with a newer kvc");
    }
    offload *o = host->realloc(host->ctx, NULL, 0, sizeof *o, 64);
    if (o == NULL) {
        return KVC_E_NOMEM;
    }
    *self = o;
    o->host = host;
    o->io = io;
    o->level = (int)value[P_LEVEL].i;
    o->sort = value[P_FILTER].i == FILTER_PLANES;
    plan->answers = KVC_ANSWERS_WHERE;
    plan->tier = &tier;
    plan->hot_bytes = (uint64_t)value[P_HOT].i;
    return io->open(host->ctx, value[P_DIR].s, &o->file);
}

static void destroy(void *self) {
    offload *o = self;
    for (uint32_t i = 0; o->context != NULL && i < o->n_context; i++) {
        close_context(o, &o->context[i]);
    }
    give(o, o->context, o->n_context * sizeof *o->context);
    give(o, o->shape, o->n_layer * sizeof *o->shape);
    o->io->close(o->host->ctx, o->file);
    give(o, o, sizeof *o);
}

static int32_t stats(void *self, kvc_claims *out) {
    const offload *o = self;
    out->stored_bytes = atomic_load(&o->stored);
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
    .name = "offload",
    .version = "1.0.0",
    .summary = "sealed pages on disk, compressed without loss, a bounded part of them in memory",
    .license = "MIT",
    .param = params,
    .api = &api,
};

KVC_POLICY_EXPORT const kvc_policy *kvc_policy_entry(uint32_t host_abi, uint32_t index) {
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}
