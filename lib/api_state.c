/* SPDX-License-Identifier: MIT
 * api_state.c: the public calls that copy, write and read sessions. */
#include "state.h"

/* Takes a session that lives; KVC_E_BUSY, KVC_E_DEAD. */
static int32_t take(kvc_session *s) {
    if (atomic_exchange(&s->busy, 1) != 0) {
        return KVC_E_BUSY;
    }
    if (s->dead != KVC_OK) {
        atomic_store(&s->busy, 0);
        return KVC_E_DEAD;
    }
    s->err.text[0] = '\0';
    return KVC_OK;
}

int32_t kvc_session_fork(kvc_session *session, kvc_session **out) {
    if (out != NULL) {
        *out = NULL;
    }
    if (session == NULL || out == NULL) {
        return KVC_E_ARG;
    }
    KVC_TRY(take(session));
    int32_t rc = kvc__state_fork(session, out);
    atomic_store(&session->busy, 0);
    return rc;
}

int32_t kvc_session_save(kvc_session *session, const char *path) {
    if (session == NULL || path == NULL) {
        return KVC_E_ARG;
    }
    KVC_TRY(take(session));
    int32_t rc = kvc__state_save(session, path);
    atomic_store(&session->busy, 0);
    return rc;
}

int32_t kvc_session_load(kvc_model *model, const char *path, kvc_params *params,
                         kvc_session **out) {
    kvc__err ignored = {""};
    kvc__err *err = params != NULL ? &params->err : &ignored;
    if (out != NULL) {
        *out = NULL;
    }
    if (model == NULL || path == NULL || out == NULL) {
        return kvc__fail(err, KVC_E_ARG, "kvc_session_load: model, path or out is NULL");
    }
    err->text[0] = '\0';
    return kvc__state_load(model, path, params != NULL ? params : &kvc__params_default, out, err);
}
