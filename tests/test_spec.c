/* SPDX-License-Identifier: MIT
 * test_spec.c: spec.c: stacks as text, what is refused and where, values by a policy's table, and
 * the text that values make. */
#include "spec.h"

#include <check.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static kvc__mem mem;
static kvc__err err;

static void setup(void) {
    kvc__mem_init(&mem, NULL, NULL);
    memset(&err, 0, sizeof err);
}

/* Every test ends with nothing held. */
static void teardown(void) {
    ck_assert_uint_eq(atomic_load(&mem.used), 0);
}

static const char *const colors[] = {"red", "green", "blue", NULL};

enum { COUNT, BYTES, RATIO, FLAG, COLOR, LABEL, SIGNED, N_PARAM };

static const kvc_param rows[N_PARAM] = {
    [COUNT] = {.struct_size = sizeof(kvc_param),
               .type = KVC_PARAM_INT,
               .name = "count",
               .unit = "tokens",
               .help = "h",
               .def = {.i = 10},
               .min = {.i = 1},
               .max = {.i = 4096}},
    [BYTES] = {.struct_size = sizeof(kvc_param),
               .type = KVC_PARAM_SIZE,
               .name = "bytes",
               .help = "h",
               .def = {.i = 1024},
               .min = {.i = 0},
               .max = {.i = INT64_MAX}},
    [RATIO] = {.struct_size = sizeof(kvc_param),
               .type = KVC_PARAM_FLOAT,
               .name = "ratio",
               .help = "h",
               .def = {.f = 0.1},
               .min = {.f = -1},
               .max = {.f = 1e300}},
    [FLAG] = {.struct_size = sizeof(kvc_param),
              .type = KVC_PARAM_BOOL,
              .name = "flag",
              .help = "h",
              .def = {.i = 1}},
    [COLOR] = {.struct_size = sizeof(kvc_param),
               .type = KVC_PARAM_ENUM,
               .name = "color",
               .help = "h",
               .choice = colors,
               .def = {.i = 2}},
    [LABEL] = {.struct_size = sizeof(kvc_param),
               .type = KVC_PARAM_STRING,
               .name = "label",
               .help = "h"},
    [SIGNED] = {.struct_size = sizeof(kvc_param),
                .type = KVC_PARAM_INT,
                .name = "signed",
                .help = "h",
                .min = {.i = INT64_MIN},
                .max = {.i = INT64_MAX}},
};

static const kvc_policy policy = {.struct_size = sizeof policy,
                                  .name = "probe",
                                  .n_param = N_PARAM,
                                  .param_stride = sizeof(kvc_param),
                                  .param = rows};

/* ---------------------------------------------------------------- parsing */

START_TEST(a_stack_becomes_words_and_pairs) {
    kvc__spec s;
    ck_assert_int_eq(
        kvc__spec_parse(&mem, "window:size=1024:sinks=4+./my.so:x=a=b+quant8", &s, &err), KVC_OK);
    ck_assert_uint_eq(s.n_stage, 3);
    ck_assert_str_eq(s.stage[0].word, "window");
    ck_assert_uint_eq(s.stage[0].n_pair, 2);
    ck_assert_str_eq(s.stage[0].key[0], "size");
    ck_assert_str_eq(s.stage[0].value[0], "1024");
    ck_assert_str_eq(s.stage[0].key[1], "sinks");
    ck_assert_str_eq(s.stage[0].value[1], "4");
    ck_assert_str_eq(s.stage[1].word, "./my.so");
    ck_assert_uint_eq(s.stage[1].n_pair, 1);
    ck_assert_str_eq(s.stage[1].key[0], "x");
    ck_assert_str_eq(s.stage[1].value[0], "a=b");
    ck_assert_str_eq(s.stage[2].word, "quant8");
    ck_assert_uint_eq(s.stage[2].n_pair, 0);
    kvc__spec_free(&s);
}
END_TEST

