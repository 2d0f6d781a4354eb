/* SPDX-License-Identifier: MIT
 * make_seeds.c: writes the seeds that are made by code: model files of every class of damage (the
 * file's name says which), sessions, good ones and damaged, and first inputs of the other targets.
 * Run as `make_seeds DIR`, where DIR holds one directory per target. Sessions in a corpus must be
 * made anew when the format of saved sessions changes. */
#include "fuzz.h"
#include "tiny.h"

#include <sys/stat.h>

static const char *root;

static void save(const char *target, const char *name, const void *p, size_t n) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", root, target);
    (void)mkdir(path, 0777);
    snprintf(path, sizeof path, "%s/%s/%s", root, target, name);
    FILE *f = fopen(path, "wb");
    fuzz_check(f != NULL && fwrite(p, 1, n, f) == n && fclose(f) == 0, "a seed is written", path);
}

/* ---------------------------------------------------------------- models */

/* The least that opens: one layer, four tokens. */
static const tiny_shape least = {.n_layer = 1,
                                 .n_embd = 4,
                                 .n_head = 1,
                                 .n_head_kv = 1,
                                 .head_dim = 4,
                                 .n_ff = 4,
                                 .n_ctx = 64,
                                 .n_vocab = 4,
                                 .pre = "smollm"};

/* The place in b of text, which must be there. */
static size_t find(const bytes *b, const char *text) {
    const size_t n = strlen(text);
    for (size_t i = 0; i + n <= b->n; i++) {
        if (memcmp(b->p + i, text, n) == 0) {
            return i;
        }
    }
    fuzz_check(false, "the model has", text);
    return 0;
}

/* One number of the least model changed: width bytes, `skip` behind `text`; text "" counts from
 * the beginning. */
struct damage {
    const char *name, *text;
    size_t skip, width;
    uint64_t value;
};

static const struct damage damages[] = {
    {"magic", "", 0, 4, 0x47475546},
    {"version-1", "", 4, 4, 1},
    {"version-other-byte-order", "", 4, 4, 0x03000000},
    {"tensor-count-huge", "", 8, 8, UINT64_MAX / 48 + 1},
    {"tensor-count-negative", "", 8, 8, UINT64_MAX},
    {"tensor-count-wraps", "", 8, 8, (uint64_t)1 << 61},
    {"tensor-count-zero", "", 8, 8, 0},
    {"key-count-huge", "", 16, 8, UINT64_MAX / 40 + 1},
    {"key-count-negative", "", 16, 8, UINT64_MAX},
    {"key-count-wraps", "", 16, 8, (uint64_t)1 << 60},
    {"key-length-huge", "", 24, 8, UINT64_MAX - 7},
    {"key-length-past-end", "", 24, 8, 1 << 20},
    {"value-type-unknown", "general.architecture", 0, 4, 99},
    {"value-type-array", "general.architecture", 0, 4, 9},
    {"string-length-huge", "general.architecture", 4, 8, UINT64_MAX},
    {"string-length-wraps", "general.architecture", 4, 8, UINT64_MAX - 31},
    {"string-length-past-end", "general.architecture", 4, 8, 100000},
    {"array-element-type-array", "tokenizer.ggml.tokens", 4, 4, 9},
    {"array-element-type-number", "tokenizer.ggml.tokens", 4, 4, 4},
    {"array-element-type-unknown", "tokenizer.ggml.token_type", 4, 4, 77},
    {"array-count-huge", "tokenizer.ggml.tokens", 8, 8, (uint64_t)1 << 63},
    {"array-count-wraps", "tokenizer.ggml.token_type", 8, 8, UINT64_MAX / 4 + 2},
    {"array-count-other-than-tokens", "tokenizer.ggml.token_type", 8, 8, 3},
    {"token-type-unknown", "tokenizer.ggml.token_type", 16, 4, 200},
    {"token-text-length-negative", "tokenizer.ggml.tokens", 16, 8, (uint64_t)-13},
    {"token-text-length-negative-int", "tokenizer.ggml.tokens", 16, 8, 0x80000001},
    {"token-type-array-of-strings", "tokenizer.ggml.token_type", 4, 4, KVC__GGUF_STRING},
    {"tokens-count-cut-to-32-bits", "tokenizer.ggml.tokens", 8, 8, ((uint64_t)1 << 32) + 4},
    {"tokens-none", "tokenizer.ggml.tokens", 8, 8, 0},
    {"token-id-outside", "tokenizer.ggml.bos_token_id", 4, 4, 1000},
    {"merge-without-space", "h e", 1, 1, 'x'},
    {"layers-zero", "llama.block_count", 4, 4, 0},
    {"layers-huge", "llama.block_count", 4, 4, UINT32_MAX},
    {"heads-zero", "llama.attention.head_count", 4, 4, 0},
    {"heads-huge", "llama.attention.head_count", 4, 4, UINT32_MAX},
    {"kv-heads-do-not-divide", "llama.attention.head_count_kv", 4, 4, 3},
    {"context-huge", "llama.context_length", 4, 4, UINT32_MAX},
    {"width-wraps", "llama.embedding_length", 4, 4, 1u << 31},
    {"epsilon-not-a-number", "layer_norm_rms_epsilon", 4, 4, 0x7fc00000},
    {"dims-count-huge", "token_embd.weight", 0, 4, 1000},
    {"dims-count-zero", "token_embd.weight", 0, 4, 0},
    {"dims-product-wraps", "token_embd.weight", 4, 8, (uint64_t)1 << 62},
    {"tensor-bytes-wrap", "token_embd.weight", 4, 8, (uint64_t)1 << 60},
    {"dims-negative", "token_embd.weight", 12, 8, UINT64_MAX},
    {"dims-zero", "token_embd.weight", 12, 8, 0},
    {"dims-past-data", "token_embd.weight", 12, 8, 1 << 16},
    {"tensor-type-unknown", "token_embd.weight", 20, 4, 1234},
    {"tensor-type-block-does-not-divide", "token_embd.weight", 20, 4, KVC__T_Q4_1},
    {"offset-not-aligned", "token_embd.weight", 24, 8, 3},
    {"offset-past-end", "token_embd.weight", 24, 8, 1 << 20},
    {"offset-wraps", "token_embd.weight", 24, 8, UINT64_MAX - 31},
    {"offset-overlaps", "output_norm.weight", 16, 8, 0},
};

