/* SPDX-License-Identifier: MIT
 * test_offload.c: the policy offload, linked in and given a real stage of the host, but for its
 * scratch files, which pass through here to fail and to lie. Pages of every layout come back bit
 * for bit; what the disk changed is found; memory is what open() took, and all given back. */
#include "codec.h"
#include "every.h"
#include "half.h"
#include "scratch.h"
#include "stack.h"

#include "../policies/offload_page.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

enum { N_LAYER = 2, N_CALL = 4, N_PAGE = 6, N = 24 /* pages of a test */ };

/* ---------------------------------------------------------------- random numbers */

static uint64_t rng;

static uint64_t random_u64(void) {
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return rng * 0x2545f4914f6cdd1du;
}

/* About a normal distribution. */
static float normal(void) {
    float sum = 0;
    for (int i = 0; i < 12; i++) {
        sum += (float)(random_u64() >> 40) / (float)(1 << 24);
    }
    return sum - 6;
}

/* ---------------------------------------------------------------- a world for one instance */

static struct {
    kvc__mem mem;
    kvc__stage stage;
    const kvc_policy *policy;
    kvc_value value[8];
    kvc_plan plan;
    void *self;
    kvc_layout layout;
    kvc_page_layout layer[N_LAYER];
    kvc_field field[N_LAYER][KVC_MAX_FIELDS + 1];
    atomic_int warned;
    /* what the disk does */
    int put_left, get_left;     /* calls until one fails; negative: none does */
    uint64_t bad_at;            /* reads that touch this byte fail; UINT64_MAX: none */
    uint64_t flip_at, flip_bit; /* the byte that is changed when it is read */
    atomic_int n_put, n_get;
    bool missing; /* the host has no files */
} w;

static int32_t lying_put(void *ctx, kvc_file *file, uint32_t group, const void *bytes, size_t n,
                         uint64_t *at) {
    atomic_fetch_add(&w.n_put, 1);
    if (w.put_left >= 0 && w.put_left-- == 0) {
        return (w.stage.host.fail)(ctx, KVC_E_IO, "no space");
    }
    return kvc__host_file.put(ctx, file, group, bytes, n, at);
}

static int32_t lying_get(void *ctx, kvc_file *file, uint64_t at, void *bytes, size_t n) {
    atomic_fetch_add(&w.n_get, 1);
    if ((w.get_left >= 0 && w.get_left-- == 0) || (w.bad_at >= at && w.bad_at - at < n)) {
        return (w.stage.host.fail)(ctx, KVC_E_IO, "can't be read");
    }
    const int32_t rc = kvc__host_file.get(ctx, file, at, bytes, n);
    if (rc == KVC_OK && w.flip_at >= at && w.flip_at - at < n) {
        ((uint8_t *)bytes)[w.flip_at - at] ^= (uint8_t)(1u << w.flip_bit);
    }
    return rc;
}

static kvc_host_file lying;

static const void *(*real_extension)(void *ctx, const char *id);

static const void *extension(void *ctx, const char *id) {
    if (strcmp(id, KVC_HOST_FILE) == 0) {
        return w.missing ? NULL : &lying;
    }
    return real_extension(ctx, id);
}

static void log_line(void *user, uint32_t level, const char *text) {
    (void)user;
    ck_assert_uint_gt(strlen(text), 0);
    atomic_fetch_add(&w.warned, level == KVC_LOG_WARN);
}

static size_t allocations_left;

static void *failing_realloc(void *ctx, void *p, size_t old_size, size_t new_size, size_t align) {
    void *q = NULL;
    (void)ctx;
    if (new_size > 0) {
        if (allocations_left-- == 0 || posix_memalign(&q, align, new_size) != 0) {
            return NULL;
        }
        if (p != NULL) {
            memcpy(q, p, old_size < new_size ? old_size : new_size);
        }
    }
    free(p);
    return q;
}

static const kvc_allocator failing = {.realloc = failing_realloc};

/* A stage without an instance yet; the parameters have their defaults, but the directory. */
static void setup_with(const kvc_allocator *allocator) {
    const kvc_shape shape = {.struct_size = sizeof shape};
    memset(&w, 0, sizeof w);
    rng = 88172645463325252u;
    kvc__mem_init(&w.mem, allocator, NULL);
    const kvc__stack_env env = {
        .mem = &w.mem, .family = &w.mem, .kern = kvc__kern_get(), .shape = &shape, .log = log_line};
    pthread_mutex_init(&w.stage.lock, NULL);
    kvc__host_init(&w.stage, &env);
    real_extension = w.stage.host.extension;
    w.stage.host.extension = extension;
    lying = kvc__host_file;
    lying.put = lying_put;
    lying.get = lying_get;
    w.put_left = w.get_left = -1;
    w.bad_at = w.flip_at = UINT64_MAX;
    w.policy = kvc_policy_entry(KVC_POLICY_ABI, 0);
    ck_assert_ptr_null(kvc_policy_entry(KVC_POLICY_ABI, 1));
    for (uint32_t i = 0; i < w.policy->n_param; i++) {
        w.value[i] = w.policy->param[i].def;
    }
}

static kvc_value *value_of(const char *name) {
    for (uint32_t i = 0; i < w.policy->n_param; i++) {
        if (strcmp(w.policy->param[i].name, name) == 0) {
            return &w.value[i];
        }
    }
    ck_abort_msg("there is no parameter %s", name);
    return NULL;
}

