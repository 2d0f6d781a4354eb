/* SPDX-License-Identifier: MIT
 * bpe.c: byte-pair merging of one piece. Symbols are a linked list over the piece's bytes, the
 * candidate pairs a binary heap ordered by rank, then place. The last step of tokenizing, after
 * vocab.c has cut the text; it must not know texts or patterns. */
#include "bpe.h"

#include "kvc/status.h"

#include <string.h>
#include <xxhash.h>

#define NONE UINT32_MAX
#define KEEP (size_t)65536 /* least bytes of scratch, enough for nearly every piece */

/* A run of bytes that is one token now. len 0: merged into its left neighbour. */
typedef struct symbol {
    int32_t id;
    uint32_t prev, next; /* NONE at the ends */
    uint32_t len;        /* bytes */
} symbol;

/* A pair that may be merged. A pair's bytes at one place only ever grow, so len tells whether the
 * entry is still about the two symbols that stand there. */
typedef struct candidate {
    uint64_t key; /* rank << 32 | place */
    uint32_t len; /* bytes of both */
    int32_t id;   /* what they become */
} candidate;

typedef struct merge {
    const kvc__bpe *rules;
    symbol *sym;
    candidate *heap;
    size_t n_heap;
} merge;

/* ---------------------------------------------------------------- rules */

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

/* ---------------------------------------------------------------- heap */

static void heap_push(merge *m, candidate c) {
    size_t i = m->n_heap++;
    while (i > 0 && c.key < m->heap[(i - 1) / 2].key) {
        m->heap[i] = m->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    m->heap[i] = c;
}

static candidate heap_pop(merge *m) {
    candidate top = m->heap[0];
    candidate last = m->heap[--m->n_heap];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= m->n_heap) {
            break;
        }
        if (child + 1 < m->n_heap && m->heap[child + 1].key < m->heap[child].key) {
            child++;
        }
        if (last.key <= m->heap[child].key) {
            break;
        }
        m->heap[i] = m->heap[child];
        i = child;
    }
    m->heap[i] = last;
    return top;
}

/* ---------------------------------------------------------------- merging */

/* Puts the pair (at, its right neighbour) on the heap when there is a rule for it. */
static void pair_push(merge *m, uint32_t at) {
    if (at == NONE || m->sym[at].next == NONE) {
        return;
    }
    const symbol *l = &m->sym[at];
    const symbol *r = &m->sym[l->next];
    if (l->id < 0 || r->id < 0) {
        return;
    }
    const kvc__bpe_rule *rule = rule_slot(m->rules, l->id, r->id);
    if (rule->left >= 0) {
        heap_push(m, (candidate){.key = (uint64_t)rule->rank << 32 | at,
                                 .len = l->len + r->len,
                                 .id = rule->id});
    }
}

static void pair_merge(merge *m, candidate c) {
    uint32_t at = (uint32_t)c.key;
    symbol *l = &m->sym[at];
    if (l->len == 0 || l->next == NONE || l->len + m->sym[l->next].len != c.len) {
        return;
    }
    symbol *r = &m->sym[l->next];
    l->id = c.id;
    l->len = c.len;
    l->next = r->next;
    r->len = 0;
    if (l->next != NONE) {
        m->sym[l->next].prev = at;
    }
    pair_push(m, l->prev);
    pair_push(m, at);
}

/* Room for n symbols and 2n candidates: n - 1 at first, and a merge takes one and adds two. */
static int32_t work_grow(kvc__mem *mem, kvc__bpe_work *work, size_t n) {
    size_t need;
    if (!kvc__mul_size(n, sizeof(symbol) + 2 * sizeof(candidate), &need)) {
        return KVC_E_NOMEM;
    }
    if (need <= work->bytes) {
        return KVC_OK;
    }
    kvc__bpe_work_free(mem, work);
    need = need < KEEP ? KEEP : need;
    work->block = kvc__alloc(mem, need);
    work->bytes = work->block ? need : 0;
    return work->block ? KVC_OK : KVC_E_NOMEM;
}

int32_t kvc__bpe_encode(const kvc__bpe *b, kvc__mem *mem, kvc__bpe_work *work, const uint8_t *piece,
                        size_t n, kvc__sink *sink) {
    if (n == 0) {
        return KVC_OK;
    }
    int32_t rc = work_grow(mem, work, n);
    if (rc < 0) {
        return rc;
    }
    symbol *sym = work->block;
    merge m = {.rules = b, .sym = sym, .heap = (candidate *)(void *)(sym + n)};
    for (uint32_t i = 0; i < n; i++) {
        sym[i] = (symbol){.id = b->byte[piece[i]],
                          .prev = i > 0 ? i - 1 : NONE,
                          .next = i + 1 < n ? i + 1 : NONE,
                          .len = 1};
    }
    for (uint32_t i = 0; i + 1 < n; i++) {
        pair_push(&m, i);
    }
    while (m.n_heap > 0) {
        pair_merge(&m, heap_pop(&m));
    }
    for (uint32_t i = 0; i != NONE; i = sym[i].next) {
        if (sym[i].id >= 0) {
            kvc__sink_put(sink, sym[i].id);
        }
    }
    return KVC_OK;
}

void kvc__bpe_work_free(kvc__mem *mem, kvc__bpe_work *work) {
    kvc__free(mem, work->block, work->bytes);
    *work = (kvc__bpe_work){0};
}

void kvc__sink_put(kvc__sink *sink, int32_t id) {
    if (sink->n < sink->cap) {
        sink->out[sink->n] = id;
    }
    sink->n++;
}
