/* SPDX-License-Identifier: MIT
 * test_host.c: what the host lends to a policy, as a policy sees it: threads, clock, random
 * numbers, and of the store positions, columns, pages and evictions, with what is refused and the
 * sentence that the user gets. */
#include "session_util.h"

#include <math.h>

/* ---------------------------------------------------------------- a policy that looks around */

/* One call of the host within a hook; its status is the hook's. */
typedef int32_t (*probe_fn)(const kvc_host *host, const kvc_host_store *store, uint32_t layer);

static struct {
    uint32_t flags, observe, n_column; /* of the plan */
    probe_fn create, begin, page_end, end, append, select, stats;
} probe;

static uint32_t n_layer, n_head, n_head_kv;

static int32_t probe_run(probe_fn fn, const kvc_host *host, uint32_t layer) {
    return fn != NULL ? fn(host, host->extension(host->ctx, KVC_HOST_STORE), layer) : KVC_OK;
}

static int32_t probe_create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                            kvc_plan *plan, void **self) {
    (void)value;
    *self = (void *)(uintptr_t)host;
    n_layer = shape->n_layer;
    n_head = kvc_shape_layer(shape, 0)->n_head;
    n_head_kv = kvc_shape_layer(shape, 0)->n_head_kv;
    plan->answers =
        (probe.flags & KVC_PLAN_EVICTS) != 0 || probe.select != NULL ? KVC_ANSWERS_WHICH : 0;
    plan->flags = probe.flags;
    plan->observe = probe.observe;
    plan->n_column = probe.n_column;
    return probe_run(probe.create, host, 0);
}

static int32_t probe_begin(void *self, const kvc_step *step, int32_t *from) {
    (void)step, (void)from;
    return probe_run(probe.begin, self, 0);
}

static int32_t probe_page_end(void *self, const kvc_step *step, uint32_t layer) {
    (void)step;
    return probe_run(probe.page_end, self, layer);
}

static int32_t probe_end(void *self, const kvc_step *step) {
    (void)step;
    return probe_run(probe.end, self, 0);
}

static int32_t probe_append(void *self, const kvc_rows *rows) {
    return probe_run(probe.append, self, rows->layer);
}

static int32_t probe_select(void *self, const kvc_rows *query, uint64_t *page, uint32_t n_page) {
    (void)page, (void)n_page;
    return probe_run(probe.select, self, query->layer);
}

static int32_t probe_stats(void *self, kvc_claims *out) {
    (void)out;
    return probe_run(probe.stats, self, 0);
}

static kvc_policy_api probe_api = {.struct_size = sizeof probe_api,
                                   .create = probe_create,
                                   .begin = probe_begin,
                                   .page_end = probe_page_end,
                                   .end = probe_end,
                                   .append = probe_append,
                                   .stats = probe_stats};

static const kvc_policy *probe_entry(uint32_t host_abi, uint32_t index) {
    static const kvc_policy policy = {.struct_size = sizeof(kvc_policy),
                                      .abi = KVC_POLICY_ABI,
                                      .abi_min = KVC_POLICY_ABI_MIN,
                                      .name = "probe",
                                      .version = "1.0.0",
                                      .summary = "test: looks around",
                                      .license = "MIT",
                                      .api = &probe_api};
    (void)host_abi;
    return index == 0 ? &policy : NULL;
}

static kvc_session *session_of_probe(void) {
    kvc_params *p = params_for(N_CTX, NULL);
    kvc_session *s = NULL;
    probe_api.select = probe.select != NULL ? probe_select : NULL;
    ck_assert_int_eq(kvc_params_add_policy(p, probe_entry), KVC_OK);
    ck_assert_msg(kvc_session_open(model, "probe", p, &s) == KVC_OK, "%s", kvc_params_error(p));
    kvc_params_destroy(p);
    return s;
}

static int n_called;

/* Decodes n tokens; the hooks have called at least once then. */
static void feed(kvc_session *s, uint32_t n) {
    n_called = 0;
    const uint32_t past = kvc_session_n_past(s);
    ck_assert_msg(kvc_session_decode(s, tokens + past, n) == KVC_OK, "%s", kvc_session_error(s));
    ck_assert_int_gt(n_called, 0);
}

