/* SPDX-License-Identifier: MIT
 * test_model.c: from a file to a model, on the tiny models of make_model.py (their directory is in
 * KVC_TEST_MODELS) and on copies of them with one thing changed: a key, a tensor, some bytes. After
 * every failure the caller's allocator must have everything back. */
#include "gguf_bytes.h"

#include "model.h"
#include "os.h"

#include <check.h>
#include <math.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static kvc__err err;
static struct kvc_params params;
static atomic_size_t held;  /* bytes that the library has of the allocator below */
static atomic_long allowed; /* allocations until there is no memory */
static kvc__map map;        /* the file that copies are made of */
static kvc__gguf source;
static kvc__mem source_mem;
static bytes file;

static void *counting_realloc(void *ctx, void *p, size_t old_size, size_t new_size, size_t align) {
    void *q = NULL;
    (void)ctx;
    if (new_size > 0 && (atomic_fetch_sub(&allowed, 1) <= 0 ||
                         posix_memalign(&q, align < 64 ? 64 : align, new_size) != 0)) {
        return NULL;
    }
    if (p && q) {
        memcpy(q, p, old_size < new_size ? old_size : new_size);
    }
    free(p);
    atomic_fetch_add(&held, new_size - (p ? old_size : 0));
    return q;
}

static void map_model(const char *name) {
    char path[1024];
    (void)snprintf(path, sizeof path, "%s/%s", getenv("KVC_TEST_MODELS"), name);
    kvc__gguf_close(&source);
    kvc__unmap(&map);
    ck_assert_msg(kvc__map_file(path, &map, &err) == KVC_OK, "%s", err.text);
    kvc__mem_init(&source_mem, NULL, NULL);
    ck_assert_int_eq(kvc__gguf_open(&source_mem, map.data, map.size, &source, &err), KVC_OK);
}

static void setup(void) {
    memset(&err, 0, sizeof err);
    params = kvc__params_default;
    params.n_threads = 2;
    params.allocator =
        (kvc_allocator){.struct_size = sizeof(kvc_allocator), .realloc = counting_realloc};
    atomic_store(&held, 0);
    atomic_store(&allowed, INT32_MAX);
}

static void teardown(void) {
    kvc__gguf_close(&source);
    kvc__unmap(&map);
    map = (kvc__map){0};
    bytes_free(&file);
    ck_assert_uint_eq(atomic_load(&held), 0);
}

static kvc_model *open_model(const uint8_t *p, size_t n) {
    kvc_model *m = NULL;
    int32_t rc = kvc__model_create(p, n, false, &params, &m, &err);
    ck_assert_msg(rc == KVC_OK, "%s", err.text);
    return m;
}

/* ---------------------------------------------------------------- copies with one change */

enum {
    KEEP,
    SET_NUMBER, /* key of .type becomes .number */
    SET_PAIR,   /* key becomes an array of .type: .number, .second, … to .dim[0] (2) */
    SET_STRING, /* key becomes .text */
    DROP_KEY,
    DROP_TENSOR,
    RENAME_TENSOR,  /* to .text */
    RETYPE_TENSOR,  /* zeros of .type in the same shape */
    RESHAPE_TENSOR, /* zeros in shape .dim, of .type */
    ADD_TENSOR      /* F32 of shape .dim, all .number */
};

typedef struct edit {
    int what;
    const char *name;
    uint32_t type;
    double number, second;
    const char *text;
    uint64_t dim[2];
} edit;

static bool is_named(kvc__str s, const char *name) {
    return s.n == strlen(name) && memcmp(s.p, name, s.n) == 0;
}

static void put_edited_key(bytes *b, const edit *e) {
    if (e->what == SET_STRING) {
        put_key(b, e->name, KVC__GGUF_STRING);
        put_str(b, e->text);
    } else if (e->what == SET_PAIR) {
        uint64_t n = e->dim[0] ? e->dim[0] : 2;
        put_array(b, e->name, e->type, n);
        for (uint64_t i = 0; i < n; i++) {
            put_number(b, e->type, i ? e->second : e->number);
        }
    } else {
        put_key(b, e->name, e->type);
        put_number(b, e->type, e->number);
    }
}

static void put_copied_key(bytes *b, const kvc__gguf_kv *kv) {
    put_u64(b, kv->key.n);
    put(b, kv->key.p, kv->key.n);
    put_u32(b, kv->type);
    if (kv->type == KVC__GGUF_ARRAY) {
        put_u32(b, kv->elem_type);
        put_u64(b, kv->n);
    }
    put(b, kv->value, kv->bytes);
}

static size_t size_of(const kvc__gguf_tensor *t) {
    uint32_t elems = 1, size = 0;
    const char *name;
    (void)kvc__type_info(t->type, &elems, &size, &name);
    return (size_t)(t->dim[0] * t->dim[1] * t->dim[2] * t->dim[3] / elems * size);
}

/* The tensor table after the change. data NULL means zeros. */
static size_t edited_tensors(const edit *e, kvc__gguf_tensor *t) {
    size_t n = 0;
    for (uint64_t i = 0; i < source.n_tensor; i++) {
        bool hit = e->what >= DROP_TENSOR && is_named(source.tensor[i].name, e->name);
        if (hit && e->what == DROP_TENSOR) {
            continue;
        }
        t[n] = source.tensor[i];
        if (hit && e->what == RENAME_TENSOR) {
            t[n].name = (kvc__str){e->text, strlen(e->text)};
        }
        if (hit && e->what >= RETYPE_TENSOR) {
            t[n].type = e->type;
            t[n].data = NULL;
        }
        if (hit && e->what == RESHAPE_TENSOR) {
            memcpy(t[n].dim, e->dim, sizeof e->dim);
            t[n].n_dims = 2;
        }
        n++;
    }
    if (e->what == ADD_TENSOR) {
        t[n++] = (kvc__gguf_tensor){
            .name = {e->name, strlen(e->name)}, .n_dims = 2, .dim = {e->dim[0], e->dim[1], 1, 1}};
    }
    return n;
}

