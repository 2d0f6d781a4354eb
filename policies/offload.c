/* SPDX-License-Identifier: MIT
 * offload: sealed pages live on disk, in a scratch file of the host (KVC_HOST_FILE), compressed
 * without loss (offload_page.c). Pages whose records lie side by side are read at once. A record
 * has a checksum (XXH3), so what the disk lost or mixed up is found when it is unpacked, and
 * computed again, never used. */
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

enum { READ_OVER = 4 * 1024 /* bytes between two records that are read rather than skipped */ };

/* What one call of put() or unpack() works with; there are none at level 0. */
typedef struct context {
    atomic_bool busy;
    offload_coder coder;
    size_t counted;  /* bytes of the coder that the host knows of */
    uint8_t *record; /* [page_bytes + OFFLOAD_SLACK], of put() */
} context;

typedef struct contexts {
    uint32_t n;
    context *context; /* [n] */
} contexts;

typedef struct offload {
    const kvc_host *host;
    const kvc_host_file *io;
    kvc_file *file;
    int level;
    bool sort;
    uint32_t n_layer;
    size_t page_bytes;    /* most of a layer's */
    offload_shape *shape; /* [n_layer] */
    contexts packing, unpacking;
    atomic_uint_least64_t stored;
} offload;

static void *take(const offload *o, size_t bytes) {
    return o->host->realloc(o->host->ctx, NULL, 0, bytes, 64);
}

