/* SPDX-License-Identifier: MIT
 * budget.c: text to budgets and back, and budgets to entries, all in integers: a share is counted
 * in millionths, so that what is written with up to four decimals is meant exactly. */
#include "budget.h"

#include "spec.h"

#include <stdio.h>
#include <string.h>

#define PERCENT   ((uint64_t)KVC_BUDGET_WHOLE / 100)
#define MOST      ((UINT64_C(1) << 60) - 1)
#define N_DECIMAL 4

/* The largest amount of a unit; 0 when there is no such unit. */
static uint64_t most_of(uint32_t unit) {
    switch (unit) {
    case KVC_BUDGET_TOKENS:
        return INT32_MAX;
    case KVC_BUDGET_SHARE:
        return (uint64_t)KVC_BUDGET_WHOLE;
    case KVC_BUDGET_BYTES:
        return MOST;
    default:
        return 0;
    }
}

bool kvc__budget_valid(int64_t budget) {
    const uint64_t amount = (uint64_t)kvc_budget_amount(budget);
    return amount >= 1 && amount <= most_of(kvc_budget_unit(budget));
}

/* "12.5%" to millionths. What is above 100% stays above it, however many digits follow. */
static bool share_read(const char *text, int64_t *out) {
    uint64_t amount = 0, step = PERCENT;
    const char *p = text;
    for (; *p >= '0' && *p <= '9'; p++) {
        amount = amount * 10 + (uint64_t)(*p - '0') * PERCENT;
        amount = amount < 2 * (uint64_t)KVC_BUDGET_WHOLE ? amount : 2 * (uint64_t)KVC_BUDGET_WHOLE;
    }
    if (p == text) {
        return false;
    }
    if (*p == '.') {
        const char *first = ++p;
        for (; *p >= '0' && *p <= '9' && p < first + N_DECIMAL; p++) {
            step /= 10;
            amount += (uint64_t)(*p - '0') * step;
        }
        if (p == first) {
            return false;
        }
    }
    *out = (int64_t)amount;
    return strcmp(p, "%") == 0;
}

bool kvc__budget_read(const char *text, int64_t *out) {
    const size_t n = strlen(text);
    const char last = n > 0 ? text[n - 1] : '\0';
    const uint32_t unit = last == '%'   ? KVC_BUDGET_SHARE
                          : last == 'B' ? KVC_BUDGET_BYTES
                                        : KVC_BUDGET_TOKENS;
    int64_t amount = 0;
    const bool read = unit == KVC_BUDGET_SHARE
                          ? share_read(text, &amount)
                          : kvc__text_integer(text, unit == KVC_BUDGET_BYTES, &amount);
    if (!read || amount < 1 || (uint64_t)amount > most_of(unit)) {
        return false;
    }
    *out = KVC_BUDGET(unit, amount);
    return true;
}

/* Percent with as many decimals as there are. */
static void share_text(uint64_t amount, char out[KVC__BUDGET_TEXT]) {
    snprintf(out, KVC__BUDGET_TEXT, "%u.%04u", (unsigned)(amount / PERCENT),
             (unsigned)(amount % PERCENT));
    size_t n = strlen(out);
    while (out[n - 1] == '0') {
        n--;
    }
    n -= out[n - 1] == '.';
    memcpy(out + n, "%", 2);
}

/* Bytes in the largest unit that leaves no rest. */
static void bytes_text(uint64_t amount, char out[KVC__BUDGET_TEXT]) {
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB"};
    size_t i = 0;
    while (i < 3 && amount % 1024 == 0) {
        amount /= 1024;
        i++;
    }
    snprintf(out, KVC__BUDGET_TEXT, "%llu%s", (unsigned long long)amount, unit[i]);
}

void kvc__budget_text(int64_t budget, char out[KVC__BUDGET_TEXT]) {
    const uint64_t amount = (uint64_t)kvc_budget_amount(budget);
    switch (kvc_budget_unit(budget)) {
    case KVC_BUDGET_SHARE:
        share_text(amount, out);
        break;
    case KVC_BUDGET_BYTES:
        bytes_text(amount, out);
        break;
    default:
        snprintf(out, KVC__BUDGET_TEXT, "%llu", (unsigned long long)amount);
    }
}

uint64_t kvc__budget_entries(int64_t budget, uint32_t n_ctx, uint64_t entry_bytes) {
    const uint64_t amount = (uint64_t)kvc_budget_amount(budget);
    switch (kvc_budget_unit(budget)) {
    case KVC_BUDGET_SHARE:
        return amount * n_ctx / (uint64_t)KVC_BUDGET_WHOLE;
    case KVC_BUDGET_BYTES:
        return amount / entry_bytes;
    default:
        return amount;
    }
}

int64_t kvc__budget_least(uint32_t unit, uint32_t entries, uint32_t n_ctx, uint64_t entry_bytes) {
    uint64_t amount = entries;
    if (unit == KVC_BUDGET_SHARE) {
        amount = ((uint64_t)entries * (uint64_t)KVC_BUDGET_WHOLE + n_ctx - 1) / n_ctx;
    } else if (unit == KVC_BUDGET_BYTES) {
        amount = entries <= MOST / entry_bytes ? entries * entry_bytes : 0;
    }
    return amount >= 1 && amount <= most_of(unit) ? KVC_BUDGET(unit, amount) : 0;
}
