/* SPDX-License-Identifier: MIT
 * run_options.h: the command line of kvrun, parsed and checked before a model is opened. */
#ifndef KVC_RUN_OPTIONS_H
#define KVC_RUN_OPTIONS_H

#include "kvc/kvc.h"

#include <stdbool.h>
#include <stdint.h>

#define RUN_MAX_STOP 16u

/** The command line. Texts lead into argv; NULL where nothing was given. */
typedef struct run_options {
    const char *model;
    const char *prompt, *file; /* at most one of them */
    const char *system;
    const char *chat_template;
    const char *session; /* the file to resume from and save to */
    const char *policy;
    const char *compute;
    const char *temperature, *top_k, *top_p, *min_p; /* for kvc_params_set_str() */
    const char *stop[RUN_MAX_STOP];
    uint32_t n_stop;
    uint32_t predict; /* 0: until the model ends */
    uint32_t ctx;     /* 0: the model's */
    uint32_t threads;
    uint64_t seed;
    bool raw, json, quiet;
    int verbose;
} run_options;

/** Parses the command line. --help and --version end the process with 0, a mistake ends it with 2
 * and a sentence on stderr. */
void run_options_parse(int argc, char **argv, run_options *out);
/** Puts what the library is to know into params. Returns 0, or an exit code after a sentence. */
int run_options_apply(const run_options *o, kvc_params *params);

#endif
