/* SPDX-License-Identifier: MIT
 * vocab_load.c: a vocabulary from the file's keys: tokens and their types, special tokens, ids,
 * then merges (byte-level BPE) or scores (SentencePiece's way). The file is untrusted: every count,
 * id and length is checked. It must not know text. */
#include "vocab_load.h"

#include "vocab.h"

#include <math.h>
#include <string.h>

#define MAX_TOKEN 16777216u /* tokens, and merges */
#define MAX_TEXT  65535u    /* bytes of a token */
#define MAX_SPM   1024u     /* the same where each pair's text is looked up: bounds the work */

static int32_t fail_memory(kvc__err *err) {
    return kvc__fail(err, KVC_E_NOMEM, "no memory for the vocabulary");
}

/* ---------------------------------------------------------------- the byte alphabet */

/* GPT-2's alphabet writes a byte as a printable character: itself where it is printable in
 * Latin-1, the others in ascending order from U+0100 on. */
static bool byte_is_plain(uint32_t b) {
    return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
}

/* back[c] is the byte of character c or -1. */
static void alphabet_fill(int16_t back[324]) {
    uint16_t next = 256;
    for (uint32_t c = 0; c < 324; c++) {
        back[c] = -1;
    }
    for (uint16_t b = 0; b < 256; b++) {
        back[byte_is_plain(b) ? b : next++] = (int16_t)b;
    }
}

/* Text in the alphabet to bytes, at most one for each byte of it. false when a character is not of
 * the alphabet. */
static bool alphabet_decode(const int16_t back[324], kvc__str text, uint8_t *out, size_t *n) {
    const uint8_t *p = (const uint8_t *)text.p;
    *n = 0;
    for (size_t i = 0; i < text.n; i++) {
        uint32_t c = p[i];
        if (c >= 0xc2 && c <= 0xdf && i + 1 < text.n && (p[i + 1] & 0xc0) == 0x80) {
            c = (c & 0x1f) << 6 | (p[++i] & 0x3f);
        } else if (c >= 0x80) {
            return false;
        }
        if (c >= 324 || back[c] < 0) {
            return false;
        }
        out[(*n)++] = (uint8_t)back[c];
    }
    return true;
}

/* ---------------------------------------------------------------- tokens' types */

/* Whether text becomes such tokens by merging. */
static bool type_is_plain(uint8_t type) {
    return type != KVC__TOKEN_UNKNOWN && type != KVC__TOKEN_CONTROL && type != KVC__TOKEN_USER &&
           type != KVC__TOKEN_BYTE;
}

static const char *const turn_end[] = {"<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"};
static const char *const text_end[] = {"<|eom_id|>", "<|endoftext|>", "<|end_of_text|>", "</s>",
                                       "<eos>"};
static const char *const marker[] = {"<|im_start|>",
                                     "<start_of_turn>",
                                     "<|start_header_id|>",
                                     "<|end_header_id|>",
                                     "<|begin_of_text|>",
                                     "<s>",
                                     "<bos>",
                                     "[INST]",
                                     "[/INST]",
                                     "[SYSTEM_PROMPT]",
                                     "[/SYSTEM_PROMPT]",
                                     "<|system|>",
                                     "<|user|>",
                                     "<|assistant|>"};
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static bool is_among(const char *const *list, size_t n, kvc__str s) {
    for (size_t i = 0; i < n; i++) {
        if (strlen(list[i]) == s.n && memcmp(list[i], s.p, s.n) == 0) {
            return true;
        }
    }
    return false;
}

/* Some files call the markers of a chat user-defined, and these are cut out of any text: what a
 * user writes could end a turn. They are control tokens. */
static uint8_t type_of(uint8_t type, kvc__str text) {
    bool is_marker = is_among(marker, COUNT(marker), text) ||
                     is_among(turn_end, COUNT(turn_end), text) ||
                     is_among(text_end, COUNT(text_end), text);
    return type == KVC__TOKEN_USER && is_marker ? KVC__TOKEN_CONTROL : type;
}

