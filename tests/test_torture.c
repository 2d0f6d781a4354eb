/* SPDX-License-Identifier: MIT
 * test_torture.c: saving, loading, and keeping pages on a disk while the system fails. The calls
 * that they make are counted by wrappers (the linker's --wrap), then each fails in turn, in each
 * way, until a run passes with none failing. And a process that saves is killed at random moments.
 * What stood at the path before stays whole, the session goes on, and no file is left beside. */
#define _GNU_SOURCE /* unshare, mount */
#include "engine_util.h"
#include "every.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ---------------------------------------------------------------- calls that fail */

enum { FAIL_EIO, FAIL_ENOSPC, SHORT, INTERRUPTED, FLIPPED, N_MODE };

static struct {
    atomic_bool armed, hit;
    int mode;
    atomic_int left; /* calls until one fails */
} fault;

/* Whether this call is the one. */
static bool strikes(void) {
    if (!atomic_load(&fault.armed) || atomic_fetch_sub(&fault.left, 1) != 0) {
        return false;
    }
    atomic_store(&fault.hit, true);
    return true;
}

static int fails(void) {
    errno = fault.mode == FAIL_ENOSPC ? ENOSPC : fault.mode == INTERRUPTED ? EINTR : EIO;
    return -1;
}

/* A bit of what was read is not what was written. */
static ssize_t flip(void *p, ssize_t at, ssize_t n) {
    if (n > at) {
        ((unsigned char *)p)[at] ^= 4;
    }
    return n;
}

#define SHORTER (n > 1 ? n / 2 : n)

ssize_t __real_write(int fd, const void *p, size_t n);
ssize_t __wrap_write(int fd, const void *p, size_t n);
ssize_t __wrap_write(int fd, const void *p, size_t n) {
    if (fault.mode == FLIPPED || !strikes()) {
        return __real_write(fd, p, n);
    }
    return fault.mode == SHORT ? __real_write(fd, p, SHORTER) : fails();
}

ssize_t __real_read(int fd, void *p, size_t n);
ssize_t __wrap_read(int fd, void *p, size_t n);
ssize_t __wrap_read(int fd, void *p, size_t n) {
    if (!strikes()) {
        return __real_read(fd, p, n);
    }
    return fault.mode == FLIPPED ? flip(p, (ssize_t)n / 3, __real_read(fd, p, n))
           : fault.mode == SHORT ? __real_read(fd, p, SHORTER)
                                 : fails();
}

ssize_t __real_pwrite(int fd, const void *p, size_t n, off_t at);
ssize_t __wrap_pwrite(int fd, const void *p, size_t n, off_t at);
ssize_t __wrap_pwrite(int fd, const void *p, size_t n, off_t at) {
    if (fault.mode == FLIPPED || !strikes()) {
        return __real_pwrite(fd, p, n, at);
    }
    return fault.mode == SHORT ? __real_pwrite(fd, p, SHORTER, at) : fails();
}

ssize_t __real_pread(int fd, void *p, size_t n, off_t at);
ssize_t __wrap_pread(int fd, void *p, size_t n, off_t at);
ssize_t __wrap_pread(int fd, void *p, size_t n, off_t at) {
    if (!strikes()) {
        return __real_pread(fd, p, n, at);
    }
    return fault.mode == FLIPPED ? flip(p, 0, __real_pread(fd, p, n, at))
           : fault.mode == SHORT ? __real_pread(fd, p, SHORTER, at)
                                 : fails();
}

int __real_posix_fallocate(int fd, off_t at, off_t n);
int __wrap_posix_fallocate(int fd, off_t at, off_t n);
int __wrap_posix_fallocate(int fd, off_t at, off_t n) {
    if (fault.mode == SHORT || fault.mode == FLIPPED || !strikes()) {
        return __real_posix_fallocate(fd, at, n);
    }
    (void)fails();
    return errno;
}

/* Calls that can't be short, and whose interruption is a failure like any other. */
#define WRAP(name, parameters, arguments)                                                          \
    int __real_##name parameters;                                                                  \
    int __wrap_##name parameters;                                                                  \
    int __wrap_##name parameters {                                                                 \
        const bool may = fault.mode != SHORT && fault.mode != FLIPPED;                             \
        return may && strikes() ? fails() : __real_##name arguments;                               \
    }
WRAP(fsync, (int fd), (fd))
WRAP(ftruncate, (int fd, off_t n), (fd, n))
WRAP(rename, (const char *a, const char *b), (a, b))
WRAP(linkat, (int a, const char *b, int c, const char *d, int e), (a, b, c, d, e))

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    const mode_t mode = va_arg(list, mode_t);
    va_end(list);
    const bool may = fault.mode != SHORT && fault.mode != FLIPPED;
    return may && strikes() ? fails() : __real_open(path, flags, mode);
}

