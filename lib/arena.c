/* SPDX-License-Identifier: MIT
 * arena.c: slots with a count of holders, in segments of reserved address space. A segment stays
 * until the arena is freed, since any holder may have slots in it. */
#include "arena.h"

#include "os.h"

#include <string.h>

static size_t segment_bytes(const kvc__slots *l) {
    return l->per_seg * l->page_bytes;
}

/* Reserves a layer's tables, for as many segments as there may ever be. */
static int32_t layer_init(kvc__slots *l, size_t page_bytes, uint32_t per_seg, bool tier) {
    size_t bytes;
    l->page_bytes = page_bytes;
    l->per_seg = per_seg;
    if (!kvc__mul_size(per_seg, page_bytes, &bytes)) {
        return KVC_E_NOMEM;
    }
    l->seg = kvc__reserve(KVC__MAX_HOLDER * sizeof *l->seg);
    l->holder = kvc__reserve((size_t)KVC__MAX_HOLDER * per_seg * sizeof *l->holder);
    l->key = tier ? kvc__reserve((size_t)KVC__MAX_HOLDER * per_seg * sizeof *l->key) : NULL;
    const bool all = l->seg != NULL && l->holder != NULL && (l->key != NULL || !tier);
    return all ? KVC_OK : KVC_E_NOMEM;
}

int32_t kvc__arena_create(kvc__mem *mem, kvc__tier *tier, uint32_t n_layer,
                          const size_t *page_bytes, const uint32_t *per_seg, kvc__arena **out,
                          kvc__err *err) {
    kvc__arena *a = kvc__alloc(mem, sizeof *a);
    int32_t rc = KVC_E_NOMEM;
    if (a != NULL) {
        a->mem = mem;
        a->tier = tier;
        a->n_layer = n_layer;
        a->layer = kvc__alloc_n(mem, n_layer, sizeof *a->layer);
        rc = a->layer != NULL ? KVC_OK : KVC_E_NOMEM;
        for (uint32_t i = 0; rc == KVC_OK && i < n_layer; i++) {
            rc = layer_init(&a->layer[i], page_bytes[i], per_seg[i], tier != NULL);
        }
    }
    if (rc == KVC_OK) {
        rc = kvc__arena_join(a, err);
    }
    if (rc < 0) {
        kvc__arena_leave(a);
        return kvc__fail(err, rc, "can't reserve address space for the cache; lower n_ctx");
    }
    *out = a;
    return KVC_OK;
}

int32_t kvc__arena_join(kvc__arena *a, kvc__err *err) {
    if (a->n_seg == KVC__MAX_HOLDER) {
        return kvc__fail(err, KVC_E_RANGE, "a session can be forked %u times at most",
                         KVC__MAX_HOLDER - 1);
    }
    for (uint32_t i = 0; i < a->n_layer; i++) {
        kvc__slots *l = &a->layer[i];
        l->seg[a->n_seg] = kvc__reserve(segment_bytes(l));
        if (l->seg[a->n_seg] == NULL) {
            while (i-- > 0) {
                kvc__release(a->layer[i].seg[a->n_seg], segment_bytes(&a->layer[i]));
            }
            return kvc__fail(err, KVC_E_NOMEM,
                             "can't reserve address space for the cache; lower n_ctx");
        }
    }
    a->n_seg++;
    a->n_holder++;
    return KVC_OK;
}

void kvc__arena_leave(kvc__arena *a) {
    if (a == NULL || (a->n_holder > 0 && --a->n_holder > 0)) {
        return;
    }
    for (uint32_t i = 0; a->layer != NULL && i < a->n_layer; i++) {
        kvc__slots *l = &a->layer[i];
        for (uint32_t s = 0; s < a->n_seg; s++) {
            kvc__release(l->seg[s], segment_bytes(l));
        }
        kvc__release(l->seg, KVC__MAX_HOLDER * sizeof *l->seg);
        kvc__release(l->holder, (size_t)KVC__MAX_HOLDER * l->per_seg * sizeof *l->holder);
        kvc__release(l->key, (size_t)KVC__MAX_HOLDER * l->per_seg * sizeof *l->key);
    }
    kvc__free(a->mem, a->layer, a->n_layer * sizeof *a->layer);
    kvc__free(a->mem, a, sizeof *a);
}

uint32_t kvc__arena_take(kvc__arena *a, uint32_t layer) {
    kvc__slots *l = &a->layer[layer];
    const uint32_t n = a->n_seg * l->per_seg;
    for (uint32_t i = l->first_free; i < n; i++) {
        if (l->holder[i] == 0) {
            l->holder[i] = 1;
            l->first_free = i + 1;
            return i;
        }
    }
    l->first_free = n;
    return KVC__NO_SLOT;
}

void kvc__arena_share(kvc__arena *a, uint32_t layer, uint32_t slot) {
    a->layer[layer].holder[slot]++;
}

void kvc__arena_give(kvc__arena *a, uint32_t layer, uint32_t slot) {
    kvc__slots *l = &a->layer[layer];
    if (--l->holder[slot] > 0) {
        return;
    }
    l->first_free = slot < l->first_free ? slot : l->first_free;
    if (!kvc__arena_is_away(a, layer, slot)) {
        kvc__discard(kvc__arena_page(a, layer, slot), l->page_bytes);
        return;
    }
    if (l->key[slot].where == KVC__PAGE_AWAY) {
        const kvc_tier_page page = kvc__arena_away(a, layer, slot);
        kvc__tier_drop(a->tier, &page, 1);
    }
    l->key[slot].where = KVC__PAGE_HERE;
}

bool kvc__arena_is_shared(const kvc__arena *a, uint32_t layer, uint32_t slot) {
    return a->layer[layer].holder[slot] > 1;
}

uint8_t *kvc__arena_page(const kvc__arena *a, uint32_t layer, uint32_t slot) {
    const kvc__slots *l = &a->layer[layer];
    return l->seg[slot / l->per_seg] + (size_t)(slot % l->per_seg) * l->page_bytes;
}

bool kvc__arena_is_away(const kvc__arena *a, uint32_t layer, uint32_t slot) {
    return a->tier != NULL && a->layer[layer].key[slot].where != KVC__PAGE_HERE;
}

kvc_tier_page kvc__arena_away(const kvc__arena *a, uint32_t layer, uint32_t slot) {
    const kvc__slot_key *k = &a->layer[layer].key[slot];
    return (kvc_tier_page){.struct_size = sizeof(kvc_tier_page),
                           .layer = layer,
                           .head = k->head,
                           .key = {k->key[0], k->key[1]}};
}

int32_t kvc__arena_put(kvc__arena *a, uint32_t layer, uint32_t head, uint32_t slot,
                       const void *bytes) {
    kvc__slot_key *k = &a->layer[layer].key[slot];
    k->head = head;
    kvc_tier_page page = kvc__arena_away(a, layer, slot);
    page.bytes = bytes;
    const int32_t rc = kvc__tier_put(a->tier, &page, 1);
    *k = (kvc__slot_key){.key = {page.key[0], page.key[1]},
                         .head = head,
                         .where = rc == KVC_OK ? KVC__PAGE_AWAY : KVC__PAGE_NOWHERE};
    return rc;
}

size_t kvc__arena_slot_bytes(const kvc__arena *a) {
    return sizeof(uint32_t) + (a->tier != NULL ? sizeof(kvc__slot_key) : 0);
}
