/* SPDX-License-Identifier: MIT
 * policy_list.c: prints what policies say of themselves in their tables. It loads nothing; the
 * library has done so. */
#include "policy_list.h"

#include "report.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

static const char *type_name(uint32_t type) {
    static const char *const name[] = {"?",    "int",  "float",  "bool",
                                       "enum", "size", "string", "budget"};
    return name[type < sizeof name / sizeof name[0] ? type : 0];
}

/* ---------------------------------------------------------------- text */

/* "512", "12.5%", "8MiB". */
static void budget_text(int64_t budget, char *buf, size_t cap) {
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB"};
    int64_t amount = kvc_budget_amount(budget);
    size_t i = 0;
    switch (kvc_budget_unit(budget)) {
    case KVC_BUDGET_SHARE:
        snprintf(buf, cap, "%.10g%%", (double)amount / (double)(KVC_BUDGET_WHOLE / 100));
        break;
    case KVC_BUDGET_BYTES:
        for (; i < 3 && amount % 1024 == 0; i++) {
            amount /= 1024;
        }
        snprintf(buf, cap, "%lld%s", (long long)amount, unit[i]);
        break;
    default:
        snprintf(buf, cap, "%lld", (long long)amount);
    }
}

static void value_text(const kvc_param *p, const kvc_value *v, char *buf, size_t cap) {
    switch (p->type) {
    case KVC_PARAM_FLOAT:
        snprintf(buf, cap, "%g", v->f);
        break;
    case KVC_PARAM_BOOL:
        snprintf(buf, cap, "%s", v->i != 0 ? "on" : "off");
        break;
    case KVC_PARAM_ENUM:
        snprintf(buf, cap, "%s", p->choice[v->i]);
        break;
    case KVC_PARAM_STRING:
        snprintf(buf, cap, "%s", v->s != NULL ? v->s : "");
        break;
    case KVC_PARAM_BUDGET:
        budget_text(v->i, buf, cap);
        break;
    default:
        snprintf(buf, cap, "%lld", (long long)v->i);
    }
}

/* What may be given: "0 to 8", "a | b". */
static void range_text(const kvc_param *p, char *buf, size_t cap) {
    char min[64], max[64];
    size_t used = 0;
    switch (p->type) {
    case KVC_PARAM_INT:
    case KVC_PARAM_SIZE:
    case KVC_PARAM_FLOAT:
        value_text(p, &p->min, min, sizeof min);
        value_text(p, &p->max, max, sizeof max);
        snprintf(buf, cap, "%s to %s", min, max);
        break;
    case KVC_PARAM_BOOL:
        snprintf(buf, cap, "on or off");
        break;
    case KVC_PARAM_ENUM:
        buf[0] = '\0';
        for (size_t i = 0; p->choice[i] != NULL && used < cap; i++) {
            int n = snprintf(buf + used, cap - used, "%s%s", i > 0 ? " | " : "", p->choice[i]);
            used += n > 0 ? (size_t)n : 0;
        }
        break;
    case KVC_PARAM_BUDGET:
        snprintf(buf, cap, "tokens per lane, a share of n_ctx (25%%) or bytes (8MiB)");
        break;
    default:
        snprintf(buf, cap, "text");
    }
}

void cmp_list_param(const kvc_param *p, char *buf, size_t cap) {
    char def[256], range[512];
    value_text(p, &p->def, def, sizeof def);
    range_text(p, range, sizeof range);
    snprintf(buf, cap, "%s=%s (%s%s%s; %s)", p->name, def, type_name(p->type),
             p->unit != NULL ? ", " : "", p->unit != NULL ? p->unit : "", range);
}

static void param_line(FILE *out, const kvc_param *p, int width) {
    char line[1024];
    cmp_list_param(p, line, sizeof line);
    cmp_text_wrap(out, "  ", line, width);
    cmp_text_wrap(out, "      ", p->help != NULL ? p->help : "", width);
}

/* Not wrapped: a path is there to be copied. */
static void head_line(FILE *out, const char *name, const char *what, const char *file) {
    cmp_text_put(out, name, strlen(name));
    fputs(strcmp(what, "BROKEN") == 0 ? "  " : " ", out);
    cmp_text_put(out, what, strlen(what));
    fputs("  ", out);
    cmp_text_put(out, file, strlen(file));
    fputc('\n', out);
}