static void arm(int mode, int left) {
    fault.mode = mode;
    atomic_store(&fault.left, left);
    atomic_store(&fault.hit, false);
    atomic_store(&fault.armed, true);
}

/* ---------------------------------------------------------------- a directory with one session */

static char dir[] = "/tmp/kvc-test-torture-XXXXXX";
static char path[64];
static kvc_model *model;
static uint32_t n_vocab;
static int32_t token[256];

static void setup(void) {
    atomic_store(&fault.armed, false);
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
    atomic_store(&fault.armed, false);
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
            atomic_store(&fault.armed, false);
            ck_assert_int_eq(files(), 1);
            ck_assert_uint_eq(tokens_at_path(), rc == KVC_OK ? 200 : 70);
            if (rc < 0) {
                ck_assert_int_eq(rc, KVC_E_IO);
                ck_assert_msg(strstr(kvc_session_error(s), path) != NULL, "%s",
                              kvc_session_error(s));
            }
            if (!atomic_load(&fault.hit)) {
                ck_assert_int_eq(rc, KVC_OK);
                break;
            }
        }
        ck_assert_msg(mode == FLIPPED || n >= (mode == SHORT ? 1 : 4), "only %d calls were seen",
                      n);
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
            atomic_store(&fault.armed, false);
            ck_assert(rc == KVC_OK || (l == NULL && kvc_params_error(p)[0] != '\0'));
            kvc_session_close(l);
            if (!atomic_load(&fault.hit)) {
                ck_assert_int_eq(rc, KVC_OK);
                break;
            }
        }
    }
    kvc_params_destroy(p);
    kvc_session_close(s);
}
END_TEST

/* ---------------------------------------------------------------- pages on a disk */

#define N_DISK 600u /* tokens: more pages than buffers hold */

static int32_t disk_token[N_DISK];
static float *want_logits, *got_logits;

/* The stages in front of the tier, by the loop's index. */
static const char *const on_disk[] = {"", "quant8+", "t_mass:budget=100+"};

/* A session that keeps as much as it can on the disk. */
static kvc_session *disk_session(int i) {
    static uint64_t least[sizeof on_disk / sizeof *on_disk];
    char spec[256];
    kvc_params *p = util_params();
    kvc_session *s = NULL;
    ck_assert_int_eq(kvc_params_set_str(p, "compute", "f32"), KVC_OK);
    ck_assert_int_eq(kvc_params_set_i64(p, "n_ctx", N_DISK), KVC_OK);
    if (least[i] == 0) {
        snprintf(spec, sizeof spec, "%soffload:dir=%s:hot=1", on_disk[i], dir);
        ck_assert_int_eq(kvc_session_open(model, spec, p, &s), KVC_E_PARAM);
        const char *need = strstr(kvc_params_error(p), "need ");
        ck_assert_msg(need != NULL, "%s", kvc_params_error(p));
        least[i] = strtoull(need + 5, NULL, 10);
    }
    snprintf(spec, sizeof spec, "%soffload:dir=%s:hot=%llu", on_disk[i], dir,
             (unsigned long long)least[i]);
    ck_assert_msg(kvc_session_open(model, spec, p, &s) == KVC_OK, "%s", kvc_params_error(p));
    kvc_params_destroy(p);
    return s;
}

/* Feeds in calls of 150 tokens, wanting the last one's logits; fails at most `may` calls. Returns
 * how many failed. */
static int disk_feed(kvc_session *s, float *out, int may) {
    int failed = 0;
    while (kvc_session_n_past(s) < N_DISK) {
        const uint32_t at = kvc_session_n_past(s), n = N_DISK - at < 150 ? N_DISK - at : 150;
        const int32_t rc = kvc_session_decode(s, disk_token + at, n);
        if (rc != KVC_OK) {
            ck_assert_msg(rc == KVC_E_IO || rc == KVC_E_LOST, "%s", kvc_session_error(s));
            ck_assert_uint_eq(kvc_session_n_past(s), at);
            ck_assert_msg(failed++ < may, "%s", kvc_session_error(s));
        }
    }
    memcpy(out, kvc_session_logits(s, 0), n_vocab * sizeof *out);
    return failed;
}

/* Each call that a session on the disk makes fails once, in each way. A read that fails or lies
 * costs a recomputation, a write that fails its step; nothing is lost, and nothing is left. */
