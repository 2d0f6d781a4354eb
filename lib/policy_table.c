/* SPDX-License-Identifier: MIT
 * policy_table.c: what a policy says of itself, checked and copied: sizes, ABI, name, parameters.
 * It reads the tables of a plugin and calls none of its functions. */
#include "policy_table.h"

#include "budget.h"
#include "spec.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PARAM  64u
#define MAX_CHOICE 64u

/* `[a-z][a-z0-9_]*` of at most most characters, '-' too where dash is set. */
bool kvc__name_valid(const char *name, size_t most, bool dash) {
    if (name == NULL || name[0] < 'a' || name[0] > 'z') {
        return 0;
    }
    for (size_t i = 0; i <= most; i++) {
        char c = name[i];
        if (c == '\0') {
            return 1;
        }
        if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || (dash && c == '-'))) {
            return 0;
        }
    }
    return 0;
}

/* What a sentence calls the policy: its file, or that it has none. */
const char *kvc__policy_where(const char *path) {
    return path[0] ? path : "a linked-in policy";
}

int kvc__abi_accepted(const kvc_policy *p) {
    return p->struct_size >= offsetof(kvc_policy, n_param) && p->abi >= KVC_POLICY_ABI_MIN &&
           p->abi <= KVC_POLICY_ABI && p->abi_min <= KVC_POLICY_ABI;
}

static int32_t abi_check(const kvc_policy *p, const char *path, kvc__err *err) {
    if (kvc__abi_accepted(p)) {
        return KVC_OK;
    }
    if (p->struct_size < offsetof(kvc_policy, n_param)) {
        return kvc__fail(err, KVC_E_LOAD_TABLE,
                         "%s: the policy table says it has %u bytes, too few to hold its ABI; set "
                         "struct_size to sizeof(kvc_policy)",
                         kvc__policy_where(path), p->struct_size);
    }
    int old = p->abi < KVC_POLICY_ABI_MIN;
    return kvc__fail(err, KVC_E_LOAD_ABI,
                     "%s: the policy is too %s: built with ABI %u, needs a host of at least %u; "
                     "this host accepts %u to %u; %s",
                     kvc__policy_where(path), old ? "old" : "new", p->abi, p->abi_min,
                     KVC_POLICY_ABI_MIN, KVC_POLICY_ABI,
                     old ? "build it again with this kvc's policy.h" : "use a newer kvc");
}

static int32_t table_check(const kvc_policy *p, const char *path, kvc__err *err) {
    const char *what = p->struct_size < sizeof *p ? "struct_size is too small"
                       : p->api == NULL           ? "api is NULL"
                       : p->api->struct_size < sizeof(kvc_policy_api)
                           ? "api->struct_size is too small"
                       : p->api->create == NULL ? "api->create is NULL"
                       : p->name == NULL        ? "name is NULL"
                       : p->version == NULL     ? "version is NULL"
                       : p->summary == NULL     ? "summary is NULL"
                       : p->license == NULL     ? "license is NULL"
                                                : NULL;
    if (what != NULL) {
        return kvc__fail(err, KVC_E_LOAD_TABLE,
                         "%s: the policy table is not complete: %s; fill it as policy.h says",
                         kvc__policy_where(path), what);
    }
    return KVC_OK;
}

static const char *choices_wrong(const kvc_param *row) {
    int64_t n = 0;
    if (row->choice == NULL || row->choice[0] == NULL) {
        return "its choices are missing";
    }
    for (; row->choice[n] != NULL; n++) {
        if (n == MAX_CHOICE) {
            return "its choices are too many, or not ended by NULL";
        }
        if (row->choice[n][0] == '\0') {
            return "one of its choices is empty";
        }
        if (strpbrk(row->choice[n], ":+,=") != NULL) {
            return "one of its choices holds ':', '+', ',' or '='";
        }
    }
    return row->def.i < 0 || row->def.i >= n ? "its default is none of its choices" : NULL;
}

static const char *float_wrong(const kvc_param *row) {
    return !isfinite(row->min.f)   ? "its least is not finite"
           : !isfinite(row->max.f) ? "its most is not finite"
           : !isfinite(row->def.f) ? "its default is not finite"
           : row->min.f <= row->def.f && row->def.f <= row->max.f
               ? NULL
               : "its default is not within its range";
}

/* What is wrong with a row's default, range and choices; NULL when nothing is. */
static const char *value_wrong(const kvc_param *row) {
    switch (row->type) {
    case KVC_PARAM_INT:
    case KVC_PARAM_SIZE:
        return row->type == KVC_PARAM_SIZE && row->min.i < 0 ? "its least is negative"
               : row->min.i <= row->def.i && row->def.i <= row->max.i
                   ? NULL
                   : "its default is not within its range";
    case KVC_PARAM_FLOAT:
        return float_wrong(row);
    case KVC_PARAM_BOOL:
        return row->def.i == 0 || row->def.i == 1 ? NULL : "its default is neither 0 nor 1";
    case KVC_PARAM_BUDGET:
        return kvc__budget_valid(row->def.i)
                   ? NULL
                   : "its default is no budget; write it with KVC_BUDGET()";
    case KVC_PARAM_STRING:
        return row->def.s == NULL || strpbrk(row->def.s, ":+,") == NULL
                   ? NULL
                   : "its default holds ':', '+' or ','";
    default:
        return choices_wrong(row);
    }
}

