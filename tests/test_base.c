/* SPDX-License-Identifier: MIT
 * test_base.c: status.c, err.c, mem.c and os.c: names of codes, sentences, counted memory and its
 * failures, checked sums, maps and reserved space. */
#include "err.h"
#include "mem.h"
#include "os.h"

#include <check.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---------------------------------------------------------------- status */

static const struct {
    const char *name;
    int32_t number;
    const char *text;
} statuses[] = {
#define STATUS_ROW(name, number, text) {"KVC_" #name, number, text},
    KVC_STATUS_LIST(STATUS_ROW)
#undef STATUS_ROW
};
enum { N_STATUS = sizeof(statuses) / sizeof(statuses[0]) };

START_TEST(every_status_has_its_name_and_text) {
    for (size_t i = 0; i < N_STATUS; i++) {
        ck_assert_str_eq(kvc_status_name(statuses[i].number), statuses[i].name);
        ck_assert_str_eq(kvc_status_text(statuses[i].number), statuses[i].text);
        ck_assert_uint_gt(strlen(statuses[i].text), 0);
    }
}
END_TEST

START_TEST(status_numbers_are_unique_and_not_positive) {
    for (size_t i = 0; i < N_STATUS; i++) {
        ck_assert_int_le(statuses[i].number, 0);
        for (size_t j = 0; j < i; j++) {
            ck_assert_int_ne(statuses[i].number, statuses[j].number);
            ck_assert_str_ne(statuses[i].text, statuses[j].text);
        }
    }
}
END_TEST

START_TEST(an_unknown_status_has_a_name_too) {
    static const int32_t unknown[] = {1, -31, -1000, INT32_MAX, INT32_MIN};
    for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++) {
        ck_assert_str_eq(kvc_status_name(unknown[i]), "KVC_E_?");
        ck_assert_str_eq(kvc_status_text(unknown[i]), "unknown status");
    }
}
END_TEST

START_TEST(the_version_is_the_headers) {
    char text[32];
    snprintf(text, sizeof(text), "%d.%d.%d", KVC_VERSION_MAJOR, KVC_VERSION_MINOR,
             KVC_VERSION_PATCH);
    ck_assert_str_eq(kvc_version(), text);
    ck_assert_str_eq(kvc_version(), KVC_VERSION_STRING);
}
END_TEST

START_TEST(the_cpu_level_is_a_known_one) {
    const char *level = kvc_cpu_level();
    ck_assert(strcmp(level, "scalar") == 0 || strcmp(level, "avx2") == 0 ||
              strcmp(level, "avx512") == 0);
}
END_TEST

/* ---------------------------------------------------------------- sentences */

START_TEST(fail_writes_the_sentence_and_answers_the_code) {
    kvc__err err = {.text = "old"};
    ck_assert_int_eq(kvc__fail(&err, KVC_E_IO, "file %s, byte %d", "a.gguf", 7), KVC_E_IO);
    ck_assert_str_eq(err.text, "file a.gguf, byte 7");
    ck_assert_int_eq(kvc__fail(NULL, KVC_E_FULL, "nobody reads %s", "this"), KVC_E_FULL);
}
END_TEST

START_TEST(fail_may_quote_the_present_sentence) {
    kvc__err err;
    kvc__fail(&err, KVC_E_IO, "inner");
    kvc__fail(&err, KVC_E_POLICY, "outer: %s", err.text);
    ck_assert_str_eq(err.text, "outer: inner");
}
END_TEST

/* A two-byte character at each place around the limit: it is there as a whole or not at all. */
START_TEST(fail_cuts_long_text_between_characters) {
    char text[1200];
    kvc__err err;
    size_t cap = sizeof(err.text) - 1;
    for (size_t at = cap - 4; at < cap + 2; at++) {
        memset(text, 'x', sizeof(text));
        text[sizeof(text) - 1] = '\0';
        memcpy(text + at, "\xC3\xA9", 2);
        kvc__fail(&err, KVC_E_IO, "%s", text);
        size_t want = at + 1 == cap ? at : cap;
        ck_assert_uint_eq(strlen(err.text), want);
        ck_assert_int_eq(memcmp(err.text, text, want), 0);
    }
    memset(text, 'x', cap);
    text[cap] = '\0';
    kvc__fail(&err, KVC_E_IO, "%s", text);
    ck_assert_str_eq(err.text, text);
}
END_TEST

