/* SPDX-License-Identifier: MIT
 * pretok.c: pre-tokenizers as rows of a table, compiled by PCRE2 and applied in sequence: each
 * pattern cuts the pieces that the one before left, and what lies between two matches is a piece
 * too. Between the cutting of special tokens (vocab.c) and merging (bpe.c). It must not see tokens.
 */
#include "pretok.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

#define MAX_PATTERN 4
#define MAX_NAME    4
#define MATCH_LIMIT UINT32_MAX /* steps for one piece: the patterns need a few per byte at most */
#define HEAP_LIMIT  65536u     /* KiB */

/* Unicode's White_Space, since \s of PCRE2 holds U+180E besides; as the inside of a class. */
#define SPACE "\\t-\\r\\x{85}\\p{Z}"

/* A contraction, or letters, digits, others with one space in front, or white space; of white space
 * before a word the last character is left to the word. */
#define GPT2                                                                                       \
    "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^" SPACE "\\p{L}\\p{N}]+"                         \
    "|[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"

/* As GPT-2's, but contractions in any case, one character of any kind before letters, line ends
 * with what is before them; digits by DIGITS. */
#define LLAMA3(DIGITS)                                                                             \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" DIGITS "| ?[^" SPACE             \
    "\\p{L}\\p{N}]+[\\r\\n]*|[" SPACE "]*[\\r\\n]+|[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"

/* Words end where small letters are followed by capital ones. */
#define TEKKEN                                                                                     \
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"    \
    "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*"   \
    "|\\p{N}| ?[^" SPACE "\\p{L}\\p{N}]+[\\r\\n/]*|[" SPACE "]*[\\r\\n]+"                          \
    "|[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"

/* One row for each way to cut that is known. */
static const struct pretok_row {
    const char *name[MAX_NAME];       /* values of tokenizer.ggml.pre; NULL ends them */
    uint32_t traits;                  /* KVC__PRE_… */
    const char *pattern[MAX_PATTERN]; /* in sequence; NULL ends them */
} table[] = {
    {{"gpt-2", "phi-2"}, 0, {GPT2}},
    {{"smollm"}, 0, {"\\p{N}", GPT2}},
    {{"llama-bpe", "llama3", "llama-v3"}, KVC__PRE_WHOLE | KVC__PRE_BOS, {LLAMA3("\\p{N}{1,3}")}},
    {{"smaug-bpe"}, 0, {LLAMA3("\\p{N}{1,3}")}},
    {{"qwen2", "deepseek-r1-qwen"}, 0, {LLAMA3("\\p{N}")}},
    {{"tekken"}, KVC__PRE_WHOLE | KVC__PRE_BOS, {TEKKEN}},
    {{"default"},
     0,
     {"[\\p{P}$+<=>^~|]+",
      "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" SPACE "\\p{L}\\p{N}]+"
      "|[" SPACE "]+(?![^" SPACE "])",
      "\\p{N}+", "[0-9][0-9][0-9]"}},
};
#define N_ROW (sizeof table / sizeof table[0])

struct kvc__pretok {
    kvc__mem *mem;
    pcre2_general_context *general;
    pcre2_match_context *limits;
    uint32_t traits; /* KVC__PRE_… */
    uint32_t n;
    pcre2_code *code[MAX_PATTERN];
};

struct kvc__pretok_work {
    pcre2_match_data *match[MAX_PATTERN];
};

/* ---------------------------------------------------------------- memory for PCRE2 */

/* PCRE2 frees without a size, so it is kept in front. */
typedef union header {
    size_t bytes;
    max_align_t align;
} header;

static void *pcre_malloc(size_t size, void *mem) {
    size_t bytes = sizeof(header) + size; /* PCRE2 asks for what constant patterns need */
    header *h = kvc__alloc(mem, bytes);
    if (!h) {
        return NULL;
    }
    h->bytes = bytes;
    return h + 1;
}

static void pcre_free(void *p, void *mem) {
    if (p) {
        header *h = (header *)p - 1;
        kvc__free(mem, h, h->bytes);
    }
}

/* ---------------------------------------------------------------- compiling */

static const struct pretok_row *row_find(kvc__str name) {
    for (size_t i = 0; i < N_ROW; i++) {
        for (size_t k = 0; k < MAX_NAME && table[i].name[k]; k++) {
            const char *known = table[i].name[k];
            if (strlen(known) == name.n && memcmp(known, name.p, name.n) == 0) {
                return &table[i];
            }
        }
    }
    return NULL;
}

static int32_t fail_unknown(kvc__str name, kvc__err *err) {
    char known[256] = "'";
    for (size_t i = 0; i < N_ROW; i++) {
        for (size_t k = 0; k < MAX_NAME && table[i].name[k]; k++) {
            strncat(known, i + k > 0 ? "', '" : "", sizeof known - strlen(known) - 1);
            strncat(known, table[i].name[k], sizeof known - strlen(known) - 1);
        }
    }
    return kvc__fail(err, KVC_E_UNSUPPORTED,
                     "tokenizer.ggml.pre '%.*s' is not supported; use a model with one of %s'",
                     name.n < 64 ? (int)name.n : 64, name.p, known);
}

static int32_t pattern_compile(kvc__pretok *p, const char *pattern, pcre2_code **out,
                               kvc__err *err) {
    pcre2_compile_context *cc = pcre2_compile_context_create(p->general);
    if (!cc) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for the pre-tokenizer");
    }
    int code = 0;
    PCRE2_SIZE at = 0;
    *out = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP, &code,
                         &at, cc);
    pcre2_compile_context_free(cc);
    if (!*out) {
        return kvc__fail(err, code == PCRE2_ERROR_HEAP_FAILED ? KVC_E_NOMEM : KVC_E_UNSUPPORTED,
                         "PCRE2 error %d at byte %zu of a pre-tokenizer's pattern; it must be "
                         "built with Unicode support",
                         code, (size_t)at);
    }
    /* Without executable memory the interpreter runs instead, so the result doesn't matter. */
    (void)pcre2_jit_compile(*out, PCRE2_JIT_COMPLETE);
    return KVC_OK;
}

