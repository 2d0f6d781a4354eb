/* SPDX-License-Identifier: MIT
 * check_params.c: the group "parameters": whatever values a policy is given, sessions open or are
 * refused by a sentence. Values are made from the policy's own table; of a type that this file
 * doesn't know, and of texts, only the default is given. */
#include "check_kit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_CTX = CHK_CTX, N_RANDOM = 200 };

/* Where in its range a value is taken. */
enum { AT_DEFAULT, AT_LEAST, AT_MOST, AT_RANDOM };

static const kvc_param *row_of(const chk *c, uint32_t i) {
    return (const kvc_param *)(const void *)((const char *)c->policy.param +
                                             (size_t)i * c->policy.param_stride);
}

/* ---------------------------------------------------------------- values */

/* Small numbers as often as large ones: a uniform choice would be large nearly always. */
static int64_t random_int(chk *c, int64_t min, int64_t max) {
    const uint64_t span = (uint64_t)max - (uint64_t)min;
    const uint32_t bits = 1 + chk_below(c, 64);
    uint64_t r = chk_random(c) >> (64 - bits);
    r = span == UINT64_MAX ? r : r % (span + 1);
    return (int64_t)((uint64_t)(chk_random(c) % 4 == 0 ? (uint64_t)max - r : (uint64_t)min + r));
}

static uint32_t n_choice(const kvc_param *row) {
    uint32_t n = 0;
    while (row->choice[n] != NULL) {
        n++;
    }
    return n;
}

/* A number without '+', which would begin another stage. */
static void put_float(char *out, size_t cap, double v) {
    size_t at = 0;
    char text[64];
    snprintf(text, sizeof text, "%.17g", v);
    for (size_t i = 0; text[i] != '\0' && at + 1 < cap; i++) {
        if (text[i] != '+') {
            out[at++] = text[i];
        }
    }
    out[at] = '\0';
}

/* The text of a value; false: the row is left out, which gives its default. */
static bool value_text(chk *c, const kvc_param *row, int where, char *out, size_t cap) {
    const double unit = (double)(chk_random(c) >> 11) / 9007199254740992.0;
    switch (row->type) {
    case KVC_PARAM_INT:
    case KVC_PARAM_SIZE:
        snprintf(out, cap, "%lld",
                 (long long)(where == AT_LEAST  ? row->min.i
                             : where == AT_MOST ? row->max.i
                                                : random_int(c, row->min.i, row->max.i)));
        return true;
    case KVC_PARAM_FLOAT:
        put_float(out, cap,
                  where == AT_LEAST  ? row->min.f
                  : where == AT_MOST ? row->max.f
                                     : row->min.f * (1 - unit) + row->max.f * unit);
        return true;
    case KVC_PARAM_BOOL:
        snprintf(out, cap, "%s",
                 where == AT_LEAST                     ? "off"
                 : where == AT_MOST || chk_below(c, 2) ? "on"
                                                       : "off");
        return true;
    case KVC_PARAM_ENUM:
        snprintf(out, cap, "%s",
                 row->choice[where == AT_LEAST  ? 0
                             : where == AT_MOST ? n_choice(row) - 1
                                                : chk_below(c, n_choice(row))]);
        return true;
    default:
        return false;
    }
}

/* Whether the user gave this row's value; it stays as it is. */
static bool given(const chk *c, const char *name) {
    const size_t n = strlen(name);
    for (const char *p = c->params; *p != '\0'; p += strcspn(p, ":"), p += *p == ':') {
        if (strncmp(p, name, n) == 0 && p[n] == '=') {
            return true;
        }
    }
    return false;
}

static void add_value(chk *c, char *spec, size_t cap, const kvc_param *row, int where) {
    char value[128];
    const size_t n = strlen(spec);
    if (!given(c, row->name) && value_text(c, row, where, value, sizeof value) && n < cap) {
        snprintf(spec + n, cap - n, ":%s=%s", row->name, value);
    }
}

