/* SPDX-License-Identifier: MIT
 * digest.c: prints a hash of what every kernel makes of fixed inputs, and of the logits of the
 * models whose files are named. check_aarch64.sh holds the lines of two machines' programs against
 * each other. It opens no policy: those would have to be built for the other machine too. */
#include "weight_util.h"

#include "cpu.h"
#include "mat.h"
#include "mem.h"
#include "pack.h"

#include "kvc/kvc.h"
#include "kvc/policy.h"

#include <stdio.h>
#include <stdlib.h>

#define N_ROW  37u
#define N_COL  768u
#define N_TOK  13u
#define DIM    80u
#define N_Q    5u
#define PAGE_F (KVC__ENTRIES * DIM)
#define TOKENS 150u

static uint64_t seed = 1;

static void *room(size_t n) {
    void *p = aligned_alloc(64, (n + 63) / 64 * 64);
    if (p == NULL) {
        abort();
    }
    memset(p, 0, n);
    return p;
}

/* One line: FNV-1a of the floats' bytes. */
static void say(const char *what, const char *of, const float *x, size_t n) {
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, x + i, sizeof u);
        u = isnan(x[i]) ? 0x7fc00000u : u;
        for (uint32_t b = 0; b < 32; b += 8) {
            h = (h ^ (u >> b & 0xff)) * 0x100000001b3u;
        }
    }
    printf("%s %s %016llx\n", what, of, (unsigned long long)h);
}

/* ---- weights */

static void say_products(const kvc__kern *k, const kvc__mat *m, const char *name, float *out) {
    float *x = room((size_t)N_TOK * N_COL * sizeof *x), *d = room((size_t)N_TOK * N_COL / 4);
    float *tile = room(kvc__tile_bytes(m));
    int8_t *q = room((size_t)N_TOK * N_COL);
    int32_t *sum = room((size_t)N_TOK * N_COL / 4);
    kvc__act a = {
        .n = N_TOK, .n_col = N_COL, .f = x, .f_stride = N_COL, .q = q, .d = d, .sum = sum};
    util_fill(&seed, x, (size_t)N_TOK * N_COL, 2.0f);
    for (uint32_t t = 0; t < N_TOK; t++) {
        const size_t at = (size_t)t * N_COL;
        k->quantize(x + at, N_COL, q + at, d + at / 16, sum + at / 16);
    }
    k->mm_f(m, &a, out, N_ROW, tile);
    say("product", name, out, (size_t)N_TOK * N_ROW);
    if (kvc__mat_quantised(m->type)) {
        k->mm_q(m, &a, out, N_ROW);
        say("int8", name, out, (size_t)N_TOK * N_ROW);
    }
    free(x);
    free(d);
    free(tile);
    free(q);
    free(sum);
}

static void say_weights(const kvc__kern *k, uint32_t type) {
    kvc__mat m;
    uint32_t columns, bytes;
    const char *name = "";
    if (!kvc__type_info(type, &columns, &bytes, &name) ||
        kvc__mat_init(&m, type, N_ROW, N_COL, NULL) != KVC_OK) {
        abort();
    }
    uint8_t *file = room(weight_bytes(type, (uint64_t)N_ROW * N_COL));
    float *out = room((size_t)N_ROW * N_COL * sizeof *out);
    m.data = room(kvc__mat_bytes(&m));
    weight_fill(&seed, type, file, (uint64_t)N_ROW * N_COL);
    kvc__mat_pack(&m, file, 0, m.n_group);
    for (uint32_t r = 0; r < N_ROW; r++) {
        kvc__mat_row(&m, r, out + (size_t)r * N_COL);
    }
    say("rows", name, out, (size_t)N_ROW * N_COL);
    say_products(k, &m, name, out);
    free(file);
    free(out);
    free(m.data);
}

/* ---- rows and pages */

static void say_row_kernels(const kvc__kern *k) {
    float x[640], w[640], y[640], max[10] = {0}, sum[10] = {0}, down[10];
    util_fill(&seed, x, 640, 8.0f);
    util_fill(&seed, w, 640, 1.0f);
    k->rms_norm(x, w, 629, 1e-5f, y);
    say("row", "rms_norm", y, 629);
    k->rope_norm(x, w, 600, 629, y);
    say("row", "rope_norm", y, 629);
    memcpy(y, x, sizeof y);
    k->silu_mul(y, w, 629);
    k->add(y, x, 629);
    k->axpy(0.3f, w, y, 629);
    k->scale(y, 0.7f, 629);
    say("row", "silu_mul", y, 629);
    memcpy(y, x, sizeof y);
    k->hadamard(y, 128, 640);
    say("row", "hadamard", y, 640);
    memcpy(y, x, sizeof y);
    k->soften(y, 10, max, sum, down);
    say("row", "soften", y, 640);
    say("row", "sum", sum, 10);
    say("row", "down", down, 10);
    k->gelu_mul(y, w, 629);
    say("row", "gelu_mul", y, 629);
    k->soft_cap(y, 3.0f, 629);
    say("row", "soft_cap", y, 629);
}

