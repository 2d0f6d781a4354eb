/* SPDX-License-Identifier: MIT
 * policy_table.h: a policy's own description, checked and copied before anything of it is used. */
#ifndef KVC_POLICY_TABLE_H
#define KVC_POLICY_TABLE_H

#include "err.h"
#include "mem.h"

#include "kvc/policy.h"

#include <stdbool.h>
#include <stddef.h>

#define KVC__MAX_NAME 32u /* bytes of a name, without its NUL */

/** A loaded policy: the host's own copies of the tables (zero beyond what the policy has), never
 * freed while its library is mapped; libraries stay mapped (RTLD_NODELETE). */
typedef struct kvc__policy {
    kvc_policy desc;    /* copy; .api and .param point to the copies below */
    kvc_policy_api api; /* copy */
    kvc_param *param;   /* [desc.n_param] copies, param_stride sizeof(kvc_param) */
    size_t param_bytes;
    char *path; /* file, "" when linked in */
    size_t path_bytes;
} kvc__policy;

/** Frees the copies; a zeroed one is legal. */
void kvc__policy_free(kvc__mem *mem, kvc__policy *p);
/** Copies and checks one table answered by an entry function: sizes, ABI, name, parameters,
 * requires. */
int32_t kvc__policy_check(kvc__mem *mem, const kvc_policy *theirs, const char *path,
                          kvc__policy *out, kvc__err *err);

/** True when name is `[a-z][a-z0-9_]*` (dash: with '-' too) of at most `most` bytes. */
bool kvc__name_valid(const char *name, size_t most, bool dash);
/** 1 when the policy's ABI and this host's accept each other. */
int kvc__abi_accepted(const kvc_policy *p);
/** How a sentence names the origin of a policy: its path, or that it is linked in. */
const char *kvc__policy_where(const char *path);

#endif
