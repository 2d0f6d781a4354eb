/* SPDX-License-Identifier: MIT
 * test_pretok.c: pre-tokenizers where PCRE2 doesn't do what it should: no just-in-time compiler, no
 * Unicode, no memory, limits that are reached. Its calls are replaced by wrappers (the linker's
 * --wrap) that fail when told to. What pieces there are is a test of test_vocab.c. */
#include "pretok.h"

#include <check.h>
#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* ---------------------------------------------------------------- PCRE2 that fails */

static struct {
    bool no_jit;     /* patterns can't be compiled to machine code */
    int no_compile;  /* the error of pcre2_compile(), 0: none */
    int match;       /* the error of pcre2_match(), 0: none */
    int match_after; /* calls of it that pass before */
    bool once;       /* one call fails, not all that follow */
    bool hit;        /* one has failed */
    int n_no_jit;    /* calls that asked for the interpreter */
} fault;

pcre2_code *__real_pcre2_compile_8(PCRE2_SPTR pattern, PCRE2_SIZE n, uint32_t options, int *code,
                                   PCRE2_SIZE *at, pcre2_compile_context *cc);
pcre2_code *__wrap_pcre2_compile_8(PCRE2_SPTR pattern, PCRE2_SIZE n, uint32_t options, int *code,
                                   PCRE2_SIZE *at, pcre2_compile_context *cc);
pcre2_code *__wrap_pcre2_compile_8(PCRE2_SPTR pattern, PCRE2_SIZE n, uint32_t options, int *code,
                                   PCRE2_SIZE *at, pcre2_compile_context *cc) {
    if (fault.no_compile != 0) {
        *code = fault.no_compile;
        *at = 7;
        return NULL;
    }
    return __real_pcre2_compile_8(pattern, n, options, code, at, cc);
}

int __real_pcre2_jit_compile_8(pcre2_code *code, uint32_t options);
int __wrap_pcre2_jit_compile_8(pcre2_code *code, uint32_t options);
int __wrap_pcre2_jit_compile_8(pcre2_code *code, uint32_t options) {
    return fault.no_jit ? PCRE2_ERROR_NOMEMORY : __real_pcre2_jit_compile_8(code, options);
}

int __real_pcre2_match_8(const pcre2_code *code, PCRE2_SPTR text, PCRE2_SIZE n, PCRE2_SIZE at,
                         uint32_t options, pcre2_match_data *data, pcre2_match_context *limits);
int __wrap_pcre2_match_8(const pcre2_code *code, PCRE2_SPTR text, PCRE2_SIZE n, PCRE2_SIZE at,
                         uint32_t options, pcre2_match_data *data, pcre2_match_context *limits);
int __wrap_pcre2_match_8(const pcre2_code *code, PCRE2_SPTR text, PCRE2_SIZE n, PCRE2_SIZE at,
                         uint32_t options, pcre2_match_data *data, pcre2_match_context *limits) {
    fault.n_no_jit += (options & PCRE2_NO_JIT) != 0;
    if (fault.match != 0 && fault.match_after-- <= 0) {
        const int code_of = fault.match;
        fault.match = fault.once ? 0 : fault.match;
        fault.hit = true;
        return code_of;
    }
    return __real_pcre2_match_8(code, text, n, at, options, data, limits);
}

/* ---------------------------------------------------------------- memory that fails */

static size_t allowed;

static void *few(void *ctx, void *p, size_t old_size, size_t new_size, size_t align) {
    (void)ctx, (void)old_size;
    void *q = NULL;
    if (new_size > 0 && (allowed-- == 0 || posix_memalign(&q, align, new_size) != 0)) {
        allowed = 0;
        return NULL;
    }
    free(p);
    return q;
}

static kvc__mem mem;
static kvc__err err;
static kvc__pretok *pretok;
static kvc__pretok_work *work;

static void setup(void) {
    const kvc_allocator a = {.struct_size = sizeof a, .realloc = few};
    memset(&fault, 0, sizeof fault);
    allowed = SIZE_MAX;
    kvc__mem_init(&mem, &a, NULL);
    memset(&err, 0, sizeof err);
}

