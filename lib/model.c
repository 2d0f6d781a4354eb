/* SPDX-License-Identifier: MIT
 * model.c: from a file's keys and tensors to hyperparameters and packed weights. Comes after gguf.c
 * and before any session. Everything is checked first and packed then, so a file that lacks its
 * last tensor costs no time; a tensor or key that would change the result and is not known here
 * refuses the file. It must not know what a cache or a policy is. */
#include "model.h"

#include "os.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#define KEY(suffix)    "llama." suffix
#define SUPPORTED_ARCH "llama"
#define LAYER_MATS     7u  /* matrices of a layer */
#define LAYER_TENSORS  9u  /* and two norms */
#define PACK_GROUPS    16u /* groups that one thread packs at a time */
#define SAMPLE_BYTES   64u /* of every SAMPLE_STEP of the data go into the fingerprint */
#define SAMPLE_STEP    65536u
#define TYPE_END       32u /* above every type that can be packed */
#define HEAD_DIM_MAX   1024u

/* A matrix and its rows in the file. */
typedef struct source {
    kvc__mat *mat;
    const uint8_t *data;
    size_t bytes; /* of data */
} source;

/* What is needed while loading only. */
typedef struct loader {
    kvc_model *model;
    kvc__gguf g;
    uint32_t n_source, cap_source;
    source *source; /* [cap_source] */
    uint8_t *used;  /* [g.n_tensor]: 1 when the model has a place for the tensor */
    uint64_t layer_bytes[TYPE_END];
    bool is_map; /* the bytes are a file's, mapped */
    kvc__err *err;
} loader;

static int32_t no_memory(kvc__err *err, const char *what, uint64_t bytes) {
    return kvc__fail(err, KVC_E_NOMEM, "no memory for %s (%" PRIu64 " bytes)", what, bytes);
}

/* ---------------------------------------------------------------- hyperparameters */

