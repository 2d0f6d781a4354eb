/* SPDX-License-Identifier: MIT
 * api_sampler.c: the public functions of the sampler: checks the caller's arguments and hands on to
 * sampler.c. It must not hold logic of its own. */
#include "params.h"
#include "sampler.h"

#include "kvc/kvc.h"

KVC_API int32_t kvc_sampler_create(kvc_params *params, kvc_sampler **out) {
    if (!out) {
        return KVC_E_ARG;
    }
    return kvc__sampler_create(params ? params : &kvc__params_default, out,
                               params ? &params->err : NULL);
}

KVC_API void kvc_sampler_destroy(kvc_sampler *sampler) {
    kvc__sampler_destroy(sampler);
}

KVC_API int32_t kvc_sampler_sample(kvc_sampler *sampler, const float *logits, uint32_t n_vocab) {
    if (!sampler) {
        return KVC_E_ARG;
    }
    return kvc__sampler_sample(sampler, logits, n_vocab);
}