static void setup_probe(void) {
    setup();
    memset(&probe, 0, sizeof probe);
    n_called = 0;
}

/* ---------------------------------------------------------------- services */

static atomic_int seen[1000];

static void count_item(void *arg, uint32_t i) {
    ck_assert_ptr_eq(arg, seen);
    atomic_fetch_add(&seen[i], 1);
}

static int32_t use_threads(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    static const uint32_t n[] = {0, 1, 2, 999, 1000};
    (void)store, (void)layer;
    n_called++;
    for (size_t k = 0; k < sizeof n / sizeof *n; k++) {
        memset(seen, 0, sizeof seen);
        (host->parallel_for)(host->ctx, n[k], count_item, seen);
        for (uint32_t i = 0; i < 1000; i++) {
            ck_assert_int_eq(atomic_load(&seen[i]), i < n[k]);
        }
    }
    (host->parallel_for)(host->ctx, 3, NULL, NULL);
    return KVC_OK;
}

static int32_t use_clock(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    (void)store, (void)layer;
    n_called++;
    const uint64_t a = host->clock_ns(host->ctx);
    const struct timespec pause = {0, 2000000};
    nanosleep(&pause, NULL);
    const uint64_t passed = host->clock_ns(host->ctx) - a;
    ck_assert_uint_ge(passed, 2000000);
    ck_assert_uint_lt(passed, UINT64_C(60000000000));
    return KVC_OK;
}

static int32_t use_memory(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    static const size_t bad[] = {0, 3, 48, 8192};
    (void)store, (void)layer;
    n_called++;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert_ptr_null(host->realloc(host->ctx, NULL, 0, 100, bad[i]));
    }
    for (size_t align = 1; align <= 4096; align *= 2) {
        uint8_t *p = host->realloc(host->ctx, NULL, 0, 100, align);
        ck_assert_ptr_nonnull(p);
        ck_assert_uint_eq((uintptr_t)p % align, 0);
        ck_assert_int_eq(p[0] | p[99], 0);
        ck_assert_ptr_null(host->realloc(host->ctx, p, 100, 0, 0));
    }
    return KVC_OK;
}

static int32_t use_extensions(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    (void)layer;
    n_called++;
    ck_assert_ptr_nonnull(store);
    ck_assert_ptr_nonnull(host->extension(host->ctx, KVC_HOST_MATH));
    ck_assert_ptr_nonnull(host->extension(host->ctx, KVC_HOST_FILE));
    ck_assert_ptr_null(host->extension(host->ctx, "kvc.host.none/1"));
    ck_assert_ptr_null(host->extension(host->ctx, ""));
    ck_assert_ptr_null(host->extension(host->ctx, NULL));
    return KVC_OK;
}

START_TEST(services_do_what_they_say) {
    static const probe_fn use[] = {use_threads, use_clock, use_memory, use_extensions};
    probe.end = use[_i];
    kvc_session *s = session_of_probe();
    feed(s, 64);
    kvc_session_close(s);
}
END_TEST

/* ---- bytes that are accounted for: sums that can't be are cut off, and told once */

static int n_warned;
static char warned[256], logged[2000];

static void keep_warning(void *user, uint32_t level, const char *text) {
    (void)user;
    if (level == KVC_LOG_WARN) {
        n_warned++;
        snprintf(warned, sizeof warned, "%.255s", text);
        snprintf(logged, sizeof logged, "%s", text);
    }
}

static uint32_t account_kind;
static int64_t account_delta[4];

static int32_t account_all(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    (void)store, (void)layer;
    for (int i = 0; i < 4; i++) {
        host->account(host->ctx, account_kind, account_delta[i]);
    }
    return KVC_OK;
}

