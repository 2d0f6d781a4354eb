/* SPDX-License-Identifier: MIT
 * policy_list.h: --list: every policy that can be found, and every file that looks like one and is
 * broken. */
#ifndef KVC_POLICY_LIST_H
#define KVC_POLICY_LIST_H

#include "kvc/kvc.h"

#include <stdio.h>

/** Writes the list for a person. */
void cmp_list_text(FILE *out, const kvc_policies *list, int width);
/** A row of a parameter table: "size=1024 (int, tokens; 1 to 2147483647)". */
void cmp_list_param(const kvc_param *p, char *buf, size_t cap);
/** Writes it as JSON, schema kvcompare-list/1. Returns 0, or -1 without memory. */
int cmp_list_json(FILE *out, const kvc_policies *list);

#endif
