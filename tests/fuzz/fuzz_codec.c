/* SPDX-License-Identifier: MIT
 * fuzz_codec.c: sealed pages of any bytes, in any format and of any dims: decode, score, mix, move,
 * and encode of any numbers. Every kernel level gives the same bits. The input: format
 * (bits 0, 1 and 4) and way to compute (bit 2), dims, then bytes that are repeated over pages and
 * operands. */
#include "codec.h"
#include "cpu.h"
#include "fuzz.h"
#include "params.h"
#include "stack.h"
#include "tiny.h"

enum { N_Q = 3 };

static const char *const specs[] = {"full:type=f32", "full:type=f16",  "full:type=bf16",
                                    "quant8",        "quant4",         "kivi",
                                    "kivi:bits=2",   "quant4:group=16"};

/* What calls on one page gave, all in one block. */
struct results {
    float *block;
    size_t n;
    float *k, *v, *s, *acc;
    uint8_t *page;
};

/* n bytes of the input, from its beginning again where it ends. */
static void fill(const fuzz_input *in, size_t from, void *out, size_t n) {
    uint8_t *o = out;
    for (size_t i = 0; i < n; i++) {
        o[i] = in->n > 0 ? in->p[(from + i) % in->n] : 0;
    }
}

static void *block_of(size_t n) {
    void *p = NULL;
    fuzz_check(posix_memalign(&p, 64, n) == 0, "memory", "");
    memset(p, 0, n);
    return p;
}

/* A codec for one layer of one head, at a kernel level. false: the policy refuses the dims. */
static bool make_stack(kvc__mem *mem, const kvc__kern *kern, const char *spec,
                       const kvc_layer_shape *layer, uint32_t compute, kvc__stack *out) {
    kvc_params *p = tiny_params();
    kvc__search search;
    kvc__err err = {""};
    const kvc_shape shape = {.struct_size = sizeof shape,
                             .n_layer = 1,
                             .n_ctx = 64,
                             .n_thread = 1,
                             .compute = compute,
                             .layer_stride = sizeof *layer,
                             .layer = layer};
    const kvc__stack_env env = {.mem = mem, .family = mem, .kern = kern, .shape = &shape};
    kvc__params_search(p, &search);
    int32_t rc = kvc__stack_create(&env, &search, NULL, spec, out, &err);
    kvc_params_destroy(p);
    return rc == KVC_OK;
}

/* Everything a codec does with one page. */
static void run_codec(const kvc__stack *st, const fuzz_input *in, struct results *r) {
    const kvc__codec *c = &st->codec;
    const kvc__page_shape *sh = &st->shape[0];
    const size_t nk = (size_t)KVC_PAGE * sh->dim_k, nv = (size_t)KVC_PAGE * sh->dim_v;
    const size_t nq = (size_t)N_Q * sh->dim_k, np = (size_t)N_Q * KVC_PAGE;
    kvc__codec_scratch scratch = {
        .k = block_of(4 * nk), .v = block_of(4 * nv), .t = block_of(4 * nk)};
    float *q = block_of(4 * nq), *p = block_of(4 * np);
    uint8_t *open_k = block_of(sh->open_k_bytes), *open_v = block_of(sh->open_v_bytes);
    int32_t pos[KVC_PAGE];
    for (int32_t i = 0; i < (int32_t)KVC_PAGE; i++) {
        pos[i] = i;
    }
    fill(in, 0, r->page, sh->page_bytes);
    fill(in, 1, q, 4 * nq);
    fill(in, 2, p, 4 * np);
    fill(in, 3, open_k, sh->open_k_bytes);
    fill(in, 5, open_v, sh->open_v_bytes);
    const kvc_page page = {.struct_size = sizeof page, .n = KVC_PAGE, .bytes = r->page};
    int32_t rc = kvc__codec_decode(c, &page, &scratch);
    memcpy(r->k, scratch.k, 4 * nk);
    memcpy(r->v, scratch.v, 4 * nv);
    rc |= kvc__codec_score(c, &page, q, N_Q, r->s, &scratch);
    rc |= kvc__codec_mix(c, &page, p, N_Q, r->acc, &scratch);
    if (kvc__codec_movable(c)) {
        rc |= kvc__codec_move(c, 0, r->page, 3, r->page, 60);
        rc |= kvc__codec_move(c, 0, r->page, 7, r->page, 7);
    }
    fuzz_check(rc == KVC_OK, "a codec bears any bytes", st->spec);
    rc = kvc__codec_encode(c, 0, 0, KVC_PAGE, pos, open_k, open_v, r->page, &scratch);
    fuzz_check(rc == KVC_OK, "a codec bears any numbers", st->spec);
    void *all[] = {scratch.k, scratch.v, scratch.t, q, p, open_k, open_v};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        free(all[i]);
    }
}

static void results_make(struct results *r, const kvc__page_shape *sh) {
    const size_t nk = (size_t)KVC_PAGE * sh->dim_k, nv = (size_t)KVC_PAGE * sh->dim_v;
    r->n = nk + nv + (size_t)N_Q * (KVC_PAGE + sh->dim_v);
    r->block = block_of(4 * r->n);
    r->k = r->block;
    r->v = r->k + nk;
    r->s = r->v + nv;
    r->acc = r->s + (size_t)N_Q * KVC_PAGE;
    r->page = block_of(sh->page_bytes);
}

/* The same bits, any NaN for any other. */
static void compare(const struct results *a, const struct results *b, size_t page_bytes,
                    const char *spec) {
    for (size_t i = 0; i < a->n; i++) {
        const bool nan = a->block[i] != a->block[i] && b->block[i] != b->block[i];
        fuzz_check(nan || memcmp(&a->block[i], &b->block[i], sizeof(float)) == 0,
                   "kernel levels agree on numbers", spec);
    }
    fuzz_check(memcmp(a->page, b->page, page_bytes) == 0, "kernel levels agree on pages", spec);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input in = {data, size};
    const uint32_t how = fuzz_u8(&in);
    const kvc_layer_shape layer = {.struct_size = sizeof layer,
                                   .n_head = 1,
                                   .n_head_kv = 1,
                                   .dim_k = 4 * (1 + fuzz_u8(&in) % 33),
                                   .dim_v = 4 * (1 + fuzz_u8(&in) % 33),
                                   .scale = 1};
    const char *spec = specs[how % 4 + how / 16 % 2 * 4];
    struct results r[KVC__LEVEL_AVX512 + 1] = {{0}};
    size_t page_bytes = 0;
    uint32_t n = 0;
    kvc__mem mem;
    kvc__mem_init(&mem, NULL, NULL);
    for (int level = 0; level <= KVC__LEVEL_AVX512; level++) {
        const kvc__kern *kern = kvc__kern_level(level);
        kvc__stack st = {0};
        if (kern != NULL && make_stack(&mem, kern, spec, &layer, how / 4 % 2, &st)) {
            page_bytes = st.shape[0].page_bytes;
            results_make(&r[n], &st.shape[0]);
            run_codec(&st, &in, &r[n++]);
            kvc__stack_destroy(&st);
        }
    }
    for (uint32_t i = 1; i < n; i++) {
        compare(&r[0], &r[i], page_bytes, spec);
    }
    for (uint32_t i = 0; i < n; i++) {
        free(r[i].block);
        free(r[i].page);
    }
    fuzz_check(mem.used == 0, "all memory is given back", spec);
    return 0;
}
