/* SPDX-License-Identifier: MIT
 * model.c: from a file's tensors to packed weights of the shapes that its keys ask for (hparams.c).
 * Comes after gguf.c and before any session. Everything is checked first and packed then, so a file
 * that lacks its last tensor costs no time; a tensor or key that would change the result and is not
 * known here refuses the file. It must not know what a cache or a policy is. */
#include "model.h"

#include "os.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#define SAMPLE_BYTES 64u /* of every SAMPLE_STEP of the data go into the fingerprint */
#define SAMPLE_STEP  65536u
#define TYPE_END     32u /* above every type that can be packed */

/* A matrix and its rows in the file. */
typedef struct source {
    kvc__mat *mat;
    const uint8_t *data;
    size_t bytes; /* of data */
    bool beside;  /* its groups are used in turn with those of the matrix before */
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

static int32_t read_arch(loader *l) {
    kvc__str s;
    char name[32];
    KVC_TRY(kvc__gguf_str(&l->g, "general.architecture", NULL, &s, l->err));
    l->model->arch = kvc__arch_find(s);
    if (l->model->arch == NULL) {
        return kvc__fail(l->err, KVC_E_UNSUPPORTED,
                         "the model's architecture is '%s'; supported: %s",
                         kvc__str_text(s, name, sizeof name), kvc__arch_names());
    }
    KVC_TRY(kvc__gguf_str(&l->g, "general.name", "", &s, l->err));
    kvc__str_text(s, l->model->name, sizeof l->model->name);
    return KVC_OK;
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
                         "tensor '%s' has weights of type %s; convert the model to " KVC__MAT_TYPES,
                         name, type_text(t->type, buf, sizeof buf));
    }
    KVC_TRY(kvc__mat_init(m, t->type, n_row, n_col, l->err));
    l->source[l->n_source++] = (source){m, t->data, t->bytes, false};
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

/* A vector of a layer: its name in the file, its length, which architectures have it. */
typedef struct vector {
    const char *name;
    uint32_t n, of; /* KVC__ARCH_… */
    float **at;
} vector;

static void list_vectors(const kvc__hparams *h, kvc__layer *y, vector out[KVC__LAYER_VECTORS]) {
    const uint32_t q = h->n_head * h->dim_k, k = h->n_head_kv * h->dim_k;
    const vector all[KVC__LAYER_VECTORS] = {
        {"attn_norm.weight", h->n_embd, KVC__ARCH_EVERY, &y->attn_norm},
        {"ffn_norm.weight", h->n_embd, KVC__ARCH_EVERY, &y->ffn_norm},
        {"attn_q.bias", q, KVC__ARCH_QKV_BIAS, &y->q_bias},
        {"attn_k.bias", k, KVC__ARCH_QKV_BIAS, &y->k_bias},
        {"attn_v.bias", h->n_head_kv * h->dim_v, KVC__ARCH_QKV_BIAS, &y->v_bias},
        {"attn_q_norm.weight", h->dim_k, KVC__ARCH_QK_NORM, &y->q_norm},
        {"attn_k_norm.weight", h->dim_k, KVC__ARCH_QK_NORM, &y->k_norm},
        {"post_attention_norm.weight", h->n_embd, KVC__ARCH_POST_NORM, &y->attn_post},
        {"post_ffw_norm.weight", h->n_embd, KVC__ARCH_POST_NORM, &y->ffn_post},
    };
    memcpy(out, all, sizeof all);
}

