/* SPDX-License-Identifier: MIT
 * test_quest.c: the policy quest, linked in, against the paper's rule written plainly: it is shown
 * a store of small whole numbers, of which sums are exact in any order, and a host that packs
 * without rounding, so the pages it chooses must be the very ones. What rounding must not change
 * is asked with the engine's kernels too. Then whole sessions: all pages are `full`, chosen pages
 * alone are brought.
 */
#include "cpu.h"
#include "engine_util.h"
#include "kern.h"
#include "stack.h"
#include "top.h"

#include <kvc/policy.h>

#include <math.h>
#include <stdbool.h>

enum { N_LAYER = 3, MOST_HEAD = 3, MOST_GROUP = 3, MOST_DIM = 80, N_PAGE = 70 };
enum { SHARE, LEAST, FIRST, RECENT, DENSE, BLOCK, PROMPT, N_PARAM };

/* ---------------------------------------------------------------- a host */

static struct {
    uint32_t n_layer, n_head, n_group, dim, window, n_ctx;
    float key[N_LAYER][MOST_HEAD][N_PAGE * KVC_PAGE][MOST_DIM];
    uint32_t n_past;
    uint32_t freed;       /* pages at the front that are gone */
    uint32_t fail_page;   /* read() of it fails … */
    int32_t fail_status;  /* … with that */
    int64_t balance;      /* bytes held */
    int allocations_left; /* until one fails; negative: none does */
    bool no_store, no_math;
    uint32_t most_dim;     /* of rows that can be packed */
    const kvc__kern *kern; /* packs and scores with rounding, or NULL: none is done */
    bool int8;             /* of queries too */
    uint32_t odd_dim;      /* of the last layer, 0: as all */
    char said[256];
} w;

static uint32_t dim_of(uint32_t layer) {
    return w.odd_dim != 0 && layer + 1 == w.n_layer ? w.odd_dim : w.dim;
}

static uint64_t rng;

static uint32_t below(uint32_t n) {
    rng ^= rng << 13;
    rng ^= rng >> 7;
    rng ^= rng << 17;
    return (uint32_t)(rng >> 11) % n;
}

static void *w_realloc(void *ctx, void *p, size_t old_size, size_t new_size, size_t align) {
    (void)ctx;
    if (new_size == 0) {
        free(p);
        w.balance -= p != NULL ? (int64_t)old_size : 0;
        return NULL;
    }
    ck_assert_ptr_null(p);
    if (w.allocations_left == 0) {
        return NULL;
    }
    w.allocations_left -= w.allocations_left > 0;
    w.balance += (int64_t)new_size;
    void *fresh = aligned_alloc(align, (new_size + align - 1) / align * align);
    return memset(fresh, 0, new_size);
}

static int32_t w_fail(void *ctx, int32_t code, const char *text) {
    (void)ctx;
    snprintf(w.said, sizeof w.said, "%s", text);
    return code;
}

static void w_for(void *ctx, uint32_t n, void (*fn)(void *arg, uint32_t i), void *arg) {
    (void)ctx;
    for (uint32_t i = n; i-- > 0;) {
        fn(arg, i);
    }
}

static uint32_t w_count(void *ctx, uint32_t layer, uint32_t head) {
    (void)ctx;
    ck_assert(layer < w.n_layer && head < w.n_head);
    return w.n_past - w.freed * KVC_PAGE;
}

static int32_t w_page(void *ctx, uint32_t layer, uint32_t head, uint32_t page, int32_t *out) {
    (void)ctx;
    ck_assert(layer < w.n_layer && head < w.n_head);
    if (page >= w.n_past / KVC_PAGE) {
        return KVC_E_RANGE;
    }
    for (uint32_t i = 0; i < KVC_PAGE && page >= w.freed; i++) {
        out[i] = (int32_t)(page * KVC_PAGE + i);
    }
    return page < w.freed ? 0 : (int32_t)KVC_PAGE;
}

static int32_t w_read(void *ctx, uint32_t layer, uint32_t head, uint32_t first, uint32_t n,
                      float *k, float *v) {
    (void)ctx;
    ck_assert_ptr_null(v);
    ck_assert_uint_le(first + n, w_count(ctx, layer, head));
    first += w.freed * KVC_PAGE;
    if (w.fail_status < 0 && first / KVC_PAGE == w.fail_page) {
        return w.fail_status;
    }
    const uint32_t dim = dim_of(layer);
    for (uint32_t i = 0; i < n; i++) {
        memcpy(k + (size_t)i * dim, w.key[layer][head][first + i], dim * sizeof *k);
    }
    return KVC_OK;
}

