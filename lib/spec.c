/* SPDX-License-Identifier: MIT
 * spec.c: text of a policy stack to names and typed values, and back. It stands between the public
 * API, which is given text, and the registry and the policies, which are given words and values. It
 * knows parameter tables and must not know files, sessions, or what any parameter means. */
#include "spec.h"

#include "budget.h"

#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* A policy has at most 64 parameters (the registry checks it), so a stage can't need more. */
#define MAX_PAIR 64u
/* What a sentence quotes of the user's text, so that the rest of it still fits. */
#define QUOTE "\"%.60s\""

/* ---------------------------------------------------------------- text to words */

static int32_t spec_fail(const kvc__spec *spec, const char *at, kvc__err *err, const char *what) {
    return kvc__fail(err, KVC_E_SPEC, "policy spec, character %zu: %s",
                     (size_t)(at - spec->text) + 1, what);
}

/* Ends the token at p and returns its delimiter; *next is what follows it. */
static char token_cut(char *p, const char *delimiters, char **next) {
    char *end = p + strcspn(p, delimiters);
    char c = *end;
    *end = '\0';
    *next = c ? end + 1 : end;
    return c;
}

/* Adds "key=value" at p to the stage. */
static int32_t pair_add(const kvc__spec *spec, kvc__spec_stage *stage, char *p, kvc__err *err) {
    char *equals = strchr(p, '=');
    if (equals == NULL) {
        return kvc__fail(err, KVC_E_SPEC,
                         "policy spec, character %zu: parameter " QUOTE " of " QUOTE
                         " lacks '='; write key=value",
                         (size_t)(p - spec->text) + 1, p, stage->word);
    }
    if (equals == p) {
        return spec_fail(spec, p, err, "a parameter's name is missing in front of '='");
    }
    *equals = '\0';
    for (uint32_t i = 0; i < stage->n_pair; i++) {
        if (strcmp(stage->key[i], p) == 0) {
            return kvc__fail(err, KVC_E_SPEC,
                             "policy spec, character %zu: parameter " QUOTE " of " QUOTE
                             " is given twice; give it once",
                             (size_t)(p - spec->text) + 1, p, stage->word);
        }
    }
    if (stage->n_pair == MAX_PAIR) {
        return spec_fail(spec, p, err, "more than 64 parameters in one stage; leave some out");
    }
    stage->key[stage->n_pair] = p;
    stage->value[stage->n_pair] = equals + 1;
    stage->n_pair++;
    return KVC_OK;
}

/* Reads one stage at *p; its pairs go to key and value. *more says whether a '+' followed. */
static int32_t stage_parse(kvc__spec *spec, char **p, char **key, char **value, int *more,
                           kvc__err *err) {
    if (spec->n_stage == KVC__MAX_STAGE) {
        return spec_fail(spec, *p, err, "more than 8 stages; join fewer with '+'");
    }
    kvc__spec_stage *stage = &spec->stage[spec->n_stage];
    char *word = *p;
    char delimiter = token_cut(word, ":+", p);
    if (*word == '\0') {
        return spec_fail(spec, word, err,
                         "a policy's name is missing; write NAME:key=value, stages joined by '+'");
    }
    *stage = (kvc__spec_stage){.word = word, .key = key, .value = value};
    spec->n_stage++;
    while (delimiter == ':') {
        char *pair = *p;
        delimiter = token_cut(pair, ":+", p);
        KVC_TRY(pair_add(spec, stage, pair, err));
    }
    *more = delimiter == '+';
    return KVC_OK;
}

int32_t kvc__spec_parse(kvc__mem *mem, const char *text, kvc__spec *out, kvc__err *err) {
    int32_t rc = KVC_OK;
    size_t n = strlen(text), n_pair = 0;
    *out = (kvc__spec){.mem = mem};
    for (size_t i = 0; i < n; i++) {
        n_pair += text[i] == ':';
    }
    out->text_bytes = n + 1;
    out->text = kvc__strndup(mem, text, n);
    /* One array serves every stage: each has as many keys and values as it has ':' in front. */
    out->pairs_bytes = (2 * n_pair + 1) * sizeof(char *);
    out->pairs = kvc__alloc_n(mem, 2 * n_pair + 1, sizeof(char *));
    if (out->text == NULL || out->pairs == NULL) {
        rc = kvc__fail(err, KVC_E_NOMEM, "no memory to parse a policy spec of %zu bytes", n);
        goto out;
    }
    const char *comma = strchr(out->text, ',');
    if (comma != NULL) {
        rc = spec_fail(out, comma, err, "',' can't stand in a stack; join stages with '+'");
        goto out;
    }
    char *p = out->text;
    size_t used = 0;
    int more = 1;
    while (more) {
        KVC_CHECK(stage_parse(out, &p, out->pairs + used, out->pairs + n_pair + used, &more, err));
        used += out->stage[out->n_stage - 1].n_pair;
    }
out:
    if (rc < 0) {
        kvc__spec_free(out);
    }
    return rc;
}

