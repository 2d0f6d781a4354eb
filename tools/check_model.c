/* SPDX-License-Identifier: MIT
 * check_model.c: writes a GGUF file into memory: header, keys, a byte-level vocabulary, random
 * weights. It stands in for a model file where there is none; what it writes is checked by the
 * library like any other. */
#include "check_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { U32 = 4, I32 = 5, F32 = 6, STRING = 8, ARRAY = 9 }; /* types of GGUF values */
enum { N_SPECIAL = 3, N_HPARAM = 10, N_VOCAB_KEY = 7, MAX_LAYER = 8, LAYER_TENSORS = 9 };

static void put_u32(FILE *f, uint32_t v) {
    fwrite(&v, sizeof v, 1, f);
}

static void put_u64(FILE *f, uint64_t v) {
    fwrite(&v, sizeof v, 1, f);
}

static void put_text(FILE *f, const char *text) {
    put_u64(f, strlen(text));
    fputs(text, f);
}

static void put_key(FILE *f, const char *key, uint32_t type) {
    put_text(f, key);
    put_u32(f, type);
}

static void put_number(FILE *f, const char *key, uint32_t v) {
    put_key(f, key, U32);
    put_u32(f, v);
}

static void put_array(FILE *f, const char *key, uint32_t type, uint32_t n) {
    put_key(f, key, ARRAY);
    put_u32(f, type);
    put_u64(f, n);
}

/* ---------------------------------------------------------------- keys */

static void put_hparams(FILE *f, const chk_shape *s) {
    const float eps = 1e-5f;
    put_key(f, "general.architecture", STRING);
    put_text(f, "llama");
    put_number(f, "llama.block_count", s->n_layer);
    put_number(f, "llama.context_length", s->n_ctx);
    put_number(f, "llama.embedding_length", s->n_embd);
    put_number(f, "llama.feed_forward_length", s->n_ff);
    put_number(f, "llama.attention.head_count", s->n_head_kv * s->group);
    put_number(f, "llama.attention.head_count_kv", s->n_head_kv);
    put_number(f, "llama.attention.key_length", s->dim_k);
    put_number(f, "llama.attention.value_length", s->dim_v);
    put_key(f, "llama.attention.layer_norm_rms_epsilon", F32);
    fwrite(&eps, sizeof eps, 1, f);
}

/* A byte as byte-level vocabularies write it: itself where it is a visible Latin-1 character, else
 * the next one from U+0100 on. */
static void byte_text(uint32_t b, char out[3]) {
    uint32_t c = b, hidden = 0;
    for (uint32_t i = 0; i <= b; i++) {
        const int shown = (i >= 0x21 && i < 0x7f) || (i >= 0xa1 && i < 0xad) || i >= 0xae;
        c = shown ? i : 256 + hidden++;
    }
    out[0] = (char)(c < 0x80 ? c : 0xc0 | c >> 6);
    out[1] = (char)(c < 0x80 ? 0 : 0x80 | (c & 0x3f));
    out[2] = '\0';
}

static void put_vocab(FILE *f) {
    static const char *const special[N_SPECIAL] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    put_key(f, "tokenizer.ggml.model", STRING);
    put_text(f, "gpt2");
    put_key(f, "tokenizer.ggml.pre", STRING);
    put_text(f, "smollm");
    put_array(f, "tokenizer.ggml.tokens", STRING, CHK_N_VOCAB);
    for (uint32_t i = 0; i < N_SPECIAL; i++) {
        put_text(f, special[i]);
    }
    for (uint32_t i = 0; i < 256; i++) {
        char text[3];
        byte_text(i, text);
        put_text(f, text);
    }
    put_text(f, "he");
    put_array(f, "tokenizer.ggml.token_type", I32, CHK_N_VOCAB);
    for (uint32_t i = 0; i < CHK_N_VOCAB; i++) {
        put_u32(f, i < N_SPECIAL ? 3 : 1);
    }
    put_array(f, "tokenizer.ggml.merges", STRING, 1);
    put_text(f, "h e");
    put_number(f, "tokenizer.ggml.bos_token_id", 1);
    put_number(f, "tokenizer.ggml.eos_token_id", 2);
}

