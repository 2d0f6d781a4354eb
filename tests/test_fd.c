/* SPDX-License-Identifier: MIT
 * test_fd.c: a program may have closed its standard streams. No file of the library takes their
 * places: what the program prints would land in it. Each case is a process of its own, which says
 * by its exit code how far it came. */
#include "engine_util.h"
#include "os.h"
#include "stream.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PASSED = 0, N_TOKEN = 200, N_CTX = 256 };

/* A standard descriptor is open. */
static bool taken(void) {
    return fcntl(0, F_GETFD) >= 0 || fcntl(1, F_GETFD) >= 0 || fcntl(2, F_GETFD) >= 0;
}

/* Runs fn in a process without standard streams. */
static void without_streams(int (*fn)(void)) {
    int status = 0;
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) {
        (void)close(0), (void)close(1), (void)close(2);
        _exit(fn());
    }
    ck_assert_int_gt(child, 0);
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == PASSED, "step %d, signal %d",
                  WIFEXITED(status) ? WEXITSTATUS(status) : -1,
                  WIFSIGNALED(status) ? WTERMSIG(status) : 0);
}

/* All that is open while a model computes with a cache on a disk, and what a session in a file
 * leaves behind. */
static int run_offload(void) {
    char file[64];
    int32_t token[N_TOKEN];
    snprintf(file, sizeof file, "/tmp/kvc-fd-%ld", (long)getpid());
    kvc_model *m = util_model("tiny-f16.gguf", 1, 0);
    if (taken()) {
        return 1;
    }
    kvc_session *s = util_session(m, "quant8+offload:dir=/tmp", "f32", N_CTX), *l = NULL;
    util_tokens(token, N_TOKEN, util_vocab(m), 1);
    if (taken() || kvc_session_decode(s, token, N_TOKEN) != KVC_OK || taken()) {
        return 2;
    }
    kvc_params *p = util_params();
    const bool saved = kvc_session_save(s, file) == KVC_OK;
    const bool loaded = saved && kvc_session_load(m, file, p, &l) == KVC_OK;
    (void)unlink(file);
    if (!loaded || taken()) {
        return 3;
    }
    kvc_session_close(l);
    kvc_session_close(s);
    kvc_params_destroy(p);
    kvc_model_close(m);
    return taken() ? 4 : PASSED;
}

START_TEST(no_file_takes_the_place_of_a_standard_stream) {
    without_streams(run_offload);
}
END_TEST

/* What is open for the time of one call only. */
static int open_each(void) {
    char file[64];
    kvc__err err = {""};
    kvc__mem mem;
    kvc__stream out, in;
    kvc__mem_init(&mem, NULL, NULL);
    snprintf(file, sizeof file, "/tmp/kvc-fd-%ld", (long)getpid());
    const int scratch = kvc__scratch_fd("/tmp"), direct = kvc__direct_fd(scratch);
    if (scratch < 3 || (direct >= 0 && direct < 3) || taken()) {
        return 1;
    }
    if (kvc__stream_create(&mem, file, &out, &err) != KVC_OK || out.fd < 3 || taken()) {
        return 2;
    }
    const bool written = kvc__stream_commit(&out) == KVC_OK;
    kvc__stream_close(&out);
    const bool opened = written && kvc__stream_open(&mem, file, &in, &err) == KVC_OK;
    (void)unlink(file);
    if (!opened || in.fd < 3 || taken()) {
        return 3;
    }
    kvc__stream_close(&in);
    return PASSED;
}

START_TEST(nor_does_one_that_is_open_for_a_call) {
    without_streams(open_each);
}
END_TEST

/* A descriptor that stands well stays; one that doesn't keeps its file and its flag. */
static int raise_some(void) {
    struct stat was, is;
    const int low = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (low != 0 || fstat(low, &was) != 0) {
        return 1;
    }
    const int high = kvc__fd_raise(low);
    if (high < 3 || taken() || fstat(high, &is) != 0 || is.st_rdev != was.st_rdev ||
        (fcntl(high, F_GETFD) & FD_CLOEXEC) == 0) {
        return 2;
    }
    errno = ENOENT;
    return kvc__fd_raise(high) != high || kvc__fd_raise(-1) != -1 || errno != ENOENT ? 3 : PASSED;
}

START_TEST(descriptors_are_raised) {
    without_streams(raise_some);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("fd");
    TCase *tc = tcase_create("fd");
    tcase_set_timeout(tc, 120);
    tcase_add_test(tc, descriptors_are_raised);
    tcase_add_test(tc, nor_does_one_that_is_open_for_a_call);
    tcase_add_test(tc, no_file_takes_the_place_of_a_standard_stream);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