static int32_t load_types(kvc__vocab *v, const kvc__gguf *g, kvc__err *err) {
    const char *key = "tokenizer.ggml.token_type";
    const kvc__gguf_kv *kv = kvc__gguf_find(g, key);
    v->tokens.type = kvc__alloc_n(v->mem, v->tokens.n, sizeof *v->tokens.type);
    if (!v->tokens.type) {
        return fail_memory(err);
    }
    memset(v->tokens.type, KVC__TOKEN_NORMAL, v->tokens.n);
    if (!kv && v->pretok) {
        return KVC_OK;
    }
    if (!kv || kv->type != KVC__GGUF_ARRAY || kv->elem_type == KVC__GGUF_STRING ||
        kv->n != v->tokens.n) {
        return kvc__fail(err, KVC_E_FORMAT, "%s: must be an array of %u numbers, one per token",
                         key, v->tokens.n);
    }
    for (uint32_t i = 0; i < v->tokens.n; i++) {
        double t = kvc__gguf_elem(kv, i);
        if (!(t >= 0 && t <= KVC__TOKEN_LAST)) {
            return kvc__fail(err, KVC_E_FORMAT, "%s: token %u has type %g, not one of 0 to %d", key,
                             i, t, KVC__TOKEN_LAST);
        }
        v->tokens.type[i] = (uint8_t)t;
    }
    return KVC_OK;
}

/* ---------------------------------------------------------------- tokens' bytes */

/* "<0x1F>", a byte's token. */
static bool byte_decode(kvc__str text, uint8_t *out) {
    static const char digit[] = "0123456789ABCDEF0123456789abcdef";
    if (text.n != 6 || memcmp(text.p, "<0x", 3) != 0 || text.p[5] != '>') {
        return false;
    }
    const char *hi = memchr(digit, text.p[3], sizeof digit - 1);
    const char *lo = memchr(digit, text.p[4], sizeof digit - 1);
    if (!hi || !lo) {
        return false;
    }
    const unsigned value = (unsigned)(hi - digit) % 16 << 4 | (unsigned)(lo - digit) % 16;
    *out = (uint8_t)value;
    return true;
}

static size_t copy_bytes(kvc__str text, uint8_t *out) {
    if (text.n > 0) {
        memcpy(out, text.p, text.n);
    }
    return text.n;
}

/* U+2581 is a space. false when the text has a space of its own, which no text can become. */
static bool spaces_decode(kvc__str text, uint8_t *out, size_t *n) {
    bool plain = true;
    *n = 0;
    for (size_t i = 0; i < text.n;) {
        bool mark = text.n - i >= 3 && memcmp(text.p + i, "\xe2\x96\x81", 3) == 0;
        plain = plain && text.p[i] != ' ';
        out[(*n)++] = mark ? ' ' : (uint8_t)text.p[i];
        i += mark ? 3 : 1;
    }
    return plain;
}

/* Writes token i's bytes, at most text.n; false in *in_map when no text becomes it by merging. */
static int32_t token_decode(const kvc__vocab *v, const int16_t back[324], uint32_t i, kvc__str text,
                            uint8_t *out, size_t *n, bool *in_map, kvc__err *err) {
    const uint8_t type = v->tokens.type[i];
    *in_map = false;
    *n = 1;
    if (type == KVC__TOKEN_BYTE && !v->pretok) {
        if (!byte_decode(text, out)) {
            return kvc__fail(err, KVC_E_FORMAT,
                             "tokenizer.ggml.tokens: token %u is of a byte, but its text is not of "
                             "the form <0x1F>",
                             i);
        }
    } else if (type == KVC__TOKEN_CONTROL || type == KVC__TOKEN_UNKNOWN) {
        *n = copy_bytes(text, out);
    } else if (!v->pretok) {
        *in_map = spaces_decode(text, out, n) && type != KVC__TOKEN_USER;
        if (*n > MAX_SPM) {
            return kvc__fail(err, KVC_E_FORMAT,
                             "tokenizer.ggml.tokens: token %u is longer than %u bytes", i, MAX_SPM);
        }
    } else {
        *in_map = type != KVC__TOKEN_USER && alphabet_decode(back, text, out, n);
        *n = *in_map ? *n : copy_bytes(text, out);
    }
    return KVC_OK;
}

