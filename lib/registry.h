/* SPDX-License-Identifier: MIT
 * registry.h: finds policies and loads their files. The one place that opens a shared object. It
 * checks what a file says of itself and never calls any of its functions but kvc_policy_entry(). */
#ifndef KVC_REGISTRY_H
#define KVC_REGISTRY_H

#include "err.h"
#include "mem.h"
#include "policy_table.h"

#include "kvc/kvc.h"
#include "kvc/policy.h"

#include <stdint.h>

typedef const kvc_policy *(*kvc__entry_fn)(uint32_t host_abi, uint32_t index);

/** Where to look: filled from params (params.h). Arrays belong to the caller. */
typedef struct kvc__search {
    uint32_t n_entry;
    const kvc__entry_fn *entry; /* linked-in policies */
    uint32_t n_dir;
    const char *const *dir; /* added directories */
    int use_env;            /* KVC_POLICY_PATH */
    int saved;              /* words come from a file: its reader can't give a path instead */
    int use_default;        /* the installed directory (the build tree's for the build tree) */
} kvc__search;

/** Finds and loads `word` (a name, or a path when it holds '/'). Each check has its own code:
 *  KVC_E_NOT_FOUND (lists what was searched and the nearest name), KVC_E_LOAD_FILE (stat),
 * KVC_E_LOAD_OPEN (dlopen, with dlerror's text), KVC_E_LOAD_SYMBOL, KVC_E_LOAD_ABI,
 * KVC_E_LOAD_TABLE, KVC_E_LOAD_NAME, KVC_E_LOAD_PARAMS, KVC_E_LOAD_REQUIRES, KVC_E_NOMEM. A path's
 * file must hold exactly one policy or the word is refused, saying how many there are. */
int32_t kvc__registry_load(kvc__mem *mem, const kvc__search *search, const char *word,
                           kvc__policy *out, kvc__err *err);
/** All that can be found; broken files with their reason. */
struct kvc_policies {
    kvc__mem own; /* counts; lives with the list */
    uint32_t n;
    uint32_t cap;
    struct kvc__listed {
        kvc__policy policy; /* zeroed when broken */
        int32_t status;
        char *name; /* of a broken file */
        char *error;
    } * item;
    char *path; /* directories searched */
};

/** Fills a zeroed list (its own memory prepared) with all that the search finds: loadable ones in
 * order of name, then broken files and shadowed policies with their reason. Only KVC_E_NOMEM stops
 * it; what was listed by then is freed by kvc__registry_unlist(). */
int32_t kvc__registry_list(const kvc__search *search, struct kvc_policies *list, kvc__err *err);
/** Frees what the list holds, not the list. */
void kvc__registry_unlist(struct kvc_policies *list);

#endif