/* Every test ends with nothing held. */
static void teardown(void) {
    if (pretok != NULL) {
        kvc__pretok_work_destroy(pretok, work);
        kvc__pretok_destroy(pretok);
    }
    ck_assert_uint_eq(atomic_load(&mem.used), 0);
}

static int32_t create(const char *name) {
    return kvc__pretok_create(&mem, (kvc__str){name, strlen(name)}, &pretok, &err);
}

static void must_create(const char *name) {
    ck_assert_msg(create(name) == KVC_OK, "%s", err.text);
    ck_assert_msg(kvc__pretok_work_create(pretok, &work, &err) == KVC_OK, "%s", err.text);
}

/* ---------------------------------------------------------------- pieces */

static const char text[] = "It's  1234 caf\xc3\xa9s,\n\n  don't!";
static const char pieces[] = "It|'s|  |1|2|3|4| caf\xc3\xa9s|,|\n\n | don|'t|!|";

static struct {
    char all[256];
    size_t n;
    int left; /* pieces until one is refused; negative: none is */
} got;

static int32_t keep(void *ctx, const uint8_t *piece, size_t n) {
    (void)ctx;
    if (got.left-- == 0) {
        return KVC_E_CANCELLED;
    }
    ck_assert_uint_gt(n, 0);
    ck_assert_uint_lt(got.n + n + 1, sizeof got.all);
    memcpy(got.all + got.n, piece, n);
    got.n += n;
    got.all[got.n++] = '|';
    got.all[got.n] = 0;
    return KVC_OK;
}

static int32_t split(int left) {
    memset(&got, 0, sizeof got);
    got.left = left;
    return kvc__pretok_split(pretok, work, (const uint8_t *)text, strlen(text), keep, NULL, &err);
}

static void must_split(void) {
    ck_assert_msg(split(-1) == KVC_OK, "%s", err.text);
    ck_assert_str_eq(got.all, pieces);
}

START_TEST(without_machine_code_the_pieces_are_the_same) {
    must_create("smollm");
    must_split();
    kvc__pretok_work_destroy(pretok, work);
    kvc__pretok_destroy(pretok);
    fault.no_jit = true;
    must_create("smollm");
    must_split();
    must_split();
}
END_TEST

/* What machine code has no stack for is matched by the interpreter. */
START_TEST(a_full_stack_is_no_failure) {
    int n = 0;
    must_create("smollm");
    for (fault.hit = true; fault.hit; n++) {
        memset(&fault, 0, sizeof fault);
        fault.match = PCRE2_ERROR_JIT_STACKLIMIT;
        fault.match_after = n;
        fault.once = true;
        must_split();
        ck_assert_int_eq(fault.n_no_jit, fault.hit);
    }
    ck_assert_int_gt(n, 10);
}
END_TEST

START_TEST(limits_have_a_status_and_a_sentence) {
    must_create("smollm");
    for (int n = 0;; n++) {
        memset(&fault, 0, sizeof fault);
        fault.match = PCRE2_ERROR_MATCHLIMIT;
        fault.match_after = n;
        const int32_t rc = split(-1);
        if (!fault.hit) {
            ck_assert_int_eq(rc, KVC_OK);
            ck_assert_int_gt(n, 10);
            break;
        }
        ck_assert_int_eq(rc, KVC_E_UNSUPPORTED);
        ck_assert_ptr_nonnull(strstr(err.text, "the pre-tokenizer gave up on text of "));
        ck_assert_ptr_nonnull(strstr(err.text, "(PCRE2 error -47); give it in shorter parts"));
    }
    memset(&fault, 0, sizeof fault);
    must_split();
}
END_TEST

/* The interpreter takes its frames from the heap. */
START_TEST(splitting_without_memory_says_so) {
    fault.no_jit = true;
    must_create("gpt-2");
    allowed = 0;
    ck_assert_int_eq(split(-1), KVC_E_NOMEM);
    ck_assert_str_eq(err.text, "no memory to split text");
    allowed = SIZE_MAX;
    ck_assert_int_eq(split(-1), KVC_OK);
}
END_TEST

