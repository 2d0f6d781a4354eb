/* SPDX-License-Identifier: MIT
 * test_state_failure.c: copying, saving and loading sessions while something fails inside: each of
 * the many writes of a save, a policy's save() or load(), a file that changes while it is read. The
 * status and the sentence are right, no file is left, and the session goes on. */
#include "session_util.h"

#include "stream.h"

#include <errno.h>
#include <fcntl.h>

/* ---------------------------------------------------------------- calls that fail */

static struct {
    bool tight;     /* files are written four bytes at a time */
    size_t cap;     /* of a stream's buffer, to be given back */
    int write_left; /* writes until one fails; negative: none does */
    int n_write;
    int close_left;    /* calls of close() until one fails; negative: none does */
    int32_t grow;      /* bytes by which a file grows before it is read; negative: it shrinks */
    const char *grows; /* that file */
} fault;

#define TIGHT 4

int32_t __real_kvc__stream_create(kvc__mem *mem, const char *path, kvc__stream *out, kvc__err *err);
int32_t __wrap_kvc__stream_create(kvc__mem *mem, const char *path, kvc__stream *out, kvc__err *err);
int32_t __wrap_kvc__stream_create(kvc__mem *mem, const char *path, kvc__stream *out,
                                  kvc__err *err) {
    int32_t rc = __real_kvc__stream_create(mem, path, out, err);
    if (rc == KVC_OK && fault.tight) {
        fault.cap = out->cap;
        out->cap = TIGHT;
    }
    return rc;
}

void __real_kvc__stream_close(kvc__stream *s);
void __wrap_kvc__stream_close(kvc__stream *s);
void __wrap_kvc__stream_close(kvc__stream *s) {
    s->cap = s->cap == TIGHT ? fault.cap : s->cap;
    __real_kvc__stream_close(s);
}

ssize_t __real_write(int fd, const void *p, size_t n);
ssize_t __wrap_write(int fd, const void *p, size_t n);
ssize_t __wrap_write(int fd, const void *p, size_t n) {
    fault.n_write++;
    if (fault.write_left >= 0 && fault.write_left-- == 0) {
        errno = ENOSPC;
        return -1;
    }
    return __real_write(fd, p, n);
}

int __real_close(int fd);
int __wrap_close(int fd);
int __wrap_close(int fd) {
    const int rc = __real_close(fd);
    if (fault.close_left >= 0 && fault.close_left-- == 0) {
        errno = EIO;
        return -1;
    }
    return rc;
}

ssize_t __real_read(int fd, void *p, size_t n);
ssize_t __wrap_read(int fd, void *p, size_t n);
ssize_t __wrap_read(int fd, void *p, size_t n) {
    if (fault.grow != 0) {
        ck_assert_int_eq(truncate(fault.grows, lseek(fd, 0, SEEK_END) + fault.grow), 0);
        ck_assert_int_eq(lseek(fd, 0, SEEK_SET), 0);
        fault.grow = 0;
    }
    return __real_read(fd, p, n);
}

/* ---------------------------------------------------------------- policies with state */

/* A policy with `size` bytes of state, told by the test what its hooks do; a second that has state
 * and can't save it. */
static struct {
    uint32_t save_n, load_n;   /* bytes that its hooks write and want */
    int32_t save_rc, load_rc;  /* what they answer, unless writing or reading fails */
    const char *save_sentence; /* that save() leaves */
} keeper;

static int32_t keeper_create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                             kvc_plan *plan, void **self) {
    (void)shape, (void)value;
    *self = (void *)(uintptr_t)host;
    plan->flags = KVC_PLAN_STATE;
    return KVC_OK;
}

static int32_t keeper_rewind(void *self, int32_t pos) {
    (void)self;
    return pos;
}

static int32_t keeper_append(void *self, const kvc_rows *rows) {
    (void)self, (void)rows;
    return KVC_OK;
}

static int32_t keeper_save(void *self, const kvc_stream *out) {
    const kvc_host *host = self;
    for (uint32_t i = 0; i < keeper.save_n; i++) {
        const uint8_t byte = (uint8_t)i;
        KVC_TRY(out->write(out->ctx, &byte, 1));
    }
    return keeper.save_sentence != NULL
               ? (host->fail)(host->ctx, keeper.save_rc, keeper.save_sentence)
               : keeper.save_rc;
}

