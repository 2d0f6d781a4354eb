/* SPDX-License-Identifier: MIT
 * vocab.h: text to tokens and back, by byte-level BPE or by SentencePiece's BPE. It knows tokens
 * and bytes, nothing of sessions. */
#ifndef KVC_VOCAB_H
#define KVC_VOCAB_H

#include "err.h"
#include "gguf.h"
#include "mem.h"

#include <stdint.h>

typedef struct kvc__vocab kvc__vocab;

/** Reads tokenizer.ggml.* of g; everything kept is copied. KVC_E_FORMAT, KVC_E_UNSUPPORTED (names
 * the tokenizer or pre-tokenizer), KVC_E_NOMEM. */
int32_t kvc__vocab_create(kvc__mem *mem, const kvc__gguf *g, kvc__vocab **out, kvc__err *err);
/** Frees it; NULL is legal. */
void kvc__vocab_destroy(kvc__vocab *v);
/** Number of tokens. */
uint32_t kvc__vocab_size(const kvc__vocab *v);
/** Special ids, -1 when the model has none. */
int32_t kvc__vocab_bos(const kvc__vocab *v);
int32_t kvc__vocab_eos(const kvc__vocab *v);
int32_t kvc__vocab_eot(const kvc__vocab *v);
/** Whether the file wants texts to begin with bos; false when it has none. */
bool kvc__vocab_adds_bos(const kvc__vocab *v);
/** Whether it is of SentencePiece, else of bytes. */
bool kvc__vocab_is_spm(const kvc__vocab *v);
/** Whether text after a special token gets a space in front. */
bool kvc__vocab_puts_space(const kvc__vocab *v);
/** The control or user-defined token with that text, or -1. */
int32_t kvc__vocab_special(const kvc__vocab *v, const char *text);
/** Whether the token ends a turn or a text; false for what is no token. */
bool kvc__vocab_is_end(const kvc__vocab *v, int32_t token);

/** As kvc_model_tokenize(). [any]: concurrent calls are allowed. */
int32_t kvc__vocab_tokenize(const kvc__vocab *v, const char *text, size_t n, uint32_t flags,
                            int32_t *out, size_t cap, size_t *n_out, kvc__err *err);
/** What a part of a text is. An id >= 0 stands for a token that is put where the part ends; the
 * part itself is empty. */
enum {
    KVC__TEXT_PLAIN = -2, /* control tokens in it are plain text */
    KVC__TEXT_MARK = -1   /* control tokens are tokens */
};

/** A part of a text: from where the one before it ends to `end`. */
typedef struct kvc__span {
    size_t end;
    int32_t kind; /* KVC__TEXT_… or an id */
} kvc__span;

/** Tokenizes text made of n_span parts, the last of which ends at n; a character lies in one part.
 * What isn't a special token is cut and merged as if the text had no parts. A user-defined token
 * may lie across parts, but not across an id, nor may it reach into a KVC__TEXT_MARK that begins
 * with a control token. Else as kvc__vocab_tokenize(). [any] */
int32_t kvc__vocab_tokenize_spans(const kvc__vocab *v, const char *text, size_t n,
                                  const kvc__span *span, size_t n_span, int32_t *out, size_t cap,
                                  size_t *n_out, kvc__err *err);
/** As kvc_model_detokenize(). [any] */
int32_t kvc__vocab_detokenize(const kvc__vocab *v, const int32_t *token, size_t n, uint32_t flags,
                              char *out, size_t cap, size_t *n_out, kvc__err *err);

#endif
