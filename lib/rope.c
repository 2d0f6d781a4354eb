/* SPDX-License-Identifier: MIT
 * rope.c: from keys to angles: angle of pair i = pos × base^(-2i / n_rot) / divisor[i], scaled
 * linearly or by YaRN (Peng et al., arXiv:2309.00071), and their cosines and sines. */
#include "rope.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define KEY_MAX 96u

/* "arch.rope.suffix" in buf[KEY_MAX]. */
static const char *rope_key(char *buf, const char *arch, const char *suffix) {
    (void)snprintf(buf, KEY_MAX, "%s.rope.%s", arch, suffix);
    return buf;
}

/* A float within [min, max]. */
static int32_t read_float(const kvc__gguf *g, const char *key, float def, float min, float max,
                          float *out, kvc__err *err) {
    KVC_TRY(kvc__gguf_f32(g, key, true, def, out, err));
    if (!(*out >= min && *out <= max)) {
        return kvc__fail(err, KVC_E_FORMAT, "GGUF key '%s' is %g; %g to %g is expected", key,
                         (double)*out, (double)min, (double)max);
    }
    return KVC_OK;
}

/* The factor of linear scaling and of YaRN; 1 when the file has none. */
static int32_t read_factor(const kvc__gguf *g, const char *arch, float *out, kvc__err *err) {
    char key[KEY_MAX];
    rope_key(key, arch, "scaling.factor");
    if (!kvc__gguf_find(g, key)) {
        rope_key(key, arch, "scale_linear"); /* its older name */
    }
    KVC_TRY(read_float(g, key, 0.0f, 0.0f, 1e6f, out, err));
    *out = *out == 0.0f ? 1.0f : *out; /* 0 stands for none */
    return KVC_OK;
}

static int32_t read_yarn(const kvc__gguf *g, const char *arch, uint32_t n_ctx_train, kvc__rope *r,
                         kvc__err *err) {
    char key[KEY_MAX];
    if (r->factor < 1.0f || r->base <= 1.0f) {
        return kvc__fail(err, KVC_E_FORMAT,
                         "RoPE scaling of type 'yarn' by %g with base %g; a factor of 1 or more "
                         "and a base above 1 are expected",
                         (double)r->factor, (double)r->base);
    }
    KVC_TRY(kvc__gguf_u32(g, rope_key(key, arch, "scaling.original_context_length"), true,
                          n_ctx_train, 1, INT32_MAX, &r->n_ctx, err));
    KVC_TRY(read_float(g, rope_key(key, arch, "scaling.yarn_ext_factor"), 1.0f, 0.0f, 1.0f, &r->ext,
                       err));
    float attn = 1.0f;
    KVC_TRY(read_float(g, rope_key(key, arch, "scaling.yarn_attn_factor"), 1.0f, 1e-3f, 1e3f, &attn,
                       err));
    r->attn *= attn;
    KVC_TRY(read_float(g, rope_key(key, arch, "scaling.yarn_beta_fast"), 32.0f, 1e-3f, 1e6f,
                       &r->beta_fast, err));
    return read_float(g, rope_key(key, arch, "scaling.yarn_beta_slow"), 1.0f, 1e-3f, 1e6f,
                      &r->beta_slow, err);
}