static int32_t keeper_load(void *self, const kvc_stream *in) {
    (void)self;
    for (uint32_t i = 0; i < keeper.load_n; i++) {
        uint8_t byte;
        KVC_TRY(in->read(in->ctx, &byte, 1));
        ck_assert_uint_eq(byte, (uint8_t)i);
    }
    return keeper.load_rc;
}

static const kvc_policy_api keeper_api = {.struct_size = sizeof keeper_api,
                                          .create = keeper_create,
                                          .append = keeper_append,
                                          .rewind = keeper_rewind,
                                          .save = keeper_save,
                                          .load = keeper_load},
                            mute_api = {.struct_size = sizeof mute_api,
                                        .create = keeper_create,
                                        .append = keeper_append,
                                        .rewind = keeper_rewind,
                                        .load = keeper_load};

static const kvc_policy *keeper_entry(uint32_t host_abi, uint32_t index) {
    static const kvc_policy policy[] = {{.struct_size = sizeof(kvc_policy),
                                         .abi = KVC_POLICY_ABI,
                                         .abi_min = KVC_POLICY_ABI_MIN,
                                         .name = "keeper",
                                         .version = "1.0.0",
                                         .summary = "test: has state",
                                         .license = "MIT",
                                         .api = &keeper_api},
                                        {.struct_size = sizeof(kvc_policy),
                                         .abi = KVC_POLICY_ABI,
                                         .abi_min = KVC_POLICY_ABI_MIN,
                                         .name = "mute",
                                         .version = "1.0.0",
                                         .summary = "test: has state and can't save it",
                                         .license = "MIT",
                                         .api = &mute_api}};
    (void)host_abi;
    return index < 2 ? &policy[index] : NULL;
}

/* ---------------------------------------------------------------- sessions and files */

static char path[64];
static kvc_params *params;
static float *want; /* logits behind 270 tokens */

static void setup_file(void) {
    memset(&fault, 0, sizeof fault);
    memset(&keeper, 0, sizeof keeper);
    fault.write_left = fault.close_left = -1;
    char dir[] = "/tmp/kvc-test-failing-XXXXXX";
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/session", dir);
    setup();
    params = params_for(N_CTX, NULL);
    ck_assert_int_eq(kvc_params_add_policy(params, keeper_entry), KVC_OK);
    fault.grows = path;
}

static void teardown_file(void) {
    kvc_params_destroy(params);
    teardown();
    free(want);
    want = NULL;
    (void)unlink(path);
    *strrchr(path, '/') = '\0';
    ck_assert_msg(rmdir(path) == 0, "a file is left");
}

/* A session behind 250 tokens. */
static kvc_session *session_of(const char *spec) {
    kvc_session *s = NULL;
    ck_assert_msg(kvc_session_open(model, spec, params, &s) == KVC_OK, "%s",
                  kvc_params_error(params));
    ck_assert_int_eq(kvc_session_decode(s, tokens, 250), KVC_OK);
    return s;
}

static kvc_session *load(int32_t status, const char *words) {
    kvc_session *s = NULL;
    const int32_t rc = kvc_session_load(model, path, params, &s);
    ck_assert_msg(rc == status, "%s: %s", kvc_status_name(rc), kvc_params_error(params));
    if (status != KVC_OK) {
        ck_assert_ptr_null(s);
        has(kvc_params_error(params), words);
    }
    return s;
}

static void fork_fails(kvc_session *s, int32_t status, const char *words) {
    kvc_session *f = NULL;
    const int32_t rc = kvc_session_fork(s, &f);
    ck_assert_msg(rc == status, "%s: %s", kvc_status_name(rc), kvc_session_error(s));
    ck_assert_ptr_null(f);
    has(kvc_session_error(s), words);
}

static void save_fails(kvc_session *s, int32_t status, const char *words) {
    const int32_t rc = kvc_session_save(s, path);
    ck_assert_msg(rc == status, "%s: %s", kvc_status_name(rc), kvc_session_error(s));
    has(kvc_session_error(s), words);
    ck_assert_int_ne(access(path, F_OK), 0);
}

/* ---------------------------------------------------------------- files */

/* Without a buffer to speak of each number of the file is a write that can fail. All of the head,
 * the tokens, the first lane and the end fail; of the rest some do. */