START_TEST(fail_survives_what_is_not_utf8) {
    char text[1200];
    kvc__err err;
    memset(text, 0x80, sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    kvc__fail(&err, KVC_E_IO, "%s", text);
    ck_assert_uint_ge(strlen(err.text), sizeof(err.text) - 4);
}
END_TEST

START_TEST(fail_lets_nothing_but_text_through) {
    static const char *const text[][2] = {
        {"plain", "plain"},
        {"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"},
        {"a\x80z", "a?z"},
        {"a\xff\xfez", "a??z"},
        {"a\xc2\x9bz", "a??z"}, /* U+009B, which begins escape sequences */
        {"a\xc2\xa0z", "a\xc2\xa0z"},
        {"\xc0\xaf", "??"}, /* '/', over-long */
        {"\xe0\x80\xaf", "???"},
        {"\xed\xa0\x80", "???"},      /* half of a pair */
        {"\xf4\x90\x80\x80", "????"}, /* beyond U+10FFFF */
        {"\xe2\x82", "??"},           /* cut off */
        {"\xe2\x82z", "??z"},
    };
    for (size_t i = 0; i < sizeof text / sizeof *text; i++) {
        kvc__err err;
        ck_assert_int_eq(kvc__fail(&err, KVC_E_IO, "%s", text[i][0]), KVC_E_IO);
        ck_assert_str_eq(err.text, text[i][1]);
    }
}
END_TEST

START_TEST(fail_lets_no_control_characters_through) {
    kvc__err err;
    kvc__fail(&err, KVC_E_FORMAT, "%s", "a\x1B[2Jb\nc\x7F");
    ck_assert_str_eq(err.text, "a?[2Jb?c?");
}
END_TEST

/* ---------------------------------------------------------------- memory */

static size_t used(kvc__mem *m) {
    return atomic_load(&m->used);
}

static size_t peak(kvc__mem *m) {
    return atomic_load(&m->peak);
}

static int is_zero(const unsigned char *p, size_t n) {
    for (size_t i = 0; i < n; i++) {
        if (p[i] != 0) {
            return 0;
        }
    }
    return 1;
}

START_TEST(memory_is_zeroed_aligned_and_counted) {
    static const size_t sizes[] = {1, 63, 64, 65, 4096, 100000};
    kvc__mem m;
    kvc__mem_init(&m, NULL, NULL);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        unsigned char *p = kvc__alloc(&m, sizes[i]);
        ck_assert_ptr_nonnull(p);
        ck_assert_uint_eq((uintptr_t)p % 64, 0);
        ck_assert(is_zero(p, sizes[i]));
        ck_assert_uint_eq(used(&m), sizes[i]);
        ck_assert_uint_eq(peak(&m), sizes[i]);
        memset(p, 0xFF, sizes[i]);
        kvc__free(&m, p, sizes[i]);
        ck_assert_uint_eq(used(&m), 0);
    }
}
END_TEST

START_TEST(nothing_and_too_much_give_null) {
    kvc__mem m;
    kvc__mem_init(&m, NULL, NULL);
    ck_assert_ptr_null(kvc__alloc(&m, 0));
    ck_assert_ptr_null(kvc__alloc_n(&m, 0, 8));
    ck_assert_ptr_null(kvc__alloc_n(&m, SIZE_MAX / 2, 3));
    ck_assert_ptr_null(kvc__alloc(&m, SIZE_MAX));
    ck_assert_ptr_null(kvc__strndup(&m, "", SIZE_MAX));
    ck_assert_ptr_null(kvc__realloc(&m, NULL, 0, 64, 8192));
    ck_assert_ptr_null(kvc__realloc(&m, NULL, 0, 64, 96));
    ck_assert_ptr_null(kvc__realloc(&m, NULL, 0, 0, 64));
    kvc__free(&m, NULL, 100);
    ck_assert_uint_eq(used(&m), 0);
    ck_assert_uint_eq(peak(&m), 0);
}
END_TEST