static void put_tensor_data(bytes *b, const edit *e, const kvc__gguf_tensor *t) {
    put_padding(b, 32);
    if (t->data) {
        put(b, t->data, t->bytes);
    } else if (e->what == ADD_TENSOR) {
        for (uint64_t i = 0; i < t->dim[0] * t->dim[1]; i++) {
            put_number(b, KVC__GGUF_F32, e->number);
        }
    } else {
        put_zeros(b, size_of(t));
    }
}

/* Writes the mapped model with a change into file. */
static void write_edited(const edit *e) {
    bool is_set = e->what >= SET_NUMBER && e->what <= SET_STRING;
    bool had = e->what <= DROP_KEY && e->what != KEEP && kvc__gguf_find(&source, e->name) != NULL;
    kvc__gguf_tensor t[64];
    ck_assert_uint_lt(source.n_tensor, 60);
    size_t n_tensor = edited_tensors(e, t);
    bytes_free(&file);
    put_header(&file, 3, n_tensor, source.n_kv - (had ? 1 : 0) + (is_set ? 1 : 0));
    for (uint64_t i = 0; i < source.n_kv; i++) {
        if (!had || !is_named(source.kv[i].key, e->name)) {
            put_copied_key(&file, &source.kv[i]);
        }
    }
    if (is_set) {
        put_edited_key(&file, e);
    }
    uint64_t offset = 0;
    for (size_t i = 0; i < n_tensor; i++) {
        char name[80];
        put_tensor(&file, kvc__str_text(t[i].name, name, sizeof name), t[i].n_dims, t[i].dim,
                   t[i].type, offset);
        offset += (size_of(&t[i]) + 31) / 32 * 32;
    }
    for (size_t i = 0; i < n_tensor; i++) {
        put_tensor_data(&file, e, &t[i]);
    }
    put_padding(&file, 32);
}

/* ---------------------------------------------------------------- what is read */

static const struct {
    const char *file, *weights;
    uint32_t n_head_kv, dim_k, dim_v, n_rot, tied;
} suite_files[] = {
    {"tiny-f32.gguf", "F32", 2, 32, 32, 32, 1},   {"tiny-f16.gguf", "F16", 2, 32, 32, 32, 1},
    {"tiny-q8_0.gguf", "Q8_0", 2, 32, 32, 32, 1}, {"tiny-q4_0.gguf", "Q4_0", 2, 32, 32, 32, 1},
    {"tiny-q4_1.gguf", "Q4_1", 2, 32, 32, 32, 1}, {"tiny-untied.gguf", "Q8_0", 2, 32, 32, 32, 0},
    {"tiny-mqa80.gguf", "F16", 1, 80, 80, 80, 1}, {"tiny-kv.gguf", "F32", 2, 32, 48, 32, 1},
    {"tiny-rot16.gguf", "F32", 2, 32, 32, 16, 1},
};
#define N_SUITE ((int)(sizeof suite_files / sizeof suite_files[0]))

START_TEST(reads_every_tiny_model) {
    map_model(suite_files[_i].file);
    kvc_model *m = open_model(map.data, map.size);
    const kvc__hparams *h = &m->hp;
    ck_assert_uint_eq(h->n_layer, 2);
    ck_assert_uint_eq(h->n_embd, 64);
    ck_assert_uint_eq(h->n_ff, 96);
    ck_assert_uint_eq(h->n_vocab, 320);
    ck_assert_uint_eq(h->n_ctx_train, 1024);
    ck_assert_uint_eq(h->n_head, 4);
    ck_assert_uint_eq(h->n_head_kv, suite_files[_i].n_head_kv);
    ck_assert_uint_eq(h->dim_k, suite_files[_i].dim_k);
    ck_assert_uint_eq(h->dim_v, suite_files[_i].dim_v);
    ck_assert_uint_eq(h->n_rot, suite_files[_i].n_rot);
    ck_assert(m->rope[0].base == 10000.0f && h->norm_eps == 1e-5f);
    ck_assert(h->scale == (float)(1.0 / sqrt(h->dim_k)));
    ck_assert_uint_eq(m->tied, suite_files[_i].tied);
    ck_assert_int_eq(m->head.data == m->embd.data, suite_files[_i].tied);
    ck_assert_str_eq(m->weights, suite_files[_i].weights);
    ck_assert_str_eq(m->arch->name, "llama");
    ck_assert_str_eq(m->name, "random llama 2x64 seed 1");
    ck_assert_uint_eq(strlen(m->fingerprint), 32);
    ck_assert_uint_eq(m->file_bytes, map.size);
    uint64_t n_param = 0;
    for (uint64_t i = 0; i < source.n_tensor; i++) {
        n_param += source.tensor[i].dim[0] * source.tensor[i].dim[1];
    }
    ck_assert_uint_eq(m->n_param, n_param);
    ck_assert_uint_eq(m->layer[1].o.n_col, 4 * h->dim_v);
    ck_assert_uint_eq(m->layer[1].down.n_col, 96);
    ck_assert_uint_eq(kvc__pool_n_thread(m->pool), 2);
    ck_assert_uint_eq(m->n_batch, 512);
    ck_assert_ptr_nonnull(m->kern);
    ck_assert_uint_eq(atomic_load(&m->mem.used), atomic_load(&held));
    kvc__model_free(m);
}
END_TEST

/* Every tensor once; of a table that is looked up alone, one of its 320 rows. A layer's matrices
 * are those tensors of blk that have two dimensions. */
START_TEST(says_what_a_token_reads_and_multiplies) {
    map_model(suite_files[_i].file);
    kvc_model *m = open_model(map.data, map.size);
    uint64_t read = 0, mac = 0;
    for (uint64_t i = 0; i < source.n_tensor; i++) {
        const kvc__gguf_tensor *t = &source.tensor[i];
        const bool looked_up = !suite_files[_i].tied && is_named(t->name, "token_embd.weight");
        read += looked_up ? t->bytes / 320 : t->bytes;
        mac += memcmp(t->name.p, "blk.", 4) == 0 && t->n_dims == 2 ? t->dim[0] * t->dim[1] : 0;
    }
    kvc_model_info info = {.struct_size = sizeof info};
    ck_assert_int_eq(kvc_model_get_info(m, &info), KVC_OK);
    ck_assert_uint_eq(info.read_bytes, read);
    ck_assert_uint_eq(info.n_mac, mac);
    ck_assert_uint_gt(mac, 0);
    /* A program built with an older header is given what it knows. */
    info.struct_size = offsetof(kvc_model_info, read_bytes);
    info.read_bytes = 7;
    ck_assert_int_eq(kvc_model_get_info(m, &info), KVC_OK);
    ck_assert_uint_eq(info.read_bytes, 7);
    kvc__model_free(m);
}
END_TEST

