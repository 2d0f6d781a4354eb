/* SPDX-License-Identifier: MIT
 * test_vocab.c: the vocabulary on small files made here: ids against those of another
 * implementation, round trips, special tokens, damaged files, long texts under a time bound. */
#include "vocab_cases.h"

#include "every.h"

#include <string.h>
#include <time.h>

enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER = 4 };

/* ---------------------------------------------------------------- files in memory */

/* What a vocabulary's file says; a field that is NULL or negative is left out. */
typedef struct source {
    const char *model, *pre;
    char **token, **merge;
    int32_t *type;
    uint32_t n, n_type, n_merge;
    int64_t bos, eos, eot, unk;
    int add_bos;
} source;

typedef struct bytes {
    uint8_t p[1 << 21];
    size_t n;
    uint64_t n_kv;
} bytes;

static source src;
static bytes out;
static kvc__mem mem;
static kvc__gguf gguf;
static kvc__vocab *vocab;
static kvc__err err;

static void put(const void *p, size_t n) {
    ck_assert_uint_le(out.n + n, sizeof out.p);
    memcpy(out.p + out.n, p, n);
    out.n += n;
}

static void put_num(uint64_t x, size_t n) {
    uint8_t b[8];
    for (size_t i = 0; i < 8; i++) {
        b[i] = (uint8_t)(x >> 8 * i);
    }
    put(b, n);
}

static void put_str(const char *s) {
    put_num(strlen(s), 8);
    put(s, strlen(s));
}

static void put_key(const char *name, uint32_t type) {
    char key[64];
    snprintf(key, sizeof key, "tokenizer.ggml.%s", name);
    put_str(key);
    put_num(type, 4);
    out.n_kv++;
}

static void put_array(const char *name, uint32_t type, uint64_t n) {
    put_key(name, KVC__GGUF_ARRAY);
    put_num(type, 4);
    put_num(n, 8);
}

static void put_strs(const char *name, char **s, uint32_t n) {
    if (s) {
        put_array(name, KVC__GGUF_STRING, n);
        for (uint32_t i = 0; i < n; i++) {
            put_str(s[i]);
        }
    }
}

static void put_text(const char *name, const char *s) {
    if (s) {
        put_key(name, KVC__GGUF_STRING);
        put_str(s);
    }
}

static void put_id(const char *name, int64_t id) {
    if (id >= 0) {
        put_key(name, KVC__GGUF_U32);
        put_num((uint64_t)id, 4);
    }
}

/* Writes src as a GGUF file without tensors. */
static void write_file(void) {
    out.n = 0;
    out.n_kv = 0;
    put("GGUF", 4);
    put_num(3, 4);
    put_num(0, 8);
    put_num(0, 8);
    put_text("model", src.model);
    put_text("pre", src.pre);
    put_strs("tokens", src.token, src.n);
    put_strs("merges", src.merge, src.n_merge);
    if (src.type) {
        put_array("token_type", KVC__GGUF_I32, src.n_type);
        for (uint32_t i = 0; i < src.n_type; i++) {
            put_num((uint32_t)src.type[i], 4);
        }
    }
    put_id("bos_token_id", src.bos);
    put_id("eos_token_id", src.eos);
    put_id("eot_token_id", src.eot);
    put_id("unknown_token_id", src.unk);
    if (src.add_bos >= 0) {
        put_key("add_bos_token", KVC__GGUF_BOOL);
        put_num((uint64_t)src.add_bos, 1);
    }
    while (out.n % 32 != 0) {
        put("", 1);
    }
    size_t n = out.n;
    out.n = 16;
    put_num(out.n_kv, 8);
    out.n = n;
}

/* ---------------------------------------------------------------- a small vocabulary */

static uint32_t add(const char *text, int32_t type) {
    src.token = realloc(src.token, (src.n + 1) * sizeof *src.token);
    src.type = realloc(src.type, (src.n + 1) * sizeof *src.type);
    ck_assert(src.token != NULL && src.type != NULL);
    src.token[src.n] = strdup(text);
    src.type[src.n] = type;
    src.n_type = src.n + 1;
    return src.n++;
}

static void add_merge(const char *text) {
    src.merge = realloc(src.merge, (src.n_merge + 1) * sizeof *src.merge);
    ck_assert(src.merge != NULL);
    src.merge[src.n_merge++] = strdup(text);
}

