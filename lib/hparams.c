/* SPDX-License-Identifier: MIT
 * hparams.c: from a file's keys to hyperparameters. Keys are arch.name, the architecture's name in
 * front. The file is untrusted: every number has bounds, and those that must fit together are
 * compared. */
#include "hparams.h"

#include "rope.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define KEY_MAX      96u
#define HEAD_DIM_MAX KVC__ROT_MAX

/* What is needed while reading. */
struct reader {
    const kvc__gguf *g;
    const kvc__arch *arch;
    kvc__hparams *h;
    kvc__err *err;
    char key[KEY_MAX]; /* the last one that was asked for */
};

/* "arch.suffix", until the next call. */
static const char *key_of(struct reader *r, const char *suffix) {
    (void)snprintf(r->key, sizeof r->key, "%s.%s", r->arch->name, suffix);
    return r->key;
}

static int32_t read_u32(struct reader *r, const char *suffix, bool has_def, uint32_t def,
                        uint32_t min, uint32_t max, uint32_t *out) {
    return kvc__gguf_u32(r->g, key_of(r, suffix), has_def, def, min, max, out, r->err);
}

static int32_t check_multiple(const struct reader *r, uint32_t v, uint32_t of) {
    if (v % of != 0) {
        return kvc__fail(r->err, KVC_E_UNSUPPORTED,
                         "GGUF key '%s' is %" PRIu32 "; only multiples of %" PRIu32
                         " are supported",
                         r->key, v, of);
    }
    return KVC_OK;
}

/* A float that may be missing (0) and else lies within [1e-6, 1e6]. */
static int32_t read_optional(struct reader *r, const char *suffix, float *out) {
    KVC_TRY(kvc__gguf_f32(r->g, key_of(r, suffix), true, 0.0f, out, r->err));
    if (*out != 0.0f && !(*out >= 1e-6f && *out <= 1e6f)) {
        return kvc__fail(r->err, KVC_E_FORMAT,
                         "GGUF key '%s' is %g; 0 for none, or 1e-6 to 1e6 is expected", r->key,
                         (double)*out);
    }
    return KVC_OK;
}

/* ---------------------------------------------------------------- what has no code here */

/* Keys that change what a model computes: refused unless 0 or missing. */
static const char *const refused_keys[] = {
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.output_scale",
    "attention.shared_kv_layers",
    "attention.temperature_scale",
    "expert_count",
    "logit_scale",
    "residual_scale",
    "embedding_scale",
    "rope.scaling.alpha",
    "rope.scaling.yarn_log_multiplier",
};

static bool all_zero(const kvc__gguf_kv *kv) {
    if (kv->type == KVC__GGUF_STRING || kv->elem_type == KVC__GGUF_STRING) {
        return false;
    }
    for (uint64_t i = 0; i < kv->n; i++) {
        if (kvc__gguf_elem(kv, i) != 0.0) {
            return false;
        }
    }
    return true;
}

static int32_t check_refused(struct reader *r) {
    for (size_t i = 0; i < sizeof refused_keys / sizeof refused_keys[0]; i++) {
        const kvc__gguf_kv *kv = kvc__gguf_find(r->g, key_of(r, refused_keys[i]));
        if (kv && !all_zero(kv)) {
            return kvc__fail(r->err, KVC_E_UNSUPPORTED,
                             "the model sets '%s', which is not supported; use a model without it",
                             r->key);
        }
    }
    return KVC_OK;
}

/* ---------------------------------------------------------------- sizes */

/* Element i of a key that holds a number for every layer, which is an integer of min to max. */
static int32_t layer_number(const struct reader *r, const kvc__gguf_kv *kv, uint32_t i,
                            uint32_t min, uint32_t max, uint32_t *out) {
    const bool fits = kv->n == r->h->n_layer && kv->elem_type != KVC__GGUF_STRING;
    const double v = fits ? kvc__gguf_elem(kv, i) : -1.0;
    if (!(v >= (double)min && v <= (double)max) || v != floor(v)) {
        return kvc__fail(r->err, KVC_E_FORMAT,
                         "GGUF key '%s' must be a number or %" PRIu32 " numbers, %" PRIu32
                         " to %" PRIu32,
                         r->key, r->h->n_layer, min, max);
    }
    *out = (uint32_t)v;
    return KVC_OK;
}

