/* SPDX-License-Identifier: MIT
 * textmap.c: open addressing with linear probing; the slots hold ids, the bytes stand with the
 * tokens. It must not know what tokens are for. */
#include "textmap.h"

#include "kvc/status.h"

#include <string.h>
#include <xxhash.h>

int32_t kvc__textmap_init(kvc__mem *mem, const kvc__tokens *t, kvc__textmap *out) {
    uint32_t n_slot = 16;
    while (n_slot / 2 < t->n && n_slot < UINT32_C(1) << 31) {
        n_slot *= 2;
    }
    *out = (kvc__textmap){.tokens = t, .n_slot = n_slot};
    out->slot = kvc__alloc_n(mem, n_slot, sizeof *out->slot);
    if (out->slot == NULL) {
        *out = (kvc__textmap){0};
        return KVC_E_NOMEM;
    }
    memset(out->slot, 0xff, n_slot * sizeof *out->slot);
    return KVC_OK;
}

void kvc__textmap_free(kvc__mem *mem, kvc__textmap *m) {
    kvc__free(mem, m->slot, (size_t)m->n_slot * sizeof *m->slot);
    *m = (kvc__textmap){0};
}

/* The slot of these bytes: their token's, or the empty one where it would stand. */
static int32_t *slot_of(const kvc__textmap *m, const void *p, size_t n) {
    uint32_t mask = m->n_slot - 1;
    uint32_t i = (uint32_t)XXH3_64bits(p, n) & mask;
    for (; m->slot[i] >= 0; i = (i + 1) & mask) {
        if (kvc__token_len(m->tokens, m->slot[i]) == n &&
            memcmp(kvc__token_bytes(m->tokens, m->slot[i]), p, n) == 0) {
            break;
        }
    }
    return &m->slot[i];
}

void kvc__textmap_add(kvc__textmap *m, int32_t id) {
    size_t n = kvc__token_len(m->tokens, id);
    int32_t *slot = n > 0 ? slot_of(m, kvc__token_bytes(m->tokens, id), n) : NULL;
    if (slot != NULL && *slot < 0) {
        *slot = id;
    }
}

int32_t kvc__textmap_find(const kvc__textmap *m, const void *p, size_t n) {
    return n > 0 ? *slot_of(m, p, n) : -1;
}
