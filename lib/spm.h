/* SPDX-License-Identifier: MIT
 * spm.h: merges text into tokens as SentencePiece's BPE does: characters first, then the pair whose
 * joined text is the token of the highest score. What stays unknown becomes byte tokens or the
 * unknown token. It knows tokens, not special ones, nor where text comes from. */
#ifndef KVC_SPM_H
#define KVC_SPM_H

#include "merge.h"
#include "textmap.h"

/** The rules of a vocabulary, read-only once filled. Spaces stand for U+2581 in its tokens. */
typedef struct kvc__spm {
    const kvc__textmap *map; /* not owned */
    const float *score;      /* [tokens], not NaN; not owned */
    int32_t byte[256];       /* the token of each byte, -1 for none */
    int32_t unk;             /* or -1 */
    uint32_t max_len;        /* bytes of the longest token of the map */
    bool split;              /* no token has a space behind another character: words stand alone */
    bool collapse;           /* of white space only single spaces between words are kept */
} kvc__spm;

/** Scratch of one tokenize call; zeroed at first. */
typedef struct kvc__spm_work {
    kvc__merge_work merge;
    uint8_t *text; /* the text with its spaces as tokens have them */
    size_t cap;
} kvc__spm_work;

/** Tokenizes n bytes (below 2^31) of UTF-8 with a space in front when `prefix` says so, and appends
 * the tokens to sink. Nothing gives nothing. KVC_E_NOMEM. [any] */
int32_t kvc__spm_encode(const kvc__spm *s, kvc__mem *mem, kvc__spm_work *work, const uint8_t *text,
                        size_t n, bool prefix, kvc__sink *sink);
/** Frees the scratch. */
void kvc__spm_work_free(kvc__mem *mem, kvc__spm_work *work);

#endif
