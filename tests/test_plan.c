/* SPDX-License-Identifier: MIT
 * test_plan.c: plans that break the contract, made by one policy that the test misguides: each is
 * refused by a sentence that names one fault and the stage whose fault it is. */
#include "session_util.h"

#define PLAN "policy 'bent': its plan "

static kvc_policy_api bent_api;
static kvc_codec bent_codec;
static kvc_tier shelf_tier;
static const kvc_host *shelf_host;
static void (*bend)(kvc_plan *plan);

/* What the calls below answer. */
static size_t codec_bytes;
static uint32_t n_field;
static kvc_field field;
static int32_t open_answer;
static const char *open_words;

/* ---------------------------------------------------------------- a policy, and a tier behind it
 */

static size_t bent_page_bytes(void *self, uint32_t layer) {
    (void)self, (void)layer;
    return codec_bytes;
}

static int32_t bent_encode(void *self, const kvc_rows *rows, void *dst) {
    (void)self, (void)rows, (void)dst;
    return KVC_OK;
}

static int32_t bent_decode(void *self, const kvc_page *page, float *k, float *v) {
    (void)self, (void)page, (void)k, (void)v;
    return KVC_OK;
}

static uint32_t bent_fields(void *self, uint32_t layer, kvc_field *out, uint32_t cap) {
    (void)self, (void)layer;
    for (uint32_t i = 0; i < n_field && i < cap; i++) {
        out[i] = field;
    }
    return n_field;
}

static int32_t bent_create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                           kvc_plan *plan, void **self) {
    (void)host, (void)shape, (void)value, (void)self;
    bend(plan);
    return KVC_OK;
}

static uint32_t bent_visible(void *self, uint32_t layer, int32_t pos, kvc_range *out,
                             uint32_t cap) {
    (void)self, (void)layer, (void)pos, (void)out, (void)cap;
    return 0;
}

static int32_t bent_select(void *self, const kvc_rows *query, uint64_t *page, uint32_t n_page) {
    (void)self, (void)query, (void)page, (void)n_page;
    return KVC_OK;
}

static int32_t bent_end(void *self, const kvc_step *step) {
    (void)self, (void)step;
    return KVC_OK;
}

static int32_t shelf_create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                            kvc_plan *plan, void **self) {
    (void)shape, (void)value, (void)self;
    shelf_host = host;
    plan->answers = KVC_ANSWERS_WHERE;
    plan->tier = &shelf_tier;
    return KVC_OK;
}

static int32_t shelf_open(void *self, const kvc_layout *layout) {
    (void)self, (void)layout;
    return open_words != NULL ? (shelf_host->fail)(shelf_host->ctx, open_answer, open_words)
                              : open_answer;
}

static int32_t shelf_put(void *self, kvc_tier_page *page, uint32_t n, uint32_t stride) {
    (void)self, (void)page, (void)n, (void)stride;
    return KVC_OK;
}

static int32_t shelf_get(void *self, kvc_tier_page *page, uint32_t n, uint32_t stride, void *buffer,
                         size_t size) {
    (void)self, (void)page, (void)n, (void)stride, (void)buffer, (void)size;
    return KVC_OK;
}

static void shelf_drop(void *self, const kvc_tier_page *page, uint32_t n, uint32_t stride) {
    (void)self, (void)page, (void)n, (void)stride;
}

#define POLICY(of, functions)                                                                      \
    {                                                                                              \
        .struct_size = sizeof(kvc_policy), .abi = KVC_POLICY_ABI, .abi_min = KVC_POLICY_ABI_MIN,   \
        .name = of, .version = "1.0.0", .summary = "test", .license = "MIT", .api = functions      \
    }

static const kvc_policy *bent_entry(uint32_t host_abi, uint32_t index) {
    static const kvc_policy_api shelf_api = {.struct_size = sizeof shelf_api,
                                             .create = shelf_create};
    static const kvc_policy policy[] = {POLICY("bent", &bent_api), POLICY("shelf", &shelf_api)};
    (void)host_abi;
    return index < 2 ? &policy[index] : NULL;
}

/* Everything as it should be. */
static void straighten(void) {
    bent_api = (kvc_policy_api){.struct_size = sizeof bent_api, .create = bent_create};
    bent_codec = (kvc_codec){.struct_size = sizeof bent_codec,
                             .page_bytes = bent_page_bytes,
                             .encode = bent_encode,
                             .decode = bent_decode,
                             .fields = bent_fields};
    shelf_tier = (kvc_tier){.struct_size = sizeof shelf_tier,
                            .open = shelf_open,
                            .put = shelf_put,
                            .get = shelf_get,
                            .drop = shelf_drop};
    codec_bytes = 4096;
    n_field = 0;
    field = (kvc_field){.kind = KVC_FIELD_FLOAT, .elem = 4, .n = 8, .run = 8, .entry_stride = 64};
    open_answer = KVC_OK;
    open_words = NULL;
}

