/* SPDX-License-Identifier: MIT
 * spec.h: text of a policy stack, `window:size=1024:sinks=4+quant8`, to names and typed values.
 * Pure: no files. */
#ifndef KVC_SPEC_H
#define KVC_SPEC_H

#include "err.h"
#include "mem.h"

#include "kvc/policy.h"

#include <stdbool.h>
#include <stdint.h>

#define KVC__MAX_STAGE 8u

/** One stage of a spec: word and its key=value pairs, as written. */
typedef struct kvc__spec_stage {
    char *word; /* name, or a path when it holds '/' */
    uint32_t n_pair;
    char **key;   /* [n_pair] */
    char **value; /* [n_pair] */
} kvc__spec_stage;

/** A parsed spec. */
typedef struct kvc__spec {
    kvc__mem *mem;
    uint32_t n_stage;
    kvc__spec_stage stage[KVC__MAX_STAGE];
    char *text; /* a private copy that the pointers lead into */
    size_t text_bytes;
    char **pairs; /* memory of all key and value arrays */
    size_t pairs_bytes;
} kvc__spec;

/** Parses text. Stages are joined by '+', parameters follow ':' as key=value. KVC_E_SPEC with the
 * place and what is wrong (empty stage, missing '=', empty key, too many stages, a key given
 * twice), KVC_E_NOMEM. A path may hold any character but ':', '+' and ','. */
int32_t kvc__spec_parse(kvc__mem *mem, const char *text, kvc__spec *out, kvc__err *err);
/** Frees it; a zeroed spec is legal. */
void kvc__spec_free(kvc__spec *spec);

/** Checks a stage's pairs against the policy's table and fills value[n_param] (defaults first).
 * KVC_E_PARAM: the sentence names the policy, the key, what was given, what is allowed, and the
 * nearest key or choice to a misspelt one. String values point into the spec or the table. */
int32_t kvc__spec_values(const kvc__spec_stage *stage, const kvc_policy *policy, kvc_value *value,
                         kvc__err *err);
/** Appends "name:key=value:…" with every parameter to out (at most cap bytes with the NUL). Returns
 * the length that it needs, without NUL. */
size_t kvc__spec_format(const kvc_policy *policy, const kvc_value *value, char *out, size_t cap);
/** Row i of a policy's table, by its stride. */
const kvc_param *kvc__param_row(const kvc_policy *policy, uint32_t i);
/** Edits (insert, delete, replace a character) from a to b; UINT32_MAX when they are too different
 * for one to be a misspelling of the other. */
uint32_t kvc__text_distance(const char *a, const char *b);
/** Reads all of text as an integer, with K, M or G (powers of 1024) behind; bytes: also B, KiB, MiB
 * or GiB. KB, MB and GB are refused: half of their readers take them for powers of 1000. */
bool kvc__text_integer(const char *text, bool bytes, int64_t *out);
/** Reads a decimal number with '.', whatever the program's locale says; all of text must be one.
 * What overflows is infinite. */
bool kvc__text_double(const char *text, double *out);

#endif
