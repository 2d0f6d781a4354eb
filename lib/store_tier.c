/* SPDX-License-Identifier: MIT
 * store_tier.c: what a store does when its plan has a tier. Memory is bounded by shares: what a
 * session needs in any case is taken off the bytes that the plan allows, and of the rest every
 * layer gets the same number of pages. The first pages of a layer stay in memory until its share is
 * full, later ones go to the tier, and a freed place is taken by the next page that is sealed:
 * attention passes through all pages of all layers in a circle, where any other choice would evict
 * each page just before its use. */
#include "store.h"

#include <stdio.h>
#include <string.h>

#define DEFAULT_SPARE ((uint64_t)8 << 20)

/* Units that the ring may have beyond the fewest: more overlap, fewer pages that stay. */
#define MORE_UNITS 6u

/* ---------------------------------------------------------------- shares */

static void pager_env(const kvc__store *s, kvc__pager_env *out) {
    *out = (kvc__pager_env){.mem = s->mem,
                            .arena = s->arena,
                            .io = s->stack->io,
                            .n_entry = kvc__pager_least(kvc__pool_n_thread(s->stack->pool)),
                            .n_range = s->cap_page / KVC__RANGE_PAGES + 1,
                            .n_thread = kvc__pool_n_thread(s->stack->pool)};
    for (uint32_t i = 0; i < s->n_layer; i++) {
        const size_t bytes = s->stack->shape[i].page_bytes;
        const uint32_t heads = s->stack->n_head_kv[i];
        out->n_head = heads > out->n_head ? heads : out->n_head;
        out->page_bytes = bytes > out->page_bytes ? bytes : out->page_bytes;
        const size_t record = kvc__tier_record_bytes(s->arena->tier, i, bytes);
        out->record_bytes = record > out->record_bytes ? record : out->record_bytes;
    }
    out->record_bytes = (out->record_bytes + 63) & ~(size_t)63; /* pages lie behind */
}

/* The most that everything but pages and the ring takes when the session is full. */
static uint64_t fixed_bytes(const kvc__store *s) {
    const uint64_t pages = (uint64_t)s->n_lane * s->cap_page;
    uint64_t memory, disk, n = s->open_bytes + s->n_lane * sizeof(kvc__lane);
    kvc__stack_bytes(s->stack, &memory, &disk);
    n += pages * (sizeof(kvc__ref) + kvc__arena_slot_bytes(s->arena)) + memory;
    n += s->pos != NULL ? pages * KVC_PAGE * sizeof(int32_t) : 0;
    n += (pages + s->n_lane) * s->n_column * KVC_PAGE * sizeof(float) * 2;
    if (s->journal.ref != NULL) {
        n += pages * sizeof(kvc__ref) + s->n_lane * sizeof(kvc__lane) +
             s->n_layer * sizeof(kvc__journal_layer);
    }
    return n + 2 * (uint64_t)s->n_layer * sizeof(uint32_t);
}

/* What is left of the spare bytes after some more units for the ring goes to the layers. */
static void divide(kvc__store *s, kvc__pager_env *env, uint64_t spare) {
    kvc__pager_env more = *env;
    more.n_entry++;
    const uint64_t unit = kvc__pager_bytes(&more) - kvc__pager_bytes(env);
    uint64_t n = spare / 4 / unit, layer = 0;
    n = n < MORE_UNITS ? n : MORE_UNITS;
    env->n_entry += (uint32_t)n;
    spare -= n * unit;
    for (uint32_t i = 0; i < s->n_layer; i++) {
        layer += s->stack->shape[i].page_bytes;
    }
    n = spare / layer;
    for (uint32_t i = 0; i < s->n_layer; i++) {
        s->share[i] = n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
    }
}

int32_t kvc__store_tier_create(kvc__store *s, bool fork, kvc__err *err) {
    const kvc__stage *st = s->stack->tier;
    s->resident = kvc__alloc_n(s->mem, s->n_layer, 2 * sizeof *s->resident);
    if (s->resident == NULL) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for the cache's page tables");
    }
    s->share = s->resident + s->n_layer;
    kvc__pager_env env;
    pager_env(s, &env);
    const uint64_t least = fixed_bytes(s) + kvc__pager_bytes(&env);
    uint64_t hot = st->plan.hot_bytes;
    hot = hot == 0 ? least + DEFAULT_SPARE : hot == KVC_HOT_LEAST ? least : hot;
    hot = fork && hot < least ? least : hot;
    if (hot < least) {
        return kvc__fail(
            err, KVC_E_PARAM,
            "policy '%s' may hold %llu bytes in memory, but this model, spec and n_ctx "
            "need %llu at least (%.1f MiB); allow that many or lower n_ctx",
            st->policy.desc.name, (unsigned long long)hot, (unsigned long long)least,
            (double)least / 1048576.0);
    }
    divide(s, &env, hot - least);
    s->pager_bytes = kvc__pager_bytes(&env) + 2 * (size_t)s->n_layer * sizeof *s->resident;
    return kvc__pager_create(&env, &s->pager, err);
}

void kvc__store_tier_destroy(kvc__store *s) {
    kvc__pager_destroy(s->pager);
    s->pager = NULL;
    kvc__free(s->mem, s->resident, s->n_layer * 2 * sizeof *s->resident);
}

void kvc__store_count_away(kvc__store *s, uint32_t layer, int sign) {
    const uint64_t bytes = s->stack->shape[layer].page_bytes;
    if (sign > 0) {
        s->sealed_bytes -= bytes;
        s->n_sealed--;
        s->resident[layer]--;
        s->away_bytes += bytes;
        s->n_away++;
    } else {
        s->sealed_bytes += bytes;
        s->n_sealed++;
        s->resident[layer]++;
        s->away_bytes -= bytes;
        s->n_away--;
    }
}

/* ---------------------------------------------------------------- bringing back */

uint8_t *kvc__store_buffer(const kvc__store *s) {
    return s->pager != NULL ? kvc__pager_buffer(s->pager) : NULL;
}

size_t kvc__store_room(const kvc__store *s) {
    return s->pager != NULL ? kvc__pager_room(s->pager) : 0;
}

const uint8_t *kvc__store_bring(const kvc__store *s, uint32_t layer, uint32_t lane, uint32_t page,
                                uint8_t *room, int32_t *rc) {
    const kvc__ref *r = &s->lane[lane].page[page];
    *rc = KVC_OK;
    if (!kvc__store_is_away(s, layer, r)) {
        return kvc__arena_page(s->arena, layer, r->slot);
    }
    const uint8_t *bytes = kvc__pager_bring(s->pager, layer, r->slot, room, rc);
    if (*rc == KVC_E_LOST) {
        kvc__pager_note_lost(s->pager, page);
    }
    return bytes;
}