START_TEST(no_sum_of_bytes_is_negative) {
    static const struct {
        int64_t delta[4];
        uint64_t sum;
        const char *words; /* of the warning when the session is closed, or NULL */
    } sums[] = {
        {{0, 0, 0, 0}, 0, NULL},
        {{-1000, 1000, -24, 24}, 0, NULL},
        {{-1, 0, 0, 0}, 0, "comes to -1 bytes"},
        {{5, -1000000000, 0, 0}, 0, "comes to -999999995 bytes"},
        {{INT64_MIN, 0, 0, 0}, 0, "comes to -9223372036854775808 bytes"},
        {{INT64_MAX, 0, 0, 0}, UINT64_C(1) << 56, "didn't give back 72057594037927936 bytes"},
    };
    for (size_t i = 0; i < 2 * sizeof sums / sizeof *sums; i++) {
        const bool disk = i % 2 != 0;
        const bool warns = sums[i / 2].words != NULL && (!disk || sums[i / 2].sum == 0);
        kvc_stage_stats stage = {.struct_size = sizeof stage};
        kvc_params *p = params_for(N_CTX, NULL);
        kvc_session *s = session_of_probe();
        const uint64_t counted = stats_of(s).kv_bytes;
        kvc_session_close(s);
        probe.create = account_all;
        account_kind = disk ? KVC_BYTES_DISK : KVC_BYTES_MEMORY;
        memcpy(account_delta, sums[i / 2].delta, sizeof account_delta);
        n_warned = 0;
        ck_assert_int_eq(kvc_params_add_policy(p, probe_entry), KVC_OK);
        ck_assert_int_eq(kvc_params_set_log(p, keep_warning, NULL), KVC_OK);
        ck_assert_int_eq(kvc_session_open(model, "probe", p, &s), KVC_OK);
        ck_assert_int_eq(kvc_session_get_stage(s, 0, &stage), KVC_OK);
        ck_assert_uint_eq(disk ? stage.disk_bytes : stage.memory_bytes, sums[i / 2].sum);
        ck_assert_uint_eq(disk ? stage.memory_bytes : stage.disk_bytes, 0);
        ck_assert_uint_eq(stats_of(s).kv_bytes, counted + (disk ? 0 : sums[i / 2].sum));
        ck_assert_uint_eq(stats_of(s).disk_bytes, disk ? sums[i / 2].sum : 0);
        ck_assert_int_eq(n_warned, 0);
        kvc_session_close(s);
        ck_assert_int_eq(n_warned, warns);
        if (warns) {
            has(warned, "policy 'probe' ");
            has(warned, sums[i / 2].words);
        }
        kvc_params_destroy(p);
        probe.create = NULL;
    }
}
END_TEST

static int32_t log_anything(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    char line[3000];
    (void)store, (void)layer;
    memset(line, 'x', sizeof line);
    line[sizeof line - 1] = '\0';
    host->log(host->ctx, KVC_LOG_WARN, NULL);
    host->log(host->ctx, KVC_LOG_WARN, line);
    ck_assert_uint_eq(strlen(logged), 1023);
    host->log(host->ctx, KVC_LOG_WARN, "a\nb\033[31m\xff\xc2\x9b%s%n\xe2\x82\xac");
    ck_assert_str_eq(logged, "a?b?[31m???%s%n\xe2\x82\xac");
    return KVC_OK;
}

START_TEST(a_log_line_is_text) {
    kvc_params *p = params_for(N_CTX, NULL);
    kvc_session *s = NULL;
    probe.create = log_anything;
    ck_assert_int_eq(kvc_params_add_policy(p, probe_entry), KVC_OK);
    ck_assert_int_eq(kvc_params_set_log(p, keep_warning, NULL), KVC_OK);
    ck_assert_int_eq(kvc_session_open(model, "probe", p, &s), KVC_OK);
    ck_assert_int_eq(n_warned, 2);
    kvc_session_close(s);
    kvc_params_destroy(p);
}
END_TEST

/* Where the engine's threads are at work already, all is done by the one that calls. */
typedef struct crew {
    const kvc_host *host;
    pthread_t caller;
    atomic_uint n, n_strange;
    uint32_t depth;
} crew;

static atomic_uint n_crew;

static void crew_item(void *arg, uint32_t i) {
    crew *c = arg;
    (void)i;
    atomic_fetch_add(&c->n, 1);
    atomic_fetch_add(&c->n_strange, !pthread_equal(c->caller, pthread_self()));
    if (c->depth > 0) {
        crew in = {.host = c->host, .caller = pthread_self(), .depth = c->depth - 1};
        (c->host->parallel_for)(c->host->ctx, 3, crew_item, &in);
        ck_assert_uint_eq(atomic_load(&in.n), 3);
        ck_assert_uint_eq(atomic_load(&in.n_strange), 0);
    }
}