static const kvc_host_store store = {
    .struct_size = sizeof store, .count = w_count, .page = w_page, .read = w_read};

static uint32_t w_top(void *ctx, const float *score, uint32_t n, uint32_t n_top, uint32_t *index) {
    (void)ctx;
    return kvc__top(score, n, n_top, index);
}

/* Packed rows are the rows, unless the engine's kernels pack them. */

static int32_t w_check(void *ctx, const kvc_packing *p) {
    (void)ctx;
    ck_assert_uint_eq(p->struct_size, sizeof *p);
    return p->dim % 4 == 0 && p->dim <= w.most_dim
               ? KVC_OK
               : w_fail(ctx, KVC_E_UNSUPPORTED, "rows can't be packed");
}

static size_t w_bytes(void *ctx, const kvc_packing *p) {
    (void)ctx;
    return w.kern != NULL ? kvc__pack_bytes(p) : sizeof(float) * KVC_PAGE * p->dim;
}

static void w_pack(void *ctx, const kvc_packing *p, const float *rows, uint32_t stride, void *dst) {
    (void)ctx;
    ck_assert_uint_eq((uintptr_t)dst % 64, 0);
    if (w.kern != NULL) {
        w.kern->pack_k(p, rows, stride, dst);
        return;
    }
    for (uint32_t i = 0; i < KVC_PAGE; i++) {
        memcpy((float *)dst + (size_t)i * p->dim, rows + (size_t)i * stride, p->dim * sizeof *rows);
    }
}

static void w_move(void *ctx, const kvc_packing *p, void *dst, uint32_t to, const void *src,
                   uint32_t from) {
    ck_assert(to < KVC_PAGE && from < KVC_PAGE);
    ck_assert_uint_eq(((uintptr_t)dst | (uintptr_t)src) % 64, 0);
    if (w.kern != NULL) {
        kvc__host_math.move_k(ctx, p, dst, to, src, from);
        return;
    }
    memcpy((float *)dst + (size_t)to * p->dim, (const float *)src + (size_t)from * p->dim,
           p->dim * sizeof(float));
}

static void w_score(void *ctx, const kvc_packing *p, const void *src, const float *q, uint32_t n_q,
                    float *s) {
    (void)ctx;
    ck_assert_uint_eq((uintptr_t)src % 64, 0);
    if (w.kern != NULL) {
        (w.int8 ? w.kern->pack_score_q : w.kern->pack_score_f)(p, src, q, n_q, s);
        return;
    }
    for (uint32_t i = 0; i < n_q * KVC_PAGE; i++) {
        const float *k = (const float *)src + (size_t)(i % KVC_PAGE) * p->dim;
        s[i] = 0;
        for (uint32_t d = 0; d < p->dim; d++) {
            s[i] += q[(size_t)(i / KVC_PAGE) * p->dim + d] * k[d];
        }
    }
}

static const kvc_host_math math = {.struct_size = sizeof math,
                                   .check = w_check,
                                   .bytes = w_bytes,
                                   .pack_k = w_pack,
                                   .move_k = w_move,
                                   .score = w_score,
                                   .top = w_top};

static const void *w_extension(void *ctx, const char *id) {
    (void)ctx;
    if (strcmp(id, KVC_HOST_MATH) == 0) {
        return w.no_math ? NULL : &math;
    }
    return strcmp(id, KVC_HOST_STORE) == 0 && !w.no_store ? &store : NULL;
}

static const kvc_host host = {.struct_size = sizeof host,
                              .abi = KVC_POLICY_ABI,
                              .realloc = w_realloc,
                              .fail = w_fail,
                              .parallel_for = w_for,
                              .extension = w_extension};

static const kvc_policy *policy(void) {
    return kvc_policy_entry(KVC_POLICY_ABI, 0);
}