START_TEST(every_shape_of_a_stack_is_read) {
    for (uint32_t n_stage = 1; n_stage <= KVC__MAX_STAGE; n_stage++) {
        for (uint32_t n_pair = 0; n_pair <= 64; n_pair += 16) {
            char text[8192] = "", *p = text;
            for (uint32_t i = 0; i < n_stage; i++) {
                p += sprintf(p, "%sp%u", i ? "+" : "", i);
                for (uint32_t k = 0; k < n_pair; k++) {
                    p += sprintf(p, ":k%u=%u", k, i * 100 + k);
                }
            }
            kvc__spec s;
            ck_assert_int_eq(kvc__spec_parse(&mem, text, &s, &err), KVC_OK);
            ck_assert_uint_eq(s.n_stage, n_stage);
            for (uint32_t i = 0; i < n_stage; i++) {
                ck_assert_uint_eq(s.stage[i].n_pair, n_pair);
                for (uint32_t k = 0; k < n_pair; k++) {
                    char key[16], value[16];
                    sprintf(key, "k%u", k);
                    sprintf(value, "%u", i * 100 + k);
                    ck_assert_str_eq(s.stage[i].key[k], key);
                    ck_assert_str_eq(s.stage[i].value[k], value);
                }
            }
            kvc__spec_free(&s);
        }
    }
}
END_TEST

static const struct {
    const char *text, *place, *what;
} refused[] = {
    {"", "character 1:", "name is missing"},
    {"+full", "character 1:", "name is missing"},
    {"full+", "character 6:", "name is missing"},
    {"full++none", "character 6:", "name is missing"},
    {":size=1", "character 1:", "name is missing"},
    {"window:size", "character 8:", "\"size\" of \"window\" lacks '='"},
    {"window:", "character 8:", "lacks '='"},
    {"window::size=1", "character 8:", "lacks '='"},
    {"window:=4", "character 8:", "name is missing in front of '='"},
    {"window:a=1:b=2:a=3", "character 16:", "\"a\" of \"window\" is given twice"},
    {"full,none", "character 5:", "','"},
    {"a+b+c+d+e+f+g+h+i", "character 17:", "more than 8 stages"},
};

START_TEST(what_cant_be_parsed_is_refused_with_its_place) {
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        kvc__spec s;
        ck_assert_int_eq(kvc__spec_parse(&mem, refused[i].text, &s, &err), KVC_E_SPEC);
        ck_assert_msg(strstr(err.text, refused[i].place) != NULL, "%s: %s", refused[i].text,
                      err.text);
        ck_assert_msg(strstr(err.text, refused[i].what) != NULL, "%s: %s", refused[i].text,
                      err.text);
        ck_assert_uint_eq(atomic_load(&mem.used), 0);
        kvc__spec_free(&s);
    }
}
END_TEST

START_TEST(more_parameters_than_a_table_can_have_are_refused) {
    char text[2048] = "p", *p = text + 1;
    for (uint32_t k = 0; k < 65; k++) {
        p += sprintf(p, ":k%u=1", k);
    }
    kvc__spec s;
    ck_assert_int_eq(kvc__spec_parse(&mem, text, &s, &err), KVC_E_SPEC);
    ck_assert_ptr_nonnull(strstr(err.text, "64 parameters"));
}
END_TEST

/* Random text of the grammar's own characters: it parses or is refused, and nothing is read or
 * kept that shouldn't be (the sanitizers and the count of bytes watch). */
START_TEST(random_text_is_parsed_or_refused) {
    static const char alphabet[] = "aab1=:+/.,-\x80\xff";
    uint32_t seed = 12345, n_ok = 0;
    for (int round = 0; round < 20000; round++) {
        char text[48];
        seed = seed * 1664525u + 1013904223u;
        size_t n = (seed >> 16) % sizeof text;
        for (size_t i = 0; i < n; i++) {
            seed = seed * 1664525u + 1013904223u;
            text[i] = alphabet[(seed >> 16) % (sizeof alphabet - 1)];
        }
        char *exact = malloc(n + 1);
        memcpy(exact, text, n);
        exact[n] = '\0';
        kvc__spec s;
        kvc_value value[N_PARAM];
        int32_t rc = kvc__spec_parse(&mem, exact, &s, &err);
        free(exact);
        ck_assert(rc == KVC_OK || rc == KVC_E_SPEC);
        for (uint32_t i = 0; i < s.n_stage; i++) {
            rc = kvc__spec_values(&s.stage[i], &policy, value, &err);
            ck_assert(rc == KVC_OK || rc == KVC_E_PARAM);
            n_ok += rc == KVC_OK;
        }
        kvc__spec_free(&s);
        ck_assert_uint_eq(atomic_load(&mem.used), 0);
    }
    ck_assert_uint_gt(n_ok, 100);
}
END_TEST

static uint32_t n_grant;

