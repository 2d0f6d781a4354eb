/* SPDX-License-Identifier: MIT
 * check_model.h: tiny random models for kvcheck, as the bytes of a GGUF file. */
#ifndef KVC_CHECK_MODEL_H
#define KVC_CHECK_MODEL_H

#include <stddef.h>
#include <stdint.h>

#define CHK_N_VOCAB 260u /* three special tokens, all bytes, one merged token */

/** Sizes of a model. dim_k and dim_v are multiples of 4. */
typedef struct chk_shape {
    uint32_t n_layer, n_embd, n_ff;
    uint32_t n_head_kv, group; /* KV heads, and query heads of each */
    uint32_t dim_k, dim_v;
    uint32_t n_ctx;
    uint64_t seed; /* of the weights */
} chk_shape;

/** Writes a model of the architecture llama with F32 weights into memory that the caller frees.
 * NULL: no memory. */
char *chk_model_bytes(const chk_shape *shape, size_t *n);

#endif