static void say_plain_pages(const kvc__kern *k, uint32_t type, const char *name) {
    float *x = room(PAGE_F * sizeof *x), *out = room(PAGE_F * sizeof *out);
    float s[N_Q * KVC__ENTRIES], acc[N_Q * DIM] = {0};
    uint8_t *page = room(PAGE_F * sizeof(float));
    util_fill(&seed, x, PAGE_F, 3.0f);
    for (uint32_t e = 0; e < KVC__ENTRIES; e++) {
        k->put_k(type, x + (size_t)e * DIM, DIM, e, page);
    }
    k->get_k(type, page, DIM, out);
    say("get_k", name, out, PAGE_F);
    k->score(type, page, DIM, x, N_Q, s, KVC__ENTRIES);
    say("score", name, s, N_Q * KVC__ENTRIES);
    for (uint32_t e = 0; e < KVC__ENTRIES; e++) {
        k->put_v(type, x + (size_t)e * DIM, DIM, e, page);
    }
    k->get_v(type, page, DIM, out);
    say("get_v", name, out, PAGE_F);
    k->mix(type, page, DIM, s, KVC__ENTRIES, N_Q, acc);
    say("mix", name, acc, N_Q * DIM);
    free(x);
    free(out);
    free(page);
}

static void say_packed_pages(const kvc__kern *k, const kvc_packing *p, const char *name) {
    float *x = room(PAGE_F * sizeof *x), *out = room(PAGE_F * sizeof *out);
    float s[N_Q * KVC__ENTRIES], acc[N_Q * DIM] = {0};
    uint8_t *page = room(kvc__pack_bytes(p));
    util_fill(&seed, x, PAGE_F, 3.0f);
    k->pack_k(p, x, DIM, page);
    k->unpack_k(p, page, out);
    say("unpack_k", name, out, PAGE_F);
    k->pack_score_q(p, page, x, N_Q, s);
    say("pack_score_q", name, s, N_Q * KVC__ENTRIES);
    k->pack_score_f(p, page, x, N_Q, s);
    say("pack_score_f", name, s, N_Q * KVC__ENTRIES);
    k->pack_v(p, x, DIM, page);
    k->unpack_v(p, page, out);
    say("unpack_v", name, out, PAGE_F);
    k->pack_mix_f(p, page, s, N_Q, acc);
    say("pack_mix_f", name, acc, N_Q * DIM);
    k->pack_mix_q(p, page, s, N_Q, acc);
    say("pack_mix_q", name, acc, N_Q * DIM);
    free(x);
    free(out);
    free(page);
}

static void say_pages(const kvc__kern *k) {
    static const struct {
        const char *name;
        uint32_t bits, group_dim, group_entry;
    } packed[] = {
        {"i8", 8, 0, 1}, {"i4", 4, 16, 1}, {"i4 channels", 4, 1, 32}, {"i2 channels", 2, 1, 32}};
    say_plain_pages(k, KVC_TYPE_F32, "f32");
    say_plain_pages(k, KVC_TYPE_F16, "f16");
    say_plain_pages(k, KVC_TYPE_BF16, "bf16");
    for (size_t i = 0; i < sizeof packed / sizeof *packed; i++) {
        const kvc_packing p = {.struct_size = sizeof p,
                               .dim = DIM,
                               .bits = packed[i].bits,
                               .group_dim = packed[i].group_dim,
                               .group_entry = packed[i].group_entry,
                               .flags = packed[i].bits < 8 ? KVC_PACK_ZERO : 0};
        say_packed_pages(k, &p, packed[i].name);
    }
}

/* ---- models */

static void must(int32_t rc, const char *what, const char *why) {
    if (rc != KVC_OK) {
        fprintf(stderr, "%s: %s (%s)\n", what, why, kvc_status_name(rc));
        exit(1);
    }
}

static void say_model(const char *path, const char *compute) {
    kvc_params *p = NULL;
    kvc_model *m = NULL;
    kvc_session *s = NULL;
    kvc_model_info info = {.struct_size = sizeof info};
    int32_t token[TOKENS];
    char what[64];
    must(kvc_params_create(&p), path, "no memory");
    must(kvc_params_set_i64(p, "n_ctx", TOKENS), path, kvc_params_error(p));
    must(kvc_params_set_i64(p, "n_threads", 2), path, kvc_params_error(p));
    must(kvc_params_set_str(p, "compute", compute), path, kvc_params_error(p));
    must(kvc_model_open(path, p, &m), path, kvc_params_error(p));
    must(kvc_model_get_info(m, &info), path, "no info");
    must(kvc_session_open(m, "", p, &s), path, kvc_params_error(p));
    for (uint32_t i = 0; i < TOKENS; i++) {
        token[i] = (int32_t)(util_rand(&seed) % info.n_vocab);
    }
    kvc_run run = {.struct_size = sizeof run,
                   .wants = KVC_WANT_ALL,
                   .session = s,
                   .token = token,
                   .n_token = TOKENS};
    must(kvc_decode(&run, 1, sizeof run), path, kvc_session_error(s));
    float *all = room((size_t)TOKENS * info.n_vocab * sizeof *all);
    for (uint32_t i = 0; i < TOKENS; i++) {
        memcpy(all + (size_t)i * info.n_vocab, kvc_session_logits(s, i),
               info.n_vocab * sizeof *all);
    }
    const char *slash = strrchr(path, '/');
    snprintf(what, sizeof what, "%s %s", slash != NULL ? slash + 1 : path, compute);
    say("logits", what, all, (size_t)TOKENS * info.n_vocab);
    free(all);
    kvc_session_close(s);
    kvc_model_close(m);
    kvc_params_destroy(p);
}

int main(int argc, char **argv) {
    const kvc__kern *k = kvc__kern_get();
    (void)kvc__fp_enter();
    for (uint32_t i = 0; i < N_TYPE; i++) {
        say_weights(k, weight_types[i]);
    }
    say_row_kernels(k);
    say_pages(k);
    for (int i = 1; i < argc; i++) {
        say_model(argv[i], "int8");
        say_model(argv[i], "f32");
    }
    return 0;
}