/* A byte in the alphabet of GPT-2. */
static const char *letter(uint32_t b) {
    static char text[4];
    uint32_t c = b;
    uint32_t moved = 0;
    for (uint32_t i = 0; i <= b; i++) {
        bool plain = (i > 0x20 && i < 0x7f) || (i > 0xa0 && i != 0xad);
        c = plain ? i : 256 + moved++;
    }
    snprintf(text, sizeof text, c < 0x80 ? "%c" : "%c%c", c < 0x80 ? (int)c : (int)(0xc0 | c >> 6),
             (int)(0x80 | (c & 0x3f)));
    return text;
}

/* Bytes as ids 0 to 255, then a few merges: "hello" is 259, " w" 260. */
static void setup(void) {
    src = (source){.model = "gpt2", .pre = "gpt-2", .bos = -1, .eos = -1, .eot = -1, .unk = -1};
    src.add_bos = -1;
    for (uint32_t b = 0; b < 256; b++) {
        add(letter(b), NORMAL);
    }
    add("he", NORMAL);
    add("ll", NORMAL);
    add("llo", NORMAL);
    add("hello", NORMAL);
    add("\xc4\xa0w", NORMAL);
    add_merge("h e");
    add_merge("l l");
    add_merge("ll o");
    add_merge("he llo");
    add_merge("\xc4\xa0 w");
    kvc__mem_init(&mem, NULL, NULL);
    err.text[0] = 0;
}

static void teardown(void) {
    kvc__vocab_destroy(vocab);
    vocab = NULL;
    kvc__gguf_close(&gguf);
    gguf = (kvc__gguf){0};
    for (uint32_t i = 0; i < src.n; i++) {
        free(src.token[i]);
    }
    for (uint32_t i = 0; i < src.n_merge; i++) {
        free(src.merge[i]);
    }
    free(src.token);
    free(src.merge);
    free(src.type);
    ck_assert_uint_eq(mem.used, 0);
}

static int32_t create(void) {
    write_file();
    int32_t rc = kvc__gguf_open(&mem, out.p, out.n, &gguf, &err);
    ck_assert_msg(rc == KVC_OK, "%s", err.text);
    return kvc__vocab_create(&mem, &gguf, &vocab, &err);
}

static void must_create(void) {
    int32_t rc = create();
    ck_assert_msg(rc == KVC_OK, "%s", err.text);
}

/* ---------------------------------------------------------------- comparing */

/* Tokenizes text and compares with n ids. */
static void check_ids(const char *text, uint32_t flags, const int32_t *want, size_t n_want) {
    int32_t got[64];
    size_t n = 0;
    int32_t rc = kvc__vocab_tokenize(vocab, text, strlen(text), flags, got, 64, &n, &err);
    ck_assert_msg(rc == KVC_OK, "'%s': %s", text, err.text);
    ck_assert_msg(n == n_want, "'%s': %zu tokens, expected %zu", text, n, n_want);
    for (size_t i = 0; i < n; i++) {
        ck_assert_msg(got[i] == want[i], "'%s': token %zu is %d, expected %d", text, i, got[i],
                      want[i]);
    }
}
#define CHECK_IDS(text, flags, ...)                                                                \
    check_ids(text, flags, (const int32_t[]){__VA_ARGS__},                                         \
              sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

static uint64_t random_state = 1;

static uint32_t random_below(uint32_t n) {
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint32_t)((random_state >> 33) % n);
}

/* Appends a random character, any but a surrogate. */
static size_t put_char(char *p) {
    static const uint32_t end[] = {0x80, 0x800, 0x10000, 0x110000};
    uint32_t c = random_below(end[random_below(4)]);
    if (c >= 0xd800 && c < 0xe000) {
        c = 'x';
    }
    if (c < 0x80) {
        p[0] = (char)c;
        return 1;
    }
    size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = n; i-- > 1; c >>= 6) {
        p[i] = (char)(unsigned char)(0x80 | (c & 0x3f));
    }
    p[0] = (char)(unsigned char)((0xf00 >> n & 0xff) | c);
    return n;
}

/* ---------------------------------------------------------------- tests: tokens and text */

START_TEST(test_merges_by_rank) {
    must_create();
    ck_assert_uint_eq(kvc__vocab_size(vocab), 261);
    CHECK_IDS("hello", 0, 259);
    CHECK_IDS("hello world", 0, 259, 260, 'o', 'r', 'l', 'd');
    CHECK_IDS("hellllo", 0, 256, 257, 258);
    CHECK_IDS("h", 0, 'h');
    check_ids("", 0, NULL, 0);
}
END_TEST

