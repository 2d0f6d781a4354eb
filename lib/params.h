/* SPDX-License-Identifier: MIT
 * params.h: options by name. */
#ifndef KVC_PARAMS_H
#define KVC_PARAMS_H

#include "err.h"
#include "registry.h"

#include "kvc/kvc.h"

#include <stdint.h>

/** The options; what each means stands in kvc.h. */
struct kvc_params {
    uint32_t n_threads;
    uint32_t n_ctx;
    uint32_t n_batch;
    uint32_t compute;
    uint64_t seed;
    int policy_env;
    int policy_default;
    double temperature;
    uint32_t top_k;
    double top_p;
    double min_p;
    kvc_allocator allocator; /* realloc NULL: libc */
    kvc_log_fn log;
    void *log_user;
    uint32_t n_dir, n_entry;
    char **dir;
    kvc__entry_fn *entry;
    kvc__err err;
};

/** The defaults, for a constructor that was given no params. */
extern const struct kvc_params kvc__params_default;

/** The search of these params; pointers lead into them. */
void kvc__params_search(const struct kvc_params *p, kvc__search *out);

#endif
