/* SPDX-License-Identifier: MIT
 * bpe.c: the rules of byte-level BPE, a hash table from pairs of tokens to what they become. The
 * last step of tokenizing, after vocab.c has cut the text; it must not know texts or patterns. */
#include "bpe.h"

#include "kvc/status.h"

#include <xxhash.h>

int32_t kvc__bpe_init(kvc__mem *mem, uint32_t n_rule, kvc__bpe *out) {
    uint32_t n_slot = 16;
    while (n_slot / 2 < n_rule && n_slot < UINT32_C(1) << 31) {
        n_slot *= 2;
    }
    *out = (kvc__bpe){.n_slot = n_slot};
    out->slot = kvc__alloc_n(mem, n_slot, sizeof *out->slot);
    if (!out->slot) {
        *out = (kvc__bpe){0};
        return KVC_E_NOMEM;
    }
    for (uint32_t i = 0; i < n_slot; i++) {
        out->slot[i].left = -1;
    }
    for (uint32_t i = 0; i < 256; i++) {
        out->byte[i] = -1;
    }
    return KVC_OK;
}

void kvc__bpe_free(kvc__mem *mem, kvc__bpe *b) {
    kvc__free(mem, b->slot, (size_t)b->n_slot * sizeof *b->slot);
    *b = (kvc__bpe){0};
}

/* The slot of a pair: its rule's, or the empty one where it would stand. */
static kvc__bpe_rule *rule_slot(const kvc__bpe *b, int32_t left, int32_t right) {
    int32_t pair[2] = {left, right};
    uint32_t mask = b->n_slot - 1;
    uint32_t i = (uint32_t)XXH3_64bits(pair, sizeof pair) & mask;
    while (b->slot[i].left >= 0 && (b->slot[i].left != left || b->slot[i].right != right)) {
        i = (i + 1) & mask;
    }
    return &b->slot[i];
}

void kvc__bpe_add(kvc__bpe *b, int32_t left, int32_t right, int32_t id, uint32_t rank) {
    kvc__bpe_rule *r = rule_slot(b, left, right);
    if (r->left < 0) {
        *r = (kvc__bpe_rule){.left = left, .right = right, .id = id, .rank = rank};
    }
}

static int32_t first_byte(const void *rules, const uint8_t *text, size_t n, uint32_t *len) {
    const kvc__bpe *b = rules;
    (void)n;
    *len = 1;
    return b->byte[text[0]];
}

static bool find_rule(const void *rules, const uint8_t *text, const kvc__symbol *l,
                      const kvc__symbol *r, uint32_t *rank, int32_t *id) {
    (void)text;
    if (l->id < 0 || r->id < 0) {
        return false;
    }
    const kvc__bpe_rule *rule = rule_slot(rules, l->id, r->id);
    *rank = rule->rank;
    *id = rule->id;
    return rule->left >= 0;
}

int32_t kvc__bpe_encode(const kvc__bpe *b, kvc__mem *mem, kvc__merge_work *work,
                        const uint8_t *piece, size_t n, kvc__sink *sink) {
    const kvc__merge_rules rules = {.rules = b, .first = first_byte, .pair = find_rule};
    const kvc__symbol *sym = NULL;
    if (n == 0) {
        return KVC_OK;
    }
    int32_t rc = kvc__merge(&rules, mem, work, piece, n, &sym);
    for (uint32_t i = 0; rc == KVC_OK && i != KVC__NO_SYMBOL; i = sym[i].next) {
        if (sym[i].id >= 0) {
            kvc__sink_put(sink, sym[i].id);
        }
    }
    return rc;
}
