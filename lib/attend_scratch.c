/* SPDX-License-Identifier: MIT
 * attend_scratch.c: the memory of attention, sized when a session opens, so that decoding takes
 * none. */
#include "attend.h"

#include <string.h>

/* Floats of results that are held at once: 8 MiB. */
#define SCRATCH ((size_t)2 << 20)

/* Replaces the array that the pointer at p leads to by a zeroed one of n elements. */
static int32_t regrow(kvc__mem *mem, void *p, size_t old_n, size_t n, size_t size, kvc__err *err) {
    void *old, *fresh = kvc__alloc_n(mem, n, size);
    if (fresh == NULL) {
        return kvc__fail(err, KVC_E_NOMEM,
                         "no memory for attention's scratch; lower n_ctx or n_batch");
    }
    memcpy(&old, p, sizeof old);
    kvc__free(mem, old, old_n * size);
    memcpy(p, &fresh, sizeof fresh);
    return KVC_OK;
}

/* The buffers that depend on the batch and the model alone. */
static int32_t reserve_batch(kvc__attend *a, kvc_model *model, kvc__err *err) {
    const kvc__hparams *hp = &model->hp;
    kvc__mem *m = &model->mem;
    const size_t n = model->n_batch, kv_k = (size_t)hp->n_head_kv * hp->dim_k,
                 kv_v = (size_t)hp->n_head_kv * hp->dim_v;
    const size_t nq = (size_t)hp->n_head * hp->dim_k;
    KVC_TRY(regrow(m, &a->q, 0, n * nq, sizeof(float), err));
    KVC_TRY(regrow(m, &a->k, 0, n * kv_k, sizeof(float), err));
    KVC_TRY(regrow(m, &a->v, 0, n * kv_v, sizeof(float), err));
    KVC_TRY(regrow(m, &a->out, 0, n * hp->n_head * hp->dim_v, sizeof(float), err));
    KVC_TRY(regrow(m, &a->krot, 0, n * kv_k, sizeof(float), err));
    KVC_TRY(regrow(m, &a->kobs, 0, n * kv_k, sizeof(float), err));
    KVC_TRY(regrow(m, &a->vobs, 0, n * kv_v, sizeof(float), err));
    KVC_TRY(regrow(m, &a->qrot, 0, n * nq, sizeof(float), err));
    KVC_TRY(regrow(m, &a->piece, 0, n, sizeof *a->piece, err));
    KVC_TRY(regrow(m, &a->block, 0, n, sizeof *a->block, err));
    KVC_TRY(regrow(m, &a->item, 0, n + 1, sizeof *a->item, err));
    KVC_TRY(regrow(m, &a->range, 0, n * (KVC_MAX_RANGES + 1), sizeof *a->range, err));
    KVC_TRY(regrow(m, &a->n_rng, 0, n, sizeof *a->n_rng, err));
    KVC_TRY(regrow(m, &a->failed, 0, n * hp->n_head_kv, sizeof *a->failed, err));
    return KVC_OK;
}

/* Floats of one thread's scratch, and where its parts begin. */
static size_t thread_floats(const kvc__attend *a, const kvc__hparams *hp, float *base,
                            kvc__attend_thread *t) {
    const size_t dim = hp->dim_k > hp->dim_v ? hp->dim_k : hp->dim_v;
    const size_t ranges = (a->max_range + 15) & ~(size_t)15;
    size_t s = (size_t)a->max_row * KVC_PAGE;
    s = s > ranges ? s : ranges;
    size_t at = 0;
    float **part[] = {&t->s,    &t->tmp,     &t->q,       &t->max,
                      &t->down, &t->codec.k, &t->codec.v, &t->codec.t};
    const size_t size[] = {s,
                           (size_t)a->max_row * KVC_PAGE,
                           a->max_row * dim,
                           (size_t)a->max_row * KVC__RANGE_PAGES,
                           a->max_row,
                           dim * KVC_PAGE,
                           dim * KVC_PAGE,
                           dim * KVC_PAGE};
    for (size_t i = 0; i < sizeof size / sizeof *size; i++) {
        if (base != NULL) {
            *part[i] = base + at;
        }
        at += (size[i] + 15) & ~(size_t)15;
    }
    return at;
}