static void *grant_few(void *ctx, void *p, size_t old_size, size_t new_size, size_t align) {
    (void)ctx, (void)old_size;
    if (new_size == 0) {
        free(p);
        return NULL;
    }
    void *q = NULL;
    return n_grant-- > 0 && posix_memalign(&q, align, new_size) == 0 ? q : NULL;
}

START_TEST(without_memory_it_says_so_and_keeps_nothing) {
    kvc_allocator few = {.struct_size = sizeof few, .realloc = grant_few};
    kvc__mem scarce;
    kvc__mem_init(&scarce, &few, NULL);
    int32_t rc = KVC_E_NOMEM;
    for (uint32_t grants = 0; rc != KVC_OK; grants++) {
        kvc__spec s;
        ck_assert_uint_lt(grants, 10);
        n_grant = grants;
        rc = kvc__spec_parse(&scarce, "window:size=1+quant8", &s, &err);
        ck_assert(rc == KVC_OK ? grants > 0 : rc == KVC_E_NOMEM);
        kvc__spec_free(&s);
        ck_assert_uint_eq(atomic_load(&scarce.used), 0);
    }
}
END_TEST

START_TEST(a_zeroed_spec_can_be_freed) {
    kvc__spec s = {0};
    kvc__spec_free(&s);
}
END_TEST

/* ---------------------------------------------------------------- values */

static int32_t values(const char *key, const char *given, kvc_value *value) {
    char *k = (char *)(uintptr_t)key, *v = (char *)(uintptr_t)given;
    kvc__spec_stage stage = {.word = k, .n_pair = key ? 1 : 0, .key = &k, .value = &v};
    memset(&err, 0, sizeof err);
    return kvc__spec_values(&stage, &policy, value, &err);
}

START_TEST(what_is_not_given_has_its_default) {
    kvc_value v[N_PARAM];
    ck_assert_int_eq(values(NULL, NULL, v), KVC_OK);
    ck_assert_int_eq(v[COUNT].i, 10);
    ck_assert_int_eq(v[BYTES].i, 1024);
    ck_assert_double_eq(v[RATIO].f, 0.1);
    ck_assert_int_eq(v[FLAG].i, 1);
    ck_assert_int_eq(v[COLOR].i, 2);
    ck_assert_ptr_null(v[LABEL].s);
}
END_TEST

static const struct {
    const char *key, *text;
    int row;
    int64_t value;
} integers[] = {
    {"count", "1", COUNT, 1},
    {"count", "4096", COUNT, 4096},
    {"count", "4K", COUNT, 4096},
    {"count", "+7", COUNT, 7},
    {"bytes", "0", BYTES, 0},
    {"bytes", "10B", BYTES, 10},
    {"bytes", "2K", BYTES, 2048},
    {"bytes", "2KiB", BYTES, 2048},
    {"bytes", "3M", BYTES, 3 << 20},
    {"bytes", "5GiB", BYTES, (int64_t)5 << 30},
    {"bytes", "9223372036854775807", BYTES, INT64_MAX},
    {"signed", "-9223372036854775808", SIGNED, INT64_MIN},
    {"signed", "-8589934592G", SIGNED, INT64_MIN},
    {"signed", "-3K", SIGNED, -3072},
    {"flag", "on", FLAG, 1},
    {"flag", "off", FLAG, 0},
    {"flag", "true", FLAG, 1},
    {"flag", "false", FLAG, 0},
    {"flag", "yes", FLAG, 1},
    {"flag", "no", FLAG, 0},
    {"flag", "1", FLAG, 1},
    {"flag", "0", FLAG, 0},
    {"color", "red", COLOR, 0},
    {"color", "blue", COLOR, 2},
};

START_TEST(integers_switches_and_choices_are_read) {
    for (size_t i = 0; i < sizeof integers / sizeof integers[0]; i++) {
        kvc_value v[N_PARAM];
        ck_assert_msg(values(integers[i].key, integers[i].text, v) == KVC_OK, "%s: %s",
                      integers[i].text, err.text);
        ck_assert_msg(v[integers[i].row].i == integers[i].value, "%s", integers[i].text);
    }
}
END_TEST

START_TEST(fractions_and_text_are_read) {
    kvc_value v[N_PARAM];
    ck_assert_int_eq(values("ratio", "0.25", v), KVC_OK);
    ck_assert_double_eq(v[RATIO].f, 0.25);
    ck_assert_int_eq(values("ratio", "-1e-3", v), KVC_OK);
    ck_assert_double_eq(v[RATIO].f, -1e-3);
    ck_assert_int_eq(values("label", "any thing=1", v), KVC_OK);
    ck_assert_str_eq(v[LABEL].s, "any thing=1");
}
END_TEST