static void setup(void) {
    setup_with(NULL);
    value_of("dir")->s = "/tmp";
}

static int32_t try_create(void) {
    const kvc_shape shape = {.struct_size = sizeof shape, .n_layer = N_LAYER};
    w.plan = (kvc_plan){.struct_size = sizeof w.plan};
    return w.policy->api->create(&w.stage.host, &shape, w.value, &w.plan, &w.self);
}

static int32_t try_open(void) {
    w.layout = (kvc_layout){.struct_size = sizeof w.layout,
                            .n_layer = N_LAYER,
                            .n_page = N_PAGE,
                            .n_put = N_CALL,
                            .n_get = N_CALL,
                            .n_unpack = N_CALL,
                            .layer_stride = sizeof w.layer[0],
                            .layer = w.layer};
    return w.plan.tier->open(w.self, &w.layout);
}

static void create(void) {
    const int32_t rc = try_create();
    ck_assert_msg(rc == KVC_OK, "%s", w.stage.said.text);
    ck_assert_int_eq(try_open(), KVC_OK);
}

/* Everything that was taken must have come back. */
static void destroy(void) {
    if (w.self != NULL) {
        w.policy->api->destroy(w.self);
    }
    w.self = NULL;
    ck_assert_uint_eq(atomic_load(&w.stage.mem.used), 0);
    ck_assert_int_eq(atomic_load(&w.stage.other), 0);
    ck_assert_int_eq(atomic_load(&w.stage.disk), 0);
}

static void teardown(void) {
    destroy();
    pthread_mutex_destroy(&w.stage.lock);
}

static uint64_t stored(void) {
    kvc_claims claims = {.struct_size = sizeof claims};
    ck_assert_int_eq(w.policy->api->stats(w.self, &claims), KVC_OK);
    return claims.stored_bytes;
}

/* ---------------------------------------------------------------- layouts */

static void set_layer(uint32_t layer, size_t page_bytes, uint32_t n_field) {
    for (uint32_t i = 0; i < n_field; i++) {
        w.field[layer][i].struct_size = sizeof w.field[layer][i];
    }
    w.layer[layer] = (kvc_page_layout){.struct_size = sizeof w.layer[layer],
                                       .n_page = 8,
                                       .page_bytes = page_bytes,
                                       .n_field = n_field,
                                       .field_stride = sizeof w.field[layer][0],
                                       .field = w.field[layer]};
}

/* Plain floats, as the engine has them. */
static void plain_layer(uint32_t layer, uint32_t type_k, uint32_t dim_k, uint32_t type_v,
                        uint32_t dim_v) {
    const kvc__page_shape shape = {
        .type_k = type_k, .dim_k = dim_k, .type_v = type_v, .dim_v = dim_v};
    kvc__codec codec;
    kvc__codec_plain(&codec, kvc__kern_get(), &shape);
    const uint32_t n = kvc__codec_fields(&codec, 0, w.field[layer]);
    ck_assert_uint_eq(n, 2);
    set_layer(layer, kvc__plain_bytes(&shape), n);
}

/* Packed integers, as the host's kernels have them. */
static void packed_layer(uint32_t layer, uint32_t bits, uint32_t group, uint32_t dim_k,
                         uint32_t dim_v) {
    const kvc_host_math *math = real_extension(&w.stage, KVC_HOST_MATH);
    const kvc_packing k = {
        .struct_size = sizeof k, .dim = dim_k, .bits = bits, .group_dim = group, .group_entry = 1};
    kvc_packing v = k;
    v.dim = dim_v;
    ck_assert_int_eq(math->check(&w.stage, &k), KVC_OK);
    ck_assert_int_eq(math->check(&w.stage, &v), KVC_OK);
    const size_t bytes_k = math->bytes(&w.stage, &k);
    uint32_t n = math->fields_k(&w.stage, &k, 0, w.field[layer]);
    n += math->fields_v(&w.stage, &v, (uint32_t)bytes_k, w.field[layer] + n);
    set_layer(layer, bytes_k + math->bytes(&w.stage, &v), n);
}