int32_t kvc__pretok_create(kvc__mem *mem, kvc__str name, kvc__pretok **out, kvc__err *err) {
    int32_t rc = KVC_OK;
    *out = NULL;
    const struct pretok_row *row = row_find(name);
    if (!row) {
        return fail_unknown(name, err);
    }
    kvc__pretok *p = kvc__alloc(mem, sizeof *p);
    if (!p) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for the pre-tokenizer");
    }
    p->mem = mem;
    p->traits = row->traits;
    p->general = pcre2_general_context_create(pcre_malloc, pcre_free, mem);
    p->limits = p->general ? pcre2_match_context_create(p->general) : NULL;
    if (!p->limits) {
        rc = kvc__fail(err, KVC_E_NOMEM, "no memory for the pre-tokenizer");
        goto out;
    }
    pcre2_set_match_limit(p->limits, MATCH_LIMIT);
    pcre2_set_depth_limit(p->limits, MATCH_LIMIT);
    pcre2_set_heap_limit(p->limits, HEAP_LIMIT);
    for (; p->n < MAX_PATTERN && row->pattern[p->n]; p->n++) {
        KVC_CHECK(pattern_compile(p, row->pattern[p->n], &p->code[p->n], err));
    }
    *out = p;
out:
    if (rc < 0) {
        kvc__pretok_destroy(p);
    }
    return rc;
}

uint32_t kvc__pretok_traits(const kvc__pretok *p) {
    return p->traits;
}

void kvc__pretok_destroy(kvc__pretok *p) {
    if (!p) {
        return;
    }
    for (uint32_t i = 0; i < MAX_PATTERN; i++) {
        pcre2_code_free(p->code[i]);
    }
    pcre2_match_context_free(p->limits);
    pcre2_general_context_free(p->general);
    kvc__free(p->mem, p, sizeof *p);
}

/* ---------------------------------------------------------------- UTF-8 */

