/* SPDX-License-Identifier: MIT
 * test_spm.c: vocabularies of SentencePiece on small files made here: scores, bytes, spaces in
 * front, special tokens, damaged files, long texts under a time bound. Ids of other implementations
 * are in test_tokenizers.c. */
#include "vocab.h"

#include "every.h"
#include "gguf_bytes.h"

#include <math.h>
#include <stdio.h>
#include <time.h>

enum { NORMAL = 1, UNKNOWN, CONTROL, USER, UNUSED, BYTE };

#define MAX_TOKEN 2048u

/* What the file says. */
static struct {
    char *token[MAX_TOKEN];
    int32_t type[MAX_TOKEN];
    float score[MAX_TOKEN];
    uint32_t n, n_score;
    bool no_types, charsmap;
    int prefix, collapse, add_eos, add_bos; /* -1: left out */
    int64_t bos, eos, unk, eom;             /* -1: left out */
    const char *odd;                        /* a key whose value is a text, or NULL */
} src;

static kvc__mem mem;
static kvc__gguf gguf;
static kvc__vocab *vocab;
static kvc__err err;
static bytes file;

/* ---------------------------------------------------------------- files */

static int32_t add(const char *text, int32_t type, float score) {
    ck_assert_uint_lt(src.n, MAX_TOKEN);
    src.token[src.n] = strdup(text);
    src.type[src.n] = type;
    src.score[src.n] = score;
    src.n_score = src.n + 1;
    return (int32_t)src.n++;
}

static int put_flag(bytes *b, const char *key, int value) {
    if (value >= 0) {
        put_key(b, key, KVC__GGUF_BOOL);
        put_number(b, KVC__GGUF_BOOL, value);
    }
    return value >= 0;
}

static int put_id(bytes *b, const char *key, int64_t id) {
    if (id >= 0) {
        put_u32_kv(b, key, (uint32_t)id);
    }
    return id >= 0;
}

static uint64_t put_tokens(bytes *b) {
    put_array(b, "tokenizer.ggml.tokens", KVC__GGUF_STRING, src.n);
    for (uint32_t i = 0; i < src.n; i++) {
        put_str(b, src.token[i]);
    }
    if (src.n_score > 0) {
        put_array(b, "tokenizer.ggml.scores", KVC__GGUF_F32, src.n_score);
        put(b, src.score, src.n_score * sizeof *src.score);
    }
    if (!src.no_types) {
        put_array(b, "tokenizer.ggml.token_type", KVC__GGUF_I32, src.n);
        put(b, src.type, src.n * sizeof *src.type);
    }
    return 1u + (src.n_score > 0) + !src.no_types;
}

static void write_file(void) {
    put_header(&file, 3, 0, 0);
    put_key(&file, "tokenizer.ggml.model", KVC__GGUF_STRING);
    put_str(&file, "llama");
    uint64_t n = 1 + put_tokens(&file);
    n += (uint64_t)put_flag(&file, "tokenizer.ggml.add_space_prefix", src.prefix);
    n += (uint64_t)put_flag(&file, "tokenizer.ggml.remove_extra_whitespaces", src.collapse);
    n += (uint64_t)put_flag(&file, "tokenizer.ggml.add_eos_token", src.add_eos);
    n += (uint64_t)put_flag(&file, "tokenizer.ggml.add_bos_token", src.add_bos);
    n += (uint64_t)put_id(&file, "tokenizer.ggml.bos_token_id", src.bos);
    n += (uint64_t)put_id(&file, "tokenizer.ggml.eos_token_id", src.eos);
    n += (uint64_t)put_id(&file, "tokenizer.ggml.unknown_token_id", src.unk);
    n += (uint64_t)put_flag(&file, "tokenizer.ggml.precompiled_charsmap", src.charsmap ? 1 : -1);
    n += (uint64_t)put_id(&file, "tokenizer.ggml.eom_token_id", src.eom);
    if (src.odd != NULL) {
        put_key(&file, src.odd, KVC__GGUF_STRING);
        put_str(&file, "x");
        n++;
    }
    put_padding(&file, 32);
    memcpy(file.p + 16, &n, sizeof n);
    ck_assert_msg(kvc__gguf_open(&mem, file.p, file.n, &gguf, &err) == KVC_OK, "%s", err.text);
}