/* Fields that nobody has yet: with gaps, of every size, in either order. */
static void odd_layer(uint32_t layer, uint32_t which) {
    kvc_field *f = w.field[layer];
    switch (which) {
    case 0: /* runs of three words with a gap behind, entries outside; then doubles inside out */
        f[0] = (kvc_field){.kind = KVC_FIELD_FLOAT,
                           .elem = 4,
                           .n = 6,
                           .run = 3,
                           .run_stride = 16,
                           .entry_stride = 32,
                           .offset = 8};
        f[1] = (kvc_field){.kind = KVC_FIELD_FLOAT,
                           .elem = 8,
                           .n = 5,
                           .run = 1,
                           .run_stride = 64 * 8,
                           .entry_stride = 8,
                           .offset = 2200};
        set_layer(layer, 2200 + 5 * 64 * 8 + 7, 2);
        break;
    case 1: /* integers of one byte with gaps, in both orders, and of two */
        f[0] = (kvc_field){
            .kind = KVC_FIELD_INT, .elem = 1, .n = 40, .run = 40, .entry_stride = 41, .offset = 3};
        f[1] = (kvc_field){.kind = KVC_FIELD_INT,
                           .elem = 1,
                           .n = 12,
                           .run = 4,
                           .run_stride = 300,
                           .entry_stride = 4,
                           .offset = 3000};
        f[2] = (kvc_field){.kind = KVC_FIELD_INT,
                           .elem = 2,
                           .n = 16,
                           .run = 16,
                           .entry_stride = 32,
                           .offset = 4096};
        set_layer(layer, 4096 + 2048, 3);
        break;
    case 2: /* two fields side by side in each entry: entries are interleaved */
        f[0] =
            (kvc_field){.kind = KVC_FIELD_FLOAT, .elem = 2, .n = 8, .run = 8, .entry_stride = 48};
        f[1] = (kvc_field){
            .kind = KVC_FIELD_INT, .elem = 1, .n = 32, .run = 32, .entry_stride = 48, .offset = 16};
        set_layer(layer, 64 * 48, 2);
        break;
    case 3: /* floats of one byte, in two fields */
        f[0] = (kvc_field){.kind = KVC_FIELD_FLOAT, .elem = 1, .n = 9, .run = 9, .entry_stride = 9};
        f[1] = f[0];
        f[1].offset = 700;
        set_layer(layer, 1500, 2);
        break;
    case 4: /* more stretches outside than are kept apart */
        f[0] = (kvc_field){.kind = KVC_FIELD_FLOAT, .elem = 2, .n = 3, .run = 3, .entry_stride = 8};
        set_layer(layer, 512, 1);
        break;
    case 5: /* fields that overlap */
        f[0] =
            (kvc_field){.kind = KVC_FIELD_FLOAT, .elem = 2, .n = 8, .run = 8, .entry_stride = 16};
        f[1] = f[0];
        f[1].offset = 1022;
        set_layer(layer, 4096, 2);
        break;
    case 6: /* one that leaves the page */
        f[0] =
            (kvc_field){.kind = KVC_FIELD_FLOAT, .elem = 4, .n = 8, .run = 8, .entry_stride = 32};
        set_layer(layer, 64 * 32 - 1, 1);
        break;
    case 7: /* one that makes no sense */
        f[0] = (kvc_field){.kind = 77, .elem = 3, .n = UINT32_MAX, .run = 0, .offset = UINT32_MAX};
        set_layer(layer, 1000, 1);
        break;
    case 8: /* one that is too long by far */
        f[0] = (kvc_field){.kind = KVC_FIELD_INT,
                           .elem = 8,
                           .n = UINT32_MAX,
                           .run = UINT32_MAX,
                           .entry_stride = UINT32_MAX};
        set_layer(layer, 1000, 1);
        break;
    default: /* more fields than there may be */
        for (uint32_t i = 0; i <= KVC_MAX_FIELDS; i++) {
            f[i] = (kvc_field){.kind = KVC_FIELD_INT,
                               .elem = 1,
                               .n = 4,
                               .run = 4,
                               .entry_stride = 4,
                               .offset = 256 * i};
        }
        set_layer(layer, 256 * (KVC_MAX_FIELDS + 1), KVC_MAX_FIELDS + 1);
        break;
    }
}

enum { N_ODD = 10, N_LAYOUT = 10 + 2 * N_ODD };

/* The i-th pair of layers. */
static void layers(uint32_t i) {
    static const uint32_t f32 = KVC_TYPE_F32, f16 = KVC_TYPE_F16, bf16 = KVC_TYPE_BF16;
    static const size_t opaque[] = {1, 63, 300, 16384, 100001, 64};
    switch (i) {
    case 0:
        plain_layer(0, f16, 64, f16, 64), plain_layer(1, f16, 128, f16, 128);
        return;
    case 1:
        plain_layer(0, f32, 64, f32, 64), plain_layer(1, f32, 256, f32, 256);
        return;
    case 2:
        plain_layer(0, bf16, 80, bf16, 80), plain_layer(1, f16, 32, f32, 96);
        return;
    case 3:
        plain_layer(0, f16, 256, f16, 33), plain_layer(1, f32, 1, f16, 1);
        return;
    case 4:
        packed_layer(0, 8, 0, 64, 64), packed_layer(1, 8, 0, 128, 128);
        return;
    case 5:
        packed_layer(0, 2, 16, 32, 256), packed_layer(1, 8, 0, 4, 4);
        return;
    case 6:
        packed_layer(0, 8, 0, 20, 12), packed_layer(1, 4, 32, 100, 36);
        return;
    case 7:
    case 8:
    case 9:
        set_layer(0, opaque[2 * (i - 7)], 0);
        set_layer(1, opaque[2 * (i - 7) + 1], 0);
        return;
    default: /* an odd one beside the usual, and beside another */
        odd_layer(0, (i - 10) % N_ODD);
        if (i < 10 + N_ODD) {
            plain_layer(1, f16, 64, f16, 64);
        } else {
            odd_layer(1, (i + 3) % N_ODD);
        }
        return;
    }
}

/* ---------------------------------------------------------------- pages */

enum { RANDOM, CONSTANT, ZERO, COUNTED, LIFELIKE, N_FILL };

