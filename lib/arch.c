/* SPDX-License-Identifier: MIT
 * arch.c: the table of architectures. A new one that differs in what the columns say is a row here
 * and no code elsewhere. */
#include "arch.h"

#include <string.h>

/* Definitions: the models' own in the library transformers; what the files say of them: llama.cpp's
 * converters. */
static const kvc__arch arch[] = {
    {.name = "llama"},
    {.name = "qwen2", .vectors = KVC__ARCH_QKV_BIAS, .rope_neox = true},
    {.name = "qwen3", .vectors = KVC__ARCH_QK_NORM, .rope_neox = true},
    {.name = "gemma3",
     .vectors = KVC__ARCH_QK_NORM | KVC__ARCH_POST_NORM,
     .rope_neox = true,
     .gelu = true,
     .embd_sqrt = true,
     .pattern = 6,
     .local_base = 10000.0f,
     .wide_scale_layers = 62}, /* 27B */
};

const kvc__arch *kvc__arch_find(kvc__str name) {
    for (size_t i = 0; i < sizeof arch / sizeof *arch; i++) {
        if (name.n == strlen(arch[i].name) && memcmp(name.p, arch[i].name, name.n) == 0) {
            return &arch[i];
        }
    }
    return NULL;
}

const char *kvc__arch_names(void) {
    return "llama, qwen2, qwen3, gemma3";
}