static void give(const offload *o, void *p, size_t bytes) {
    (void)o->host->realloc(o->host->ctx, p, bytes, 0, 64);
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
static context *enter(const contexts *all) {
    for (uint32_t i = 0;; i = (i + 1) % all->n) {
        if (!atomic_exchange_explicit(&all->context[i].busy, true, memory_order_acquire)) {
            return &all->context[i];
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

/* c: NULL at level 0. */
static int32_t put_page(offload *o, context *c, kvc_tier_page *page) {
    const offload_shape *s = &o->shape[page->layer];
    const uint32_t n = c != NULL ? offload_pack(&c->coder, s, page->bytes, c->record) : 0;
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
    context *c = o->level > 0 ? enter(&o->packing) : NULL;
    int32_t rc = KVC_OK;
    for (uint32_t i = 0; i < n && rc == KVC_OK; i++) {
        rc = put_page(o, c, kvc_tier_page_at(page, stride, i));
        if (rc < 0) {
            drop(o, page, i, stride);
        }
    }
    if (c != NULL) {
        count(o, c);
        leave(c);
    }
    return rc;
}

/* What get() works on: the pages of a call, and the buffer that it fills. */
typedef struct reading {
    offload *o;
    kvc_tier_page *page;
    uint32_t stride, n;
    uint8_t *buffer; /* from where on it is free, a multiple of KVC_FILE_ALIGN */
    size_t room;     /* bytes from there on: enough for the n_left records */
    uint32_t n_left; /* good pages that aren't read */
    uint32_t n_lost;
} reading;

static void lose(reading *r, kvc_tier_page *page) {
    page->status = KVC_E_LOST;
    r->n_lost++;
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

/* The good page with the lowest key above that one, or from the first on; NULL when there is none.
 * Keys are in the order of places. */
static kvc_tier_page *next_page(const reading *r, const kvc_tier_page *after) {
    kvc_tier_page *best = NULL;
    for (uint32_t i = 0; i < r->n; i++) {
        kvc_tier_page *page = kvc_tier_page_at(r->page, r->stride, i);
        if (page->status == KVC_OK && (after == NULL || page->key[0] > after->key[0]) &&
            (best == NULL || page->key[0] < best->key[0])) {
            best = page;
        }
    }
    return best;
}

static bool read_bytes(const reading *r, uint64_t from, uint64_t end, uint8_t *to) {
    return r->o->io->get(r->o->host->ctx, r->o->file, from, to, (size_t)(end - from)) == KVC_OK;
}

/* Reads the pages from first to last, whose records end at `end`, at once; if that fails one by
 * one, so that as few as possible are lost. */
static void read_run(reading *r, const kvc_tier_page *first, const kvc_tier_page *last,
                     uint64_t end) {
    const uint64_t from = place_of(first).at, low = first->key[0], high = last->key[0];
    const bool whole = read_bytes(r, from, end, r->buffer);
    for (uint32_t i = 0; i < r->n; i++) {
        kvc_tier_page *page = kvc_tier_page_at(r->page, r->stride, i);
        const place p = place_of(page);
        if (page->status != KVC_OK || page->key[0] < low || page->key[0] > high) {
            continue;
        }
        uint8_t *record = r->buffer + (p.at - from);
        if (whole || (low != high && read_bytes(r, p.at, aligned(p.at + p.bytes), record))) {
            page->record = record;
            page->record_bytes = p.bytes;
        } else {
            lose(r, page);
        }
    }
}

/* Reads from that page on as many as lie near each other, and leaves room for the others. Returns
 * the last one. */
static kvc_tier_page *read_near(reading *r, kvc_tier_page *first) {
    kvc_tier_page *last = first;
    const place p = place_of(first);
    uint64_t end = aligned(p.at + p.bytes);
    r->n_left--;
    for (kvc_tier_page *next; (next = next_page(r, last)) != NULL; last = next) {
        const place q = place_of(next);
        const uint64_t q_end = aligned(q.at + q.bytes), most = q_end > end ? q_end : end;
        const size_t others =
            (r->n_left - 1) * (size_t)aligned(r->o->shape[next->layer].page_bytes);
        if (q.at > end + READ_OVER || most - p.at + others > r->room) {
            break;
        }
        end = most;
        r->n_left--;
    }
    read_run(r, first, last, end);
    r->buffer += end - p.at;
    r->room -= (size_t)(end - p.at);
    return last;
}

static int32_t get(void *self, kvc_tier_page *page, uint32_t n, uint32_t stride, void *buffer,
                   size_t size) {
    reading r = {.o = self, .page = page, .stride = stride, .n = n, .buffer = buffer, .room = size};
    for (uint32_t i = 0; i < n; i++) {
        kvc_tier_page *p = kvc_tier_page_at(page, stride, i);
        if (plausible(r.o, p)) {
            r.n_left++;
        } else {
            lose(&r, p);
        }
    }
    for (kvc_tier_page *p = NULL; (p = next_page(&r, p)) != NULL;) {
        p = read_near(&r, p);
    }
    if (r.n_lost == 0) {
        return KVC_OK;
    }
    char text[128];
    snprintf(text, sizeof text,
             "%u of %u pages of layer %u can't be read from the disk; they are computed again",
             (unsigned)r.n_lost, (unsigned)n, (unsigned)page->layer);
    r.o->host->log(r.o->host->ctx, KVC_LOG_WARN, text);
    return r.o->host->fail(r.o->host->ctx, KVC_E_LOST, text);
}

static size_t record_bytes(void *self, uint32_t layer) {
    const offload *o = self;
    return (size_t)aligned(o->shape[layer].page_bytes);
}

/* Whether dst could be filled. */
static bool unpack_record(offload *o, const kvc_tier_page *page, void *dst) {
    const place p = place_of(page);
    if (!plausible(o, page) || page->record_bytes != p.bytes ||
        XXH3_64bits(page->record, p.bytes) != page->key[1]) {
        return false;
    }
    if (!p.packed) {
        memcpy(dst, page->record, p.bytes);
        return true;
    }
    if (o->level == 0) {
        return false;
    }
    context *c = enter(&o->unpacking);
    const bool good = offload_unpack(&c->coder, &o->shape[page->layer], page->record, p.bytes, dst);
    leave(c);
    return good;
}

static int32_t unpack(void *self, const kvc_tier_page *page, void *dst) {
    offload *o = self;
    if (unpack_record(o, page, dst)) {
        return KVC_OK;
    }
    char text[128];
    snprintf(text, sizeof text,
             "a page of layer %u, head %u is damaged on disk; it is computed again",
             (unsigned)page->layer, (unsigned)page->head);
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

/* What zstd gave for an answer, with a sentence where it needs one. */
static int32_t said(const offload *o, int32_t rc) {
    return rc != KVC_E_UNSUPPORTED
               ? rc
               : o->host->fail(o->host->ctx, rc, "this zstd refuses a setting; use a newer one");
}

static int32_t open_context(const offload *o, context *c, bool packs) {
    c->coder.planes = take(o, o->page_bytes);
    c->coder.staging = take(o, o->page_bytes);
    c->record = packs ? take(o, o->page_bytes + OFFLOAD_SLACK) : NULL;
    if (c->coder.planes == NULL || c->coder.staging == NULL || (packs && c->record == NULL)) {
        return KVC_E_NOMEM;
    }
    const int32_t rc = packs ? offload_coder_pack(&c->coder, o->level, o->page_bytes)
                             : offload_coder_unpack(&c->coder);
    count(o, c);
    return said(o, rc);
}

/* Makes n contexts; what was made of them when it fails stays for destroy(). */
static int32_t open_contexts(const offload *o, contexts *all, uint32_t n, bool packs) {
    all->context = take(o, n * sizeof *all->context);
    if (all->context == NULL) {
        return n == 0 ? KVC_OK : KVC_E_NOMEM;
    }
    all->n = n;
    for (uint32_t i = 0; i < n; i++) {
        const int32_t rc = open_context(o, &all->context[i], packs);
        if (rc < 0) {
            return rc;
        }
    }
    return KVC_OK;
}

static void close_contexts(const offload *o, contexts *all) {
    for (uint32_t i = 0; i < all->n; i++) {
        context *c = &all->context[i];
        offload_coder_close(&c->coder);
        count(o, c);
        give(o, c->record, o->page_bytes + OFFLOAD_SLACK);
        give(o, c->coder.planes, o->page_bytes);
        give(o, c->coder.staging, o->page_bytes);
    }
    give(o, all->context, all->n * sizeof *all->context);
}

static int32_t open(void *self, const kvc_layout *layout) {
    offload *o = self;
    int32_t rc = open_shapes(o, layout);
    if (rc == KVC_OK && o->level > 0) {
        rc = open_contexts(o, &o->packing, layout->n_put, true);
    }
    if (rc == KVC_OK && o->level > 0) {
        rc = open_contexts(o, &o->unpacking, layout->n_unpack, false);
    }
    return rc;
}

static const kvc_tier tier = {.struct_size = sizeof tier,
                              .open = open,
                              .put = put,
                              .get = get,
                              .drop = drop,
                              .record_bytes = record_bytes,
                              .unpack = unpack};

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
    close_contexts(o, &o->packing);
    close_contexts(o, &o->unpacking);
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
