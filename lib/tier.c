/* SPDX-License-Identifier: MIT
 * tier.c: calls of a policy's tier, timed and counted; what it answers is checked. */
#include "tier.h"

#include "os.h"

/* Whether a field has elements of a size that there is, in whole runs. */
static bool field_is_sound(const kvc_field *f) {
    return f->n != 0 && f->run != 0 && f->n % f->run == 0 && f->elem != 0 && f->elem <= 8 &&
           (f->elem & (f->elem - 1)) == 0;
}

/* Whether all elements of a sound field lie in a page. */
static bool field_fits(const kvc_field *f, size_t page_bytes) {
    const uint64_t last = (uint64_t)(f->n / f->run - 1) * f->run_stride +
                          (uint64_t)(KVC_PAGE - 1) * f->entry_stride + (uint64_t)f->run * f->elem;
    return f->offset + last <= page_bytes;
}

/* Asks the codec what is where in a layer's pages. */
static int32_t layer_layout(kvc__tier *t, const kvc__tier_env *env, uint32_t i, kvc__err *err) {
    kvc_field *field = t->field + (size_t)i * KVC_MAX_FIELDS;
    const size_t bytes = env->shape[i].page_bytes;
    const uint32_t n = kvc__codec_fields(env->codec, i, field);
    const char *owner = env->codec->owner != NULL ? env->codec->owner : "";
    if (n > KVC_MAX_FIELDS) {
        return kvc__fail(err, KVC_E_POLICY,
                         "policy '%s': its codec's fields() answered %u for layer %u, of at most "
                         "%u; the policy must be mended",
                         owner, n, i, KVC_MAX_FIELDS);
    }
    for (uint32_t f = 0; f < n; f++) {
        field[f].struct_size = sizeof *field;
        if (!field_is_sound(&field[f])) {
            return kvc__fail(err, KVC_E_POLICY,
                             "policy '%s': its codec's field %u of layer %u isn't made of whole "
                             "runs of 1, 2, 4 or 8 bytes each; the policy must be mended",
                             owner, f, i);
        }
        if (!field_fits(&field[f], bytes)) {
            return kvc__fail(err, KVC_E_POLICY,
                             "policy '%s': its codec's field %u of layer %u leaves the page of %zu "
                             "bytes; the policy must be mended",
                             owner, f, i, bytes);
        }
    }
    t->layer[i] = (kvc_page_layout){.struct_size = sizeof *t->layer,
                                    .n_page = env->n_head_kv[i] * env->n_lane_page,
                                    .page_bytes = bytes,
                                    .n_field = n,
                                    .field_stride = sizeof *field,
                                    .field = field};
    return KVC_OK;
}

int32_t kvc__tier_describe(kvc__tier *t, const kvc__tier_env *env, kvc__err *err) {
    t->mem = env->mem;
    pthread_mutex_init(&t->outside, NULL);
    t->layout = (kvc_layout){.struct_size = sizeof t->layout,
                             .n_layer = env->n_layer,
                             .n_page = env->n_page,
                             .n_put = env->n_put,
                             .n_get = env->n_get,
                             .n_unpack = env->n_unpack,
                             .layer_stride = sizeof *t->layer};
    t->layer = kvc__alloc_n(t->mem, env->n_layer, sizeof *t->layer);
    t->field = kvc__alloc_n(t->mem, (size_t)env->n_layer * KVC_MAX_FIELDS, sizeof *t->field);
    t->record = kvc__alloc_n(t->mem, env->n_layer, sizeof *t->record);
    if (t->layer == NULL || t->field == NULL || t->record == NULL) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for the layout of a tier's pages");
    }
    t->layout.layer = t->layer;
    for (uint32_t i = 0; i < env->n_layer; i++) {
        KVC_TRY(layer_layout(t, env, i, err));
    }
    return KVC_OK;
}

int32_t kvc__tier_ask_records(kvc__tier *t, uint32_t *layer) {
    for (uint32_t i = 0; i < t->layout.n_layer; i++) {
        const size_t page = t->layer[i].page_bytes;
        t->record[i] = t->api.record_bytes != NULL ? t->api.record_bytes(t->self, i) : page;
        *layer = i;
        if (t->record[i] == 0 || t->record[i] > UINT32_MAX ||
            (!kvc__tier_packs(t) && t->record[i] < page)) {
            return KVC_E_POLICY;
        }
    }
    return KVC_OK;
}