void cmp_list_text(FILE *out, const kvc_policies *list, int width) {
    const char *path = kvc_policies_path(list);
    uint32_t n = kvc_policies_count(list);
    if (n == 0) {
        fprintf(out, "No policies in %s\n", path);
    }
    for (uint32_t i = 0; i < n; i++) {
        kvc_policy_info info = {.struct_size = sizeof info};
        if (kvc_policies_get(list, i, &info) < 0) {
            continue;
        }
        const char *file = info.path[0] != '\0' ? info.path : "linked in";
        if (info.status < 0) {
            head_line(out, info.name, "BROKEN", file);
            cmp_text_wrap(out, "  ", info.error, width);
        } else {
            char what[128];
            snprintf(what, sizeof what, "%.100s  ABI %u", info.version, info.abi);
            head_line(out, info.name, what, file);
            cmp_text_wrap(out, "  ", info.summary, width);
        }
        for (uint32_t k = 0; k < info.n_param; k++) {
            const kvc_param *p = NULL;
            if (kvc_policies_param(list, i, k, &p) >= 0) {
                param_line(out, p, width);
            }
        }
        fputc('\n', out);
    }
}

/* ---------------------------------------------------------------- JSON */

/* null for what isn't there or isn't text. */
static json_t *text(const char *s) {
    json_t *value = s != NULL ? json_string(s) : NULL;
    return value != NULL ? value : json_null();
}

static json_t *value_json(const kvc_param *p, const kvc_value *v) {
    char buf[64];
    switch (p->type) {
    case KVC_PARAM_FLOAT:
        return isfinite(v->f) ? json_real(v->f) : json_null();
    case KVC_PARAM_BOOL:
        return json_boolean(v->i != 0);
    case KVC_PARAM_ENUM:
        return text(p->choice[v->i]);
    case KVC_PARAM_STRING:
        return text(v->s);
    case KVC_PARAM_BUDGET:
        budget_text(v->i, buf, sizeof buf);
        return text(buf);
    default:
        return json_integer(v->i);
    }
}

static json_t *param_json(const kvc_param *p) {
    int ranged =
        p->type == KVC_PARAM_INT || p->type == KVC_PARAM_SIZE || p->type == KVC_PARAM_FLOAT;
    json_t *o =
        json_pack("{s:o, s:s, s:o, s:o, s:o, s:o, s:o}", "name", text(p->name), "type",
                  type_name(p->type), "unit", text(p->unit), "default", value_json(p, &p->def),
                  "min", ranged ? value_json(p, &p->min) : json_null(), "max",
                  ranged ? value_json(p, &p->max) : json_null(), "help", text(p->help));
    if (o != NULL && p->type == KVC_PARAM_ENUM) {
        json_t *choices = json_array();
        for (size_t i = 0; p->choice[i] != NULL; i++) {
            json_array_append_new(choices, text(p->choice[i]));
        }
        json_object_set_new(o, "choices", choices);
    }
    return o;
}

static json_t *policy_json(const kvc_policies *list, uint32_t i) {
    kvc_policy_info info = {.struct_size = sizeof info};
    if (kvc_policies_get(list, i, &info) < 0) {
        return NULL;
    }
    json_t *params = json_array();
    for (uint32_t k = 0; k < info.n_param; k++) {
        const kvc_param *p = NULL;
        if (kvc_policies_param(list, i, k, &p) >= 0) {
            json_array_append_new(params, param_json(p));
        }
    }
    return json_pack("{s:o, s:o, s:o, s:o, s:I, s:o, s:o, s:s, s:o, s:o}", "name", text(info.name),
                     "file", text(info.path), "version", text(info.version), "license",
                     text(info.license), "abi", (json_int_t)info.abi, "summary", text(info.summary),
                     "broken", json_boolean(info.status < 0), "status",
                     kvc_status_name(info.status), "error",
                     info.status < 0 ? text(info.error) : json_null(), "params", params);
}

int cmp_list_json(FILE *out, const kvc_policies *list) {
    json_t *policies = json_array();
    for (uint32_t i = 0; i < kvc_policies_count(list); i++) {
        if (json_array_append_new(policies, policy_json(list, i)) != 0) {
            json_decref(policies);
            return -1;
        }
    }
    json_t *root = json_pack("{s:s, s:o, s:o}", "schema", "kvcompare-list/1", "searched",
                             text(kvc_policies_path(list)), "policies", policies);
    if (root == NULL) {
        return -1;
    }
    int rc = json_dumpf(root, out, JSON_INDENT(2));
    fputc('\n', out);
    json_decref(root);
    return rc;
}