static int32_t use_crew(const kvc_host *host, bool alone, uint32_t depth) {
    crew c = {.host = host, .caller = pthread_self(), .depth = depth};
    (host->parallel_for)(host->ctx, 50, crew_item, &c);
    ck_assert_uint_eq(atomic_load(&c.n), 50);
    ck_assert(!alone || atomic_load(&c.n_strange) == 0);
    atomic_fetch_add(&n_crew, 1);
    return KVC_OK;
}

static int32_t crew_in_worker(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    (void)store, (void)layer;
    return use_crew(host, true, 1);
}

static int32_t crew_in_decode(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    (void)store, (void)layer;
    return use_crew(host, false, 2);
}

/* append(), select(), page_end(), and stats() while nobody computes. */
START_TEST(threads_can_be_asked_for_anywhere) {
    probe_fn *const hook[] = {&probe.append, &probe.select, &probe.page_end, &probe.stats};
    kvc_stage_stats st = {.struct_size = sizeof st};
    *hook[_i] = _i < 2 ? crew_in_worker : crew_in_decode;
    atomic_store(&n_crew, 0);
    kvc_session *s = session_of_probe();
    for (int i = 0; i < 4; i++) {
        ck_assert_msg(kvc_session_decode(s, tokens + i * 64, 64) == KVC_OK, "%s",
                      kvc_session_error(s));
    }
    ck_assert_int_eq(kvc_session_get_stage(s, 0, &st), KVC_OK);
    ck_assert_uint_gt(atomic_load(&n_crew), 0);
    kvc_session_close(s);
}
END_TEST

/* ---------------------------------------------------------------- entries */

static uint32_t n_want; /* entries that each lane is to have */

static int32_t look_at_entries(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    int32_t pos[N_CTX];
    (void)layer;
    n_called++;
    for (uint32_t i = 0; i < n_layer * n_head_kv; i++) {
        const uint32_t l = i / n_head_kv, h = i % n_head_kv;
        ck_assert_uint_eq(store->count(host->ctx, l, h), n_want);
        ck_assert_int_eq(store->pos(host->ctx, l, h, 0, n_want, pos), KVC_OK);
        for (uint32_t e = 0; e < n_want; e++) {
            ck_assert_int_eq(pos[e], (int32_t)e);
        }
        ck_assert_int_eq(store->pos(host->ctx, l, h, n_want - 3, 1, pos), KVC_OK);
        ck_assert_int_eq(pos[0], (int32_t)n_want - 3);
        ck_assert_int_eq(store->pos(host->ctx, l, h, n_want, 1, pos), KVC_E_RANGE);
        ck_assert_uint_eq(store->entry_bytes(host->ctx, l), 2 * 32 * sizeof(uint16_t));
    }
    ck_assert_uint_eq(store->count(host->ctx, n_layer, 0), 0);
    ck_assert_uint_eq(store->count(host->ctx, 0, n_head_kv), 0);
    ck_assert_uint_eq(store->entry_bytes(host->ctx, n_layer), 0);
    return KVC_OK;
}

START_TEST(entries_have_positions) {
    probe.end = look_at_entries;
    kvc_session *s = session_of_probe();
    for (n_want = 64; n_want <= 256; n_want += 64) {
        feed(s, 64);
    }
    kvc_session_close(s);
}
END_TEST

static int32_t look_too_early(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    int32_t pos[1];
    n_called++;
    ck_assert_uint_eq(store->count(host->ctx, layer, 0), 0);
    ck_assert_uint_eq(store->entry_bytes(host->ctx, layer), 0);
    ck_assert_int_eq(store->pos(host->ctx, layer, 0, 0, 1, pos), KVC_E_RANGE);
    ck_assert_int_eq(store->drop(host->ctx, layer, KVC_ALL, 0, 1), KVC_E_RANGE);
    return KVC_OK;
}

START_TEST(there_is_no_store_yet_in_create) {
    probe.create = look_too_early;
    kvc_session *s = session_of_probe();
    ck_assert_int_eq(n_called, 1);
    kvc_session_close(s);
}
END_TEST