static void must_create(void) {
    write_file();
    int32_t rc = kvc__vocab_create(&mem, &gguf, &vocab, &err);
    ck_assert_msg(rc == KVC_OK, "%s", err.text);
}

enum { UNK, BOS, EOS, FIRST_BYTE, LETTERS = FIRST_BYTE + 256 };
enum { SPACE = LETTERS, A, B, C, H, E, L, O, SPACE_A, AB, BC, LL, HE, HELLO, SPACE_HELLO };

/* As Llama 2 has them: unknown, begin, end, all bytes, characters, what is merged. */
static void setup(void) {
    static const char *const text[] = {"\xe2\x96\x81", "a", "b", "c", "h", "e", "l", "o"};
    char byte[8];
    memset(&src, 0, sizeof src);
    src.prefix = src.collapse = src.add_eos = src.add_bos = -1;
    src.bos = src.eos = src.unk = src.eom = -1;
    kvc__mem_init(&mem, NULL, NULL);
    add("<unk>", UNKNOWN, 0);
    add("<s>", CONTROL, 0);
    add("</s>", CONTROL, 0);
    for (int b = 0; b < 256; b++) {
        snprintf(byte, sizeof byte, "<0x%02X>", b);
        add(byte, BYTE, 0);
    }
    for (size_t i = 0; i < sizeof text / sizeof *text; i++) {
        add(text[i], NORMAL, -100.0f - (float)i);
    }
    add("\xe2\x96\x81"
        "a",
        NORMAL, -3);
    add("ab", NORMAL, -4);
    add("bc", NORMAL, -4);
    add("ll", NORMAL, -6);
    add("he", NORMAL, -5);
    add("hello", NORMAL, -8);
    add("\xe2\x96\x81hello", NORMAL, -9);
}

static void teardown(void) {
    kvc__vocab_destroy(vocab);
    vocab = NULL;
    kvc__gguf_close(&gguf);
    bytes_free(&file);
    for (uint32_t i = 0; i < src.n; i++) {
        free(src.token[i]);
    }
    ck_assert_uint_eq(mem.used, 0);
}

/* ---------------------------------------------------------------- comparing */

static int32_t token[64];
static size_t n_token;

static void tokenize(const char *text, uint32_t flags) {
    int32_t rc = kvc__vocab_tokenize(vocab, text, strlen(text), flags, token, 64, &n_token, &err);
    ck_assert_msg(rc == KVC_OK, "'%s': %s", text, err.text);
}

static void check_ids(const char *text, uint32_t flags, const int32_t *want, size_t n_want) {
    tokenize(text, flags);
    for (size_t i = 0; i < n_token && i < n_want; i++) {
        ck_assert_msg(token[i] == want[i], "'%s': token %zu is %d, expected %d", text, i, token[i],
                      want[i]);
    }
    ck_assert_msg(n_token == n_want, "'%s': %zu tokens, expected %zu", text, n_token, n_want);
}
#define CHECK_IDS(text, flags, ...)                                                                \
    check_ids(text, flags, (const int32_t[]){__VA_ARGS__},                                         \
              sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t))

static void check_text(uint32_t flags, const char *want) {
    char text[256];
    size_t n = 0;
    ck_assert_int_eq(kvc__vocab_detokenize(vocab, token, n_token, flags, text, 255, &n, &err),
                     KVC_OK);
    text[n] = 0;
    ck_assert_str_eq(text, want);
}

/* ---------------------------------------------------------------- tests: text */