START_TEST(test_smollm_splits_digits) {
    add("12", NORMAL);
    add_merge("1 2");
    must_create();
    CHECK_IDS("12", 0, 261);
    kvc__vocab_destroy(vocab);
    kvc__gguf_close(&gguf);
    src.pre = "smollm";
    must_create();
    CHECK_IDS("12", 0, '1', '2');
}
END_TEST

/* U+180E is no white space, though PCRE2 counts it as \s: the space in front belongs to it, and
 * only within a piece can the two merge. U+00A0 is: the mark behind it is a piece of its own. */
START_TEST(test_white_space_is_that_of_unicode) {
    add("\xc4\xa0\xc3\xa1", NORMAL);
    add_merge("\xc4\xa0 \xc3\xa1");
    add("\xc5\x82!", NORMAL);
    add_merge("\xc5\x82 !");
    must_create();
    CHECK_IDS("a \xe1\xa0\x8e", 0, 'a', 261, 0xa0, 0x8e);
    CHECK_IDS("a \xe1\xa0\x8e"
              "b",
              0, 'a', 261, 0xa0, 0x8e, 'b');
    CHECK_IDS("a\xc2\xa0!", 0, 'a', 0xc2, 0xa0, '!');
}
END_TEST

/* The vocabulary of tests/data/bpe-small.json, and ids from another implementation. */
START_TEST(test_difficult_texts) {
    static const char *const pre[] = {"smollm", "gpt-2"};
    json_t *root = cases_load("bpe-small.json");
    json_t *control = json_object_get(root, "control");
    json_t *merges = json_object_get(root, "merges");
    teardown();
    src = (source){.model = "gpt2", .bos = -1, .eos = -1, .eot = -1, .unk = -1, .add_bos = -1};
    src.pre = pre[_i];
    for (size_t i = 0; i < json_array_size(control); i++) {
        add(json_string_value(json_array_get(control, i)), CONTROL);
    }
    for (uint32_t b = 0; b < 256; b++) {
        add(letter(b), NORMAL);
    }
    for (size_t i = 0; i < json_array_size(merges); i++) {
        const char *merge = json_string_value(json_array_get(merges, i));
        const char *space = strchr(merge, ' ');
        char joined[256];
        snprintf(joined, sizeof joined, "%.*s%s", (int)(space - merge), merge, space + 1);
        add(joined, NORMAL);
        add_merge(merge);
    }
    must_create();
    cases_check(vocab, json_object_get(root, "cases"), pre[_i]);
    json_decref(root);
}
END_TEST

START_TEST(test_random_text_round_trips) {
    must_create();
    for (int k = 0; k < 300; k++) {
        char text[512];
        char back[512];
        int32_t token[512];
        size_t n = 0;
        size_t n_token = 0;
        size_t n_back = 0;
        for (uint32_t i = random_below(100); i > 0; i--) {
            n += put_char(text + n);
        }
        ck_assert_int_eq(kvc__vocab_tokenize(vocab, text, n, 0, token, 512, &n_token, &err), 0);
        ck_assert_uint_le(n_token, n);
        ck_assert_int_eq(kvc__vocab_detokenize(vocab, token, n_token, 0, back, 512, &n_back, &err),
                         0);
        ck_assert_uint_eq(n_back, n);
        ck_assert_int_eq(memcmp(text, back, n), 0);
    }
}
END_TEST

START_TEST(test_output_stops_at_cap) {
    int32_t token[3] = {-7, -7, -7};
    char text[4] = "####";
    size_t n = 0;
    must_create();
    ck_assert_int_eq(kvc__vocab_tokenize(vocab, "abc", 3, 0, token, 2, &n, &err), KVC_OK);
    ck_assert_uint_eq(n, 3);
    ck_assert_int_eq(token[1], 'b');
    ck_assert_int_eq(token[2], -7);
    ck_assert_int_eq(kvc__vocab_tokenize(vocab, "abc", 3, 0, NULL, 0, &n, &err), KVC_OK);
    ck_assert_uint_eq(n, 3);
    token[2] = 259;
    ck_assert_int_eq(kvc__vocab_detokenize(vocab, token, 3, 0, text, 3, &n, &err), KVC_OK);
    ck_assert_uint_eq(n, 7);
    ck_assert_int_eq(memcmp(text, "abh#", 4), 0);
}
END_TEST

START_TEST(test_detokenize_refuses_foreign_ids) {
    int32_t token[] = {'a', 261};
    size_t n = 0;
    must_create();
    ck_assert_int_eq(kvc__vocab_detokenize(vocab, token, 2, 0, NULL, 0, &n, &err), KVC_E_RANGE);
    ck_assert_ptr_nonnull(strstr(err.text, "261"));
    token[1] = -1;
    ck_assert_int_eq(kvc__vocab_detokenize(vocab, token, 2, 0, NULL, 0, &n, &err), KVC_E_RANGE);
}
END_TEST

