/* SPDX-License-Identifier: MIT
 * measure.c: what both passes of a comparison need of a session: opened with the right way to
 * compute, cancelled by Ctrl-C, its failures named by the spec as the user wrote it. */
#include "measure.h"

#include "interrupt.h"

#include <stdio.h>

int32_t cmp_session_fail(cmp_job *job, const char *spec, const kvc_session *session,
                         int32_t status) {
    const char *why = session != NULL ? kvc_session_error(session) : kvc_params_error(job->params);
    if (why == NULL || why[0] == '\0') {
        why = kvc_status_text(status);
    }
    snprintf(job->error, sizeof job->error, "%.400s: %.1100s", spec, why);
    return status;
}

int32_t cmp_session_open(cmp_job *job, const char *spec, const char *compute, kvc_session **out) {
    *out = NULL;
    int32_t rc = kvc_params_set_str(job->params, "compute", compute);
    if (rc >= 0) {
        rc = kvc_params_set_i64(job->params, "n_ctx", (int64_t)job->ctx);
    }
    if (rc >= 0) {
        rc = kvc_session_open(job->model, spec, job->params, out);
    }
    if (rc < 0) {
        return cmp_session_fail(job, spec, NULL, rc);
    }
    cmp_interrupt_watch(*out);
    return KVC_OK;
}

void cmp_session_close(kvc_session *session) {
    cmp_interrupt_forget(session);
    kvc_session_close(session);
}

int cmp_session_transient(const kvc_session *session) {
    kvc_session_stats stats = {.struct_size = sizeof stats};
    return kvc_session_get_stats(session, &stats) >= 0 && (stats.flags & KVC_PLAN_TRANSIENT) != 0;
}
