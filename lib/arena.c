/* SPDX-License-Identifier: MIT
 * arena.c: slots with a count of holders, in blocks that are cut from segments of reserved address
 * space. A segment stays until the arena is freed, since any holder may have slots in it. */
#include "arena.h"

#include "os.h"

#include <string.h>

/* Bytes of a block, about: long enough to be read at the memory's speed, since every jump to
 * another one costs as much as some KiB; short enough that the unused rest of each layer's last one
 * is little. */
#define BLOCK_BYTES ((size_t)128 << 10)

/* Bytes of a segment in the system's small pages. What comes behind has large ones, whose unused
 * rest is little beside so much. */
#define SMALL_BYTES ((size_t)8 << 20)

static size_t block_bytes(const kvc__slots *l) {
    return (l->per_block * l->page_bytes + 63) & ~(size_t)63;
}

static size_t n_block(const kvc__slots *l, size_t n_slot) {
    return (n_slot + l->per_block - 1) / l->per_block;
}

static size_t block_table(const kvc__slots *l) {
    return n_block(l, (size_t)KVC__MAX_HOLDER * l->per_seg) * sizeof *l->block;
}

/* Reserves a layer's tables, for as many slots as there may ever be. */
static int32_t layer_init(kvc__slots *l, size_t page_bytes, uint32_t per_seg, bool tier) {
    size_t bytes;
    l->page_bytes = page_bytes;
    l->per_seg = per_seg;
    if (!kvc__mul_size((size_t)per_seg + BLOCK_BYTES, page_bytes, &bytes)) {
        return KVC_E_NOMEM;
    }
    const size_t fits = page_bytes > 0 ? BLOCK_BYTES / page_bytes : per_seg;
    l->per_block = (uint32_t)(fits < 1 ? 1 : fits < per_seg ? fits : per_seg);
    l->block = kvc__reserve(block_table(l));
    l->holder = kvc__reserve((size_t)KVC__MAX_HOLDER * per_seg * sizeof *l->holder);
    l->key = tier ? kvc__reserve((size_t)KVC__MAX_HOLDER * per_seg * sizeof *l->key) : NULL;
    const bool all = l->block != NULL && l->holder != NULL && (l->key != NULL || !tier);
    return all ? KVC_OK : KVC_E_NOMEM;
}

/* What all layers' blocks for one holder take, and one block more, since the rest of a segment may
 * be too short for the next one. */
static int32_t measure_segment(kvc__arena *a) {
    size_t most = 0;
    for (uint32_t i = 0; i < a->n_layer; i++) {
        const kvc__slots *l = &a->layer[i];
        const size_t each = block_bytes(l);
        size_t bytes;
        if (!kvc__mul_size(n_block(l, l->per_seg), each, &bytes) ||
            bytes > PTRDIFF_MAX - a->seg_bytes) {
            return KVC_E_NOMEM;
        }
        a->seg_bytes += bytes;
        most = each > most ? each : most;
    }
    a->seg_bytes += most;
    return KVC_OK;
}

static int32_t init(kvc__arena *a, kvc__tier *tier, const size_t *page_bytes,
                    const uint32_t *per_seg) {
    a->layer = kvc__alloc_n(a->mem, a->n_layer, sizeof *a->layer);
    a->seg = kvc__reserve(KVC__MAX_HOLDER * sizeof *a->seg);
    if (a->layer == NULL || a->seg == NULL) {
        return KVC_E_NOMEM;
    }
    for (uint32_t i = 0; i < a->n_layer; i++) {
        KVC_TRY(layer_init(&a->layer[i], page_bytes[i], per_seg[i], tier != NULL));
    }
    return measure_segment(a);
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
        rc = init(a, tier, page_bytes, per_seg);
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
    uint8_t *seg = kvc__reserve(a->seg_bytes);
    if (seg == NULL) {
        return kvc__fail(err, KVC_E_NOMEM,
                         "can't reserve address space for the cache; lower n_ctx");
    }
    if (a->seg_bytes > SMALL_BYTES) {
        kvc__prefer_large(seg + SMALL_BYTES, a->seg_bytes - SMALL_BYTES);
    }
    a->seg[a->n_seg++] = seg;
    a->n_holder++;
    return KVC_OK;
}

void kvc__arena_leave(kvc__arena *a) {
    if (a == NULL || (a->n_holder > 0 && --a->n_holder > 0)) {
        return;
    }
    for (uint32_t s = 0; s < a->n_seg; s++) {
        kvc__release(a->seg[s], a->seg_bytes);
    }
    kvc__release(a->seg, KVC__MAX_HOLDER * sizeof *a->seg);
    for (uint32_t i = 0; a->layer != NULL && i < a->n_layer; i++) {
        kvc__slots *l = &a->layer[i];
        if (l->per_block > 0) {
            kvc__release(l->block, block_table(l));
        }
        kvc__release(l->holder, (size_t)KVC__MAX_HOLDER * l->per_seg * sizeof *l->holder);
        kvc__release(l->key, (size_t)KVC__MAX_HOLDER * l->per_seg * sizeof *l->key);
    }
    kvc__free(a->mem, a->layer, a->n_layer * sizeof *a->layer);
    kvc__free(a->mem, a, sizeof *a);
}

/* Makes sure that a slot has memory; false when no segment has room for its block. */
static bool back_slot(kvc__arena *a, kvc__slots *l, uint32_t slot) {
    uint8_t **block = &l->block[slot / l->per_block];
    const size_t bytes = block_bytes(l);
    if (*block != NULL) {
        return true;
    }
    while (a->cut_seg < a->n_seg && a->seg_bytes - a->cut_at < bytes) {
        a->cut_seg++;
        a->cut_at = 0;
    }
    if (a->cut_seg == a->n_seg) {
        return false;
    }
    *block = a->seg[a->cut_seg] + a->cut_at;
    a->cut_at += bytes;
    return true;
}

uint32_t kvc__arena_take(kvc__arena *a, uint32_t layer) {
    kvc__slots *l = &a->layer[layer];
    const uint32_t n = a->n_seg * l->per_seg;
    for (uint32_t i = l->first_free; i < n; i++) {
        if (l->holder[i] == 0 && back_slot(a, l, i)) {
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
    return l->block[slot / l->per_block] + (size_t)(slot % l->per_block) * l->page_bytes;
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