void kvc__spec_free(kvc__spec *spec) {
    if (spec->mem != NULL) {
        kvc__free(spec->mem, spec->text, spec->text_bytes);
        kvc__free(spec->mem, spec->pairs, spec->pairs_bytes);
    }
    *spec = (kvc__spec){0};
}

/* ---------------------------------------------------------------- words to values */

uint32_t kvc__text_distance(const char *a, const char *b) {
    enum { MOST = 48 };
    uint32_t row[MOST + 1];
    size_t n_a = strlen(a), n_b = strlen(b);
    if (n_a > MOST || n_b > MOST) {
        return UINT32_MAX;
    }
    for (uint32_t j = 0; j <= n_b; j++) {
        row[j] = j;
    }
    for (uint32_t i = 1; i <= n_a; i++) {
        uint32_t diagonal = row[0];
        row[0] = i;
        for (uint32_t j = 1; j <= n_b; j++) {
            uint32_t least = diagonal + (a[i - 1] != b[j - 1]);
            least = row[j] + 1 < least ? row[j] + 1 : least;
            least = row[j - 1] + 1 < least ? row[j - 1] + 1 : least;
            diagonal = row[j];
            row[j] = least;
        }
    }
    /* A word of which more than half would change is not a misspelling. */
    return 2 * row[n_b] > (n_a > n_b ? n_a : n_b) ? UINT32_MAX : row[n_b];
}

const kvc_param *kvc__param_row(const kvc_policy *policy, uint32_t i) {
    return (const kvc_param *)(const void *)((const char *)policy->param +
                                             (size_t)i * policy->param_stride);
}

bool kvc__text_integer(const char *text, bool bytes, int64_t *out) {
    const bool negative = *text == '-';
    uint64_t value = 0, limit = negative ? (uint64_t)INT64_MAX + 1 : (uint64_t)INT64_MAX;
    const char *p = text + (*text == '-' || *text == '+');
    const char *digits = p;
    for (; *p >= '0' && *p <= '9'; p++) {
        uint64_t digit = (uint64_t)(*p - '0');
        if (value > (limit - digit) / 10) {
            return false;
        }
        value = value * 10 + digit;
    }
    if (p == digits) {
        return false;
    }
    int shift = *p == 'K' ? 10 : *p == 'M' ? 20 : *p == 'G' ? 30 : 0;
    p += shift > 0;
    if (value > limit >> shift) {
        return false;
    }
    value <<= shift;
    if (bytes && shift > 0 && strcmp(p, "iB") == 0) {
        p += 2;
    } else if (bytes && shift == 0) {
        p += *p == 'B';
    }
    /* Negated as unsigned, since the least integer has no positive counterpart. */
    *out = negative ? (int64_t)(0 - value) : (int64_t)value;
    return *p == '\0';
}

/* Numbers are read and printed with a '.' whatever the locale of the program says. Where there is
 * no memory for a locale the program's own serves. */
typedef struct number_locale {
    locale_t c, before;
} number_locale;

static number_locale numbers_begin(void) {
    number_locale l = {.c = newlocale(LC_NUMERIC_MASK, "C", (locale_t)0)};
    l.before = uselocale(l.c);
    return l;
}

static void numbers_end(number_locale l) {
    uselocale(l.before);
    if (l.c != (locale_t)0) {
        freelocale(l.c);
    }
}

/* What overflows becomes infinite, which no range admits. */
bool kvc__text_double(const char *text, double *out) {
    if (*text == '\0' || text[strspn(text, "0123456789+-.eE")] != '\0') {
        return false;
    }
    number_locale l = numbers_begin();
    char *end = NULL;
    *out = strtod(text, &end);
    numbers_end(l);
    return *end == '\0';
}

static int bool_read(const char *text, int64_t *out) {
    static const char *const word[] = {"off", "on", "false", "true", "no", "yes", "0", "1"};
    for (size_t i = 0; i < sizeof word / sizeof word[0]; i++) {
        if (strcmp(text, word[i]) == 0) {
            *out = (int64_t)(i & 1);
            return 1;
        }
    }
    return 0;
}