static const struct {
    const char *key, *text, *allowed;
} wrong[] = {
    {"count", "0", "an integer from 1 to 4096 tokens"},
    {"count", "4097", "from 1 to 4096"},
    {"count", "", "from 1 to 4096"},
    {"count", "x", "from 1 to 4096"},
    {"count", "1.5", "from 1 to 4096"},
    {"count", "1KB", "from 1 to 4096"},
    {"count", "0x10", "from 1 to 4096"},
    {"count", " 1", "from 1 to 4096"},
    {"count", "99999999999999999999", "from 1 to 4096"},
    {"count", "18446744073709551617", "from 1 to 4096"},
    {"bytes", "-1", "whole bytes (KiB, MiB, GiB, or K, M, G may follow) from 0 to"},
    {"bytes", "1KiBB", "from 0 to"},
    {"bytes", "1iB", "from 0 to"},
    {"bytes", "2KB", "; write 2KiB, in powers of 1024"},
    {"bytes", "16mb", "; write 16MiB, in powers of 1024"},
    {"bytes", "5GIB", "; write 5GiB, in powers of 1024"},
    {"bytes", "1k", "; write 1KiB, in powers of 1024"},
    {"bytes", "1.5MiB", "; it is a whole number, so take a smaller unit"},
    {"count", "2k", "; did you mean 2K?"},
    {"bytes", "1Ki", "from 0 to"},
    {"bytes", "1Kilo", "from 0 to"},
    {"bytes", "9007199254740992K", "from 0 to"},
    {"bytes", "18014398509481985K", "from 0 to"},
    {"signed", "-9223372036854775809", "an integer from"},
    {"signed", "9223372036854775808", "an integer from"},
    {"signed", "-", "an integer from"},
    {"ratio", "-1.01", "a number from -1 to 1e300"},
    {"ratio", "nan", "a number from"},
    {"ratio", "inf", "a number from"},
    {"ratio", "1e999", "a number from"},
    {"ratio", "0,5", "a number from"},
    {"ratio", "0x1p3", "a number from"},
    {"ratio", "", "a number from"},
    {"ratio", "1e", "a number from"},
    {"flag", "ON", "on or off"},
    {"flag", "2", "on or off"},
    {"color", "gren", "one of red, green, blue; did you mean \"green\"?"},
    {"color", "", "one of red, green, blue"},
};

START_TEST(a_wrong_value_names_policy_key_value_and_what_is_allowed) {
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        kvc_value v[N_PARAM];
        char given[64];
        ck_assert_msg(values(wrong[i].key, wrong[i].text, v) == KVC_E_PARAM, "%s=%s", wrong[i].key,
                      wrong[i].text);
        snprintf(given, sizeof given, "policy probe: %s=%s is not allowed", wrong[i].key,
                 wrong[i].text);
        ck_assert_msg(strstr(err.text, given) != NULL, "%s", err.text);
        ck_assert_msg(strstr(err.text, wrong[i].allowed) != NULL, "%s", err.text);
    }
}
END_TEST

START_TEST(an_unknown_key_names_the_others_and_the_nearest) {
    kvc_value v[N_PARAM];
    ck_assert_int_eq(values("cuont", "1", v), KVC_E_PARAM);
    ck_assert_str_eq(err.text, "policy probe has no parameter \"cuont\"; it has count, bytes, "
                               "ratio, flag, color, label, signed; did you mean \"count\"?");
    ck_assert_int_eq(values("zzzzzz", "1", v), KVC_E_PARAM);
    ck_assert_ptr_null(strstr(err.text, "did you mean"));
}
END_TEST

START_TEST(a_policy_without_parameters_says_so) {
    const kvc_policy bare = {.struct_size = sizeof bare, .name = "bare"};
    char *k = (char *)(uintptr_t) "size", *v = (char *)(uintptr_t) "1";
    kvc__spec_stage stage = {.n_pair = 1, .key = &k, .value = &v};
    kvc_value none[1];
    ck_assert_int_eq(kvc__spec_values(&stage, &bare, none, &err), KVC_E_PARAM);
    ck_assert_ptr_nonnull(strstr(err.text, "policy bare has no parameter \"size\"; it has none"));
}
END_TEST