/* An element as a model would have it: channels differ in size and, for integers, in their mean. */
static void put_element(const kvc_field *f, uint32_t channel, uint8_t *out) {
    const float x = normal() * (channel % 7 == 3 ? 8.0F : 0.5F) + (channel % 5 == 1 ? 3.0F : 0.0F);
    const double d = (double)x;
    const uint16_t h = half_f16(x);
    const int16_t s = (int16_t)(x * 100);
    const int8_t c = (int8_t)((int)(channel * 37 % 200) - 100 + (int)(normal() * 4));
    const void *from = f->kind == KVC_FIELD_INT ? (f->elem == 1 ? (const void *)&c : &s)
                       : f->elem == 8           ? (const void *)&d
                       : f->elem == 4           ? (const void *)&x
                                                : &h;
    memcpy(out, from, f->elem);
}

static void fill(uint32_t layer, int how, uint8_t *page) {
    const kvc_page_layout *l = &w.layer[layer];
    const uint8_t constant = (uint8_t)random_u64();
    for (size_t i = 0; i < l->page_bytes; i++) {
        page[i] = how == CONSTANT  ? constant
                  : how == ZERO    ? 0
                  : how == COUNTED ? (uint8_t)(i / 3)
                                   : (uint8_t)(random_u64() >> 32);
    }
    for (uint32_t i = 0; how == LIFELIKE && i < l->n_field; i++) {
        const kvc_field *f = &l->field[i];
        for (uint32_t e = 0; f->run != 0 && f->n < 1024 && e < KVC_PAGE; e++) {
            for (uint32_t c = 0; c < f->n; c++) {
                const size_t at = (size_t)f->offset + (size_t)(c / f->run) * f->run_stride +
                                  (size_t)e * f->entry_stride + (size_t)(c % f->run) * f->elem;
                if (at + f->elem <= l->page_bytes) {
                    put_element(f, c, page + at);
                }
            }
        }
    }
}

/* Pages of a test: what was put, where it is brought back to, and the tier's rows. Odd ones are of
 * the second layer; each is a block of its own, of just the size, for the sanitizer to guard. */
typedef struct pages {
    uint8_t *bytes[N], *back[N];
    kvc_tier_page row[N];
} pages;

static pages p;

static void *block(size_t bytes) {
    void *q = NULL;
    ck_assert_int_eq(posix_memalign(&q, 64, bytes), 0);
    memset(q, 0xaa, bytes);
    return q;
}

static void make_pages(int how) {
    for (uint32_t i = 0; i < N; i++) {
        const size_t bytes = w.layer[i % N_LAYER].page_bytes;
        p.bytes[i] = block(bytes);
        p.back[i] = block(bytes);
        fill(i % N_LAYER, how, p.bytes[i]);
        p.row[i] = (kvc_tier_page){
            .struct_size = sizeof p.row[i], .layer = i % N_LAYER, .head = i, .bytes = p.bytes[i]};
    }
}

static void free_pages(void) {
    for (uint32_t i = 0; i < N; i++) {
        free(p.bytes[i]);
        free(p.back[i]);
    }
    memset(&p, 0, sizeof p);
}

/* Rows of pages index[0 … n), as a host with larger rows than ours would have them. */
typedef struct wide_row {
    kvc_tier_page page;
    uint64_t more[3];
} wide_row;

static void rows(const uint32_t *index, uint32_t n, wide_row *out) {
    for (uint32_t i = 0; i < n; i++) {
        out[i].page = p.row[index[i]];
        out[i].page.struct_size = sizeof *out;
    }
}

static int32_t put(const uint32_t *index, uint32_t n) {
    wide_row row[N];
    rows(index, n, row);
    const int32_t rc = w.plan.tier->put(w.self, &row[0].page, n, sizeof *row);
    for (uint32_t i = 0; i < n && rc == KVC_OK; i++) {
        p.row[index[i]] = row[i].page;
    }
    return rc;
}

/* Reads the records of rows to a block of their own, which the caller frees. */
static int32_t read_rows(wide_row *row, uint32_t n, size_t each, uint8_t **out) {
    void *buffer = NULL;
    ck_assert_int_eq(posix_memalign(&buffer, KVC_FILE_ALIGN, n * each), 0);
    memset(buffer, 0xaa, n * each);
    *out = buffer;
    const int32_t rc = w.plan.tier->get(w.self, &row[0].page, n, sizeof *row, buffer, n * each);
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *record = row[i].page.record;
        if (row[i].page.status == KVC_OK) {
            ck_assert(record >= *out && row[i].page.record_bytes > 0 &&
                      record + row[i].page.record_bytes <= *out + n * each);
        }
    }
    return rc;
}

/* Brings pages back to p.back; their status comes to their row. */
static int32_t get(const uint32_t *index, uint32_t n) {
    wide_row row[N];
    uint8_t *buffer;
    rows(index, n, row);
    for (uint32_t i = 0; i < n; i++) {
        row[i].page.bytes = NULL;
        row[i].page.status = KVC_OK;
        row[i].page.record = NULL;
    }
    int32_t rc = read_rows(row, n, w.plan.tier->record_bytes(w.self, index[0] % N_LAYER), &buffer);
    for (uint32_t i = 0; i < n; i++) {
        int32_t *status = &p.row[index[i]].status;
        memset(p.back[index[i]], 0x55, w.layer[index[i] % N_LAYER].page_bytes);
        *status = row[i].page.status;
        if (*status == KVC_OK) {
            *status = w.plan.tier->unpack(w.self, &row[i].page, p.back[index[i]]);
            rc = *status == KVC_OK ? rc : *status;
        }
    }
    free(buffer);
    return rc;
}