/* ---------------------------------------------------------------- one set of values */

static bool is_refusal(int32_t rc) {
    return rc == KVC_E_PARAM || rc == KVC_E_UNSUPPORTED || rc == KVC_E_IO ||
           rc == KVC_E_NOT_FOUND || rc == KVC_E_NOMEM;
}

/* A sentence that is the status's own text says nothing of what is wrong. */
static bool is_mute(int32_t rc, const char *text) {
    const char *own = kvc_status_text(rc);
    const size_t n = strlen(text), m = strlen(own);
    return n == 0 || (rc != KVC_E_NOMEM && n >= m && strcmp(text + n - m, own) == 0);
}

/* Opens, and computes a little more than a page. */
static int32_t try_open(chk *c, kvc_model *model, const char *spec, char *why, size_t cap,
                        bool *opened) {
    kvc_params *p = chk_params(c, "int8", N_CTX, true);
    kvc_session *s = NULL;
    int32_t rc = kvc_session_open(model, spec, p, &s);
    *opened = rc == KVC_OK;
    snprintf(why, cap, "%s", kvc_params_error(p));
    if (rc == KVC_OK) {
        rc = kvc_session_decode(s, chk_text(c, 0), 70);
        rc = rc < 0 ? rc : kvc_session_decode(s, chk_text(c, 1), 70);
        snprintf(why, cap, "%s", kvc_session_error(s));
    }
    kvc_session_close(s);
    kvc_params_destroy(p);
    return rc;
}

/* Returns whether sessions opened with these values. */
static bool try_spec(chk *c, kvc_model *model, const char *spec, bool must) {
    char why[1024];
    bool opened;
    const int32_t rc = try_open(c, model, spec, why, sizeof why, &opened);
    if (rc < 0 && opened && rc != KVC_E_NOMEM && rc != KVC_E_IO) {
        chk_fail(c, "%s is accepted, and then fails: %s (%s)", spec, why, kvc_status_name(rc));
    } else if (rc < 0 && must) {
        chk_fail(c, "%s: %s (%s)", spec, why, kvc_status_name(rc));
    } else if (rc < 0 && !opened && (!is_refusal(rc) || is_mute(rc, why))) {
        chk_fail(c, "%s is refused in a way that isn't proper: %s (%s)", spec, why,
                 kvc_status_name(rc));
    }
    return opened;
}

/* The shape of the smallest heads, so that many sets take little time. */
static kvc_model *small_model(chk *c) {
    chk_shape shape = chk_base;
    shape.n_layer = 1;
    shape.dim_k = shape.dim_v = shape.n_embd = shape.n_ff = 32;
    return chk_open_model(c, &shape, 1);
}

/* ---------------------------------------------------------------- tests */

void chk_params_default(chk *c) {
    kvc_model *model = chk_load(c) ? small_model(c) : NULL;
    if (model != NULL && !try_spec(c, model, c->spec, true) && c->policy.n_param > 0) {
        chk_info(c, "if it can't work with its defaults, give what it needs: FILE.so:key=value");
    }
    kvc_model_close(model);
}

/* Each row alone at one end of its range, then all. */
static void ends(chk *c, int where) {
    char spec[2048];
    kvc_model *model = chk_load(c) ? small_model(c) : NULL;
    if (model != NULL && c->policy.n_param == 0) {
        chk_skip(c, "it has no parameters");
    }
    for (uint32_t i = 0; model != NULL && c->policy.n_param > 0 && i <= c->policy.n_param; i++) {
        snprintf(spec, sizeof spec, "%s", c->spec);
        for (uint32_t k = 0; k < c->policy.n_param; k++) {
            if (i == k || i == c->policy.n_param) {
                add_value(c, spec, sizeof spec, row_of(c, k), where);
            }
        }
        try_spec(c, model, spec, false);
    }
    kvc_model_close(model);
    chk_memory_judge(c, "after all sets");
}

void chk_params_least(chk *c) {
    ends(c, AT_LEAST);
}

