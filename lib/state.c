/* SPDX-License-Identifier: MIT
 * state.c: the head of a saved session, its checks, and the order of the rest. */
#include "state.h"

#include <stdio.h>
#include <string.h>

#define FORMAT   1u
#define MAX_TEXT 65536u

static const char magic[8] = {'k', 'v', 'c', 's', 'e', 's', 's', '\n'};

#define PUT(value) KVC_TRY(kvc__stream_write(out, &(value), sizeof(value)))
#define GET(value) KVC_TRY(kvc__stream_read(in, &(value), sizeof(value)))

/* ---------------------------------------------------------------- the head */

/* What the head says of a layer's pages. */
struct layer {
    uint32_t n_head_kv, dim_k, dim_v, open_type;
    uint64_t page_bytes;
};

/* What a file says of itself before its contents. Texts and layers are the reader's to free. */
struct head {
    char *fingerprint, *spec, *versions;
    struct layer *layer; /* [n_layer] */
    uint32_t compute, n_ctx, n_layer, n_column, n_token, n_valid;
};

/* "window 1.0.0 quant8 1.0.0": the policies that a session was computed with. Returns the length
 * without NUL. */
static size_t versions_of(const kvc_session *s, char *out, size_t cap) {
    size_t n = 0;
    for (uint32_t i = 0; i < s->stack.n_stage; i++) {
        const kvc_policy *p = &s->stack.stage[i]->policy.desc;
        const int m =
            snprintf(out != NULL && n < cap ? out + n : NULL, out != NULL && n < cap ? cap - n : 0,
                     "%s%s %s", i > 0 ? " " : "", p->name, p->version != NULL ? p->version : "");
        n += m > 0 ? (size_t)m : 0;
    }
    return n;
}

static int32_t put_text(kvc__stream *out, const char *text) {
    const uint32_t n = (uint32_t)strlen(text);
    PUT(n);
    return kvc__stream_write(out, text, n);
}

static struct layer layer_of(const kvc_session *s, uint32_t i) {
    const kvc__page_shape *sh = &s->stack.shape[i];
    return (struct layer){.n_head_kv = s->stack.n_head_kv[i],
                          .dim_k = sh->dim_k,
                          .dim_v = sh->dim_v,
                          .open_type = sh->open_type,
                          .page_bytes = sh->page_bytes};
}

static int32_t put_layers(const kvc_session *s, kvc__stream *out) {
    for (uint32_t i = 0; i < s->stack.n_layer; i++) {
        const struct layer l = layer_of(s, i);
        PUT(l.n_head_kv);
        PUT(l.dim_k);
        PUT(l.dim_v);
        PUT(l.open_type);
        PUT(l.page_bytes);
    }
    return KVC_OK;
}

static int32_t put_head(const kvc_session *s, kvc__stream *out) {
    const uint32_t format = FORMAT, order = 0x01020304;
    const size_t n = versions_of(s, NULL, 0) + 1;
    KVC_TRY(kvc__stream_write(out, magic, sizeof magic));
    PUT(format);
    PUT(order);
    KVC_TRY(put_text(out, s->model->fingerprint));
    KVC_TRY(put_text(out, s->stack.spec));
    char *versions = kvc__alloc(out->mem, n);
    if (versions == NULL) {
        return kvc__fail(out->err, KVC_E_NOMEM, "no memory to save a session");
    }
    versions_of(s, versions, n);
    int32_t rc = put_text(out, versions);
    kvc__free(out->mem, versions, n);
    KVC_TRY(rc);
    PUT(s->compute);
    PUT(s->n_ctx);
    PUT(s->stack.n_layer);
    PUT(s->store.n_column);
    PUT(s->n_token);
    PUT(s->n_valid);
    KVC_TRY(put_layers(s, out));
    const uint64_t sum = kvc__stream_hash(out);
    PUT(sum);
    return KVC_OK;
}

static int32_t damaged(kvc__stream *in, const char *what) {
    return kvc__fail(in->err, KVC_E_FORMAT, "%s: %s", in->path, what);
}

static int32_t get_text(kvc__stream *in, char **out) {
    uint32_t n;
    GET(n);
    if (n >= MAX_TEXT || n > kvc__stream_left(in)) {
        return damaged(in, "damaged: a text is longer than the file");
    }
    *out = kvc__alloc(in->mem, MAX_TEXT);
    if (*out == NULL) {
        return kvc__fail(in->err, KVC_E_NOMEM, "no memory to load a session");
    }
    return kvc__stream_read(in, *out, n);
}