static int32_t make(const kvc_value *value, void **self) {
    kvc_layer_shape layer[N_LAYER];
    kvc_plan plan = {.struct_size = sizeof plan};
    for (uint32_t i = 0; i < w.n_layer; i++) {
        layer[i] = (kvc_layer_shape){.struct_size = sizeof layer[i],
                                     .n_head = w.n_head * w.n_group,
                                     .n_head_kv = w.n_head,
                                     .dim_k = dim_of(i),
                                     .dim_v = dim_of(i),
                                     .window = w.window,
                                     .scale = 1};
    }
    const kvc_shape shape = {.struct_size = sizeof shape,
                             .n_layer = w.n_layer,
                             .n_ctx = w.n_ctx,
                             .n_thread = 1,
                             .layer_stride = sizeof layer[0],
                             .layer = layer};
    *self = NULL;
    const int32_t rc = policy()->api->create(&host, &shape, value, &plan, self);
    ck_assert(rc < 0 || plan.answers == KVC_ANSWERS_WHICH);
    return rc;
}

static void drop(void *self) {
    if (self != NULL) {
        policy()->api->destroy(self);
    }
    ck_assert_int_eq(w.balance, 0);
}

/* A world of whole numbers from -3 to 3. */
static void world(uint32_t n_layer, uint32_t n_head, uint32_t n_group, uint32_t dim,
                  uint64_t seed) {
    rng = seed * 0x9e3779b97f4a7c15u + 1;
    w.n_layer = n_layer;
    w.n_head = n_head;
    w.n_group = n_group;
    w.dim = dim;
    w.window = w.n_past = w.freed = 0;
    w.fail_status = KVC_OK;
    w.allocations_left = -1;
    w.no_store = w.no_math = false;
    w.most_dim = 1024;
    w.kern = NULL;
    w.odd_dim = 0;
    w.n_ctx = N_PAGE * KVC_PAGE;
    for (uint32_t i = 0; i < n_layer * n_head * w.n_ctx; i++) {
        float *k = w.key[i / w.n_ctx / n_head][i / w.n_ctx % n_head][i % w.n_ctx];
        for (uint32_t d = 0; d < dim; d++) {
            k[d] = (float)below(7) - 3;
        }
    }
}

/* Appends n tokens as the engine would: a tick in each layer at the end of each page. */
static void append(void *self, uint32_t n) {
    for (; n > 0; n--) {
        w.n_past++;
        const kvc_step step = {.struct_size = sizeof step, .n = 1, .pos = (int32_t)w.n_past - 1};
        for (uint32_t i = 0; i < w.n_layer && w.n_past % KVC_PAGE == 0; i++) {
            ck_assert_int_eq(policy()->api->page_end(self, &step, i), KVC_OK);
        }
    }
}

/* ---------------------------------------------------------------- the rule, written plainly */

/* The greatest bound of a block of the page for a head of the group. */
static double bound_of(const float *q, uint32_t layer, uint32_t head, uint32_t page,
                       int64_t block) {
    double best = -INFINITY;
    for (uint32_t b = 0; b < KVC_PAGE * w.n_group; b += (uint32_t)block) {
        const uint32_t h = b / KVC_PAGE, first = page * KVC_PAGE + b % KVC_PAGE;
        double sum = 0;
        for (uint32_t d = 0; d < dim_of(layer); d++) {
            double least = INFINITY, most = -INFINITY;
            for (uint32_t i = 0; i < block; i++) {
                const double k = w.key[layer][head][first + i][d];
                least = k < least ? k : least;
                most = k > most ? k : most;
            }
            const double x = q[h * dim_of(layer) + d];
            sum += x * least > x * most ? x * least : x * most;
        }
        best = sum > best ? sum : best;
    }
    return best;
}

