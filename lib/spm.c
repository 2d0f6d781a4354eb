/* SPDX-License-Identifier: MIT
 * spm.c: SentencePiece's BPE (Kudo and Richardson 2018, arXiv 1808.06226) over merge.c: a pair's
 * rank is the score of the token that its joined text is. The last step of tokenizing for
 * vocabularies without merges; it must not see special tokens. */
#include "spm.h"

#include "kvc/status.h"
#include "pretok.h"

#include <string.h>

/* ---------------------------------------------------------------- rules of merging */

/* A higher score is a lower rank: a float's bits, made to order as integers do, from the top. */
static uint32_t rank_of(float score) {
    uint32_t bits;
    score += 0.0f; /* -0 is 0 */
    memcpy(&bits, &score, sizeof bits);
    return (bits & 0x80000000u) != 0 ? bits : ~bits & 0x7fffffffu;
}

static int32_t first_char(const void *rules, const uint8_t *text, size_t n, uint32_t *len) {
    const kvc__spm *s = rules;
    *len = (uint32_t)kvc__utf8_len(text, n);
    return kvc__textmap_find(s->map, text, *len);
}

static bool find_token(const void *rules, const uint8_t *text, const kvc__symbol *l,
                       const kvc__symbol *r, uint32_t *rank, int32_t *id) {
    const kvc__spm *s = rules;
    const size_t n = (size_t)l->len + r->len;
    *id = n <= s->max_len ? kvc__textmap_find(s->map, text, n) : -1;
    *rank = *id >= 0 ? rank_of(s->score[*id]) : 0;
    return *id >= 0;
}

/* ---------------------------------------------------------------- text as tokens have it */

/* Copies text; with `collapse` of its spaces only single ones between words. U+2581 in text is what
 * tokens have for a space, so it becomes one, which stays but at the end. */
static size_t copy_text(uint8_t *out, const uint8_t *text, size_t n, bool collapse) {
    size_t at = 0;
    bool pending = false; /* a space that a word must follow */
    for (size_t i = 0; i < n;) {
        if (collapse && text[i] == ' ') {
            pending = at > 0;
            i++;
            continue;
        }
        if (pending) {
            out[at++] = ' ';
            pending = false;
        }
        bool mark = n - i >= 3 && memcmp(text + i, "\xe2\x96\x81", 3) == 0;
        out[at++] = mark ? ' ' : text[i];
        i += mark ? 3 : 1;
    }
    while (collapse && at > 0 && out[at - 1] == ' ') {
        at--;
    }
    return at;
}

/* Fills work->text; *out are its bytes. */
static int32_t text_fill(const kvc__spm *s, kvc__mem *mem, kvc__spm_work *work, const uint8_t *text,
                         size_t n, bool prefix, size_t *out) {
    if (n + 1 > work->cap) {
        kvc__free(mem, work->text, work->cap);
        work->text = kvc__alloc(mem, n + 1);
        work->cap = work->text != NULL ? n + 1 : 0;
    }
    if (work->text == NULL) {
        return KVC_E_NOMEM;
    }
    uint8_t *body = work->text + (prefix ? 1 : 0);
    work->text[0] = ' ';
    const size_t len = copy_text(body, text, n, s->collapse);
    *out = len > 0 ? len + (prefix ? 1 : 0) : 0;
    return KVC_OK;
}

/* ---------------------------------------------------------------- encoding */

/* A symbol that is no token. Unknown ones in a row are one unknown token. */
static void put_unknown(const kvc__spm *s, const uint8_t *text, size_t n, bool *was_unknown,
                        kvc__sink *sink) {
    bool bytes = true;
    for (size_t i = 0; i < n; i++) {
        bytes = bytes && s->byte[text[i]] >= 0;
    }
    for (size_t i = 0; bytes && i < n; i++) {
        kvc__sink_put(sink, s->byte[text[i]]);
    }
    if (!bytes && !*was_unknown && s->unk >= 0) {
        kvc__sink_put(sink, s->unk);
    }
    *was_unknown = !bytes;
}

static int32_t encode_word(const kvc__spm *s, kvc__mem *mem, kvc__spm_work *work,
                           const uint8_t *text, size_t n, bool *was_unknown, kvc__sink *sink) {
    const kvc__merge_rules rules = {.rules = s, .first = first_char, .pair = find_token};
    const kvc__symbol *sym = NULL;
    int32_t rc = kvc__merge(&rules, mem, &work->merge, text, n, &sym);
    for (uint32_t i = 0; rc == KVC_OK && i != KVC__NO_SYMBOL; i = sym[i].next) {
        if (sym[i].id >= 0) {
            kvc__sink_put(sink, sym[i].id);
            *was_unknown = false;
        } else {
            put_unknown(s, text + i, sym[i].len, was_unknown, sink);
        }
    }
    return rc;
}

/* The end of the word that begins at `at`: where a space follows another character. */
static size_t word_end(const kvc__spm *s, const uint8_t *text, size_t n, size_t at) {
    if (!s->split) {
        return n;
    }
    for (at++; at < n && (text[at] != ' ' || text[at - 1] == ' '); at++) {
    }
    return at;
}

int32_t kvc__spm_encode(const kvc__spm *s, kvc__mem *mem, kvc__spm_work *work, const uint8_t *text,
                        size_t n, bool prefix, kvc__sink *sink) {
    size_t len = 0;
    bool was_unknown = false;
    if (n == 0) {
        return KVC_OK;
    }
    int32_t rc = text_fill(s, mem, work, text, n, prefix, &len);
    for (size_t at = 0, end; rc == KVC_OK && at < len; at = end) {
        end = word_end(s, work->text, len, at);
        rc = encode_word(s, mem, work, work->text + at, end - at, &was_unknown, sink);
    }
    return rc;
}

void kvc__spm_work_free(kvc__mem *mem, kvc__spm_work *work) {
    kvc__merge_work_free(mem, &work->merge);
    kvc__free(mem, work->text, work->cap);
    *work = (kvc__spm_work){0};
}
