/* SPDX-License-Identifier: MIT
 * options.h: the command line of kvcompare, parsed and checked before anything runs. */
#ifndef KVC_OPTIONS_H
#define KVC_OPTIONS_H

#include "figures.h"
#include "gate.h"

#include <stdint.h>

#define CMP_MAX_GATE    64u
#define CMP_MAX_THREADS 256u /* of n_threads, as the library has it */

/** What --list asks for. */
enum { CMP_LIST_NONE = 0, CMP_LIST_TEXT, CMP_LIST_JSON };
/** What --format asks for. */
enum { CMP_FORMAT_TABLE = 0, CMP_FORMAT_JSON, CMP_FORMAT_CSV, CMP_FORMAT_MD };

/** The command line. Texts lead into argv, but for spec[]. */
typedef struct cmp_options {
    const char *model;
    const char *file; /* NULL: the built-in text */
    const char *baseline;
    const char *compute; /* "f32" or "int8" */
    const char *output;  /* NULL: standard output */
    uint32_t ctx, tokens, generate, speed_tokens, rounds, threads;
    uint64_t seed;
    int no_repack;
    int verbose;
    int format; /* CMP_FORMAT_… */
    int list;   /* CMP_LIST_… */
    uint32_t n_spec;
    char *spec[CMP_MAX_POLICY]; /* owned */
    uint32_t n_gate;
    const char *gate_text[CMP_MAX_GATE];
    cmp_gate gate[CMP_MAX_GATE];
} cmp_options;

/** Parses the command line. --help and --version end the process with 0, a mistake ends it with 2
 * and a sentence on stderr. */
void cmp_options_parse(int argc, char **argv, cmp_options *out);
/** Frees what it owns. */
void cmp_options_free(cmp_options *o);

/* For every command line; a mistake ends the process as above. */
struct argp;
struct argp_state;
/** argp_parse() into out. What argp and getopt say of a mistake reaches stderr as cmp_text_put()
 * writes it. Returns 0, or not without memory. */
int cmp_option_parse(const struct argp *parser, int argc, char **argv, void *out);
/** A whole number in [min, max]. */
uint64_t cmp_option_number(struct argp_state *state, const char *name, const char *arg,
                           uint64_t min, uint64_t max);
/** The index of arg among word[n]. */
int cmp_option_choice(struct argp_state *state, const char *name, const char *arg,
                      const char *const *word, int n);
/** Appends the specs of a list separated by commas to spec[CMP_MAX_POLICY], each the caller's to
 * free. */
void cmp_option_specs(struct argp_state *state, const char *list, char **spec, uint32_t *n_spec);

#endif
