/* SPDX-License-Identifier: MIT
 * vocab.c: text to tokens and back. Special tokens are cut out; the rest is cut into pieces
 * (pretok.c) that are merged each (bpe.c), or merged whole (spm.c). vocab_load.c has read the
 * vocabulary. It must not know files or sessions. */
#include "vocab.h"

#include "vocab_load.h"

#include <string.h>

#define MAX_INPUT ((size_t)INT32_MAX)

int32_t kvc__vocab_create(kvc__mem *mem, const kvc__gguf *g, kvc__vocab **out, kvc__err *err) {
    *out = NULL;
    kvc__vocab *v = kvc__alloc(mem, sizeof *v);
    if (!v) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for the vocabulary");
    }
    v->mem = mem;
    int32_t rc = kvc__vocab_load(v, g, err);
    if (rc < 0) {
        kvc__vocab_destroy(v);
        return rc;
    }
    *out = v;
    return KVC_OK;
}

void kvc__vocab_destroy(kvc__vocab *v) {
    if (!v) {
        return;
    }
    kvc__free(v->mem, v->tokens.type, (size_t)v->tokens.n * sizeof *v->tokens.type);
    kvc__free(v->mem, v->tokens.offset, ((size_t)v->tokens.n + 1) * sizeof *v->tokens.offset);
    kvc__free(v->mem, v->tokens.bytes, v->tokens.n_bytes);
    kvc__textmap_free(v->mem, &v->map);
    kvc__free(v->mem, v->score, (size_t)v->tokens.n * sizeof *v->score);
    kvc__special_free(v->mem, &v->user);
    kvc__special_free(v->mem, &v->all);
    kvc__bpe_free(v->mem, &v->bpe);
    kvc__pretok_destroy(v->pretok);
    kvc__free(v->mem, v, sizeof *v);
}

uint32_t kvc__vocab_size(const kvc__vocab *v) {
    return v->tokens.n;
}

int32_t kvc__vocab_bos(const kvc__vocab *v) {
    return v->bos;
}

int32_t kvc__vocab_eos(const kvc__vocab *v) {
    return v->eos;
}

int32_t kvc__vocab_eot(const kvc__vocab *v) {
    return v->eot;
}

bool kvc__vocab_adds_bos(const kvc__vocab *v) {
    return v->add_bos && v->bos >= 0;
}

bool kvc__vocab_is_spm(const kvc__vocab *v) {
    return v->pretok == NULL;
}

bool kvc__vocab_puts_space(const kvc__vocab *v) {
    return v->space_prefix;
}

int32_t kvc__vocab_special(const kvc__vocab *v, const char *text) {
    const size_t n = strlen(text);
    int32_t id = kvc__special_match(&v->all, &v->tokens, (const uint8_t *)text, n);
    return id >= 0 && kvc__token_len(&v->tokens, id) == n ? id : -1;
}

bool kvc__vocab_is_end(const kvc__vocab *v, int32_t token) {
    for (uint32_t i = 0; i < v->n_end; i++) {
        if (v->end[i] == token) {
            return true;
        }
    }
    return false;
}

/* ---------------------------------------------------------------- text to tokens */

static int32_t check_text(const uint8_t *text, size_t n, kvc__err *err) {
    if (n > MAX_INPUT) {
        return kvc__fail(err, KVC_E_ARG, "text of %zu bytes; give it in parts below 2 GiB", n);
    }
    size_t valid = kvc__utf8_valid(text, n);
    if (valid < n) {
        return kvc__fail(err, KVC_E_UTF8,
                         "invalid UTF-8 at byte %zu (0x%02x); convert the text to UTF-8", valid,
                         text[valid]);
    }
    return KVC_OK;
}

/* What one tokenize call carries along. */
typedef struct job {
    const kvc__vocab *v;
    kvc__pretok_work *pretok; /* byte-level BPE */
    kvc__merge_work merge;
    kvc__spm_work spm; /* SentencePiece's way */
    kvc__sink sink;
    kvc__err *err;
} job;