static int choice_read(const kvc_param *row, const char *text, int64_t *out) {
    for (int64_t i = 0; row->choice[i] != NULL; i++) {
        if (strcmp(text, row->choice[i]) == 0) {
            *out = i;
            return 1;
        }
    }
    return 0;
}

/* Reads and checks one value against its row; 0 when it isn't allowed. */
static int value_read(const kvc_param *row, const char *text, kvc_value *out) {
    switch (row->type) {
    case KVC_PARAM_INT:
    case KVC_PARAM_SIZE:
        return kvc__text_integer(text, row->type == KVC_PARAM_SIZE, &out->i) &&
               out->i >= row->min.i && out->i <= row->max.i;
    case KVC_PARAM_FLOAT:
        return kvc__text_double(text, &out->f) && out->f >= row->min.f && out->f <= row->max.f;
    case KVC_PARAM_BOOL:
        return bool_read(text, &out->i);
    case KVC_PARAM_ENUM:
        return choice_read(row, text, &out->i);
    case KVC_PARAM_BUDGET:
        return kvc__budget_read(text, &out->i);
    default: /* KVC_PARAM_STRING: policy_table.c lets no other pass */
        out->s = text;
        return 1;
    }
}

/* ---------------------------------------------------------------- what is allowed, in words */

/* Text of bounded size that remembers how long it wanted to be. */
typedef struct text {
    char *out;
    size_t cap, n;
} text;

static void text_add(text *t, const char *s) {
    for (; *s != '\0'; s++, t->n++) {
        if (t->n + 1 < t->cap) {
            t->out[t->n] = *s;
            t->out[t->n + 1] = '\0';
        }
    }
}

/* The shortest digits that read back as the same number; with 17 every number does. */
static void float_add(text *t, double value) {
    char digits[32];
    number_locale l = numbers_begin();
    double back;
    int precision = 6;
    do {
        snprintf(digits, sizeof digits, "%.*g", precision, value);
        back = strtod(digits, NULL);
    } while (precision++ < 17 && (back < value || back > value));
    numbers_end(l);
    char *plus = strchr(digits, '+');
    if (plus != NULL) { /* "1e+300": in a spec '+' begins the next stage */
        memmove(plus, plus + 1, strlen(plus));
    }
    text_add(t, digits);
}

static void value_add(text *t, const kvc_param *row, kvc_value value) {
    char digits[KVC__BUDGET_TEXT];
    switch (row->type) {
    case KVC_PARAM_FLOAT:
        float_add(t, value.f);
        break;
    case KVC_PARAM_BOOL:
        text_add(t, value.i ? "on" : "off");
        break;
    case KVC_PARAM_ENUM:
        text_add(t, row->choice[value.i]);
        break;
    case KVC_PARAM_STRING:
        text_add(t, value.s);
        break;
    case KVC_PARAM_BUDGET:
        kvc__budget_text(value.i, digits);
        text_add(t, digits);
        break;
    default:
        snprintf(digits, sizeof digits, "%lld", (long long)value.i);
        text_add(t, digits);
    }
}

/* "an integer from 1 to 9 (tokens)", "one of a, b". */
static void allowed_add(text *t, const kvc_param *row) {
    if (row->type == KVC_PARAM_ENUM) {
        text_add(t, "one of ");
        for (size_t i = 0; row->choice[i] != NULL; i++) {
            text_add(t, i ? ", " : "");
            text_add(t, row->choice[i]);
        }
        return;
    }
    if (row->type == KVC_PARAM_BOOL) {
        text_add(t, "on or off");
        return;
    }
    if (row->type == KVC_PARAM_BUDGET) {
        text_add(t, "tokens per lane (512, 2K; at most 2147483647), a share of n_ctx (25%, 12.5%; "
                    "at most 100%), or whole bytes in B, KiB, MiB or GiB (8MiB)");
        return;
    }
    text_add(t, row->type == KVC_PARAM_FLOAT ? "a number from "
                : row->type == KVC_PARAM_SIZE
                    ? "whole bytes (KiB, MiB, GiB, or K, M, G may follow) from "
                    : "an integer from ");
    value_add(t, row, row->min);
    text_add(t, " to ");
    value_add(t, row, row->max);
    if (row->unit != NULL && row->type != KVC_PARAM_SIZE) {
        text_add(t, " ");
        text_add(t, row->unit);
    }
}

/* ", did you mean \"…\"?" for the nearest of the row's choices, or of the policy's keys when row
 * is NULL. */