static const struct invalid {
    const char *text;
    size_t at;
} invalid[] = {
    {"\x80", 0},
    {"ab\xff", 2},
    {"a\xc0\x80", 1},             /* overlong */
    {"\xe0\x9f\xbf", 0},          /* overlong */
    {"\xf0\x8f\xbf\xbf", 0},      /* overlong */
    {"x\xed\xa0\x80", 1},         /* a surrogate */
    {"\xf4\x90\x80\x80", 0},      /* above U+10FFFF */
    {"\xf5\x80\x80\x80", 0},      /* no lead byte */
    {"\xc3\xa9\xc3", 2},          /* cut off */
    {"\xe6\x97", 0},              /* cut off */
    {"\xf0\x9f\x98", 0},          /* cut off */
    {"\xe6\x97\xa5\xe6\x97x", 3}, /* broken by a letter */
};

START_TEST(test_invalid_utf8_is_placed) {
    char place[32];
    size_t n = 1;
    must_create();
    ck_assert_int_eq(kvc__vocab_tokenize(vocab, invalid[_i].text, strlen(invalid[_i].text), 0, NULL,
                                         0, &n, &err),
                     KVC_E_UTF8);
    snprintf(place, sizeof place, "at byte %zu ", invalid[_i].at);
    ck_assert_msg(strstr(err.text, place) != NULL, "%s", err.text);
    ck_assert_uint_eq(n, 0);
}
END_TEST

/* ---------------------------------------------------------------- tests: special tokens */

START_TEST(test_control_only_on_request) {
    int32_t end = (int32_t)add("<|im_end|>", CONTROL);
    char text[16];
    size_t n = 0;
    must_create();
    ck_assert_int_eq(kvc__vocab_eot(vocab), end);
    CHECK_IDS("a<|im_end|>hello", KVC_TEXT_SPECIAL, 'a', end, 259);
    ck_assert_int_eq(kvc__vocab_tokenize(vocab, "<|im_end|>", 10, 0, NULL, 0, &n, &err), KVC_OK);
    ck_assert_uint_eq(n, 10);
    ck_assert_int_eq(kvc__vocab_detokenize(vocab, &end, 1, 0, text, 16, &n, &err), KVC_OK);
    ck_assert_uint_eq(n, 0);
    ck_assert_int_eq(kvc__vocab_detokenize(vocab, &end, 1, KVC_TEXT_SPECIAL, text, 16, &n, &err),
                     KVC_OK);
    ck_assert_uint_eq(n, 10);
    ck_assert_int_eq(memcmp(text, "<|im_end|>", 10), 0);
}
END_TEST

START_TEST(test_longest_special_wins) {
    int32_t a = (int32_t)add("<a>", USER);
    int32_t aa = (int32_t)add("<a><a>", USER);
    int32_t ab = (int32_t)add("<a><b", CONTROL);
    int32_t space = (int32_t)add("  ", USER);
    int32_t accent = (int32_t)add("\xc3\xa9t\xc3\xa9", USER);
    add("<a>", USER);
    must_create();
    CHECK_IDS("<a>", 0, a);
    CHECK_IDS("<a><a><a>", 0, aa, a);
    CHECK_IDS("<a><b", KVC_TEXT_SPECIAL, ab);
    CHECK_IDS("<a><b", 0, a, '<', 'b');
    CHECK_IDS("<a><", KVC_TEXT_SPECIAL, a, '<');
    CHECK_IDS("<<a", KVC_TEXT_SPECIAL, '<', '<', 'a');
    CHECK_IDS("x   y", 0, 'x', space, ' ', 'y');
    CHECK_IDS("\xc3\xa9t\xc3\xa9", 0, accent);
    CHECK_IDS("\xc3\xa9t", 0, 0xc3, 0xa9, 't');
}
END_TEST

/* Cutting half a character out would leave invalid text for the patterns. */
START_TEST(test_special_never_splits_a_character) {
    add("\xc3", USER);
    add("\xa9", USER);
    must_create();
    CHECK_IDS("\xc3\xa9", 0, 0xc3, 0xa9);
}
END_TEST

/* A special token of no text matches nothing and hides no other. */
START_TEST(test_special_of_no_text_is_left_out) {
    int32_t x = (int32_t)add("!x", USER);
    add("", USER);
    int32_t a = (int32_t)add("<a>", CONTROL);
    add("", CONTROL);
    must_create();
    CHECK_IDS("hello!x<a>", KVC_TEXT_SPECIAL, 259, x, a);
    check_ids("", KVC_TEXT_SPECIAL, NULL, 0);
}
END_TEST

