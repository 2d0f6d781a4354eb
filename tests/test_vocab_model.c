/* SPDX-License-Identifier: MIT
 * test_vocab_model.c: the vocabulary of SmolLM2 against ids from Hugging Face's libraries. Needs
 * the model's file, named by KVC_TEST_MODEL; without it the program says so and returns 77. */
#include "vocab_cases.h"

#include "chat.h"

#include "os.h"

#include <string.h>

static kvc__mem mem;
static kvc__map map;
static kvc__gguf gguf;
static kvc__vocab *vocab;

/* Opens the model's vocabulary, under another pre-tokenizer when `pre` is given. */
static void open_vocab(const char *pre) {
    static uint8_t value[64];
    kvc__err err = {""};
    kvc__mem_init(&mem, NULL, NULL);
    ck_assert_msg(kvc__map_file(getenv("KVC_TEST_MODEL"), &map, &err) == KVC_OK, "%s", err.text);
    ck_assert_msg(kvc__gguf_open(&mem, map.data, map.size, &gguf, &err) == KVC_OK, "%s", err.text);
    for (uint64_t i = 0; pre && i < gguf.n_kv; i++) {
        kvc__gguf_kv *kv = &gguf.kv[i];
        if (kv->key.n == 18 && memcmp(kv->key.p, "tokenizer.ggml.pre", 18) == 0) {
            value[0] = (uint8_t)strlen(pre);
            memcpy(value + 8, pre, strlen(pre));
            kv->value = value;
            kv->bytes = 8 + strlen(pre);
        }
    }
    ck_assert_msg(kvc__vocab_create(&mem, &gguf, &vocab, &err) == KVC_OK, "%s", err.text);
}

static void close_vocab(void) {
    kvc__vocab_destroy(vocab);
    vocab = NULL;
    kvc__gguf_close(&gguf);
    kvc__unmap(&map);
    ck_assert_uint_eq(mem.used, 0);
}

START_TEST(test_special_ids) {
    open_vocab(NULL);
    ck_assert_uint_eq(kvc__vocab_size(vocab), 49152);
    ck_assert_int_eq(kvc__vocab_bos(vocab), 1);
    ck_assert_int_eq(kvc__vocab_eos(vocab), 2);
    ck_assert_int_eq(kvc__vocab_eot(vocab), 2);
    close_vocab();
}
END_TEST

START_TEST(test_reference) {
    json_t *root = cases_load("smollm2-reference.json");
    open_vocab(NULL);
    cases_check(vocab, json_object_get(root, "tokens"), "ids");
    cases_check(vocab, json_object_get(root, "logits"), "ids");
    close_vocab();
    json_decref(root);
}
END_TEST

START_TEST(test_difficult_texts) {
    static const char *const file[] = {"bpe-smollm.json", "bpe-gpt2.json"};
    json_t *root = cases_load(file[_i]);
    open_vocab(json_string_value(json_object_get(root, "pre")));
    cases_check(vocab, json_object_get(root, "cases"), "ids");
    close_vocab();
    json_decref(root);
}
END_TEST

/* The file's own template is the one that the chats were rendered by. */
static void check_chat(const kvc__chat *chat, const json_t *c) {
    const json_t *list = json_object_get(c, "messages");
    const char *text = json_string_value(json_object_get(c, "text"));
    kvc_chat_message m[8];
    int32_t got[1024], want[1024];
    size_t n_got = 0, n_want = 0;
    ck_assert_uint_le(json_array_size(list), 8);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *one = json_array_get(list, i), *content = json_array_get(one, 1);
        m[i] = (kvc_chat_message){json_string_value(json_array_get(one, 0)),
                                  json_string_value(content), json_string_length(content)};
    }
    const bool prompt = json_is_true(json_object_get(c, "prompt"));
    const kvc__chat_call call = {.message = m,
                                 .n = (uint32_t)json_array_size(list),
                                 .stride = sizeof *m,
                                 .flags = prompt ? KVC_CHAT_PROMPT : 0,
                                 .out = got,
                                 .cap = 1024,
                                 .n_out = &n_got};
    ck_assert_int_eq(kvc__chat_tokenize(chat, vocab, &mem, &call, NULL), KVC_OK);
    ck_assert_int_eq(
        kvc__vocab_tokenize(vocab, text, strlen(text), KVC_TEXT_SPECIAL, want, 1024, &n_want, NULL),
        KVC_OK);
    ck_assert_msg(n_got == n_want && memcmp(got, want, n_got * sizeof *got) == 0, "'%s'", text);
}

START_TEST(test_chats) {
    json_t *root = cases_load("chats.json");
    const json_t *model = json_array_get(root, 0);
    const json_t *chats = json_object_get(model, "chats");
    kvc__str template;
    kvc__chat chat;
    open_vocab(NULL);
    ck_assert_int_eq(kvc__gguf_str(&gguf, "tokenizer.chat_template", NULL, &template, NULL),
                     KVC_OK);
    const json_t *want = json_object_get(model, "template");
    ck_assert_uint_eq(template.n, json_string_length(want));
    ck_assert_int_eq(memcmp(template.p, json_string_value(want), template.n), 0);
    ck_assert_int_eq(kvc__chat_read(&mem, &gguf, &chat, NULL), KVC_OK);
    for (size_t i = 0; i < json_array_size(chats); i++) {
        check_chat(&chat, json_array_get(chats, i));
    }
    ck_assert(kvc__vocab_is_end(vocab, 2) && kvc__vocab_is_end(vocab, 0));
    ck_assert(!kvc__vocab_is_end(vocab, 1));
    kvc__chat_free(&mem, &chat);
    close_vocab();
    json_decref(root);
}
END_TEST

/* Every token but the special ones, on its own, gives back its bytes. */
START_TEST(test_every_token_detokenizes) {
    open_vocab(NULL);
    for (int32_t id = 0; id < 49152; id++) {
        char text[256];
        size_t n = 0;
        int32_t rc = kvc__vocab_detokenize(vocab, &id, 1, 0, text, sizeof text, &n, NULL);
        ck_assert_int_eq(rc, KVC_OK);
        ck_assert_msg(id < 17 ? n == 0 : n > 0 && n <= 81, "token %d has %zu bytes", id, n);
    }
    close_vocab();
}
END_TEST

int main(void) {
    if (!getenv("KVC_TEST_MODEL")) {
        printf("skipped: KVC_TEST_MODEL doesn't name SmolLM2-135M-Instruct.Q4_1.gguf\n");
        return 77;
    }
    Suite *suite = suite_create("vocab_model");
    TCase *c = tcase_create("model");
    tcase_add_test(c, test_special_ids);
    tcase_add_test(c, test_reference);
    tcase_add_loop_test(c, test_difficult_texts, 0, 2);
    tcase_add_test(c, test_chats);
    tcase_add_test(c, test_every_token_detokenizes);
    suite_add_tcase(suite, c);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failures = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failures != 0;
}
