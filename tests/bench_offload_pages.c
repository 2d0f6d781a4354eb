/* SPDX-License-Identifier: MIT
 * bench_offload_pages.c: bench_offload_pages MODEL [LEVEL]: what the pages of a model shrink by in
 * the policy offload and what that costs, for each format, with the filter and without. A tier of
 * its own sees the pages of the built-in text as they are sealed, and packs and unpacks each a few
 * times; the least time counts. Not a test. */
#include "kvc/kvc.h"

#include "../policies/offload_page.h"
#include "../tools/text.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <xxhash.h>

enum { MOST_TOKENS = 2112, ROUNDS = 5 };

/* Every page goes through both ways of taking it apart. */
static struct {
    int level;
    const kvc_layout *layout;
    offload_shape shape[2];
    offload_coder coder;
    uint8_t *record, *back;
    size_t page_bytes;
    uint64_t n_page, n_raw[2], bytes[2], rounded[2];
    double put_us[2], get_us[2], hash_us[2];
    int differs;
} b;

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static void least(double *most, double x) {
    *most = x < *most ? x : *most;
}

/* Packs and unpacks a page, sorted (0) or not (1). */
static void measure(const uint8_t *page, int way) {
    double put = 1e9, get = 1e9, hash = 1e9;
    uint32_t n = 0;
    for (int i = 0; i < ROUNDS; i++) {
        const double t0 = now_us();
        n = offload_pack(&b.coder, &b.shape[way], page, b.record);
        const double t1 = now_us();
        if (n > 0 && !offload_unpack(&b.coder, &b.shape[way], b.record, n, b.back)) {
            b.differs = 1;
        }
        const double t2 = now_us();
        const uint64_t sum = XXH3_64bits(n > 0 ? b.record : page, n > 0 ? n : b.page_bytes);
        const double t3 = now_us();
        b.differs |= (n > 0 && memcmp(b.back, page, b.page_bytes) != 0) || sum == 1;
        least(&put, t1 - t0);
        least(&get, t2 - t1);
        least(&hash, t3 - t2);
    }
    n = n > 0 ? n : (b.n_raw[way]++, (uint32_t)b.page_bytes);
    b.bytes[way] += n;
    b.rounded[way] += (n + KVC_FILE_ALIGN - 1) / KVC_FILE_ALIGN * KVC_FILE_ALIGN;
    b.put_us[way] += put;
    b.get_us[way] += get;
    b.hash_us[way] += hash;
}

/* ---------------------------------------------------------------- a tier that looks on */

static int32_t open_tier(void *self, const kvc_layout *layout) {
    (void)self;
    const kvc_page_layout *l = kvc_layout_layer(layout, 0);
    uint8_t *map = calloc(1, l->page_bytes);
    b.layout = layout;
    b.page_bytes = l->page_bytes;
    b.record = malloc(l->page_bytes + OFFLOAD_SLACK);
    b.back = malloc(l->page_bytes);
    b.coder.planes = calloc(1, l->page_bytes);
    b.coder.staging = calloc(1, l->page_bytes);
    if (map == NULL || b.record == NULL || b.back == NULL || b.coder.planes == NULL ||
        b.coder.staging == NULL) {
        return KVC_E_NOMEM;
    }
    offload_shape_make(&b.shape[1], l, false, map);
    offload_shape_make(&b.shape[0], l, true, map);
    free(map);
    const int32_t rc = offload_coder_pack(&b.coder, b.level, l->page_bytes);
    return rc == KVC_OK ? offload_coder_unpack(&b.coder) : rc;
}

/* Keeps each page in memory, for those that are attended to. Layers of one shape are measured. */
static int32_t put(void *self, kvc_tier_page *page, uint32_t n, uint32_t stride) {
    (void)self;
    static atomic_flag measuring = ATOMIC_FLAG_INIT;
    for (uint32_t i = 0; i < n; i++) {
        kvc_tier_page *p = kvc_tier_page_at(page, stride, i);
        const size_t bytes = kvc_layout_layer(b.layout, p->layer)->page_bytes;
        void *copy = malloc(bytes);
        if (copy == NULL) {
            return KVC_E_NOMEM;
        }
        memcpy(copy, p->bytes, bytes);
        p->key[0] = (uint64_t)(uintptr_t)copy;
        while (atomic_flag_test_and_set(&measuring)) {
        }
        if (bytes == b.page_bytes) {
            b.n_page++;
            measure(copy, 0);
            measure(copy, 1);
        }
        atomic_flag_clear(&measuring);
    }
    return KVC_OK;
}