START_TEST(realloc_keeps_bytes_and_alignment_and_zeroes_the_new) {
    static const size_t aligns[] = {1, 8, 64, 256, 4096};
    kvc__mem m;
    kvc__mem_init(&m, NULL, NULL);
    for (size_t i = 0; i < sizeof(aligns) / sizeof(aligns[0]); i++) {
        unsigned char *p = kvc__realloc(&m, NULL, 0, 100, aligns[i]);
        ck_assert_ptr_nonnull(p);
        memset(p, 0xAB, 100);
        p = kvc__realloc(&m, p, 100, 5000, aligns[i]);
        ck_assert_ptr_nonnull(p);
        ck_assert_uint_eq((uintptr_t)p % (aligns[i] < 64 ? 64 : aligns[i]), 0);
        ck_assert(p[0] == 0xAB && p[99] == 0xAB && is_zero(p + 100, 4900));
        ck_assert_uint_eq(used(&m), 5000);
        p = kvc__realloc(&m, p, 5000, 50, aligns[i]);
        ck_assert_ptr_nonnull(p);
        ck_assert(p[0] == 0xAB && p[49] == 0xAB);
        ck_assert_uint_eq((uintptr_t)p % (aligns[i] < 64 ? 64 : aligns[i]), 0);
        ck_assert_uint_eq(used(&m), 50);
        ck_assert_ptr_null(kvc__realloc(&m, p, 50, 0, aligns[i]));
        ck_assert_uint_eq(used(&m), 0);
    }
    ck_assert_uint_eq(peak(&m), 5000);
}
END_TEST

START_TEST(strndup_copies_a_part) {
    kvc__mem m;
    kvc__mem_init(&m, NULL, NULL);
    char *copy = kvc__strndup(&m, "window+quant8", 6);
    ck_assert_str_eq(copy, "window");
    ck_assert_uint_eq(used(&m), 7);
    kvc__free(&m, copy, 7);
    copy = kvc__strndup(&m, NULL, 0);
    ck_assert_str_eq(copy, "");
    kvc__free(&m, copy, 1);
    ck_assert_uint_eq(used(&m), 0);
}
END_TEST

START_TEST(a_child_counts_for_its_parents) {
    kvc__mem top, left, right;
    kvc__mem_init(&top, NULL, NULL);
    kvc__mem_init(&left, NULL, &top);
    kvc__mem_init(&right, NULL, &top);
    void *a = kvc__alloc(&left, 100);
    void *b = kvc__alloc(&right, 50);
    ck_assert_uint_eq(used(&left), 100);
    ck_assert_uint_eq(used(&right), 50);
    ck_assert_uint_eq(used(&top), 150);
    kvc__free(&left, a, 100);
    ck_assert_uint_eq(used(&top), 50);
    kvc__free(&right, b, 50);
    ck_assert_uint_eq(used(&top), 0);
    ck_assert_uint_eq(peak(&top), 150);
    ck_assert_uint_eq(peak(&left), 100);
}
END_TEST

/* An allocator of the caller's: fills new bytes with rubbish, keeps its own sum and fails once
 * `fail_at` calls that ask for memory have been made. */
typedef struct fake {
    size_t held;
    int n_call;
    int fail_at;
    int n_bad; /* calls with an align or an old_size that can't be */
} fake;

static void *fake_realloc(void *ctx, void *p, size_t old_size, size_t new_size, size_t align) {
    fake *f = ctx;
    f->n_bad += align == 0 || align > 4096 || (align & (align - 1)) != 0 || (!p && old_size != 0);
    if (new_size == 0) {
        free(p);
        f->held -= old_size;
        return NULL;
    }
    if (++f->n_call == f->fail_at) {
        return NULL;
    }
    void *q = NULL;
    if (posix_memalign(&q, align, new_size) != 0) {
        return NULL;
    }
    memset(q, 0xEE, new_size);
    if (p) {
        memcpy(q, p, old_size < new_size ? old_size : new_size);
        free(p);
    }
    f->held += new_size - old_size;
    return q;
}

static kvc_allocator fake_allocator(fake *f) {
    return (kvc_allocator){.struct_size = sizeof(kvc_allocator), .ctx = f, .realloc = fake_realloc};
}

START_TEST(a_callers_allocator_is_used_and_its_bytes_zeroed) {
    fake f = {0};
    kvc_allocator a = fake_allocator(&f);
    kvc__mem m;
    kvc__mem_init(&m, &a, NULL);
    unsigned char *p = kvc__alloc_n(&m, 10, 30);
    ck_assert_uint_eq(f.held, 300);
    ck_assert(is_zero(p, 300));
    p[299] = 1;
    p = kvc__realloc(&m, p, 300, 600, 64);
    ck_assert(p[299] == 1 && is_zero(p + 300, 300));
    ck_assert_uint_eq(f.held, used(&m));
    kvc__free(&m, p, 600);
    ck_assert_uint_eq(f.held, 0);
    ck_assert_uint_eq(used(&m), 0);
    ck_assert_int_eq(f.n_bad, 0);
}
END_TEST

