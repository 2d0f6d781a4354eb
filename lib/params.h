/* SPDX-License-Identifier: MIT
 * params.h: options by name. */
#ifndef KVC_PARAMS_H
#define KVC_PARAMS_H

#include "err.h"
#include "mem.h"
#include "registry.h"

#include "kvc/kvc.h"

#include <stdint.h>

/** The options; what each means stands in kvc.h. */
struct kvc_params {
    uint32_t n_threads;
    uint32_t n_ctx;
    uint32_t n_batch;
    uint32_t compute;
    uint32_t repack;
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
    kvc__mem own; /* holds the params themselves: libc's, not the caller's allocator */
};

/** The defaults, for a constructor that was given no params. */
extern const struct kvc_params kvc__params_default;

/** Sets an option; kvc_params_set_i64() and its like say the rest. Nothing is NULL. KVC_E_PARAM:
 * the sentence on p names the option and what is allowed. */
int32_t kvc__params_set_i64(struct kvc_params *p, const char *name, int64_t value);
int32_t kvc__params_set_f64(struct kvc_params *p, const char *name, double value);
int32_t kvc__params_set_str(struct kvc_params *p, const char *name, const char *value);

/** The search of these params; pointers lead into them. */
void kvc__params_search(const struct kvc_params *p, kvc__search *out);

#endif