/* What is wrong with row i, given the rows in front of it; NULL when nothing is. */
static const char *param_wrong(const kvc_policy *p, uint32_t i) {
    const kvc_param *row = kvc__param_row(p, i);
    if (!kvc__name_valid(row->name, KVC__MAX_NAME - 1, 0)) {
        return "its name is not [a-z][a-z0-9_]* of at most 31 characters";
    }
    for (uint32_t j = 0; j < i; j++) {
        if (strcmp(kvc__param_row(p, j)->name, row->name) == 0) {
            return "its name is used twice";
        }
    }
    if (row->type < KVC_PARAM_INT || row->type > KVC_PARAM_BUDGET) {
        return "its type is unknown";
    }
    if (row->help == NULL || row->help[0] == '\0') {
        return "its help is missing";
    }
    return value_wrong(row);
}

/* Copies the rows, each by its own size, into an array of the host's. */
static int32_t params_copy(kvc__mem *mem, const kvc_policy *theirs, const char *path,
                           kvc__policy *out, kvc__err *err) {
    uint32_t n = theirs->n_param;
    if (n == 0) {
        out->desc.param = NULL;
        return KVC_OK;
    }
    if (n > MAX_PARAM || theirs->param == NULL || theirs->param_stride < sizeof(kvc_param) ||
        theirs->param_stride % _Alignof(kvc_param) != 0) {
        return kvc__fail(err, KVC_E_LOAD_PARAMS,
                         "%s: policy %s: its parameter table of %u rows, %u bytes apart, is not "
                         "usable; give at most 64 rows and param_stride sizeof(kvc_param)",
                         kvc__policy_where(path), theirs->name, n, theirs->param_stride);
    }
    out->param = kvc__alloc_n(mem, n, sizeof(kvc_param));
    if (out->param == NULL) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for the parameters of %s",
                         kvc__policy_where(path));
    }
    out->param_bytes = n * sizeof(kvc_param);
    for (uint32_t i = 0; i < n; i++) {
        const kvc_param *row = kvc__param_row(theirs, i);
        if (row->struct_size < sizeof(kvc_param) || row->struct_size > theirs->param_stride) {
            return kvc__fail(err, KVC_E_LOAD_PARAMS,
                             "%s: policy %s: row %u of its parameter table has struct_size %u; set "
                             "it to sizeof(kvc_param)",
                             kvc__policy_where(path), theirs->name, i, row->struct_size);
        }
        memcpy(&out->param[i], row, sizeof(kvc_param));
    }
    out->desc.param = out->param;
    out->desc.param_stride = sizeof(kvc_param);
    return KVC_OK;
}

static int32_t params_check(const kvc_policy *p, const char *path, kvc__err *err) {
    for (uint32_t i = 0; i < p->n_param; i++) {
        const char *what = param_wrong(p, i);
        if (what != NULL) {
            const char *name = kvc__param_row(p, i)->name;
            return kvc__fail(err, KVC_E_LOAD_PARAMS,
                             "%s: policy %s: row %u (%.40s) of its parameter table: %s; correct it "
                             "in the policy",
                             kvc__policy_where(path), p->name, i, name ? name : "no name", what);
        }
    }
    return KVC_OK;
}

static size_t least(size_t a, size_t b) {
    return a < b ? a : b;
}

/* Each check relies on those before it: no member is read that the table may not have. */
int32_t kvc__policy_check(kvc__mem *mem, const kvc_policy *theirs, const char *path,
                          kvc__policy *out, kvc__err *err) {
    int32_t rc;
    *out = (kvc__policy){0};
    KVC_CHECK(abi_check(theirs, path, err));
    KVC_CHECK(table_check(theirs, path, err));
    if (!kvc__name_valid(theirs->name, KVC__MAX_NAME, 1)) {
        rc = kvc__fail(err, KVC_E_LOAD_NAME,
                       "%s: the policy's name \"%.40s\" is not [a-z][a-z0-9_-]* of at most 32 "
                       "characters; rename it",
                       kvc__policy_where(path), theirs->name);
        goto out;
    }
    memcpy(&out->desc, theirs, least(theirs->struct_size, sizeof out->desc));
    memcpy(&out->api, theirs->api, least(theirs->api->struct_size, sizeof out->api));
    out->desc.api = &out->api;
    KVC_CHECK(params_copy(mem, theirs, path, out, err));
    KVC_CHECK(params_check(&out->desc, path, err));
    if (theirs->requires_host != 0) {
        rc = kvc__fail(err, KVC_E_LOAD_REQUIRES,
                       "%s: policy %s requires things of its host (bits 0x%llx) that this kvc "
                       "doesn't have; use a newer kvc",
                       kvc__policy_where(path), theirs->name,
                       (unsigned long long)theirs->requires_host);
        goto out;
    }
    out->path_bytes = strlen(path) + 1;
    out->path = kvc__strndup(mem, path, out->path_bytes - 1);
    if (out->path == NULL) {
        rc = kvc__fail(err, KVC_E_NOMEM, "no memory to load %s", kvc__policy_where(path));
    }
out:
    if (rc < 0) {
        kvc__policy_free(mem, out);
    }
    return rc;
}

void kvc__policy_free(kvc__mem *mem, kvc__policy *p) {
    kvc__free(mem, p->param, p->param_bytes);
    kvc__free(mem, p->path, p->path_bytes);
    *p = (kvc__policy){0};
}