static void make_damaged(void) {
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        const struct damage *d = &damages[i];
        bytes b = {0};
        tiny_put_model(&b, &least);
        size_t at = find(&b, d->text) + strlen(d->text) + d->skip;
        at -= strcmp(d->text, "h e") == 0 ? strlen(d->text) : 0;
        memcpy(b.p + at, &d->value, d->width);
        save("fuzz_gguf", d->name, b.p, b.n);
        bytes_free(&b);
    }
}

/* Puts a number of so many bytes `skip` behind text. */
static void patch(bytes *b, const char *text, size_t skip, size_t width, uint64_t value) {
    memcpy(b->p + find(b, text) + strlen(text) + skip, &value, width);
}

/* The file, and the least model again for the next one. */
static void save_patched(const char *name, bytes *b) {
    save("fuzz_gguf", name, b->p, b->n);
    bytes_free(b);
    tiny_put_model(b, &least);
}

/* What was published of other readers of such files (CVE numbers; numbers of issues of llama.cpp
 * and of a reader in Python), and which file here is of that class. Those that stand alone are made
 * by make_published().
 *
 *   CVE-2024-21802          dims-count-huge, dims-product-wraps
 *   CVE-2024-21825          array-count-huge, array-count-wraps
 *   CVE-2024-21836          tensor-count-huge, tensor-count-wraps
 *   CVE-2024-23496          string-length-huge, string-length-wraps, key-length-huge
 *   CVE-2024-23605          key-count-huge, key-count-wraps
 *   CVE-2024-34359          chat-template-with-code
 *   CVE-2025-49847          token-text-length-negative, token-text-length-negative-int
 *   CVE-2025-52566          tokens-count-cut-to-32-bits
 *   CVE-2025-53630          tensor-sizes-sum-wraps
 *   CVE-2026-27940, #26318  tensor-size-padded-wraps
 *   CVE-2026-33298          tensor-bytes-wrap
 *   CVE-2026-7482           dims-past-data
 *   CVE-2026-21869          corpus/fuzz_ops/go-back-by-a-negative-number
 *   #19003                  string-length-past-end
 *   #24997                  alignment-huge
 *   #25969                  byte-token-index-negative
 *   #26690                  array-element-type-number, token-type-array-of-strings
 *   #27188                  array-count-huge
 *   no number               token-text-twice, key-twice, tensor-name-twice
 */