/* 'he' and 'll' have no way to 'hello' but through a token 'hell' or 'llo' that doesn't exist. */
START_TEST(the_highest_score_merges_first) {
    must_create();
    CHECK_IDS("a", 0, SPACE_A);
    CHECK_IDS("hello", 0, SPACE, HE, LL, O);
    CHECK_IDS("ba", 0, SPACE, B, A);
    check_ids("", 0, NULL, 0);
}
END_TEST

START_TEST(of_equal_scores_the_left_merges_first) {
    must_create();
    CHECK_IDS("cabc", 0, SPACE, C, AB, C);
    CHECK_IDS("cbcb", 0, SPACE, C, BC, B);
    CHECK_IDS("abcbc", 0, SPACE_A, BC, BC);
}
END_TEST

START_TEST(what_has_no_token_becomes_bytes) {
    must_create();
    CHECK_IDS("a\xc3\xa9z", 0, SPACE_A, FIRST_BYTE + 0xc3, FIRST_BYTE + 0xa9, FIRST_BYTE + 'z');
    CHECK_IDS("\n", 0, SPACE, FIRST_BYTE + '\n');
    check_text(0, " \n");
}
END_TEST

START_TEST(without_bytes_it_is_unknown_once_in_a_row) {
    free(src.token[FIRST_BYTE + 'z']);
    src.token[FIRST_BYTE + 'z'] = strdup("<0x79>");
    must_create();
    CHECK_IDS("azzz yza", 0, SPACE_A, UNK, SPACE, FIRST_BYTE + 'y', UNK, A);
    check_text(0, " a ya");
    check_text(KVC_TEXT_TRIM, "a ya");
    check_text(KVC_TEXT_SPECIAL, " a<unk> y<unk>a");
}
END_TEST

START_TEST(a_space_is_put_in_where_the_file_wants_it) {
    src.prefix = _i - 1;
    must_create();
    if (_i == 1) {
        CHECK_IDS("a", 0, A);
        CHECK_IDS("<s>a</s> a", KVC_TEXT_SPECIAL, BOS, A, EOS, SPACE_A);
        check_text(KVC_TEXT_SPECIAL | KVC_TEXT_TRIM, "<s>a</s> a");
    } else {
        CHECK_IDS(" a", 0, SPACE, SPACE_A);
        CHECK_IDS("<s>a</s> a", KVC_TEXT_SPECIAL, BOS, SPACE_A, EOS, SPACE, SPACE_A);
        check_text(KVC_TEXT_SPECIAL, "<s> a</s>  a");
        check_text(KVC_TEXT_SPECIAL | KVC_TEXT_TRIM, "<s>a</s> a");
        check_text(KVC_TEXT_TRIM, "a a");
    }
}
END_TEST

/* A token that begins a text and has no space in front stays whole. */
START_TEST(only_a_space_is_trimmed) {
    must_create();
    n_token = 2;
    token[0] = HE;
    token[1] = SPACE_A;
    check_text(KVC_TEXT_TRIM, "he a");
    token[0] = BOS;
    check_text(KVC_TEXT_TRIM, "a");
    token[0] = SPACE;
    check_text(KVC_TEXT_TRIM, " a");
}
END_TEST

START_TEST(extra_white_space_is_taken_out_on_request) {
    src.collapse = 1;
    must_create();
    CHECK_IDS("  a   a ", 0, SPACE_A, SPACE_A);
    check_text(KVC_TEXT_TRIM, "a a");
    check_ids("   ", 0, NULL, 0);
    check_ids("\xe2\x96\x81", 0, NULL, 0);
}
END_TEST

START_TEST(tokens_across_words_are_found) {
    const int32_t id = add("a\xe2\x96\x81", NORMAL, -1);
    const int32_t whole = add("a\xe2\x96\x81"
                              "b",
                              NORMAL, -2);
    must_create();
    CHECK_IDS("a a", 0, SPACE, id, A);
    CHECK_IDS("a b", 0, SPACE, whole);
}
END_TEST