static void drop(const uint32_t *index, uint32_t n) {
    wide_row row[N];
    rows(index, n, row);
    w.plan.tier->drop(w.self, &row[0].page, n, sizeof *row);
}

static bool same(uint32_t i) {
    return memcmp(p.bytes[i], p.back[i], w.layer[i % N_LAYER].page_bytes) == 0;
}

/* Puts all pages in calls of up to N_PAGE pages of one layer. */
static void put_all(void) {
    uint32_t index[N_PAGE];
    for (uint32_t layer = 0; layer < N_LAYER; layer++) {
        for (uint32_t i = layer, n = 0; i < N; i += N_LAYER) {
            index[n++] = i;
            if (n == 1 + i % N_PAGE || i + N_LAYER >= N) {
                ck_assert_int_eq(put(index, n), KVC_OK);
                n = 0;
            }
        }
    }
}

/* Brings pages of a layer back in an order of chance, in calls of chance, more pages in a call than
 * was said among them. */
static void get_all(void) {
    for (uint32_t layer = 0; layer < N_LAYER; layer++) {
        uint32_t index[N / N_LAYER];
        for (uint32_t i = 0; i < N / N_LAYER; i++) {
            const uint32_t j = (uint32_t)(random_u64() % (i + 1));
            index[i] = index[j];
            index[j] = i * N_LAYER + layer;
        }
        for (uint32_t i = 0, n; i < N / N_LAYER; i += n) {
            n = 1 + (uint32_t)(random_u64() % (N_PAGE + 2));
            n = n < N / N_LAYER - i ? n : N / N_LAYER - i;
            ck_assert_int_eq(get(index + i, n), KVC_OK);
            for (uint32_t k = i; k < i + n; k++) {
                ck_assert_msg(same(index[k]), "page %u", (unsigned)index[k]);
            }
        }
    }
}

static void drop_all(void) {
    for (uint32_t i = 0; i < N; i++) {
        drop(&i, 1);
    }
}

static uint64_t page_bytes(void) {
    return N / N_LAYER * (w.layer[0].page_bytes + w.layer[1].page_bytes);
}

/* ---------------------------------------------------------------- tests */

START_TEST(what_is_put_comes_back) {
    static const int levels[] = {0, 3, 19, 1};
    for (int how = 0; how < N_FILL; how++) {
        for (int k = how == LIFELIKE ? 0 : 3; k < 5; k++) {
            layers((uint32_t)_i);
            value_of("level")->i = levels[k < 4 ? k : 3];
            value_of("filter")->i = k == 4;
            create();
            make_pages(how);
            put_all();
            ck_assert_uint_le(stored(), page_bytes());
            ck_assert_int_gt(atomic_load(&w.stage.disk), 0);
            if (k == 0 || (how == RANDOM && k == 3)) {
                ck_assert_uint_eq(stored(), page_bytes());
            }
            get_all();
            drop_all();
            ck_assert_uint_eq(stored(), 0);
            ck_assert_int_eq(atomic_load(&w.stage.disk), 0);
            ck_assert_int_eq(atomic_load(&w.warned), 0);
            free_pages();
            destroy();
        }
    }
}
END_TEST

/* Bytes stored of a hundred bytes of pages. */
static uint64_t percent(int how) {
    make_pages(how);
    put_all();
    const uint64_t is = stored() * 100 / page_bytes();
    drop_all();
    free_pages();
    return is;
}

/* What the filter is for: without it the same pages shrink less. */
START_TEST(pages_shrink) {
    static const uint32_t least[] = {88, 90, 88, 90, 75};
    static const uint32_t layout[] = {0, 1, 2, 3, 4};
    layers(layout[_i]);
    create();
    const uint64_t with = percent(LIFELIKE);
    ck_assert_uint_le(with, least[_i]);
    ck_assert_uint_le(percent(CONSTANT), 8);
    ck_assert_uint_le(percent(ZERO), 8);
    destroy();
    value_of("filter")->i = 1;
    create();
    ck_assert_uint_gt(percent(LIFELIKE), with);
    destroy();
    value_of("level")->i = 0;
    create();
    ck_assert_uint_eq(percent(ZERO), 100);
}
END_TEST

/* Records that lie side by side are read in one go, in whatever order they are asked for. */
START_TEST(neighbours_are_read_at_once) {
    static const uint32_t order[] = {6, 0, 2, 4};
    plain_layer(0, KVC_TYPE_F16, 64, KVC_TYPE_F16, 64);
    plain_layer(1, KVC_TYPE_F16, 64, KVC_TYPE_F16, 64);
    create();
    make_pages(LIFELIKE);
    put_all();
    atomic_store(&w.n_get, 0);
    ck_assert_int_eq(get(order, 4), KVC_OK);
    ck_assert_int_eq(atomic_load(&w.n_get), 1);
    /* Two that lie apart. */
    static const uint32_t far[] = {4, 0};
    ck_assert_int_eq(get(far, 2), KVC_OK);
    ck_assert_int_eq(atomic_load(&w.n_get), 3);
    /* The same page twice. */
    wide_row row[2];
    static const uint32_t twice[] = {2, 2};
    rows(twice, 2, row);
    uint8_t *buffer;
    ck_assert_int_eq(read_rows(row, 2, w.plan.tier->record_bytes(w.self, 0), &buffer), KVC_OK);
    ck_assert_int_eq(w.plan.tier->unpack(w.self, &row[0].page, p.back[2]), KVC_OK);
    ck_assert_int_eq(w.plan.tier->unpack(w.self, &row[1].page, p.back[4]), KVC_OK);
    ck_assert_mem_eq(p.back[2], p.bytes[2], w.layer[0].page_bytes);
    ck_assert_mem_eq(p.back[4], p.bytes[2], w.layer[0].page_bytes);
    ck_assert_int_eq(atomic_load(&w.n_get), 4);
    free(buffer);
    drop_all();
    free_pages();
}
END_TEST