static int32_t look_at_pages(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    int32_t pos[KVC_PAGE];
    (void)layer;
    n_called++;
    for (uint32_t page = 0; page < n_want / KVC_PAGE; page++) {
        ck_assert_int_eq(store->page(host->ctx, 1, 1, page, pos), KVC_PAGE);
        ck_assert_int_eq(pos[0], (int32_t)(page * KVC_PAGE));
        ck_assert_int_eq(pos[63], (int32_t)(page * KVC_PAGE + 63));
    }
    ck_assert_int_eq(store->page(host->ctx, 1, 1, n_want / KVC_PAGE, pos), KVC_E_RANGE);
    ck_assert_int_eq(store->page(host->ctx, 1, n_head_kv, 0, pos), KVC_E_RANGE);
    ck_assert_int_eq(store->page(host->ctx, 1, 1, 0, NULL), KVC_E_ARG);
    return KVC_OK;
}

/* What a tick finds: a full page is sealed, and of no page is more open than came since. */
static int32_t look_at_seal(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    int32_t pos[KVC_PAGE];
    n_called++;
    ck_assert_int_eq(store->page(host->ctx, layer, 0, n_want / KVC_PAGE - 1, pos), KVC_PAGE);
    ck_assert_int_eq(store->drop(host->ctx, layer, KVC_ALL, -5, -5), KVC_OK);
    ck_assert_int_eq(store->drop(host->ctx, layer, KVC_ALL, -5, 0), KVC_OK);
    ck_assert_int_eq(store->drop(host->ctx, layer, KVC_ALL, 5000, 6000), KVC_OK);
    ck_assert_uint_eq(store->count(host->ctx, layer, 0), n_want);
    return KVC_OK;
}

START_TEST(a_full_page_is_sealed_before_the_tick) {
    probe.flags = KVC_PLAN_EVICTS;
    probe.page_end = look_at_seal;
    kvc_session *s = session_of_probe();
    for (n_want = 64; n_want <= 256; n_want += 64) {
        feed(s, 64);
    }
    kvc_session_close(s);
}
END_TEST

START_TEST(pages_have_positions) {
    probe.end = look_at_pages;
    kvc_session *s = session_of_probe();
    for (n_want = 64; n_want <= 256; n_want += 64) {
        feed(s, 64);
    }
    kvc_session_close(s);
}
END_TEST

/* ---------------------------------------------------------------- columns */

/* Own columns are 0 at first. The first gets the position, the second its double. */
static int32_t fill_columns(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    float x[N_CTX];
    int32_t pos[N_CTX];
    n_called++;
    for (uint32_t h = 0; h < n_head_kv; h++) {
        const uint32_t n = store->count(host->ctx, layer, h);
        ck_assert_int_eq(store->pos(host->ctx, layer, h, 0, n, pos), KVC_OK);
        for (uint32_t c = 0; c < 2; c++) {
            ck_assert_int_eq(store->get(host->ctx, layer, h, c, 0, n, x), KVC_OK);
            for (uint32_t e = 0; e < n; e++) {
                const float was = e < n - 64 ? (float)pos[e] * (float)(c + 1) : 0;
                ck_assert_float_eq(x[e], was);
                x[e] = (float)pos[e] * (float)(c + 1);
            }
            ck_assert_int_eq(store->set(host->ctx, layer, h, c, 0, n, x), KVC_OK);
        }
        /* What goes takes its columns along; the rest keeps its own. */
        ck_assert_int_eq(store->drop(host->ctx, layer, h, 20, 40 + (int32_t)h), KVC_OK);
    }
    return KVC_OK;
}

START_TEST(columns_stay_with_their_entries) {
    probe.flags = KVC_PLAN_EVICTS;
    probe.n_column = 2;
    probe.page_end = fill_columns;
    kvc_session *s = session_of_probe();
    for (int i = 0; i < 10; i++) {
        feed(s, 64);
    }
    kvc_session_close(s);
}
END_TEST

/* The probabilities of one query head sum to one: the latest query's at every tick, and those of
 * the queries since the mass was last set. */
