/* SPDX-License-Identifier: MIT
 * chat_family.h: the families of chat templates: how each is known by its text, how its chats are
 * written. For chat.c alone. */
#ifndef KVC_CHAT_FAMILY_H
#define KVC_CHAT_FAMILY_H

#include "chat_draft.h"

/** What a template says beside its family: bits of kvc__chat.details. */
enum {
    KVC__CHAT_BOS = 1u << 0,   /* it writes the beginning of text */
    KVC__CHAT_THINK = 1u << 1, /* thoughts of earlier answers are left out */
    KVC__CHAT_DATE = 1u << 2,  /* the system message begins with dates */
    KVC__CHAT_LAST = 1u << 3,  /* the system message stands with the last user message */
    KVC__CHAT_TURN = 1u << 4,  /* the system message has a turn of its own */
    KVC__CHAT_TRIM = 1u << 5   /* white space around contents is left out */
};

/** One family. */
typedef struct kvc__chat_family {
    const char *name;
    bool (*is_this)(
        kvc__str text); /* whether it is this family's template; they are tried in order */
    bool in_turn;       /* user and assistant in turn, the user first */
    void (*write)(kvc__draft *d);
} kvc__chat_family;

extern const kvc__chat_family kvc__chat_families[];
extern const uint32_t kvc__n_chat_family;

/** Where `what` stands in s, or NULL. */
const char *kvc__chat_find(kvc__str s, const char *what);
/** KVC__CHAT_… of a template. */
uint32_t kvc__chat_details(kvc__str text);

#endif