START_TEST(every_write_of_a_save_fails_once) {
    static const char *const spec[] = {"", "t_mass:budget=60+quant8", "window:size=70+keeper"};
    kvc_session *s = session_of(spec[_i]);
    keeper.save_n = keeper.load_n = 100;
    fault.tight = true;
    ck_assert_msg(kvc_session_save(s, path) == KVC_OK, "%s", kvc_session_error(s));
    ck_assert_int_eq(unlink(path), 0);
    const int n = fault.n_write;
    ck_assert_int_gt(n, 1000);
    for (int i = 0, next; i < n; i = next) {
        const int far = i + n / 60;
        next = i < 700 || i >= n - 12 ? i + 1 : far < n - 12 ? far : n - 12;
        fault.write_left = i;
        save_fails(s, KVC_E_IO, "session: can't be written: ");
    }
    fault.write_left = n;
    ck_assert_int_eq(kvc_session_save(s, path), KVC_OK);
    ck_assert_int_eq(fault.write_left, 0);
    fault.tight = false;
    kvc_session *l = load(KVC_OK, NULL);
    ck_assert_int_eq(kvc_session_decode(s, tokens + 250, 20), KVC_OK);
    want = malloc(VOCAB * sizeof *want);
    memcpy(want, kvc_session_logits(s, 0), VOCAB * sizeof *want);
    goes_on(l, 270, want, spec[_i]);
    kvc_session_close(l);
    kvc_session_close(s);
}
END_TEST

START_TEST(closing_a_file_fails) {
    kvc_session *s = session_of("");
    fault.close_left = 0;
    save_fails(s, KVC_E_IO, "session: can't be written: ");
    ck_assert_int_eq(kvc_session_save(s, path), KVC_OK);
    kvc_session_close(load(KVC_OK, NULL));
    kvc_session_close(s);
}
END_TEST

START_TEST(files_that_change_are_refused) {
    kvc_session *s = session_of("");
    ck_assert_int_eq(kvc_session_save(s, path), KVC_OK);
    fault.grow = 100;
    load(KVC_E_FORMAT, "session: damaged: it doesn't match its checksum");
    ck_assert_int_eq(kvc_session_save(s, path), KVC_OK);
    fault.grow = -100;
    load(KVC_E_FORMAT, "session: cut short or damaged");
    ck_assert_int_eq(kvc_session_save(s, path), KVC_OK);
    kvc_session_close(load(KVC_OK, NULL));
    kvc_session_close(s);
}
END_TEST

/* ---------------------------------------------------------------- tiers */

/* A session behind 250 tokens with a tier one call of which fails; while it computed or later. */
static kvc_session *session_with_tier(const char *call, int nth) {
    char spec[64];
    kvc_session *s = NULL;
    snprintf(spec, sizeof spec, "t_tier:%s=%d", call, nth);
    ck_assert_int_eq(kvc_session_open(model, spec, params, &s), KVC_OK);
    int32_t rc = kvc_session_decode(s, tokens, 250);
    if (rc == KVC_E_IO) {
        rc = kvc_session_decode(s, tokens, 250);
    }
    ck_assert_msg(rc == KVC_OK, "%s", kvc_session_error(s));
    return s;
}

/* How often computing calls the tier depends on what was read ahead. */
START_TEST(a_tier_fails_while_saving) {
    int n = 0;
    for (int nth = 1; nth < 400 && n < 4; nth++) {
        kvc_session *s = session_with_tier("fail_get", nth);
        if (kvc_session_save(s, path) != KVC_OK) {
            n++;
            has(kvc_session_error(s), "policy 't_tier' failed in get (layer ");
            has(kvc_session_error(s), "get was told to fail");
            ck_assert_int_ne(access(path, F_OK), 0);
            ck_assert_int_eq(kvc_session_save(s, path), KVC_OK);
        }
        ck_assert_int_eq(unlink(path), 0);
        kvc_session_close(s);
    }
    ck_assert_int_gt(n, 0);
}
END_TEST