static int32_t get(void *self, kvc_tier_page *page, uint32_t n, uint32_t stride, void *buffer,
                   size_t size) {
    (void)self, (void)size;
    uint8_t *to = buffer;
    for (uint32_t i = 0; i < n; i++) {
        kvc_tier_page *p = kvc_tier_page_at(page, stride, i);
        p->record_bytes = kvc_layout_layer(b.layout, p->layer)->page_bytes;
        p->record = memcpy(to, (const void *)(uintptr_t)p->key[0], p->record_bytes);
        to += p->record_bytes;
    }
    return KVC_OK;
}

static void drop(void *self, const kvc_tier_page *page, uint32_t n, uint32_t stride) {
    (void)self;
    for (uint32_t i = 0; i < n; i++) {
        free((void *)(uintptr_t)kvc_tier_page_at(page, stride, i)->key[0]);
    }
}

static const kvc_tier tier = {
    .struct_size = sizeof tier, .open = open_tier, .put = put, .get = get, .drop = drop};

static int32_t create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                      kvc_plan *plan, void **self) {
    (void)host, (void)shape, (void)value;
    plan->answers = KVC_ANSWERS_WHERE;
    plan->tier = &tier;
    *self = &b;
    return KVC_OK;
}

static const kvc_policy_api api = {.struct_size = sizeof api, .create = create};
static const kvc_policy policy = {.struct_size = sizeof policy,
                                  .abi = KVC_POLICY_ABI,
                                  .abi_min = KVC_POLICY_ABI_MIN,
                                  .param_stride = sizeof(kvc_param),
                                  .name = "look",
                                  .version = "1.0.0",
                                  .summary = "sees pages",
                                  .license = "MIT",
                                  .api = &api};

static const kvc_policy *entry(uint32_t host_abi, uint32_t index) {
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}

/* ---------------------------------------------------------------- the program */

static void check(int32_t rc, const char *what) {
    if (rc < 0) {
        fprintf(stderr, "bench_offload_pages: %s (%s)\n", what, kvc_status_name(rc));
        exit(1);
    }
}

static void run(kvc_model *model, kvc_params *params, const char *spec, const int32_t *token,
                uint32_t n) {
    static const char *const way[] = {"planes", "none"};
    const int level = b.level;
    kvc_session *s = NULL;
    memset(&b, 0, sizeof b);
    b.level = level;
    check(kvc_session_open(model, spec, params, &s), kvc_params_error(params));
    check(kvc_session_prefill(s, token, n), kvc_session_error(s));
    for (int i = 0; i < 2; i++) {
        const double pages = (double)b.n_page, all = pages * (double)b.page_bytes;
        printf("%-26s %-7s %6.0f %6zu %7.3f %7.3f %5.1f%% %7.2f %7.2f %7.2f\n", spec, way[i], pages,
               b.page_bytes, all / (double)b.bytes[i], all / (double)b.rounded[i],
               100 * (double)b.n_raw[i] / pages, b.put_us[i] / pages, b.get_us[i] / pages,
               b.hash_us[i] / pages);
    }
    kvc_session_close(s);
    offload_coder_close(&b.coder);
    free(b.coder.planes);
    free(b.coder.staging);
    free(b.record);
    free(b.back);
    if (b.differs != 0) {
        check(KVC_E_LOST, "a page came back another");
    }
}

int main(int argc, char **argv) {
    static const char *const specs[] = {"look", "full:type=f32+look", "full:type=bf16+look",
                                        "quant8+look", "quant8:hadamard=off+look"};
    static char text[1 << 16];
    static int32_t token[1 << 16];
    size_t n = 0;
    if (argc < 2) {
        fprintf(stderr, "usage: bench_offload_pages MODEL [LEVEL]\n");
        return 2;
    }
    kvc_params *params = NULL;
    kvc_model *model = NULL;
    b.level = argc > 2 ? atoi(argv[2]) : 1;
    check(kvc_params_create(&params), "no memory");
    check(kvc_params_add_policy(params, entry), kvc_params_error(params));
    check(kvc_params_set_i64(params, "n_ctx", MOST_TOKENS), kvc_params_error(params));
    check(kvc_model_open(argv[1], params, &model), kvc_params_error(params));
    for (size_t i = 0, at = 0; cmp_text[i] != NULL && at + strlen(cmp_text[i]) < sizeof text; i++) {
        at += strlen(strcpy(text + at, cmp_text[i]));
    }
    check(kvc_model_tokenize(model, text, strlen(text), 0, token, sizeof token / sizeof *token, &n),
          kvc_model_error(model));
    printf("%-26s %-7s %6s %6s %7s %7s %6s %7s %7s %7s\n", "stack", "filter", "pages", "bytes",
           "ratio", "on disk", "raw", "put us", "get us", "hash us");
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
        run(model, params, specs[i], token, (uint32_t)(n < MOST_TOKENS ? n : MOST_TOKENS));
    }
    kvc_model_close(model);
    kvc_params_destroy(params);
    return 0;
}