/* Takes the best page again and again; of equal ones the latest. */
static void rule(const kvc_value *v, const float *q, uint32_t layer, uint32_t head, int32_t pos,
                 uint32_t n_page, uint64_t *page) {
    double score[N_PAGE];
    uint32_t c0 = 0, taken = 0;
    while (w.window != 0 && c0 < n_page &&
           (int64_t)(c0 + 1) * KVC_PAGE <= pos + 1 - (int64_t)w.window) {
        c0++;
    }
    const int64_t n = n_page - c0;
    int64_t want = (int64_t)ceil((double)(n * v[SHARE].i) / 100.0);
    want = want < v[LEAST].i ? v[LEAST].i : want;
    for (uint32_t i = c0; i < n_page; i++) {
        const bool always = i < v[FIRST].i || n_page - i <= v[RECENT].i;
        score[i] = always ? INFINITY : bound_of(q, layer, head, i, v[BLOCK].i);
        taken += always;
    }
    want = want < taken ? taken : want;
    want = want < n ? want : n;
    memset(page, 0, 2 * sizeof *page);
    for (; want > 0; want--) {
        uint32_t best = UINT32_MAX;
        for (uint32_t i = c0; i < n_page; i++) {
            if ((page[i / 64] >> (i % 64) & 1) == 0 &&
                (best == UINT32_MAX || score[i] >= score[best])) {
                best = i;
            }
        }
        page[best / 64] |= (uint64_t)1 << (best % 64);
    }
}

/* What the policy chooses for a query in the open page, of those that it sees. */
static void chosen(void *self, const float *q, uint32_t layer, uint32_t head, uint32_t phase,
                   uint64_t *page) {
    const int32_t pos = (int32_t)w.n_past;
    const uint32_t n_page = w.n_past / KVC_PAGE;
    const kvc_rows rows = {.struct_size = sizeof rows,
                           .layer = layer,
                           .head = head,
                           .n = 1,
                           .pos = &pos,
                           .q = q,
                           .q_stride = w.n_group * dim_of(layer),
                           .phase = phase};
    memset(page, 0, 2 * sizeof *page);
    for (uint32_t i = 0; i < n_page; i++) {
        page[i / 64] |= (uint64_t)1 << (i % 64);
    }
    ck_assert_int_eq(policy()->api->select(self, &rows, page, n_page), KVC_OK);
    for (uint32_t i = 0; w.window != 0 && i < n_page; i++) {
        if ((int64_t)(i + 1) * KVC_PAGE <= pos + 1 - (int64_t)w.window) {
            page[i / 64] &= ~((uint64_t)1 << (i % 64)); /* not seen, whatever is answered */
        }
    }
}

/* Some queries of every lane against the rule. */
static void check_choices(void *self, const kvc_value *v, int n) {
    float q[MOST_GROUP * MOST_DIM];
    uint64_t got[2], want[2];
    const uint32_t n_page = w.n_past / KVC_PAGE;
    for (uint32_t lane = 0; lane < w.n_layer * w.n_head * (uint32_t)n; lane++) {
        const uint32_t layer = lane % w.n_layer, head = lane / w.n_layer % w.n_head;
        for (uint32_t d = 0; d < w.n_group * dim_of(layer); d++) {
            q[d] = (float)below(9) - 4;
        }
        chosen(self, q, layer, head, KVC_PHASE_DECODE, got);
        rule(v, q, layer, head, (int32_t)w.n_past, n_page, want);
        ck_assert_msg(got[0] == want[0] && got[1] == want[1],
                      "layer %u, head %u, %u pages: %llx %llx, not %llx %llx", layer, head, n_page,
                      (unsigned long long)got[1], (unsigned long long)got[0],
                      (unsigned long long)want[1], (unsigned long long)want[0]);
    }
}

static const struct {
    uint32_t n_head, n_group, dim, window;
    int64_t value[6]; /* share, least, first, recent, dense, block */
} cases[] = {
    {3, 3, 64, 0, {25, 4, 1, 1, 0, 16}},  {1, 1, 4, 0, {25, 1, 0, 0, 0, 64}},
    {2, 2, 80, 0, {10, 0, 0, 0, 0, 8}},   {1, 3, 16, 0, {1, 1, 0, 0, 0, 32}},
    {1, 1, 8, 0, {50, 0, 3, 5, 0, 1}},    {2, 1, 12, 0, {0, 0, 2, 0, 0, 16}},
    {2, 1, 12, 0, {0, 0, 0, 0, 0, 16}},   {1, 2, 20, 500, {25, 1, 1, 1, 0, 16}},
    {1, 1, 20, 129, {50, 0, 0, 0, 0, 4}}, {1, 1, 3, 1, {50, 1, 0, 0, 0, 2}},
    {1, 1, 4, 0, {90, 1, 0, 0, 0, 64}},
};