/* Keys that change what a model computes and have no code here: refused unless 0 or missing. */
static const char *const refused_keys[] = {
    KEY("attention.sliding_window"),
    KEY("attn_logit_softcapping"),
    KEY("final_logit_softcapping"),
    KEY("attention.scale"),
    KEY("attention.clamp_kqv"),
    KEY("attention.max_alibi_bias"),
    KEY("expert_count"),
    KEY("logit_scale"),
    KEY("residual_scale"),
    KEY("embedding_scale"),
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

static int32_t check_refused(const kvc__gguf *g, kvc__err *err) {
    for (size_t i = 0; i < sizeof refused_keys / sizeof refused_keys[0]; i++) {
        const kvc__gguf_kv *kv = kvc__gguf_find(g, refused_keys[i]);
        if (kv && !all_zero(kv)) {
            return kvc__fail(err, KVC_E_UNSUPPORTED,
                             "the model sets '%s', which is not supported; use a model without it",
                             refused_keys[i]);
        }
    }
    return KVC_OK;
}

/* A number that some files give once and others once a layer. */
static int32_t per_layer(const kvc__gguf *g, const char *key, uint32_t n_layer, bool has_def,
                         uint32_t def, uint32_t max, uint32_t *out, kvc__err *err) {
    const kvc__gguf_kv *kv = kvc__gguf_find(g, key);
    if (!kv || kv->type != KVC__GGUF_ARRAY) {
        return kvc__gguf_u32(g, key, has_def, def, 1, max, out, err);
    }
    double v = kvc__gguf_elem(kv, 0);
    if (kv->n != n_layer || !(v >= 1.0 && v <= (double)max) || v != floor(v)) {
        return kvc__fail(err, KVC_E_FORMAT,
                         "GGUF key '%s' must be a number or %" PRIu32 " numbers, 1 to %" PRIu32,
                         key, n_layer, max);
    }
    for (uint32_t i = 1; i < n_layer; i++) {
        if (kvc__gguf_elem(kv, i) != v) {
            return kvc__fail(err, KVC_E_UNSUPPORTED,
                             "GGUF key '%s' differs between layers, which is not supported", key);
        }
    }
    *out = (uint32_t)v;
    return KVC_OK;
}

static int32_t read_arch(loader *l) {
    kvc__str s;
    char *arch = l->model->arch;
    KVC_TRY(kvc__gguf_str(&l->g, "general.architecture", NULL, &s, l->err));
    kvc__str_text(s, arch, sizeof l->model->arch);
    if (s.n != strlen(SUPPORTED_ARCH) || memcmp(s.p, SUPPORTED_ARCH, s.n) != 0) {
        return kvc__fail(l->err, KVC_E_UNSUPPORTED,
                         "the model's architecture is '%s'; supported: " SUPPORTED_ARCH, arch);
    }
    KVC_TRY(kvc__gguf_str(&l->g, "general.name", "", &s, l->err));
    kvc__str_text(s, l->model->name, sizeof l->model->name);
    return check_refused(&l->g, l->err);
}

static int32_t check_multiple(uint32_t v, uint32_t of, const char *key, kvc__err *err) {
    if (v % of != 0) {
        return kvc__fail(err, KVC_E_UNSUPPORTED,
                         "GGUF key '%s' is %" PRIu32 "; only multiples of %" PRIu32
                         " are supported",
                         key, v, of);
    }
    return KVC_OK;
}

static int32_t read_sizes(loader *l) {
    const kvc__gguf *g = &l->g;
    kvc__hparams *h = &l->model->hp;
    kvc__err *err = l->err;
    KVC_TRY(kvc__gguf_u32(g, KEY("block_count"), false, 0, 1, 1024, &h->n_layer, err));
    if (h->n_layer > g->n_tensor / LAYER_TENSORS) {
        return kvc__fail(err, KVC_E_FORMAT,
                         "%" PRIu32 " layers need %" PRIu32 " tensors at least, the file has "
                         "%" PRIu64,
                         h->n_layer, h->n_layer * LAYER_TENSORS + 2, g->n_tensor);
    }
    KVC_TRY(kvc__gguf_u32(g, KEY("context_length"), false, 0, 1, INT32_MAX, &h->n_ctx_train, err));
    KVC_TRY(kvc__gguf_u32(g, KEY("embedding_length"), false, 0, 1, 1u << 20, &h->n_embd, err));
    KVC_TRY(check_multiple(h->n_embd, 4, KEY("embedding_length"), err));
    KVC_TRY(
        per_layer(g, KEY("feed_forward_length"), h->n_layer, false, 0, 1u << 22, &h->n_ff, err));
    KVC_TRY(check_multiple(h->n_ff, 4, KEY("feed_forward_length"), err));
    h->n_vocab = kvc__vocab_size(l->model->vocab);
    return KVC_OK;
}

static int32_t read_heads(loader *l) {
    const kvc__gguf *g = &l->g;
    kvc__hparams *h = &l->model->hp;
    kvc__err *err = l->err;
    KVC_TRY(per_layer(g, KEY("attention.head_count"), h->n_layer, false, 0, 4096, &h->n_head, err));
    KVC_TRY(per_layer(g, KEY("attention.head_count_kv"), h->n_layer, true, h->n_head, h->n_head,
                      &h->n_head_kv, err));
    if (h->n_head % h->n_head_kv != 0) {
        return kvc__fail(err, KVC_E_FORMAT,
                         "%" PRIu32 " query heads can't share %" PRIu32 " KV heads evenly",
                         h->n_head, h->n_head_kv);
    }
    uint32_t dim = h->n_embd / h->n_head;
    bool whole = dim > 0 && h->n_embd % h->n_head == 0;
    KVC_TRY(
        kvc__gguf_u32(g, KEY("attention.key_length"), whole, dim, 1, HEAD_DIM_MAX, &h->dim_k, err));
    KVC_TRY(kvc__gguf_u32(g, KEY("attention.value_length"), whole, dim, 1, HEAD_DIM_MAX, &h->dim_v,
                          err));
    if (h->dim_k > HEAD_DIM_MAX || h->dim_v > HEAD_DIM_MAX) {
        return kvc__fail(err, KVC_E_UNSUPPORTED,
                         "heads of %" PRIu32 " elements; at most %u are supported", dim,
                         HEAD_DIM_MAX);
    }
    KVC_TRY(check_multiple(h->dim_k, 4, KEY("attention.key_length"), err));
    KVC_TRY(check_multiple(h->dim_v, 4, KEY("attention.value_length"), err));
    h->scale = (float)(1.0 / sqrt((double)h->dim_k));
    return KVC_OK;
}

/* Scaling by one factor for all pairs would change every rotation. Factors per pair come as a
 * tensor, rope_freqs.weight, and files that have it name no type or "llama3". */
static int32_t check_rope_scaling(const loader *l) {
    const kvc__gguf *g = &l->g;
    static const char *const factor_keys[] = {KEY("rope.scaling.factor"), KEY("rope.scale_linear")};
    kvc__str type;
    char text[48];
    KVC_TRY(kvc__gguf_str(g, KEY("rope.scaling.type"), "", &type, l->err));
    kvc__str_text(type, text, sizeof text);
    bool factors = kvc__gguf_tensor_find(g, "rope_freqs.weight") != NULL;
    if (strcmp(text, "none") == 0 || (factors && strcmp(text, "llama3") == 0)) {
        return KVC_OK;
    }
    if (type.n != 0) {
        return kvc__fail(l->err, KVC_E_UNSUPPORTED,
                         "RoPE scaling of type '%s' is not supported; use a model without it",
                         text);
    }
    for (size_t i = 0; i < 2; i++) {
        float factor;
        KVC_TRY(kvc__gguf_f32(g, factor_keys[i], true, 0.0f, &factor, l->err));
        if (factor != 0.0f && factor != 1.0f && !factors) {
            return kvc__fail(l->err, KVC_E_UNSUPPORTED,
                             "GGUF key '%s' is %g; linear RoPE scaling is not supported",
                             factor_keys[i], (double)factor);
        }
    }
    return KVC_OK;
}

static int32_t read_rope_and_norm(loader *l) {
    const kvc__gguf *g = &l->g;
    kvc__hparams *h = &l->model->hp;
    KVC_TRY(kvc__gguf_u32(g, KEY("rope.dimension_count"), true, h->dim_k, 2, h->dim_k, &h->n_rot,
                          l->err));
    KVC_TRY(check_multiple(h->n_rot, 2, KEY("rope.dimension_count"), l->err));
    KVC_TRY(kvc__gguf_f32(g, KEY("rope.freq_base"), true, 10000.0f, &h->rope_base, l->err));
    KVC_TRY(kvc__gguf_f32(g, KEY("attention.layer_norm_rms_epsilon"), false, 0.0f, &h->norm_eps,
                          l->err));
    if (!(h->rope_base >= 1.0f) || !(h->norm_eps > 0.0f && h->norm_eps < 1.0f)) {
        return kvc__fail(l->err, KVC_E_FORMAT,
                         "RoPE base %g and norm epsilon %g; at least 1 and between 0 and 1 are "
                         "expected",
                         (double)h->rope_base, (double)h->norm_eps);
    }
    return check_rope_scaling(l);
}

/* ---------------------------------------------------------------- tensors */

static const char *type_text(uint32_t type, char *buf, size_t cap) {
    uint32_t elems, bytes;
    const char *name;
    if (kvc__type_info(type, &elems, &bytes, &name)) {
        return name;
    }
    (void)snprintf(buf, cap, "type %" PRIu32, type);
    return buf;
}

/* The tensor of that name and shape [n_row, n_col]; n_row 1 is a vector. */
static int32_t want_tensor(loader *l, const char *name, uint64_t n_row, uint64_t n_col,
                           const kvc__gguf_tensor **out) {
    const kvc__gguf_tensor *t = kvc__gguf_tensor_find(&l->g, name);
    if (!t) {
        return kvc__fail(l->err, KVC_E_FORMAT, "tensor '%s' is missing; the model needs it", name);
    }
    if (t->dim[0] != n_col || t->dim[1] != n_row || t->dim[2] != 1 || t->dim[3] != 1) {
        return kvc__fail(l->err, KVC_E_FORMAT,
                         "tensor '%s' has shape [%" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64
                         "]; the hyperparameters ask for [%" PRIu64 ", %" PRIu64 "]",
                         name, t->dim[0], t->dim[1], t->dim[2], t->dim[3], n_col, n_row);
    }
    l->used[t - l->g.tensor] = 1;
    l->model->n_param += n_row * n_col;
    l->model->read_bytes += t->bytes;
    *out = t;
    return KVC_OK;
}

/* Shapes a matrix and notes where its rows are. */
static int32_t bind_mat(loader *l, const char *name, uint64_t n_row, uint64_t n_col, kvc__mat *m) {
    const kvc__gguf_tensor *t = NULL;
    char buf[24];
    KVC_TRY(want_tensor(l, name, n_row, n_col, &t));
    if (!t->data || !kvc__mat_known(t->type)) {
        return kvc__fail(l->err, KVC_E_UNSUPPORTED,
                         "tensor '%s' has weights of type %s; supported: F32, F16, Q8_0, Q4_0, "
                         "Q4_1; convert the model",
                         name, type_text(t->type, buf, sizeof buf));
    }
    KVC_TRY(kvc__mat_init(m, t->type, n_row, n_col, l->err));
    l->source[l->n_source++] = (source){m, t->data, t->bytes};
    return KVC_OK;
}

static float load_f32(const uint8_t *p) {
    float x;
    memcpy(&x, p, sizeof x);
    return x;
}

static float load_f16(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return kvc__f32_of_f16(h);
}

/* Copies a vector of n floats. */
static int32_t load_vector(loader *l, const char *name, uint32_t n, float **out) {
    const kvc__gguf_tensor *t = NULL;
    char buf[24];
    KVC_TRY(want_tensor(l, name, 1, n, &t));
    if (t->type != KVC__T_F32 && t->type != KVC__T_F16) {
        return kvc__fail(l->err, KVC_E_UNSUPPORTED,
                         "tensor '%s' is of type %s; F32 and F16 are supported for vectors", name,
                         type_text(t->type, buf, sizeof buf));
    }
    float *v = kvc__alloc_n(&l->model->mem, n, sizeof *v);
    if (!v) {
        return no_memory(l->err, name, (uint64_t)n * sizeof *v);
    }
    for (uint32_t i = 0; i < n; i++) {
        v[i] = t->type == KVC__T_F32 ? load_f32(t->data + 4u * (size_t)i)
                                     : load_f16(t->data + 2u * (size_t)i);
    }
    *out = v;
    return KVC_OK;
}

static int32_t bind_layer(loader *l, uint32_t il) {
    const kvc__hparams *h = &l->model->hp;
    kvc__layer *y = &l->model->layer[il];
    uint32_t q = h->n_head * h->dim_k, k = h->n_head_kv * h->dim_k;
    uint32_t v = h->n_head_kv * h->dim_v, o = h->n_head * h->dim_v;
    const struct {
        const char *name;
        uint32_t n_row, n_col;
        kvc__mat *mat;
    } mats[LAYER_MATS] = {
        {"attn_q", q, h->n_embd, &y->q},
        {"attn_k", k, h->n_embd, &y->k},
        {"attn_v", v, h->n_embd, &y->v},
        {"attn_output", h->n_embd, o, &y->o},
        {"ffn_gate", h->n_ff, h->n_embd, &y->gate},
        {"ffn_up", h->n_ff, h->n_embd, &y->up},
        {"ffn_down", h->n_embd, h->n_ff, &y->down},
    };
    char name[48];
    (void)snprintf(name, sizeof name, "blk.%" PRIu32 ".attn_norm.weight", il);
    KVC_TRY(load_vector(l, name, h->n_embd, &y->attn_norm));
    (void)snprintf(name, sizeof name, "blk.%" PRIu32 ".ffn_norm.weight", il);
    KVC_TRY(load_vector(l, name, h->n_embd, &y->ffn_norm));
    for (uint32_t i = 0; i < LAYER_MATS; i++) {
        (void)snprintf(name, sizeof name, "blk.%" PRIu32 ".%s.weight", il, mats[i].name);
        KVC_TRY(bind_mat(l, name, mats[i].n_row, mats[i].n_col, mats[i].mat));
        l->layer_bytes[mats[i].mat->type % TYPE_END] += kvc__mat_bytes(mats[i].mat);
        l->model->n_mac += (uint64_t)mats[i].n_row * mats[i].n_col;
    }
    return KVC_OK;
}

/* Divisors of RoPE's angles, one a pair. They are constants of the method, so no parameters. */
static int32_t load_rope_freq(loader *l) {
    kvc_model *m = l->model;
    uint32_t n = m->hp.n_rot / 2;
    if (!kvc__gguf_tensor_find(&l->g, "rope_freqs.weight")) {
        return KVC_OK;
    }
    const uint64_t read = m->read_bytes;
    KVC_TRY(load_vector(l, "rope_freqs.weight", n, &m->rope_freq));
    m->n_param -= n;
    m->read_bytes = read; /* angles are made once */
    for (uint32_t i = 0; i < n; i++) {
        if (!(m->rope_freq[i] > 0.0f && m->rope_freq[i] <= FLT_MAX)) {
            return kvc__fail(l->err, KVC_E_FORMAT,
                             "tensor 'rope_freqs.weight': element %" PRIu32 " is not a positive "
                             "number",
                             i);
        }
    }
    return KVC_OK;
}

/* A tensor without a place (a bias, a fused or an expert's matrix) would be left out of the sum. */
static int32_t check_all_used(const loader *l) {
    char text[80];
    for (uint64_t i = 0; i < l->g.n_tensor; i++) {
        if (!l->used[i]) {
            return kvc__fail(l->err, KVC_E_UNSUPPORTED,
                             "tensor '%s' has no place in the supported form of architecture "
                             "'%s'; use a model without it",
                             kvc__str_text(l->g.tensor[i].name, text, sizeof text), l->model->arch);
        }
    }
    return KVC_OK;
}

static int32_t bind_tensors(loader *l) {
    kvc_model *m = l->model;
    const kvc__hparams *h = &m->hp;
    l->cap_source = h->n_layer * LAYER_MATS + 2;
    l->source = kvc__alloc_n(&m->mem, l->cap_source, sizeof *l->source);
    l->used = kvc__alloc(&m->mem, (size_t)l->g.n_tensor);
    m->layer = kvc__alloc_n(&m->mem, h->n_layer, sizeof *m->layer);
    if (!l->source || !l->used || !m->layer) {
        return no_memory(l->err, "the layers' tables", h->n_layer * sizeof *m->layer);
    }
    for (uint32_t il = 0; il < h->n_layer; il++) {
        KVC_TRY(bind_layer(l, il));
    }
    KVC_TRY(bind_mat(l, "token_embd.weight", h->n_vocab, h->n_embd, &m->embd));
    KVC_TRY(load_vector(l, "output_norm.weight", h->n_embd, &m->out_norm));
    m->tied = kvc__gguf_tensor_find(&l->g, "output.weight") == NULL;
    if (!m->tied) {
        const uint64_t table = kvc__gguf_tensor_find(&l->g, "token_embd.weight")->bytes;
        m->read_bytes -= table - table / h->n_vocab;
        KVC_TRY(bind_mat(l, "output.weight", h->n_vocab, h->n_embd, &m->head));
    }
    KVC_TRY(load_rope_freq(l));
    return check_all_used(l);
}

/* ---------------------------------------------------------------- weights */

static void pack_item(void *arg, uint32_t item, uint32_t thread) {
    const source *s = arg;
    uint32_t first = item * PACK_GROUPS;
    uint32_t left = s->mat->n_group - first;
    (void)thread;
    kvc__mat_pack(s->mat, s->data, first, first + (left < PACK_GROUPS ? left : PACK_GROUPS));
}

/* All matrices lie in one block in the order in which a token needs them: the core reads ahead
 * across their borders, and the system can back a large block by large pages. */
static int32_t place_weights(loader *l) {
    kvc_model *m = l->model;
    size_t n = 0;
    for (uint32_t i = 0; i < l->n_source; i++) {
        const size_t bytes = kvc__mat_bytes(l->source[i].mat);
        if (bytes > PTRDIFF_MAX - 64 - n) {
            return no_memory(l->err, "the weights", UINT64_MAX);
        }
        n += (bytes + 63) & ~(size_t)63;
    }
    m->weight = kvc__alloc(&m->mem, n);
    if (m->weight == NULL) {
        return no_memory(l->err, "the weights", n);
    }
    m->weight_bytes = n;
    n = 0;
    for (uint32_t i = 0; i < l->n_source; i++) {
        l->source[i].mat->data = m->weight + n;
        n += (kvc__mat_bytes(l->source[i].mat) + 63) & ~(size_t)63;
    }
    return KVC_OK;
}

static int32_t pack_weights(loader *l) {
    kvc_model *m = l->model;
    KVC_TRY(place_weights(l));
    for (uint32_t i = 0; i < l->n_source; i++) {
        const source *s = &l->source[i];
        kvc__pool_run(m->pool, (s->mat->n_group + PACK_GROUPS - 1) / PACK_GROUPS, pack_item,
                      &l->source[i]);
        if (l->is_map) {
            /* Otherwise the weights would be in memory twice before the file is closed. */
            kvc__discard((void *)(uintptr_t)s->data, s->bytes);
        }
    }
    if (m->tied) {
        m->head = m->embd;
    }
    return KVC_OK;
}

static void name_weights(loader *l) {
    uint32_t best = 0;
    for (uint32_t i = 1; i < TYPE_END; i++) {
        best = l->layer_bytes[i] > l->layer_bytes[best] ? i : best;
    }
    char buf[24];
    (void)snprintf(l->model->weights, sizeof l->model->weights, "%.15s",
                   type_text(best, buf, sizeof buf));
}

static void put_digits(XXH128_hash_t hash, char *out) {
    static const char digits[] = "0123456789abcdef";
    XXH128_canonical_t c;
    XXH128_canonicalFromHash(&c, hash);
    for (size_t i = 0; i < sizeof c.digest; i++) {
        out[2 * i] = digits[c.digest[i] >> 4];
        out[2 * i + 1] = digits[c.digest[i] & 15];
    }
    out[2 * sizeof c.digest] = 0;
}

/* The hash of: the header's hash, samples of the data at fixed steps, the data's last bytes. Two
 * files that differ in a few weights alone may share it; two models don't. */
static int32_t take_fingerprint(loader *l) {
    const uint8_t *data = l->g.base + l->g.data_offset;
    size_t n = l->g.size - l->g.data_offset;
    size_t cap = sizeof(XXH128_canonical_t) + (n / SAMPLE_STEP + 2) * SAMPLE_BYTES;
    uint8_t *buf = kvc__alloc(&l->model->mem, cap);
    if (!buf) {
        return no_memory(l->err, "the fingerprint", cap);
    }
    XXH128_canonical_t head;
    XXH128_canonicalFromHash(&head, XXH3_128bits(l->g.base, l->g.header_bytes));
    memcpy(buf, head.digest, sizeof head.digest);
    size_t w = sizeof head.digest;
    size_t last = n < SAMPLE_BYTES ? n : SAMPLE_BYTES;
    for (size_t at = 0; at + last <= n && at < n; at += SAMPLE_STEP) {
        memcpy(buf + w, data + at, last);
        w += last;
    }
    memcpy(buf + w, data + (n - last), last);
    w += last;
    put_digits(XXH3_128bits(buf, w), l->model->fingerprint);
    kvc__free(&l->model->mem, buf, cap);
    return KVC_OK;
}

/* ---------------------------------------------------------------- create and free */

static int32_t load(loader *l, const uint8_t *bytes, size_t n, const struct kvc_params *params) {
    kvc_model *m = l->model;
    KVC_TRY(kvc__gguf_open(&m->mem, bytes, n, &l->g, l->err));
    KVC_TRY(read_arch(l));
    KVC_TRY(kvc__vocab_create(&m->mem, &l->g, &m->vocab, l->err));
    KVC_TRY(kvc__chat_read(&m->mem, &l->g, &m->chat, l->err));
    KVC_TRY(read_sizes(l));
    KVC_TRY(read_heads(l));
    KVC_TRY(read_rope_and_norm(l));
    KVC_TRY(bind_tensors(l));
    m->kern = kvc__kern_get();
    m->n_batch = params->n_batch;
    m->file_bytes = n;
    KVC_TRY(take_fingerprint(l));
    name_weights(l);
    uint32_t n_thread = params->n_threads ? params->n_threads : kvc__n_core();
    KVC_TRY(kvc__pool_create(&m->mem, n_thread, &m->pool, l->err));
    return pack_weights(l);
}

/* The handle's own bytes are counted by the allocator inside it, so it is taken with a temporary
 * one; model_free_handle() is the other half. */
static kvc_model *model_alloc_handle(const kvc_allocator *a) {
    kvc__mem boot;
    kvc__mem_init(&boot, a, NULL);
    kvc_model *m = kvc__alloc(&boot, sizeof *m);
    if (!m) {
        return NULL;
    }
    kvc__mem_init(&m->mem, a, NULL);
    atomic_store(&m->mem.used, sizeof *m);
    atomic_store(&m->mem.peak, sizeof *m);
    m->n_ref = 1;
    if (pthread_mutex_init(&m->lock, NULL) != 0) {
        kvc__free(&boot, m, sizeof *m);
        return NULL;
    }
    return m;
}

static void model_free_handle(kvc_model *m) {
    kvc__mem last;
    kvc__mem_init(&last, &m->mem.a, NULL);
    atomic_store(&last.used, sizeof *m);
    (void)pthread_mutex_destroy(&m->lock);
    kvc__free(&last, m, sizeof *m);
}

int32_t kvc__model_create(const uint8_t *bytes, size_t n, bool is_map,
                          const struct kvc_params *params, kvc_model **out, kvc__err *err) {
    params = params ? params : &kvc__params_default;
    *out = NULL;
    kvc_model *m = model_alloc_handle(&params->allocator);
    if (!m) {
        return no_memory(err, "the model's handle", sizeof *m);
    }
    loader l = {.model = m, .is_map = is_map, .err = err};
    int32_t rc = load(&l, bytes, n, params);
    kvc__free(&m->mem, l.source, l.cap_source * sizeof *l.source);
    kvc__free(&m->mem, l.used, (size_t)l.g.n_tensor);
    kvc__gguf_close(&l.g);
    if (rc < 0) {
        kvc__model_free(m);
        return rc;
    }
    *out = m;
    return KVC_OK;
}

static void free_layer(kvc__mem *mem, const kvc__layer *y, uint32_t n_embd) {
    kvc__free(mem, y->attn_norm, n_embd * sizeof *y->attn_norm);
    kvc__free(mem, y->ffn_norm, n_embd * sizeof *y->ffn_norm);
}

void kvc__model_free(kvc_model *m) {
    if (!m) {
        return;
    }
    const kvc__hparams *h = &m->hp;
    if (m->work_free) {
        m->work_free(m);
    }
    kvc__io_destroy(m->io);
    kvc__pool_destroy(m->pool);
    for (uint32_t il = 0; m->layer && il < h->n_layer; il++) {
        free_layer(&m->mem, &m->layer[il], h->n_embd);
    }
    kvc__free(&m->mem, m->layer, h->n_layer * sizeof *m->layer);
    kvc__free(&m->mem, m->weight, m->weight_bytes);
    kvc__free(&m->mem, m->out_norm, h->n_embd * sizeof *m->out_norm);
    kvc__free(&m->mem, m->rope_freq, h->n_rot / 2 * sizeof *m->rope_freq);
    kvc__free(&m->mem, m->rope, (size_t)m->rope_n * h->n_rot * sizeof *m->rope);
    kvc__vocab_destroy(m->vocab);
    kvc__chat_free(&m->mem, &m->chat);
    model_free_handle(m);
}

/* ---------------------------------------------------------------- positions and holds */

int32_t kvc__model_rope(kvc_model *m, uint32_t n, kvc__err *err) {
    uint32_t half = m->hp.n_rot / 2;
    double freq[HEAD_DIM_MAX / 2];
    size_t row = 2 * (size_t)half * sizeof *m->rope, bytes = 0;
    if (n <= m->rope_n) {
        return KVC_OK;
    }
    float *grown = kvc__mul_size(n, row, &bytes)
                       ? kvc__realloc(&m->mem, m->rope, m->rope_n * row, bytes, 64)
                       : NULL;
    if (!grown) {
        return no_memory(err, "RoPE's table; choose a smaller n_ctx", bytes);
    }
    for (uint32_t i = 0; i < half; i++) {
        freq[i] = pow((double)m->hp.rope_base, -(double)i / (double)half);
        freq[i] /= m->rope_freq ? (double)m->rope_freq[i] : 1.0;
    }
    for (uint32_t pos = m->rope_n; pos < n; pos++) {
        float *cs = grown + 2 * (size_t)half * pos;
        for (uint32_t i = 0; i < half; i++) {
            cs[i] = (float)cos(pos * freq[i]);
            cs[half + i] = (float)sin(pos * freq[i]);
        }
    }
    m->rope = grown;
    m->rope_n = n;
    return KVC_OK;
}

void kvc__model_hold(kvc_model *m) {
    (void)pthread_mutex_lock(&m->lock);
    m->n_ref++;
    (void)pthread_mutex_unlock(&m->lock);
}

void kvc__model_drop(kvc_model *m) {
    (void)pthread_mutex_lock(&m->lock);
    uint32_t left = --m->n_ref;
    (void)pthread_mutex_unlock(&m->lock);
    if (left == 0) {
        kvc__model_free(m);
    }
}