/* Opening spec answers status and exactly that sentence; KVC_OK: any. */
static void opens_with(const char *spec, int32_t status, const char *sentence) {
    kvc_params *p = params_for(N_CTX, NULL);
    kvc_session *s = NULL;
    ck_assert_int_eq(kvc_params_add_policy(p, bent_entry), KVC_OK);
    const int32_t rc = kvc_session_open(model, spec, p, &s);
    ck_assert_msg(rc == status, "%s: %s, not %s: %s", spec, kvc_status_name(rc),
                  kvc_status_name(status), kvc_params_error(p));
    if (status != KVC_OK) {
        ck_assert_str_eq(kvc_params_error(p), sentence);
    }
    kvc_session_close(s);
    kvc_params_destroy(p);
}

/* ---------------------------------------------------------------- one fault, one sentence */

static void bend_nothing(kvc_plan *plan) {
    (void)plan;
}
static void bend_observe(kvc_plan *plan) {
    plan->observe = 16;
}
static void bend_flags(kvc_plan *plan) {
    plan->flags = 16;
}
static void bend_positions(kvc_plan *plan) {
    plan->positions = 2;
}
static void bend_evicts(kvc_plan *plan) {
    plan->flags = KVC_PLAN_EVICTS;
}
static void bend_visible(kvc_plan *plan) {
    (void)plan;
    bent_api.visible = bent_visible;
}
static void bend_select(kvc_plan *plan) {
    (void)plan;
    bent_api.select = bent_select;
}
static void bend_budget(kvc_plan *plan) {
    plan->answers = KVC_ANSWERS_WHICH;
    plan->flags = KVC_PLAN_EVICTS;
    plan->budget = 512;
}
static void bend_budget_alone(kvc_plan *plan) {
    plan->budget = KVC_BUDGET_PERCENT(25);
}
static void bend_cache(kvc_plan *plan) {
    plan->answers = KVC_ANSWERS_WHICH;
    plan->positions = KVC_POSITIONS_CACHE;
}
static void bend_cache_evicts(kvc_plan *plan) {
    bend_cache(plan);
    plan->flags = KVC_PLAN_EVICTS;
}
static void bend_codec(kvc_plan *plan) {
    plan->codec = &bent_codec;
}
static void bend_format(kvc_plan *plan) {
    kvc_plan_format(plan, 1)->type_k = KVC_TYPE_F32;
}
static void bend_type(kvc_plan *plan) {
    plan->answers = KVC_ANSWERS_FORMAT;
    bend_format(plan);
    kvc_plan_format(plan, 1)->type_v = 9;
}
static void bend_rotation(kvc_plan *plan) {
    plan->answers = KVC_ANSWERS_FORMAT;
    kvc_plan_format(plan, 1)->hadamard_v = 2;
}
static void bend_pages(kvc_plan *plan) {
    plan->answers = KVC_ANSWERS_FORMAT;
    bend_codec(plan);
    codec_bytes = 0;
}
static void bend_large(kvc_plan *plan) {
    bend_pages(plan);
    codec_bytes = 1 << 20;
}
static void bend_decode(kvc_plan *plan) {
    bend_pages(plan);
    bent_codec.decode = NULL;
}
static void bend_where(kvc_plan *plan) {
    plan->answers = KVC_ANSWERS_WHERE;
}
static void bend_tier(kvc_plan *plan) {
    plan->tier = &shelf_tier;
}
static void bend_tier_columns(kvc_plan *plan) {
    bend_where(plan);
    bend_tier(plan);
    plan->n_column = 1;
}
static void bend_tier_end(kvc_plan *plan) {
    bend_where(plan);
    bend_tier(plan);
}
static void bend_tier_get(kvc_plan *plan) {
    bend_where(plan);
    bend_tier(plan);
    shelf_tier.get = NULL;
}

/* end: the policy has one before it is loaded, as the later two have visible() and select(). */
static const struct {
    void (*bend)(kvc_plan *plan);
    const char *words; /* behind PLAN; NULL: the plan is sound */
    int hook;          /* 'v' visible, 's' select, 'e' end, or none */
} plans[] = {
    {bend_nothing, NULL, 0},
    {bend_observe, "has bits to observe that this host doesn't know", 0},
    {bend_flags, "has flags that this host doesn't know", 0},
    {bend_positions, "has positions that this host doesn't know", 0},
    {bend_evicts, "evicts without answering 'which'", 0},
    {bend_visible, "has visible() without answering 'which'", 'v'},
    {bend_select, "has select() without answering 'which'", 's'},
    {bend_budget, "has a budget that KVC_BUDGET() doesn't make", 0},
    {bend_budget_alone, "has a budget without KVC_PLAN_EVICTS", 0},
    {bend_cache, "wants positions in the cache without visible()", 0},
    {bend_cache_evicts, "wants positions in the cache with KVC_PLAN_EVICTS", 'v'},
    {bend_codec, "has a codec without answering 'format'", 0},
    {bend_format, "has a format without answering 'format'", 0},
    {bend_type, "has a type in a format that this host doesn't know", 0},
    {bend_rotation, "has a format whose rotation is neither 0 nor 1", 0},
    {bend_decode, "has a codec without decode", 0},
    {bend_where, "answers 'where' without a tier", 0},
    {bend_tier, "has a tier without answering 'where'", 0},
    {bend_tier_columns, "has a tier, which stands alone, and columns", 0},
    {bend_tier_end, "has a tier, which stands alone, and end()", 'e'},
    {bend_tier_get, "has a tier without get", 0},
};

