/* SPDX-License-Identifier: MIT
 * test_tokenizers.c: every kind of tokenizer on difficult texts, against the ids of independent
 * implementations (tests/data/tokenizers.json, made by make_vocab.py); the way back too. */
#include "vocab_cases.h"

#include "gguf_bytes.h"

static kvc__mem mem;
static kvc__gguf gguf;
static kvc__vocab *vocab;
static kvc__err err;
static json_t *root; /* the file */
static json_t *spec; /* the vocabulary's object */

/* ---------------------------------------------------------------- a vocabulary's file */

static void put_text(bytes *b, const json_t *s) {
    put_u64(b, json_string_length(s));
    put(b, json_string_value(s), json_string_length(s));
}

static void put_texts(bytes *b, const char *key, const json_t *list) {
    put_array(b, key, KVC__GGUF_STRING, json_array_size(list));
    for (size_t i = 0; i < json_array_size(list); i++) {
        put_text(b, json_array_get(list, i));
    }
}

static void put_flag(bytes *b, const char *key, bool value) {
    put_key(b, key, KVC__GGUF_BOOL);
    put_number(b, KVC__GGUF_BOOL, value);
}

static void put_types(bytes *b) {
    const json_t *type = json_object_get(spec, "types");
    put_array(b, "tokenizer.ggml.token_type", KVC__GGUF_I32, json_array_size(type));
    for (size_t i = 0; i < json_array_size(type); i++) {
        put_u32(b, (uint32_t)json_integer_value(json_array_get(type, i)));
    }
}

static void put_scores(bytes *b) {
    const json_t *score = json_object_get(spec, "scores");
    put_array(b, "tokenizer.ggml.scores", KVC__GGUF_F32, json_array_size(score));
    for (size_t i = 0; i < json_array_size(score); i++) {
        put_number(b, KVC__GGUF_F32, json_number_value(json_array_get(score, i)));
    }
}

/* Opens spec as a byte-level vocabulary with that pre-tokenizer, or as one of SentencePiece. */
static void open_vocab(const char *pre) {
    bytes b = {0};
    put_header(&b, 3, 0, pre != NULL ? 5 : 7);
    put_texts(&b, "tokenizer.ggml.tokens", json_object_get(spec, "tokens"));
    put_types(&b);
    put_key(&b, "tokenizer.ggml.model", KVC__GGUF_STRING);
    put_str(&b, pre != NULL ? "gpt2" : "llama");
    if (pre != NULL) {
        put_key(&b, "tokenizer.ggml.pre", KVC__GGUF_STRING);
        put_str(&b, pre);
        put_texts(&b, "tokenizer.ggml.merges", json_object_get(spec, "merges"));
    } else {
        put_scores(&b);
        put_flag(&b, "tokenizer.ggml.add_space_prefix",
                 json_is_true(json_object_get(spec, "prefix")));
        put_flag(&b, "tokenizer.ggml.remove_extra_whitespaces",
                 json_is_true(json_object_get(spec, "collapse")));
        put_u32_kv(&b, "tokenizer.ggml.unknown_token_id", 0);
    }
    put_padding(&b, 32);
    ck_assert_msg(kvc__gguf_open(&mem, b.p, b.n, &gguf, &err) == KVC_OK, "%s", err.text);
    ck_assert_msg(kvc__vocab_create(&mem, &gguf, &vocab, &err) == KVC_OK, "%s", err.text);
    kvc__gguf_close(&gguf);
    bytes_free(&b);
}

static void setup(void) {
    kvc__mem_init(&mem, NULL, NULL);
    root = cases_load("tokenizers.json");
}

static void teardown(void) {
    kvc__vocab_destroy(vocab);
    vocab = NULL;
    json_decref(root);
    ck_assert_uint_eq(mem.used, 0);
}

/* ---------------------------------------------------------------- comparing */

#define MAX_TEXT 2048

static int32_t token[MAX_TEXT];
static char back[4 * MAX_TEXT];

static size_t tokenize(const json_t *text, uint32_t flags) {
    size_t n = 0;
    int32_t rc = kvc__vocab_tokenize(vocab, json_string_value(text), json_string_length(text),
                                     flags, token, MAX_TEXT, &n, &err);
    ck_assert_msg(rc == KVC_OK, "'%s': %s", json_string_value(text), err.text);
    ck_assert_uint_le(n, MAX_TEXT);
    return n;
}

