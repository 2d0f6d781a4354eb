/* SPDX-License-Identifier: MIT
 * vocab.c: a model's vocabulary. Reads it from the file's keys, then turns text into tokens
 * (special tokens are cut out, pretok.c cuts the rest into pieces, bpe.c merges each) and tokens
 * into bytes. The file is untrusted: every count, id and length is checked. It must not know
 * sessions. */
#include "vocab.h"

#include "bpe.h"
#include "pretok.h"
#include "special.h"

#include <string.h>
#include <xxhash.h>

#define MAX_TOKEN 16777216u /* tokens, and merges */
#define MAX_TEXT  65535u    /* bytes of a token */
#define MAX_INPUT ((size_t)INT32_MAX)
#define MAX_END   16u

struct kvc__vocab {
    kvc__mem *mem;
    kvc__tokens tokens;
    kvc__special user; /* always cut out */
    kvc__special all;  /* with KVC_TEXT_SPECIAL */
    kvc__bpe bpe;
    kvc__pretok *pretok;
    int32_t bos, eos, eot, unk;
    int32_t end[MAX_END]; /* [n_end] those that end a turn or a text */
    uint32_t n_end;
    bool add_bos;
};

/* A table from a token's text, as the file writes it, to its id; for loading alone. */
typedef struct textmap {
    kvc__str *text; /* [n] by id */
    uint32_t n;
    int32_t *slot; /* ids, -1 for none */
    uint32_t n_slot;
} textmap;

static int32_t fail_memory(kvc__err *err) {
    return kvc__fail(err, KVC_E_NOMEM, "no memory for the vocabulary");
}

/* ---------------------------------------------------------------- texts to ids */

static int32_t *map_slot(const textmap *m, const char *p, size_t n) {
    uint32_t mask = m->n_slot - 1;
    uint32_t i = (uint32_t)XXH3_64bits(p, n) & mask;
    for (; m->slot[i] >= 0; i = (i + 1) & mask) {
        kvc__str t = m->text[m->slot[i]];
        if (t.n == n && memcmp(t.p, p, n) == 0) {
            break;
        }
    }
    return &m->slot[i];
}

static int32_t map_find(const textmap *m, const char *p, size_t n) {
    return n > 0 ? *map_slot(m, p, n) : -1;
}

static void map_free(kvc__mem *mem, textmap *m) {
    kvc__free(mem, m->text, (size_t)m->n * sizeof *m->text);
    kvc__free(mem, m->slot, (size_t)m->n_slot * sizeof *m->slot);
}

/* Reads the array of tokens. Of two with the same text the first is found, an empty one never. */
static int32_t map_read(kvc__mem *mem, const kvc__gguf_kv *kv, textmap *m, kvc__err *err) {
    m->n = (uint32_t)kv->n;
    m->text = kvc__alloc_n(mem, m->n, sizeof *m->text);
    for (m->n_slot = 16; m->n_slot / 2 < m->n;) {
        m->n_slot *= 2;
    }
    m->slot = kvc__alloc_n(mem, m->n_slot, sizeof *m->slot);
    if (!m->text || !m->slot) {
        return fail_memory(err);
    }
    for (uint32_t i = 0; i < m->n_slot; i++) {
        m->slot[i] = -1;
    }
    const uint8_t *at = kv->value;
    for (uint32_t i = 0; i < m->n; i++) {
        kvc__str *t = &m->text[i];
        if (!kvc__gguf_next_str(kv, &at, t) || t->n > MAX_TEXT) {
            return kvc__fail(err, KVC_E_FORMAT,
                             "tokenizer.ggml.tokens: token %u is missing or longer than %u bytes; "
                             "the file is damaged",
                             i, MAX_TEXT);
        }
        int32_t *slot = t->n > 0 ? map_slot(m, t->p, t->n) : NULL;
        if (slot && *slot < 0) {
            *slot = (int32_t)i;
        }
    }
    return KVC_OK;
}

/* ---------------------------------------------------------------- the byte alphabet */