static void values(int i, kvc_value v[N_PARAM]) {
    for (int j = 0; j < 6; j++) {
        v[j].i = cases[i].value[j];
    }
    v[PROMPT].i = 0;
}

START_TEST(choices_are_those_of_the_paper) {
    kvc_value v[N_PARAM];
    void *self;
    world(N_LAYER, cases[_i].n_head, cases[_i].n_group, cases[_i].dim, (uint64_t)_i);
    w.window = cases[_i].window;
    values(_i, v);
    ck_assert_int_eq(make(v, &self), KVC_OK);
    for (uint32_t page = 0; page < N_PAGE; page++) {
        check_choices(self, v, page > 20 ? 1 : 3);
        append(self, KVC_PAGE);
        /* What no query sees any more is freed. */
        const int64_t unseen = (int64_t)w.n_past + 1 - w.window;
        w.freed = w.window != 0 && unseen > 0 ? (uint32_t)unseen / KVC_PAGE : 0;
    }
    drop(self);
}
END_TEST

/* Layers of two widths, of which one fills no whole row, share what they work in. */
START_TEST(layers_may_differ) {
    kvc_value v[N_PARAM];
    void *self;
    world(N_LAYER, 2, 2, 8, 13);
    w.odd_dim = 3;
    values(0, v);
    ck_assert_int_eq(make(v, &self), KVC_OK);
    for (uint32_t page = 0; page < 20; page++) {
        append(self, KVC_PAGE);
        check_choices(self, v, 3);
    }
    drop(self);
}
END_TEST

/* The host packs as the engine does, with float queries or with rounded ones; 0: without rounding.
 */
static void pack_like(int how) {
    w.kern = how > 0 ? kvc__kern_get() : NULL;
    w.int8 = how > 1;
}

/* A number that is far from all others must be found, at any page. */
START_TEST(the_needle_is_found) {
    kvc_value v[N_PARAM];
    void *self;
    float q[MOST_DIM] = {0};
    uint64_t got[2];
    world(1, 1, 1, 16, 5);
    pack_like(_i % 3);
    values(1, v);
    w.key[0][0][(uint32_t)_i * KVC_PAGE + 33][7] = -100;
    ck_assert_int_eq(make(v, &self), KVC_OK);
    append(self, N_PAGE * KVC_PAGE);
    q[7] = -1;
    v[SHARE].i = 1;
    chosen(self, q, 0, 0, KVC_PHASE_DECODE, got);
    ck_assert((got[_i / 64] >> (_i % 64) & 1) != 0);
    drop(self);
}
END_TEST

START_TEST(prompts_and_dense_layers_read_everything) {
    static const uint32_t phase[] = {KVC_PHASE_PROMPT, KVC_PHASE_PROMPT_END, KVC_PHASE_DECODE};
    const float q[MOST_DIM] = {1};
    kvc_value v[N_PARAM];
    void *self;
    world(N_LAYER, 1, 1, 8, 1);
    values(1, v);
    v[DENSE].i = 2;
    for (int prompt = 0; prompt < 2; prompt++) {
        uint64_t n_read = 0;
        v[PROMPT].i = prompt;
        w.n_past = 0;
        ck_assert_int_eq(make(v, &self), KVC_OK);
        append(self, 8 * KVC_PAGE + 5);
        for (uint32_t i = 0; i < 3 * N_LAYER; i++) {
            uint64_t got[2];
            const bool chooses = i / 3 == 2 && (prompt == 1 || i % 3 == 2);
            chosen(self, q, i / 3, 0, phase[i % 3], got);
            ck_assert_int_eq(__builtin_popcountll(got[0]), chooses ? 2 : 8);
            n_read += chooses ? 2 : 8;
        }
        kvc_claims claims = {.struct_size = sizeof claims};
        ck_assert_int_eq(policy()->api->stats(self, &claims), KVC_OK);
        ck_assert_uint_eq(claims.n_selected, n_read);
        ck_assert_uint_eq(claims.n_skipped, 8 * 3 * N_LAYER - n_read);
        drop(self);
    }
}
END_TEST