/* A token with a plain space is one that no text becomes; U+2581 in text is one. */
START_TEST(spaces_are_those_of_the_file) {
    const int32_t id = add("b b", NORMAL, -1);
    must_create();
    CHECK_IDS("b b", 0, SPACE, B, SPACE, B);
    CHECK_IDS("b\xe2\x96\x81"
              "b",
              0, SPACE, B, SPACE, B);
    check_text(KVC_TEXT_TRIM, "b b");
    token[0] = id;
    n_token = 1;
    check_text(0, "b b");
}
END_TEST

/* ---------------------------------------------------------------- tests: special tokens */

START_TEST(ids_have_their_usual_places) {
    src.eom = O;
    must_create();
    ck_assert_int_eq(kvc__vocab_bos(vocab), BOS);
    ck_assert_int_eq(kvc__vocab_eos(vocab), EOS);
    ck_assert_int_eq(kvc__vocab_eot(vocab), -1);
    ck_assert(kvc__vocab_is_end(vocab, EOS) && !kvc__vocab_is_end(vocab, BOS));
    ck_assert(kvc__vocab_is_end(vocab, O));
    CHECK_IDS("a", KVC_TEXT_BOS | KVC_TEXT_EOS, BOS, SPACE_A);
}
END_TEST

START_TEST(what_the_file_says_of_ids_is_done) {
    src.bos = A;
    src.add_eos = 1;
    src.type[EOS] = NORMAL;
    must_create();
    ck_assert_int_eq(kvc__vocab_bos(vocab), A);
    ck_assert_int_eq(kvc__vocab_eos(vocab), -1);
    CHECK_IDS("b", KVC_TEXT_BOS | KVC_TEXT_EOS, A, SPACE, B);
    kvc__vocab_destroy(vocab);
    kvc__gguf_close(&gguf);
    bytes_free(&file);
    src.add_bos = 0;
    src.type[EOS] = CONTROL;
    must_create();
    CHECK_IDS("b", KVC_TEXT_BOS | KVC_TEXT_EOS, SPACE, B, EOS);
    CHECK_IDS("", KVC_TEXT_BOS | KVC_TEXT_EOS, EOS);
    check_ids("", KVC_TEXT_BOS, NULL, 0);
}
END_TEST

/* Neither by merging nor since the file calls it user-defined. */
START_TEST(plain_text_is_never_a_control_token) {
    add("<", NORMAL, -1);
    add(">", NORMAL, -1);
    add("s", NORMAL, -1);
    add("<s", NORMAL, -1);
    const int32_t end = add("<end_of_turn>", USER, 0);
    const int32_t user = add("abab", USER, 0);
    must_create();
    tokenize("<s> <end_of_turn> <0x0A> <unk>", 0);
    for (size_t i = 0; i < n_token; i++) {
        ck_assert(token[i] != BOS && token[i] != end && token[i] != UNK);
        ck_assert_int_ne(token[i], FIRST_BYTE + '\n');
    }
    CHECK_IDS("<end_of_turn>", KVC_TEXT_SPECIAL, end);
    ck_assert_int_eq(kvc__vocab_eot(vocab), end);
    ck_assert(kvc__vocab_is_end(vocab, end) && kvc__vocab_is_end(vocab, EOS));
    ck_assert(!kvc__vocab_is_end(vocab, -1) && !kvc__vocab_is_end(vocab, user));
    CHECK_IDS("ababab", 0, user, SPACE_A, B);
}
END_TEST

/* What the file names as an end is one for plain text too, though it calls it user-defined. What is
 * there by default still depends on the type. */
START_TEST(named_ids_are_control_tokens) {
    free(src.token[EOS]);
    src.token[EOS] = strdup("<eot>");
    src.type[EOS] = USER;
    src.eos = _i == 0 ? EOS : -1;
    src.eom = add("<eom>", USER, 0);
    src.bos = UNK;
    src.type[UNK] = USER;
    must_create();
    tokenize("x<eot>\nx<eom><unk>", 0);
    int n_eos = 0;
    for (size_t i = 0; i < n_token; i++) {
        ck_assert(token[i] != src.eom && token[i] != UNK);
        n_eos += token[i] == EOS;
    }
    ck_assert_int_eq(n_eos, _i);
    ck_assert_int_eq(kvc__vocab_eos(vocab), src.eos);
    ck_assert_int_eq(kvc__vocab_is_end(vocab, EOS), _i == 0);
    CHECK_IDS("<eom><unk>", KVC_TEXT_SPECIAL, (int32_t)src.eom, UNK);
}
END_TEST