static void make_published(void) {
    static const char evil[] = "{{ cycler.__init__.__globals__.os.popen('false') }}";
    static const char same[] = "\x0b\0\0\0\0\0\0\0text-text-1";
    bytes b = {0}, with = {0};
    tiny_put_model(&b, &least);
    /* 2^63 bytes each */
    patch(&b, "token_embd.weight", 4, 8, (uint64_t)1 << 59);
    patch(&b, "blk.0.attn_q.weight", 4, 8, (uint64_t)1 << 59);
    save_patched("tensor-sizes-sum-wraps", &b);
    /* (2^31 + 1) (2^31 - 1) floats: four bytes less than 2^64 */
    patch(&b, "token_embd.weight", 4, 8, ((uint64_t)1 << 31) + 1);
    patch(&b, "token_embd.weight", 12, 8, ((uint64_t)1 << 31) - 1);
    save_patched("tensor-size-padded-wraps", &b);
    /* "<|im_start|>" and "<|im_end|>" are one length and two texts */
    memcpy(b.p + find(&b, "<|im_start|>") - 8, same, sizeof same - 1);
    memcpy(b.p + find(&b, "<|im_end|>") - 9, same, sizeof same - 1);
    save_patched("token-text-twice", &b);
    memcpy(b.p + find(&b, "<user>"), "<0x-1>", 6);
    patch(&b, "tokenizer.ggml.token_type", 16 + 4 * TINY_USER, 4, 6);
    save_patched("byte-token-index-negative", &b);
    /* One more key in front, of a length that leaves the data aligned. */
    put(&with, b.p, 24);
    with.p[16]++;
    put_key(&with, "tokenizer.chat_template", KVC__GGUF_STRING);
    const size_t padding = 31 - (with.n + 8 + sizeof evil - 2 - 24) % 32;
    put_u64(&with, sizeof evil - 1 + padding);
    put(&with, evil, sizeof evil - 1);
    for (size_t i = 0; i < padding; i++) {
        put(&with, " ", 1);
    }
    put(&with, b.p + 24, b.n - 24);
    save("fuzz_gguf", "chat-template-with-code", with.p, with.n);
    bytes_free(&with);
    bytes_free(&b);
}

/* A file of keys alone, with one more key. */
static void make_with_key(const char *name, const char *key, uint32_t type, double value,
                          bool twice) {
    bytes b = {0};
    put_header(&b, 3, 0, twice ? 2 : 1);
    for (int i = 0; i < (twice ? 2 : 1); i++) {
        put_key(&b, key, type);
        put_number(&b, type, value);
    }
    put_padding(&b, 32);
    save("fuzz_gguf", name, b.p, b.n);
    bytes_free(&b);
}

static void make_models(void) {
    bytes b = {0};
    tiny_put_model(&b, &least);
    save("fuzz_gguf", "valid-least", b.p, b.n);
    save("fuzz_gguf", "cut-in-data", b.p, b.n - 20);
    save("fuzz_gguf", "cut-in-header", b.p, 700);
    save("fuzz_gguf", "cut-in-magic", b.p, 3);
    memcpy(b.p + find(&b, "blk.0.attn_k"), "blk.0.attn_v", 12);
    save("fuzz_gguf", "tensor-name-twice", b.p, b.n);
    bytes_free(&b);
    make_with_key("key-twice", "general.x", KVC__GGUF_U32, 1, true);
    make_with_key("alignment-zero", "general.alignment", KVC__GGUF_U32, 0, false);
    make_with_key("alignment-no-power", "general.alignment", KVC__GGUF_U32, 24, false);
    make_with_key("alignment-huge", "general.alignment", KVC__GGUF_U32, 2147483648.0, false);
    make_with_key("alignment-no-number", "general.alignment", KVC__GGUF_BOOL, 1, false);
    make_with_key("split-count", "split.count", KVC__GGUF_U16, 3, false);
    make_damaged();
    make_published();
}