START_TEST(every_call_of_a_tier_fails_once) {
    util_tokens(disk_token, N_DISK, n_vocab, 3);
    want_logits = calloc(n_vocab, sizeof *want_logits);
    got_logits = calloc(n_vocab, sizeof *got_logits);
    kvc_session *plain = disk_session(_i);
    ck_assert_int_eq(disk_feed(plain, want_logits, 0), 0);
    kvc_session_close(plain);
    for (int mode = 0; mode < N_MODE; mode++) {
        int hits = 0, failures = 0;
        uint64_t lost = 0;
        for (int n = 0;; n += every() > 1 ? 1 + n : n < 8 ? 1 : 1 + n / 4) {
            kvc_session *s = disk_session(_i);
            arm(mode, n);
            failures += disk_feed(s, got_logits, 1);
            atomic_store(&fault.armed, false);
            util_same(want_logits, got_logits, 1, n_vocab, "with a disk that failed");
            ck_assert_int_eq(files(), 0);
            kvc_session_stats st = {.struct_size = sizeof st};
            ck_assert_int_eq(kvc_session_get_stats(s, &st), KVC_OK);
            ck_assert_uint_gt(st.tier_bytes, 0);
            lost += st.n_lost;
            kvc_session_close(s);
            if (!atomic_load(&fault.hit)) {
                break;
            }
            hits++;
        }
        ck_assert_int_gt(hits, 4);
        const bool hurts = mode == FAIL_EIO || mode == FAIL_ENOSPC;
        ck_assert_msg(failures > 0 || !hurts, "no write failed in mode %d", mode);
        /* A read that fails is tried again; one that lies is not believed. */
        ck_assert_msg(lost > 0 || mode != FLIPPED, "no page was lost");
        ck_assert_msg((failures == 0 && lost == 0) || (mode != SHORT && mode != INTERRUPTED),
                      "a call that was cut short was taken for a failure");
    }
    free(want_logits);
    free(got_logits);
}
END_TEST

/* A disk that is full, really: a small file system of one's own where the system allows one, a
 * limit on the size of files elsewhere. */
static bool mount_small(void) {
    if (unshare(CLONE_NEWNS) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) {
        return false;
    }
    (void)mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
    return mount("tmpfs", dir, "tmpfs", 0, "size=1m") == 0;
}

/* In a process of its own. 0: as it should be. */
static int on_full_disk(void) {
    const bool small = mount_small();
    if (!small) {
        struct rlimit tight = {1 << 20, 1 << 20};
        (void)signal(SIGXFSZ, SIG_IGN);
        (void)setrlimit(RLIMIT_FSIZE, &tight);
    }
    kvc_model *m = util_model("tiny-f16.gguf", 2, 0); /* threads don't survive a fork */
    kvc_params *p = util_params();
    kvc_session *s = NULL;
    char spec[256];
    snprintf(spec, sizeof spec, "offload:dir=%s", dir);
    (void)kvc_params_set_i64(p, "n_ctx", 1 << 16);
    if (kvc_session_open(m, spec, p, &s) != KVC_OK) {
        fprintf(stderr, "%s\n", kvc_params_error(p));
        return 1;
    }
    int32_t rc = KVC_OK;
    uint32_t held = 0;
    while (rc == KVC_OK && held < 60000) {
        rc = kvc_session_prefill(s, token, 200);
        held += rc == KVC_OK ? 200 : 0;
    }
    const bool alive = kvc_session_n_past(s) == held &&
                       kvc_session_truncate(s, held / 2) == KVC_OK &&
                       kvc_session_decode(s, token, 20) == KVC_OK;
    if (rc != KVC_E_IO || !alive) {
        fprintf(stderr, "%s after %u tokens: %s\n", kvc_status_name(rc), held,
                kvc_session_error(s));
        return 2;
    }
    kvc_session_close(s);
    kvc_params_destroy(p);
    kvc_model_close(m);
    return small ? 0 : 77;
}

START_TEST(a_full_disk_behind_a_tier) {
#if defined(__SANITIZE_THREAD__)
    return; /* ThreadSanitizer allows a forked process no threads */
#endif
    const pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        _exit(on_full_disk());
    }
    int status = 0;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert(WIFEXITED(status));
    ck_assert_msg(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 77, "%d", WEXITSTATUS(status));
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
    for (int i = 0; i<200; i += every()> 1 ? 5 : 1) {
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
    every_add(tc, every_call_of_a_tier_fails_once, 3, 8);
    tcase_add_test(tc, a_full_disk_behind_a_tier);
    tcase_add_test(tc, a_full_disk);
    tcase_add_test(tc, killed_at_any_moment);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