static uint64_t place(uint32_t i) {
    return (p.row[i].key[0] >> 30) * KVC_FILE_ALIGN;
}

static uint32_t record_bytes(uint32_t i) {
    return (uint32_t)(p.row[i].key[0] >> 1) & 0x1fffffff;
}

/* Pages 0, 2, 4, 6 asked for together, of which page 4 must be lost and nothing else. */
static void check_lost(void) {
    static const uint32_t index[] = {0, 2, 4, 6};
    atomic_store(&w.warned, 0);
    w.stage.said.text[0] = '\0';
    ck_assert_int_eq(get(index, 4), KVC_E_LOST);
    ck_assert_int_eq(atomic_load(&w.warned), 1);
    ck_assert_uint_gt(strlen(w.stage.said.text), 0);
    for (int i = 0; i < 4; i++) {
        ck_assert_int_eq(p.row[index[i]].status, index[i] == 4 ? KVC_E_LOST : KVC_OK);
        ck_assert(index[i] == 4 || same(index[i]));
    }
}

START_TEST(a_flipped_bit_is_found) {
    static const uint32_t index[] = {0, 2, 4, 6};
    layers((uint32_t)_i);
    create();
    make_pages(LIFELIKE);
    put_all();
    for (int round = 0; round < 60; round++) {
        /* Each byte of the header, then bytes of chance. */
        w.flip_at = place(4) + (round < 16 ? (uint64_t)round : random_u64()) % record_bytes(4);
        w.flip_bit = random_u64() % 8;
        check_lost();
    }
    w.flip_at = UINT64_MAX;
    ck_assert_int_eq(get(index, 4), KVC_OK);
    ck_assert(same(4));
    drop_all();
    free_pages();
}
END_TEST

START_TEST(a_place_that_cant_be_read) {
    static const uint32_t index[] = {0, 2, 4, 6};
    layers((uint32_t)_i);
    create();
    make_pages(RANDOM);
    put_all();
    w.bad_at = place(4) + record_bytes(4) - 1;
    check_lost();
    w.bad_at = UINT64_MAX;
    /* A read of several that fails once costs nothing. */
    w.get_left = w.layer[0].page_bytes < 16000 ? 0 : -1;
    ck_assert_int_eq(get(index, 4), KVC_OK);
    ck_assert(same(4));
    drop_all();
    free_pages();
}
END_TEST

START_TEST(keys_that_are_wrong) {
    layers(4);
    create();
    make_pages(LIFELIKE);
    put_all();
    const kvc_tier_page good = p.row[4];
    for (int bit = 0; bit < 128; bit++) {
        p.row[4].key[bit / 64] = good.key[bit / 64] ^ (uint64_t)1 << bit % 64;
        check_lost();
        p.row[4] = good;
    }
    for (int i = 0; i < 300; i++) {
        p.row[4].key[0] = random_u64() >> (random_u64() % 64);
        p.row[4].key[1] = random_u64();
        check_lost();
    }
    /* Another page's, a layer that there isn't, and one that is given up. */
    p.row[4] = good;
    p.row[4].key[0] = p.row[6].key[0];
    check_lost();
    p.row[4] = good;
    p.row[4].layer = N_LAYER;
    ck_assert_int_eq(get(&(uint32_t){4}, 1), KVC_E_LOST);
    p.row[4] = good;
    drop(&(uint32_t){4}, 1);
    for (uint32_t i = 0; i < 300 && place(8) != place(4); i++) {
        drop(&(uint32_t){8}, 1);
        ck_assert_int_eq(put(&(uint32_t){8}, 1), KVC_OK);
        fill(0, LIFELIKE, p.bytes[8]);
    }
    ck_assert_uint_eq(place(8), place(4));
    check_lost();
    free_pages();
}
END_TEST

