/* SPDX-License-Identifier: MIT
 * generate.c: `generate MODEL PROMPT [POLICY [N [SEED]]]`: continues PROMPT by N tokens (32) under
 * POLICY (quant8), greedily, or with SEED at temperature 0.8. Prints the stack, the tokens, their
 * text and a hash of all logits (FNV-1a, 64 bits, over the bytes of the floats), as its twins in
 * Rust and Go do. It needs an installed kvc and nothing else of it. */
#include <kvc/kvc.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_MOST 1000000

typedef struct generator {
    kvc_params *params;
    kvc_model *model;
    kvc_session *session;
    kvc_sampler *sampler;
    int32_t *token; /* the prompt, then what is generated */
    size_t n_prompt;
    size_t n;
    uint64_t hash;
} generator;

static int fail(const char *text) {
    fprintf(stderr, "generate: %s\n", text);
    return -1;
}

static int open_all(generator *g, const char *path, const char *policy, const char *seed) {
    if (kvc_params_create(&g->params) < 0) {
        return fail("out of memory");
    }
    if (seed != NULL && (kvc_params_set_f64(g->params, "temperature", 0.8) < 0 ||
                         kvc_params_set_str(g->params, "seed", seed) < 0)) {
        return fail(kvc_params_error(g->params));
    }
    if (kvc_model_open(path, g->params, &g->model) < 0 ||
        kvc_session_open(g->model, policy, g->params, &g->session) < 0 ||
        kvc_sampler_create(g->params, &g->sampler) < 0) {
        return fail(kvc_params_error(g->params));
    }
    return 0;
}

static uint64_t fnv1a(uint64_t hash, const float *logits, size_t n) {
    const unsigned char *byte = (const unsigned char *)logits;
    for (size_t i = 0; i < n * sizeof *logits; i++) {
        hash = (hash ^ byte[i]) * 0x100000001b3;
    }
    return hash;
}

/* A number of tokens; 0 for what is none. */
static size_t parse_n(const char *text) {
    char *end = NULL;
    const unsigned long n = strtoul(text, &end, 10);
    return text[0] >= '0' && text[0] <= '9' && *end == '\0' && n <= N_MOST ? n : 0;
}

/* The prompt's tokens, with room for n more. */
static int read_prompt(generator *g, const char *text, size_t n) {
    const size_t bytes = strlen(text);
    size_t most = 0;
    if (kvc_model_tokenize(g->model, text, bytes, KVC_TEXT_BOS, NULL, 0, &most) < 0) {
        return fail(kvc_model_error(g->model));
    }
    g->token = malloc((most + n) * sizeof *g->token);
    if (g->token == NULL) {
        return fail("out of memory");
    }
    kvc_model_tokenize(g->model, text, bytes, KVC_TEXT_BOS, g->token, most, &g->n_prompt);
    return 0;
}

static int generate(generator *g, size_t n) {
    kvc_model_info info = {.struct_size = sizeof info};
    kvc_model_get_info(g->model, &info);
    const int32_t *next = g->token;
    size_t n_next = g->n_prompt;
    g->hash = 0xcbf29ce484222325;
    for (; g->n < n; g->n++) {
        if (kvc_session_decode(g->session, next, (uint32_t)n_next) < 0) {
            return fail(kvc_session_error(g->session));
        }
        const float *logits = kvc_session_logits(g->session, 0);
        int32_t *token = &g->token[g->n_prompt + g->n];
        *token = kvc_sampler_sample(g->sampler, logits, info.n_vocab);
        if (*token < 0) {
            return fail(kvc_status_text(*token));
        }
        if (kvc_model_is_end(g->model, *token)) {
            break;
        }
        g->hash = fnv1a(g->hash, logits, info.n_vocab);
        next = token;
        n_next = 1;
    }
    return 0;
}

static int print(const generator *g) {
    const int32_t *token = g->token + g->n_prompt;
    size_t bytes = 0;
    if (kvc_model_detokenize(g->model, token, g->n, KVC_TEXT_SPECIAL, NULL, 0, &bytes) < 0) {
        return fail(kvc_model_error(g->model));
    }
    char *text = malloc(bytes + 1);
    if (text == NULL) {
        return fail("out of memory");
    }
    kvc_model_detokenize(g->model, token, g->n, KVC_TEXT_SPECIAL, text, bytes, &bytes);
    printf("tokens");
    for (size_t i = 0; i < g->n; i++) {
        printf(" %" PRId32, token[i]);
    }
    printf("\ntext ");
    fwrite(text, 1, bytes, stdout);
    printf("\nlogits %016" PRIx64 "\n", g->hash);
    free(text);
    return 0;
}

int main(int argc, char **argv) {
    generator g = {0};
    int rc = -1;
    const char *policy = argc > 3 ? argv[3] : "quant8", *seed = argc > 5 ? argv[5] : NULL;
    const size_t n = argc > 4 ? parse_n(argv[4]) : 32;
    if (argc < 3) {
        fail("usage: generate MODEL PROMPT [POLICY [N [SEED]]]");
    } else if (n == 0) {
        fail("N must be a number from 1 to 1000000");
    } else if (open_all(&g, argv[1], policy, seed) == 0 && read_prompt(&g, argv[2], n) == 0) {
        printf("stack %s\n", kvc_session_spec(g.session));
        rc = generate(&g, n) == 0 ? print(&g) : -1;
    }
    kvc_sampler_destroy(g.sampler);
    kvc_session_close(g.session);
    kvc_model_close(g.model);
    kvc_params_destroy(g.params);
    free(g.token);
    return rc < 0;
}