/* ---------------------------------------------------------------- tensors */

/* A tensor's name and shape. */
typedef struct tensor {
    char name[48];
    uint32_t n_col, n_row; /* rows 0: a vector */
} tensor;

static uint32_t list_tensors(const chk_shape *s, tensor *t) {
    const uint32_t e = s->n_embd, ff = s->n_ff, n_head = s->n_head_kv * s->group;
    const tensor layer[LAYER_TENSORS] = {{"attn_norm", e, 0},
                                         {"attn_q", e, n_head * s->dim_k},
                                         {"attn_k", e, s->n_head_kv * s->dim_k},
                                         {"attn_v", e, s->n_head_kv * s->dim_v},
                                         {"attn_output", n_head * s->dim_v, e},
                                         {"ffn_norm", e, 0},
                                         {"ffn_gate", e, ff},
                                         {"ffn_up", e, ff},
                                         {"ffn_down", ff, e}};
    uint32_t n = 0;
    t[n++] = (tensor){"token_embd.weight", e, CHK_N_VOCAB};
    t[n++] = (tensor){"output_norm.weight", e, 0};
    for (uint32_t i = 0; i < s->n_layer; i++) {
        for (uint32_t k = 0; k < LAYER_TENSORS; k++) {
            t[n] = layer[k];
            snprintf(t[n++].name, sizeof t->name, "blk.%u.%.20s.weight", i, layer[k].name);
        }
    }
    return n;
}

static uint64_t count(const tensor *t) {
    return (uint64_t)t->n_col * (t->n_row > 0 ? t->n_row : 1);
}

static float uniform(uint64_t *state) {
    uint64_t x = *state += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (float)((x ^ (x >> 31)) >> 40) / (float)(1 << 23) - 1.0f;
}

/* Matrices keep the size of what passes through them; queries are larger, so that attention picks
 * tokens out, and the last norm is near 3, so that the distribution over tokens has peaks. */
static void put_weights(FILE *f, const tensor *t, uint64_t *state) {
    const int norm = t->n_row == 0;
    const float gain = strstr(t->name, "attn_q") != NULL ? 4.0f : 1.0f;
    const float centre = strncmp(t->name, "output_norm", 11) == 0 ? 3.0f : 1.0f;
    const float scale = gain * sqrtf(3.0f / (float)t->n_col);
    for (uint64_t i = 0; i < count(t); i++) {
        const float r = uniform(state);
        const float w = norm ? centre + 0.1f * r : scale * r;
        fwrite(&w, sizeof w, 1, f);
    }
}

/* Zeros up to a multiple of 32 bytes from the beginning of the file. */
static void put_padding(FILE *f) {
    for (long at = ftell(f); at % 32 != 0; at++) {
        fputc(0, f);
    }
}

char *chk_model_bytes(const chk_shape *s, size_t *n_byte) {
    static tensor t[2 + LAYER_TENSORS * MAX_LAYER];
    char *bytes = NULL;
    FILE *f = s->n_layer <= MAX_LAYER ? open_memstream(&bytes, n_byte) : NULL;
    if (f == NULL) {
        return NULL;
    }
    const uint32_t n = list_tensors(s, t);
    uint64_t at = 0, state = s->seed;
    fputs("GGUF", f);
    put_u32(f, 3);
    put_u64(f, n);
    put_u64(f, N_HPARAM + N_VOCAB_KEY);
    put_hparams(f, s);
    put_vocab(f);
    for (uint32_t i = 0; i < n; i++) {
        put_text(f, t[i].name);
        put_u32(f, t[i].n_row > 0 ? 2 : 1);
        put_u64(f, t[i].n_col);
        if (t[i].n_row > 0) {
            put_u64(f, t[i].n_row);
        }
        put_u32(f, 0); /* F32 */
        put_u64(f, at);
        at = (at + count(&t[i]) * sizeof(float) + 31) / 32 * 32;
    }
    for (uint32_t i = 0; i < n; i++) {
        put_padding(f);
        put_weights(f, &t[i], &state);
    }
    const int bad = ferror(f);
    if (fclose(f) != 0 || bad) {
        free(bytes);
        return NULL;
    }
    return bytes;
}
