/* SPDX-License-Identifier: MIT
 * fuzz_vocab.c: text to tokens and back, and chats. The first byte gives flags and the tokenizer.
 * What is UTF-8 comes back byte for byte, what isn't is refused; any ids at all may be turned into
 * text; and no content becomes a control token. */
#include "chat.h"
#include "fuzz.h"
#include "tiny.h"
#include "vocab.h"

/* Pre-tokenizers; NULL: a vocabulary of SentencePiece. The first two stand where old inputs have
 * them. */
static const char *const pre[] = {"smollm", "gpt-2",   "llama-bpe", "qwen2",
                                  "tekken", "default", NULL};
#define N_PRE (sizeof pre / sizeof *pre)

/* A vocabulary of all bytes with that pre-tokenizer. */
static const kvc__vocab *vocab_of(size_t i) {
    static kvc__vocab *made[N_PRE];
    static kvc__mem mem;
    if (made[i] == NULL) {
        kvc__gguf g = {0};
        kvc__err err = {""};
        bytes b = {0};
        tiny_shape shape = tiny_default;
        shape.pre = pre[i];
        kvc__mem_init(&mem, NULL, NULL);
        put_header(&b, 3, 0, TINY_VOCAB_KV);
        if (pre[i] != NULL) {
            tiny_put_vocab(&b, &shape);
        } else {
            tiny_put_spm(&b);
        }
        put_padding(&b, 32);
        fuzz_check(kvc__gguf_open(&mem, b.p, b.n, &g, &err) == KVC_OK, "the keys open", err.text);
        int32_t rc = kvc__vocab_create(&mem, &g, &made[i], &err);
        fuzz_check(rc == KVC_OK, "the vocabulary is made", err.text);
        kvc__gguf_close(&g);
        bytes_free(&b);
    }
    return made[i];
}

/* A plain judge of UTF-8: whole characters, no surrogates, the shortest form. */
static bool is_utf8(const uint8_t *p, size_t n) {
    for (size_t i = 0; i < n;) {
        static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
        const uint32_t more = p[i] < 0x80   ? 0
                              : p[i] < 0xc0 ? 4
                              : p[i] < 0xe0 ? 1
                              : p[i] < 0xf0 ? 2
                                            : 3;
        uint32_t c = more == 0 ? p[i] : p[i] & (0x3fu >> more);
        if (more == 4 || p[i] >= 0xf8 || more >= n - i) {
            return false;
        }
        for (uint32_t j = 1; j <= more; j++) {
            if ((p[i + j] & 0xc0) != 0x80) {
                return false;
            }
            c = c << 6 | (p[i + j] & 0x3f);
        }
        if (c < least[more] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000)) {
            return false;
        }
        i += more + 1;
    }
    return true;
}

/* Whatever the ids, there are bytes or a refusal; a short buffer gets the beginning. */
static void any_ids(const kvc__vocab *v, const uint8_t *p, size_t n, uint32_t flags) {
    int32_t *token = calloc(n + 1, sizeof *token);
    size_t n_out = 0;
    char small[5];
    kvc__err err = {""};
    for (size_t i = 0; token != NULL && i < n; i++) {
        token[i] = (int32_t)(int8_t)p[i] + (int32_t)(i % 3) * 70;
    }
    (void)kvc__vocab_detokenize(v, token, n, flags, small, sizeof small, &n_out, &err);
    free(token);
}

/* The text as it comes back: where U+2581 stands for a space it has become one. */
static size_t expected(const kvc__vocab *v, const uint8_t *p, size_t n, uint8_t *out) {
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        const bool mark =
            kvc__vocab_is_spm(v) && n - i >= 3 && memcmp(p + i, "\xe2\x96\x81", 3) == 0;
        out[at++] = mark ? ' ' : p[i];
        i += mark ? 2 : 0;
    }
    return at;
}