START_TEST(a_plan_is_refused_for_what_it_is) {
    char sentence[256];
    straighten();
    bend = plans[_i].bend;
    bent_api.visible = plans[_i].hook == 'v' ? bent_visible : NULL;
    bent_api.select = plans[_i].hook == 's' ? bent_select : NULL;
    bent_api.end = plans[_i].hook == 'e' ? bent_end : NULL;
    snprintf(sentence, sizeof sentence, PLAN "%s; the policy must be mended", plans[_i].words);
    opens_with("bent", plans[_i].words != NULL ? KVC_E_POLICY : KVC_OK, sentence);
}
END_TEST

START_TEST(a_size_of_pages_is_named) {
    straighten();
    bend = bend_pages;
    opens_with("bent", KVC_E_POLICY,
               "policy 'bent': its codec's page_bytes answered 0 for layer 0; 1 to 266240 are "
               "taken, so the policy must be mended");
    bend = bend_large;
    opens_with("bent", KVC_E_POLICY,
               "policy 'bent': its codec's page_bytes answered 1048576 for layer 0; 1 to 266240 "
               "are taken, so the policy must be mended");
}
END_TEST

/* ---------------------------------------------------------------- whose fault it is */

static void bend_sound(kvc_plan *plan) {
    plan->answers = KVC_ANSWERS_FORMAT;
    bend_codec(plan);
}

/* A tier whose open() fails is to blame, whoever made the format. */
START_TEST(the_tier_is_blamed_for_open) {
    static const struct {
        int32_t answer, status;
        const char *words, *sentence;
    } cases[] = {
        {KVC_E_POLICY, KVC_E_POLICY, NULL,
         "policy 'shelf' can't be created: open answered KVC_E_POLICY, policy failed or broke its "
         "contract"},
        {KVC_E_POLICY, KVC_E_POLICY, "the shelf is full",
         "policy 'shelf' can't be created: the shelf is full"},
        {KVC_E_IO, KVC_E_IO, NULL,
         "policy 'shelf' can't be created: open answered KVC_E_IO, input or output error"},
        {7, KVC_E_POLICY, NULL, "policy 'shelf': open answered 7, which is no status"},
        {-777, KVC_E_POLICY, NULL, "policy 'shelf': open answered -777, which is no status"},
    };
    static const char *const before[] = {"", "bent+", "quant8+"};
    bend = bend_sound;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (size_t k = 0; k < sizeof before / sizeof *before; k++) {
            char spec[64];
            straighten();
            open_answer = cases[i].answer;
            open_words = cases[i].words;
            snprintf(spec, sizeof spec, "%sshelf", before[k]);
            opens_with(spec, cases[i].status, cases[i].sentence);
        }
    }
}
END_TEST

START_TEST(the_codec_is_blamed_for_fields) {
    bend = bend_sound;
    straighten();
    n_field = 1;
    opens_with("bent+shelf", KVC_OK, NULL);
    n_field = 9;
    opens_with("bent+shelf", KVC_E_POLICY,
               "policy 'bent': its codec's fields() answered 9 for layer 0, of at most 8; the "
               "policy must be mended");
    n_field = 1;
    field.offset = 4064;
    opens_with("bent+shelf", KVC_E_POLICY,
               "policy 'bent': its codec's field 0 of layer 0 leaves the page of 4096 bytes; the "
               "policy must be mended");
    field.elem = 3;
    opens_with("bent+shelf", KVC_E_POLICY,
               "policy 'bent': its codec's field 0 of layer 0 isn't made of whole runs of 1, 2, 4 "
               "or 8 bytes each; the policy must be mended");
    opens_with("bent", KVC_OK, NULL); /* nobody asks */
}
END_TEST

int main(void) {
    Suite *suite = suite_create("plan");
    TCase *tc = add_case(suite, "plan");
    tcase_add_loop_test(tc, a_plan_is_refused_for_what_it_is, 0,
                        (int)(sizeof plans / sizeof *plans));
    tcase_add_test(tc, a_size_of_pages_is_named);
    tcase_add_test(tc, the_tier_is_blamed_for_open);
    tcase_add_test(tc, the_codec_is_blamed_for_fields);
    return run_suite(suite);
}