static int32_t encode_piece(void *ctx, const uint8_t *piece, size_t n) {
    job *j = ctx;
    const kvc__vocab *v = j->v;
    int32_t id = v->whole ? kvc__textmap_find(&v->map, piece, n) : -1;
    if (id >= 0) {
        kvc__sink_put(&j->sink, id);
        return KVC_OK;
    }
    int32_t rc = kvc__bpe_encode(&v->bpe, v->mem, &j->merge, piece, n, &j->sink);
    return rc < 0 ? kvc__fail(j->err, rc, "no memory to merge a piece of %zu bytes", n) : rc;
}

/* Text between special tokens, or all of it when there is none: what stands at the beginning or
 * after a special token. */
static int32_t encode_plain(job *j, const uint8_t *text, size_t n) {
    const kvc__vocab *v = j->v;
    if (v->pretok) {
        return kvc__pretok_split(v->pretok, j->pretok, text, n, encode_piece, j, j->err);
    }
    int32_t rc = kvc__spm_encode(&v->spm, v->mem, &j->spm, text, n, v->space_prefix, &j->sink);
    return rc < 0 ? kvc__fail(j->err, rc, "no memory to merge a text of %zu bytes", n) : rc;
}

/* Text and the special token that follows it. */
static int32_t encode_until(job *j, const uint8_t *text, size_t n, int32_t id) {
    KVC_TRY(encode_plain(j, text, n));
    kvc__sink_put(&j->sink, id);
    return KVC_OK;
}

/* The user-defined token at byte i, which lies in part k, or -1. It may go on in later parts, up to
 * `end`; but not into markers that begin with a control token, which would be lost. */
static int32_t match_user(const kvc__vocab *v, const uint8_t *text, const kvc__span *span, size_t k,
                          size_t i, size_t end) {
    int32_t id = kvc__special_match(&v->user, &v->tokens, text + i, end - i);
    const size_t stop = id < 0 ? 0 : i + kvc__token_len(&v->tokens, id);
    for (; span[k].end < stop; k++) {
        const size_t at = span[k].end, n = span[k + 1].end - at;
        const bool mark = span[k + 1].kind == KVC__TEXT_MARK && n > 0;
        const int32_t first = mark ? kvc__special_match(&v->all, &v->tokens, text + at, n) : -1;
        if (first >= 0 && v->tokens.type[first] == KVC__TOKEN_CONTROL) {
            return kvc__special_match(&v->user, &v->tokens, text + i, at - i);
        }
    }
    return id;
}

/* The special token at byte i, which lies in part k, or -1: control tokens where the part may have
 * them, within it; user-defined ones wherever they are, the longer of the two. */
static int32_t match_special(const kvc__vocab *v, const uint8_t *text, const kvc__span *span,
                             size_t k, size_t i, size_t end) {
    const bool mark = span[k].kind == KVC__TEXT_MARK;
    int32_t user = match_user(v, text, span, k, i, end);
    int32_t any = mark ? kvc__special_match(&v->all, &v->tokens, text + i, span[k].end - i) : -1;
    if (any < 0) {
        return user;
    }
    bool longer = user >= 0 && kvc__token_len(&v->tokens, user) > kvc__token_len(&v->tokens, any);
    return longer ? user : any;
}

/* The first part from k on that is an id, or n_span. */
static size_t next_id(const kvc__span *span, size_t n_span, size_t k) {
    while (k < n_span && span[k].kind < 0) {
        k++;
    }
    return k;
}

static int32_t encode_spans(job *j, const uint8_t *text, const kvc__span *span, size_t n_span) {
    const size_t n = span[n_span - 1].end;
    size_t begin = 0, i = 0, k_id = next_id(span, n_span, 0);
    for (size_t k = 0; k < n_span; k++) {
        k_id = k_id < k ? next_id(span, n_span, k) : k_id;
        const size_t end = k_id < n_span ? span[k_id].end : n;
        while (i < span[k].end) {
            int32_t id = match_special(j->v, text, span, k, i, end);
            if (id < 0) {
                i++;
                continue;
            }
            KVC_TRY(encode_until(j, text + begin, i - begin, id));
            i += kvc__token_len(&j->v->tokens, id);
            begin = i;
        }
        if (span[k].kind >= 0) {
            KVC_TRY(encode_until(j, text + begin, i - begin, span[k].kind));
            begin = i;
        }
    }
    return encode_plain(j, text + begin, n - begin);
}