static void check_spans(const char *text, const kvc__span *span, size_t n_span, const int32_t *want,
                        size_t n_want) {
    int32_t got[16];
    size_t n = 0;
    int32_t rc =
        kvc__vocab_tokenize_spans(vocab, text, strlen(text), span, n_span, got, 16, &n, &err);
    ck_assert_msg(rc == KVC_OK, "'%s': %s", text, err.text);
    ck_assert_msg(n == n_want, "'%s': %zu tokens, expected %zu", text, n, n_want);
    for (size_t i = 0; i < n; i++) {
        ck_assert_msg(got[i] == want[i], "'%s': token %zu is %d, expected %d", text, i, got[i],
                      want[i]);
    }
}
#define SPANS(...)                                                                                 \
    (const kvc__span[]){__VA_ARGS__}, sizeof((const kvc__span[]){__VA_ARGS__}) / sizeof(kvc__span)
#define IDS(...)                                                                                   \
    (const int32_t[]){__VA_ARGS__}, sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t)

/* An id keeps its place and a marker its beginning; else parts are no borders. */
START_TEST(test_user_defined_tokens_across_parts) {
    const int32_t plain = KVC__TEXT_PLAIN, mark = KVC__TEXT_MARK;
    const int32_t xy = (int32_t)add("xy", USER);
    const int32_t end = (int32_t)add("<end>", CONTROL);
    const int32_t into = (int32_t)add("a><e", USER);
    const int32_t before = (int32_t)add("a>", USER);
    const int32_t two = (int32_t)add("\n\n", USER);
    const int32_t three = (int32_t)add("\n\n\n", USER);
    must_create();
    check_spans("xy", SPANS({1, plain}, {1, end}, {2, plain}), IDS('x', end, 'y'));
    check_spans("xyxy", SPANS({3, plain}, {3, end}, {3, end}, {4, mark}),
                IDS(xy, 'x', end, end, 'y'));
    check_spans("xy", SPANS({0, end}, {1, plain}, {2, mark}, {2, end}), IDS(end, xy, end));
    check_spans("a><end>", SPANS({2, plain}, {7, mark}), IDS(before, end));
    check_spans("a><end>", SPANS({2, mark}, {2, plain}, {7, mark}), IDS(before, end));
    check_spans("a><end>", SPANS({1, plain}, {1, mark}, {2, plain}, {7, mark}), IDS(before, end));
    check_spans("a><end>", SPANS({2, plain}, {6, mark}, {7, plain}), IDS(into, 'n', 'd', '>'));
    check_spans("a><end>", SPANS({7, plain}), IDS(into, 'n', 'd', '>'));
    check_spans("\n\n\nxy", SPANS({1, plain}, {3, mark}, {5, plain}), IDS(three, xy));
    check_spans("\n\nxy", SPANS({1, plain}, {3, mark}, {4, plain}), IDS(two, xy));
}
END_TEST

START_TEST(test_bos_if_the_model_wants_one) {
    src.bos = (int64_t)add("<s>", CONTROL);
    src.eos = 1;
    src.eot = 2;
    src.add_bos = _i;
    must_create();
    ck_assert_int_eq(kvc__vocab_bos(vocab), 261);
    ck_assert_int_eq(kvc__vocab_eos(vocab), 1);
    ck_assert_int_eq(kvc__vocab_eot(vocab), 2);
    CHECK_IDS("a", 0, 'a');
    if (_i == 1) {
        CHECK_IDS("a", KVC_TEXT_BOS, 261, 'a');
        CHECK_IDS("", KVC_TEXT_BOS, 261);
    } else {
        CHECK_IDS("a", KVC_TEXT_BOS, 'a');
    }
}
END_TEST

START_TEST(test_ids_may_be_absent) {
    add("<|end|>", NORMAL);
    must_create();
    ck_assert_int_eq(kvc__vocab_bos(vocab), -1);
    ck_assert_int_eq(kvc__vocab_eos(vocab), -1);
    ck_assert_int_eq(kvc__vocab_eot(vocab), -1);
}
END_TEST

/* ---------------------------------------------------------------- tests: damaged files */

static char *long_text(size_t n) {
    char *p = malloc(n + 1);
    ck_assert(p != NULL);
    memset(p, 'q', n);
    p[n] = 0;
    return p;
}

static void replace(char **at, char *text) {
    free(*at);
    *at = text;
}

