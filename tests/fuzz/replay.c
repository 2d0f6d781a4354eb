/* SPDX-License-Identifier: MIT
 * replay.c: a main() for a fuzz target without a fuzzer: runs it on every file named, and on every
 * file in directories named. Only a crash fails; an input that can't be read is said and counts as
 * one, so that a corpus in the wrong place is noticed. */
#include "fuzz.h"

#include <dirent.h>
#include <string.h>
#include <sys/stat.h>

static unsigned n_run;

static bool run_file(const char *path) {
    FILE *f = fopen(path, "rb");
    struct stat st;
    if (f == NULL || fstat(fileno(f), &st) != 0) {
        perror(path);
        return false;
    }
    /* Of exactly that size, so that a sanitizer sees a read past the end. */
    const size_t n = (size_t)st.st_size;
    uint8_t *data = malloc(n > 0 ? n : 1);
    const bool read = data != NULL && fread(data, 1, n, f) == n;
    fclose(f);
    if (read) {
        (void)LLVMFuzzerTestOneInput(data, n);
        n_run++;
    } else {
        fprintf(stderr, "%s: can't be read\n", path);
    }
    free(data);
    return read;
}

static bool run_directory(const char *path) {
    struct dirent **entry;
    const int n = scandir(path, &entry, NULL, alphasort);
    bool good = n >= 0;
    for (int i = 0; i < n; i++) {
        char file[4096];
        if (entry[i]->d_name[0] != '.') {
            snprintf(file, sizeof file, "%s/%s", path, entry[i]->d_name);
            good &= run_file(file);
        }
        free(entry[i]);
    }
    if (n < 0) {
        perror(path);
    } else {
        free(entry);
    }
    return good;
}

int main(int argc, char **argv) {
    bool good = true;
    for (int i = 1; i < argc; i++) {
        struct stat st;
        good &= stat(argv[i], &st) == 0 && S_ISDIR(st.st_mode) ? run_directory(argv[i])
                                                               : run_file(argv[i]);
    }
    printf("%u inputs\n", n_run);
    return good && n_run > 0 ? 0 : 1;
}