static size_t detokenize(const int32_t *id, size_t n, uint32_t flags, char *to) {
    size_t n_text = 0;
    ck_assert_int_eq(kvc__vocab_detokenize(vocab, id, n, flags, to,
                                           (size_t)(back + sizeof back - to), &n_text, &err),
                     KVC_OK);
    return n_text;
}

/* Every text's tokens; how many texts differ is in the message of the first that does. */
static void check_all(const json_t *ids, uint32_t flags) {
    const json_t *text = json_object_get(root, "texts");
    char first[512] = "";
    size_t n_wrong = 0;
    ck_assert_uint_ge(json_array_size(text), 200);
    ck_assert_uint_eq(json_array_size(ids), json_array_size(text));
    for (size_t i = 0; i < json_array_size(text); i++) {
        const json_t *want = json_array_get(ids, i);
        const size_t n = tokenize(json_array_get(text, i), flags);
        size_t k = 0;
        while (k < n && k < json_array_size(want) &&
               token[k] == json_integer_value(json_array_get(want, k))) {
            k++;
        }
        if ((k < n || k < json_array_size(want)) && n_wrong++ == 0) {
            snprintf(first, sizeof first, "text %zu, '%.200s': %zu tokens for %zu, differs at %zu",
                     i, json_string_value(json_array_get(text, i)), n, json_array_size(want), k);
        }
    }
    ck_assert_msg(n_wrong == 0, "%zu texts differ; %s", n_wrong, first);
}

/* All at once and one by one, the same bytes. */
static void check_stream(size_t n, uint32_t flags) {
    static char whole[sizeof back];
    const size_t n_whole = detokenize(token, n, flags, back);
    memcpy(whole, back, n_whole);
    size_t at = 0;
    for (size_t i = 0; i < n; i++) {
        at += detokenize(token + i, 1, flags, back + at);
    }
    ck_assert_uint_eq(at, n_whole);
    ck_assert_int_eq(memcmp(back, whole, at), 0);
}

/* The text as it comes back: U+2581 has become a space where that is what it stands for. */
static size_t expected(const json_t *text, char *out) {
    const char *p = json_string_value(text);
    size_t n = 0;
    for (size_t i = 0; i < json_string_length(text); i++) {
        bool mark =
            json_object_get(spec, "scores") != NULL && strncmp(p + i, "\xe2\x96\x81", 3) == 0;
        out[n++] = mark ? ' ' : p[i];
        i += mark ? 2 : 0;
    }
    return n;
}

static void check_back(uint32_t flags) {
    static char want[sizeof back];
    const json_t *list = json_object_get(root, "texts");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *text = json_array_get(list, i);
        const size_t n = tokenize(text, flags);
        const size_t n_want = expected(text, want);
        const size_t n_back = detokenize(token, n, flags | KVC_TEXT_TRIM, back);
        ck_assert_msg(n_back == n_want && memcmp(back, want, n_back) == 0,
                      "'%s' comes back as '%.*s'", json_string_value(text), (int)n_back, back);
        check_stream(n, flags);
    }
}

/* ---------------------------------------------------------------- tests */

static const char *const pre[] = {"llama-bpe", "qwen2", "tekken", "default"};

START_TEST(byte_level_ids) {
    spec = json_object_get(root, "bpe");
    open_vocab(pre[_i]);
    check_all(json_object_get(json_object_get(spec, "ids"), pre[_i]), KVC_TEXT_SPECIAL);
    check_back(KVC_TEXT_SPECIAL);
    check_back(0);
}
END_TEST

/* Special tokens in text are tokens only in what the package tokenizers made. */
START_TEST(sentencepiece_ids) {
    spec = json_array_get(json_object_get(root, "spm"), (size_t)_i);
    const char *name = json_string_value(json_object_get(spec, "name"));
    const uint32_t flags = strcmp(name, "added") == 0 ? KVC_TEXT_SPECIAL : 0;
    open_vocab(NULL);
    check_all(json_object_get(spec, "ids"), flags);
    if (strcmp(name, "unknown") != 0) {
        check_back(KVC_TEXT_SPECIAL);
        check_back(0);
    }
}
END_TEST

int main(void) {
    Suite *suite = suite_create("tokenizers");
    TCase *c = tcase_create("tokenizers");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_loop_test(c, byte_level_ids, 0, 4);
    tcase_add_loop_test(c, sentencepiece_ids, 0, 5);
    suite_add_tcase(suite, c);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures != 0;
}