int32_t kvc__vocab_tokenize_spans(const kvc__vocab *v, const char *text, size_t n,
                                  const kvc__span *span, size_t n_span, int32_t *out, size_t cap,
                                  size_t *n_out, kvc__err *err) {
    job j = {.v = v, .sink = {.out = out, .cap = cap}, .err = err};
    *n_out = 0;
    KVC_TRY(check_text((const uint8_t *)text, n, err));
    if (v->pretok) {
        KVC_TRY(kvc__pretok_work_create(v->pretok, &j.pretok, err));
    }
    int32_t rc = encode_spans(&j, (const uint8_t *)text, span, n_span);
    kvc__merge_work_free(v->mem, &j.merge);
    kvc__spm_work_free(v->mem, &j.spm);
    if (v->pretok) {
        kvc__pretok_work_destroy(v->pretok, j.pretok);
    }
    *n_out = rc < 0 ? 0 : j.sink.n;
    return rc;
}

int32_t kvc__vocab_tokenize(const kvc__vocab *v, const char *text, size_t n, uint32_t flags,
                            int32_t *out, size_t cap, size_t *n_out, kvc__err *err) {
    const bool bos = (flags & KVC_TEXT_BOS) != 0 && kvc__vocab_adds_bos(v);
    const bool eos = (flags & KVC_TEXT_EOS) != 0 && v->add_eos && v->eos >= 0;
    const int32_t kind = (flags & KVC_TEXT_SPECIAL) != 0 ? KVC__TEXT_MARK : KVC__TEXT_PLAIN;
    const kvc__span span[] = {{0, bos ? v->bos : kind}, {n, kind}, {n, eos ? v->eos : kind}};
    return kvc__vocab_tokenize_spans(v, n > 0 ? text : "", n, span, 3, out, cap, n_out, err);
}

/* ---------------------------------------------------------------- tokens to text */

/* Whether tokenizing puts a space before a token that stands behind this one. */
static bool is_cut_out(uint8_t type) {
    return type == KVC__TOKEN_CONTROL || type == KVC__TOKEN_USER;
}

int32_t kvc__vocab_detokenize(const kvc__vocab *v, const int32_t *token, size_t n, uint32_t flags,
                              char *out, size_t cap, size_t *n_out, kvc__err *err) {
    const bool trim = (flags & KVC_TEXT_TRIM) != 0 && v->space_prefix;
    bool after_special = true;
    size_t at = 0;
    *n_out = 0;
    for (size_t i = 0; i < n; i++) {
        if (token[i] < 0 || (uint32_t)token[i] >= v->tokens.n) {
            return kvc__fail(err, KVC_E_RANGE,
                             "token %d at index %zu is outside the vocabulary of %u", token[i], i,
                             v->tokens.n);
        }
        const uint8_t type = v->tokens.type[token[i]];
        const uint8_t *p = kvc__token_bytes(&v->tokens, token[i]);
        size_t len = kvc__token_len(&v->tokens, token[i]);
        if (trim && after_special && !is_cut_out(type) && len > 0 && p[0] == ' ') {
            p++;
            len--;
        }
        after_special = is_cut_out(type);
        if ((type == KVC__TOKEN_CONTROL || type == KVC__TOKEN_UNKNOWN) &&
            (flags & KVC_TEXT_SPECIAL) == 0) {
            continue;
        }
        if (at < cap && len > 0) {
            memcpy(out + at, p, len < cap - at ? len : cap - at);
        }
        at += len;
    }
    *n_out = at;
    return KVC_OK;
}
