/* SPDX-License-Identifier: MIT
 * test_top.c: the largest of some scores, as the host lends it to policies, against a plain sort:
 * counts around those of vectors and pages, ties, zeros of both signs, what isn't a number, and
 * places of all alignments, in place and apart. */
#include "stack.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 8192, ROOM = MOST + 32 };

static float score[ROOM], before[ROOM];
static uint32_t sorted[ROOM], index_of[ROOM];

static uint64_t rng;

static uint32_t below(uint32_t n) {
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return (uint32_t)(rng >> 11) % n;
}

static float of_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Scores of one kind. */
static float draw(int kind) {
    static const float odd[] = {0.0f,      -0.0f,  NAN,     -NAN,         INFINITY,
                                -INFINITY, 1e-45f, -1e-45f, 1.17549e-38f, 3.4e38f,
                                -3.4e38f,  1.0f,   -1.0f};
    switch (kind) {
    case 0: /* attention */
        return (float)below(1u << 24) / (float)(1u << 24);
    case 1: /* ties */
        return (float)below(5) - 2.0f;
    case 2: /* any bits at all */
        return of_bits((uint32_t)(below(1u << 16) << 16 | below(1u << 16)));
    case 3: /* what is odd */
        return odd[below(sizeof odd / sizeof *odd)];
    case 4: /* neighbours: the last bits decide */
        return of_bits(0x3f800000u + below(64));
    case 5: /* less than what is normal */
        return of_bits(below(40) | below(2) << 31);
    case 6: /* all equal */
        return 0.25f;
    case 7: /* not a number, whatever its bits */
        return of_bits(0x7f800001u + below(0x7fffff) + (below(2) << 31));
    default: /* few are numbers */
        return below(20) == 0 ? -INFINITY : NAN;
    }
}

enum { N_KIND = 9 };

/* The larger first; of equal ones the later. */
static int by_score(const void *a, const void *b) {
    const uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    const float x = before[i], y = before[j];
    if (isnan(x) != isnan(y)) {
        return isnan(x) ? 1 : -1;
    }
    if (!isnan(x) && x != y) {
        return x > y ? -1 : 1;
    }
    return i > j ? -1 : 1;
}

static int ascending(const void *a, const void *b) {
    const uint32_t i = *(const uint32_t *)a, j = *(const uint32_t *)b;
    return i < j ? -1 : i > j;
}

/* Asks for n_top of before[n], and of the same in place; guards stand behind what is written. */
static void check(uint32_t n, uint32_t n_top, uint32_t place) {
    const uint32_t want = n_top < n ? n_top : n;
    float *s = score + place;
    uint32_t *index = index_of + (place * 7) % 16;
    for (uint32_t i = 0; i < n; i++) {
        sorted[i] = i;
    }
    qsort(sorted, n, sizeof *sorted, by_score);
    qsort(sorted, want, sizeof *sorted, ascending);
    memcpy(s, before, n * sizeof *s);
    index[want] = 0xabcdef01u;
    ck_assert_uint_eq(kvc__host_math.top(NULL, s, n, n_top, index), want);
    ck_assert_int_eq(memcmp(index, sorted, want * sizeof *sorted), 0);
    ck_assert_uint_eq(index[want], 0xabcdef01u);
    ck_assert_int_eq(memcmp(s, before, n * sizeof *s), 0);
    ck_assert_uint_eq(kvc__host_math.top(NULL, s, n, n_top, (uint32_t *)(void *)s), want);
    ck_assert_int_eq(memcmp(s, sorted, want * sizeof *sorted), 0);
    ck_assert_int_eq(memcmp(s + want, before + want, (n - want) * sizeof *s), 0);
}

static void check_some(uint32_t n, int kind, uint32_t place) {
    const uint32_t tops[] = {0, 1, n / 3, n / 2, n - 1, n, n + 1, UINT32_MAX, below(n + 1)};
    for (uint32_t i = 0; i < n; i++) {
        before[i] = draw(kind);
    }
    for (size_t i = 0; i < sizeof tops / sizeof *tops; i++) {
        check(n, tops[i], place);
    }
}

START_TEST(they_are_those_of_a_sort) {
    rng = 88172645463325252u + (uint64_t)_i;
    for (uint32_t n = 0; n <= 200; n++) {
        check_some(n, _i, n % 17);
    }
    check_some(MOST, _i, 3);
    check_some(MOST - 1, _i, 0);
}
END_TEST

/* Every count of what is kept, and every alignment. */
START_TEST(any_count_and_any_place) {
    rng = 5;
    for (uint32_t place = 0; place < 17; place++) {
        for (uint32_t i = 0; i < 97; i++) {
            before[i] = draw((int)place % N_KIND);
        }
        for (uint32_t n_top = 0; n_top < 100; n_top++) {
            check(97, n_top, place);
        }
    }
}
END_TEST

START_TEST(of_nothing_nothing) {
    ck_assert_uint_eq(kvc__host_math.top(NULL, NULL, 0, 5, NULL), 0);
    ck_assert_uint_eq(kvc__host_math.top(NULL, before, 9, 0, NULL), 0);
}
END_TEST

int main(void) {
    Suite *s = suite_create("top");
    TCase *c = tcase_create("top");
    tcase_add_loop_test(c, they_are_those_of_a_sort, 0, N_KIND);
    tcase_add_test(c, any_count_and_any_place);
    tcase_add_test(c, of_nothing_nothing);
    suite_add_tcase(s, c);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    const int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