void chk_params_most(chk *c) {
    ends(c, AT_MOST);
}

void chk_params_random(chk *c) {
    char spec[2048];
    uint32_t n_open = 0;
    kvc_model *model = chk_load(c) ? small_model(c) : NULL;
    if (model != NULL && c->policy.n_param == 0) {
        chk_skip(c, "it has no parameters");
    } else if (model != NULL) {
        for (uint32_t i = 0; !c->failed && i < N_RANDOM; i++) {
            snprintf(spec, sizeof spec, "%s", c->spec);
            for (uint32_t k = 0; k < c->policy.n_param; k++) {
                if (chk_below(c, 8) > 0) {
                    add_value(c, spec, sizeof spec, row_of(c, k), AT_RANDOM);
                }
            }
            n_open += try_spec(c, model, spec, false);
        }
        chk_info(c, "%u of %u random sets opened, the others were refused", n_open,
                 (unsigned)N_RANDOM);
        chk_memory_judge(c, "after all sets");
    }
    kvc_model_close(model);
}

/* ---------------------------------------------------------------- absurd values */

/* Texts that no value of the type is; ended by NULL. */
static const char *const *absurd(uint32_t type) {
    static const char *const number[] = {"", "x", "-", "1e3x", "99999999999999999999", "0x", NULL};
    static const char *const real[] = {"", "x", "nan", "inf", "1e999", "1..2", NULL};
    static const char *const size[] = {"", "-1", "1Q", "1KK", "99999999999999999999", NULL};
    static const char *const truth[] = {"", "2", "maybe", "onn", NULL};
    static const char *const choice[] = {"", "no-such-choice", NULL};
    static const char *const none[] = {NULL};
    return type == KVC_PARAM_INT     ? number
           : type == KVC_PARAM_FLOAT ? real
           : type == KVC_PARAM_SIZE  ? size
           : type == KVC_PARAM_BOOL  ? truth
           : type == KVC_PARAM_ENUM  ? choice
                                     : none;
}

static void must_refuse(chk *c, kvc_model *model, const char *spec) {
    char why[1024];
    bool opened;
    const int32_t rc = try_open(c, model, spec, why, sizeof why, &opened);
    if ((rc != KVC_E_PARAM && rc != KVC_E_SPEC) || why[0] == '\0') {
        chk_fail(c, "%s should be refused, but: %s %s", spec, kvc_status_name(rc), why);
    }
}

static void refuse_row(chk *c, kvc_model *model, const kvc_param *row) {
    const bool integer = row->type == KVC_PARAM_INT || row->type == KVC_PARAM_SIZE;
    const char *const *text = absurd(row->type);
    char spec[2048];
    for (size_t i = 0; text[i] != NULL; i++) {
        snprintf(spec, sizeof spec, "%s:%s=%s", c->name, row->name, text[i]);
        must_refuse(c, model, spec);
    }
    if (integer && row->min.i > INT64_MIN) {
        snprintf(spec, sizeof spec, "%s:%s=%lld", c->name, row->name, (long long)row->min.i - 1);
        must_refuse(c, model, spec);
    }
    if (integer && row->max.i < INT64_MAX) {
        snprintf(spec, sizeof spec, "%s:%s=%lld", c->name, row->name, (long long)row->max.i + 1);
        must_refuse(c, model, spec);
    }
}

void chk_params_absurd(chk *c) {
    char spec[2048];
    kvc_model *model = chk_load(c) ? small_model(c) : NULL;
    for (uint32_t i = 0; model != NULL && i < c->policy.n_param; i++) {
        refuse_row(c, model, row_of(c, i));
    }
    if (model != NULL) {
        snprintf(spec, sizeof spec, "%s:no_such_parameter=1", c->name);
        must_refuse(c, model, spec);
        snprintf(spec, sizeof spec, "%s:", c->name);
        must_refuse(c, model, spec);
    }
    kvc_model_close(model);
}
