/* SPDX-License-Identifier: MIT
 * fuzz_gguf.c: opening a model from hostile bytes: container, hyperparameters, vocabulary, tensors.
 * A model that opens must also tokenize, open a session and decode. */
#include "fuzz.h"
#include "tiny.h"

static void use(kvc_model *m, kvc_params *p) {
    kvc_model_info info = {.struct_size = sizeof info};
    kvc_session *s = NULL;
    int32_t token[8] = {0};
    size_t n = 0;
    char text[64];
    fuzz_check(kvc_model_get_info(m, &info) == KVC_OK, "an open model says what it is", "");
    const char *say = "the hello <|im_end|> \xc3\xa9";
    (void)kvc_model_tokenize(m, say, strlen(say), KVC_TEXT_SPECIAL | KVC_TEXT_BOS, token, 8, &n);
    n = n < 8 ? n : 8;
    for (size_t i = 0; i < n; i++) {
        fuzz_check(token[i] >= 0 && (uint32_t)token[i] < info.n_vocab, "tokens exist", say);
    }
    (void)kvc_model_detokenize(m, token, n, KVC_TEXT_SPECIAL, text, sizeof text, &n);
    if (kvc_params_set_i64(p, "n_ctx", 16) == KVC_OK &&
        kvc_session_open(m, "quant8:hadamard=off", p, &s) == KVC_OK) {
        const int32_t some[3] = {0, (int32_t)info.n_vocab - 1, (int32_t)info.n_vocab / 2};
        (void)kvc_session_decode(s, some, 3);
        kvc_session_close(s);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    kvc_params *p = tiny_params();
    kvc_model *m = NULL;
    fuzz_check(kvc_params_set_i64(p, "n_batch", 4) == KVC_OK, "n_batch is set", "");
    int32_t rc = kvc_model_open_memory(data, size, p, &m);
    if (rc == KVC_OK) {
        use(m, p);
    } else {
        fuzz_check(m == NULL && kvc_params_error(p)[0] != '\0', "a failure has a sentence",
                   kvc_status_name(rc));
    }
    kvc_model_close(m);
    kvc_params_destroy(p);
    return 0;
}
