/* SPDX-License-Identifier: MIT
 * chat.h: the messages of a chat as tokens, in the form of the family that a model was trained on.
 * Between the API and the vocabulary. It knows markers, not how text is tokenized. */
#ifndef KVC_CHAT_H
#define KVC_CHAT_H

#include "err.h"
#include "gguf.h"
#include "mem.h"
#include "vocab.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** What a model's file says of its chats. */
typedef struct kvc__chat {
    const struct chat_family *family; /* NULL: not recognised */
    bool has_template;
    uint32_t details; /* bits of the family's own, from the template */
    char *system;     /* [n_system] the default system message, or NULL; a NUL behind */
    size_t n_system;
} kvc__chat;

/** The arguments of kvc_model_chat(). */
typedef struct kvc__chat_call {
    const char *family; /* NULL: the file's */
    const kvc_chat_message *message;
    uint32_t n, stride, flags;
    int32_t *out;
    size_t cap, *n_out;
} kvc__chat_call;

/** Recognises tokenizer.chat_template of g by its markers; one that is unknown is no error. What is
 * kept is copied. KVC_E_FORMAT (no string), KVC_E_NOMEM. */
int32_t kvc__chat_read(kvc__mem *mem, const kvc__gguf *g, kvc__chat *out, kvc__err *err);
/** Frees it; a zeroed one is legal. */
void kvc__chat_free(kvc__mem *mem, kvc__chat *c);
/** The family's name, "" when none was recognised. Static. */
const char *kvc__chat_name(const kvc__chat *c);
/** As kvc_model_chat(), pointers and stride checked by the caller; mem gives scratch. */
int32_t kvc__chat_tokenize(const kvc__chat *c, const kvc__vocab *v, kvc__mem *mem,
                           const kvc__chat_call *call, kvc__err *err);

#endif