static void nearest_add(text *t, const kvc_policy *policy, const kvc_param *row, const char *word) {
    const char *nearest = NULL;
    uint32_t least = UINT32_MAX;
    for (uint32_t i = 0; row ? row->choice[i] != NULL : i < policy->n_param; i++) {
        const char *name = row ? row->choice[i] : kvc__param_row(policy, i)->name;
        uint32_t distance = kvc__text_distance(word, name);
        if (distance < least) {
            least = distance;
            nearest = name;
        }
    }
    if (nearest != NULL) {
        text_add(t, "; did you mean \"");
        text_add(t, nearest);
        text_add(t, "\"?");
    }
}

/* What to write instead of a size whose unit is another's: 8MB, 64kib, 1.5MiB. */
static void unit_add(text *t, const kvc_param *row, const char *value) {
    static const char *const behind[] = {"", "b", "ib"};
    const size_t n = strspn(value, "0123456789."), rest = n < strlen(value) ? n + 1 : n;
    const char unit = (char)(value[n] & ~0x20); /* in upper case */
    char right[64];
    size_t known = 0;
    while (known < 3 && strcasecmp(value + rest, behind[known]) != 0) {
        known++;
    }
    const bool counts = row->type == KVC_PARAM_INT || (row->type == KVC_PARAM_BUDGET && known == 0);
    if (n == 0 || n > 20 || known == 3 || (unit != 'K' && unit != 'M' && unit != 'G') ||
        (row->type == KVC_PARAM_INT && known != 0)) {
        return;
    }
    if (memchr(value, '.', n) != NULL) {
        snprintf(right, sizeof right, "; it is a whole number, so take a smaller unit");
    } else if (counts) {
        snprintf(right, sizeof right, "; did you mean %.*s%c?", (int)n, value, unit);
    } else {
        snprintf(right, sizeof right, "; write %.*s%ciB, in powers of 1024", (int)n, value, unit);
    }
    text_add(t, right);
}

static int32_t value_fail(const kvc_policy *policy, const kvc_param *row, const char *value,
                          kvc__err *err) {
    char words[512] = "";
    text t = {words, sizeof words, 0};
    allowed_add(&t, row);
    if (row->type == KVC_PARAM_ENUM) {
        nearest_add(&t, policy, row, value);
    } else if (row->type == KVC_PARAM_INT || row->type == KVC_PARAM_SIZE ||
               row->type == KVC_PARAM_BUDGET) {
        unit_add(&t, row, value);
    }
    return kvc__fail(err, KVC_E_PARAM, "policy %s: %s=%.60s is not allowed; give %s", policy->name,
                     row->name, value, words);
}

static int32_t key_fail(const kvc_policy *policy, const char *key, kvc__err *err) {
    char words[512] = "";
    text t = {words, sizeof words, 0};
    for (uint32_t i = 0; i < policy->n_param; i++) {
        text_add(&t, i ? ", " : "it has ");
        text_add(&t, kvc__param_row(policy, i)->name);
    }
    text_add(&t, policy->n_param ? "" : "it has none");
    nearest_add(&t, policy, NULL, key);
    return kvc__fail(err, KVC_E_PARAM, "policy %s has no parameter " QUOTE "; %s", policy->name,
                     key, words);
}

int32_t kvc__spec_values(const kvc__spec_stage *stage, const kvc_policy *policy, kvc_value *value,
                         kvc__err *err) {
    for (uint32_t i = 0; i < policy->n_param; i++) {
        value[i] = kvc__param_row(policy, i)->def;
    }
    for (uint32_t p = 0; p < stage->n_pair; p++) {
        uint32_t i = 0;
        while (i < policy->n_param && strcmp(kvc__param_row(policy, i)->name, stage->key[p]) != 0) {
            i++;
        }
        if (i == policy->n_param) {
            return key_fail(policy, stage->key[p], err);
        }
        if (!value_read(kvc__param_row(policy, i), stage->value[p], &value[i])) {
            return value_fail(policy, kvc__param_row(policy, i), stage->value[p], err);
        }
    }
    return KVC_OK;
}

/* A STRING that is NULL can't be written and is left out: parsing the text gives NULL again. */
size_t kvc__spec_format(const kvc_policy *policy, const kvc_value *value, char *out, size_t cap) {
    text t = {out, cap, 0};
    if (cap > 0) {
        out[0] = '\0';
    }
    text_add(&t, policy->name);
    for (uint32_t i = 0; i < policy->n_param; i++) {
        const kvc_param *row = kvc__param_row(policy, i);
        if (row->type == KVC_PARAM_STRING && value[i].s == NULL) {
            continue;
        }
        text_add(&t, ":");
        text_add(&t, row->name);
        text_add(&t, "=");
        value_add(&t, row, value[i]);
    }
    return t.n;
}