/* Whatever bytes a record has, unpacking ends, inside its buffers. */
START_TEST(records_of_any_bytes) {
    layers((uint32_t)_i);
    for (uint32_t layer = 0; layer < N_LAYER; layer++) {
        const size_t bytes = w.layer[layer].page_bytes;
        offload_shape shape;
        uint8_t *map = calloc(1, bytes), *page = block(bytes),
                *record = block(bytes + OFFLOAD_SLACK);
        offload_coder coder = {.planes = block(bytes), .staging = block(bytes)};
        ck_assert_ptr_nonnull(map);
        offload_shape_make(&shape, &w.layer[layer], true, map);
        ck_assert_int_eq(offload_coder_pack(&coder, 1, bytes), KVC_OK);
        ck_assert_int_eq(offload_coder_unpack(&coder), KVC_OK);
        uint32_t n_good = 0;
        for (int round = 0; round < 400; round++) {
            fill(layer, round % N_FILL, page);
            uint32_t n = offload_pack(&coder, &shape, page, record);
            n = n > 0 ? n : (uint32_t)(random_u64() % bytes);
            for (uint64_t k = random_u64() % 4; k > 0 && n > 0; k--) {
                const uint64_t x = random_u64();
                const size_t at = (size_t)(x >> 8) % (x >> 40 & 1 && n > 24 ? 24 : n);
                record[at] = x & 1 ? (uint8_t)(x >> 50) : record[at] ^ (uint8_t)(1u << (x >> 60));
            }
            n -= random_u64() % 8 == 0 && n > 0 ? (uint32_t)(random_u64() % n) : 0;
            /* A copy without a byte to spare. */
            uint8_t *exact = block(n > 0 ? n : 1);
            memcpy(exact, record, n);
            n_good += offload_unpack(&coder, &shape, exact, n, page);
            free(exact);
        }
        ck_assert_uint_lt(n_good, 400);
        offload_coder_close(&coder);
        free(coder.planes);
        free(coder.staging);
        free(record);
        free(page);
        free(map);
    }
}
END_TEST

START_TEST(a_put_that_fails_keeps_nothing) {
    static const uint32_t index[] = {0, 2, 4, 6};
    layers(0);
    create();
    make_pages(LIFELIKE);
    for (int left = 0; left < 4; left++) {
        w.put_left = left;
        ck_assert_int_eq(put(index, 4), KVC_E_IO);
        ck_assert_str_eq(w.stage.said.text, "no space");
        ck_assert_uint_eq(stored(), 0);
        ck_assert_int_eq(atomic_load(&w.stage.disk), 0);
    }
    w.put_left = -1;
    put_all();
    get_all();
    drop_all();
    free_pages();
}
END_TEST

START_TEST(every_allocation_fails_once) {
    int last = -1;
    for (size_t n = 0;; n++) {
        setup_with(&failing);
        value_of("dir")->s = "/tmp";
        layers(4);
        make_pages(LIFELIKE);
        allocations_left = n;
        int32_t rc = try_create();
        rc = rc == KVC_OK ? try_open() : rc;
        for (uint32_t i = 0; i < N && rc == KVC_OK; i++) {
            rc = put(&i, 1);
            ck_assert(rc < 0 || get(&i, 1) == KVC_OK);
        }
        free_pages();
        teardown();
        if (rc == KVC_OK) {
            last = (int)n;
            break;
        }
        ck_assert_int_eq(rc, KVC_E_NOMEM);
    }
    /* The instance, the file's own, shapes, contexts with three or two blocks each, tables. */
    ck_assert_int_ge(last, 2 + 2 + 2 + N_CALL * (3 + 2) + 2 + 3);
    setup();
}
END_TEST

/* Long streams and the shortest in turn, which zstd would take for a waste of memory; and many of
 * each. */
START_TEST(nothing_grows_after_open) {
    static const int levels[] = {1, 3, 9, 19};
    set_layer(0, 100000, 0);
    w.field[1][0] =
        (kvc_field){.kind = KVC_FIELD_INT, .elem = 1, .n = 4, .run = 4, .entry_stride = 4};
    set_layer(1, 256, 1);
    value_of("level")->i = levels[_i];
    create();
    make_pages(CONSTANT);
    const int64_t zstd = atomic_load(&w.stage.other);
    ck_assert_int_gt(zstd, N_CALL * 100000);
    for (uint32_t i = 0; i < N; i++) {
        ck_assert_int_eq(put(&i, 1), KVC_OK);
    }
    const size_t own = atomic_load(&w.stage.mem.used);
    for (uint32_t i = 0; i < 1200; i++) {
        const uint32_t k = i % 400 < 300 ? 1 + i % (N / 2) * 2 : i % (N / 2) * 2;
        drop(&k, 1);
        fill(k % N_LAYER, i % 3 == 0 ? COUNTED : CONSTANT, p.bytes[k]);
        ck_assert_int_eq(put(&k, 1), KVC_OK);
        ck_assert_int_eq(get(&k, 1), KVC_OK);
        ck_assert(same(k));
        ck_assert_int_eq(atomic_load(&w.stage.other), zstd);
        ck_assert_uint_eq(atomic_load(&w.stage.mem.used), own);
    }
    ck_assert_uint_eq(atomic_load(&w.stage.peak), (uint64_t)zstd + own);
    drop_all();
    free_pages();
}
END_TEST

static void *caller(void *arg) {
    const uint32_t self = (uint32_t)(uintptr_t)arg;
    uint64_t x = self * 0x9e3779b97f4a7c15u + 1;
    for (int i = 0; i < 400; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        /* Each thread has its own pages, of both layers. */
        const uint32_t k = self * (N / N_CALL) + (uint32_t)(x % (N / N_CALL));
        if (p.row[k].key[0] == 0) {
            if (put(&k, 1) != KVC_OK) {
                return "a page can't be put";
            }
        } else {
            if (get(&k, 1) != KVC_OK || !same(k)) {
                return "a page is not what it was";
            }
            if (x >> 62 == 0) {
                drop(&k, 1);
                p.row[k].key[0] = 0;
            }
        }
    }
    return NULL;
}