/* ---------------------------------------------------------------- sessions */

static void feed(kvc_session *s, int32_t first, uint32_t n) {
    int32_t token[TINY_CTX];
    for (uint32_t i = 0; i < n; i++) {
        token[i] = (first + (int32_t)i * 29) % TINY_VOCAB;
    }
    fuzz_check(kvc_session_decode(s, token, n) == KVC_OK, "decode", kvc_session_error(s));
}

/* The file that a session is saved to, behind a byte of choices. Returns the length of both. */
static uint8_t data[1 << 20];

static size_t save_session(kvc_session *s, const char *name) {
    data[0] = 0;
    fuzz_check(kvc_session_save(s, tiny_path()) == KVC_OK, "save", kvc_session_error(s));
    FILE *f = fopen(tiny_path(), "rb");
    fuzz_check(f != NULL, "what was saved opens", tiny_path());
    const size_t n = fread(data + 1, 1, sizeof data - 1, f);
    fclose(f);
    save("fuzz_session", name, data, n + 1);
    return n + 1;
}

static size_t make_session(const char *name, const char *spec, uint32_t n) {
    kvc_session *s = tiny_session(tiny_model(16), spec, 192, KVC_COMPUTE_F32);
    if (n > 0) {
        feed(s, 3, n);
        feed(s, 9, 1);
    }
    const size_t size = save_session(s, name);
    kvc_session_close(s);
    return size;
}

/* One number of a saved session changed. It stands `skip` behind the texts of the head, or, with
 * `store`, behind the tokens' flags. */
static const struct session_damage {
    const char *name;
    bool store;
    uint32_t skip, width;
    uint64_t value;
} session_damages[] = {
    {"compute-unknown", false, 0, 4, 9},
    {"context-zero", false, 4, 4, 0},
    {"context-less-than-tokens", false, 4, 4, 8},
    {"context-huge", false, 4, 4, UINT32_MAX},
    {"layers-other", false, 8, 4, 3},
    {"columns-other", false, 12, 4, 1000},
    {"tokens-huge", false, 16, 4, UINT32_MAX},
    {"valid-more-than-tokens", false, 20, 4, 10},
    {"valid-huge", false, 20, 4, UINT32_MAX},
    {"page-bytes-huge", false, 40, 8, UINT64_MAX},
    {"evicted-unknown", true, 0, 4, 2},
    {"lane-pages-huge", true, 4, 4, UINT32_MAX},
    {"lane-pages-none", true, 4, 4, 0},
    {"open-rows-too-many", true, 8, 4, 65},
    {"open-position-negative", true, 12, 4, UINT32_MAX},
    {"open-live-beyond-rows", true, 16, 8, UINT64_MAX},
    {"live-without-page", true, 24 + 20, 4, 0},
    {"page-position-negative", true, 24 + 8, 4, 0x80000000},
    {"page-position-past-end", true, 24 + 8, 4, 64},
    {"page-entries-none", true, 24 + 12, 4, 0},
    {"page-entries-too-many", true, 24 + 12, 4, 65},
    {"page-moved-unknown", true, 24 + 16, 4, 7},
    {"page-moved", true, 24 + 16, 4, 1},
};

/* The first byte behind a head's texts, in data. */
static size_t behind_texts(void) {
    size_t at = 1 + 16;
    for (int i = 0; i < 3; i++) {
        uint32_t n;
        memcpy(&n, data + at, sizeof n);
        at += sizeof n + n;
    }
    return at;
}

static void make_damaged_sessions(void) {
    for (size_t i = 0; i < sizeof session_damages / sizeof *session_damages; i++) {
        const struct session_damage *d = &session_damages[i];
        const size_t n = d->store ? make_session(d->name, "t_mass:budget=10+quant8", 63)
                                  : make_session(d->name, "none", 8);
        const size_t head = 6 * 4 + tiny_default.n_layer * 24 + 8;
        const size_t at = behind_texts() + (d->store ? head + 64 * 5 : 0) + d->skip;
        memcpy(data + at, &d->value, d->width);
        save("fuzz_session", d->name, data, n);
    }
}