static int32_t bind_vectors(loader *l, uint32_t il) {
    const uint32_t has = l->model->arch->vectors | KVC__ARCH_EVERY;
    vector v[KVC__LAYER_VECTORS];
    char name[64];
    list_vectors(&l->model->hp, &l->model->layer[il], v);
    for (uint32_t i = 0; i < KVC__LAYER_VECTORS; i++) {
        if ((v[i].of & has) != 0) {
            (void)snprintf(name, sizeof name, "blk.%" PRIu32 ".%s", il, v[i].name);
            KVC_TRY(load_vector(l, name, v[i].n, v[i].at));
        }
    }
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
    } mats[KVC__LAYER_MATS] = {
        {"attn_q", q, h->n_embd, &y->q},
        {"attn_k", k, h->n_embd, &y->k},
        {"attn_v", v, h->n_embd, &y->v},
        {"attn_output", h->n_embd, o, &y->o},
        {"ffn_gate", h->n_ff, h->n_embd, &y->gate},
        {"ffn_up", h->n_ff, h->n_embd, &y->up},
        {"ffn_down", h->n_embd, h->n_ff, &y->down},
    };
    char name[48];
    KVC_TRY(kvc__hparams_window(&l->g, l->model->arch, h, il, &y->window, l->err));
    y->rope = y->window != 0 && l->model->rope[1].base != 0.0f;
    KVC_TRY(bind_vectors(l, il));
    for (uint32_t i = 0; i < KVC__LAYER_MATS; i++) {
        (void)snprintf(name, sizeof name, "blk.%" PRIu32 ".%s.weight", il, mats[i].name);
        KVC_TRY(bind_mat(l, name, mats[i].n_row, mats[i].n_col, mats[i].mat));
        l->layer_bytes[mats[i].mat->type % TYPE_END] += kvc__mat_bytes(mats[i].mat);
        l->model->n_mac += (uint64_t)mats[i].n_row * mats[i].n_col;
        if (mats[i].mat == &y->up && y->up.group_bytes == y->gate.group_bytes) {
            l->source[l->n_source - 1].beside = true;
        }
    }
    return KVC_OK;
}

/* How layers turn keys and queries; those with a window have a base of their own in some
 * architectures, which is never scaled. */
static int32_t read_rope(loader *l) {
    kvc_model *m = l->model;
    KVC_TRY(kvc__rope_read(&l->g, m->arch->name, m->hp.n_ctx_train, &m->rope[0], l->err));
    m->rope[1] = (kvc__rope){.factor = 1.0f, .attn = 1.0f};
    return kvc__hparams_local_base(&l->g, m->arch, &m->rope[1].base, l->err);
}

/* Divisors of RoPE's angles, one a pair. They are constants of the method, so no parameters. */
static int32_t load_divisors(loader *l) {
    kvc_model *m = l->model;
    const uint32_t n = m->hp.n_rot / 2;
    if (!kvc__gguf_tensor_find(&l->g, "rope_freqs.weight")) {
        return KVC_OK;
    }
    const uint64_t read = m->read_bytes;
    KVC_TRY(load_vector(l, "rope_freqs.weight", n, &m->rope[0].divisor));
    m->n_param -= n;
    m->read_bytes = read; /* angles are made once */
    for (uint32_t i = 0; i < n; i++) {
        const float d = m->rope[0].divisor[i];
        if (!(d > 0.0f && d <= FLT_MAX)) {
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
                             kvc__str_text(l->g.tensor[i].name, text, sizeof text),
                             l->model->arch->name);
        }
    }
    return KVC_OK;
}

static int32_t bind_tensors(loader *l) {
    kvc_model *m = l->model;
    const kvc__hparams *h = &m->hp;
    l->cap_source = h->n_layer * KVC__LAYER_MATS + 2;
    l->source = kvc__alloc_n(&m->mem, l->cap_source, sizeof *l->source);
    l->used = kvc__alloc(&m->mem, (size_t)l->g.n_tensor);
    m->layer = kvc__alloc_n(&m->mem, h->n_layer, sizeof *m->layer);
    if (!l->source || !l->used || !m->layer) {
        return no_memory(l->err, "the layers' tables", h->n_layer * sizeof *m->layer);
    }
    bool local = false;
    for (uint32_t il = 0; il < h->n_layer; il++) {
        KVC_TRY(bind_layer(l, il));
        local |= m->layer[il].rope != 0;
    }
    m->rope[1].base = local ? m->rope[1].base : 0.0f; /* nobody's, so it needs no table */
    KVC_TRY(bind_mat(l, "token_embd.weight", h->n_vocab, h->n_embd, &m->embd));
    KVC_TRY(load_vector(l, "output_norm.weight", h->n_embd, &m->out_norm));
    m->tied = kvc__gguf_tensor_find(&l->g, "output.weight") == NULL;
    if (!m->tied) {
        const uint64_t table = kvc__gguf_tensor_find(&l->g, "token_embd.weight")->bytes;
        m->read_bytes -= table - table / h->n_vocab;
        KVC_TRY(bind_mat(l, "output.weight", h->n_vocab, h->n_embd, &m->head));
    }
    KVC_TRY(load_divisors(l));
    return check_all_used(l);
}