static void head_free(kvc__mem *mem, struct head *h) {
    kvc__free(mem, h->fingerprint, h->fingerprint != NULL ? MAX_TEXT : 0);
    kvc__free(mem, h->spec, h->spec != NULL ? MAX_TEXT : 0);
    kvc__free(mem, h->versions, h->versions != NULL ? MAX_TEXT : 0);
    kvc__free(mem, h->layer, h->layer != NULL ? h->n_layer * sizeof *h->layer : 0);
}

static int32_t get_head(kvc__stream *in, struct head *h) {
    char m[sizeof magic];
    uint32_t format, order;
    KVC_TRY(kvc__stream_read(in, m, sizeof m));
    if (memcmp(m, magic, sizeof m) != 0) {
        return damaged(in, "not a saved session");
    }
    GET(format);
    GET(order);
    if (format != FORMAT || order != 0x01020304) {
        return kvc__fail(
            in->err, KVC_E_FORMAT,
            "%s: a session of format %u or of another byte order; this library reads format %u",
            in->path, format, FORMAT);
    }
    KVC_TRY(get_text(in, &h->fingerprint));
    KVC_TRY(get_text(in, &h->spec));
    KVC_TRY(get_text(in, &h->versions));
    GET(h->compute);
    GET(h->n_ctx);
    GET(h->n_layer);
    GET(h->n_column);
    GET(h->n_token);
    GET(h->n_valid);
    return KVC_OK;
}

/* The layers that follow, as many as the model has, and the checksum of all that. Nothing that the
 * head says is acted upon before: a flipped bit of n_ctx could ask for all the memory there is. */
static int32_t get_layers(kvc__stream *in, struct head *h) {
    h->layer = kvc__alloc_n(in->mem, h->n_layer, sizeof *h->layer);
    if (h->layer == NULL) {
        return kvc__fail(in->err, KVC_E_NOMEM, "no memory to load a session");
    }
    for (uint32_t i = 0; i < h->n_layer; i++) {
        GET(h->layer[i].n_head_kv);
        GET(h->layer[i].dim_k);
        GET(h->layer[i].dim_v);
        GET(h->layer[i].open_type);
        GET(h->layer[i].page_bytes);
    }
    uint64_t sum;
    const uint64_t want = kvc__stream_hash(in);
    GET(sum);
    return sum == want ? KVC_OK : damaged(in, "damaged: its head doesn't match its checksum");
}

/* The head's layers against the session's own. */
static int32_t check_layers(const kvc_session *s, const struct head *h, kvc__stream *in) {
    bool same = h->n_column == s->store.n_column;
    for (uint32_t i = 0; same && i < h->n_layer; i++) {
        const struct layer *a = &h->layer[i], b = layer_of(s, i);
        same = a->n_head_kv == b.n_head_kv && a->dim_k == b.dim_k && a->dim_v == b.dim_v &&
               a->open_type == b.open_type && a->page_bytes == b.page_bytes;
    }
    return same ? KVC_OK
                : damaged(in, "its pages have another shape than this model and spec give");
}

/* ---------------------------------------------------------------- tokens */

static int32_t get_tokens(kvc_session *s, const struct head *h, kvc__stream *in) {
    KVC_TRY(kvc__stream_read(in, s->token, h->n_token * sizeof *s->token));
    KVC_TRY(kvc__stream_read(in, s->flag, h->n_token));
    for (uint32_t i = 0; i < h->n_token; i++) {
        if (s->token[i] < 0 || (uint32_t)s->token[i] >= s->model->hp.n_vocab ||
            s->flag[i] > (KVC__TOKEN_WANTED | KVC__TOKEN_ENDS)) {
            return damaged(in, "damaged: a token is outside the vocabulary");
        }
    }
    s->n_token = h->n_token;
    s->n_valid = h->n_valid;
    return KVC_OK;
}

/* ---------------------------------------------------------------- save, load, fork */

static int32_t put_all(kvc_session *s, kvc__stream *out) {
    KVC_TRY(put_head(s, out));
    KVC_TRY(kvc__stream_write(out, s->token, s->n_token * sizeof *s->token));
    KVC_TRY(kvc__stream_write(out, s->flag, s->n_token));
    KVC_TRY(kvc__store_save(&s->store, out));
    KVC_TRY(kvc__stack_save(&s->stack, out, &s->err));
    const uint64_t sum = kvc__stream_hash(out);
    PUT(sum);
    return kvc__stream_commit(out);
}

int32_t kvc__state_save(kvc_session *s, const char *path) {
    kvc__stream out = {0};
    KVC_TRY(kvc__stack_can_save(&s->stack, &s->err));
    KVC_TRY(kvc__stream_create(&s->mem, path, &out, &s->err));
    int32_t rc = put_all(s, &out);
    kvc__stream_close(&out);
    return rc;
}

