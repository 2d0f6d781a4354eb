/* SPDX-License-Identifier: MIT
 * vocab_load.h: a vocabulary's parts and how they are read from a file. For vocab.c alone. */
#ifndef KVC_VOCAB_LOAD_H
#define KVC_VOCAB_LOAD_H

#include "bpe.h"
#include "err.h"
#include "gguf.h"
#include "mem.h"
#include "pretok.h"
#include "special.h"
#include "spm.h"
#include "textmap.h"

#include <stdbool.h>
#include <stdint.h>

#define KVC__MAX_END 16u

/** A vocabulary; read-only once loaded. */
struct kvc__vocab {
    kvc__mem *mem;
    kvc__tokens tokens;
    kvc__textmap map;           /* tokens that text becomes by merging */
    kvc__special user;          /* always cut out */
    kvc__special all;           /* where control tokens are wanted */
    kvc__pretok *pretok;        /* byte-level BPE; NULL: SentencePiece's way */
    kvc__bpe bpe;               /* with pretok */
    kvc__spm spm;               /* without */
    float *score;               /* [tokens] without pretok */
    int32_t bos, eos, eot, unk; /* -1: none */
    int32_t end[KVC__MAX_END];  /* [n_end] those that end a turn or a text */
    uint32_t n_end;
    bool add_bos, add_eos;
    bool whole;        /* a piece that is a token isn't merged */
    bool space_prefix; /* text that begins, or follows a special token, gets a space in front */
};

/** Reads tokenizer.ggml.* of g into v, which has its mem and is else zeroed. On failure v is to be
 * freed all the same. KVC_E_FORMAT, KVC_E_UNSUPPORTED, KVC_E_NOMEM. */
int32_t kvc__vocab_load(struct kvc__vocab *v, const kvc__gguf *g, kvc__err *err);

#endif