/* More pages in a lane than its table has room for: none of them held, one entry each. */
static void make_many_pages(void) {
    enum { N_PAGE = 12, COLUMNS = 2 * 64 * 4 };
    (void)make_session("lane-pages-many", "t_mass:budget=10+quant8", 63);
    const size_t head = 6 * 4 + tiny_default.n_layer * 24 + 8;
    const size_t at = behind_texts() + head + 64 * 5;
    const uint32_t lane[] = {1, N_PAGE, 0, 0, 0, 0}; /* evicted first */
    bytes b = {0};
    put(&b, data, at);
    put(&b, lane, sizeof lane);
    for (uint32_t i = 0; i < N_PAGE; i++) {
        const uint32_t page[] = {0, 0, i * 5, 1, 0, 0};
        put(&b, page, sizeof page);
        put_zeros(&b, COLUMNS);
    }
    put_zeros(&b, COLUMNS + 8);
    save("fuzz_session", "lane-pages-many", b.p, b.n);
    bytes_free(&b);
}

static void make_sessions(void) {
    (void)make_session("empty", "", 0);
    (void)make_session("full-open", "full", 5);
    (void)make_session("full-sealed", "full", 70);
    (void)make_session("full-boundary", "full", 63);
    (void)make_session("window-quant8", "window:size=16:sinks=2+quant8", 135);
    (void)make_session("mass", "t_mass:budget=10", 70);
    (void)make_session("mass-quant8", "t_mass:budget=10+quant8", 63);
    (void)make_session("pages", "t_pages:pages=1", 67);
    (void)make_session("tier", "quant8+t_tier", 150);
    (void)make_session("none", "none", 9);
    (void)make_session("h2o", "h2o:budget=80", 150);
    kvc_session *s = tiny_session(tiny_model(16), "full", 256, KVC_COMPUTE_INT8);
    feed(s, 1, 100);
    fuzz_check(kvc_session_truncate(s, 66) == KVC_OK, "truncate", kvc_session_error(s));
    (void)save_session(s, "full-gone-back");
    kvc_session_close(s);
    /* In the midst of a prompt this one has a state of its own. */
    s = tiny_session(tiny_model(16), "snapkv:budget=40:window=9", 192, KVC_COMPUTE_F32);
    feed(s, 3, 70);
    const int32_t token[10] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    kvc_run run = {.struct_size = sizeof run, .session = s, .token = token, .n_token = 10};
    fuzz_check(kvc_decode(&run, 1, sizeof run) == KVC_OK, "decode", kvc_session_error(s));
    (void)save_session(s, "snapkv-in-a-prompt");
    kvc_session_close(s);
    make_damaged_sessions();
    make_many_pages();
}

/* ---------------------------------------------------------------- the others */

static const char *const spec_seeds[] = {
    "0window:size=1024:sinks=4+quant8",
    "0fuzzed:size=-100:wide=9223372036854775807:rate=1e-3:on=off:colour=blue:bytes=4KiB:text=x",
    "0a:size=2K:bytes=1GiB+b:on=yes+c:rate=-1.5e308",
    "0a:wide=-9223372036854775808:rate=inf",
    "0a:rate=0.1234567890123:size=1",
    "0./my.so:rate=nan",
    "0a:colour=gren",
    "0a:size=1:size=2",
    "0a::b",
    "0+",
    "0a+b+c+d+e+f+g+h+i",
    "1window:size=20:sinks=2+quant8:hadamard=off",
    "1full:type=bf16",
    "1none+t_mass:budget=3",
    "1quant8+full",
    "1windw:size=1",
};

static const char *const vocab_seeds[] = {
    "\x10hello the 1234 world",
    "\x11<|im_start|>user\nhello<|im_end|><user>",
    "\x13  \t\n caf\xc3\xa9 \xf0\x9f\x98\x80 <|im_en",
    "\x14"
    "don't 00000   x",
    "\x14"
    "\xed\x9f\xbf\xee\x80\x80\xc2\x80",
    "\x10\xc0\x80",
    "\x10\xed\xa0\x80",
    "\x10\xf4\x90\x80\x80",
    "\x90"
    "any ids \xff\x80",
    "\x18  hello \xe2\x96\x81 the  caf\xc3\xa9\t<|im_end|> x",
    "\x1b<|im_start|> hello<user> \xe6\x97\xa5\n",
    "\x98"
    "any ids \xff\x80",
    "\x09I'LL 12345 \r\n\n  x <|endoftext|>",
    "\xc0"
    "\x06<|im_end|>\n<|im_start|>system\nx",
    "\xd8"
    "\x01[INST] <|endoftext|> x",
    "\xd8"
    "\x04 x \xc3\xa9",
    "\xcc"
    "\x02  <|eot_id|>\n",
    "\xd4"
    "\x03 <end_of_turn> ",
    "\xd0"
    "\x05</s>\n<|user|>\n",
};

