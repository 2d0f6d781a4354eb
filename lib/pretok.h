/* SPDX-License-Identifier: MIT
 * pretok.h: cuts text into the pieces that are merged apart from each other. The one user of PCRE2.
 * It knows patterns, not tokens. */
#ifndef KVC_PRETOK_H
#define KVC_PRETOK_H

#include "err.h"
#include "gguf.h"
#include "mem.h"

#include <stddef.h>
#include <stdint.h>

/** Compiled patterns of one pre-tokenizer; read-only, shared by concurrent calls. */
typedef struct kvc__pretok kvc__pretok;

/** What one call needs for itself. */
typedef struct kvc__pretok_work kvc__pretok_work;

/** Receives a piece, never empty; a negative status stops the cutting. */
typedef int32_t (*kvc__pretok_fn)(void *ctx, const uint8_t *piece, size_t n);

/** What goes with a pre-tokenizer beside its patterns. */
enum {
    KVC__PRE_WHOLE = 1u << 0, /* a piece that is a token isn't merged */
    KVC__PRE_BOS = 1u << 1    /* files that don't say so want texts to begin with bos */
};

/** Compiles the pre-tokenizer of that name. KVC_E_UNSUPPORTED (the sentence lists the known ones),
 * KVC_E_NOMEM. */
int32_t kvc__pretok_create(kvc__mem *mem, kvc__str name, kvc__pretok **out, kvc__err *err);
/** Frees it; NULL is legal. */
void kvc__pretok_destroy(kvc__pretok *p);
/** KVC__PRE_… of it. */
uint32_t kvc__pretok_traits(const kvc__pretok *p);

/** Makes a call's scratch. KVC_E_NOMEM. [any] */
int32_t kvc__pretok_work_create(const kvc__pretok *p, kvc__pretok_work **out, kvc__err *err);
/** Frees it; NULL is legal. */
void kvc__pretok_work_destroy(const kvc__pretok *p, kvc__pretok_work *work);

/** Bytes of the character at p, of whose text n >= 1 bytes are left; 0 when it isn't well-formed
 * UTF-8: overlong, a surrogate, above U+10FFFF, cut off. */
size_t kvc__utf8_len(const uint8_t *p, size_t n);
/** Bytes of text before the first that is not well-formed UTF-8; n when all are. */
size_t kvc__utf8_valid(const uint8_t *text, size_t n);

/** Cuts n bytes of valid UTF-8 and gives every byte to fn, in order. What fn answers,
 * KVC_E_UNSUPPORTED when a pattern passes its limits, KVC_E_NOMEM. [any] */
int32_t kvc__pretok_split(const kvc__pretok *p, kvc__pretok_work *work, const uint8_t *text,
                          size_t n, kvc__pretok_fn fn, void *ctx, kvc__err *err);

#endif