static int32_t reserve_threads(kvc__attend *a, kvc_model *model, uint32_t max_range,
                               kvc__err *err) {
    const uint32_t n = kvc__pool_n_thread(model->pool);
    kvc__attend_thread none;
    kvc__mem *m = &model->mem;
    const uint32_t old_range = a->max_range;
    const size_t before = thread_floats(a, &model->hp, NULL, &none);
    a->max_range = max_range;
    const size_t each = thread_floats(a, &model->hp, NULL, &none);
    float *fresh = kvc__alloc_n(m, each * n, sizeof(float));
    kvc__attend_thread *thread =
        a->thread != NULL ? a->thread : kvc__alloc_n(m, n, sizeof *a->thread);
    if (fresh == NULL || thread == NULL) {
        a->max_range = old_range;
        kvc__free(m, fresh, each * n * sizeof(float));
        kvc__free(m, a->thread == NULL ? thread : NULL, n * sizeof *thread);
        return kvc__fail(err, KVC_E_NOMEM, "no memory for the threads' scratch; lower n_threads");
    }
    if (a->thread != NULL) {
        kvc__free(m, a->thread[0].s, before * n * sizeof(float));
    }
    a->thread = thread;
    for (uint32_t i = 0; i < n; i++) {
        thread_floats(a, &model->hp, fresh + each * i, &a->thread[i]);
    }
    return KVC_OK;
}

int32_t kvc__attend_reserve(kvc__attend *a, kvc_model *model, uint32_t n_ctx, bool observe,
                            bool select, kvc__err *err) {
    const kvc__hparams *hp = &model->hp;
    const uint32_t group = hp->n_head / hp->n_head_kv;
    const uint32_t pages = n_ctx / KVC_PAGE + 2, ranges = pages / KVC__RANGE_PAGES + 1;
    if (a->q == NULL) {
        a->kern = model->kern;
        a->pool = model->pool;
        a->model = model;
        a->n_batch = model->n_batch;
        a->max_row = group > 96 ? group : 96 / group * group;
        int32_t rc = reserve_batch(a, model, err);
        if (rc < 0) {
            kvc__attend_free(a, model);
            return rc;
        }
    }
    if (a->thread == NULL || ranges > a->max_range) {
        KVC_TRY(reserve_threads(a, model, ranges > a->max_range ? ranges : a->max_range, err));
    }
    /* Room for some blocks, and for one token of the longest session in any case. */
    const size_t need = (size_t)hp->n_head_kv * a->max_range * kvc__partial_floats(a, group);
    const size_t wide = (size_t)hp->n_head * a->max_range * KVC__RANGE_ENTRIES;
    const size_t partial = need > SCRATCH ? need : SCRATCH, prob = wide > SCRATCH ? wide : SCRATCH;
    if (partial > a->cap_partial) {
        KVC_TRY(regrow(&model->mem, &a->partial, a->cap_partial, partial, sizeof(float), err));
        a->cap_partial = partial;
    }
    if (observe && prob > a->cap_prob) {
        KVC_TRY(regrow(&model->mem, &a->prob, a->cap_prob, prob, sizeof(float), err));
        a->cap_prob = prob;
    }
    const uint32_t words = (pages + 63) / 64;
    if (select && words > a->max_word) {
        const size_t n = (size_t)a->n_batch * hp->n_head_kv;
        KVC_TRY(regrow(&model->mem, &a->sel, n * a->max_word, n * words, sizeof *a->sel, err));
        a->max_word = words;
    }
    return KVC_OK;
}

void kvc__attend_free(kvc__attend *a, kvc_model *model) {
    const kvc__hparams *hp = &model->hp;
    kvc__mem *m = &model->mem;
    const size_t n = a->n_batch, kv_k = (size_t)hp->n_head_kv * hp->dim_k,
                 kv_v = (size_t)hp->n_head_kv * hp->dim_v;
    const size_t nq = (size_t)hp->n_head * hp->dim_k, f = sizeof(float);
    if (a->thread != NULL) {
        kvc__attend_thread none;
        const uint32_t threads = kvc__pool_n_thread(a->pool);
        kvc__free(m, a->thread[0].s, thread_floats(a, hp, NULL, &none) * threads * f);
        kvc__free(m, a->thread, threads * sizeof *a->thread);
    }
    kvc__free(m, a->q, n * nq * f);
    kvc__free(m, a->k, n * kv_k * f);
    kvc__free(m, a->v, n * kv_v * f);
    kvc__free(m, a->out, n * hp->n_head * hp->dim_v * f);
    kvc__free(m, a->krot, n * kv_k * f);
    kvc__free(m, a->kobs, n * kv_k * f);
    kvc__free(m, a->vobs, n * kv_v * f);
    kvc__free(m, a->qrot, n * nq * f);
    kvc__free(m, a->piece, n * sizeof *a->piece);
    kvc__free(m, a->block, n * sizeof *a->block);
    kvc__free(m, a->item, (n + 1) * sizeof *a->item);
    kvc__free(m, a->range, n * (KVC_MAX_RANGES + 1) * sizeof *a->range);
    kvc__free(m, a->n_rng, n * sizeof *a->n_rng);
    kvc__free(m, a->failed, n * hp->n_head_kv * sizeof *a->failed);
    kvc__free(m, a->partial, a->cap_partial * f);
    kvc__free(m, a->prob, a->cap_prob * f);
    kvc__free(m, a->sel, n * hp->n_head_kv * a->max_word * sizeof *a->sel);
    memset(a, 0, sizeof *a);
}