static void drop(char **list, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        free(list[i]);
    }
    free(list);
}

static void no_tokens(void) {
    drop(src.token, src.n);
    src.token = NULL;
    src.n = 0;
}
static void empty_tokens(void) {
    for (uint32_t i = 0; i < src.n; i++) {
        free(src.token[i]);
    }
    src.n = 0;
}
static void no_merges(void) {
    drop(src.merge, src.n_merge);
    src.merge = NULL;
    src.n_merge = 0;
}
static void other_model(void) {
    src.model = "bert";
}
static void long_model(void) {
    src.model = "a-name-of-more-than-sixty-four-bytes-is-cut-to-so-many-in-the-sentence";
}
static void no_model(void) {
    src.model = NULL;
}
static void other_pre(void) {
    src.pre = "gpt-4o";
}
static void few_types(void) {
    src.n_type--;
}
static void wrong_type(void) {
    src.type[3] = 7;
}
static void negative_type(void) {
    src.type[3] = -1;
}
static void bos_outside(void) {
    src.bos = src.n;
}
static void eot_outside(void) {
    src.eot = UINT32_MAX;
}
static void merge_without_space(void) {
    add_merge("ab");
}
static void merge_of_one(void) {
    add_merge("a ");
}
static void merge_of_nothing(void) {
    add_merge("");
}
static void long_token(void) {
    replace(&src.token[7], long_text(65536));
}
static void long_merge(void) {
    char *p = long_text(70000);
    p[5] = ' ';
    replace(&src.merge[0], p);
}
static void long_special(void) {
    replace(&src.token[7], long_text(257));
    src.type[7] = CONTROL;
    src.unk = 0;
}
static void missing_byte(void) {
    replace(&src.token['z'], strdup("zz"));
}

static const struct damage {
    void (*make)(void);
    int32_t status;
    const char *says;
} damage[] = {
    {other_model, KVC_E_UNSUPPORTED, "'bert' is not supported; use a model with 'gpt2'"},
    {long_model, KVC_E_UNSUPPORTED, "so-many-in-the-se' is not supported"},
    {no_model, KVC_E_FORMAT, "tokenizer.ggml.model"},
    {other_pre, KVC_E_UNSUPPORTED, "'gpt-4o' is not supported; use a model with one of 'gpt-2', "},
    {no_tokens, KVC_E_FORMAT, "tokenizer.ggml.tokens"},
    {empty_tokens, KVC_E_FORMAT, "tokenizer.ggml.tokens"},
    {no_merges, KVC_E_FORMAT, "tokenizer.ggml.merges"},
    {few_types, KVC_E_FORMAT, "array of 261"},
    {wrong_type, KVC_E_FORMAT, "token 3 has type 7"},
    {negative_type, KVC_E_FORMAT, "token 3 has type -1"},
    {bos_outside, KVC_E_FORMAT, "bos_token_id"},
    {eot_outside, KVC_E_FORMAT, "eot_token_id"},
    {merge_without_space, KVC_E_FORMAT, "merge 5 "},
    {merge_of_one, KVC_E_FORMAT, "merge 5 "},
    {merge_of_nothing, KVC_E_FORMAT, "merge 5 "},
    {long_token, KVC_E_FORMAT, "token 7 "},
    {long_merge, KVC_E_FORMAT, "merge 0 "},
    {long_special, KVC_E_FORMAT, "token 7 "},
    {missing_byte, KVC_E_FORMAT, "byte 0x7a"},
};

START_TEST(test_damaged_file_is_refused) {
    damage[_i].make();
    int32_t rc = create();
    ck_assert_msg(rc == damage[_i].status, "%d: %s", rc, err.text);
    ck_assert_msg(strstr(err.text, damage[_i].says) != NULL, "%s", err.text);
    ck_assert_ptr_null(vocab);
}
END_TEST

START_TEST(test_array_of_wrong_elements_is_refused) {
    static const char *const key[] = {"tokens", "merges", "token_type"};
    write_file();
    ck_assert_int_eq(kvc__gguf_open(&mem, out.p, out.n, &gguf, &err), KVC_OK);
    for (uint64_t i = 0; i < gguf.n_kv; i++) {
        kvc__gguf_kv *kv = &gguf.kv[i];
        size_t n = strlen(key[_i]);
        if (kv->key.n > n && memcmp(kv->key.p + kv->key.n - n, key[_i], n) == 0) {
            kv->elem_type = _i < 2 ? KVC__GGUF_I32 : KVC__GGUF_STRING;
        }
    }
    ck_assert_int_eq(kvc__vocab_create(&mem, &gguf, &vocab, &err), KVC_E_FORMAT);
    ck_assert_ptr_nonnull(strstr(err.text, key[_i]));
}
END_TEST

