/* SPDX-License-Identifier: MIT
 * tier.h: pages that live elsewhere: the one place that calls a policy's tier. It knows pages and
 * keys, not lanes or sessions. */
#ifndef KVC_TIER_H
#define KVC_TIER_H

#include "codec.h"
#include "err.h"
#include "mem.h"

#include "kvc/policy.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/** A tier: a policy's table, its instance, and what its pages look like. */
typedef struct kvc__tier {
    kvc_tier api; /* the host's own copy */
    void *self;
    kvc__mem *mem; /* of the layout */
    kvc_layout layout;
    kvc_page_layout *layer;   /* [n_layer] */
    kvc_field *field;         /* [n_layer][KVC_MAX_FIELDS] */
    size_t *record;           /* [n_layer] most bytes of a record; NULL: those of the page */
    pthread_mutex_t outside;  /* held by who calls it without the model's lock: one at a time */
    atomic_uint_least64_t ns; /* time in its calls, over all threads */
    atomic_uint_least64_t n_put, n_get, n_lost; /* pages */
} kvc__tier;

/** What a tier is opened for. */
typedef struct kvc__tier_env {
    kvc__mem *mem; /* outlives the tier */
    const kvc__codec *codec;
    const kvc__page_shape *shape; /* [n_layer] */
    const uint32_t *n_head_kv;    /* [n_layer] */
    uint32_t n_layer;
    uint32_t n_page;                 /* most pages of a call */
    uint32_t n_put, n_get, n_unpack; /* most calls at once */
    uint32_t n_lane_page;            /* most pages of a lane */
} kvc__tier_env;

/** Makes the layout that t's open() is to be given. KVC_E_NOMEM; KVC_E_POLICY and a sentence about
 * the codec's policy, whose fields are none. */
int32_t kvc__tier_describe(kvc__tier *t, const kvc__tier_env *env, kvc__err *err);
/** Asks an open tier how long its records are. KVC_E_POLICY: they can't be that long; *layer says
 * which. */
int32_t kvc__tier_ask_records(kvc__tier *t, uint32_t *layer);
/** Frees the layout; after the instance is destroyed. A zeroed tier is legal. */
void kvc__tier_close(kvc__tier *t);

/** Most bytes of a record of that layer, whose pages have page_bytes. */
static inline size_t kvc__tier_record_bytes(const kvc__tier *t, uint32_t layer, size_t page_bytes) {
    return t->record != NULL ? t->record[layer] : page_bytes;
}
/** True when a record isn't the page itself. */
static inline bool kvc__tier_packs(const kvc__tier *t) {
    return t->api.unpack != NULL;
}

/** put, get and drop of n pages that follow each other in memory; buffer: n times the layer's
 * record bytes, aligned to KVC_FILE_ALIGN. KVC_E_NOMEM, KVC_E_IO, KVC_E_LOST (get alone; the pages'
 * status says which); KVC_E_POLICY for any other failure. [io] */
int32_t kvc__tier_put(kvc__tier *t, kvc_tier_page *page, uint32_t n);
int32_t kvc__tier_get(kvc__tier *t, kvc_tier_page *page, uint32_t n, void *buffer, size_t size);
void kvc__tier_drop(kvc__tier *t, const kvc_tier_page *page, uint32_t n);
/** The page of a record that kvc__tier_get() brought: the record itself, or unpacked to
 * dst[page_bytes], which is 64-byte aligned. NULL when that fails: *rc then says KVC_E_LOST,
 * KVC_E_NOMEM, KVC_E_IO or KVC_E_POLICY. [any] */
const uint8_t *kvc__tier_unpack(kvc__tier *t, const kvc_tier_page *page, uint8_t *dst, int32_t *rc);

#endif
