/* SPDX-License-Identifier: MIT
 * consumer.c: a program as a stranger would write it against an installed kvc: opens a model and a
 * session, computes a prompt and a few greedy tokens, and checks where the library looks for
 * policies. `consumer MODEL SPEC POLICYDIR` */
#include <kvc/kvc.h>

#include <stdio.h>
#include <string.h>

enum { N_PROMPT = 100, N_STEP = 4 };

static int fail(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    return 1;
}

static int check_path(kvc_params *params, const char *want) {
    kvc_policies *list = NULL;
    int32_t rc = kvc_policies_open(params, &list);
    int found = rc == KVC_OK && strstr(kvc_policies_path(list), want) != NULL;
    if (!found) {
        fail("policies are searched in", rc == KVC_OK ? kvc_policies_path(list) : "?");
        fail("which lacks", want);
    }
    kvc_policies_close(list);
    return !found;
}

static int generate(kvc_session *session, kvc_sampler *sampler, uint32_t n_vocab) {
    int32_t prompt[N_PROMPT];
    for (int i = 0; i < N_PROMPT; i++) {
        prompt[i] = 20 + i % 50;
    }
    int32_t rc = kvc_session_decode(session, prompt, N_PROMPT);
    for (int i = 0; i < N_STEP && rc == KVC_OK; i++) {
        int32_t token = kvc_sampler_sample(sampler, kvc_session_logits(session, 0), n_vocab);
        printf(" %d", (int)token);
        rc = token < 0 ? token : kvc_session_decode(session, &token, 1);
    }
    printf("\n");
    if (rc != KVC_OK || kvc_session_n_past(session) != N_PROMPT + N_STEP) {
        return fail(kvc_status_name(rc), kvc_session_error(session));
    }
    return 0;
}

int main(int argc, char **argv) {
    kvc_params *params = NULL;
    kvc_model *model = NULL;
    kvc_session *session = NULL;
    kvc_sampler *sampler = NULL;
    kvc_model_info info = {.struct_size = sizeof info};
    int failed = 1;
    if (argc != 4 || kvc_params_create(&params) != KVC_OK) {
        return fail("usage", "consumer MODEL SPEC POLICYDIR");
    }
    if (strcmp(kvc_version(), KVC_VERSION_STRING) != 0) {
        fail("the library's version isn't the header's", kvc_version());
    } else if (kvc_model_open(argv[1], params, &model) != KVC_OK ||
               kvc_session_open(model, argv[2], params, &session) != KVC_OK ||
               kvc_sampler_create(params, &sampler) != KVC_OK ||
               kvc_model_get_info(model, &info) != KVC_OK) {
        fail(argv[2], kvc_params_error(params));
    } else {
        printf("%s:", kvc_session_spec(session));
        failed = generate(session, sampler, info.n_vocab) || check_path(params, argv[3]);
    }
    kvc_sampler_destroy(sampler);
    kvc_session_close(session);
    kvc_model_close(model);
    kvc_params_destroy(params);
    return failed;
}
