/* SPDX-License-Identifier: MIT
 * vocab_cases.h: what the two programs that test the vocabulary share: JSON files of texts with
 * their expected tokens. */
#ifndef KVC_TEST_VOCAB_CASES_H
#define KVC_TEST_VOCAB_CASES_H

#include "vocab.h"

#include <check.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

/* A JSON file of tests/data; fails the test when it can't be read. */
static inline json_t *cases_load(const char *name) {
    const char *dir = getenv("KVC_TEST_DATA");
    char path[1024];
    json_error_t error;
    snprintf(path, sizeof path, "%s/%s", dir ? dir : "tests/data", name);
    json_t *root = json_load_file(path, JSON_ALLOW_NUL, &error);
    ck_assert_msg(root != NULL, "%s: %s", path, error.text);
    return root;
}

/* Tokenizes text, special tokens parsed, and compares with the ids expected. */
static inline void case_check(const kvc__vocab *v, const json_t *text, const json_t *ids) {
    kvc__err err = {""};
    size_t n = 0;
    size_t want = json_array_size(ids);
    int32_t *got = calloc(want + 1, sizeof *got);
    const char *s = json_string_value(text);
    ck_assert(got != NULL && s != NULL);
    int32_t rc =
        kvc__vocab_tokenize(v, s, json_string_length(text), KVC_TEXT_SPECIAL, got, want, &n, &err);
    ck_assert_msg(rc == KVC_OK, "'%s': %s", s, err.text);
    ck_assert_msg(n == want, "'%s': %zu tokens, expected %zu", s, n, want);
    for (size_t i = 0; i < n; i++) {
        json_int_t id = json_integer_value(json_array_get(ids, i));
        ck_assert_msg(got[i] == id, "'%s': token %zu is %d, expected %lld", s, i, got[i],
                      (long long)id);
    }
    free(got);
}

/* All cases of an array of objects; text and ids are found under these keys. */
static inline void cases_check(const kvc__vocab *v, const json_t *cases, const char *ids) {
    ck_assert_uint_gt(json_array_size(cases), 0);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *c = json_array_get(cases, i);
        case_check(v, json_object_get(c, "text"), json_object_get(c, ids));
    }
}

#endif