/* A number that some files give once and others once a layer. */
static int32_t read_same(struct reader *r, const char *suffix, bool has_def, uint32_t def,
                         uint32_t max, uint32_t *out) {
    const kvc__gguf_kv *kv = kvc__gguf_find(r->g, key_of(r, suffix));
    if (!kv || kv->type != KVC__GGUF_ARRAY) {
        return read_u32(r, suffix, has_def, def, 1, max, out);
    }
    KVC_TRY(layer_number(r, kv, 0, 1, max, out));
    for (uint32_t i = 1; i < r->h->n_layer; i++) {
        if (kvc__gguf_elem(kv, i) != (double)*out) {
            return kvc__fail(r->err, KVC_E_UNSUPPORTED,
                             "GGUF key '%s' differs between layers, which is not supported",
                             r->key);
        }
    }
    return KVC_OK;
}

static int32_t read_sizes(struct reader *r) {
    kvc__hparams *h = r->h;
    KVC_TRY(read_u32(r, "block_count", false, 0, 1, 1024, &h->n_layer));
    if (h->n_layer > r->g->n_tensor / KVC__LAYER_TENSORS) {
        return kvc__fail(r->err, KVC_E_FORMAT,
                         "%" PRIu32 " layers need %" PRIu32 " tensors at least, the file has "
                         "%" PRIu64,
                         h->n_layer, h->n_layer * KVC__LAYER_TENSORS + 2, r->g->n_tensor);
    }
    KVC_TRY(read_u32(r, "context_length", false, 0, 1, INT32_MAX, &h->n_ctx_train));
    KVC_TRY(read_u32(r, "embedding_length", false, 0, 1, 1u << 20, &h->n_embd));
    KVC_TRY(check_multiple(r, h->n_embd, 4));
    KVC_TRY(read_same(r, "feed_forward_length", false, 0, 1u << 22, &h->n_ff));
    return check_multiple(r, h->n_ff, 4);
}

static int32_t read_heads(struct reader *r) {
    kvc__hparams *h = r->h;
    KVC_TRY(read_same(r, "attention.head_count", false, 0, 4096, &h->n_head));
    KVC_TRY(read_same(r, "attention.head_count_kv", true, h->n_head, h->n_head, &h->n_head_kv));
    if (h->n_head % h->n_head_kv != 0) {
        return kvc__fail(r->err, KVC_E_FORMAT,
                         "%" PRIu32 " query heads can't share %" PRIu32 " KV heads evenly",
                         h->n_head, h->n_head_kv);
    }
    const uint32_t dim = h->n_embd / h->n_head;
    const bool whole = dim > 0 && h->n_embd % h->n_head == 0;
    KVC_TRY(read_u32(r, "attention.value_length", whole, dim, 1, HEAD_DIM_MAX, &h->dim_v));
    KVC_TRY(check_multiple(r, h->dim_v, 4));
    KVC_TRY(read_u32(r, "attention.key_length", whole, dim, 1, HEAD_DIM_MAX, &h->dim_k));
    KVC_TRY(check_multiple(r, h->dim_k, 4));
    if (h->dim_k > HEAD_DIM_MAX || h->dim_v > HEAD_DIM_MAX) {
        return kvc__fail(r->err, KVC_E_UNSUPPORTED,
                         "heads of %" PRIu32 " elements; at most %u are supported", dim,
                         HEAD_DIM_MAX);
    }
    KVC_TRY(read_u32(r, "rope.dimension_count", true, h->dim_k, 2, h->dim_k, &h->n_rot));
    return check_multiple(r, h->n_rot, 2);
}

/* Layers with a window may be shaped otherwise in some files; here they are as the others. */
static int32_t check_local(struct reader *r) {
    const struct {
        const char *suffix;
        uint32_t same;
    } keys[] = {{"attention.key_length_swa", r->h->dim_k},
                {"attention.value_length_swa", r->h->dim_v},
                {"rope.dimension_count_swa", r->h->n_rot}};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        uint32_t v = 0;
        KVC_TRY(read_u32(r, keys[i].suffix, true, keys[i].same, 0, UINT32_MAX, &v));
        if (v != keys[i].same) {
            return kvc__fail(r->err, KVC_E_UNSUPPORTED,
                             "GGUF key '%s' is %" PRIu32 "; only %" PRIu32
                             ", as in the other layers, is supported",
                             r->key, v, keys[i].same);
        }
    }
    return KVC_OK;
}

static int32_t check_causal(struct reader *r) {
    bool causal = true;
    KVC_TRY(kvc__gguf_bool(r->g, key_of(r, "attention.causal"), true, &causal, r->err));
    return causal ? KVC_OK
                  : kvc__fail(r->err, KVC_E_UNSUPPORTED,
                              "GGUF key '%s' is false: tokens see what comes after them, which is "
                              "not supported; use a model that generates text",
                              r->key);
}

