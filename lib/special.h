/* SPDX-License-Identifier: MIT
 * special.h: finds special tokens in text, the longest at each place. It knows tokens' bytes and
 * types, not what a token is for. */
#ifndef KVC_SPECIAL_H
#define KVC_SPECIAL_H

#include "err.h"
#include "mem.h"

#include <stddef.h>
#include <stdint.h>

/** Types of tokens, as the file numbers them; others are plain. */
enum {
    KVC__TOKEN_NORMAL = 1,
    KVC__TOKEN_UNKNOWN = 2,
    KVC__TOKEN_CONTROL = 3, /* cut out of text on request */
    KVC__TOKEN_USER = 4,    /* always cut out */
    KVC__TOKEN_BYTE = 6,    /* "<0x1F>", where there are no merges */
    KVC__TOKEN_LAST = 6
};

/** The tokens of a vocabulary. Token i is bytes[offset[i] … offset[i + 1]). */
typedef struct kvc__tokens {
    uint32_t n;
    uint8_t *type;    /* [n] */
    uint32_t *offset; /* [n + 1] */
    uint8_t *bytes;
    size_t n_bytes; /* size of bytes */
} kvc__tokens;

/** Special tokens in order of their bytes. */
typedef struct kvc__special {
    uint32_t n;
    int32_t *id;         /* [n] */
    uint32_t first[257]; /* those that begin with byte b are id[first[b] … first[b + 1]) */
} kvc__special;

/** A token's bytes and their number. */
const uint8_t *kvc__token_bytes(const kvc__tokens *t, int32_t id);
size_t kvc__token_len(const kvc__tokens *t, int32_t id);

/** Gathers the user-defined tokens of t, with `control` those for control too. Empty ones and
 * invalid UTF-8 are left out. KVC_E_FORMAT for one that is too long, KVC_E_NOMEM; s is then to be
 * freed all the same. */
int32_t kvc__special_build(kvc__mem *mem, const kvc__tokens *t, bool control, kvc__special *s,
                           kvc__err *err);
/** Frees it; a zeroed one is legal. */
void kvc__special_free(kvc__mem *mem, kvc__special *s);
/** The longest special token that text (n >= 1 bytes) begins with, or -1; of equal ones the lowest
 * id. [any] */
int32_t kvc__special_match(const kvc__special *s, const kvc__tokens *t, const uint8_t *text,
                           size_t n);

#endif
