/* SPDX-License-Identifier: MIT
 * kern_impl.h: all kernels, once, for every level. Included by each kern_<level>.c after its
 * vec_<level>.h, so the order of operations is the same at every level by construction. Ends with
 * the level's table. */
#ifndef KVC_KERN_IMPL_H
#define KVC_KERN_IMPL_H

#include "gguf.h"
#include "half.h"
#include "kern.h"
#include "pack.h"

#include "kvc/policy.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "kern_row.h"
#include "kern_mm.h"
#include "kern_page.h"
#include "kern_i8.h"
#include "kern_pack.h"
#include "kern_packed.h"
#include "kern_rounded.h"

/* The members of a level's table. */
#define KERN_TABLE(level_name)                                                                     \
    {                                                                                              \
        .name = (level_name), .mm_q = mm_q, .mm_f = mm_f, .quantize = quantize,                    \
        .rms_norm = rms_norm, .add = add, .scale = scale, .silu_mul = silu_mul,                    \
        .gelu_mul = gelu_mul, .soft_cap = soft_cap, .rope_norm = rope_norm,                        \
        .rope_neox = rope_neox, .hadamard = hadamard, .soften = soften, .exp1 = exp1,              \
        .exps = exps, .put_k = put_k, .put_v = put_v, .get_k = get_k, .get_v = get_v,              \
        .score = score, .mix = mix, .axpy = axpy, .pack_k = pack_k, .pack_v = pack_v,              \
        .unpack_k = unpack_k, .unpack_v = unpack_v, .pack_score_f = pack_score_f,                  \
        .pack_score_q = pack_score_q, .pack_mix_f = pack_mix_f, .pack_mix_q = pack_mix_q           \
    }

#endif