START_TEST(test_value_of_wrong_type_is_refused) {
    static const char *const key[] = {"model", "pre", "tokens", "merges", "token_type"};
    write_file();
    ck_assert_int_eq(kvc__gguf_open(&mem, out.p, out.n, &gguf, &err), KVC_OK);
    for (uint64_t i = 0; i < gguf.n_kv; i++) {
        kvc__gguf_kv *kv = &gguf.kv[i];
        size_t n = strlen(key[_i]);
        if (kv->key.n > n && memcmp(kv->key.p + kv->key.n - n, key[_i], n) == 0) {
            kv->type = KVC__GGUF_U8;
        }
    }
    ck_assert_int_eq(kvc__vocab_create(&mem, &gguf, &vocab, &err), KVC_E_FORMAT);
    ck_assert_ptr_nonnull(strstr(err.text, key[_i]));
}
END_TEST

START_TEST(test_byte_without_token_is_unknown) {
    missing_byte();
    src.unk = 1;
    must_create();
    CHECK_IDS("az", 0, 'a', 1);
}
END_TEST

START_TEST(test_byte_outside_utf8_needs_no_token) {
    replace(&src.token[0xff], strdup("zz"));
    must_create();
    CHECK_IDS("a", 0, 'a');
}
END_TEST

/* Duplicates, empty tokens and merges that can't apply are in files that people use. */
START_TEST(test_odd_entries_are_tolerated) {
    add("he", NORMAL);
    add("", NORMAL);
    add("", CONTROL);
    add("", USER);
    add("a\xe2\x82\xac", NORMAL);
    add_merge("h e");
    add_merge("e r");
    add_merge("unknown token");
    add_merge("a  ");
    add_merge("a \xe2\x82\xac");
    add_merge("\xe2\x82\xac a");
    add_merge("b he");
    free(src.type);
    src.type = NULL;
    must_create();
    CHECK_IDS("hello er he", KVC_TEXT_SPECIAL, 259, ' ', 'e', 'r', ' ', 256);
    int32_t token[] = {262, 265};
    char text[8];
    size_t n = 0;
    ck_assert_int_eq(kvc__vocab_detokenize(vocab, token, 2, 0, text, 8, &n, &err), KVC_OK);
    ck_assert_uint_eq(n, 4);
    ck_assert_int_eq(memcmp(text, "a\xe2\x82\xac", 4), 0);
}
END_TEST

/* ---------------------------------------------------------------- tests: memory */

static size_t allowed;

static void *failing_realloc(void *ctx, void *p, size_t old_size, size_t new_size, size_t align) {
    (void)ctx;
    (void)align;
    if (new_size == 0) {
        free(p);
        return NULL;
    }
    if (allowed == 0) {
        return NULL;
    }
    allowed--;
    void *q = NULL;
    if (posix_memalign(&q, 4096, new_size) != 0) {
        return NULL;
    }
    if (p) {
        memcpy(q, p, old_size < new_size ? old_size : new_size);
        free(p);
    }
    return q;
}

/* Every allocation fails once; nothing is leaked, and the last round passes. */
START_TEST(test_no_memory_at_every_allocation) {
    kvc_allocator a = {.struct_size = sizeof a, .realloc = failing_realloc};
    int32_t rc = KVC_E_NOMEM;
    size_t k = 0;
    add("<x>", USER);
    write_file();
    ck_assert_int_eq(kvc__gguf_open(&mem, out.p, out.n, &gguf, &err), KVC_OK);
    for (; rc == KVC_E_NOMEM && k < 200; k++) {
        kvc__mem tight;
        size_t n = 0;
        kvc__mem_init(&tight, &a, NULL);
        allowed = k;
        rc = kvc__vocab_create(&tight, &gguf, &vocab, &err);
        if (rc == KVC_OK) {
            rc = kvc__vocab_tokenize(vocab, "hello <x>", 9, 0, NULL, 0, &n, &err);
        }
        kvc__vocab_destroy(vocab);
        vocab = NULL;
        ck_assert_uint_eq(tight.used, 0);
    }
    ck_assert_msg(rc == KVC_OK, "%d: %s", rc, err.text);
    ck_assert_uint_gt(k, 10);
}
END_TEST

/* ---------------------------------------------------------------- tests: long texts */

#define LONG ((size_t)1 << 20)

