/* SPDX-License-Identifier: MIT
 * merge.c: symbols as a linked list over the piece's bytes, candidate pairs in a binary heap
 * ordered by rank, then place. The last step of tokenizing, shared by byte-level BPE (bpe.c) and
 * SentencePiece's way (spm.c); it must not know what a token is. */
#include "merge.h"

#include "kvc/status.h"

#define NONE KVC__NO_SYMBOL
#define KEEP (size_t)65536 /* least bytes of scratch, enough for nearly every piece */

/* A pair that may be merged. A pair's bytes at one place only ever grow, so len tells whether the
 * entry is still about the two symbols that stand there. */
typedef struct candidate {
    uint64_t key; /* rank << 32 | place */
    uint32_t len; /* bytes of both */
    int32_t id;   /* what they become */
} candidate;

typedef struct merge {
    const kvc__merge_rules *rules;
    const uint8_t *text;
    kvc__symbol *sym;
    candidate *heap;
    size_t n_heap;
} merge;

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

/* Puts the pair (at, its right neighbour) on the heap when the rules merge it. */
static void pair_push(merge *m, uint32_t at) {
    uint32_t rank = 0;
    int32_t id = -1;
    if (at == NONE || m->sym[at].next == NONE) {
        return;
    }
    const kvc__symbol *l = &m->sym[at];
    const kvc__symbol *r = &m->sym[l->next];
    if (m->rules->pair(m->rules->rules, m->text + at, l, r, &rank, &id)) {
        heap_push(m,
                  (candidate){.key = (uint64_t)rank << 32 | at, .len = l->len + r->len, .id = id});
    }
}

static void pair_merge(merge *m, candidate c) {
    uint32_t at = (uint32_t)c.key;
    kvc__symbol *l = &m->sym[at];
    if (l->len == 0 || l->next == NONE || l->len + m->sym[l->next].len != c.len) {
        return;
    }
    kvc__symbol *r = &m->sym[l->next];
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
static int32_t work_grow(kvc__mem *mem, kvc__merge_work *work, size_t n) {
    size_t need;
    if (!kvc__mul_size(n, sizeof(kvc__symbol) + 2 * sizeof(candidate), &need)) {
        return KVC_E_NOMEM;
    }
    if (need <= work->bytes) {
        return KVC_OK;
    }
    kvc__merge_work_free(mem, work);
    need = need < KEEP ? KEEP : need;
    work->block = kvc__alloc(mem, need);
    work->bytes = work->block ? need : 0;
    return work->block ? KVC_OK : KVC_E_NOMEM;
}

static void symbols_fill(merge *m, size_t n) {
    uint32_t prev = NONE;
    for (uint32_t i = 0; i < n;) {
        kvc__symbol *s = &m->sym[i];
        s->id = m->rules->first(m->rules->rules, m->text + i, n - i, &s->len);
        s->prev = prev;
        s->next = i + s->len < n ? i + s->len : NONE;
        prev = i;
        i += s->len;
    }
}

int32_t kvc__merge(const kvc__merge_rules *r, kvc__mem *mem, kvc__merge_work *work,
                   const uint8_t *text, size_t n, const kvc__symbol **out) {
    int32_t rc = work_grow(mem, work, n);
    if (rc < 0) {
        return rc;
    }
    kvc__symbol *sym = work->block;
    merge m = {.rules = r, .text = text, .sym = sym, .heap = (candidate *)(void *)(sym + n)};
    symbols_fill(&m, n);
    for (uint32_t i = 0; i != NONE; i = sym[i].next) {
        pair_push(&m, i);
    }
    while (m.n_heap > 0) {
        pair_merge(&m, heap_pop(&m));
    }
    *out = sym;
    return KVC_OK;
}

void kvc__merge_work_free(kvc__mem *mem, kvc__merge_work *work) {
    kvc__free(mem, work->block, work->bytes);
    *work = (kvc__merge_work){0};
}

void kvc__sink_put(kvc__sink *sink, int32_t id) {
    if (sink->n < sink->cap) {
        sink->out[sink->n] = id;
    }
    sink->n++;
}
