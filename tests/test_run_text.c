/* SPDX-License-Identifier: MIT
 * test_run_text.c: bytes of an answer to text: characters that come in parts, broken ones, what
 * would drive a terminal, and stop texts across pieces. However the bytes are cut, the text is the
 * same. */
#include "run_text.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

#define BROKEN "\xEF\xBF\xBD"

/* What comes out of in[n], given in pieces of at most `piece` bytes; the caller's to free. */
static char *shown(const char *in, size_t n, size_t piece, const char *const *stop, size_t n_stop,
                   unsigned flags, bool *stopped) {
    char *out = NULL;
    size_t n_out = 0;
    FILE *f = open_memstream(&out, &n_out);
    run_text t;
    run_text_begin(&t, f, stop, n_stop, flags);
    *stopped = false;
    for (size_t at = 0; at < n; at += piece) {
        *stopped = run_text_add(&t, in + at, n - at < piece ? n - at : piece);
    }
    run_text_end(&t);
    ck_assert(!t.failed);
    fclose(f);
    return out;
}

static void check(const char *in, size_t n, const char *const *stop, size_t n_stop, unsigned flags,
                  const char *want) {
    bool stopped;
    for (size_t piece = 1; piece <= n + 1; piece++) {
        char *out = shown(in, n, piece, stop, n_stop, flags, &stopped);
        ck_assert_msg(strcmp(out, want) == 0, "\"%s\" in pieces of %zu: \"%s\", not \"%s\"", in,
                      piece, out, want);
        free(out);
    }
}

/* ---------------------------------------------------------------- characters */

static const struct {
    const char *in, *want;
} characters[] = {
    {"", ""},
    {"plain\ttext\n", "plain\ttext\n"},
    {"\xC2\xA0\xDF\xBF", "\xC2\xA0\xDF\xBF"},
    {"\xE0\xA0\x80\xED\x9F\xBF\xEE\x80\x80\xEF\xBF\xBF",
     "\xE0\xA0\x80\xED\x9F\xBF\xEE\x80\x80\xEF\xBF\xBF"},
    {"\xF0\x90\x80\x80\xF4\x8F\xBF\xBF", "\xF0\x90\x80\x80\xF4\x8F\xBF\xBF"},
    {"x\xF0\x9F\x98\x80y", "x\xF0\x9F\x98\x80y"},
    /* Unicode 15, tables 3-8 to 3-11: one sign for each maximal part. */
    {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41",
     BROKEN BROKEN BROKEN BROKEN BROKEN BROKEN BROKEN BROKEN "A"},
    {"\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41",
     BROKEN BROKEN BROKEN BROKEN BROKEN BROKEN BROKEN BROKEN "A"},
    {"\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42",
     BROKEN BROKEN BROKEN BROKEN BROKEN "A" BROKEN BROKEN "B"},
    {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", BROKEN BROKEN BROKEN BROKEN "A"},
    {"cut\xE2\x82", "cut" BROKEN},
    {"cut\xF0", "cut" BROKEN},
    {"\x80", BROKEN},
    /* What a terminal would obey. */
    {"\033[31mred\a\b\x7F", BROKEN "[31mred" BROKEN BROKEN BROKEN},
    {"\xC2\x9B"
     "31m\xC2\x80\xC2\x9F",
     BROKEN "31m" BROKEN BROKEN},
    {"line\r\nline\rover\r\r\nend\r", "line\r\nline" BROKEN "over" BROKEN "\r\nend" BROKEN},
    {"\xE2\x82\r\n", BROKEN "\r\n"},
};

START_TEST(whole_characters_are_shown) {
    const char *in = characters[_i].in;
    check(in, strlen(in), NULL, 0, 0, characters[_i].want);
}
END_TEST

START_TEST(flags_change_it) {
    check("\033[1m\a\r\0\xC2\x9B\xFF", 10, NULL, 0, RUN_TEXT_CONTROLS, "\033[1m\a\r");
    check("a\033\r\n\rb\xC2\x9B", 8, NULL, 0, RUN_TEXT_CONTROLS, "a\033\r\n\rb\xC2\x9B");
    check("\0a", 2, NULL, 0, 0, BROKEN "a");
    check("  a  b ", 7, NULL, 0, RUN_TEXT_TRIM, "a  b ");
    check("\n a", 3, NULL, 0, RUN_TEXT_TRIM, "\n a");
    check(" a", 2, NULL, 0, 0, " a");
}
END_TEST

/* ---------------------------------------------------------------- stop texts */

static const struct {
    const char *in, *stop[3], *want;
    bool stops;
} stops[] = {
    {"one two three", {"two"}, "one ", true},
    {"one two three", {"twx", "three"}, "one two ", true},
    {"one two three", {"o"}, "", true},
    {"one tw", {"two"}, "one tw", false},
    {"aaab", {"aab"}, "a", true},
    {"abcx", {"abcd", "c"}, "ab", true},
    {"abcd", {"abcd", "c"}, "", true},
    {"abc", {"abcd", "c"}, "ab", true},
    {"\xE2\x82\xAC", {"\x82"}, BROKEN, true},
    {"x\xE2\x82\xACy", {"\xE2\x82\xAC"}, "x", true},
    {"User: a\nUser", {"\nUser:"}, "User: a\nUser", false},
};

START_TEST(a_stop_text_ends_it) {
    const char *in = stops[_i].in;
    size_t n = 0;
    while (n < 3 && stops[_i].stop[n] != NULL) {
        n++;
    }
    check(in, strlen(in), stops[_i].stop, n, 0, stops[_i].want);
    bool stopped;
    free(shown(in, strlen(in), 1, stops[_i].stop, n, 0, &stopped));
    ck_assert(stopped == stops[_i].stops || strcmp(in, "abc") == 0);
}
END_TEST

/* Nothing that is ready waits for more. */
START_TEST(text_comes_at_once) {
    static const char *const stop[] = {"END"};
    char *out = NULL;
    size_t n_out = 0;
    FILE *f = open_memstream(&out, &n_out);
    run_text t;
    run_text_begin(&t, f, stop, 1, 0);
    static const struct {
        const char *add, *want;
    } step[] = {{"Hello", "Hello"},
                {" \xE2\x82", "Hello "},
                {"\xAC", "Hello \xE2\x82\xAC"},
                {"E", "Hello \xE2\x82\xAC"},
                {"N", "Hello \xE2\x82\xAC"},
                {"T", "Hello \xE2\x82\xAC"
                      "ENT"}};
    for (size_t i = 0; i < sizeof step / sizeof *step; i++) {
        run_text_add(&t, step[i].add, strlen(step[i].add));
        fflush(f);
        ck_assert_str_eq(out, step[i].want);
    }
    run_text_end(&t);
    fclose(f);
    free(out);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("run_text");
    TCase *tc = tcase_create("text");
    tcase_add_loop_test(tc, whole_characters_are_shown, 0,
                        (int)(sizeof characters / sizeof *characters));
    tcase_add_test(tc, flags_change_it);
    tcase_add_loop_test(tc, a_stop_text_ends_it, 0, (int)(sizeof stops / sizeof *stops));
    tcase_add_test(tc, text_comes_at_once);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
