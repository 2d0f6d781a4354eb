/* SPDX-License-Identifier: MIT
 * bench_tier.c: bench_tier MODEL [DIR [HOT [DEPTH [FORMAT]]]]: what it costs to keep the cache on a
 * disk. Decodes behind a prompt of DEPTH tokens (4,096) under `full` and `quant8`, in memory and on
 * the disk of DIR with HOT bytes in memory (8M), and says how near that comes to the limit: the
 * cores' time for computing and decompressing a token, or the disk's rate of reading, whichever is
 * less. The first is the user time of one thread, measured here; the second the rate at which as
 * many threads as compute read a file of that size past the page cache, the best of three. */
#define _GNU_SOURCE /* O_DIRECT */
#include "kvc/kvc.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { N_GEN = 48, N_WARM = 4 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double seconds(struct timeval t) {
    return (double)t.tv_sec + 1e-6 * (double)t.tv_usec;
}

static double user_time(void) {
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return seconds(r.ru_utime);
}

static double system_time(void) {
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return seconds(r.ru_stime);
}

static void check(int32_t rc, const char *what) {
    if (rc < 0) {
        fprintf(stderr, "bench_tier: %s (%s)\n", what, kvc_status_name(rc));
        exit(1);
    }
}

/* ---------------------------------------------------------------- the disk's rate */

enum { PIECE = 192 << 10 };

struct reader {
    int fd;
    off_t from, to;
};

static void *read_part(void *arg) {
    const struct reader *r = arg;
    void *buffer = NULL;
    if (posix_memalign(&buffer, 4096, PIECE) != 0) {
        exit(1);
    }
    for (off_t at = r->from; at < r->to; at += PIECE) {
        if (pread(r->fd, buffer, PIECE, at) != PIECE) {
            fprintf(stderr, "bench_tier: can't read the file of the disk's rate\n");
            exit(1);
        }
    }
    free(buffer);
    return NULL;
}

/* A file of `pieces` pieces of noise in dir, to be read past the page cache. */
static int noise_file(const char *dir, size_t pieces) {
    char path[4096];
    snprintf(path, sizeof path, "%s/bench-XXXXXX", dir);
    const int fd = mkstemp(path);
    const int direct = open(path, O_RDONLY | O_DIRECT);
    char *buffer = malloc(PIECE);
    if (fd < 0 || direct < 0 || buffer == NULL) {
        fprintf(stderr, "bench_tier: %s: can't make a file that is read directly there\n", dir);
        exit(1);
    }
    (void)unlink(path);
    unsigned x = 1;
    for (size_t i = 0; i < pieces; i++) {
        for (size_t b = 0; b < PIECE; b++) {
            x = x * 1664525u + 1013904223u;
            buffer[b] = (char)(x >> 24);
        }
        if (write(fd, buffer, PIECE) != PIECE) {
            fprintf(stderr, "bench_tier: %s: the disk is full\n", dir);
            exit(1);
        }
    }
    (void)fsync(fd);
    close(fd);
    free(buffer);
    return direct;
}

/* Bytes a second at which n threads read size bytes: the best of three times. */
static double disk_rate(const char *dir, size_t size, uint32_t n) {
    struct reader part[16];
    pthread_t thread[16];
    n = n < 16 ? n : 16;
    const size_t pieces = size / PIECE / n + 1;
    const int fd = noise_file(dir, pieces * n);
    double best = 0;
    for (int round = 0; round < 3; round++) {
        const double t0 = now();
        for (uint32_t i = 0; i < n; i++) {
            const off_t each = (off_t)pieces * PIECE;
            part[i] = (struct reader){fd, (off_t)i * each, (off_t)(i + 1) * each};
            pthread_create(&thread[i], NULL, read_part, &part[i]);
        }
        for (uint32_t i = 0; i < n; i++) {
            pthread_join(thread[i], NULL);
        }
        const double rate = (double)(pieces * n * PIECE) / (now() - t0);
        best = rate > best ? rate : best;
    }
    close(fd);
    return best;
}

/* ---------------------------------------------------------------- a session */

struct result {
    double tok_s, user_s, system_s; /* the latter two: per token */
    double prefill_s;
    kvc_session_stats st;
    kvc_stage_stats tier;
    uint64_t read_bytes; /* per token, compressed */
    uint64_t hash;
};

static kvc_model *open_model(const char *path, int threads) {
    kvc_params *p = NULL;
    kvc_model *m = NULL;
    check(kvc_params_create(&p), "params");
    check(kvc_params_set_i64(p, "n_threads", threads), "n_threads");
    check(kvc_model_open(path, p, &m), kvc_params_error(p));
    kvc_params_destroy(p);
    return m;
}

