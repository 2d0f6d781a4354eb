/* SPDX-License-Identifier: MIT
 * api_policies.c: the public list of policies that can be loaded. It checks the caller's arguments
 * and hands out what registry.c has found; it must not open files itself. */
#include "err.h"
#include "mem.h"
#include "params.h"
#include "registry.h"
#include "spec.h"

#include "kvc/kvc.h"

#include <string.h>

int32_t kvc_policies_open(kvc_params *params, kvc_policies **out) {
    const struct kvc_params *p = params ? params : &kvc__params_default;
    kvc__err *err = params ? &params->err : NULL;
    if (out == NULL) {
        return kvc__fail(err, KVC_E_ARG, "kvc_policies_open: out is NULL; give a place");
    }
    *out = NULL;
    /* The list holds its own counter, so another one counts the list until that is there. */
    kvc__mem boot;
    kvc__mem_init(&boot, &p->allocator, NULL);
    kvc_policies *list = kvc__alloc(&boot, sizeof *list);
    if (list == NULL) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory to list policies");
    }
    kvc__mem_init(&list->own, &p->allocator, NULL);
    kvc__search search;
    kvc__params_search(p, &search);
    int32_t rc = kvc__registry_list(&search, list, err);
    if (rc < 0) {
        kvc_policies_close(list);
        return rc;
    }
    *out = list;
    return KVC_OK;
}

void kvc_policies_close(kvc_policies *list) {
    if (list == NULL) {
        return;
    }
    kvc__registry_unlist(list);
    kvc_allocator allocator = list->own.a;
    kvc__mem boot;
    kvc__mem_init(&boot, &allocator, NULL);
    atomic_store(&boot.used, sizeof *list);
    kvc__free(&boot, list, sizeof *list);
}

uint32_t kvc_policies_count(const kvc_policies *list) {
    return list ? list->n : 0;
}

int32_t kvc_policies_get(const kvc_policies *list, uint32_t i, kvc_policy_info *out) {
    if (list == NULL || out == NULL || out->struct_size < sizeof out->struct_size) {
        return KVC_E_ARG;
    }
    if (i >= list->n) {
        return KVC_E_RANGE;
    }
    const struct kvc__listed *item = &list->item[i];
    const kvc_policy *desc = &item->policy.desc;
    int broken = item->status < 0;
    kvc_policy_info info = {.struct_size = out->struct_size,
                            .status = item->status,
                            .name = broken ? item->name : desc->name,
                            .path = item->policy.path,
                            .version = broken ? "" : desc->version,
                            .summary = broken ? "" : desc->summary,
                            .license = broken ? "" : desc->license,
                            .error = broken ? item->error : "",
                            .caps = desc->caps,
                            .abi = desc->abi,
                            .n_param = desc->n_param};
    memcpy(out, &info, out->struct_size < sizeof info ? out->struct_size : sizeof info);
    return KVC_OK;
}

int32_t kvc_policies_param(const kvc_policies *list, uint32_t i, uint32_t param,
                           const kvc_param **out) {
    if (list == NULL || out == NULL) {
        return KVC_E_ARG;
    }
    *out = NULL;
    if (i >= list->n || param >= list->item[i].policy.desc.n_param) {
        return KVC_E_RANGE;
    }
    *out = kvc__param_row(&list->item[i].policy.desc, param);
    return KVC_OK;
}

const char *kvc_policies_path(const kvc_policies *list) {
    return list ? list->path : "";
}