/* Opens the session that the head speaks of, when the whole head is sound. */
static int32_t open_like(kvc_model *model, struct head *h, const struct kvc_params *params,
                         kvc__stream *in, kvc_session **out) {
    if (strcmp(h->fingerprint, model->fingerprint) != 0) {
        return kvc__fail(in->err, KVC_E_UNSUPPORTED,
                         "%s: saved with another model (fingerprint %s, not %s)", in->path,
                         h->fingerprint, model->fingerprint);
    }
    if (h->n_layer != model->hp.n_layer || h->compute > KVC_COMPUTE_F32 || h->n_ctx == 0 ||
        h->n_token > h->n_ctx || h->n_valid > h->n_token || h->n_token > kvc__stream_left(in)) {
        return damaged(in, "damaged: its counts contradict each other");
    }
    KVC_TRY(get_layers(in, h));
    kvc__search search;
    kvc__session_setup setup;
    kvc__session_setup_params(params, &search, &setup);
    search.saved = 1;
    setup.n_ctx = h->n_ctx;
    setup.compute = h->compute;
    kvc__err why = {""};
    int32_t rc = kvc__session_open(model, h->spec, &setup, out, &why);
    return rc < 0 ? kvc__fail(in->err, rc, "%s: %s", in->path, why.text) : rc;
}

static int32_t check_versions(const kvc_session *s, const struct head *h, kvc__stream *in) {
    char have[4096] = "";
    versions_of(s, have, sizeof have);
    if (strcmp(have, h->versions) != 0) {
        return kvc__fail(in->err, KVC_E_UNSUPPORTED, "%s: saved with the policies %s; here are %s",
                         in->path, h->versions, have);
    }
    return KVC_OK;
}

static int32_t get_all(kvc_session *s, const struct head *h, kvc__stream *in) {
    KVC_TRY(check_versions(s, h, in));
    KVC_TRY(check_layers(s, h, in));
    KVC_TRY(get_tokens(s, h, in));
    KVC_TRY(kvc__store_load(&s->store, h->n_valid, in));
    KVC_TRY(kvc__stack_load(&s->stack, in, in->err));
    uint64_t sum;
    const uint64_t want = kvc__stream_hash(in);
    GET(sum);
    if (sum != want || kvc__stream_left(in) != 0) {
        return damaged(in, "damaged: it doesn't match its checksum");
    }
    return KVC_OK;
}

int32_t kvc__state_load(kvc_model *model, const char *path, const struct kvc_params *params,
                        kvc_session **out, kvc__err *err) {
    kvc__stream in = {0};
    struct head h = {0};
    kvc_session *s = NULL;
    KVC_TRY(kvc__stream_open(&model->mem, path, &in, err));
    int32_t rc = get_head(&in, &h);
    if (rc == KVC_OK) {
        rc = open_like(model, &h, params, &in, &s);
    }
    if (rc == KVC_OK) {
        pthread_mutex_lock(&model->lock);
        rc = get_all(s, &h, &in);
        pthread_mutex_unlock(&model->lock);
    }
    head_free(&model->mem, &h);
    kvc__stream_close(&in);
    if (rc < 0 && s != NULL) {
        kvc__session_close(s);
    } else {
        *out = s;
    }
    return rc;
}

/* The stages' states, through memory. */
static int32_t copy_stages(kvc_session *from, kvc_session *to) {
    kvc__stream through = {0};
    KVC_TRY(kvc__stream_memory(&from->mem, &through, &from->err));
    int32_t rc = kvc__stack_save(&from->stack, &through, &from->err);
    if (rc == KVC_OK) {
        rc = kvc__stack_load(&to->stack, &through, &from->err);
    }
    kvc__stream_close(&through);
    return rc;
}

int32_t kvc__state_fork(kvc_session *s, kvc_session **out) {
    kvc_session *f = NULL;
    const kvc__session_setup setup = {.n_ctx = s->n_ctx,
                                      .compute = s->compute,
                                      .allocator = s->mem.a.realloc != NULL ? &s->mem.a : NULL,
                                      .log = s->stack.log,
                                      .log_user = s->stack.log_user,
                                      .like = s};
    KVC_TRY(kvc__stack_can_save(&s->stack, &s->err));
    KVC_TRY(kvc__session_open(s->model, s->stack.spec, &setup, &f, &s->err));
    memcpy(f->token, s->token, s->n_token * sizeof *s->token);
    memcpy(f->flag, s->flag, s->n_token);
    f->n_token = s->n_token;
    f->n_valid = s->n_valid;
    pthread_mutex_lock(&s->model->lock);
    kvc__store_copy(&f->store, &s->store);
    int32_t rc = copy_stages(s, f);
    pthread_mutex_unlock(&s->model->lock);
    if (rc < 0) {
        kvc__session_close(f);
        return rc;
    }
    *out = f;
    return KVC_OK;
}
