/* SPDX-License-Identifier: MIT
 * budget.h: budgets, as users write them and as policy.h encodes them: tokens per lane, a share of
 * n_ctx, or bytes of the session. It stands between the text of a stack, the merged plan and the
 * sentences about both. It knows neither lanes nor what a budget is spent on. */
#ifndef KVC_BUDGET_H
#define KVC_BUDGET_H

#include "kvc/policy.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KVC__BUDGET_TEXT 32u /* room for a budget's text, with its NUL */

/** Reads all of text as a budget; false when it is none. */
bool kvc__budget_read(const char *text, int64_t *out);
/** Whether an encoded budget is one: a unit that is known, an amount within its limits. */
bool kvc__budget_valid(int64_t budget);
/** The text of a valid budget, which reads back as the same: 512, 12.5%, 8MiB. */
void kvc__budget_text(int64_t budget, char out[KVC__BUDGET_TEXT]);
/** Entries per lane of a valid budget, rounded down. entry_bytes, not 0: the packed bytes of one
 * entry of every lane. */
uint64_t kvc__budget_entries(int64_t budget, uint32_t n_ctx, uint64_t entry_bytes);
/** The least budget of that unit that comes to so many entries per lane; 0 when there is none. */
int64_t kvc__budget_least(uint32_t unit, uint32_t entries, uint32_t n_ctx, uint64_t entry_bytes);

#endif
