/* SPDX-License-Identifier: MIT
 * params.c: the options by name: one table that says of each where it is kept and what it may be,
 * and the three ways to set one. Constructors read the struct. It must not know what an option
 * does. */
#include "params.h"

#include "pool.h"
#include "spec.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OPTION_U32, OPTION_U64, OPTION_INT, OPTION_DOUBLE, OPTION_COMPUTE /* u32 by name */ };

/* One option. */
typedef struct option {
    const char *name;
    int type;
    size_t offset;    /* of the member */
    int64_t min, max; /* a fraction's bounds are whole numbers too */
} option;

#define OPTION(type, name, min, max)                                                               \
    { #name, type, offsetof(struct kvc_params, name), min, max }

/* n_ctx ends at 2^20: page tables and RoPE's angles are held for all of it. */
static const option options[] = {
    OPTION(OPTION_U32, n_threads, 0, KVC__POOL_MAX),
    OPTION(OPTION_U32, n_ctx, 0, INT64_C(1) << 20),
    OPTION(OPTION_U32, n_batch, 1, 4096),
    OPTION(OPTION_U32, repack, 0, 1),
    OPTION(OPTION_COMPUTE, compute, KVC_COMPUTE_INT8, KVC_COMPUTE_F32),
    OPTION(OPTION_U64, seed, 0, INT64_MAX),
    OPTION(OPTION_INT, policy_env, 0, 1),
    OPTION(OPTION_INT, policy_default, 0, 1),
    OPTION(OPTION_DOUBLE, temperature, 0, 100),
    OPTION(OPTION_U32, top_k, 0, INT32_MAX),
    OPTION(OPTION_DOUBLE, top_p, 0, 1),
    OPTION(OPTION_DOUBLE, min_p, 0, 1),
};
enum { N_OPTION = sizeof(options) / sizeof(options[0]) };

const struct kvc_params kvc__params_default = {
    .n_batch = 512,
    .compute = KVC_COMPUTE_INT8,
    .repack = 1,
    .policy_env = 1,
    .policy_default = 1,
    .top_p = 1.0,
};

/* ---------------------------------------------------------------- finding */

static int32_t fail_unknown(struct kvc_params *p, const char *name) {
    const char *nearest = NULL;
    uint32_t least = UINT32_MAX;
    char list[256] = "";
    for (size_t i = 0; i < N_OPTION; i++) {
        uint32_t distance = kvc__text_distance(name, options[i].name);
        if (distance < least) {
            least = distance;
            nearest = options[i].name;
        }
        strncat(list, i ? ", " : "", sizeof(list) - strlen(list) - 1);
        strncat(list, options[i].name, sizeof(list) - strlen(list) - 1);
    }
    return kvc__fail(&p->err, KVC_E_PARAM, "unknown option \"%.64s\"%s%s%s; options are %s", name,
                     nearest ? "; did you mean \"" : "", nearest ? nearest : "",
                     nearest ? "\"?" : "", list);
}

static int32_t find(struct kvc_params *p, const char *name, const option **out) {
    for (size_t i = 0; i < N_OPTION; i++) {
        if (strcmp(name, options[i].name) == 0) {
            *out = &options[i];
            return KVC_OK;
        }
    }
    return fail_unknown(p, name);
}

/* ---------------------------------------------------------------- setting */

/* given: the value as the caller wrote it. */
static int32_t fail_range(struct kvc_params *p, const option *o, const char *given) {
    if (o->type == OPTION_COMPUTE) {
        return kvc__fail(&p->err, KVC_E_PARAM,
                         "option compute is \"%.64s\"; it must be int8 (0) or f32 (1)", given);
    }
    return kvc__fail(&p->err, KVC_E_PARAM,
                     "option %s is \"%.64s\"; it must be %s from %lld to %lld", o->name, given,
                     o->type == OPTION_DOUBLE ? "a number" : "an integer", (long long)o->min,
                     (long long)o->max);
}

static int32_t put_double(struct kvc_params *p, const option *o, double value, const char *given) {
    /* Written so that NaN fails. */
    if (!(value >= (double)o->min && value <= (double)o->max)) {
        return fail_range(p, o, given);
    }
    memcpy((char *)p + o->offset, &value, sizeof(value));
    return KVC_OK;
}

static int32_t put_integer(struct kvc_params *p, const option *o, int64_t value,
                           const char *given) {
    if (value < o->min || value > o->max) {
        return fail_range(p, o, given);
    }
    void *member = (char *)p + o->offset;
    switch (o->type) {
    case OPTION_U64:
        *(uint64_t *)member = (uint64_t)value;
        break;
    case OPTION_INT:
        *(int *)member = (int)value;
        break;
    default:
        *(uint32_t *)member = (uint32_t)value;
    }
    return KVC_OK;
}

int32_t kvc__params_set_i64(struct kvc_params *p, const char *name, int64_t value) {
    const option *o = NULL;
    KVC_TRY(find(p, name, &o));
    char given[32];
    snprintf(given, sizeof(given), "%lld", (long long)value);
    return o->type == OPTION_DOUBLE ? put_double(p, o, (double)value, given)
                                    : put_integer(p, o, value, given);
}

int32_t kvc__params_set_f64(struct kvc_params *p, const char *name, double value) {
    const option *o = NULL;
    KVC_TRY(find(p, name, &o));
    char given[32];
    snprintf(given, sizeof(given), "%.6g", value);
    if (o->type != OPTION_DOUBLE) {
        return kvc__fail(&p->err, KVC_E_PARAM,
                         "option %s takes an integer, not the fraction %s; set it as an integer",
                         o->name, given);
    }
    return put_double(p, o, value, given);
}

/* ---------------------------------------------------------------- from text */

/* A number that int64_t can't hold is no integer here; the range would refuse it too. */
static bool read_integer(const char *text, int64_t *out) {
    if (text[0] == '\0' || text[strspn(text, "0123456789+-")] != '\0') {
        return false;
    }
    char *end = NULL;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    *out = value;
    return errno == 0 && *end == '\0';
}

int32_t kvc__params_set_str(struct kvc_params *p, const char *name, const char *value) {
    const option *o = NULL;
    KVC_TRY(find(p, name, &o));
    double fraction = 0.0;
    int64_t integer = 0;
    if (o->type == OPTION_COMPUTE) {
        bool f32 = strcmp(value, "f32") == 0;
        if (!f32 && strcmp(value, "int8") != 0) {
            return fail_range(p, o, value);
        }
        return put_integer(p, o, f32 ? KVC_COMPUTE_F32 : KVC_COMPUTE_INT8, value);
    }
    if (o->type == OPTION_DOUBLE) {
        return kvc__text_double(value, &fraction) ? put_double(p, o, fraction, value)
                                                  : fail_range(p, o, value);
    }
    return read_integer(value, &integer) ? put_integer(p, o, integer, value)
                                         : fail_range(p, o, value);
}

/* ---------------------------------------------------------------- reading */

void kvc__params_search(const struct kvc_params *p, kvc__search *out) {
    *out = (kvc__search){
        .n_entry = p->n_entry,
        .entry = p->entry,
        .n_dir = p->n_dir,
        .dir = (const char *const *)p->dir,
        .use_env = p->policy_env,
        .use_default = p->policy_default,
    };
}
