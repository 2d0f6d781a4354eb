/* SPDX-License-Identifier: MIT
 * test_torture.c: saving and loading while the system fails. The calls that a save or a load makes
 * are counted by wrappers (the linker's --wrap), then each fails in turn, in each way, until a run
 * passes with none failing. And a process that saves is killed at random moments. What stood at the
 * path before stays whole, the session goes on, and no file is left beside. */
#include "engine_util.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ---------------------------------------------------------------- calls that fail */

enum { FAIL_EIO, FAIL_ENOSPC, SHORT, INTERRUPTED, N_MODE };

static struct {
    bool armed;
    int mode;
    int left; /* calls until one fails */
    bool hit;
} fault;

/* Whether this call is the one. */
static bool strikes(void) {
    if (!fault.armed || fault.left-- != 0) {
        return false;
    }
    fault.hit = true;
    return true;
}

static int fails(void) {
    errno = fault.mode == FAIL_ENOSPC ? ENOSPC : fault.mode == INTERRUPTED ? EINTR : EIO;
    return -1;
}

ssize_t __real_write(int fd, const void *p, size_t n);
ssize_t __wrap_write(int fd, const void *p, size_t n);
ssize_t __wrap_write(int fd, const void *p, size_t n) {
    if (!strikes()) {
        return __real_write(fd, p, n);
    }
    return fault.mode == SHORT ? __real_write(fd, p, n > 1 ? n / 2 : n) : fails();
}

ssize_t __real_read(int fd, void *p, size_t n);
ssize_t __wrap_read(int fd, void *p, size_t n);
ssize_t __wrap_read(int fd, void *p, size_t n) {
    if (!strikes()) {
        return __real_read(fd, p, n);
    }
    return fault.mode == SHORT ? __real_read(fd, p, n > 1 ? n / 2 : n) : fails();
}

/* Calls that can't be short, and whose interruption is a failure like any other. */
#define WRAP(name, parameters, arguments)                                                          \
    int __real_##name parameters;                                                                  \
    int __wrap_##name parameters;                                                                  \
    int __wrap_##name parameters {                                                                 \
        return fault.mode != SHORT && strikes() ? fails() : __real_##name arguments;               \
    }
WRAP(fsync, (int fd), (fd))
WRAP(rename, (const char *a, const char *b), (a, b))
WRAP(linkat, (int a, const char *b, int c, const char *d, int e), (a, b, c, d, e))

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    const mode_t mode = va_arg(list, mode_t);
    va_end(list);
    return fault.mode != SHORT && strikes() ? fails() : __real_open(path, flags, mode);
}

static void arm(int mode, int left) {
    fault.mode = mode;
    fault.left = left;
    fault.hit = false;
    fault.armed = true;
}

/* ---------------------------------------------------------------- a directory with one session */

static char dir[] = "/tmp/kvc-test-torture-XXXXXX";
static char path[64];
static kvc_model *model;
static uint32_t n_vocab;
static int32_t token[256];

static void setup(void) {
    memset(&fault, 0, sizeof fault);
    strcpy(dir + sizeof dir - 7, "XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/session", dir);
    model = util_model("tiny-f16.gguf", 1, 0);
    n_vocab = util_vocab(model);
    util_tokens(token, 256, n_vocab, 3);
}

/* Files in the directory. */
static int files(void) {
    DIR *d = opendir(dir);
    int n = 0;
    ck_assert_ptr_nonnull(d);
    for (const struct dirent *e; (e = readdir(d)) != NULL;) {
        n += e->d_name[0] != '.';
    }
    closedir(d);
    return n;
}

static void teardown(void) {
    fault.armed = false;
    (void)unlink(path);
    ck_assert_msg(rmdir(dir) == 0, "%d files are left", files());
    kvc_model_close(model);
}

static kvc_session *session_of(const char *spec, uint32_t n) {
    kvc_session *s = util_session(model, spec, "f32", 256);
    ck_assert_int_eq(kvc_session_prefill(s, token, n), KVC_OK);
    return s;
}

/* How many tokens the session at the path has; it must be whole. */
static uint32_t tokens_at_path(void) {
    kvc_params *p = util_params();
    kvc_session *s = NULL;
    ck_assert_msg(kvc_session_load(model, path, p, &s) == KVC_OK, "%s", kvc_params_error(p));
    const uint32_t n = kvc_session_n_past(s);
    kvc_session_close(s);
    kvc_params_destroy(p);
    return n;
}

/* ---------------------------------------------------------------- tests */

static const char *const specs[] = {"", "window:size=70+quant8", "t_pages:pages=1"};

