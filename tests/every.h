/* SPDX-License-Identifier: MIT
 * every.h: grids of cases that the release build runs whole. ctest sets KVC_TEST_EVERY for
 * the others: another compiler's code, bytes out of bounds, races and lines that are reached show
 * in a few cases of each kind, at a fraction of the time. */
#ifndef KVC_TESTS_EVERY_H
#define KVC_TESTS_EVERY_H

#include <check.h>
#include <stdlib.h>

/* Every n-th case of a grid is to be run: KVC_TEST_EVERY; 1, which is all, where it isn't set. */
static inline int every(void) {
    const char *n = getenv("KVC_TEST_EVERY");
    return n != NULL && atoi(n) > 1 ? atoi(n) : 1;
}

/* The step from case to case where one weighs as much as `inner` cases of the grid, since it holds
 * so many or takes as long. Odd, since the last thing that grids vary has often two values. */
static inline int every_step(int inner) {
    return every() > inner ? (every() / inner) | 1 : 1;
}

/* The step of a loop of n within a case, such that the case is left with something to do. */
static inline int every_inner(int n) {
    return every() < n ? every() : n;
}

/* Adds the cases of a loop test that are to be run, of 0 to n - 1, each of that weight; at least
 * one is. Each call begins with another case, so that tests with the same grid share it out. */
static inline void every_add(TCase *tc, const TTest *test, int n, int inner) {
    static int calls;
    const int step = every_step(inner) < n ? every_step(inner) : n;
    for (int i = calls++ * 5 % step; i < n; i += step) {
        tcase_add_loop_test(tc, test, i, i + 1);
    }
}

#endif
