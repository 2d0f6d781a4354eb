/* SPDX-License-Identifier: MIT
 * tiny.c: the model's bytes, its vocabulary, params with a limited allocator. It stands in for
 * tests/make_model.py where a target can't read files. */
#include "tiny.h"

#include "fuzz.h"

#include <unistd.h>

const tiny_shape tiny_default = {.n_layer = 2,
                                 .n_embd = 32,
                                 .n_head = 2,
                                 .n_head_kv = 1,
                                 .head_dim = 8,
                                 .n_ff = 32,
                                 .n_ctx = TINY_CTX,
                                 .n_vocab = TINY_VOCAB,
                                 .pre = "smollm"};

const char *const tiny_stack[] = {"",
                                  "full:type=f32",
                                  "full:type=bf16",
                                  "none",
                                  "window:size=20:sinks=2",
                                  "window:size=100:sinks=4+quant8:hadamard=off",
                                  "window:size=70:sinks=3:positions=cache+quant8",
                                  "quant8",
                                  "t_mass:budget=10",
                                  "t_mass:budget=40+quant8",
                                  "t_codec",
                                  "t_pages:pages=1",
                                  "t_pages:pages=2+quant8",
                                  "t_tier:lose=5",
                                  "window:size=70:sinks=3+quant8+t_tier:unpack=on",
                                  "t_mass:budget=40+quant8+t_tier",
                                  "h2o:budget=80:age=on",
                                  "tova:budget=90+quant8",
                                  "snapkv:budget=40:window=9",
                                  "snapkv:budget=10%:window=20:pyramid=2+quant8+t_tier"};
const uint32_t tiny_n_stack = sizeof tiny_stack / sizeof *tiny_stack;

/* ---------------------------------------------------------------- the file */

