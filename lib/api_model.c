/* SPDX-License-Identifier: MIT
 * api_model.c: the public calls on models. Arguments are checked here. */
#include "model.h"
#include "os.h"

#include <string.h>

/* Where a constructor leaves its sentence. */
static kvc__err *err_of(kvc_params *params, kvc__err *ignored) {
    return params != NULL ? &params->err : ignored;
}

int32_t kvc_model_open_memory(const void *bytes, size_t n, kvc_params *params, kvc_model **out) {
    kvc__err ignored = {""};
    kvc__err *err = err_of(params, &ignored);
    if (out == NULL || bytes == NULL) {
        return kvc__fail(err, KVC_E_ARG, "kvc_model_open_memory: bytes or out is NULL");
    }
    *out = NULL;
    err->text[0] = '\0';
    return kvc__model_create(bytes, n, false, params, out, err);
}

int32_t kvc_model_open(const char *path, kvc_params *params, kvc_model **out) {
    kvc__err ignored = {""};
    kvc__err *err = err_of(params, &ignored);
    if (out == NULL || path == NULL) {
        return kvc__fail(err, KVC_E_ARG, "kvc_model_open: path or out is NULL");
    }
    *out = NULL;
    err->text[0] = '\0';
    kvc__map map = {0};
    KVC_TRY(kvc__map_file(path, &map, err));
    kvc__err why = {""};
    int32_t rc = kvc__model_create(map.data, map.size, true, params, out, &why);
    kvc__unmap(&map);
    return rc < 0 ? kvc__fail(err, rc, "%s: %s", path, why.text) : rc;
}

void kvc_model_close(kvc_model *model) {
    if (model != NULL) {
        kvc__model_drop(model);
    }
}

int32_t kvc_model_get_info(const kvc_model *model, kvc_model_info *out) {
    if (model == NULL || out == NULL || out->struct_size < sizeof(uint32_t)) {
        return KVC_E_ARG;
    }
    const kvc__hparams *hp = &model->hp;
    const uint32_t theirs = out->struct_size;
    const kvc_model_info info = {.struct_size = theirs,
                                 .n_layer = hp->n_layer,
                                 .n_embd = hp->n_embd,
                                 .n_vocab = hp->n_vocab,
                                 .n_ctx_train = hp->n_ctx_train,
                                 .n_head = hp->n_head,
                                 .n_head_kv = hp->n_head_kv,
                                 .head_dim = hp->dim_k,
                                 .n_threads = kvc__pool_n_thread(model->pool),
                                 .token_bos = kvc__vocab_bos(model->vocab),
                                 .token_eos = kvc__vocab_eos(model->vocab),
                                 .token_eot = kvc__vocab_eot(model->vocab),
                                 .n_param = model->n_param,
                                 .file_bytes = model->file_bytes,
                                 .arch = model->arch,
                                 .name = model->name,
                                 .weights = model->weights,
                                 .fingerprint = model->fingerprint,
                                 .read_bytes = model->read_bytes,
                                 .n_mac = model->n_mac,
                                 .chat = kvc__chat_name(&model->chat)};
    memcpy(out, &info, theirs < sizeof info ? theirs : sizeof info);
    return KVC_OK;
}

const char *kvc_model_error(const kvc_model *model) {
    return model != NULL ? model->err.text : "";
}

int32_t kvc_model_tokenize(kvc_model *model, const char *text, size_t n, uint32_t flags,
                           int32_t *out, size_t cap, size_t *n_out) {
    if (model == NULL) {
        return KVC_E_ARG;
    }
    if ((text == NULL && n > 0) || (out == NULL && cap > 0) || n_out == NULL) {
        return kvc__fail(&model->err, KVC_E_ARG, "kvc_model_tokenize: text, out or n_out is NULL");
    }
    return kvc__vocab_tokenize(model->vocab, text, n, flags, out, cap, n_out, &model->err);
}

int32_t kvc_model_detokenize(kvc_model *model, const int32_t *token, size_t n, uint32_t flags,
                             char *out, size_t cap, size_t *n_out) {
    if (model == NULL) {
        return KVC_E_ARG;
    }
    if ((token == NULL && n > 0) || (out == NULL && cap > 0) || n_out == NULL) {
        return kvc__fail(&model->err, KVC_E_ARG,
                         "kvc_model_detokenize: token, out or n_out is NULL");
    }
    return kvc__vocab_detokenize(model->vocab, token, n, flags, out, cap, n_out, &model->err);
}

uint32_t kvc_model_is_end(const kvc_model *model, int32_t token) {
    return model != NULL && kvc__vocab_is_end(model->vocab, token);
}

int32_t kvc_model_chat(kvc_model *model, const char *family, const kvc_chat_message *message,
                       uint32_t n, uint32_t stride, uint32_t flags, int32_t *out, size_t cap,
                       size_t *n_out) {
    if (model == NULL) {
        return KVC_E_ARG;
    }
    if (message == NULL || n == 0 || (out == NULL && cap > 0) || n_out == NULL) {
        return kvc__fail(&model->err, KVC_E_ARG,
                         "kvc_model_chat: message, out or n_out is NULL, or there is no message");
    }
    if (stride < sizeof *message) {
        return kvc__fail(&model->err, KVC_E_ARG,
                         "kvc_model_chat: stride is %u; give sizeof(kvc_chat_message)", stride);
    }
    const kvc__chat_call call = {.family = family,
                                 .message = message,
                                 .n = n,
                                 .stride = stride,
                                 .flags = flags,
                                 .out = out,
                                 .cap = cap,
                                 .n_out = n_out};
    return kvc__chat_tokenize(&model->chat, model->vocab, &model->mem, &call, &model->err);
}