/* As with merges: a space that tokenizing puts in doesn't make one, nor does U+2581. */
START_TEST(user_defined_tokens_are_cut_out_never_merged) {
    const int32_t user = add("\xe2\x96\x81"
                             "b",
                             USER, 0);
    must_create();
    CHECK_IDS("a b", 0, SPACE_A, user);
    CHECK_IDS("b", 0, SPACE, B);
    CHECK_IDS("a\xe2\x96\x81"
              "b",
              0, SPACE_A, SPACE, B);
}
END_TEST

/* ---------------------------------------------------------------- tests: damaged files */

static void replace(uint32_t i, const char *text) {
    free(src.token[i]);
    src.token[i] = strdup(text);
}

static void no_scores(void) {
    src.n_score = 0;
}
static void few_scores(void) {
    src.n_score--;
}
static void no_number(void) {
    src.score[7] = (float)(0.0 * HUGE_VAL);
}
static void no_types(void) {
    src.no_types = true;
}
static void no_hex(void) {
    replace(FIRST_BYTE + 9, "<0x0g>");
}
static void no_byte(void) {
    replace(FIRST_BYTE + 9, "<0x009>");
}
static void no_bracket(void) {
    replace(FIRST_BYTE + 9, "<0x09}");
}
static void other_begin(void) {
    replace(FIRST_BYTE + 9, "[0x09>");
}
static void long_token(void) {
    char text[1026];
    memset(text, 'q', 1025);
    text[1025] = 0;
    add(text, NORMAL, -1);
}
static void no_way_for_a_byte(void) {
    replace(FIRST_BYTE + 9, "<0x08>");
    src.type[UNK] = NORMAL;
}
static void charsmap(void) {
    src.charsmap = true;
}

static const struct damage {
    void (*make)(void);
    int32_t status;
    const char *says;
} damage[] = {
    {no_scores, KVC_E_FORMAT, "tokenizer.ggml.scores: missing, or not an array of 274 numbers"},
    {few_scores, KVC_E_FORMAT, "tokenizer.ggml.scores"},
    {no_number, KVC_E_FORMAT, "tokenizer.ggml.scores: token 7 has no number"},
    {no_types, KVC_E_FORMAT, "tokenizer.ggml.token_type: must be an array of 274 numbers"},
    {no_hex, KVC_E_FORMAT, "token 12 is of a byte, but"},
    {no_byte, KVC_E_FORMAT, "token 12 is of a byte, but"},
    {no_bracket, KVC_E_FORMAT, "token 12 is of a byte, but"},
    {other_begin, KVC_E_FORMAT, "token 12 is of a byte, but"},
    {long_token, KVC_E_FORMAT, "token 274 is longer than 1024 bytes"},
    {no_way_for_a_byte, KVC_E_FORMAT, "no token <0x09> and no tokenizer.ggml.unknown_token_id"},
    {charsmap, KVC_E_UNSUPPORTED, "tokenizer.ggml.precompiled_charsmap"},
};
#define N_DAMAGE ((int)(sizeof damage / sizeof *damage))

START_TEST(damaged_files_are_refused) {
    damage[_i].make();
    write_file();
    int32_t rc = kvc__vocab_create(&mem, &gguf, &vocab, &err);
    ck_assert_msg(rc == damage[_i].status, "%d: %s", rc, err.text);
    ck_assert_msg(strstr(err.text, damage[_i].says) != NULL, "%s", err.text);
    ck_assert_ptr_null(vocab);
}
END_TEST

