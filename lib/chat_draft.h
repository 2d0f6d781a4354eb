/* SPDX-License-Identifier: MIT
 * chat_draft.h: a chat that is being written, as markers, contents and tokens one after the other.
 * Between a family's form (chat_family.c) and the vocabulary. It knows no form. */
#ifndef KVC_CHAT_DRAFT_H
#define KVC_CHAT_DRAFT_H

#include "chat.h"

enum { KVC__ROLE_SYSTEM, KVC__ROLE_USER, KVC__ROLE_ASSISTANT, KVC__N_ROLE };

/** Their names, as callers give them. */
extern const char *const kvc__role_name[KVC__N_ROLE];

/** A chat that is being written. */
typedef struct kvc__draft {
    const kvc__chat *chat; /* zeroed when the caller named the family */
    const kvc__vocab *vocab;
    const kvc__chat_call *call; /* its messages are checked */
    kvc__mem *mem;
    kvc__err *err;
    char *text; /* [n] */
    size_t n, cap;
    kvc__span *span; /* [n_span] */
    size_t n_span, cap_span;
    int32_t rc; /* the first failure; nothing is written after it */
} kvc__draft;

/** A message, and its role; i < call->n. */
const kvc_chat_message *kvc__draft_message(const kvc__chat_call *call, uint32_t i);
/** KVC__ROLE_…, or KVC__N_ROLE for an unknown one. */
uint32_t kvc__draft_role(const kvc__chat_call *call, uint32_t i);

/** Appends text in which special tokens are found. */
void kvc__draft_mark(kvc__draft *d, const char *mark);
/** Appends n bytes of plain text. */
void kvc__draft_plain(kvc__draft *d, const char *p, size_t n);
/** Appends a token; -1 is one that the model doesn't have. */
void kvc__draft_token(kvc__draft *d, int32_t id);
/** Frees what was written. */
void kvc__draft_free(kvc__draft *d);

#endif
