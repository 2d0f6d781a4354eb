/* SPDX-License-Identifier: MIT
 * api_params.c: the exported functions on params: arguments are checked here, options are set in
 * params.c. It must not know of models, sessions or samplers. */
#include "params.h"

#include <stddef.h>
#include <string.h>

int32_t kvc_params_create(kvc_params **out) {
    if (!out) {
        return KVC_E_ARG;
    }
    kvc__mem mem;
    kvc__mem_init(&mem, NULL, NULL);
    kvc_params *p = kvc__alloc(&mem, sizeof(*p));
    *out = p;
    if (!p) {
        return KVC_E_NOMEM;
    }
    memcpy(p, &kvc__params_default, sizeof(*p));
    kvc__mem_init(&p->own, NULL, NULL);
    return KVC_OK;
}

void kvc_params_destroy(kvc_params *params) {
    if (!params) {
        return;
    }
    kvc__mem *own = &params->own;
    for (uint32_t i = 0; i < params->n_dir; i++) {
        kvc__free(own, params->dir[i], strlen(params->dir[i]) + 1);
    }
    kvc__free(own, params->dir, params->n_dir * sizeof(*params->dir));
    kvc__free(own, params->entry, params->n_entry * sizeof(*params->entry));
    kvc__mem mem;
    kvc__mem_init(&mem, NULL, NULL);
    kvc__free(&mem, params, sizeof(*params));
}

/* ---------------------------------------------------------------- options */

static int32_t check_name(kvc_params *params, const char *name) {
    if (!params) {
        return KVC_E_ARG;
    }
    if (!name) {
        return kvc__fail(&params->err, KVC_E_ARG, "the option's name is NULL; pass a name");
    }
    return KVC_OK;
}

int32_t kvc_params_set_i64(kvc_params *params, const char *name, int64_t value) {
    KVC_TRY(check_name(params, name));
    return kvc__params_set_i64(params, name, value);
}

int32_t kvc_params_set_f64(kvc_params *params, const char *name, double value) {
    KVC_TRY(check_name(params, name));
    return kvc__params_set_f64(params, name, value);
}

int32_t kvc_params_set_str(kvc_params *params, const char *name, const char *value) {
    KVC_TRY(check_name(params, name));
    if (!value) {
        return kvc__fail(&params->err, KVC_E_ARG,
                         "the value of option \"%.64s\" is NULL; pass its text", name);
    }
    return kvc__params_set_str(params, name, value);
}

/* ---------------------------------------------------------------- what has no name */

int32_t kvc_params_set_allocator(kvc_params *params, const kvc_allocator *allocator) {
    if (!params) {
        return KVC_E_ARG;
    }
    if (!allocator) {
        return kvc__fail(&params->err, KVC_E_ARG, "the allocator is NULL; pass a kvc_allocator");
    }
    size_t least = offsetof(kvc_allocator, realloc) + sizeof(allocator->realloc);
    if (allocator->struct_size < least) {
        return kvc__fail(&params->err, KVC_E_ARG,
                         "the allocator's struct_size is %u, less than %zu; set it to "
                         "sizeof(kvc_allocator)",
                         allocator->struct_size, least);
    }
    if (!allocator->realloc) {
        return kvc__fail(&params->err, KVC_E_ARG,
                         "the allocator's realloc is NULL; set a function");
    }
    params->allocator = (kvc_allocator){
        .struct_size = sizeof(kvc_allocator),
        .ctx = allocator->ctx,
        .realloc = allocator->realloc,
    };
    return KVC_OK;
}

int32_t kvc_params_set_log(kvc_params *params, kvc_log_fn fn, void *user) {
    if (!params) {
        return KVC_E_ARG;
    }
    params->log = fn;
    params->log_user = user;
    return KVC_OK;
}

int32_t kvc_params_add_policy_dir(kvc_params *params, const char *dir) {
    if (!params) {
        return KVC_E_ARG;
    }
    if (!dir || dir[0] == '\0') {
        return kvc__fail(&params->err, KVC_E_ARG,
                         "the policy directory is empty; pass a path, \".\" for the current one");
    }
    size_t size = params->n_dir * sizeof(*params->dir);
    size_t n = strlen(dir);
    char *copy = kvc__strndup(&params->own, dir, n);
    char **grown = copy ? kvc__realloc(&params->own, params->dir, size, size + sizeof(*params->dir),
                                       _Alignof(char *))
                        : NULL;
    if (!grown) {
        kvc__free(&params->own, copy, n + 1);
        return kvc__fail(&params->err, KVC_E_NOMEM, "out of memory for the policy directory %s",
                         dir);
    }
    params->dir = grown;
    params->dir[params->n_dir++] = copy;
    return KVC_OK;
}

int32_t kvc_params_add_policy(kvc_params *params,
                              const kvc_policy *(*entry)(uint32_t host_abi, uint32_t index)) {
    if (!params) {
        return KVC_E_ARG;
    }
    if (!entry) {
        return kvc__fail(&params->err, KVC_E_ARG,
                         "the policy's entry is NULL; pass its kvc_policy_entry function");
    }
    size_t size = params->n_entry * sizeof(*params->entry);
    kvc__entry_fn *grown = kvc__realloc(&params->own, params->entry, size,
                                        size + sizeof(*params->entry), _Alignof(kvc__entry_fn));
    if (!grown) {
        return kvc__fail(&params->err, KVC_E_NOMEM, "out of memory for %u linked-in policies",
                         params->n_entry + 1);
    }
    params->entry = grown;
    params->entry[params->n_entry++] = entry;
    return KVC_OK;
}

const char *kvc_params_error(const kvc_params *params) {
    return params ? params->err.text : "";
}
