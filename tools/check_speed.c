/* SPDX-License-Identifier: MIT
 * check_speed.c: the group "speed": what appending and reading entries costs. Figures alone:
 * nothing here can fail but by failing to run. */
#include "check_kit.h"
#include "check_stages.h"

#include <stdlib.h>

/* Time in attention and the cache of a long prompt, per token, and of single steps after it, per
 * live entry. */
static bool measure(chk *c, kvc_model *model, const char *spec, double *append, double *entry) {
    const int32_t *text = chk_text(c, 0);
    kvc_session *s = chk_open(c, model, spec, "int8", 1024);
    if (s == NULL) {
        return false;
    }
    const bool transient = (chk_stats(s).flags & KVC_PLAN_TRANSIENT) != 0;
    const uint32_t n_prompt = transient ? 256 : 768, n_step = transient ? 4 : 64;
    float row[CHK_N_VOCAB];
    const chk_way one = {.n_prompt = 1};
    bool good = chk_prefill(c, s, text, n_prompt, 0);
    const kvc_session_stats a = chk_stats(s);
    for (uint32_t i = 0; good && i < n_step; i++) {
        good = chk_go(c, s, text + n_prompt + i, one, row);
    }
    const kvc_session_stats b = chk_stats(s);
    const double entries = (double)n_step * (double)(b.n_entry > 0 ? b.n_entry : 1);
    *append = (double)a.attention_ns / n_prompt;
    *entry = transient ? 0 : (double)(b.attention_ns - a.attention_ns) / entries;
    kvc_stage_stats stage = {.struct_size = sizeof stage};
    for (uint32_t i = 0; kvc_session_get_stage(s, i, &stage) == KVC_OK; i++) {
        if (stage.n_put > 0) {
            chk_info(c, "%s: %llu pages were put into the tier, %llu brought back", spec,
                     (unsigned long long)stage.n_put, (unsigned long long)stage.n_get);
        }
    }
    kvc_session_close(s);
    return good;
}

void chk_speed_attention(chk *c) {
    double append[2], entry[2];
    kvc_model *model = chk_prepare(c) ? chk_open_model(c, &chk_base, 1) : NULL;
    if (model != NULL && measure(c, model, "", &append[0], &entry[0])) {
        for (uint32_t i = 0; i < c->n_stack; i++) {
            if (!measure(c, model, c->stack[i], &append[1], &entry[1])) {
                break;
            }
            chk_info(c, "%s: %.0f ns per token of a prompt (plain f16 %.0f)", c->stack[i],
                     append[1], append[0]);
            if (entry[1] > 0) {
                chk_info(c, "%s: %.2f ns per live entry of a step (plain f16 %.2f)", c->stack[i],
                         entry[1], entry[0]);
            }
        }
    }
    kvc_model_close(model);
}