/* The Nth call fails: NULL comes back, what was held is whole, the counts agree. */
START_TEST(a_failing_allocator_leaves_the_counts_right) {
    fake f = {.fail_at = _i};
    kvc_allocator a = fake_allocator(&f);
    kvc__mem up, m;
    kvc__mem_init(&up, NULL, NULL);
    kvc__mem_init(&m, &a, &up);
    size_t size = 0;
    unsigned char *p = NULL;
    for (size_t want = 64; want <= 256; want += 64) {
        unsigned char *q = kvc__realloc(&m, p, size, want, 64);
        ck_assert_int_eq(q == NULL, f.n_call == f.fail_at);
        if (q) {
            p = q;
            memset(p, 0x5A, want);
            size = want;
        }
        ck_assert(size == 0 || (p[0] == 0x5A && p[size - 1] == 0x5A));
        ck_assert_uint_eq(used(&m), size);
        ck_assert_uint_eq(used(&up), size);
        ck_assert_uint_eq(f.held, size);
    }
    kvc__free(&m, p, size);
    ck_assert_uint_eq(used(&up), 0);
    ck_assert_uint_eq(f.held, 0);
}
END_TEST

START_TEST(checked_sums_refuse_overflow) {
    size_t out = 7;
    ck_assert(kvc__mul_size(6, 7, &out) && out == 42);
    ck_assert(kvc__mul_size(0, SIZE_MAX, &out) && out == 0);
    ck_assert(kvc__mul_size(SIZE_MAX, 1, &out) && out == SIZE_MAX);
    out = 7;
    ck_assert(!kvc__mul_size(SIZE_MAX / 2 + 1, 2, &out));
    ck_assert(!kvc__mul_size(2, SIZE_MAX / 2 + 1, &out));
    ck_assert(!kvc__add_size(SIZE_MAX, 1, &out));
    ck_assert_uint_eq(out, 7);
    ck_assert(kvc__add_size(SIZE_MAX - 1, 1, &out) && out == SIZE_MAX);
}
END_TEST

/* ---------------------------------------------------------------- the operating system */

static char dir[64];

