/* SPDX-License-Identifier: MIT
 * special.c: a sorted table of special tokens with an index by first byte, narrowed byte by byte.
 * The first step of tokenizing, before the text is cut into pieces. It must not see merges or
 * patterns. */
#include "special.h"

#include "pretok.h"

#include <string.h>

#define MAX_BYTES 256u /* of a special token: bounds the work at each byte of a text */

const uint8_t *kvc__token_bytes(const kvc__tokens *t, int32_t id) {
    return t->bytes + t->offset[id];
}

size_t kvc__token_len(const kvc__tokens *t, int32_t id) {
    return t->offset[id + 1] - t->offset[id];
}

/* ---------------------------------------------------------------- sorting */

/* By bytes, a prefix before what it begins; by id when equal. */
static int token_order(const kvc__tokens *t, int32_t a, int32_t b) {
    size_t na = kvc__token_len(t, a);
    size_t nb = kvc__token_len(t, b);
    int c = memcmp(kvc__token_bytes(t, a), kvc__token_bytes(t, b), na < nb ? na : nb);
    if (c == 0) {
        c = (na > nb) - (na < nb);
    }
    return c != 0 ? c : (a > b) - (a < b);
}

static void heap_sift(const kvc__tokens *t, int32_t *id, uint32_t i, uint32_t n) {
    int32_t x = id[i];
    for (uint32_t c; (c = 2 * i + 1) < n; i = c) {
        if (c + 1 < n && token_order(t, id[c], id[c + 1]) < 0) {
            c++;
        }
        if (token_order(t, x, id[c]) >= 0) {
            break;
        }
        id[i] = id[c];
    }
    id[i] = x;
}

/* Heapsort: qsort() has no argument for the tokens and may allocate past mem.h. */
static void heap_sort(const kvc__tokens *t, int32_t *id, uint32_t n) {
    for (uint32_t i = n / 2; i-- > 0;) {
        heap_sift(t, id, i, n);
    }
    for (uint32_t end = n; end > 1; end--) {
        int32_t top = id[0];
        id[0] = id[end - 1];
        id[end - 1] = top;
        heap_sift(t, id, 0, end - 1);
    }
}

/* ---------------------------------------------------------------- building */

/* Invalid UTF-8 never occurs in valid text, and cutting it out could split a character. */
static bool is_wanted(const kvc__tokens *t, int32_t id, bool control) {
    size_t n = kvc__token_len(t, id);
    bool type = t->type[id] == KVC__TOKEN_USER || (control && t->type[id] == KVC__TOKEN_CONTROL);
    return type && n > 0 && kvc__utf8_valid(kvc__token_bytes(t, id), n) == n;
}

int32_t kvc__special_build(kvc__mem *mem, const kvc__tokens *t, bool control, kvc__special *s,
                           kvc__err *err) {
    *s = (kvc__special){0};
    for (int32_t i = 0; i < (int32_t)t->n; i++) {
        if (is_wanted(t, i, control)) {
            s->n++;
            s->first[*kvc__token_bytes(t, i) + 1]++;
            if (kvc__token_len(t, i) > MAX_BYTES) {
                return kvc__fail(err, KVC_E_FORMAT,
                                 "tokenizer.ggml.tokens: special token %d is longer than %u bytes",
                                 i, MAX_BYTES);
            }
        }
    }
    for (uint32_t b = 0; b < 256; b++) {
        s->first[b + 1] += s->first[b];
    }
    s->id = kvc__alloc_n(mem, s->n, sizeof *s->id);
    if (s->n > 0 && !s->id) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for %u special tokens", s->n);
    }
    uint32_t n = 0;
    for (int32_t i = 0; i < (int32_t)t->n; i++) {
        if (is_wanted(t, i, control)) {
            s->id[n++] = i;
        }
    }
    heap_sort(t, s->id, s->n);
    return KVC_OK;
}

void kvc__special_free(kvc__mem *mem, kvc__special *s) {
    kvc__free(mem, s->id, (size_t)s->n * sizeof *s->id);
    *s = (kvc__special){0};
}

/* ---------------------------------------------------------------- matching */

/* The first of s->id[lo, hi) whose byte at `depth` is at least b. All are longer than depth. */
static uint32_t lower_bound(const kvc__special *s, const kvc__tokens *t, uint32_t lo, uint32_t hi,
                            size_t depth, uint32_t b) {
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (kvc__token_bytes(t, s->id[mid])[depth] < b) {
            lo = mid + 1;
        } else {
            hi = mid;
        }
    }
    return lo;
}

/* [lo, hi) are those that agree with the text so far; the ones that end there come first. */
int32_t kvc__special_match(const kvc__special *s, const kvc__tokens *t, const uint8_t *text,
                           size_t n) {
    int32_t best = -1;
    uint32_t lo = s->first[text[0]];
    uint32_t hi = s->first[text[0] + 1];
    for (size_t depth = 1; lo < hi; depth++) {
        if (kvc__token_len(t, s->id[lo]) == depth) {
            best = s->id[lo];
        }
        while (lo < hi && kvc__token_len(t, s->id[lo]) == depth) {
            lo++;
        }
        if (depth == n) {
            break;
        }
        lo = lower_bound(s, t, lo, hi, depth, text[depth]);
        hi = lower_bound(s, t, lo, hi, depth, text[depth] + 1u);
    }
    return best;
}