static const char *const odd[] = {
    "tokenizer.ggml.scores",           "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",     "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",     "tokenizer.ggml.unknown_token_id",
    "tokenizer.ggml.add_bos_token",    "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.remove_extra_whitespaces",
};
#define N_ODD ((int)(sizeof odd / sizeof *odd))

START_TEST(keys_of_other_types_are_refused) {
    src.odd = odd[_i];
    src.n_score = _i == 0 ? 0 : src.n_score;
    write_file();
    ck_assert_int_eq(kvc__vocab_create(&mem, &gguf, &vocab, &err), KVC_E_FORMAT);
    ck_assert_msg(strstr(err.text, odd[_i]) != NULL, "%s", err.text);
}
END_TEST

START_TEST(scores_are_numbers) {
    write_file();
    for (uint64_t i = 0; i < gguf.n_kv; i++) {
        kvc__gguf_kv *kv = &gguf.kv[i];
        if (kv->key.n == 21 && memcmp(kv->key.p, "tokenizer.ggml.scores", 21) == 0) {
            kv->elem_type = KVC__GGUF_STRING;
        }
    }
    ck_assert_int_eq(kvc__vocab_create(&mem, &gguf, &vocab, &err), KVC_E_FORMAT);
    ck_assert_ptr_nonnull(strstr(err.text, "tokenizer.ggml.scores"));
}
END_TEST

START_TEST(odd_entries_are_tolerated) {
    replace(FIRST_BYTE + 10, "<0x0a>");
    replace(FIRST_BYTE + 11, "<0x0A>");
    replace(FIRST_BYTE + 0xff, "<0x00>");
    add("", NORMAL, -1);
    add("a", UNUSED, -1);
    src.score[AB] = -0.0f;
    src.score[BC] = 0.0f;
    must_create();
    CHECK_IDS("\n", 0, SPACE, FIRST_BYTE + 10);
    CHECK_IDS("cabc", 0, SPACE, C, AB, C);
}
END_TEST

/* ---------------------------------------------------------------- tests: memory, long texts */

static size_t allowed;

static void *few(void *ctx, void *p, size_t old_size, size_t new_size, size_t align) {
    void *q = NULL;
    (void)ctx, (void)old_size;
    if (new_size > 0 && (allowed-- == 0 || posix_memalign(&q, align, new_size) != 0)) {
        allowed = 0;
        return NULL;
    }
    free(p);
    return q;
}

START_TEST(without_memory_nothing_is_kept) {
    const kvc_allocator a = {.struct_size = sizeof a, .realloc = few};
    int32_t rc = KVC_E_NOMEM;
    size_t n = 0;
    add("<x>", USER, 0);
    write_file();
    for (; rc != KVC_OK; n++) {
        kvc__mem tight;
        kvc__mem_init(&tight, &a, NULL);
        allowed = n;
        rc = kvc__vocab_create(&tight, &gguf, &vocab, &err);
        if (rc == KVC_OK) {
            rc = kvc__vocab_tokenize(vocab, "a <x>", 5, 0, NULL, 0, &n_token, &err);
        }
        ck_assert_msg(rc == KVC_OK || rc == KVC_E_NOMEM, "%s", err.text);
        kvc__vocab_destroy(vocab);
        vocab = NULL;
        ck_assert_uint_eq(tight.used, 0);
    }
    ck_assert_uint_gt(n, 8);
}
END_TEST