/* Going back forgets what is not there any more, and nothing else is needed. */
START_TEST(going_back_takes_new_bounds) {
    static const uint32_t to[] = {0, 1, 63, 64, 65, 200, 639, 640};
    kvc_value v[N_PARAM];
    void *self;
    world(N_LAYER, 2, 2, 16, 9);
    values(0, v);
    ck_assert_int_eq(make(v, &self), KVC_OK);
    append(self, 700);
    for (size_t t = 0; t < sizeof to / sizeof *to; t++) {
        w.n_past = to[t];
        ck_assert_int_eq(policy()->api->truncate(self, (int32_t)to[t]), KVC_OK);
        for (uint32_t i = 0; i < N_LAYER * 2; i++) {
            for (uint32_t pos = to[t]; pos < 700; pos++) {
                for (uint32_t d = 0; d < w.dim; d++) { /* each page of another size */
                    const uint32_t size = 1 + (pos / KVC_PAGE * 5 + d + (uint32_t)t * 3) % 7;
                    w.key[i / 2][i % 2][pos][d] = (float)below(1 + 2 * size) - (float)size;
                }
            }
        }
        append(self, 700 - to[t]);
        check_choices(self, v, 5);
    }
    drop(self);
}
END_TEST

/* A fork has no bounds: begin() takes them of what is there. */
START_TEST(forks_take_bounds_of_what_is_there) {
    kvc_value v[N_PARAM];
    void *self;
    int32_t from = 700;
    const kvc_step step = {.struct_size = sizeof step, .n = 1, .pos = 700};
    world(N_LAYER, 2, 2, 16, 11);
    values(0, v);
    w.n_past = 700;
    ck_assert_int_eq(make(v, &self), KVC_OK);
    w.fail_page = 4;
    w.fail_status = KVC_E_IO;
    ck_assert_int_eq(policy()->api->begin(self, &step, &from), KVC_E_IO);
    w.fail_status = KVC_E_LOST;
    ck_assert_int_eq(policy()->api->begin(self, &step, &from), KVC_OK);
    ck_assert_int_eq(from, 4 * KVC_PAGE); /* it has to be computed again */
    w.n_past = (uint32_t)from;
    ck_assert_int_eq(policy()->api->truncate(self, from), KVC_OK);
    w.fail_status = KVC_OK;
    check_choices(self, v, 3);
    append(self, 300);
    check_choices(self, v, 3);
    w.fail_page = 9;
    w.fail_status = KVC_E_IO;
    const kvc_step tick = {.struct_size = sizeof tick, .n = 1, .pos = 639};
    w.n_past = 640;
    ck_assert_int_eq(policy()->api->page_end(self, &tick, 0), KVC_E_IO);
    drop(self);
}
END_TEST

/* Pages that nothing is known of are read; what isn't a number does no harm. */
START_TEST(odd_numbers_and_unknown_pages) {
    kvc_value v[N_PARAM];
    void *self;
    uint64_t got[2];
    float q[MOST_DIM] = {1, NAN, INFINITY, -INFINITY};
    world(1, 1, 1, 4, 3);
    pack_like(_i);
    values(1, v);
    v[SHARE].i = 50;
    w.key[0][0][3][1] = NAN;
    w.key[0][0][70][2] = INFINITY;
    w.key[0][0][200][3] = -INFINITY;
    ck_assert_int_eq(make(v, &self), KVC_OK);
    append(self, 10 * KVC_PAGE);
    for (int i = 0; i < 5; i++) {
        chosen(self, q, 0, 0, KVC_PHASE_DECODE, got);
        ck_assert_int_eq(__builtin_popcountll(got[0]), 5);
        ck_assert(i > 0 || got[0] == 0x3e0);        /* all are equal: the later */
        ck_assert(i < 4 || (got[0] >> 1 & 1) == 1); /* 0 times infinity is read */
        q[i % 4] = i == 2 ? 0 : 1;
    }
    w.n_past += 2 * KVC_PAGE; /* and no tick */
    chosen(self, q, 0, 0, KVC_PHASE_DECODE, got);
    ck_assert_int_eq(__builtin_popcountll(got[0]), 6);
    ck_assert_uint_eq(got[0] >> 10, 3);
    drop(self);
}
END_TEST