START_TEST(every_call_of_a_save_fails_once) {
    kvc_session *old = session_of(specs[_i], 70), *s = session_of(specs[_i], 200);
    for (int mode = 0; mode < N_MODE; mode++) {
        int n = 0;
        for (;; n++) {
            ck_assert_int_eq(kvc_session_save(old, path), KVC_OK);
            arm(mode, n);
            const int32_t rc = kvc_session_save(s, path);
            fault.armed = false;
            ck_assert_int_eq(files(), 1);
            ck_assert_uint_eq(tokens_at_path(), rc == KVC_OK ? 200 : 70);
            if (rc < 0) {
                ck_assert_int_eq(rc, KVC_E_IO);
                ck_assert_msg(strstr(kvc_session_error(s), path) != NULL, "%s",
                              kvc_session_error(s));
            }
            if (!fault.hit) {
                ck_assert_int_eq(rc, KVC_OK);
                break;
            }
        }
        ck_assert_msg(n >= (mode == SHORT ? 1 : 4), "only %d calls were seen", n);
    }
    ck_assert_int_eq(kvc_session_decode(s, token, 1), KVC_OK);
    kvc_session_close(s);
    kvc_session_close(old);
}
END_TEST

START_TEST(every_call_of_a_load_fails_once) {
    kvc_session *s = session_of(specs[_i], 200);
    kvc_params *p = util_params();
    ck_assert_int_eq(kvc_session_save(s, path), KVC_OK);
    for (int mode = 0; mode < N_MODE; mode++) {
        for (int n = 0;; n++) {
            kvc_session *l = NULL;
            arm(mode, n);
            const int32_t rc = kvc_session_load(model, path, p, &l);
            fault.armed = false;
            ck_assert(rc == KVC_OK || (l == NULL && kvc_params_error(p)[0] != '\0'));
            kvc_session_close(l);
            if (!fault.hit) {
                ck_assert_int_eq(rc, KVC_OK);
                break;
            }
        }
    }
    kvc_params_destroy(p);
    kvc_session_close(s);
}
END_TEST

/* A limit on the size of files stands for a full disk. */
START_TEST(a_full_disk) {
    kvc_session *old = session_of("", 70), *s = session_of("", 200);
    struct rlimit was, tight;
    struct sigaction ignore = {.sa_handler = SIG_IGN}, before;
    ck_assert_int_eq(kvc_session_save(old, path), KVC_OK);
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &was), 0);
    sigaction(SIGXFSZ, &ignore, &before);
    tight = was;
    tight.rlim_cur = 50000;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &tight), 0);
    const int32_t rc = kvc_session_save(s, path);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &was), 0);
    sigaction(SIGXFSZ, &before, NULL);
    ck_assert_int_eq(rc, KVC_E_IO);
    ck_assert_int_eq(files(), 1);
    ck_assert_uint_eq(tokens_at_path(), 70);
    kvc_session_close(s);
    kvc_session_close(old);
}
END_TEST

/* Saves two sessions in turn until it is killed. Saving takes no thread, so a forked process can do
 * it. */
static void save_for_ever(kvc_session *a, kvc_session *b) {
    for (;;) {
        (void)kvc_session_save(a, path);
        (void)kvc_session_save(b, path);
    }
}

START_TEST(killed_at_any_moment) {
    kvc_session *a = session_of("quant8", 70), *b = session_of("quant8", 200);
    uint32_t seen[2] = {0, 0};
    uint64_t x = 42;
    struct timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    for (int i = 0; i < 5; i++) {
        ck_assert_int_eq(kvc_session_save(b, path), KVC_OK);
        ck_assert_int_eq(kvc_session_save(a, path), KVC_OK);
    }
    clock_gettime(CLOCK_MONOTONIC, &to);
    /* The moments lie within some saves of each, however slow this machine is. */
    const uint64_t five = (uint64_t)(to.tv_sec - from.tv_sec) * 1000000000u + (uint64_t)to.tv_nsec -
                          (uint64_t)from.tv_nsec;
    const uint64_t range = five + 2000000u;
    for (int i = 0; i < 200; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        const pid_t child = fork();
        ck_assert_int_ge(child, 0);
        if (child == 0) {
            save_for_ever(a, b);
        }
        const uint64_t moment = x % range;
        const struct timespec pause = {(time_t)(moment / 1000000000u),
                                       (long)(moment % 1000000000u)};
        nanosleep(&pause, NULL);
        ck_assert_int_eq(kill(child, SIGKILL), 0);
        ck_assert_int_eq(waitpid(child, NULL, 0), child);
        const uint32_t n = tokens_at_path();
        ck_assert(n == 70 || n == 200);
        seen[n == 200]++;
    }
    /* Between getting a name and taking the path's place a file may be caught: rarely. */
    ck_assert_int_le(files(), 1 + 10);
    ck_assert_msg(seen[0] > 0 && seen[1] > 0, "only one of the two was ever found");
    DIR *d = opendir(dir);
    for (const struct dirent *e; (e = readdir(d)) != NULL;) {
        if (e->d_name[0] != '.') {
            (void)unlinkat(dirfd(d), e->d_name, 0);
        }
    }
    closedir(d);
    kvc_session_close(a);
    kvc_session_close(b);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("torture");
    TCase *tc = tcase_create("torture");
    tcase_set_timeout(tc, 300);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, every_call_of_a_save_fails_once, 0, 3);
    tcase_add_loop_test(tc, every_call_of_a_load_fails_once, 0, 3);
    tcase_add_test(tc, a_full_disk);
    tcase_add_test(tc, killed_at_any_moment);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