/* Damage anywhere: a sentence, or a vocabulary that works. */
START_TEST(files_damaged_at_random_do_no_harm) {
    uint64_t state = 88172645463325252u;
    uint32_t n_made = 0;
    add("<end_of_turn>", USER, 0);
    write_file();
    kvc__gguf_close(&gguf);
    uint8_t *copy = malloc(file.n);
    ck_assert_ptr_nonnull(copy);
    for (int i = 0; i < 3000; i++) {
        memcpy(copy, file.p, file.n);
        mutate(copy + 24, file.n - 24, &state);
        err.text[0] = 0;
        int32_t rc = kvc__gguf_open(&mem, copy, file.n, &gguf, &err);
        rc = rc == KVC_OK ? kvc__vocab_create(&mem, &gguf, &vocab, &err) : rc;
        ck_assert(rc == KVC_OK || err.text[0] != 0);
        if (rc == KVC_OK) {
            n_made++;
            tokenize("hello <s> abc\n\xc3\xa9", KVC_TEXT_SPECIAL | KVC_TEXT_BOS);
            ck_assert_int_eq(
                kvc__vocab_detokenize(vocab, token, n_token, 0, NULL, 0, &n_token, &err), KVC_OK);
        }
        kvc__vocab_destroy(vocab);
        vocab = NULL;
        kvc__gguf_close(&gguf);
    }
    free(copy);
    ck_assert_uint_gt(n_made, 100);
    ck_assert_uint_lt(n_made, 2900);
}
END_TEST

#define LONG ((size_t)1 << 20)

static const char *const unit[] = {"a",  " ",  "\xe2\x96\x81", "z", "\xc3\xa9",
                                   " a", "a ", "aab",          "<"};
#define N_UNIT ((int)(sizeof unit / sizeof *unit))

/* Nothing is quadratic, though tokens of up to 1,000 bytes grow by one at each merge, and in every
 * second case words don't stand alone. */
START_TEST(long_text_in_time) {
    char run[1024] = "aa";
    char *text = malloc(LONG);
    ck_assert_ptr_nonnull(text);
    for (size_t n = 2; n < 1000; n++) {
        run[n - 1] = 'a';
        run[n] = 0;
        add(run, NORMAL, _i % 2 ? -(float)n : (float)n);
    }
    if (_i % 2) {
        add("a\xe2\x96\x81", NORMAL, -1);
    }
    must_create();
    const char *u = unit[_i / 2];
    const size_t len = strlen(u), n = LONG / len * len;
    for (size_t i = 0; i < n; i++) {
        text[i] = u[i % len];
    }
    clock_t begin = clock();
    int32_t rc = kvc__vocab_tokenize(vocab, text, n, KVC_TEXT_SPECIAL, NULL, 0, &n_token, &err);
    double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
    free(text);
    ck_assert_msg(rc == KVC_OK, "%s", err.text);
    ck_assert_uint_gt(n_token, 0);
    ck_assert_msg(seconds < 10, "'%s' takes %g seconds", u, seconds);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("spm");
    TCase *c = tcase_create("spm");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, the_highest_score_merges_first);
    tcase_add_test(c, of_equal_scores_the_left_merges_first);
    tcase_add_test(c, what_has_no_token_becomes_bytes);
    tcase_add_test(c, without_bytes_it_is_unknown_once_in_a_row);
    tcase_add_loop_test(c, a_space_is_put_in_where_the_file_wants_it, 0, 3);
    tcase_add_test(c, only_a_space_is_trimmed);
    tcase_add_test(c, extra_white_space_is_taken_out_on_request);
    tcase_add_test(c, tokens_across_words_are_found);
    tcase_add_test(c, spaces_are_those_of_the_file);
    tcase_add_test(c, ids_have_their_usual_places);
    tcase_add_test(c, what_the_file_says_of_ids_is_done);
    tcase_add_test(c, plain_text_is_never_a_control_token);
    tcase_add_loop_test(c, named_ids_are_control_tokens, 0, 2);
    tcase_add_test(c, user_defined_tokens_are_cut_out_never_merged);
    tcase_add_loop_test(c, damaged_files_are_refused, 0, N_DAMAGE);
    tcase_add_loop_test(c, keys_of_other_types_are_refused, 0, N_ODD);
    tcase_add_test(c, scores_are_numbers);
    tcase_add_test(c, odd_entries_are_tolerated);
    tcase_add_test(c, without_memory_nothing_is_kept);
    tcase_add_test(c, files_damaged_at_random_do_no_harm);
    every_add(c, long_text_in_time, 2 * N_UNIT, 4);
    suite_add_tcase(suite, c);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures != 0;
}