static void make_dir(void) {
    snprintf(dir, sizeof(dir), "/tmp/kvc-test-base-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
}

static void remove_dir(void) {
    ck_assert_int_eq(rmdir(dir), 0);
}

static const char *file_path(const char *name) {
    static char path[128];
    snprintf(path, sizeof(path), "%s/%s", dir, name);
    return path;
}

static void write_file(const char *path, const char *text) {
    FILE *f = fopen(path, "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(text, 1, strlen(text), f), strlen(text));
    ck_assert_int_eq(fclose(f), 0);
}

START_TEST(a_file_is_mapped_as_it_is) {
    const char *path = file_path("a");
    kvc__map map;
    kvc__err err;
    write_file(path, "GGUF and more");
    ck_assert_int_eq(kvc__map_file(path, &map, &err), KVC_OK);
    ck_assert_uint_eq(map.size, 13);
    ck_assert_mem_eq(map.data, "GGUF and more", 13);
    kvc__unmap(&map);
    ck_assert_ptr_null(map.data);
    kvc__unmap(&map);
    unlink(path);
}
END_TEST

/* The sentence names the path and nothing is mapped. */
static void refused(const char *path, int32_t code) {
    kvc__map map;
    kvc__err err = {.text = ""};
    ck_assert_int_eq(kvc__map_file(path, &map, &err), code);
    ck_assert_ptr_null(map.data);
    ck_assert_ptr_nonnull(strstr(err.text, path));
}

START_TEST(what_is_not_a_file_is_refused_by_name) {
    refused(file_path("missing"), KVC_E_NOT_FOUND);
    refused(dir, KVC_E_FORMAT);
    const char *path = file_path("thing");
    write_file(path, "");
    refused(path, KVC_E_FORMAT);
    refused(file_path("thing/below"), KVC_E_NOT_FOUND);
    unlink(file_path("thing"));
    path = file_path("pipe");
    ck_assert_int_eq(mkfifo(path, 0600), 0);
    refused(path, KVC_E_FORMAT);
    unlink(path);
    path = file_path("loop");
    ck_assert_int_eq(symlink(path, path), 0);
    refused(path, KVC_E_IO);
    unlink(path);
}
END_TEST

START_TEST(reserved_space_is_zero_and_discard_makes_it_so_again) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t size = (size_t)1 << 34;
    unsigned char *p = kvc__reserve(size);
    ck_assert_ptr_nonnull(p);
    ck_assert(p[0] == 0 && p[size - 1] == 0);
    memset(p, 0x77, 4 * page);
    /* Pages 1 and 2 lie whole inside; the halves of 0 and 3 stay. */
    kvc__discard(p + page / 2, 3 * page);
    ck_assert(p[0] == 0x77 && p[page - 1] == 0x77);
    ck_assert(is_zero(p + page, 2 * page));
    ck_assert(p[3 * page] == 0x77);
    kvc__discard(p + 3 * page, page - 1);
    kvc__discard(p + 3 * page, 0);
    ck_assert(p[3 * page] == 0x77);
    kvc__release(p, size);
    ck_assert_ptr_null(kvc__reserve(0));
    ck_assert_ptr_null(kvc__reserve(SIZE_MAX / 2));
    kvc__release(NULL, 5);
    kvc__discard(NULL, 5);
}
END_TEST

START_TEST(clock_cores_and_environment_answer) {
    uint64_t before = kvc__clock_ns();
    struct timespec pause = {.tv_nsec = 2000000};
    nanosleep(&pause, NULL);
    uint64_t after = kvc__clock_ns();
    ck_assert_uint_ge(after - before, 2000000);
    ck_assert_uint_ge(kvc__n_core(), 1);
    ck_assert_int_eq(setenv("KVC_TEST_BASE", "on", 1), 0);
    ck_assert_str_eq(kvc__env("KVC_TEST_BASE"), "on");
    unsetenv("KVC_TEST_BASE");
    ck_assert_ptr_null(kvc__env("KVC_TEST_BASE"));
}
END_TEST

/* ---------------------------------------------------------------- the suite */

static Suite *base_suite(void) {
    Suite *s = suite_create("base");
    TCase *t = tcase_create("status");
    tcase_add_test(t, every_status_has_its_name_and_text);
    tcase_add_test(t, status_numbers_are_unique_and_not_positive);
    tcase_add_test(t, an_unknown_status_has_a_name_too);
    tcase_add_test(t, the_version_is_the_headers);
    tcase_add_test(t, the_cpu_level_is_a_known_one);
    suite_add_tcase(s, t);
    t = tcase_create("sentences");
    tcase_add_test(t, fail_writes_the_sentence_and_answers_the_code);
    tcase_add_test(t, fail_may_quote_the_present_sentence);
    tcase_add_test(t, fail_cuts_long_text_between_characters);
    tcase_add_test(t, fail_survives_what_is_not_utf8);
    tcase_add_test(t, fail_lets_no_control_characters_through);
    tcase_add_test(t, fail_lets_nothing_but_text_through);
    suite_add_tcase(s, t);
    t = tcase_create("memory");
    tcase_add_test(t, memory_is_zeroed_aligned_and_counted);
    tcase_add_test(t, nothing_and_too_much_give_null);
    tcase_add_test(t, realloc_keeps_bytes_and_alignment_and_zeroes_the_new);
    tcase_add_test(t, strndup_copies_a_part);
    tcase_add_test(t, a_child_counts_for_its_parents);
    tcase_add_test(t, a_callers_allocator_is_used_and_its_bytes_zeroed);
    tcase_add_loop_test(t, a_failing_allocator_leaves_the_counts_right, 1, 5);
    tcase_add_test(t, checked_sums_refuse_overflow);
    suite_add_tcase(s, t);
    t = tcase_create("os");
    tcase_add_checked_fixture(t, make_dir, remove_dir);
    tcase_add_test(t, a_file_is_mapped_as_it_is);
    tcase_add_test(t, what_is_not_a_file_is_refused_by_name);
    tcase_add_test(t, reserved_space_is_zero_and_discard_makes_it_so_again);
    tcase_add_test(t, clock_cores_and_environment_answer);
    suite_add_tcase(s, t);
    return s;
}

int main(void) {
    SRunner *runner = srunner_create(base_suite());
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