START_TEST(threads) {
    pthread_t thread[N_CALL];
    layers((uint32_t)_i);
    create();
    make_pages(LIFELIKE);
    for (uintptr_t i = 0; i < N_CALL; i++) {
        ck_assert_int_eq(pthread_create(&thread[i], NULL, caller, (void *)i), 0);
    }
    for (int i = 0; i < N_CALL; i++) {
        void *said = NULL;
        ck_assert_int_eq(pthread_join(thread[i], &said), 0);
        ck_assert_msg(said == NULL, "%s", (const char *)said);
    }
    for (uint32_t i = 0; i < N; i++) {
        if (p.row[i].key[0] != 0) {
            drop(&i, 1);
        }
    }
    ck_assert_uint_eq(stored(), 0);
    ck_assert_int_eq(atomic_load(&w.stage.disk), 0);
    free_pages();
}
END_TEST

START_TEST(what_it_cant_do) {
    w.missing = true;
    ck_assert_int_eq(try_create(), KVC_E_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(w.stage.said.text, KVC_HOST_FILE));
    ck_assert_ptr_null(w.self);
    w.missing = false;
    lying.struct_size = sizeof lying - 1;
    ck_assert_int_eq(try_create(), KVC_E_UNSUPPORTED);
    lying.struct_size = sizeof lying;
    value_of("dir")->s = "/tmp/there/is/no/such";
    ck_assert_int_eq(try_create(), KVC_E_NOT_FOUND);
    ck_assert_ptr_nonnull(strstr(w.stage.said.text, "/tmp/there/is/no/such"));
    destroy();
    value_of("dir")->s = "/tmp";
    layers(0);
    w.layer[1].page_bytes = OFFLOAD_MAX_BYTES;
    ck_assert_int_eq(try_create(), KVC_OK);
    ck_assert_int_eq(try_open(), KVC_E_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(w.stage.said.text, "layer 1"));
}
END_TEST

START_TEST(the_plan) {
    value_of("hot")->i = 12345678;
    ck_assert_int_eq(try_create(), KVC_OK);
    ck_assert_uint_eq(w.plan.answers, KVC_ANSWERS_WHERE);
    ck_assert_uint_eq(w.plan.hot_bytes, 12345678);
    ck_assert_uint_eq(w.policy->caps, KVC_CAP_CHUNK_INVARIANT | KVC_CAP_LOSSLESS);
    /* Never opened, as when another stage fails. */
}
END_TEST

/* The table of files itself, given what no policy should. */
START_TEST(files_without_arguments) {
    const kvc_host_file *f = real_extension(&w.stage, KVC_HOST_FILE);
    kvc_file *file = NULL;
    uint64_t at = 0;
    ck_assert_int_eq(f->open(&w.stage, "/tmp", NULL), KVC_E_ARG);
    ck_assert_int_eq(f->put(&w.stage, NULL, 0, "", 1, &at), KVC_E_ARG);
    ck_assert_int_eq(f->get(&w.stage, NULL, 0, &at, 1), KVC_E_ARG);
    f->drop(&w.stage, NULL, 0, 1);
    f->close(&w.stage, NULL);
    ck_assert_int_eq(f->open(&w.stage, "/tmp", &file), KVC_OK);
    ck_assert_int_eq(f->put(&w.stage, file, 0, NULL, 1, &at), KVC_E_ARG);
    ck_assert_int_eq(f->put(&w.stage, file, 0, "", 1, NULL), KVC_E_ARG);
    ck_assert_int_eq(f->get(&w.stage, file, 0, NULL, 1), KVC_E_ARG);
    ck_assert_int_eq(f->put(&w.stage, file, 0, "", 0, &at), KVC_E_RANGE);
    w.stage.said.text[0] = '\0';
    ck_assert_int_eq(f->get(&w.stage, file, 0, &at, 1), KVC_E_IO);
    ck_assert_ptr_nonnull(strstr(w.stage.said.text, "/tmp"));
    ck_assert_int_eq(f->put(&w.stage, file, 0, "abc", 4, &at), KVC_OK);
    ck_assert_int_eq(atomic_load(&w.stage.disk), 8 << 20);
    f->close(&w.stage, file);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("offload");
    TCase *tc = tcase_create("offload");
    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup, teardown);
    every_add(tc, what_is_put_comes_back, N_LAYOUT, 8);
    every_add(tc, pages_shrink, 5, 8);
    tcase_add_test(tc, neighbours_are_read_at_once);
    every_add(tc, a_flipped_bit_is_found, 10, 8);
    every_add(tc, a_place_that_cant_be_read, 10, 8);
    tcase_add_test(tc, keys_that_are_wrong);
    every_add(tc, records_of_any_bytes, N_LAYOUT, 8);
    tcase_add_test(tc, a_put_that_fails_keeps_nothing);
    tcase_add_test(tc, every_allocation_fails_once);
    every_add(tc, nothing_grows_after_open, 4, 8);
    every_add(tc, threads, 6, 8);
    tcase_add_test(tc, what_it_cant_do);
    tcase_add_test(tc, the_plan);
    tcase_add_test(tc, files_without_arguments);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