/* The file's stack says which call fails, so it does while the file is loaded. */
START_TEST(a_tier_fails_while_loading) {
    int n = 0;
    for (int nth = 1; nth < 20; nth++) {
        kvc_session *s = session_with_tier("fail_put", nth), *l = NULL;
        ck_assert_msg(kvc_session_save(s, path) == KVC_OK, "%s", kvc_session_error(s));
        kvc_session_close(s);
        const int32_t rc = kvc_session_load(model, path, params, &l);
        if (rc != KVC_OK) {
            n++;
            ck_assert_int_eq(rc, KVC_E_IO);
            ck_assert_ptr_null(l);
            has(kvc_params_error(params), "policy 't_tier' failed in put (layer ");
            has(kvc_params_error(params), "put was told to fail");
        }
        kvc_session_close(l);
    }
    ck_assert_int_gt(n, 4);
}
END_TEST

/* ---------------------------------------------------------------- policies */

START_TEST(state_that_cant_be_saved) {
    kvc_session *s = session_of("mute");
    fork_fails(s, KVC_E_UNSUPPORTED, "policy 'mute' has state that it can't save");
    save_fails(s, KVC_E_UNSUPPORTED, "policy 'mute' has state that it can't save");
    ck_assert_int_eq(kvc_session_decode(s, tokens + 250, 1), KVC_OK);
    kvc_session_close(s);
}
END_TEST

START_TEST(a_policy_fails_to_save) {
    kvc_session *s = session_of("keeper");
    keeper.save_rc = KVC_E_NOMEM;
    keeper.save_sentence = "the shelf is full";
    fork_fails(s, KVC_E_NOMEM, "policy 'keeper' failed in save (position 0): the shelf is full");
    save_fails(s, KVC_E_NOMEM, "policy 'keeper' failed in save (position 0): the shelf is full");
    keeper.save_rc = KVC_E_RANGE;
    fork_fails(s, KVC_E_POLICY, "policy 'keeper' failed in save");
    save_fails(s, KVC_E_POLICY, "policy 'keeper' failed in save");
    keeper.save_sentence = NULL;
    keeper.save_rc = KVC_OK;
    keeper.save_n = keeper.load_n = 10000; /* more than is held at first */
    ck_assert_int_eq(kvc_session_save(s, path), KVC_OK);
    kvc_session_close(load(KVC_OK, NULL));
    kvc_session *f = NULL;
    ck_assert_int_eq(kvc_session_fork(s, &f), KVC_OK);
    kvc_session_close(f);
    kvc_session_close(s);
}
END_TEST

START_TEST(a_policy_fails_to_load) {
    static const struct {
        uint32_t save_n, load_n;
        int32_t load_rc, status;
        const char *words;
    } cases[] = {
        {10, 11, KVC_OK, KVC_E_FORMAT, "policy 'keeper' refuses the state that was saved"},
        {10, 9, KVC_OK, KVC_E_FORMAT, "policy 'keeper' left part of its saved state unread"},
        {10, 10, KVC_E_RANGE, KVC_E_FORMAT, "policy 'keeper' refuses the state that was saved"},
        {10, 10, 5, KVC_E_FORMAT, "policy 'keeper' refuses the state that was saved"},
    };
    kvc_session *s = session_of("keeper"), *f = NULL;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        keeper.save_n = cases[i].save_n;
        keeper.load_n = cases[i].load_n;
        keeper.load_rc = cases[i].load_rc;
        fork_fails(s, cases[i].status, cases[i].words);
        ck_assert_int_eq(kvc_session_save(s, path), KVC_OK);
        load(cases[i].status, cases[i].words);
        keeper.load_n = cases[i].save_n;
        keeper.load_rc = KVC_OK;
        kvc_session_close(load(KVC_OK, NULL));
        ck_assert_int_eq(kvc_session_fork(s, &f), KVC_OK);
        kvc_session_close(f);
    }
    kvc_session_close(s);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("state_failure");
    TCase *tc = tcase_create("state_failure");
    tcase_set_timeout(tc, 300);
    tcase_add_checked_fixture(tc, setup_file, teardown_file);
    tcase_add_loop_test(tc, every_write_of_a_save_fails_once, 0, 3);
    tcase_add_test(tc, closing_a_file_fails);
    tcase_add_test(tc, files_that_change_are_refused);
    tcase_add_test(tc, a_tier_fails_while_saving);
    tcase_add_test(tc, a_tier_fails_while_loading);
    tcase_add_test(tc, state_that_cant_be_saved);
    tcase_add_test(tc, a_policy_fails_to_save);
    tcase_add_test(tc, a_policy_fails_to_load);
    suite_add_tcase(suite, tc);
    return run_suite(suite);
}