static int32_t sum_mass(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    float x[N_CTX];
    const uint32_t n = store->count(host->ctx, layer, 0);
    static const struct {
        uint32_t column;
        float queries;
    } sums[] = {{KVC_COLUMN_MASS_LAST, 1}, {KVC_COLUMN_MASS, 64}};
    n_called++;
    for (int i = 0; i < 2; i++) {
        float sum = 0;
        ck_assert_int_eq(store->get(host->ctx, layer, 0, sums[i].column, 0, n, x), KVC_OK);
        for (uint32_t e = 0; e < n; e++) {
            sum += x[e];
        }
        const float want = sums[i].queries * (float)(n_head / n_head_kv);
        ck_assert_msg(fabsf(sum - want) < 0.001f * want, "%g, not %g", (double)sum, (double)want);
    }
    memset(x, 0, sizeof x);
    ck_assert_int_eq(store->set(host->ctx, layer, 0, KVC_COLUMN_MASS, 0, n, x), KVC_OK);
    ck_assert_int_eq(store->set(host->ctx, layer, 0, KVC_COLUMN_MASS_LAST, 0, n, x), KVC_E_RANGE);
    return KVC_OK;
}

START_TEST(mass_sums_to_one_per_query) {
    probe.flags = KVC_PLAN_EVICTS;
    probe.observe = KVC_OBSERVE_MASS | KVC_OBSERVE_MASS_LAST;
    probe.page_end = sum_mass;
    kvc_session *s = session_of_probe();
    for (int i = 0; i < 4; i++) {
        feed(s, 64);
    }
    kvc_session_close(s);
}
END_TEST

/* ---------------------------------------------------------------- refusals */

static int32_t ask_layer(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    float x[1];
    return store->get(host->ctx, layer + n_layer, 0, 0, 0, 1, x);
}
static int32_t ask_head(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    int32_t pos[1];
    return store->pos(host->ctx, layer, n_head_kv, 0, 1, pos);
}
static int32_t set_layer(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    const float x[1] = {0};
    return store->set(host->ctx, layer + n_layer, 0, 0, 0, 1, x);
}
static int32_t ask_column(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    float x[1];
    return store->get(host->ctx, layer, 0, 2, 0, 1, x);
}
static int32_t ask_mass(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    float x[1];
    return store->get(host->ctx, layer, 0, KVC_COLUMN_MASS, 0, 1, x);
}
static int32_t ask_last(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    float x[1];
    return store->get(host->ctx, layer, 0, KVC_COLUMN_MASS_LAST, 0, 1, x);
}
static int32_t set_column(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    const float x[1] = {0};
    return store->set(host->ctx, layer, 0, 2, 0, 1, x);
}
static int32_t evict(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    return store->drop(host->ctx, layer, KVC_ALL, 0, 1);
}
static int32_t evict_elsewhere(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    return store->drop(host->ctx, layer ^ 1, KVC_ALL, 0, 1);
}
static int32_t keep_nonsense(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    const uint32_t index[] = {2, 1};
    return store->keep(host->ctx, layer, KVC_ALL, index, 2);
}

static int32_t drop_backwards(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    return store->drop(host->ctx, layer, KVC_ALL, 50, 49);
}
static int32_t read_beyond(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    float k[32];
    return store->read(host->ctx, layer, 0, store->count(host->ctx, layer, 0), 1, k, NULL);
}
static int32_t read_far_beyond(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    float k[32];
    return store->read(host->ctx, layer, 0, UINT32_MAX - 1, 4, k, NULL);
}
static int32_t pos_beyond(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    int32_t pos[65];
    return store->pos(host->ctx, layer, 0, 0, 65, pos);
}
static int32_t get_nowhere(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    return store->get(host->ctx, layer, 0, 0, 0, 1, NULL);
}
static int32_t page_beyond(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    int32_t pos[KVC_PAGE];
    return store->page(host->ctx, layer, 0, 99, pos);
}
static int32_t evict_no_head(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    return store->drop(host->ctx, layer, n_head_kv, 0, 1);
}
static int32_t positive(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    (void)host, (void)store, (void)layer;
    return 5;
}

#define NO_LANE   "there is no such layer or head in the store"
#define NO_COLUMN "there is no such column: set n_column or KVC_OBSERVE_MASS in the plan"