/* ---------------------------------------------------------------- weights */

static void pack_span(void *arg, uint32_t first, uint32_t end, uint32_t thread) {
    const source *s = arg;
    (void)thread;
    kvc__mat_pack(s->mat, s->data, first, end);
}

/* All matrices lie in one block in the order in which a token needs them, those that are used group
 * by group in turn with their groups in turn: the core reads ahead across all borders, and the
 * system can back a large block by large pages. */
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
        kvc__mat *mat = l->source[i].mat;
        mat->data = m->weight + n;
        n += (kvc__mat_bytes(mat) + 63) & ~(size_t)63;
        if (l->source[i].beside) {
            kvc__mat *before = l->source[i - 1].mat;
            before->stride = mat->stride = before->group_bytes + mat->group_bytes;
            mat->data = before->data + before->group_bytes;
        }
    }
    return KVC_OK;
}

/* Weights that stay where they are, in the file. */
static int32_t leave_weights(loader *l) {
    for (uint32_t i = 0; i < l->n_source; i++) {
        l->source[i].mat->rows = l->source[i].data;
    }
    if (l->model->tied) {
        l->model->head = l->model->embd;
    }
    return KVC_OK;
}

static int32_t pack_weights(loader *l) {
    kvc_model *m = l->model;
    KVC_TRY(place_weights(l));
    for (uint32_t i = 0; i < l->n_source; i++) {
        const source *s = &l->source[i];
        kvc__pool_run(m->pool, s->mat->n_group, pack_span, &l->source[i]);
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
    m->hp.n_vocab = kvc__vocab_size(m->vocab);
    KVC_TRY(kvc__hparams_read(&l->g, m->arch, &m->hp, l->err));
    KVC_TRY(read_rope(l));
    KVC_TRY(bind_tensors(l));
    m->kern = kvc__kern_get();
    m->n_batch = params->n_batch;
    m->file_bytes = n;
    KVC_TRY(take_fingerprint(l));
    name_weights(l);
    uint32_t n_thread = params->n_threads ? params->n_threads : kvc__n_core();
    KVC_TRY(kvc__pool_create(&m->mem, n_thread, &m->pool, l->err));
    return params->repack != 0 ? pack_weights(l) : leave_weights(l);
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
    int32_t rc = params->repack == 0 && !is_map
                     ? kvc__fail(err, KVC_E_UNSUPPORTED,
                                 "with repack=0 weights stay in a file; open the model by its path")
                     : load(&l, bytes, n, params);
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

static void free_layer(kvc__mem *mem, kvc__layer *y, const kvc__hparams *h) {
    vector v[KVC__LAYER_VECTORS];
    list_vectors(h, y, v);
    for (uint32_t i = 0; i < KVC__LAYER_VECTORS; i++) {
        kvc__free(mem, *v[i].at, v[i].n * sizeof **v[i].at);
    }
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
        free_layer(&m->mem, &m->layer[il], h);
    }
    kvc__free(&m->mem, m->layer, h->n_layer * sizeof *m->layer);
    kvc__free(&m->mem, m->weight, m->weight_bytes);
    kvc__unmap(&m->map);
    kvc__free(&m->mem, m->out_norm, h->n_embd * sizeof *m->out_norm);
    kvc__rope_free(&m->rope[0], &m->mem, h->n_rot);
    kvc__rope_free(&m->rope[1], &m->mem, h->n_rot);
    kvc__vocab_destroy(m->vocab);
    kvc__chat_free(&m->mem, &m->chat);
    model_free_handle(m);
}

/* ---------------------------------------------------------------- positions and holds */

int32_t kvc__model_rope(kvc_model *m, uint32_t n, kvc__err *err) {
    KVC_TRY(kvc__rope_grow(&m->rope[0], &m->mem, m->hp.n_rot, n, err));
    return m->rope[1].base != 0.0f ? kvc__rope_grow(&m->rope[1], &m->mem, m->hp.n_rot, n, err)
                                   : KVC_OK;
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