static const char *const special[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<user>"};
#define N_SPECIAL (sizeof special / sizeof *special)

static const char *const merge[] = {
    "h e", "l l", "he ll", "e r", "\xc4\xa0 t", "\xc4\xa0t he", "\xc3\x83 \xc2\xa9", "0 0"};
static const char *const merged[] = {
    "he", "ll", "hell", "er", "\xc4\xa0t", "\xc4\xa0the", "\xc3\x83\xc2\xa9", "00"};

/* A byte as byte-level vocabularies write it. */
static void byte_text(uint32_t b, char out[3]) {
    uint32_t c = b, hidden = 0;
    for (uint32_t i = 0; i <= b; i++) {
        const bool shown = (i >= 0x21 && i < 0x7f) || (i >= 0xa1 && i < 0xad) || i >= 0xae;
        c = shown ? i : 256 + hidden++;
    }
    out[0] = (char)(c < 0x80 ? c : 0xc0 | c >> 6);
    out[1] = (char)(c < 0x80 ? 0 : 0x80 | (c & 0x3f));
    out[2] = 0;
}

static void put_token(bytes *b, uint32_t id) {
    char text[3];
    if (id < N_SPECIAL) {
        put_str(b, special[id]);
    } else if (id < N_SPECIAL + 256) {
        byte_text(id - (uint32_t)N_SPECIAL, text);
        put_str(b, text);
    } else {
        put_str(b, merged[id - N_SPECIAL - 256]);
    }
}

void tiny_put_vocab(bytes *b, const tiny_shape *shape) {
    const uint64_t n_merge = sizeof merge / sizeof *merge;
    put_key(b, "tokenizer.ggml.model", KVC__GGUF_STRING);
    put_str(b, "gpt2");
    put_key(b, "tokenizer.ggml.pre", KVC__GGUF_STRING);
    put_str(b, shape->pre);
    put_array(b, "tokenizer.ggml.tokens", KVC__GGUF_STRING, shape->n_vocab);
    for (uint32_t i = 0; i < shape->n_vocab; i++) {
        put_token(b, i);
    }
    put_array(b, "tokenizer.ggml.token_type", KVC__GGUF_I32, shape->n_vocab);
    for (uint32_t i = 0; i < shape->n_vocab; i++) {
        put_u32(b, i < TINY_USER ? 3 : i == TINY_USER ? 4 : 1);
    }
    put_array(b, "tokenizer.ggml.merges", KVC__GGUF_STRING, n_merge);
    for (uint32_t i = 0; i < n_merge; i++) {
        put_str(b, merge[i]);
    }
    put_u32_kv(b, "tokenizer.ggml.bos_token_id", 1);
    put_u32_kv(b, "tokenizer.ggml.unknown_token_id", 0);
    put_key(b, "tokenizer.ggml.add_bos_token", KVC__GGUF_BOOL);
    put_number(b, KVC__GGUF_BOOL, 1);
}

static const char *const piece[] = {"\xe2\x96\x81",
                                    "h",
                                    "e",
                                    "l",
                                    "\xe2\x96\x81t",
                                    "he",
                                    "ll",
                                    "hell",
                                    "\xe2\x96\x81he",
                                    "\xc3\xa9",
                                    "\xe2\x96\x81\xe2\x96\x81",
                                    "t"};
#define N_PIECE (sizeof piece / sizeof *piece)

void tiny_put_spm(bytes *b) {
    const uint32_t n = (uint32_t)(N_SPECIAL + 256 + N_PIECE);
    char text[8];
    put_key(b, "tokenizer.ggml.model", KVC__GGUF_STRING);
    put_str(b, "llama");
    put_array(b, "tokenizer.ggml.tokens", KVC__GGUF_STRING, n);
    for (uint32_t i = 0; i < N_SPECIAL; i++) {
        put_str(b, special[i]);
    }
    for (uint32_t i = 0; i < 256; i++) {
        (void)snprintf(text, sizeof text, "<0x%02X>", i);
        put_str(b, text);
    }
    for (uint32_t i = 0; i < N_PIECE; i++) {
        put_str(b, piece[i]);
    }
    put_array(b, "tokenizer.ggml.token_type", KVC__GGUF_I32, n);
    for (uint32_t i = 0; i < n; i++) {
        put_u32(b, i < TINY_USER ? 3 : i == TINY_USER ? 4 : i < N_SPECIAL + 256 ? 6 : 1);
    }
    put_array(b, "tokenizer.ggml.scores", KVC__GGUF_F32, n);
    for (uint32_t i = 0; i < n; i++) {
        put_number(b, KVC__GGUF_F32, -(double)(i % 263));
    }
    put_u32_kv(b, "tokenizer.ggml.bos_token_id", 1);
    put_u32_kv(b, "tokenizer.ggml.eos_token_id", 0);
    put_key(b, "tokenizer.ggml.add_bos_token", KVC__GGUF_BOOL);
    put_number(b, KVC__GGUF_BOOL, 1);
    put_key(b, "tokenizer.ggml.add_space_prefix", KVC__GGUF_BOOL);
    put_number(b, KVC__GGUF_BOOL, 1);
}

static void put_hparams(bytes *b, const tiny_shape *s) {
    put_key(b, "general.architecture", KVC__GGUF_STRING);
    put_str(b, "llama");
    put_u32_kv(b, "llama.block_count", s->n_layer);
    put_u32_kv(b, "llama.context_length", s->n_ctx);
    put_u32_kv(b, "llama.embedding_length", s->n_embd);
    put_u32_kv(b, "llama.feed_forward_length", s->n_ff);
    put_u32_kv(b, "llama.attention.head_count", s->n_head);
    put_u32_kv(b, "llama.attention.head_count_kv", s->n_head_kv);
    put_u32_kv(b, "llama.attention.key_length", s->head_dim);
    put_u32_kv(b, "llama.attention.value_length", s->head_dim);
    put_key(b, "llama.attention.layer_norm_rms_epsilon", KVC__GGUF_F32);
    put_number(b, KVC__GGUF_F32, 1e-5);
}
#define N_HPARAM 10u

/* A tensor's name and shape. */
struct tensor {
    char name[48];
    uint64_t dim[2]; /* columns, rows; rows 0: a vector */
};

static uint32_t list_tensors(const tiny_shape *s, struct tensor *t) {
    const uint64_t e = s->n_embd, q = (uint64_t)s->n_head * s->head_dim;
    const uint64_t k = (uint64_t)s->n_head_kv * s->head_dim, ff = s->n_ff;
    const struct tensor layer[] = {
        {"attn_norm", {e, 0}}, {"attn_q", {e, q}},      {"attn_k", {e, k}},
        {"attn_v", {e, k}},    {"attn_output", {q, e}}, {"ffn_norm", {e, 0}},
        {"ffn_gate", {e, ff}}, {"ffn_up", {e, ff}},     {"ffn_down", {ff, e}}};
    uint32_t n = 0;
    t[n++] = (struct tensor){"token_embd.weight", {e, s->n_vocab}};
    t[n++] = (struct tensor){"output_norm.weight", {e, 0}};
    for (uint32_t i = 0; i < s->n_layer; i++) {
        for (size_t j = 0; j < sizeof layer / sizeof *layer; j++) {
            t[n] = layer[j];
            snprintf(t[n++].name, sizeof t->name, "blk.%u.%.20s.weight", (unsigned)i,
                     layer[j].name);
        }
    }
    return n;
}

static uint64_t tensor_elems(const struct tensor *t) {
    return t->dim[0] * (t->dim[1] > 0 ? t->dim[1] : 1);
}

/* Norms near one; matrices small, queries and the head larger, so that attention picks. */
static void put_weights(bytes *b, const struct tensor *t, uint64_t *state) {
    const bool norm = t->dim[1] == 0;
    const float gain = strstr(t->name, "attn_q") != NULL ? 1.5f : 0.4f;
    for (uint64_t i = 0; i < tensor_elems(t); i++) {
        const float r = (float)(next_random(state) >> 40) / (float)(1 << 23) - 1.0f;
        const float w = norm ? 1.0f + 0.25f * r : gain * r;
        put(b, &w, sizeof w);
    }
}

void tiny_put_model(bytes *b, const tiny_shape *s) {
    struct tensor t[2 + 9 * 4];
    fuzz_check(s->n_layer <= 4, "a tiny model has at most four layers", "");
    const uint32_t n = list_tensors(s, t);
    put_header(b, 3, n, N_HPARAM + TINY_VOCAB_KV);
    put_hparams(b, s);
    tiny_put_vocab(b, s);
    uint64_t at = 0, state = 7;
    for (uint32_t i = 0; i < n; i++) {
        put_tensor(b, t[i].name, t[i].dim[1] > 0 ? 2 : 1, t[i].dim, KVC__T_F32, at);
        at = (at + tensor_elems(&t[i]) * 4 + 31) / 32 * 32;
    }
    for (uint32_t i = 0; i < n; i++) {
        put_padding(b, 32);
        put_weights(b, &t[i], &state);
    }
}

/* ---------------------------------------------------------------- params */

#define POLICIES(X)                                                                                \
    X(none)                                                                                        \
    X(full)                                                                                        \
    X(window)                                                                                      \
    X(h2o) X(tova) X(snapkv) X(quant8) X(quant4) X(kivi) X(t_mass) X(t_codec) X(t_pages) X(t_tier)
#define DECLARE(name) const kvc_policy *fuzz_entry_##name(uint32_t host_abi, uint32_t index);
POLICIES(DECLARE)

#define MEMORY_LIMIT ((size_t)256 << 20)

/* Memory like a small machine's: a file that asks for more is refused, as it would be there. */
static void *limited_realloc(void *ctx, void *p, size_t old_size, size_t new_size, size_t align) {
    static size_t used;
    (void)ctx;
    if (new_size > MEMORY_LIMIT || used - old_size > MEMORY_LIMIT - new_size) {
        return NULL;
    }
    void *q = NULL;
    if (new_size > 0) {
        if (posix_memalign(&q, align < sizeof(void *) ? sizeof(void *) : align, new_size) != 0) {
            return NULL;
        }
        if (p != NULL) {
            memcpy(q, p, old_size < new_size ? old_size : new_size);
        }
    }
    free(p);
    used = used - old_size + new_size;
    return q;
}

kvc_params *tiny_params(void) {
    static const kvc_allocator limited = {.struct_size = sizeof limited,
                                          .realloc = limited_realloc};
    kvc_params *p = NULL;
    int32_t rc = kvc_params_create(&p);
    fuzz_check(rc == KVC_OK, "params are made", "");
    rc |= kvc_params_set_allocator(p, &limited);
    rc |= kvc_params_set_i64(p, "n_threads", 1);
    rc |= kvc_params_set_i64(p, "policy_env", 0);
    rc |= kvc_params_set_i64(p, "policy_default", 0);
#define ADD(name) rc |= kvc_params_add_policy(p, fuzz_entry_##name);
    POLICIES(ADD)
    fuzz_check(rc == KVC_OK, "params are set", kvc_params_error(p));
    return p;
}

kvc_model *tiny_model(uint32_t n_batch) {
    static kvc_model *model;
    if (model == NULL) {
        bytes b = {0};
        kvc_params *p = tiny_params();
        tiny_put_model(&b, &tiny_default);
        int32_t rc = kvc_params_set_i64(p, "n_batch", n_batch);
        rc = rc < 0 ? rc : kvc_model_open_memory(b.p, b.n, p, &model);
        fuzz_check(rc == KVC_OK, "the tiny model opens", kvc_params_error(p));
        kvc_params_destroy(p);
        bytes_free(&b);
    }
    return model;
}

kvc_session *tiny_session(kvc_model *model, const char *spec, uint32_t n_ctx, uint32_t compute) {
    kvc_params *p = tiny_params();
    kvc_session *s = NULL;
    int32_t rc = kvc_params_set_i64(p, "n_ctx", n_ctx);
    rc = rc < 0 ? rc : kvc_params_set_str(p, "compute", compute != 0 ? "f32" : "int8");
    rc = rc < 0 ? rc : kvc_session_open(model, spec, p, &s);
    fuzz_check(rc == KVC_OK, spec, kvc_params_error(p));
    kvc_params_destroy(p);
    return s;
}

/* ---------------------------------------------------------------- a file */

static char path[256], dir[240];

static void remove_path(void) {
    (void)unlink(path);
    (void)rmdir(dir);
}

const char *tiny_path(void) {
    if (path[0] == '\0') {
        const char *tmp = getenv("TMPDIR");
        snprintf(dir, sizeof dir, "%s/kvc-fuzz-XXXXXX", tmp != NULL ? tmp : "/tmp");
        fuzz_check(mkdtemp(dir) != NULL, "a directory can be made", dir);
        snprintf(path, sizeof path, "%s/session", dir);
        (void)atexit(remove_path);
    }
    return path;
}