static int32_t read_factors(struct reader *r) {
    kvc__hparams *h = r->h;
    KVC_TRY(kvc__gguf_f32(r->g, key_of(r, "attention.layer_norm_rms_epsilon"), false, 0.0f,
                          &h->norm_eps, r->err));
    if (!(h->norm_eps > 0.0f && h->norm_eps < 1.0f)) {
        return kvc__fail(r->err, KVC_E_FORMAT, "norm epsilon %g; between 0 and 1 is expected",
                         (double)h->norm_eps);
    }
    KVC_TRY(read_optional(r, "attn_logit_softcapping", &h->soft_cap));
    KVC_TRY(read_optional(r, "final_logit_softcapping", &h->logit_cap));
    KVC_TRY(read_optional(r, "attention.scale", &h->scale));
    if (h->scale == 0.0f) {
        const bool wide = h->n_layer == r->arch->wide_scale_layers;
        h->scale = (float)(1.0 / sqrt(wide ? (double)h->n_embd / h->n_head : (double)h->dim_k));
    }
    h->embd_scale = r->arch->embd_sqrt ? (float)sqrt((double)h->n_embd) : 1.0f;
    return KVC_OK;
}

int32_t kvc__hparams_read(const kvc__gguf *g, const kvc__arch *arch, kvc__hparams *out,
                          kvc__err *err) {
    struct reader r = {.g = g, .arch = arch, .h = out, .err = err};
    KVC_TRY(check_refused(&r));
    KVC_TRY(read_sizes(&r));
    KVC_TRY(read_heads(&r));
    KVC_TRY(check_local(&r));
    KVC_TRY(check_causal(&r));
    return read_factors(&r);
}

/* ---------------------------------------------------------------- windows */

/* Whether a layer of a model with windows has one. sliding_window_pattern is a flag for each layer,
 * or a number: every so many layers the last has none. */
static int32_t is_local(struct reader *r, uint32_t layer, bool *out) {
    const kvc__gguf_kv *kv = kvc__gguf_find(r->g, key_of(r, "attention.sliding_window_pattern"));
    uint32_t n = 0;
    if (kv && kv->type == KVC__GGUF_ARRAY) {
        KVC_TRY(layer_number(r, kv, layer, 0, 1, &n));
        *out = n == 1;
        return KVC_OK;
    }
    KVC_TRY(read_u32(r, "attention.sliding_window_pattern", true, r->arch->pattern, 0, 1024, &n));
    *out = n == 0 || layer % n < n - 1;
    return KVC_OK;
}

int32_t kvc__hparams_window(const kvc__gguf *g, const kvc__arch *arch, const kvc__hparams *hp,
                            uint32_t layer, uint32_t *out, kvc__err *err) {
    kvc__hparams h = *hp;
    struct reader r = {.g = g, .arch = arch, .h = &h, .err = err};
    const kvc__gguf_kv *kv = kvc__gguf_find(g, key_of(&r, "attention.sliding_window"));
    bool local = true;
    if (kv && kv->type == KVC__GGUF_ARRAY) {
        return layer_number(&r, kv, layer, 0, INT32_MAX, out);
    }
    KVC_TRY(read_u32(&r, "attention.sliding_window", true, 0, 0, INT32_MAX, out));
    if (*out != 0) {
        KVC_TRY(is_local(&r, layer, &local));
    }
    *out = local ? *out : 0;
    return KVC_OK;
}

int32_t kvc__hparams_local_base(const kvc__gguf *g, const kvc__arch *arch, float *out,
                                kvc__err *err) {
    struct reader r = {.g = g, .arch = arch, .err = err};
    KVC_TRY(kvc__gguf_f32(g, key_of(&r, "rope.freq_base_swa"), true, arch->local_base, out, err));
    if (*out != 0.0f && arch->local_base == 0.0f) {
        return kvc__fail(err, KVC_E_UNSUPPORTED,
                         "the model sets '%s', which is not supported for architecture '%s'; use "
                         "a model without it",
                         r.key, arch->name);
    }
    if (*out != 0.0f && !(*out >= 1.0f)) {
        return kvc__fail(err, KVC_E_FORMAT, "GGUF key '%s' is %g; at least 1 is expected", r.key,
                         (double)*out);
    }
    return KVC_OK;
}