static void check_rows(const kvc__mat *mat, const char *name) {
    const kvc__gguf_tensor *t = kvc__gguf_tensor_find(&source, name);
    float row[128], want[128];
    ck_assert_ptr_nonnull(t);
    ck_assert_uint_eq(mat->n_row, t->dim[1]);
    ck_assert_uint_eq(mat->n_col, t->dim[0]);
    for (uint32_t r = 0; r < mat->n_row; r++) {
        kvc__mat_row(mat, r, row);
        memcpy(want, t->data + (size_t)r * mat->n_col * 4, mat->n_col * 4u);
        ck_assert_msg(memcmp(row, want, mat->n_col * 4u) == 0, "%s, row %u", name, r);
    }
}

START_TEST(weights_are_the_files) {
    map_model("tiny-f32.gguf");
    kvc_model *m = open_model(map.data, map.size);
    for (uint32_t il = 0; il < 2; il++) {
        const struct {
            const char *name;
            const kvc__mat *mat;
        } mats[] = {{"attn_q", &m->layer[il].q},      {"attn_k", &m->layer[il].k},
                    {"attn_v", &m->layer[il].v},      {"attn_output", &m->layer[il].o},
                    {"ffn_gate", &m->layer[il].gate}, {"ffn_up", &m->layer[il].up},
                    {"ffn_down", &m->layer[il].down}};
        char name[64];
        for (size_t i = 0; i < 7; i++) {
            (void)snprintf(name, sizeof name, "blk.%u.%s.weight", il, mats[i].name);
            check_rows(mats[i].mat, name);
        }
        const kvc__mat *gate = &m->layer[il].gate, *up = &m->layer[il].up;
        ck_assert_ptr_eq(up->data, gate->data + gate->group_bytes); /* as they are read */
        ck_assert_uint_eq(up->stride, 2 * gate->group_bytes);
        (void)snprintf(name, sizeof name, "blk.%u.attn_norm.weight", il);
        ck_assert_mem_eq(m->layer[il].attn_norm, kvc__gguf_tensor_find(&source, name)->data, 256);
        (void)snprintf(name, sizeof name, "blk.%u.ffn_norm.weight", il);
        ck_assert_mem_eq(m->layer[il].ffn_norm, kvc__gguf_tensor_find(&source, name)->data, 256);
    }
    check_rows(&m->embd, "token_embd.weight");
    const kvc__gguf_tensor *norm = kvc__gguf_tensor_find(&source, "output_norm.weight");
    ck_assert_mem_eq(m->out_norm, norm->data, 256);
    kvc__model_free(m);
}
END_TEST

START_TEST(norms_may_be_f16) {
    map_model("tiny-f32.gguf");
    write_edited(&(edit){RETYPE_TENSOR, "output_norm.weight", .type = KVC__T_F16});
    kvc__gguf g;
    ck_assert_int_eq(kvc__gguf_open(&source_mem, file.p, file.n, &g, &err), KVC_OK);
    const uint8_t *data = kvc__gguf_tensor_find(&g, "output_norm.weight")->data;
    static const uint16_t half_1_5 = 0x3e00;
    memcpy(file.p + (data - file.p) + 2, &half_1_5, 2);
    kvc__gguf_close(&g);
    kvc_model *m = open_model(file.p, file.n);
    ck_assert(m->out_norm[0] == 0.0f && m->out_norm[1] == 1.5f && m->out_norm[2] == 0.0f);
    kvc__model_free(m);
}
END_TEST

START_TEST(null_params_are_the_defaults) {
    kvc_model *m = NULL;
    map_model("tiny-q4_0.gguf");
    ck_assert_int_eq(kvc__model_create(map.data, map.size, true, NULL, &m, NULL), KVC_OK);
    ck_assert_uint_eq(kvc__pool_n_thread(m->pool), kvc__n_core());
    ck_assert_uint_eq(m->n_ref, 1);
    kvc__model_hold(m);
    kvc__model_drop(m);
    ck_assert_uint_eq(m->n_ref, 1);
    kvc__model_drop(m);
    kvc__model_free(NULL);
}
END_TEST

START_TEST(fingerprint_tells_models_apart) {
    char print[N_SUITE + 3][33];
    for (int i = 0; i < N_SUITE; i++) {
        map_model(suite_files[i].file);
        kvc_model *m = open_model(map.data, map.size);
        memcpy(print[i], m->fingerprint, 33);
        kvc__model_free(m);
    }
    for (int extra = 0; extra < 3; extra++) { /* a key more; as it was; the last weight changed */
        write_edited(&(edit){extra ? KEEP : SET_NUMBER, "x.y", .type = KVC__GGUF_U8});
        file.p[file.n - 1] ^= extra == 2;
        kvc_model *m = open_model(file.p, file.n);
        memcpy(print[N_SUITE + extra], m->fingerprint, 33);
        kvc__model_free(m);
    }
    for (int i = 0; i < N_SUITE + 3; i++) {
        ck_assert_uint_eq(strspn(print[i], "0123456789abcdef"), 32);
        for (int k = 0; k < i; k++) {
            ck_assert_str_ne(print[i], print[k]);
        }
    }
    map_model(suite_files[0].file);
    kvc_model *m = open_model(map.data, map.size);
    ck_assert_str_eq(m->fingerprint, print[0]);
    kvc__model_free(m);
}
END_TEST

/* ---------------------------------------------------------------- RoPE's table */

static void check_rope(const kvc_model *m, double divisor) {
    uint32_t half = m->hp.n_rot / 2;
    for (uint32_t pos = 0; pos < m->rope[0].n; pos++) {
        const float *cs = m->rope[0].cs + (size_t)pos * m->hp.n_rot;
        for (uint32_t i = 0; i < half; i++) {
            double angle = pos * pow(10000.0, -2.0 * i / m->hp.n_rot) / divisor;
            ck_assert_double_eq_tol((double)cs[i], cos(angle), 1e-6);
            ck_assert_double_eq_tol((double)cs[half + i], sin(angle), 1e-6);
        }
    }
}