START_TEST(who_takes_the_pieces_can_stop) {
    must_create("smollm");
    int n = 0;
    while (split(n) != KVC_OK) {
        ck_assert_int_eq(split(n), KVC_E_CANCELLED);
        const char *end = pieces;
        for (int i = 0; i < n; i++) {
            end = strchr(end, '|') + 1;
        }
        ck_assert_uint_eq(got.n, (size_t)(end - pieces));
        n++;
    }
    ck_assert_int_eq(n, 13);
}
END_TEST

/* ---------------------------------------------------------------- creating */

START_TEST(pcre2_without_unicode_is_refused) {
    fault.no_compile = PCRE2_ERROR_UNICODE_NOT_SUPPORTED;
    ck_assert_int_eq(create("gpt-2"), KVC_E_UNSUPPORTED);
    ck_assert_str_eq(err.text, "PCRE2 error 132 at byte 7 of a pre-tokenizer's pattern; it must be "
                               "built with Unicode support");
    ck_assert_ptr_null(pretok);
}
END_TEST

START_TEST(unknown_names_list_the_known_ones) {
    ck_assert_int_eq(create("qwen3"), KVC_E_UNSUPPORTED);
    ck_assert_str_eq(err.text, "tokenizer.ggml.pre 'qwen3' is not supported; use a model with one "
                               "of 'gpt-2', 'phi-2', 'smollm', 'llama-bpe', 'llama3', 'llama-v3', "
                               "'smaug-bpe', 'qwen2', 'deepseek-r1-qwen', 'tekken', 'default'");
    ck_assert_int_eq(
        create("a-name-of-more-than-sixty-four-bytes-is-cut-to-so-many-in-the-sentence"),
        KVC_E_UNSUPPORTED);
    ck_assert_ptr_nonnull(
        strstr(err.text, "'a-name-of-more-than-sixty-four-bytes-is-cut-to-so-many-in-the-se' "));
    ck_assert_int_eq(create("gpt-3"), KVC_E_UNSUPPORTED);
    ck_assert_int_eq(create(""), KVC_E_UNSUPPORTED);
}
END_TEST

START_TEST(without_memory_nothing_is_made) {
    int32_t rc = KVC_E_NOMEM;
    size_t n = 0;
    for (; rc != KVC_OK; n++) {
        allowed = n;
        rc = create("smollm");
        if (rc == KVC_OK) {
            rc = kvc__pretok_work_create(pretok, &work, &err);
            allowed = SIZE_MAX;
            ck_assert(rc == KVC_OK || work == NULL);
        }
        if (rc != KVC_OK) {
            ck_assert_int_eq(rc, KVC_E_NOMEM);
            ck_assert_str_ne(err.text, "");
            kvc__pretok_destroy(pretok);
            pretok = NULL;
            ck_assert_uint_eq(atomic_load(&mem.used), 0);
        }
    }
    ck_assert_uint_gt(n, 5);
    must_split();
}
END_TEST

START_TEST(nothing_can_be_destroyed) {
    must_create("gpt-2");
    kvc__pretok_work_destroy(pretok, NULL);
    kvc__pretok_destroy(NULL);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("pretok");
    TCase *c = tcase_create("pretok");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, without_machine_code_the_pieces_are_the_same);
    tcase_add_test(c, a_full_stack_is_no_failure);
    tcase_add_test(c, limits_have_a_status_and_a_sentence);
    tcase_add_test(c, splitting_without_memory_says_so);
    tcase_add_test(c, who_takes_the_pieces_can_stop);
    tcase_add_test(c, pcre2_without_unicode_is_refused);
    tcase_add_test(c, unknown_names_list_the_known_ones);
    tcase_add_test(c, without_memory_nothing_is_made);
    tcase_add_test(c, nothing_can_be_destroyed);
    suite_add_tcase(suite, c);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