/* Nothing can be promised of a key that isn't finite, so its page is read, whatever the query. */
START_TEST(keys_that_are_not_finite_are_read) {
    static const float odd[] = {INFINITY, -INFINITY};
    kvc_value v[N_PARAM];
    void *self;
    world(1, 1, 1, 4, 3);
    values(1, v);
    for (int i = 0; i < 16; i++) {
        uint64_t got[2];
        float q[4] = {0};
        pack_like(1 + i % 2);
        q[2] = i / 2 % 2 == 0 ? 1 : -1;
        q[1] = i / 8 == 0 ? 0 : 3;
        w.key[0][0][70][2] = odd[i / 4 % 2];
        w.n_past = 0;
        ck_assert_int_eq(make(v, &self), KVC_OK);
        append(self, 10 * KVC_PAGE);
        chosen(self, q, 0, 0, KVC_PHASE_DECODE, got);
        ck_assert_msg((got[0] >> 1 & 1) == 1, "case %d: pages %llx", i, (unsigned long long)got[0]);
        drop(self);
    }
}
END_TEST

START_TEST(what_it_refuses) {
    kvc_value v[N_PARAM];
    void *self;
    world(N_LAYER, 2, 1, 8, 1);
    values(0, v);
    v[BLOCK].i = 24;
    ck_assert_int_eq(make(v, &self), KVC_E_PARAM);
    ck_assert_ptr_nonnull(strstr(w.said, "block must divide a page"));
    drop(self);
    v[BLOCK].i = 16;
    w.no_store = true;
    ck_assert_int_eq(make(v, &self), KVC_E_UNSUPPORTED);
    drop(self);
    w.no_store = false;
    w.no_math = true;
    ck_assert_int_eq(make(v, &self), KVC_E_UNSUPPORTED);
    drop(self);
    w.no_math = false;
    w.most_dim = 12; /* two bounds of 8 elements are 16 */
    ck_assert_int_eq(make(v, &self), KVC_E_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(w.said, "can't pack the bounds"));
    drop(self);
    v[DENSE].i = N_LAYER; /* then there are none */
    ck_assert_int_eq(make(v, &self), KVC_OK);
    drop(self);
    v[DENSE].i = 0;
    w.most_dim = 16;
    int n = 0;
    for (int32_t rc = KVC_E_NOMEM; rc == KVC_E_NOMEM; n++) {
        w.allocations_left = n;
        rc = make(v, &self);
        ck_assert(rc == KVC_E_NOMEM || rc == KVC_OK);
        drop(self);
    }
    ck_assert_int_eq(n, 6);
}
END_TEST

/* ---------------------------------------------------------------- sessions */

#define N      700u
#define WANTED 600u

static void logits_of(kvc_model *m, const char *spec, float *out) {
    static int32_t token[N];
    const uint32_t vocab = util_vocab(m);
    util_tokens(token, N, vocab, 3);
    kvc_session *s = util_session(m, spec, "f32", N);
    util_feed(s, token, N, WANTED, N, vocab, out);
    kvc_session_close(s);
}

START_TEST(all_pages_are_full) {
    static const char *const pairs[][2] = {
        {"quest:share=100", "full"},
        {"quest:share=0:least=100:dense=0", "full"},
        {"quest:share=1:dense=99", "full"},
        {"quest:share=100:dense=0:prompt=on+quant8", "quant8"},
        {"quest:share=20:dense=0:least=1+quant8+offload:hot=2M",
         "quest:share=20:dense=0:least=1+quant8"},
    };
    const size_t n = sizeof pairs / sizeof *pairs;
    kvc_model *m = util_model("tiny-q8_0.gguf", 2, 0);
    const uint32_t vocab = util_vocab(m);
    float *a = malloc((N - WANTED) * vocab * sizeof *a),
          *b = malloc((N - WANTED) * vocab * sizeof *b);
    for (size_t i = 0; i < n; i++) {
        logits_of(m, pairs[i][0], a);
        logits_of(m, pairs[i][1], b);
        util_same(a, b, N - WANTED, vocab, pairs[i][0]);
    }
    logits_of(m, "full", b);
    logits_of(m, "quest:share=20:dense=0:least=1", a);
    ck_assert(memcmp(a, b, (N - WANTED) * vocab * sizeof *a) != 0);
    free(a);
    free(b);
    kvc_model_close(m);
}
END_TEST

/* Logits are asked for in the middle of a prompt: those tokens choose their pages, those behind
 * them read everything again, in one call as in many. */
