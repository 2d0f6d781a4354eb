/* SPDX-License-Identifier: MIT
 * t_rude: a policy for tests that only looks, and whose texts hold what no terminal should be sent:
 * its summary, version, unit, help and choices, what it logs, and what it fails with. It claims to
 * have counted the rows that it was shown. */
#include <kvc/policy.h>

#include <stdatomic.h>

#define RUDE "\033[31mred\nline\r\x9b\xff\xc2\x9b\x07 \xe2\x82\xac"

static const char *const choices[] = {"calm", "f\033[1mail", 0};

static const kvc_param params[] = {{.struct_size = sizeof(kvc_param),
                                    .type = KVC_PARAM_ENUM,
                                    .name = "mood",
                                    .unit = "\033[2J",
                                    .help = "help " RUDE,
                                    .choice = choices}};

typedef struct rude {
    const kvc_host *host;
    atomic_uint_least64_t n_row;
} rude;

static int32_t create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                      kvc_plan *plan, void **self) {
    rude *me = host->realloc(host->ctx, 0, 0, sizeof *me, 64);
    (void)shape, (void)plan;
    if (me == 0) {
        return KVC_E_NOMEM;
    }
    *self = me;
    me->host = host;
    host->log(host->ctx, KVC_LOG_WARN, "log " RUDE);
    return value[0].i == 0 ? KVC_OK : host->fail(host->ctx, KVC_E_UNSUPPORTED, "fail " RUDE);
}

static void destroy(void *self) {
    rude *me = self;
    me->host->realloc(me->host->ctx, me, sizeof *me, 0, 64);
}

static int32_t append(void *self, const kvc_rows *rows) {
    atomic_fetch_add(&((rude *)self)->n_row, rows->n);
    return KVC_OK;
}

static int32_t stats(void *self, kvc_claims *out) {
    out->n_selected = atomic_load(&((rude *)self)->n_row);
    return KVC_OK;
}

static const kvc_policy_api api = {.struct_size = sizeof api,
                                   .create = create,
                                   .destroy = destroy,
                                   .append = append,
                                   .stats = stats};

static const kvc_policy policy = {.struct_size = sizeof policy,
                                  .abi = KVC_POLICY_ABI,
                                  .abi_min = KVC_POLICY_ABI_MIN,
                                  .n_param = 1,
                                  .param_stride = sizeof params[0],
                                  .caps = KVC_CAP_CHUNK_INVARIANT | KVC_CAP_LOSSLESS,
                                  .name = "t_rude",
                                  .version = "1\033[0m",
                                  .summary = "summary " RUDE,
                                  .license = "MIT",
                                  .param = params,
                                  .api = &api};

KVC_POLICY_EXPORT const kvc_policy *kvc_policy_entry(uint32_t host_abi, uint32_t index) {
    (void)host_abi;
    return index == 0 ? &policy : 0;
}