/* Rows that are longer than ours, as a policy built with a later header has them. */
START_TEST(rows_are_walked_by_their_stride) {
    struct {
        kvc_param row;
        uint64_t later;
    } wide[2] = {{.row = rows[COUNT], .later = UINT64_MAX}, {.row = rows[BYTES], .later = 1}};
    const kvc_policy p = {
        .name = "wide", .n_param = 2, .param_stride = sizeof wide[0], .param = &wide[0].row};
    ck_assert_str_eq(kvc__param_row(&p, 1)->name, "bytes");
    kvc_value v[2];
    kvc__spec_stage none = {0};
    ck_assert_int_eq(kvc__spec_values(&none, &p, v, &err), KVC_OK);
    ck_assert_int_eq(v[1].i, 1024);
}
END_TEST

/* A size already says its unit; a choice too long to be a misspelling is not offered. */
START_TEST(what_is_allowed_is_said_once) {
    static const char *const choices[] = {
        "a-choice-of-more-than-forty-eight-characters-is-never-near-anything", "short", NULL};
    const kvc_param row[] = {
        {.struct_size = sizeof row[0],
         .type = KVC_PARAM_SIZE,
         .name = "room",
         .unit = "bytes",
         .max = {.i = 9}},
        {.struct_size = sizeof row[0], .type = KVC_PARAM_ENUM, .name = "which", .choice = choices}};
    const kvc_policy p = {
        .name = "probe", .n_param = 2, .param_stride = sizeof row[0], .param = row};
    char *key[] = {(char *)(uintptr_t) "room", (char *)(uintptr_t) "which"};
    char *given[] = {(char *)(uintptr_t) "10", (char *)(uintptr_t) "shirt"};
    kvc__spec_stage stage = {.n_pair = 1, .key = key, .value = given};
    kvc_value v[2];
    ck_assert_int_eq(kvc__spec_values(&stage, &p, v, &err), KVC_E_PARAM);
    ck_assert_str_eq(
        err.text,
        "policy probe: room=10 is not allowed; give whole bytes (KiB, MiB, GiB, or K, M, G may "
        "follow) from 0 to 9");
    stage.key++, stage.value++;
    ck_assert_int_eq(kvc__spec_values(&stage, &p, v, &err), KVC_E_PARAM);
    ck_assert_ptr_nonnull(strstr(err.text, "did you mean \"short\"?"));
}
END_TEST

/* ---------------------------------------------------------------- locales */

static bool no_locale; /* newlocale() fails */

locale_t __real_newlocale(int mask, const char *name, locale_t base);
locale_t __wrap_newlocale(int mask, const char *name, locale_t base);
locale_t __wrap_newlocale(int mask, const char *name, locale_t base) {
    return no_locale ? (locale_t)0 : __real_newlocale(mask, name, base);
}

START_TEST(numbers_need_no_memory_for_a_locale) {
    kvc_value v[N_PARAM];
    char text[128];
    const locale_t before = uselocale((locale_t)0);
    ck_assert_int_eq(values("ratio", "0.5", v), KVC_OK);
    ck_assert(uselocale((locale_t)0) == before);
    no_locale = true;
    ck_assert_int_eq(values("ratio", "0.25", v), KVC_OK);
    ck_assert_double_eq(v[RATIO].f, 0.25);
    kvc__spec_format(&policy, v, text, sizeof text);
    ck_assert_ptr_nonnull(strstr(text, ":ratio=0.25:"));
    no_locale = false;
    ck_assert(uselocale((locale_t)0) == before);
}
END_TEST

/* ---------------------------------------------------------------- back to text */