static const struct {
    probe_fn begin, page_end;
    uint32_t flags;
    const char *words;
} refusals[] = {
    {NULL, ask_layer, 0, NO_LANE},
    {NULL, ask_head, 0, NO_LANE},
    {NULL, set_layer, 0, NO_LANE},
    {NULL, ask_column, 0, NO_COLUMN},
    {NULL, set_column, 0, NO_COLUMN},
    {NULL, ask_mass, 0, NO_COLUMN},
    {NULL, ask_last, 0, NO_COLUMN},
    {NULL, evict, 0, "evicting needs KVC_PLAN_EVICTS in the plan"},
    {evict, NULL, KVC_PLAN_EVICTS, "evicting is for page_end() and end() alone"},
    {NULL, evict_elsewhere, KVC_PLAN_EVICTS, "page_end() may evict in its own layer alone"},
    {NULL, keep_nonsense, KVC_PLAN_EVICTS, "keep() wants ascending numbers below count()"},
    {NULL, drop_backwards, KVC_PLAN_EVICTS, "drop() wants a first position that isn't beyond its"},
    {NULL, read_beyond, 0, "there are fewer live entries"},
    {NULL, read_far_beyond, 0, "there are fewer live entries"},
    {NULL, pos_beyond, 0, "there are fewer live entries"},
    {NULL, get_nowhere, 0, "entries that are read or written want a place"},
    {NULL, page_beyond, 0, "there is no such sealed page in the lane"},
    {NULL, evict_no_head, KVC_PLAN_EVICTS, NO_LANE},
    {NULL, positive, 0, "it answered 5, which is no status"},
    {positive, NULL, 0, "it answered 5, which is no status"},
};

/* A refusal that the policy passes on is the user's to read. */
START_TEST(refusals_reach_the_user) {
    probe.n_column = 2;
    probe.flags = refusals[_i].flags;
    probe.begin = refusals[_i].begin;
    probe.page_end = refusals[_i].page_end;
    kvc_session *s = session_of_probe();
    ck_assert_int_eq(kvc_session_decode(s, tokens, 64), KVC_E_POLICY);
    has(kvc_session_error(s), "policy 'probe' failed in ");
    has(kvc_session_error(s), refusals[_i].words);
    kvc_session_close(s);
}
END_TEST

/* Heads and layers that aren't there. */
static int32_t evict_nowhere(const kvc_host *host, const kvc_host_store *store, uint32_t layer) {
    const uint32_t index[] = {0};
    n_called++;
    ck_assert_int_eq(store->drop(host->ctx, n_layer, KVC_ALL, 0, 1), KVC_E_RANGE);
    ck_assert_int_eq(store->drop(host->ctx, layer, n_head_kv, 0, 1), KVC_E_RANGE);
    ck_assert_int_eq(store->keep(host->ctx, n_layer, 0, index, 1), KVC_E_RANGE);
    ck_assert_int_eq(store->keep(host->ctx, layer, n_head_kv, index, 1), KVC_E_RANGE);
    ck_assert_uint_eq(store->count(host->ctx, layer, 0), 64);
    return KVC_OK;
}

START_TEST(nothing_is_evicted_elsewhere) {
    probe.flags = KVC_PLAN_EVICTS;
    probe.page_end = evict_nowhere;
    kvc_session *s = session_of_probe();
    feed(s, 64);
    kvc_session_close(s);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("host");
    TCase *tc = tcase_create("host");
    tcase_add_checked_fixture(tc, setup_probe, teardown);
    tcase_add_loop_test(tc, services_do_what_they_say, 0, 4);
    tcase_add_test(tc, a_log_line_is_text);
    tcase_add_test(tc, no_sum_of_bytes_is_negative);
    tcase_add_loop_test(tc, threads_can_be_asked_for_anywhere, 0, 4);
    tcase_add_test(tc, entries_have_positions);
    tcase_add_test(tc, there_is_no_store_yet_in_create);
    tcase_add_test(tc, pages_have_positions);
    tcase_add_test(tc, a_full_page_is_sealed_before_the_tick);
    tcase_add_test(tc, columns_stay_with_their_entries);
    tcase_add_test(tc, mass_sums_to_one_per_query);
    tcase_add_loop_test(tc, refusals_reach_the_user, 0, (int)(sizeof refusals / sizeof *refusals));
    tcase_add_test(tc, nothing_is_evicted_elsewhere);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
