/* SPDX-License-Identifier: MIT
 * policy_list.h: --list: every policy that can be found, and every file that looks like one and is
 * broken. */
#ifndef KVC_POLICY_LIST_H
#define KVC_POLICY_LIST_H

#include "kvc/kvc.h"

#include <stdio.h>

/** Writes the list for a person. */
void cmp_list_text(FILE *out, const kvc_policies *list);
/** Writes it as JSON, schema kvcompare-list/1. Returns 0, or -1 without memory. */
int cmp_list_json(FILE *out, const kvc_policies *list);

#endif