int32_t kvc__rope_read(const kvc__gguf *g, const char *arch, uint32_t n_ctx_train, kvc__rope *out,
                       kvc__err *err) {
    char key[KEY_MAX], text[48];
    kvc__str type;
    *out = (kvc__rope){.factor = 1.0f, .attn = 1.0f};
    KVC_TRY(kvc__gguf_f32(g, rope_key(key, arch, "freq_base"), true, 10000.0f, &out->base, err));
    if (!(out->base >= 1.0f)) {
        return kvc__fail(err, KVC_E_FORMAT, "RoPE base %g; at least 1 is expected",
                         (double)out->base);
    }
    KVC_TRY(kvc__gguf_str(g, rope_key(key, arch, "scaling.type"), "linear", &type, err));
    kvc__str_text(type, text, sizeof text);
    const bool divisors = kvc__gguf_tensor_find(g, "rope_freqs.weight") != NULL;
    if (strcmp(text, "none") == 0 || (strcmp(text, "llama3") == 0 && divisors)) {
        return KVC_OK;
    }
    const bool yarn = strcmp(text, "yarn") == 0;
    if (!yarn && strcmp(text, "linear") != 0) {
        return kvc__fail(err, KVC_E_UNSUPPORTED,
                         "RoPE scaling of type '%s' is not supported%s; use a model with none, "
                         "linear or yarn",
                         text, strcmp(text, "llama3") == 0 ? " without rope_freqs.weight" : "");
    }
    KVC_TRY(read_factor(g, arch, &out->factor, err));
    KVC_TRY(read_float(g, rope_key(key, arch, "scaling.attn_factor"), 1.0f, 1e-3f, 1e3f, &out->attn,
                       err));
    return yarn ? read_yarn(g, arch, n_ctx_train, out, err) : KVC_OK;
}

/* The pair that turns `turns` times within the first context. */
static double yarn_pair(const kvc__rope *r, uint32_t n_rot, float turns) {
    const double two_pi = 6.283185307179586476925;
    return n_rot * log(r->n_ctx / ((double)turns * two_pi)) / (2.0 * log((double)r->base));
}

/* Angles per position, and the factor on their cosines and sines. */
static double make_freq(const kvc__rope *r, uint32_t n_rot, double *freq) {
    const double factor = (double)r->factor, ext = (double)r->ext;
    double low = 0.0, high = 0.0;
    if (r->ext > 0.0f) {
        low = fmax(floor(yarn_pair(r, n_rot, r->beta_fast)), 0.0);
        high = fmin(ceil(yarn_pair(r, n_rot, r->beta_slow)), n_rot - 1.0);
    }
    for (uint32_t i = 0; i < n_rot / 2; i++) {
        const double fast =
            pow((double)r->base, -2.0 * i / n_rot) / (r->divisor ? (double)r->divisor[i] : 1.0);
        const double ramp = (i - low) / fmax(high - low, 1e-3);
        const double keep = r->ext > 0.0f ? ext * (1.0 - fmin(fmax(ramp, 0.0), 1.0)) : 0.0;
        freq[i] = fast / factor * (1.0 - keep) + fast * keep;
    }
    return (double)r->attn * (r->ext > 0.0f ? 1.0 + 0.1 * log(factor) : 1.0);
}

int32_t kvc__rope_grow(kvc__rope *r, kvc__mem *mem, uint32_t n_rot, uint32_t n, kvc__err *err) {
    const uint32_t half = n_rot / 2;
    double freq[KVC__ROT_MAX / 2];
    size_t row = n_rot * sizeof *r->cs, bytes = 0;
    if (n <= r->n) {
        return KVC_OK;
    }
    float *grown =
        kvc__mul_size(n, row, &bytes) ? kvc__realloc(mem, r->cs, r->n * row, bytes, 64) : NULL;
    if (!grown) {
        return kvc__fail(err, KVC_E_NOMEM,
                         "no memory for RoPE's table; choose a smaller n_ctx (%zu bytes)", bytes);
    }
    const double size = make_freq(r, n_rot, freq);
    for (uint32_t pos = r->n; pos < n; pos++) {
        float *cs = grown + (size_t)n_rot * pos;
        for (uint32_t i = 0; i < half; i++) {
            cs[i] = (float)(size * cos(pos * freq[i]));
            cs[half + i] = (float)(size * sin(pos * freq[i]));
        }
    }
    r->cs = grown;
    r->n = n;
    return KVC_OK;
}

void kvc__rope_free(kvc__rope *r, kvc__mem *mem, uint32_t n_rot) {
    kvc__free(mem, r->divisor, n_rot / 2 * sizeof *r->divisor);
    kvc__free(mem, r->cs, (size_t)r->n * n_rot * sizeof *r->cs);
    *r = (kvc__rope){0};
}