START_TEST(rope_grows_and_keeps_what_it_has) {
    map_model("tiny-rot16.gguf");
    kvc_model *m = open_model(map.data, map.size);
    float first[3 * 16];
    ck_assert_int_eq(kvc__model_rope(m, 3, &err), KVC_OK);
    ck_assert_uint_eq(m->rope[0].n, 3);
    memcpy(first, m->rope[0].cs, sizeof first);
    ck_assert_int_eq(kvc__model_rope(m, 700, &err), KVC_OK);
    ck_assert_uint_eq(m->rope[0].n, 700);
    ck_assert_mem_eq(first, m->rope[0].cs, sizeof first);
    ck_assert_int_eq(kvc__model_rope(m, 5, &err), KVC_OK);
    ck_assert_uint_eq(m->rope[0].n, 700);
    check_rope(m, 1.0);
    atomic_store(&allowed, 0);
    ck_assert_int_eq(kvc__model_rope(m, 701, &err), KVC_E_NOMEM);
    ck_assert_uint_eq(m->rope[0].n, 700);
    check_rope(m, 1.0);
    kvc__model_free(m);
}
END_TEST

START_TEST(rope_factors_divide_the_angle) {
    map_model("tiny-f32.gguf");
    write_edited(&(edit){ADD_TENSOR, "rope_freqs.weight", .number = 4.0, .dim = {16, 1}});
    kvc_model *m = open_model(file.p, file.n);
    ck_assert_ptr_nonnull(m->rope[0].divisor);
    kvc_model *without = open_model(map.data, map.size);
    ck_assert_uint_eq(m->n_param, without->n_param);
    ck_assert_uint_eq(m->read_bytes, without->read_bytes);
    kvc__model_free(without);
    ck_assert_int_eq(kvc__model_rope(m, 64, &err), KVC_OK);
    check_rope(m, 4.0);
    kvc__model_free(m);
}
END_TEST

/* ---------------------------------------------------------------- what is refused */

