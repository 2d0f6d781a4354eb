/* SPDX-License-Identifier: MIT
 * fuzz_spec.c: the text of a stack: parsing, values against a table that has every type of
 * parameter, and opening a session with policies linked in. What is formatted must parse back to
 * the same values. The first byte chooses between the parser and a session. */
#include "fuzz.h"
#include "spec.h"
#include "tiny.h"

#include <float.h>

static const char *const colours[] = {"red", "green", "blue", NULL};
#define ROW(kind, word) .struct_size = sizeof(kvc_param), .type = KVC_PARAM_##kind, .name = (word)

static const kvc_param rows[] = {
    {ROW(INT, "size"), .def.i = 7, .min.i = -100, .max.i = 1 << 20},
    {ROW(INT, "wide"), .def.i = 0, .min.i = INT64_MIN, .max.i = INT64_MAX},
    {ROW(FLOAT, "rate"), .def.f = 0.5, .min.f = -DBL_MAX, .max.f = DBL_MAX},
    {ROW(BOOL, "on"), .def.i = 1},
    {ROW(ENUM, "colour"), .choice = colours, .def.i = 1},
    {ROW(SIZE, "bytes"), .def.i = 4096, .min.i = 0, .max.i = INT64_MAX},
    {ROW(STRING, "text"), .def.s = "some"},
    {ROW(BUDGET, "budget"), .def.i = KVC_BUDGET_PERCENT(25)},
};
#define N_ROW (sizeof rows / sizeof *rows)

static const kvc_policy policy = {.struct_size = sizeof policy,
                                  .n_param = N_ROW,
                                  .param_stride = sizeof rows[0],
                                  .name = "fuzzed",
                                  .param = rows};

/* The formatted text of a stage's values; NULL when they aren't the policy's. The caller's. */
static char *formatted(const kvc__spec_stage *stage, kvc_value *value) {
    kvc__err err = {""};
    int32_t rc = kvc__spec_values(stage, &policy, value, &err);
    fuzz_check(rc == KVC_OK || err.text[0] != '\0', "a failure has a sentence", stage->word);
    if (rc < 0) {
        return NULL;
    }
    const size_t n = kvc__spec_format(&policy, value, NULL, 0) + 1;
    char *text = malloc(n);
    fuzz_check(text != NULL && kvc__spec_format(&policy, value, text, n) + 1 == n,
               "the length is that of the text", stage->word);
    return text;
}

static bool same_value(const kvc_param *row, kvc_value a, kvc_value b) {
    if (row->type == KVC_PARAM_STRING) {
        return strcmp(a.s, b.s) == 0;
    }
    return row->type == KVC_PARAM_FLOAT ? memcmp(&a.f, &b.f, sizeof a.f) == 0 : a.i == b.i;
}

/* What is formatted parses to the same values. */
static void check_again(kvc__mem *mem, const char *text, const kvc_value *value) {
    kvc__spec again = {0};
    kvc_value same[N_ROW];
    kvc__err err = {""};
    int32_t rc = kvc__spec_parse(mem, text, &again, &err);
    fuzz_check(rc == KVC_OK && again.n_stage == 1, "formatted text parses", text);
    rc = kvc__spec_values(&again.stage[0], &policy, same, &err);
    fuzz_check(rc == KVC_OK, "formatted values are allowed", text);
    for (size_t i = 0; i < N_ROW; i++) {
        fuzz_check(same_value(&rows[i], value[i], same[i]), "values come back", text);
    }
    kvc__spec_free(&again);
}

static void parse(const char *text) {
    kvc__mem mem;
    kvc__spec spec = {0};
    kvc__err err = {""};
    kvc__mem_init(&mem, NULL, NULL);
    int32_t rc = kvc__spec_parse(&mem, text, &spec, &err);
    fuzz_check(rc == KVC_OK || err.text[0] != '\0', "a failure has a sentence", text);
    for (uint32_t i = 0; rc == KVC_OK && i < spec.n_stage; i++) {
        kvc_value value[N_ROW];
        char *again = formatted(&spec.stage[i], value);
        if (again != NULL) {
            check_again(&mem, again, value);
        }
        free(again);
    }
    kvc__spec_free(&spec);
    fuzz_check(mem.used == 0, "all memory is given back", text);
}

static void open_session(const char *text) {
    kvc_params *p = tiny_params();
    kvc_session *s = NULL, *again = NULL;
    fuzz_check(kvc_params_set_i64(p, "n_ctx", 64) == KVC_OK, "n_ctx is set", "");
    int32_t rc = kvc_session_open(tiny_model(8), text, p, &s);
    fuzz_check(rc == KVC_OK || kvc_params_error(p)[0] != '\0', "a failure has a sentence", text);
    if (rc == KVC_OK) {
        rc = kvc_session_open(tiny_model(8), kvc_session_spec(s), p, &again);
        fuzz_check(rc == KVC_OK, "a session's own spec opens", kvc_session_spec(s));
        fuzz_check(strcmp(kvc_session_spec(s), kvc_session_spec(again)) == 0,
                   "a session's spec is its own spec", kvc_session_spec(s));
    }
    kvc_session_close(s);
    kvc_session_close(again);
    kvc_params_destroy(p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input in = {data, size};
    const bool session = (fuzz_u8(&in) & 1) != 0;
    char *text = malloc(in.n + 1);
    if (text != NULL) {
        memcpy(text, in.n > 0 ? (const void *)in.p : "", in.n);
        text[in.n] = '\0';
        /* A word with a slash is a file to be loaded and run: not ours to try. */
        if (session && strchr(text, '/') == NULL) {
            open_session(text);
        } else {
            parse(text);
        }
    }
    free(text);
    return 0;
}