/* Room for the bytes of all tokens, whose texts are checked. */
static int32_t alloc_bytes(kvc__vocab *v, const kvc__gguf_kv *kv, kvc__err *err) {
    const uint8_t *at = kv->value;
    size_t sum = 0;
    for (uint32_t i = 0; i < v->tokens.n; i++) {
        kvc__str t;
        if (!kvc__gguf_next_str(kv, &at, &t) || t.n > MAX_TEXT) {
            return kvc__fail(err, KVC_E_FORMAT,
                             "tokenizer.ggml.tokens: token %u is missing or longer than %u bytes; "
                             "the file is damaged",
                             i, MAX_TEXT);
        }
        sum += t.n;
    }
    if (sum > UINT32_MAX) {
        return kvc__fail(err, KVC_E_FORMAT, "tokenizer.ggml.tokens: the tokens' texts pass 4 GiB");
    }
    v->tokens.n_bytes = sum + 1;
    v->tokens.bytes = kvc__alloc(v->mem, v->tokens.n_bytes);
    v->tokens.offset = kvc__alloc_n(v->mem, (size_t)v->tokens.n + 1, sizeof *v->tokens.offset);
    if (!v->tokens.bytes || !v->tokens.offset ||
        kvc__textmap_init(v->mem, &v->tokens, &v->map) < 0) {
        return fail_memory(err);
    }
    return KVC_OK;
}

static int32_t load_bytes(kvc__vocab *v, const kvc__gguf_kv *kv, const int16_t back[324],
                          kvc__err *err) {
    const uint8_t *at = kv->value;
    KVC_TRY(alloc_bytes(v, kv, err));
    for (uint32_t i = 0; i < v->tokens.n; i++) {
        kvc__str text = {"", 0};
        size_t n = 0;
        bool in_map = false;
        (void)kvc__gguf_next_str(kv, &at, &text);
        v->tokens.type[i] = type_of(v->tokens.type[i], text);
        KVC_TRY(token_decode(v, back, i, text, v->tokens.bytes + v->tokens.offset[i], &n, &in_map,
                             err));
        v->tokens.offset[i + 1] = v->tokens.offset[i] + (uint32_t)n;
        if (in_map) {
            kvc__textmap_add(&v->map, (int32_t)i);
        }
    }
    return KVC_OK;
}

static int32_t load_tokens(kvc__vocab *v, const kvc__gguf *g, const int16_t back[324],
                           kvc__err *err) {
    const kvc__gguf_kv *kv = kvc__gguf_find(g, "tokenizer.ggml.tokens");
    if (!kv || kv->type != KVC__GGUF_ARRAY || kv->elem_type != KVC__GGUF_STRING || kv->n == 0 ||
        kv->n > MAX_TOKEN) {
        return kvc__fail(err, KVC_E_FORMAT,
                         "tokenizer.ggml.tokens: missing, or not an array of 1 to %u strings",
                         MAX_TOKEN);
    }
    v->tokens.n = (uint32_t)kv->n;
    KVC_TRY(load_types(v, g, err));
    return load_bytes(v, kv, back, err);
}

/* ---------------------------------------------------------------- ids */

/* An id among the keys. Without the key it is def if that token is special or unknown, else -1. */
static int32_t load_id(const kvc__vocab *v, const kvc__gguf *g, const char *key, int32_t def,
                       int32_t *out, kvc__err *err) {
    uint32_t id = 0;
    *out = -1;
    if (kvc__gguf_find(g, key)) {
        KVC_TRY(kvc__gguf_u32(g, key, false, 0, 0, v->tokens.n - 1, &id, err));
        *out = (int32_t)id;
    } else if (def >= 0 && (uint32_t)def < v->tokens.n) {
        uint8_t type = v->tokens.type[def];
        *out = type == KVC__TOKEN_CONTROL || type == KVC__TOKEN_UNKNOWN ? def : -1;
    }
    return KVC_OK;
}