void kvc__tier_close(kvc__tier *t) {
    if (t->mem != NULL) {
        pthread_mutex_destroy(&t->outside);
        kvc__free(t->mem, t->layer, t->layout.n_layer * sizeof *t->layer);
        kvc__free(t->mem, t->field, (size_t)t->layout.n_layer * KVC_MAX_FIELDS * sizeof *t->field);
        kvc__free(t->mem, t->record, t->layout.n_layer * sizeof *t->record);
    }
}

/* What a plugin's tier answered, as one of our statuses. */
static int32_t checked(int32_t rc) {
    return rc == KVC_OK || rc == KVC_E_NOMEM || rc == KVC_E_IO ? rc : KVC_E_POLICY;
}

int32_t kvc__tier_put(kvc__tier *t, kvc_tier_page *page, uint32_t n) {
    const uint64_t t0 = kvc__clock_ns();
    const int32_t rc = t->api.put(t->self, page, n, sizeof *page);
    atomic_fetch_add(&t->ns, kvc__clock_ns() - t0);
    if (rc == KVC_OK) {
        atomic_fetch_add(&t->n_put, n);
    }
    return checked(rc);
}

/* Whether a page that get() answers lies in the buffer that it was lent. */
static bool is_there(const kvc__tier *t, const kvc_tier_page *p, const uint8_t *buffer,
                     size_t size) {
    const uintptr_t from = (uintptr_t)p->record, base = (uintptr_t)buffer;
    if (p->record == NULL || from < base || from - base > size || p->record_bytes == 0 ||
        p->record_bytes > size - (from - base)) {
        return false;
    }
    return kvc__tier_packs(t) ||
           (from % 64 == 0 && p->record_bytes >= t->layer[p->layer].page_bytes);
}

int32_t kvc__tier_get(kvc__tier *t, kvc_tier_page *page, uint32_t n, void *buffer, size_t size) {
    const uint64_t t0 = kvc__clock_ns();
    for (uint32_t i = 0; i < n; i++) {
        page[i].status = KVC_OK;
        page[i].record = NULL;
    }
    int32_t rc = t->api.get(t->self, page, n, sizeof *page, buffer, size);
    atomic_fetch_add(&t->ns, kvc__clock_ns() - t0);
    atomic_fetch_add(&t->n_get, n);
    uint32_t lost = 0;
    for (uint32_t i = 0; i < n; i++) {
        lost += page[i].status == KVC_E_LOST;
        if (rc == KVC_OK && !is_there(t, &page[i], buffer, size)) {
            rc = KVC_E_POLICY;
        }
    }
    if (rc != KVC_E_LOST) {
        return checked(rc);
    }
    /* A page that is lost is named; without a name none is. */
    atomic_fetch_add(&t->n_lost, lost);
    return lost > 0 ? KVC_E_LOST : KVC_E_POLICY;
}

const uint8_t *kvc__tier_unpack(kvc__tier *t, const kvc_tier_page *page, uint8_t *dst,
                                int32_t *rc) {
    *rc = KVC_OK;
    if (!kvc__tier_packs(t)) {
        return page->record;
    }
    const uint64_t t0 = kvc__clock_ns();
    *rc = t->api.unpack(t->self, page, dst);
    atomic_fetch_add(&t->ns, kvc__clock_ns() - t0);
    atomic_fetch_add(&t->n_lost, *rc == KVC_E_LOST);
    *rc = *rc == KVC_E_LOST ? *rc : checked(*rc);
    return *rc == KVC_OK ? dst : NULL;
}

void kvc__tier_drop(kvc__tier *t, const kvc_tier_page *page, uint32_t n) {
    const uint64_t t0 = kvc__clock_ns();
    t->api.drop(t->self, page, n, sizeof *page);
    atomic_fetch_add(&t->ns, kvc__clock_ns() - t0);
}