START_TEST(phases_do_not_depend_on_calls) {
    enum { FIRST_WANTED = 576, END_WANTED = 590, LAST = 620 };
    static int32_t token[LAST];
    static uint8_t want[LAST];
    static const uint32_t chunks[] = {LAST, 64, 1};
    kvc_model *m = util_model("tiny-q8_0.gguf", 2, 0);
    const uint32_t vocab = util_vocab(m);
    float *first = malloc(vocab * sizeof *first);
    util_tokens(token, LAST, vocab, 3);
    for (uint32_t i = 0; i < LAST; i++) {
        want[i] = (i >= FIRST_WANTED && i < END_WANTED) || i + 1 == LAST;
    }
    for (int c = 0; c < 3; c++) {
        kvc_session *s = util_session(m, "quest:share=10:least=1:dense=0", "f32", LAST);
        for (uint32_t i = 0; i < LAST; i += chunks[c]) {
            kvc_run run = {.struct_size = sizeof run,
                           .wants = KVC_WANT_LIST,
                           .session = s,
                           .token = token + i,
                           .want = want + i,
                           .n_token = chunks[c] < LAST - i ? chunks[c] : LAST - i};
            ck_assert_int_eq(kvc_decode(&run, 1, sizeof run), KVC_OK);
            if (i + run.n_token == LAST && c == 0) {
                memcpy(first, kvc_session_logits(s, run.n_logits - 1), vocab * sizeof *first);
            } else if (i + run.n_token == LAST) {
                util_same(first, kvc_session_logits(s, run.n_logits - 1), 1, vocab, "phases");
            }
        }
        kvc_session_close(s);
    }
    free(first);
    kvc_model_close(m);
}
END_TEST

/* Pages that a tier brings back while n tokens follow a prompt of two thousand. */
static uint64_t n_brought(kvc_model *m, const char *spec, uint32_t n) {
    enum { PROMPT_TOKENS = 2000 };
    static int32_t token[PROMPT_TOKENS];
    kvc_stage_stats before = {.struct_size = sizeof before}, after = before;
    util_tokens(token, PROMPT_TOKENS, util_vocab(m), 3);
    kvc_session *s = util_session(m, spec, "f32", 2048);
    ck_assert_int_eq(kvc_session_decode(s, token, PROMPT_TOKENS), KVC_OK);
    ck_assert_int_eq(kvc_session_get_stage(s, 2, &before), KVC_OK);
    for (uint32_t i = 0; i < n; i++) {
        ck_assert_int_eq(kvc_session_decode(s, token + i, 1), KVC_OK);
    }
    ck_assert_int_eq(kvc_session_get_stage(s, 2, &after), KVC_OK);
    kvc_session_close(s);
    return after.n_get - before.n_get;
}

/* Of a tier's pages the chosen ones alone are brought. */
START_TEST(chosen_pages_alone_are_brought) {
    kvc_model *m = util_model("tiny-q8_0.gguf", 2, 0);
    const uint64_t all = n_brought(m, "quest:share=100:dense=0+quant8+t_tier", 8);
    const uint64_t few =
        n_brought(m, "quest:share=10:dense=0:least=1:first=0:recent=0+quant8+t_tier", 8);
    ck_assert_uint_gt(few, 0);
    ck_assert_msg(few * 4 < all, "%llu of %llu", (unsigned long long)few, (unsigned long long)all);
    kvc_model_close(m);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("quest");
    TCase *tc = tcase_create("quest");
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, choices_are_those_of_the_paper, 0, (int)(sizeof cases / sizeof *cases));
    tcase_add_loop_test(tc, the_needle_is_found, 0, N_PAGE);
    tcase_add_test(tc, prompts_and_dense_layers_read_everything);
    tcase_add_test(tc, going_back_takes_new_bounds);
    tcase_add_test(tc, forks_take_bounds_of_what_is_there);
    tcase_add_test(tc, layers_may_differ);
    tcase_add_loop_test(tc, odd_numbers_and_unknown_pages, 0, 3);
    tcase_add_test(tc, keys_that_are_not_finite_are_read);
    tcase_add_test(tc, what_it_refuses);
    tcase_add_test(tc, all_pages_are_full);
    tcase_add_test(tc, phases_do_not_depend_on_calls);
    tcase_add_test(tc, chosen_pages_alone_are_brought);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
