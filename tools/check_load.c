/* SPDX-License-Identifier: MIT
 * check_load.c: from a file to a policy that can be opened in sessions: its table, its plan, and
 * the stacks in which it is to be tested. Runs in a test's own process, since loading runs code. */
#include "check_kit.h"
#include "check_stages.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#define MAX_INDEX 64u

bool chk_entry(chk *c, const kvc_policy *(**out)(uint32_t host_abi, uint32_t index)) {
    void *handle = dlopen(c->path, RTLD_NOW | RTLD_LOCAL);
    void *symbol = handle != NULL ? dlsym(handle, "kvc_policy_entry") : NULL;
    if (symbol == NULL) {
        const char *why = dlerror();
        chk_fail(c, "the file can't be loaded: %s", why != NULL ? why : "no reason is given");
        return false;
    }
    memcpy(out, &symbol, sizeof *out);
    return true;
}

/* Copies what this host knows of a table. */
static void copy_table(void *out, const void *theirs, size_t size) {
    uint32_t n;
    memcpy(&n, theirs, sizeof n);
    memset(out, 0, size);
    memcpy(out, theirs, n < size ? n : size);
}

bool chk_load(chk *c) {
    const kvc_policy *(*entry)(uint32_t, uint32_t) = NULL;
    if (!chk_entry(c, &entry)) {
        return false;
    }
    for (uint32_t i = 0; i < MAX_INDEX; i++) {
        const kvc_policy *p = entry(KVC_POLICY_ABI, i);
        if (p == NULL) {
            break;
        }
        if (p->struct_size >= sizeof *p && p->name != NULL && strcmp(p->name, c->name) == 0) {
            copy_table(&c->policy, p, sizeof c->policy);
            copy_table(&c->api, p->api, sizeof c->api);
            snprintf(c->spec, sizeof c->spec, "%s%s%s", c->name, c->params[0] != '\0' ? ":" : "",
                     c->params);
            chk_shim_set(c);
            return true;
        }
    }
    chk_fail(c, "the file holds no policy \"%s\" any more", c->name);
    return false;
}

/* Whether the installed policy can be opened beside this one. */
static bool companion(chk *c, kvc_model *model, const char *spec) {
    kvc_params *p = chk_params(c, "f32", 64, false);
    kvc_session *s = NULL;
    const chk_plan plan = c->plan;
    const bool good = kvc_session_open(model, spec, p, &s) == KVC_OK;
    kvc_session_close(s);
    kvc_params_destroy(p);
    c->plan = plan;
    return good;
}

static void add_stack(chk *c, const char *base, const char *format, const char *a, const char *b) {
    snprintf(c->stack[c->n_stack], sizeof *c->stack, format, a, b);
    c->base[c->n_stack++] = base;
}

/* Alone; a tier under int8 pages too; a policy that says which tokens, with exact pages too. */
static void list_stacks(chk *c, kvc_model *model) {
    const uint32_t type = c->plan.open_type;
    const bool format = (c->plan.answers & KVC_ANSWERS_FORMAT) != 0;
    char spec[1100];
    c->n_stack = 0;
    add_stack(c,
              !format                 ? ""
              : type == KVC_TYPE_F32  ? CHK_F32
              : type == KVC_TYPE_BF16 ? CHK_BF16
                                      : "",
              "%s%s", c->spec, "");
    snprintf(spec, sizeof spec, "quant8+%s", c->spec);
    if ((c->plan.answers & KVC_ANSWERS_WHERE) != 0 && !format && companion(c, model, spec)) {
        add_stack(c, "quant8", "%s+%s", "quant8", c->spec);
    } else if ((c->plan.answers & KVC_ANSWERS_WHICH) != 0 && !format) {
        add_stack(c, CHK_F32, "%s+%s", c->spec, CHK_F32);
    }
}

bool chk_prepare(chk *c) {
    if (!chk_load(c)) {
        return false;
    }
    kvc_model *model = chk_open_model(c, &chk_base, 1);
    chk_shim_cold(true);
    kvc_session *s = model != NULL ? chk_open(c, model, c->spec, "f32", CHK_CTX) : NULL;
    if (s != NULL) {
        list_stacks(c, model);
    }
    kvc_session_close(s);
    kvc_model_close(model);
    return s != NULL;
}
