/* SPDX-License-Identifier: MIT
 * sampler.h: picks one token from logits. It knows floats and a random generator, nothing of models
 * or texts. */
#ifndef KVC_SAMPLER_H
#define KVC_SAMPLER_H

#include "err.h"
#include "mem.h"

#include "kvc/kvc.h"

#include <stdint.h>

struct kvc_params;

/** As kvc_sampler_create(). */
int32_t kvc__sampler_create(const struct kvc_params *params, kvc_sampler **out, kvc__err *err);
/** Frees it; NULL is legal. */
void kvc__sampler_destroy(kvc_sampler *s);
/** As kvc_sampler_sample(); allocates only when n_vocab is larger than ever before. */
int32_t kvc__sampler_sample(kvc_sampler *s, const float *logits, uint32_t n_vocab);

#endif