static void add_end(kvc__vocab *v, int32_t id) {
    if (id >= 0 && !kvc__vocab_is_end(v, id)) {
        v->end[v->n_end++] = id; /* at most eos, eot, eom and one of each text */
    }
}

/* Files name one end of text and at best one end of a turn, older ones this only by its text; and
 * models give others of these too. */
static void find_ends(kvc__vocab *v, int32_t eom) {
    add_end(v, v->eos);
    add_end(v, v->eot);
    add_end(v, eom);
    for (size_t i = 0; i < COUNT(turn_end); i++) {
        int32_t id = kvc__vocab_special(v, turn_end[i]);
        v->eot = v->eot < 0 ? id : v->eot;
        add_end(v, id);
    }
    for (size_t i = 0; i < COUNT(text_end); i++) {
        add_end(v, kvc__vocab_special(v, text_end[i]));
    }
}

/* Vocabularies of SentencePiece have fixed places for what a file doesn't name. */
static int32_t load_ids(kvc__vocab *v, const kvc__gguf *g, int32_t *eom, kvc__err *err) {
    const bool spm = v->pretok == NULL;
    KVC_TRY(load_id(v, g, "tokenizer.ggml.bos_token_id", spm ? 1 : -1, &v->bos, err));
    KVC_TRY(load_id(v, g, "tokenizer.ggml.eos_token_id", spm ? 2 : -1, &v->eos, err));
    KVC_TRY(load_id(v, g, "tokenizer.ggml.eot_token_id", -1, &v->eot, err));
    KVC_TRY(load_id(v, g, "tokenizer.ggml.eom_token_id", -1, eom, err));
    return load_id(v, g, "tokenizer.ggml.unknown_token_id", spm ? 0 : -1, &v->unk, err);
}

/* What type_of() does for markers known by their text, for what the file itself names. After all
 * ids are read: which of them are there by default depends on the types. */
static void retype_named(kvc__vocab *v, int32_t eom) {
    const int32_t named[] = {v->bos, v->eos, v->eot, eom};
    for (size_t i = 0; i < COUNT(named); i++) {
        if (named[i] >= 0 && v->tokens.type[named[i]] == KVC__TOKEN_USER) {
            v->tokens.type[named[i]] = KVC__TOKEN_CONTROL;
        }
    }
}

/* The ids, and the special tokens that text is searched for. */
static int32_t load_special(kvc__vocab *v, const kvc__gguf *g, kvc__err *err) {
    const bool bos = !v->pretok || (kvc__pretok_traits(v->pretok) & KVC__PRE_BOS) != 0;
    int32_t eom = -1;
    KVC_TRY(load_ids(v, g, &eom, err));
    retype_named(v, eom);
    KVC_TRY(kvc__special_build(v->mem, &v->tokens, false, &v->user, err));
    KVC_TRY(kvc__special_build(v->mem, &v->tokens, true, &v->all, err));
    find_ends(v, eom);
    KVC_TRY(kvc__gguf_bool(g, "tokenizer.ggml.add_eos_token", false, &v->add_eos, err));
    return kvc__gguf_bool(g, "tokenizer.ggml.add_bos_token", bos, &v->add_bos, err);
}

/* A byte that no text has needs no token. */
static bool in_utf8(uint32_t b) {
    return b != 0xc0 && b != 0xc1 && b < 0xf5;
}

/* ---------------------------------------------------------------- merges */

/* The token of each byte. A byte that has none is the unknown token; without one the vocabulary
 * can't hold every text. */
static int32_t load_byte_tokens(kvc__vocab *v, kvc__err *err) {
    for (uint32_t b = 0; b < 256; b++) {
        const uint8_t byte = (uint8_t)b;
        int32_t id = kvc__textmap_find(&v->map, &byte, 1);
        v->bpe.byte[b] = id >= 0 ? id : v->unk;
        if (v->bpe.byte[b] < 0 && in_utf8(b)) {
            return kvc__fail(err, KVC_E_FORMAT,
                             "tokenizer.ggml.tokens: no token for byte 0x%02x and no "
                             "tokenizer.ggml.unknown_token_id to stand for it",
                             b);
        }
    }
    return KVC_OK;
}