/* Those that are left out have the same patterns but for digits. */
static const char *const pre[] = {"smollm", "llama-bpe", "tekken", "default"};
#define N_PRE 4

static const char *const unit[] = {
    "a",
    " ",
    "\n",
    "hello",
    "1",
    "'",
    "\xe6\x97\xa5",
    " a",
    "a ",
    "\t x",
    "<a",
    "<|special|",
    "<|special|1>",
    "'s",
    "l",
    "!",
    "A",
    "Aa",
    "aA",
    "\xe1\xb5\x83",
    "\r",
    "A\xe1\xb5\x83",
};

/* Nothing is quadratic, and no pattern runs out of stack: a second is a hundred times what it
 * takes. The vocabulary merges runs of 'a' to any length and holds 1,000 special tokens. */
START_TEST(test_long_text_in_time) {
    char *text = malloc(LONG);
    char name[64] = "a";
    size_t n = 0;
    ck_assert(text != NULL);
    for (int i = 1; i < 32; i *= 2) {
        char merge[2 * sizeof name];
        snprintf(merge, sizeof merge, "%s %s", name, name);
        memset(name, 'a', (size_t)i * 2);
        name[i * 2] = 0;
        add(name, NORMAL);
        add_merge(merge);
    }
    for (int i = 0; i < 1000; i++) {
        snprintf(name, sizeof name, "<|special|%d>", i);
        add(name, CONTROL);
    }
    src.pre = pre[_i % N_PRE];
    must_create();
    const char *u = unit[_i / N_PRE];
    size_t len = strlen(u);
    for (size_t i = 0; i < LONG; i++) {
        text[i] = u[i % len];
    }
    clock_t begin = clock();
    ck_assert_int_eq(
        kvc__vocab_tokenize(vocab, text, LONG / len * len, KVC_TEXT_SPECIAL, NULL, 0, &n, &err),
        KVC_OK);
    double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
    ck_assert_uint_gt(n, 0);
    ck_assert_msg(seconds < 10, "'%s' takes %g seconds", u, seconds);
    if (len == 1 && *u == 'a') {
        ck_assert_uint_eq(n, LONG / 32);
    }
    free(text);
}
END_TEST

/* ---------------------------------------------------------------- main */

#define COUNT(a) ((int)(sizeof(a) / sizeof((a)[0])))

static TCase *tests_text(void) {
    TCase *c = tcase_create("text");
    tcase_add_test(c, test_merges_by_rank);
    tcase_add_test(c, test_smollm_splits_digits);
    tcase_add_test(c, test_white_space_is_that_of_unicode);
    tcase_add_loop_test(c, test_difficult_texts, 0, 2);
    tcase_add_test(c, test_random_text_round_trips);
    tcase_add_test(c, test_output_stops_at_cap);
    tcase_add_test(c, test_detokenize_refuses_foreign_ids);
    tcase_add_loop_test(c, test_invalid_utf8_is_placed, 0, COUNT(invalid));
    every_add(c, test_long_text_in_time, N_PRE * COUNT(unit), 4);
    return c;
}

static TCase *tests_special(void) {
    TCase *c = tcase_create("special");
    tcase_add_test(c, test_control_only_on_request);
    tcase_add_test(c, test_longest_special_wins);
    tcase_add_test(c, test_special_never_splits_a_character);
    tcase_add_test(c, test_special_of_no_text_is_left_out);
    tcase_add_test(c, test_user_defined_tokens_across_parts);
    tcase_add_loop_test(c, test_bos_if_the_model_wants_one, -1, 2);
    tcase_add_test(c, test_ids_may_be_absent);
    return c;
}

static TCase *tests_file(void) {
    TCase *c = tcase_create("file");
    tcase_add_loop_test(c, test_damaged_file_is_refused, 0, COUNT(damage));
    tcase_add_loop_test(c, test_array_of_wrong_elements_is_refused, 0, 3);
    tcase_add_loop_test(c, test_value_of_wrong_type_is_refused, 0, 5);
    tcase_add_test(c, test_byte_without_token_is_unknown);
    tcase_add_test(c, test_byte_outside_utf8_needs_no_token);
    tcase_add_test(c, test_odd_entries_are_tolerated);
    tcase_add_test(c, test_no_memory_at_every_allocation);
    return c;
}

int main(void) {
    Suite *suite = suite_create("vocab");
    TCase *c[] = {tests_text(), tests_special(), tests_file()};
    for (int i = 0; i < COUNT(c); i++) {
        tcase_add_checked_fixture(c[i], setup, teardown);
        suite_add_tcase(suite, c[i]);
    }
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures != 0;
}