/* Every kind of operation, some on the second and third session; fuzz_ops.c says what each byte
 * means. */
static const uint8_t ops[] = {
    0,  1,    9, 70,         /* a prompt of 71 tokens */
    0,  1,    5, 0,          /* a step */
    5,  1,                   /* a copy of it */
    19, 1,    7, 40, 2,  3,  /* both go on, */
    66,                      /* each its own way */
    0,  4,    3, 99,         /* far enough to evict and to compact */
    20, 80,   0,             /* the copy goes back inside a page, */
    16, 1,    2, 4,          /* and on */
    5,  2,                   /* another copy */
    36, 10,   0,             /* that begins nearly anew, */
    32, 0x81, 6, 30,         /* with a prompt said to end */
    6,  3,    0, 8,  60,     /* a call is cancelled */
    6,  0,                   /* one is refused */
    7,  1,                   /* saved and loaded */
    0,  2,    8, 90,         /* and on */
    7,  0,    0, 1,  1,  63, /* a new one, of a page exactly */
};

/* A prompt, and going back behind its end. */
static const uint8_t go_back[] = {0, 0, 1, 9, 70, 6, 2, 0, 1, 5, 0};

static void make_ops(void) {
    save("fuzz_ops", "go-back-by-a-negative-number", go_back, sizeof go_back);
    uint8_t in[1 + sizeof ops];
    char name[32];
    memcpy(in + 1, ops, sizeof ops);
    for (uint32_t i = 0; i < 2 * tiny_n_stack; i++) {
        in[0] = (uint8_t)i;
        snprintf(name, sizeof name, "stack-%02u", (unsigned)i);
        save("fuzz_ops", name, in, sizeof in);
    }
    for (uint32_t i = 0; i < tiny_n_stack; i++) {
        in[0] = (uint8_t)i;
        snprintf(name, sizeof name, "fork-%02u", (unsigned)i);
        save("fuzz_ops", name, in, 11);
        snprintf(name, sizeof name, "saved-%02u", (unsigned)i);
        memcpy(in + 9, (const uint8_t[]){7, 1}, 2);
        save("fuzz_ops", name, in, 11);
        memcpy(in + 1, ops, sizeof ops);
    }
}

static void make_codecs(void) {
    uint8_t in[80] = {0};
    char name[32];
    uint64_t state = 5;
    for (uint32_t i = 0; i < 32; i++) {
        const uint8_t head[] = {(uint8_t)i, (uint8_t)(i * 5), (uint8_t)(32 - i)};
        memcpy(in, head, sizeof head);
        for (size_t j = 3; j < sizeof in; j++) {
            in[j] = i % 16 < 8 ? (uint8_t)next_random(&state) : (uint8_t)(0x7f + j % 3 * 0x40);
        }
        snprintf(name, sizeof name, "format-%02u", (unsigned)i);
        save("fuzz_codec", name, in, sizeof in);
    }
}

int main(int argc, char **argv) {
    char name[32];
    fuzz_check(argc == 2, "usage", "make_seeds DIR");
    root = argv[1];
    (void)mkdir(root, 0777);
    make_models();
    make_sessions();
    for (size_t i = 0; i < sizeof spec_seeds / sizeof *spec_seeds; i++) {
        snprintf(name, sizeof name, "spec-%02u", (unsigned)i);
        save("fuzz_spec", name, spec_seeds[i], strlen(spec_seeds[i]));
    }
    for (size_t i = 0; i < sizeof vocab_seeds / sizeof *vocab_seeds; i++) {
        snprintf(name, sizeof name, "text-%02u", (unsigned)i);
        save("fuzz_vocab", name, vocab_seeds[i], strlen(vocab_seeds[i]));
    }
    make_ops();
    make_codecs();
    return 0;
}