/* By the Unicode standard's table of well-formed sequences. */
size_t kvc__utf8_len(const uint8_t *p, size_t n) {
    uint8_t lo = 0x80;
    uint8_t hi = 0xbf;
    size_t len;
    if (p[0] < 0x80) {
        return 1;
    }
    if (p[0] < 0xc2 || p[0] > 0xf4) {
        return 0;
    }
    len = p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    if (p[0] == 0xe0) {
        lo = 0xa0;
    } else if (p[0] == 0xed) {
        hi = 0x9f;
    } else if (p[0] == 0xf0) {
        lo = 0x90;
    } else if (p[0] == 0xf4) {
        hi = 0x8f;
    }
    if (n < len || p[1] < lo || p[1] > hi) {
        return 0;
    }
    for (size_t i = 2; i < len; i++) {
        if ((p[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    return len;
}

size_t kvc__utf8_valid(const uint8_t *text, size_t n) {
    size_t i = 0;
    while (i < n) {
        size_t len = kvc__utf8_len(text + i, n - i);
        if (len == 0) {
            break;
        }
        i += len;
    }
    return i;
}

/* ---------------------------------------------------------------- cutting */

int32_t kvc__pretok_work_create(const kvc__pretok *p, kvc__pretok_work **out, kvc__err *err) {
    kvc__pretok_work *work = kvc__alloc(p->mem, sizeof *work);
    *out = NULL;
    for (uint32_t i = 0; work && i < p->n; i++) {
        work->match[i] = pcre2_match_data_create(1, p->general);
        if (!work->match[i]) {
            kvc__pretok_work_destroy(p, work);
            work = NULL;
        }
    }
    if (!work) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory to split text");
    }
    *out = work;
    return KVC_OK;
}

void kvc__pretok_work_destroy(const kvc__pretok *p, kvc__pretok_work *work) {
    if (!work) {
        return;
    }
    for (uint32_t i = 0; i < MAX_PATTERN; i++) {
        pcre2_match_data_free(work->match[i]);
    }
    kvc__free(p->mem, work, sizeof *work);
}

/* One cutting: what stays the same through all levels. */
typedef struct split {
    const kvc__pretok *p;
    kvc__pretok_work *work;
    kvc__pretok_fn fn;
    void *ctx;
    kvc__err *err;
} split;

/* The next match at or after `at`; false in *found at the end of the text. The text is known to be
 * UTF-8, and a check per match would make the whole quadratic. */
static int32_t match_next(const split *s, uint32_t level, const uint8_t *text, size_t n, size_t at,
                          size_t *begin, size_t *end, bool *found) {
    pcre2_match_data *data = s->work->match[level];
    const uint32_t how = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
    int m = pcre2_match(s->p->code[level], text, n, at, how, data, s->p->limits);
    if (m == PCRE2_ERROR_JIT_STACKLIMIT) {
        m = pcre2_match(s->p->code[level], text, n, at, how | PCRE2_NO_JIT, data, s->p->limits);
    }
    *found = m >= 0;
    if (*found) {
        const PCRE2_SIZE *o = pcre2_get_ovector_pointer(data);
        *begin = o[0];
        *end = o[1];
    } else if (m == PCRE2_ERROR_NOMEMORY) {
        return kvc__fail(s->err, KVC_E_NOMEM, "no memory to split text");
    } else if (m != PCRE2_ERROR_NOMATCH) {
        return kvc__fail(s->err, KVC_E_UNSUPPORTED,
                         "the pre-tokenizer gave up on text of %zu bytes (PCRE2 error %d); give it "
                         "in shorter parts",
                         n, m);
    }
    return KVC_OK;
}

/* Cuts by the pattern of that level and hands the parts down; below the last they go to fn. */
static int32_t split_level(const split *s, uint32_t level, const uint8_t *text, size_t n) {
    if (n == 0) {
        return KVC_OK;
    }
    if (level == s->p->n) {
        return s->fn(s->ctx, text, n);
    }
    size_t at = 0;
    while (at < n) {
        size_t begin = n;
        size_t end = n;
        bool found = false;
        KVC_TRY(match_next(s, level, text, n, at, &begin, &end, &found));
        if (!found) {
            return split_level(s, level + 1, text + at, n - at);
        }
        KVC_TRY(split_level(s, level + 1, text + at, begin - at));
        KVC_TRY(split_level(s, level + 1, text + begin, end - begin));
        at = end;
    }
    return KVC_OK;
}

int32_t kvc__pretok_split(const kvc__pretok *p, kvc__pretok_work *work, const uint8_t *text,
                          size_t n, kvc__pretok_fn fn, void *ctx, kvc__err *err) {
    split s = {.p = p, .work = work, .fn = fn, .ctx = ctx, .err = err};
    return split_level(&s, 0, text, n);
}