static void there_and_back(const kvc__vocab *v, const uint8_t *p, size_t n, uint32_t flags) {
    const char *text = (const char *)p;
    size_t n_token = 0, n_few = 0, n_back = 0;
    kvc__err err = {""};
    int32_t *token = calloc(2 * n + 2, sizeof *token), few[3] = {-1, -1, -1};
    uint8_t *want = malloc(n + 1);
    const size_t n_want = want != NULL ? expected(v, p, n, want) : 0;
    char *back = malloc(n + 64);
    fuzz_check(token != NULL && back != NULL && want != NULL, "memory", "");
    int32_t rc = kvc__vocab_tokenize(v, text, n, flags, token, 2 * n + 2, &n_token, &err);
    fuzz_check(rc == (is_utf8(p, n) ? KVC_OK : KVC_E_UTF8), "UTF-8 alone is taken", err.text);
    if (rc == KVC_OK) {
        fuzz_check(n_token <= 2 * n + 2, "a token has a byte or a space before it", "");
        rc = kvc__vocab_tokenize(v, text, n, flags, few, 3, &n_few, &err);
        fuzz_check(rc == KVC_OK && n_few == n_token, "a short buffer changes nothing", "");
        fuzz_check(memcmp(few, token, (n_few < 3 ? n_few : 3) * sizeof *few) == 0, "nor here", "");
        const size_t skip = (flags & KVC_TEXT_BOS) != 0 && n_token > 0 ? 1 : 0;
        fuzz_check(skip == 0 || token[0] == kvc__vocab_bos(v), "the text begins with its token",
                   "");
        rc = kvc__vocab_detokenize(v, token + skip, n_token - skip,
                                   (flags & KVC_TEXT_SPECIAL) | KVC_TEXT_TRIM, back, n + 64,
                                   &n_back, &err);
        fuzz_check(rc == KVC_OK && n_back == n_want && memcmp(back, want, n_want) == 0,
                   "text comes back", "");
    }
    free(token);
    free(back);
    free(want);
}

static const char *const family[] = {"chatml", "llama2", "llama3", "gemma", "mistral", "zephyr"};
#define N_FAMILY (sizeof family / sizeof *family)

/* A chat whose contents are the input and parts of it; the vocabulary's control tokens come from
 * markers alone, as many as for contents of nothing. */
static void chat(const kvc__vocab *v, const uint8_t *p, size_t n, uint32_t which) {
    static const kvc__chat none;
    kvc__mem mem;
    kvc__err err = {""};
    const size_t cap = 4 * n + 512;
    int32_t *token = calloc(cap, sizeof *token);
    uint32_t n_control[2] = {0, 0};
    fuzz_check(token != NULL, "memory", "");
    kvc__mem_init(&mem, NULL, NULL);
    for (int i = 0; i < 2; i++) {
        const char *text = (const char *)p;
        const size_t len = i == 0 ? 0 : n;
        const kvc_chat_message m[] = {
            {"system", text, len / 2}, {"user", text, len}, {"assistant", text, len / 3}};
        size_t n_token = 0;
        const kvc__chat_call call = {.family = family[which % N_FAMILY],
                                     .message = m,
                                     .n = 3,
                                     .stride = sizeof *m,
                                     .out = token,
                                     .cap = cap,
                                     .n_out = &n_token};
        if (kvc__chat_tokenize(&none, v, &mem, &call, &err) != KVC_OK) {
            break; /* it isn't UTF-8, or a part isn't */
        }
        fuzz_check(n_token <= cap, "so many tokens at most", "");
        for (size_t k = 0; k < n_token; k++) {
            n_control[i] += token[k] < TINY_USER;
        }
        fuzz_check(i == 0 || n_control[0] == n_control[1], "contents are text", "");
    }
    free(token);
    fuzz_check(mem.used == 0, "nothing is kept", "");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input in = {data, size};
    const uint32_t first = fuzz_u8(&in), flags = first & (KVC_TEXT_SPECIAL | KVC_TEXT_BOS);
    const kvc__vocab *v = vocab_of((first >> 2 & 15) % N_PRE);
    if ((first & 0xc0) == 0xc0) {
        const uint32_t which = fuzz_u8(&in);
        chat(v, in.n > 0 ? in.p : (const uint8_t *)"", in.n, which);
    } else if ((first & 0x80) != 0) {
        any_ids(v, in.p, in.n, flags);
    } else {
        there_and_back(v, in.n > 0 ? in.p : (const uint8_t *)"", in.n, flags);
    }
    return 0;
}