#define NUMBER(key, kind, v)                                                                       \
    { .what = SET_NUMBER, .name = key, .type = KVC__GGUF_##kind, .number = v }
#define PAIR(key, kind, v, w)                                                                      \
    { .what = SET_PAIR, .name = key, .type = KVC__GGUF_##kind, .number = v, .second = w }
#define STRING(key, v)                                                                             \
    { .what = SET_STRING, .name = key, .text = v }
#define DROP(key)                                                                                  \
    { .what = DROP_KEY, .name = key }
#define NO_TENSOR(n)                                                                               \
    { .what = DROP_TENSOR, .name = n }
#define RENAME(n, to)                                                                              \
    { .what = RENAME_TENSOR, .name = n, .text = to }
#define RETYPE(n, t)                                                                               \
    { .what = RETYPE_TENSOR, .name = n, .type = t }
#define RESHAPE(n, c, r)                                                                           \
    {                                                                                              \
        .what = RESHAPE_TENSOR, .name = n, .dim = { c, r }                                         \
    }
#define ADD(n, v, c, r)                                                                            \
    {                                                                                              \
        .what = ADD_TENSOR, .name = n, .number = v, .dim = { c, r }                                \
    }

static const struct {
    edit e;
    int32_t status;
    const char *says;
} changes[] = {
    {{.what = KEEP}, KVC_OK, ""},
    {STRING("general.architecture", "qwen2"), KVC_E_FORMAT, "'qwen2.block_count'"},
    {STRING("general.architecture", "qwen5"), KVC_E_UNSUPPORTED, "'qwen5'"},
    {STRING("general.architecture", "llam"), KVC_E_UNSUPPORTED,
     "supported: llama, qwen2, qwen3, gemma3"},
    {DROP("general.architecture"), KVC_E_FORMAT, "general.architecture"},
    {NUMBER("general.name", U32, 1), KVC_E_FORMAT, "general.name"},
    {DROP("general.name"), KVC_OK, ""},
    {DROP("llama.block_count"), KVC_E_FORMAT, "block_count"},
    {NUMBER("llama.block_count", U32, 0), KVC_E_FORMAT, "block_count"},
    {NUMBER("llama.block_count", U32, 1025), KVC_E_FORMAT, "1 to 1024"},
    {NUMBER("llama.block_count", U32, 1024), KVC_E_FORMAT, "9218 tensors"},
    {NUMBER("llama.block_count", U32, 1), KVC_E_UNSUPPORTED, "blk.1."},
    {NUMBER("llama.context_length", U32, 0), KVC_E_FORMAT, "context_length"},
    {NUMBER("llama.embedding_length", U32, 62), KVC_E_UNSUPPORTED, "multiples"},
    {NUMBER("llama.embedding_length", U32, 4e9), KVC_E_FORMAT, "embedding_length"},
    {NUMBER("llama.embedding_length", U32, 60), KVC_E_FORMAT, "[60, 1]"},
    {NUMBER("llama.feed_forward_length", U32, 98), KVC_E_UNSUPPORTED, "multiples"},
    {NUMBER("llama.feed_forward_length", U32, 100), KVC_E_FORMAT, "ffn_gate"},
    {PAIR("llama.feed_forward_length", U32, 96, 96), KVC_OK, ""},
    {PAIR("llama.feed_forward_length", U32, 96, 64), KVC_E_UNSUPPORTED, "differs"},
    {NUMBER("llama.attention.head_count", U32, 0), KVC_E_FORMAT, "head_count"},
    {NUMBER("llama.attention.head_count", I32, -4), KVC_E_FORMAT, "-4"},
    {NUMBER("llama.attention.head_count", U32, 5), KVC_E_FORMAT, "evenly"},
    {NUMBER("llama.attention.head_count", U64, 4), KVC_OK, ""},
    {NUMBER("llama.attention.head_count_kv", U32, 5), KVC_E_FORMAT, "1 to 4"},
    {NUMBER("llama.attention.head_count_kv", U32, 3), KVC_E_FORMAT, "evenly"},
    {PAIR("llama.attention.head_count_kv", I32, 2, 2), KVC_OK, ""},
    {{.what = SET_PAIR,
      .name = "llama.attention.head_count_kv",
      .type = KVC__GGUF_U32,
      .number = 2,
      .second = 2,
      .dim = {3}},
     KVC_E_FORMAT,
     "2 numbers"},
    {PAIR("llama.attention.head_count_kv", I32, 2, 1), KVC_E_UNSUPPORTED, "differs"},
    {PAIR("llama.attention.head_count_kv", I32, -2, -2), KVC_E_FORMAT, "1 to 4"},
    {PAIR("llama.attention.head_count_kv", F32, 1.5, 1.5), KVC_E_FORMAT, "1 to 4"},
    {DROP("llama.attention.head_count_kv"), KVC_E_FORMAT, "attn_k"},
    {DROP("llama.attention.key_length"), KVC_E_FORMAT, "rope.dimension_count"},
    {DROP("llama.attention.value_length"), KVC_E_FORMAT, "attn_v"},
    {NUMBER("llama.attention.key_length", U32, 34), KVC_E_UNSUPPORTED, "multiples"},
    {NUMBER("llama.attention.value_length", U32, 34), KVC_E_UNSUPPORTED, "of 4"},
    {NUMBER("llama.attention.key_length", U32, 1028), KVC_E_FORMAT, "1024"},
    {NUMBER("llama.rope.dimension_count", U32, 31), KVC_E_UNSUPPORTED, "of 2"},
    {NUMBER("llama.rope.dimension_count", U32, 34), KVC_E_FORMAT, "2 to 32"},
    {DROP("llama.rope.dimension_count"), KVC_OK, ""},
    {NUMBER("llama.rope.freq_base", F32, 0), KVC_E_FORMAT, "RoPE base 0"},
    {NUMBER("llama.rope.freq_base", U32, 1), KVC_E_FORMAT, "freq_base"},
    {DROP("llama.rope.freq_base"), KVC_OK, ""},
    {DROP("llama.attention.layer_norm_rms_epsilon"), KVC_E_FORMAT, "epsilon"},
    {NUMBER("llama.attention.layer_norm_rms_epsilon", F32, -1), KVC_E_FORMAT, "epsilon"},
    {STRING("llama.rope.scaling.type", "none"), KVC_OK, ""},
    {STRING("llama.rope.scaling.type", "linear"), KVC_OK, ""},
    {STRING("llama.rope.scaling.type", "yarn"), KVC_OK, ""},
    {STRING("llama.rope.scaling.type", "longrope"), KVC_E_UNSUPPORTED, "'longrope'"},
    {STRING("llama.rope.scaling.type", "llama3"), KVC_E_UNSUPPORTED,
     "'llama3' is not supported without rope_freqs.weight"},
    {NUMBER("llama.rope.scaling.type", U32, 1), KVC_E_FORMAT, "scaling.type"},
    {NUMBER("llama.rope.scaling.factor", F32, 2), KVC_OK, ""},
    {NUMBER("llama.rope.scaling.factor", F32, 0), KVC_OK, ""},
    {NUMBER("llama.rope.scaling.factor", F32, -2), KVC_E_FORMAT, "factor' is -2"},
    {NUMBER("llama.rope.scaling.factor", F32, 1e7), KVC_E_FORMAT, "1e+06"},
    {NUMBER("llama.rope.scaling.attn_factor", F32, 0), KVC_E_FORMAT, "attn_factor' is 0"},
    {NUMBER("llama.rope.scaling.yarn_log_multiplier", F32, 0.1), KVC_E_UNSUPPORTED,
     "yarn_log_multiplier"},
    {NUMBER("llama.rope.freq_base_swa", F32, 10000), KVC_E_UNSUPPORTED, "freq_base_swa"},
    {NUMBER("llama.rope.scale_linear", F32, 4), KVC_OK, ""},
    {NUMBER("llama.rope.scale_linear", F32, -4), KVC_E_FORMAT, "scale_linear' is -4"},
    {NUMBER("llama.attention.sliding_window", U32, 0), KVC_OK, ""},
    {NUMBER("llama.attention.sliding_window", U32, 4096), KVC_OK, ""},
    {NUMBER("llama.attention.sliding_window", I32, -1), KVC_E_FORMAT, "sliding_window"},
    {PAIR("llama.attention.sliding_window", U32, 0, 8), KVC_OK, ""},
    {PAIR("llama.attention.sliding_window", I32, -1, 8), KVC_E_FORMAT, "2 numbers"},
    {NUMBER("llama.attn_logit_softcapping", F32, 50), KVC_OK, ""},
    {NUMBER("llama.attn_logit_softcapping", F32, -1), KVC_E_FORMAT, "attn_logit_softcapping' is"},
    {NUMBER("llama.final_logit_softcapping", F32, 30), KVC_OK, ""},
    {NUMBER("llama.final_logit_softcapping", F32, 1e9), KVC_E_FORMAT, "final_logit_softcapping'"},
    {NUMBER("llama.attention.scale", F32, 0.5), KVC_OK, ""},
    {NUMBER("llama.attention.scale", F32, -0.5), KVC_E_FORMAT, "attention.scale"},
    {NUMBER("llama.attention.clamp_kqv", F32, 8), KVC_E_UNSUPPORTED, "clamp_kqv"},
    {NUMBER("llama.expert_count", U32, 8), KVC_E_UNSUPPORTED, "expert_count"},
    {STRING("llama.logit_scale", "x"), KVC_E_UNSUPPORTED, "logit_scale"},
    {STRING("tokenizer.ggml.model", "bert"), KVC_E_UNSUPPORTED, "bert"},
    {NO_TENSOR("token_embd.weight"), KVC_E_FORMAT, "'token_embd.weight' is missing"},
    {NO_TENSOR("output_norm.weight"), KVC_E_FORMAT, "'output_norm.weight' is missing"},
    {NO_TENSOR("blk.1.ffn_down.weight"), KVC_E_FORMAT, "'blk.1.ffn_down.weight' is missing"},
    {RENAME("blk.0.attn_q.weight", "blk.0.attn_qkv.weight"), KVC_E_FORMAT,
     "'blk.0.attn_q.weight' is missing"},
    {ADD("blk.0.attn_q.bias", 0, 128, 1), KVC_E_UNSUPPORTED, "'blk.0.attn_q.bias'"},
    {ADD("blk.2.attn_q.weight", 0, 64, 128), KVC_E_UNSUPPORTED, "blk.2.attn_q"},
    {ADD("rope_freqs.weight", 1, 16, 1), KVC_OK, ""},
    {ADD("rope_freqs.weight", 1, 15, 1), KVC_E_FORMAT, "[16, 1]"},
    {ADD("rope_freqs.weight", 0, 16, 1), KVC_E_FORMAT, "positive"},
    {ADD("output.weight", 1, 64, 320), KVC_OK, ""},
    {ADD("output.weight", 1, 64, 321), KVC_E_FORMAT, "[64, 320]"},
    {RETYPE("blk.1.attn_v.weight", KVC__T_IQ4_NL), KVC_E_UNSUPPORTED, "type IQ4_NL"},
    {RETYPE("blk.1.attn_v.weight", KVC__T_IQ4_NL), KVC_E_UNSUPPORTED, "Q5_K or Q6_K"},
    {RETYPE("blk.1.attn_v.weight", KVC__T_Q5_0), KVC_OK, ""},
    {RETYPE("blk.1.attn_v.weight", KVC__T_BF16), KVC_OK, ""},
    {RETYPE("blk.1.attn_v.weight", KVC__T_Q4_K), KVC_E_FORMAT, "256"},
    {RETYPE("blk.1.attn_v.weight", 99), KVC_E_UNSUPPORTED, "type 99"},
    {RETYPE("blk.1.attn_v.weight", KVC__T_Q8_0), KVC_OK, ""},
    {RETYPE("blk.1.attn_norm.weight", KVC__T_Q8_0), KVC_E_UNSUPPORTED, "for vectors"},
    {RETYPE("blk.1.attn_norm.weight", 99), KVC_E_UNSUPPORTED, "type 99"},
    {RESHAPE("token_embd.weight", 64, 319), KVC_E_FORMAT, "[64, 319, 1, 1]"},
    {RESHAPE("blk.0.attn_q.weight", 128, 64), KVC_E_FORMAT, "'blk.0.attn_q.weight'"},
    {RESHAPE("blk.0.ffn_norm.weight", 64, 2), KVC_E_FORMAT, "'blk.0.ffn_norm.weight'"},
};

/* The same for other architectures. */
static const struct {
    const char *file;
    edit e;
    int32_t status;
    const char *says;
} arch_changes[] = {
    {"arch-qwen2.gguf", {.what = KEEP}, KVC_OK, ""},
    {"arch-qwen2.gguf", NO_TENSOR("blk.2.attn_k.bias"), KVC_E_FORMAT,
     "'blk.2.attn_k.bias' is missing"},
    {"arch-qwen2.gguf", RESHAPE("blk.0.attn_v.bias", 47, 1), KVC_E_FORMAT, "[48, 1]"},
    {"arch-qwen2.gguf", RETYPE("blk.0.attn_q.bias", KVC__T_F16), KVC_OK, ""},
    {"arch-qwen2.gguf", RETYPE("blk.0.attn_q.bias", 99), KVC_E_UNSUPPORTED, "for vectors"},
    {"arch-qwen2.gguf", ADD("blk.0.attn_output.bias", 0, 96, 1), KVC_E_UNSUPPORTED,
     "'blk.0.attn_output.bias' has no place in the supported form of architecture 'qwen2'"},
    {"arch-qwen2.gguf", ADD("blk.0.attn_q_norm.weight", 1, 24, 1), KVC_E_UNSUPPORTED, "'qwen2'"},
    {"arch-qwen2.gguf", DROP("qwen2.attention.key_length"), KVC_E_FORMAT, "attn_q"},
    {"arch-qwen2-yarn.gguf", NUMBER("qwen2.rope.scaling.factor", F32, 0.5), KVC_E_FORMAT,
     "'yarn' by 0.5"},
    {"arch-qwen2-yarn.gguf", NUMBER("qwen2.rope.freq_base", F32, 1), KVC_E_FORMAT, "base 1"},
    {"arch-qwen2-yarn.gguf", NUMBER("qwen2.rope.scaling.original_context_length", U32, 0),
     KVC_E_FORMAT, "original_context_length"},
    {"arch-qwen2-yarn.gguf", DROP("qwen2.rope.scaling.original_context_length"), KVC_OK, ""},
    {"arch-qwen2-yarn.gguf", NUMBER("qwen2.rope.scaling.yarn_ext_factor", F32, 2), KVC_E_FORMAT,
     "yarn_ext_factor' is 2"},
    {"arch-qwen2-yarn.gguf", NUMBER("qwen2.rope.scaling.yarn_ext_factor", F32, 0), KVC_OK, ""},
    {"arch-qwen2-yarn.gguf", NUMBER("qwen2.rope.scaling.yarn_attn_factor", F32, -1), KVC_E_FORMAT,
     "yarn_attn_factor' is -1"},
    {"arch-qwen2-yarn.gguf", NUMBER("qwen2.rope.scaling.yarn_beta_fast", F32, 0), KVC_E_FORMAT,
     "yarn_beta_fast' is 0"},
    {"arch-qwen2-yarn.gguf", NUMBER("qwen2.rope.scaling.yarn_beta_slow", U32, 1), KVC_E_FORMAT,
     "yarn_beta_slow"},
    {"arch-qwen3.gguf", NO_TENSOR("blk.1.attn_q_norm.weight"), KVC_E_FORMAT,
     "'blk.1.attn_q_norm.weight' is missing"},
    {"arch-qwen3.gguf", RESHAPE("blk.1.attn_k_norm.weight", 24, 1), KVC_E_FORMAT, "[256, 1]"},
    {"arch-qwen3.gguf", ADD("blk.0.attn_q.bias", 0, 1024, 1), KVC_E_UNSUPPORTED, "'qwen3'"},
    {"arch-gemma3-caps.gguf", NO_TENSOR("blk.3.post_ffw_norm.weight"), KVC_E_FORMAT,
     "'blk.3.post_ffw_norm.weight' is missing"},
    {"arch-gemma3-caps.gguf", RESHAPE("blk.0.post_attention_norm.weight", 95, 1), KVC_E_FORMAT,
     "[96, 1]"},
    {"arch-gemma3-caps.gguf", DROP("gemma3.attention.sliding_window"), KVC_OK, ""},
    {"arch-gemma3-caps.gguf", NUMBER("gemma3.attention.sliding_window_pattern", U32, 1), KVC_OK,
     ""},
    {"arch-gemma3-caps.gguf", NUMBER("gemma3.attention.sliding_window_pattern", I32, -1),
     KVC_E_FORMAT, "sliding_window_pattern"},
    {"arch-gemma3-caps.gguf", PAIR("gemma3.attention.sliding_window_pattern", BOOL, 1, 0),
     KVC_E_FORMAT, "4 numbers, 0 to 1"},
    {"arch-gemma3-caps.gguf",
     {.what = SET_PAIR,
      .name = "gemma3.attention.sliding_window_pattern",
      .type = KVC__GGUF_BOOL,
      .number = 1,
      .second = 0,
      .dim = {4}},
     KVC_OK,
     ""},
    {"arch-gemma3-caps.gguf", NUMBER("gemma3.rope.freq_base_swa", F32, 0.5), KVC_E_FORMAT,
     "freq_base_swa' is 0.5"},
    {"arch-gemma3-caps.gguf", NUMBER("gemma3.rope.freq_base_swa", F32, -1), KVC_E_FORMAT,
     "freq_base_swa' is -1"},
    {"arch-gemma3-caps.gguf", NUMBER("gemma3.attention.key_length_swa", U32, 48), KVC_OK, ""},
    {"arch-gemma3-caps.gguf", NUMBER("gemma3.attention.key_length_swa", U32, 64), KVC_E_UNSUPPORTED,
     "key_length_swa' is 64; only 48"},
    {"arch-gemma3-caps.gguf", NUMBER("gemma3.rope.dimension_count_swa", U32, 24), KVC_E_UNSUPPORTED,
     "dimension_count_swa' is 24"},
    {"arch-gemma3-caps.gguf", NUMBER("gemma3.attention.causal", BOOL, 1), KVC_OK, ""},
    {"arch-gemma3-caps.gguf", NUMBER("gemma3.attention.causal", BOOL, 0), KVC_E_UNSUPPORTED,
     "attention.causal' is false"},
    {"arch-gemma3-caps.gguf", NUMBER("gemma3.attention.shared_kv_layers", U32, 2),
     KVC_E_UNSUPPORTED, "shared_kv_layers"},
    {"arch-gemma3-caps.gguf", STRING("gemma3.attn_logit_softcapping", "x"), KVC_E_FORMAT,
     "attn_logit_softcapping"},
    {"arch-gemma3-caps.gguf", NUMBER("gemma3.rope.dimension_count", U32, 16), KVC_OK, ""},
};

START_TEST(one_change_of_other_architectures) {
    kvc_model *m = NULL;
    map_model(arch_changes[_i].file);
    write_edited(&arch_changes[_i].e);
    int32_t rc = kvc__model_create(file.p, file.n, false, &params, &m, &err);
    ck_assert_msg(rc == arch_changes[_i].status && strstr(err.text, arch_changes[_i].says) != NULL,
                  "case %d: %d '%s' lacks '%s'", _i, rc, err.text, arch_changes[_i].says);
    ck_assert_int_eq(m != NULL, rc == KVC_OK);
    if (m != NULL) {
        ck_assert_int_eq(kvc__model_rope(m, 100, &err), KVC_OK);
    }
    kvc__model_free(m);
}
END_TEST

static kvc_model *open_edited(const char *name, const edit *e) {
    map_model(name);
    write_edited(e);
    return open_model(file.p, file.n);
}

/* Which layers have a window, and whose RoPE. */
START_TEST(windows_are_the_files) {
    static const struct {
        const char *file;
        edit e;
        uint32_t window[4], rope[4], n;
    } cases[] = {
        {"tiny-f32.gguf", {.what = KEEP}, {0, 0}, {0, 0}, 2},
        {"tiny-f32.gguf", NUMBER("llama.attention.sliding_window", U32, 9), {9, 9}, {0, 0}, 2},
        {"tiny-f32.gguf", PAIR("llama.attention.sliding_window", U32, 0, 8), {0, 8}, {0, 0}, 2},
        {"arch-gemma3-caps.gguf", {.what = KEEP}, {70, 70, 0, 70}, {1, 1, 0, 1}, 4},
        {"arch-gemma3-caps.gguf",
         NUMBER("gemma3.attention.sliding_window_pattern", U32, 2),
         {70, 0, 70, 0},
         {1, 0, 1, 0},
         4},
        {"arch-gemma3-caps.gguf",
         NUMBER("gemma3.attention.sliding_window_pattern", U32, 0),
         {70, 70, 70, 70},
         {1, 1, 1, 1},
         4},
        {"arch-gemma3-caps.gguf",
         DROP("gemma3.attention.sliding_window"),
         {0, 0, 0, 0},
         {0, 0, 0, 0},
         4},
        {"arch-gemma3-caps.gguf",
         {.what = SET_PAIR,
          .name = "gemma3.attention.sliding_window_pattern",
          .type = KVC__GGUF_BOOL,
          .number = 0,
          .second = 1,
          .dim = {4}},
         {0, 70, 70, 70},
         {0, 1, 1, 1},
         4},
    };
    kvc_model *m = open_edited(cases[_i].file, &cases[_i].e);
    ck_assert_uint_eq(m->hp.n_layer, cases[_i].n);
    for (uint32_t i = 0; i < m->hp.n_layer; i++) {
        ck_assert_uint_eq(m->layer[i].window, cases[_i].window[i]);
        ck_assert_uint_eq(m->layer[i].rope, cases[_i].rope[i]);
    }
    kvc__model_free(m);
}
END_TEST

/* What no tiny model with a reference sets: a scale of the file's, a part of the elements turned in
 * halves, YaRN without its mix. */
START_TEST(numbers_are_the_files) {
    kvc_model *m = open_edited("tiny-f32.gguf", &(edit){SET_NUMBER, "llama.attention.scale",
                                                        .type = KVC__GGUF_F32, .number = 0.25});
    ck_assert(m->hp.scale == 0.25f && m->hp.embd_scale == 1.0f);
    kvc__model_free(m);
    map_model("arch-gemma3-wide.gguf");
    m = open_model(map.data, map.size);
    ck_assert(m->hp.scale == (float)(1 / sqrt(16.0)));
    ck_assert(m->hp.embd_scale == (float)sqrt(32.0));
    kvc__model_free(m);
    m = open_edited("arch-qwen2-yarn.gguf",
                    &(edit){SET_NUMBER, "qwen2.rope.scaling.yarn_ext_factor", .type = KVC__GGUF_F32,
                            .number = 0});
    ck_assert_int_eq(kvc__model_rope(m, 50, &err), KVC_OK);
    for (uint32_t i = 0; i < 64; i++) {
        const double angle = 49 * pow(1e6, -(double)i / 64) / 8;
        ck_assert_double_eq_tol((double)m->rope[0].cs[49 * 128 + i], cos(angle), 1e-6);
    }
    kvc__model_free(m);
}
END_TEST

START_TEST(one_change) {
    kvc_model *m = NULL;
    map_model("tiny-f32.gguf");
    write_edited(&changes[_i].e);
    int32_t rc = kvc__model_create(file.p, file.n, false, &params, &m, &err);
    ck_assert_msg(rc == changes[_i].status, "case %d, %s: %d '%s'", _i,
                  changes[_i].e.name ? changes[_i].e.name : "", rc, err.text);
    ck_assert_msg(strstr(err.text, changes[_i].says) != NULL, "'%s' lacks '%s'", err.text,
                  changes[_i].says);
    ck_assert_int_eq(m != NULL, rc == KVC_OK);
    kvc__model_free(m);
}
END_TEST

START_TEST(llama3_scaling_with_factors) {
    map_model("tiny-f32.gguf");
    write_edited(&(edit){ADD_TENSOR, "rope_freqs.weight", .number = 2.0, .dim = {16, 1}});
    bytes first = file;
    file = (bytes){0};
    kvc__gguf_close(&source);
    ck_assert_int_eq(kvc__gguf_open(&source_mem, first.p, first.n, &source, &err), KVC_OK);
    write_edited(&(edit){SET_STRING, "llama.rope.scaling.type", .text = "llama3"});
    kvc__model_free(open_model(file.p, file.n));
    bytes_free(&first);
}
END_TEST

/* ---------------------------------------------------------------- damage and lack of memory */

START_TEST(cut_files_are_refused) {
    kvc_model *m = NULL;
    map_model("tiny-q4_0.gguf");
    for (size_t i = 0; i < 200; i++) {
        int32_t rc = kvc__model_create(map.data, map.size * i / 200, true, &params, &m, &err);
        ck_assert_int_eq(rc, KVC_E_FORMAT);
        ck_assert_ptr_null(m);
        ck_assert_uint_eq(atomic_load(&held), 0);
    }
}
END_TEST

START_TEST(damaged_files_are_survived) {
    uint64_t state = 1442695040888963407u;
    map_model(_i == 0 ? "tiny-q4_0.gguf" : "arch-gemma3-caps.gguf");
    uint8_t *copy = malloc(map.size);
    ck_assert_ptr_nonnull(copy);
    params.n_threads = 1;
    for (uint32_t i = 0; i < 1000; i++) {
        kvc_model *m = NULL;
        memcpy(copy, map.data, map.size);
        mutate(copy, i % 8 ? source.header_bytes : map.size, &state);
        (void)kvc__model_create(copy, map.size, false, &params, &m, &err);
        kvc__model_free(m);
        ck_assert_uint_eq(atomic_load(&held), 0);
    }
    free(copy);
}
END_TEST

START_TEST(without_memory) {
    int32_t rc = KVC_E_NOMEM;
    kvc_model *m = NULL;
    long n = 0;
    map_model(_i == 0 ? "tiny-q4_0.gguf" : "arch-gemma3-caps.gguf");
    for (; rc == KVC_E_NOMEM && n < 10000; n++) {
        atomic_store(&allowed, n);
        rc = kvc__model_create(map.data, map.size, true, &params, &m, &err);
        ck_assert(rc == KVC_OK || (rc == KVC_E_NOMEM && m == NULL));
        ck_assert(rc == KVC_OK || atomic_load(&held) == 0);
    }
    ck_assert_int_eq(rc, KVC_OK);
    ck_assert_int_gt(n, 20);
    kvc__model_free(m);
}
END_TEST

int main(void) {
    if (!getenv("KVC_TEST_MODELS")) {
        (void)fputs("KVC_TEST_MODELS is not set: run make_model.py suite DIR\n", stderr);
        return 77;
    }
    Suite *suite = suite_create("model");
    TCase *tc = tcase_create("model");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 120);
    tcase_add_loop_test(tc, reads_every_tiny_model, 0, N_SUITE);
    tcase_add_loop_test(tc, says_what_a_token_reads_and_multiplies, 0, N_SUITE);
    tcase_add_test(tc, weights_are_the_files);
    tcase_add_test(tc, norms_may_be_f16);
    tcase_add_test(tc, null_params_are_the_defaults);
    tcase_add_test(tc, fingerprint_tells_models_apart);
    tcase_add_test(tc, rope_grows_and_keeps_what_it_has);
    tcase_add_test(tc, rope_factors_divide_the_angle);
    tcase_add_loop_test(tc, one_change, 0, (int)(sizeof changes / sizeof changes[0]));
    tcase_add_loop_test(tc, one_change_of_other_architectures, 0,
                        (int)(sizeof arch_changes / sizeof *arch_changes));
    tcase_add_loop_test(tc, windows_are_the_files, 0, 8);
    tcase_add_test(tc, numbers_are_the_files);
    tcase_add_test(tc, llama3_scaling_with_factors);
    tcase_add_test(tc, cut_files_are_refused);
    tcase_add_loop_test(tc, damaged_files_are_survived, 0, 2);
    tcase_add_loop_test(tc, without_memory, 0, 2);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