/* One merge, "a b". One that names a token which doesn't exist can never apply and is left out.
 * joined: room for MAX_TEXT + 1 bytes. */
static int32_t load_merge(kvc__vocab *v, const int16_t back[324], kvc__str s, uint32_t rank,
                          uint8_t *joined, kvc__err *err) {
    const char *space = s.n > 2 ? memchr(s.p + 1, ' ', s.n - 2) : NULL;
    if (!space || s.n > MAX_TEXT + 1) {
        return kvc__fail(err, KVC_E_FORMAT,
                         "tokenizer.ggml.merges: merge %u is not two texts with a space between "
                         "them, or is longer than %u bytes",
                         rank, MAX_TEXT);
    }
    size_t n_left = 0, n_right = 0;
    const kvc__str l = {s.p, (size_t)(space - s.p)};
    const kvc__str r = {space + 1, s.n - l.n - 1};
    if (!alphabet_decode(back, l, joined, &n_left) ||
        !alphabet_decode(back, r, joined + n_left, &n_right)) {
        return KVC_OK;
    }
    int32_t left = kvc__textmap_find(&v->map, joined, n_left);
    int32_t right = kvc__textmap_find(&v->map, joined + n_left, n_right);
    int32_t id = kvc__textmap_find(&v->map, joined, n_left + n_right);
    if (left >= 0 && right >= 0 && id >= 0) {
        kvc__bpe_add(&v->bpe, left, right, id, rank);
    }
    return KVC_OK;
}

static int32_t load_merges(kvc__vocab *v, const kvc__gguf *g, const int16_t back[324],
                           kvc__err *err) {
    const char *key = "tokenizer.ggml.merges";
    const kvc__gguf_kv *kv = kvc__gguf_find(g, key);
    if (!kv || kv->type != KVC__GGUF_ARRAY || kv->elem_type != KVC__GGUF_STRING ||
        kv->n > MAX_TOKEN) {
        return kvc__fail(err, KVC_E_FORMAT, "%s: missing, or not an array of at most %u strings",
                         key, MAX_TOKEN);
    }
    uint32_t n = (uint32_t)kv->n;
    if (kvc__bpe_init(v->mem, n, &v->bpe) < 0) {
        return fail_memory(err);
    }
    KVC_TRY(load_byte_tokens(v, err));
    uint8_t *joined = kvc__alloc(v->mem, MAX_TEXT + 1);
    if (!joined) {
        return fail_memory(err);
    }
    int32_t rc = KVC_OK;
    const uint8_t *at = kv->value;
    for (uint32_t i = 0; rc == KVC_OK && i < n; i++) {
        kvc__str s = {NULL, 0};
        (void)kvc__gguf_next_str(kv, &at, &s);
        rc = load_merge(v, back, s, i, joined, err);
    }
    kvc__free(v->mem, joined, MAX_TEXT + 1);
    return rc;
}

/* ---------------------------------------------------------------- scores */

static int32_t load_scores(kvc__vocab *v, const kvc__gguf *g, kvc__err *err) {
    const char *key = "tokenizer.ggml.scores";
    const kvc__gguf_kv *kv = kvc__gguf_find(g, key);
    if (!kv || kv->type != KVC__GGUF_ARRAY || kv->elem_type == KVC__GGUF_STRING ||
        kv->n != v->tokens.n) {
        return kvc__fail(err, KVC_E_FORMAT,
                         "%s: missing, or not an array of %u numbers, one per token", key,
                         v->tokens.n);
    }
    v->score = kvc__alloc_n(v->mem, v->tokens.n, sizeof *v->score);
    if (!v->score) {
        return fail_memory(err);
    }
    for (uint32_t i = 0; i < v->tokens.n; i++) {
        v->score[i] = (float)kvc__gguf_elem(kv, i);
        if (isnan(v->score[i])) {
            return kvc__fail(err, KVC_E_FORMAT, "%s: token %u has no number for a score", key, i);
        }
    }
    return KVC_OK;
}