START_TEST(values_become_text_that_reads_back) {
    static const double ratios[] = {0, 0.1, 0.1 + 0.2, 1.0 / 3, -0.25, 1e-9, 123456.789, 1e300};
    for (size_t i = 0; i < sizeof ratios / sizeof ratios[0]; i++) {
        kvc_value v[N_PARAM] = {{.i = 5}, {.i = 2048}, {.f = ratios[i]}, {.i = 0},
                                {.i = 1}, {.s = "x"},  {.i = INT64_MIN}};
        kvc_value back[N_PARAM];
        char text[256];
        size_t n = kvc__spec_format(&policy, v, text, sizeof text);
        ck_assert_uint_eq(n, strlen(text));
        kvc__spec s;
        ck_assert_int_eq(kvc__spec_parse(&mem, text, &s, &err), KVC_OK);
        ck_assert_str_eq(s.stage[0].word, "probe");
        ck_assert_int_eq(kvc__spec_values(&s.stage[0], &policy, back, &err), KVC_OK);
        ck_assert_int_eq(back[COUNT].i, 5);
        ck_assert_int_eq(back[BYTES].i, 2048);
        ck_assert_double_eq(back[RATIO].f, ratios[i]);
        ck_assert_int_eq(back[FLAG].i, 0);
        ck_assert_int_eq(back[COLOR].i, 1);
        ck_assert_str_eq(back[LABEL].s, "x");
        ck_assert_int_eq(back[SIGNED].i, INT64_MIN);
        kvc__spec_free(&s);
    }
}
END_TEST

START_TEST(defaults_become_the_text_that_users_see) {
    kvc_value v[N_PARAM];
    char text[128];
    ck_assert_int_eq(values(NULL, NULL, v), KVC_OK);
    kvc__spec_format(&policy, v, text, sizeof text);
    ck_assert_str_eq(text, "probe:count=10:bytes=1024:ratio=0.1:flag=on:color=blue:signed=0");
}
END_TEST

START_TEST(text_is_cut_at_the_space_there_is_and_its_length_told) {
    kvc_value v[N_PARAM];
    ck_assert_int_eq(values(NULL, NULL, v), KVC_OK);
    size_t need = kvc__spec_format(&policy, v, NULL, 0);
    for (size_t cap = 1; cap <= need + 1; cap++) {
        char *text = malloc(cap);
        ck_assert_uint_eq(kvc__spec_format(&policy, v, text, cap), need);
        ck_assert_uint_eq(strlen(text), cap - 1);
        free(text);
    }
}
END_TEST

START_TEST(distances_count_edits_and_give_up_on_other_words) {
    ck_assert_uint_eq(kvc__text_distance("window", "window"), 0);
    ck_assert_uint_eq(kvc__text_distance("windw", "window"), 1);
    ck_assert_uint_eq(kvc__text_distance("windows", "window"), 1);
    ck_assert_uint_eq(kvc__text_distance("wimdow", "window"), 1);
    ck_assert_uint_eq(kvc__text_distance("quant", "quant8"), 1);
    ck_assert_uint_eq(kvc__text_distance("full", "none"), UINT32_MAX);
    ck_assert_uint_eq(kvc__text_distance("", "none"), UINT32_MAX);
    char long_word[128];
    memset(long_word, 'a', sizeof long_word);
    long_word[sizeof long_word - 1] = '\0';
    ck_assert_uint_eq(kvc__text_distance(long_word, long_word), UINT32_MAX);
}
END_TEST

int main(void) {
    Suite *s = suite_create("spec");
    TCase *t = tcase_create("parse");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, a_stack_becomes_words_and_pairs);
    tcase_add_test(t, every_shape_of_a_stack_is_read);
    tcase_add_test(t, what_cant_be_parsed_is_refused_with_its_place);
    tcase_add_test(t, more_parameters_than_a_table_can_have_are_refused);
    tcase_add_test(t, random_text_is_parsed_or_refused);
    tcase_add_test(t, without_memory_it_says_so_and_keeps_nothing);
    tcase_add_test(t, a_zeroed_spec_can_be_freed);
    suite_add_tcase(s, t);
    t = tcase_create("values");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, what_is_not_given_has_its_default);
    tcase_add_test(t, integers_switches_and_choices_are_read);
    tcase_add_test(t, fractions_and_text_are_read);
    tcase_add_test(t, a_wrong_value_names_policy_key_value_and_what_is_allowed);
    tcase_add_test(t, an_unknown_key_names_the_others_and_the_nearest);
    tcase_add_test(t, a_policy_without_parameters_says_so);
    tcase_add_test(t, rows_are_walked_by_their_stride);
    tcase_add_test(t, what_is_allowed_is_said_once);
    tcase_add_test(t, numbers_need_no_memory_for_a_locale);
    suite_add_tcase(s, t);
    t = tcase_create("format");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, values_become_text_that_reads_back);
    tcase_add_test(t, defaults_become_the_text_that_users_see);
    tcase_add_test(t, text_is_cut_at_the_space_there_is_and_its_length_told);
    tcase_add_test(t, distances_count_edits_and_give_up_on_other_words);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