/* GPT-2's alphabet writes a byte as a printable character: itself where it is printable in
 * Latin-1, the others in ascending order from U+0100 on. */
static bool byte_is_plain(uint32_t b) {
    return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
}

/* alphabet[b] is byte b's character, back[c] the byte of character c or -1. */
static void alphabet_fill(uint16_t alphabet[256], int16_t back[324]) {
    uint16_t next = 256;
    for (uint32_t c = 0; c < 324; c++) {
        back[c] = -1;
    }
    for (uint16_t b = 0; b < 256; b++) {
        alphabet[b] = byte_is_plain(b) ? b : next++;
        back[alphabet[b]] = (int16_t)b;
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

/* ---------------------------------------------------------------- loading */

static bool type_is_special(uint8_t type) {
    return type == KVC__TOKEN_CONTROL || type == KVC__TOKEN_USER;
}

static int32_t load_types(kvc__vocab *v, const kvc__gguf *g, kvc__err *err) {
    const char *key = "tokenizer.ggml.token_type";
    const kvc__gguf_kv *kv = kvc__gguf_find(g, key);
    v->tokens.type = kvc__alloc_n(v->mem, v->tokens.n, sizeof *v->tokens.type);
    if (!v->tokens.type) {
        return fail_memory(err);
    }
    memset(v->tokens.type, KVC__TOKEN_NORMAL, v->tokens.n);
    if (!kv) {
        return KVC_OK;
    }
    if (kv->type != KVC__GGUF_ARRAY || kv->elem_type == KVC__GGUF_STRING || kv->n != v->tokens.n) {
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

/* Special tokens are written as they are. So is one that is not in the byte alphabet. */
static int32_t load_bytes(kvc__vocab *v, const textmap *m, kvc__err *err) {
    uint16_t alphabet[256];
    int16_t back[324];
    size_t sum = 0;
    for (uint32_t i = 0; i < v->tokens.n; i++) {
        sum += m->text[i].n;
    }
    if (sum > UINT32_MAX) {
        return kvc__fail(err, KVC_E_FORMAT, "tokenizer.ggml.tokens: the tokens' texts pass 4 GiB");
    }
    v->tokens.n_bytes = sum + 1;
    v->tokens.bytes = kvc__alloc(v->mem, v->tokens.n_bytes);
    v->tokens.offset = kvc__alloc_n(v->mem, (size_t)v->tokens.n + 1, sizeof *v->tokens.offset);
    if (!v->tokens.bytes || !v->tokens.offset) {
        return fail_memory(err);
    }
    alphabet_fill(alphabet, back);
    uint32_t at = 0;
    for (uint32_t i = 0; i < v->tokens.n; i++) {
        kvc__str t = m->text[i];
        size_t n = 0;
        if (type_is_special(v->tokens.type[i]) ||
            !alphabet_decode(back, t, v->tokens.bytes + at, &n)) {
            n = t.n;
            if (n > 0) {
                memcpy(v->tokens.bytes + at, t.p, n);
            }
        }
        at += (uint32_t)n;
        v->tokens.offset[i + 1] = at;
    }
    return KVC_OK;
}

/* An id among the keys, -1 when the key is missing. */
static int32_t load_id(const kvc__vocab *v, const kvc__gguf *g, const char *key, int32_t *out,
                       kvc__err *err) {
    uint32_t id = 0;
    *out = -1;
    if (kvc__gguf_find(g, key)) {
        KVC_TRY(kvc__gguf_u32(g, key, false, 0, 0, v->tokens.n - 1, &id, err));
        *out = (int32_t)id;
    }
    return KVC_OK;
}

/* A special token by its text, -1 when there is none. */
static int32_t special_by_text(const kvc__vocab *v, const textmap *m, const char *text) {
    int32_t id = map_find(m, text, strlen(text));
    return id >= 0 && type_is_special(v->tokens.type[id]) ? id : -1;
}

static void add_end(kvc__vocab *v, int32_t id) {
    if (id >= 0 && v->n_end < MAX_END && !kvc__vocab_is_end(v, id)) {
        v->end[v->n_end++] = id;
    }
}

/* Files name one end of text and at best one end of a turn, older ones this only by its text; and
 * models give others of these too. */
static void find_ends(kvc__vocab *v, const textmap *m) {
    static const char *const turn[] = {"<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"};
    static const char *const text[] = {"<|eom_id|>", "<|endoftext|>", "<|end_of_text|>", "</s>",
                                       "<eos>"};
    add_end(v, v->eos);
    add_end(v, v->eot);
    for (size_t i = 0; i < sizeof turn / sizeof turn[0]; i++) {
        int32_t id = special_by_text(v, m, turn[i]);
        v->eot = v->eot < 0 ? id : v->eot;
        add_end(v, id);
    }
    for (size_t i = 0; i < sizeof text / sizeof text[0]; i++) {
        add_end(v, special_by_text(v, m, text[i]));
    }
}

static int32_t load_ids(kvc__vocab *v, const kvc__gguf *g, const textmap *m, kvc__err *err) {
    KVC_TRY(load_id(v, g, "tokenizer.ggml.bos_token_id", &v->bos, err));
    KVC_TRY(load_id(v, g, "tokenizer.ggml.eos_token_id", &v->eos, err));
    KVC_TRY(load_id(v, g, "tokenizer.ggml.eot_token_id", &v->eot, err));
    KVC_TRY(load_id(v, g, "tokenizer.ggml.unknown_token_id", &v->unk, err));
    find_ends(v, m);
    return kvc__gguf_bool(g, "tokenizer.ggml.add_bos_token", false, &v->add_bos, err);
}

/* The token of each byte. A byte that has none is the unknown token; without one the vocabulary
 * can't hold every text, unless no UTF-8 text has the byte. */
static int32_t load_byte_tokens(kvc__vocab *v, const textmap *m, kvc__err *err) {
    uint16_t alphabet[256];
    int16_t back[324];
    alphabet_fill(alphabet, back);
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t c = alphabet[b];
        char text[2] = {(char)(unsigned char)c, 0};
        if (c >= 0x80) {
            text[0] = (char)(unsigned char)(0xc0 | c >> 6);
            text[1] = (char)(unsigned char)(0x80 | (c & 0x3f));
        }
        int32_t id = map_find(m, text, c < 0x80 ? 1 : 2);
        v->bpe.byte[b] = id >= 0 ? id : v->unk;
        bool in_utf8 = b != 0xc0 && b != 0xc1 && b < 0xf5;
        if (v->bpe.byte[b] < 0 && in_utf8) {
            return kvc__fail(err, KVC_E_FORMAT,
                             "tokenizer.ggml.tokens: no token for byte 0x%02x and no "
                             "tokenizer.ggml.unknown_token_id to stand for it",
                             b);
        }
    }
    return KVC_OK;
}

/* One merge, "a b". One that names a token which doesn't exist can never apply and is left out. */
static int32_t load_merge(kvc__vocab *v, const textmap *m, kvc__str s, uint32_t rank, char *joined,
                          kvc__err *err) {
    const char *space = s.n > 2 ? memchr(s.p + 1, ' ', s.n - 2) : NULL;
    if (!space || s.n > MAX_TEXT + 1) {
        return kvc__fail(err, KVC_E_FORMAT,
                         "tokenizer.ggml.merges: merge %u is not two texts with a space between "
                         "them, or is longer than %u bytes",
                         rank, MAX_TEXT);
    }
    size_t n_left = (size_t)(space - s.p);
    size_t n_right = s.n - n_left - 1;
    memcpy(joined, s.p, n_left);
    memcpy(joined + n_left, space + 1, n_right);
    int32_t left = map_find(m, s.p, n_left);
    int32_t right = map_find(m, space + 1, n_right);
    int32_t id = map_find(m, joined, s.n - 1);
    if (left >= 0 && right >= 0 && id >= 0) {
        kvc__bpe_add(&v->bpe, left, right, id, rank);
    }
    return KVC_OK;
}

static int32_t load_merges(kvc__vocab *v, const kvc__gguf *g, const textmap *m, kvc__err *err) {
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
    KVC_TRY(load_byte_tokens(v, m, err));
    char *joined = kvc__alloc(v->mem, MAX_TEXT + 1);
    if (!joined) {
        return fail_memory(err);
    }
    int32_t rc = KVC_OK;
    const uint8_t *at = kv->value;
    for (uint32_t i = 0; rc == KVC_OK && i < n; i++) {
        kvc__str s = {NULL, 0};
        (void)kvc__gguf_next_str(kv, &at, &s);
        rc = load_merge(v, m, s, i, joined, err);
    }
    kvc__free(v->mem, joined, MAX_TEXT + 1);
    return rc;
}

/* ---------------------------------------------------------------- creating */

static int32_t check_model(const kvc__gguf *g, kvc__err *err) {
    kvc__str model;
    KVC_TRY(kvc__gguf_str(g, "tokenizer.ggml.model", NULL, &model, err));
    if (model.n != 4 || memcmp(model.p, "gpt2", 4) != 0) {
        return kvc__fail(err, KVC_E_UNSUPPORTED,
                         "tokenizer.ggml.model '%.*s' is not supported; use a model with 'gpt2' "
                         "(byte-level BPE)",
                         model.n < 64 ? (int)model.n : 64, model.p);
    }
    return KVC_OK;
}

static int32_t vocab_load(kvc__vocab *v, const kvc__gguf *g, textmap *m, kvc__err *err) {
    kvc__str pre;
    KVC_TRY(check_model(g, err));
    KVC_TRY(kvc__gguf_str(g, "tokenizer.ggml.pre", "", &pre, err));
    KVC_TRY(kvc__pretok_create(v->mem, pre, &v->pretok, err));
    const kvc__gguf_kv *kv = kvc__gguf_find(g, "tokenizer.ggml.tokens");
    if (!kv || kv->type != KVC__GGUF_ARRAY || kv->elem_type != KVC__GGUF_STRING || kv->n == 0 ||
        kv->n > MAX_TOKEN) {
        return kvc__fail(err, KVC_E_FORMAT,
                         "tokenizer.ggml.tokens: missing, or not an array of 1 to %u strings",
                         MAX_TOKEN);
    }
    KVC_TRY(map_read(v->mem, kv, m, err));
    v->tokens.n = m->n;
    KVC_TRY(load_types(v, g, err));
    KVC_TRY(load_bytes(v, m, err));
    KVC_TRY(load_ids(v, g, m, err));
    KVC_TRY(load_merges(v, g, m, err));
    KVC_TRY(kvc__special_build(v->mem, &v->tokens, false, &v->user, err));
    return kvc__special_build(v->mem, &v->tokens, true, &v->all, err);
}

int32_t kvc__vocab_create(kvc__mem *mem, const kvc__gguf *g, kvc__vocab **out, kvc__err *err) {
    textmap m = {0};
    *out = NULL;
    kvc__vocab *v = kvc__alloc(mem, sizeof *v);
    if (!v) {
        return fail_memory(err);
    }
    v->mem = mem;
    int32_t rc = vocab_load(v, g, &m, err);
    map_free(mem, &m);
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
    kvc__pretok_work *pretok;
    kvc__bpe_work bpe;
    kvc__sink sink;
    kvc__err *err;
} job;

static int32_t encode_piece(void *ctx, const uint8_t *piece, size_t n) {
    job *j = ctx;
    int32_t rc = kvc__bpe_encode(&j->v->bpe, j->v->mem, &j->bpe, piece, n, &j->sink);
    return rc < 0 ? kvc__fail(j->err, rc, "no memory to merge a piece of %zu bytes", n) : rc;
}

static int32_t encode_plain(job *j, const uint8_t *text, size_t n) {
    return kvc__pretok_split(j->v->pretok, j->pretok, text, n, encode_piece, j, j->err);
}

/* The special token at text, or -1. Control tokens lie within a part that may have them (n_mark
 * bytes from here on, 0: none); user-defined ones are found wherever they are. */
static int32_t match_special(const kvc__vocab *v, const uint8_t *text, size_t n, size_t n_mark) {
    int32_t user = kvc__special_match(&v->user, &v->tokens, text, n);
    int32_t any = n_mark > 0 ? kvc__special_match(&v->all, &v->tokens, text, n_mark) : -1;
    if (any < 0) {
        return user;
    }
    bool longer = user >= 0 && kvc__token_len(&v->tokens, user) > kvc__token_len(&v->tokens, any);
    return longer ? user : any;
}

static int32_t encode_spans(job *j, const uint8_t *text, const kvc__span *span, size_t n_span) {
    const size_t n = span[n_span - 1].end;
    size_t begin = 0, i = 0;
    for (size_t k = 0; k < n_span; k++) {
        while (i < span[k].end) {
            size_t n_mark = span[k].kind == KVC__TEXT_MARK ? span[k].end - i : 0;
            int32_t id = match_special(j->v, text + i, n - i, n_mark);
            if (id < 0) {
                i++;
                continue;
            }
            KVC_TRY(encode_plain(j, text + begin, i - begin));
            kvc__sink_put(&j->sink, id);
            i += kvc__token_len(&j->v->tokens, id);
            begin = i;
        }
        if (span[k].kind >= 0) {
            KVC_TRY(encode_plain(j, text + begin, i - begin));
            kvc__sink_put(&j->sink, span[k].kind);
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
    KVC_TRY(kvc__pretok_work_create(v->pretok, &j.pretok, err));
    int32_t rc = encode_spans(&j, (const uint8_t *)text, span, n_span);
    kvc__bpe_work_free(v->mem, &j.bpe);
    kvc__pretok_work_destroy(v->pretok, j.pretok);
    *n_out = rc < 0 ? 0 : j.sink.n;
    return rc;
}

int32_t kvc__vocab_tokenize(const kvc__vocab *v, const char *text, size_t n, uint32_t flags,
                            int32_t *out, size_t cap, size_t *n_out, kvc__err *err) {
    const bool bos = (flags & KVC_TEXT_BOS) != 0 && kvc__vocab_adds_bos(v);
    const kvc__span span[] = {{0, bos ? v->bos : KVC__TEXT_PLAIN},
                              {n, flags & KVC_TEXT_SPECIAL ? KVC__TEXT_MARK : KVC__TEXT_PLAIN}};
    return kvc__vocab_tokenize_spans(v, n > 0 ? text : "", n, span, 2, out, cap, n_out, err);
}

/* ---------------------------------------------------------------- tokens to text */

int32_t kvc__vocab_detokenize(const kvc__vocab *v, const int32_t *token, size_t n, uint32_t flags,
                              char *out, size_t cap, size_t *n_out, kvc__err *err) {
    size_t at = 0;
    *n_out = 0;
    for (size_t i = 0; i < n; i++) {
        if (token[i] < 0 || (uint32_t)token[i] >= v->tokens.n) {
            return kvc__fail(err, KVC_E_RANGE,
                             "token %d at index %zu is outside the vocabulary of %u", token[i], i,
                             v->tokens.n);
        }
        uint8_t type = v->tokens.type[token[i]];
        if ((type == KVC__TOKEN_CONTROL || type == KVC__TOKEN_UNKNOWN) &&
            !(flags & KVC_TEXT_SPECIAL)) {
            continue;
        }
        size_t len = kvc__token_len(&v->tokens, token[i]);
        if (at < cap && len > 0) {
            memcpy(out + at, kvc__token_bytes(&v->tokens, token[i]),
                   len < cap - at ? len : cap - at);
        }
        at += len;
    }
    *n_out = at;
    return KVC_OK;
}