static struct result run(kvc_model *m, const char *spec, uint32_t depth, uint32_t n_gen) {
    struct result r = {.st.struct_size = sizeof r.st, .tier.struct_size = sizeof r.tier};
    kvc_model_info info = {.struct_size = sizeof info};
    kvc_params *p = NULL;
    kvc_session *s = NULL;
    check(kvc_model_get_info(m, &info), "info");
    int32_t *token = malloc(depth * sizeof *token);
    check(kvc_params_create(&p), "params");
    check(kvc_params_set_i64(p, "n_ctx", (int64_t)depth + N_GEN + N_WARM + 1), "n_ctx");
    check(kvc_session_open(m, spec, p, &s), kvc_params_error(p));
    uint64_t x = 7;
    for (uint32_t i = 0; i < depth; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        token[i] = (int32_t)((x >> 33) % info.n_vocab);
    }
    double t0 = now();
    check(kvc_session_decode(s, token, depth), kvc_session_error(s));
    r.prefill_s = now() - t0;
    uint64_t got = 0;
    double u0 = 0, s0 = 0;
    for (uint32_t i = 0; i < n_gen + N_WARM; i++) {
        if (i == N_WARM) {
            t0 = now();
            u0 = user_time();
            s0 = system_time();
            check(kvc_session_get_stage(s, 0, &r.tier), "stage");
            kvc_stage_stats last = {.struct_size = sizeof last};
            check(kvc_session_get_stats(s, &r.st), "stats");
            check(kvc_session_get_stage(s, r.st.n_stage - 1, &last), "stage");
            got = last.n_get;
        }
        const float *logits = kvc_session_logits(s, 0);
        int32_t best = 0;
        for (uint32_t v = 0; v < info.n_vocab; v++) {
            uint32_t bits;
            memcpy(&bits, &logits[v], sizeof bits);
            r.hash = (r.hash ^ bits) * 1099511628211u;
            best = logits[v] > logits[best] ? (int32_t)v : best;
        }
        check(kvc_session_decode(s, &best, 1), kvc_session_error(s));
    }
    r.tok_s = n_gen / (now() - t0);
    r.user_s = (user_time() - u0) / n_gen;
    r.system_s = (system_time() - s0) / n_gen;
    check(kvc_session_get_stats(s, &r.st), "stats");
    check(kvc_session_get_stage(s, r.st.n_stage - 1, &r.tier), "stage");
    if (r.tier.stored_bytes > 0) {
        const double page = (double)r.tier.stored_bytes / (double)r.tier.n_put;
        r.read_bytes = (uint64_t)(page * (double)(r.tier.n_get - got) / n_gen);
    }
    kvc_session_close(s);
    kvc_params_destroy(p);
    free(token);
    return r;
}

static void compare(const char *path, const char *dir, const char *hot, uint32_t depth,
                    const char *format) {
    char spec[4400], memory[64];
    snprintf(spec, sizeof spec, "%s%soffload:dir=%s:hot=%s", strcmp(format, "full") ? format : "",
             strcmp(format, "full") ? "+" : "", dir, hot);
    snprintf(memory, sizeof memory, "%s", format);
    kvc_model *one = open_model(path, 1);
    const struct result alone = run(one, spec, depth, N_GEN / 4);
    kvc_model_close(one);
    kvc_model *m = open_model(path, 0);
    kvc_model_info info = {.struct_size = sizeof info};
    check(kvc_model_get_info(m, &info), "info");
    const struct result base = run(m, memory, depth, N_GEN), r = run(m, spec, depth, N_GEN);
    kvc_model_close(m);
    const double rate = disk_rate(dir, r.st.tier_bytes, info.n_threads);
    const double cpu = info.n_threads / alone.user_s;
    const double disk = r.read_bytes > 0 ? rate / (double)r.read_bytes : 1e9;
    const double limit = cpu < disk ? cpu : disk;
    printf("%s\n", spec);
    printf("  logits           %s\n",
           base.hash == r.hash ? "equal to those in memory, bit for bit" : "DIFFER");
    printf("  in memory        %.2f MiB at most, of which %.2f buffers\n",
           (double)r.st.kv_peak_bytes / 1048576, (double)r.st.buffer_bytes / 1048576);
    printf("  in the tier      %.2f MiB as %.2f MiB (%.3f to 1), file %.2f MiB\n",
           (double)r.st.tier_bytes / 1048576, (double)r.tier.stored_bytes / 1048576,
           (double)r.st.tier_bytes / (double)r.tier.stored_bytes,
           (double)r.tier.disk_bytes / 1048576);
    printf("  prefill          %.0f t/s, %.0f in memory\n", depth / r.prefill_s,
           depth / base.prefill_s);
    printf("  decode           %.1f t/s, %.1f in memory; %.1f ms of user, %.1f of system time a "
           "token\n",
           r.tok_s, base.tok_s, 1e3 * r.user_s, 1e3 * r.system_s);
    printf("  limit of cores   %.1f t/s: %.2f ms of user time a token, %u threads\n", cpu,
           1e3 * alone.user_s, info.n_threads);
    printf("  limit of disk    %.1f t/s: %.1f MB a token, %.0f MB/s\n", disk,
           (double)r.read_bytes / 1e6, rate / 1e6);
    printf("  share of limit   %.1f %%; threads waited %.1f ms a token\n", 100 * r.tok_s / limit,
           1e-6 * (double)r.st.wait_ns / (N_GEN + N_WARM));
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: bench_tier MODEL [DIR [HOT [DEPTH [FORMAT]]]]\n");
        return 2;
    }
    const char *dir = argc > 2 ? argv[2] : "/var/tmp", *hot = argc > 3 ? argv[3] : "8M";
    const uint32_t depth = argc > 4 ? (uint32_t)atoi(argv[4]) : 4096;
    printf("%s, %s\n", kvc_version(), kvc_cpu_level());
    static const char *const format[] = {"full", "quant8", "quant8:hadamard=off"};
    for (int i = 0; i < 3; i++) {
        if (argc < 6 || strcmp(argv[5], format[i]) == 0) {
            compare(argv[1], dir, hot, depth, format[i]);
        }
    }
    return 0;
}