/* Whether a token has a space behind another character. */
static bool crosses_words(const uint8_t *p, size_t n) {
    for (size_t i = 1; i < n; i++) {
        if (p[i] == ' ' && p[i - 1] != ' ') {
            return true;
        }
    }
    return false;
}

/* What the tokens say together: the longest, bytes, whether words stand alone. */
static void survey_tokens(kvc__vocab *v) {
    kvc__spm *s = &v->spm;
    s->split = true;
    for (uint32_t b = 0; b < 256; b++) {
        s->byte[b] = -1;
    }
    for (uint32_t i = 0; i < v->tokens.n; i++) {
        const uint8_t *p = kvc__token_bytes(&v->tokens, (int32_t)i);
        const size_t n = kvc__token_len(&v->tokens, (int32_t)i);
        if (v->tokens.type[i] == KVC__TOKEN_BYTE) {
            s->byte[p[0]] = s->byte[p[0]] < 0 ? (int32_t)i : s->byte[p[0]];
        } else if (type_is_plain(v->tokens.type[i])) {
            s->max_len = n > s->max_len ? (uint32_t)n : s->max_len;
            s->split = s->split && !crosses_words(p, n);
        }
    }
}

static int32_t load_spm(kvc__vocab *v, const kvc__gguf *g, kvc__err *err) {
    KVC_TRY(load_scores(v, g, err));
    KVC_TRY(kvc__gguf_bool(g, "tokenizer.ggml.add_space_prefix", true, &v->space_prefix, err));
    KVC_TRY(
        kvc__gguf_bool(g, "tokenizer.ggml.remove_extra_whitespaces", false, &v->spm.collapse, err));
    v->spm.map = &v->map;
    v->spm.score = v->score;
    v->spm.unk = v->unk;
    survey_tokens(v);
    for (uint32_t b = 0; b < 256; b++) {
        if (v->spm.byte[b] < 0 && v->unk < 0 && in_utf8(b)) {
            return kvc__fail(err, KVC_E_FORMAT,
                             "tokenizer.ggml.tokens: no token <0x%02X> and no "
                             "tokenizer.ggml.unknown_token_id to stand for it",
                             b);
        }
    }
    return KVC_OK;
}

/* ---------------------------------------------------------------- the whole */

static bool str_is(kvc__str s, const char *text) {
    return s.n == strlen(text) && memcmp(s.p, text, s.n) == 0;
}

/* Which kind of vocabulary it is: with a pre-tokenizer or without. */
static int32_t load_model(kvc__vocab *v, const kvc__gguf *g, kvc__err *err) {
    kvc__str model, pre;
    KVC_TRY(kvc__gguf_str(g, "tokenizer.ggml.model", NULL, &model, err));
    if (str_is(model, "gpt2")) {
        KVC_TRY(kvc__gguf_str(g, "tokenizer.ggml.pre", "default", &pre, err));
        KVC_TRY(kvc__pretok_create(v->mem, pre, &v->pretok, err));
        v->whole = (kvc__pretok_traits(v->pretok) & KVC__PRE_WHOLE) != 0;
        return KVC_OK;
    }
    if (!str_is(model, "llama")) {
        return kvc__fail(err, KVC_E_UNSUPPORTED,
                         "tokenizer.ggml.model '%.*s' is not supported; use a model with 'gpt2' "
                         "(byte-level BPE) or 'llama' (SentencePiece's BPE)",
                         model.n < 64 ? (int)model.n : 64, model.p);
    }
    if (kvc__gguf_find(g, "tokenizer.ggml.precompiled_charsmap")) {
        return kvc__fail(err, KVC_E_UNSUPPORTED,
                         "tokenizer.ggml.precompiled_charsmap: text that is to be normalised by a "
                         "table is not supported; use a model without one");
    }
    return KVC_OK;
}

int32_t kvc__vocab_load(kvc__vocab *v, const kvc__gguf *g, kvc__err *err) {
    int16_t back[324];
    alphabet_fill(back);
    KVC_TRY(load_model(v, g, err));
    KVC_TRY(load_tokens(v, g, back, err));
    KVC_TRY(load_special(v, g, err));
    return v->pretok ? load_merges(v, g, back, err) : load_spm(v, g, err);
}
