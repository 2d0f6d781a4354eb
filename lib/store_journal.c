/* SPDX-License-Identifier: MIT
 * store_journal.c: a step that can be taken back exactly. Entries that are given up, columns that
 * change and pages that are freed can't be brought back by computing a few tokens again, so before
 * a short step their state is copied, what would move or free a page waits until the step is
 * accepted, and a step that fails is answered by putting the copies back. Rows in open pages need
 * no copy: a step only adds some. */
#include "store.h"

#include "os.h"

#include <string.h>

int32_t kvc__store_journal_create(kvc__store *s, kvc__err *err) {
    kvc__journal *j = &s->journal;
    j->lane = kvc__alloc_n(s->mem, s->n_lane, sizeof *j->lane);
    j->ref = kvc__alloc_n(s->mem, (size_t)s->n_lane * s->cap_page, sizeof *j->ref);
    j->layer = kvc__alloc_n(s->mem, s->n_layer, sizeof *j->layer);
    if (j->lane == NULL || j->ref == NULL || j->layer == NULL) {
        return kvc__fail(err, KVC_E_NOMEM, "no memory for the cache's page tables");
    }
    if (s->column != NULL) {
        j->column = kvc__reserve(s->column_reserved);
        if (j->column == NULL) {
            return kvc__fail(err, KVC_E_NOMEM,
                             "can't reserve address space for the cache; lower n_ctx");
        }
    }
    return KVC_OK;
}

void kvc__store_journal_destroy(kvc__store *s) {
    kvc__journal *j = &s->journal;
    kvc__free(s->mem, j->lane, s->n_lane * sizeof *j->lane);
    kvc__free(s->mem, j->ref, (size_t)s->n_lane * s->cap_page * sizeof *j->ref);
    kvc__free(s->mem, j->layer, s->n_layer * sizeof *j->layer);
    kvc__release(j->column, j->column != NULL ? s->column_reserved : 0);
}

/* Copies a lane's columns, from the store to the journal or back: those of n pages. */
static void copy_columns(const kvc__store *s, float *to, const float *from, uint32_t lane,
                         uint32_t n) {
    const size_t per = ((size_t)s->cap_page + 1) * KVC_PAGE;
    for (uint32_t c = 0; c < s->n_column; c++) {
        const size_t at = ((size_t)lane * s->n_column + c) * per;
        memcpy(to + at, from + at, (size_t)n * KVC_PAGE * sizeof *to);
    }
}

void kvc__store_journal_begin(kvc__store *s) {
    kvc__journal *j = &s->journal;
    for (uint32_t i = 0; i < s->n_lane; i++) {
        const kvc__lane *l = &s->lane[i];
        j->lane[i] = *l;
        memcpy(j->ref + (size_t)i * s->cap_page, l->page, l->n_page * sizeof *l->page);
        if (j->column != NULL) {
            copy_columns(s, j->column, s->column, i, l->n_page + 1);
        }
    }
    for (uint32_t i = 0; i < s->n_layer; i++) {
        j->layer[i] = (kvc__journal_layer){.floor = -1};
    }
    j->evicted = atomic_load(&s->evicted);
    j->on = true;
}

int32_t kvc__store_journal_commit(kvc__store *s, uint32_t *layer) {
    kvc__journal *j = &s->journal;
    j->on = false;
    for (uint32_t i = 0; i < s->n_layer; i++) {
        *layer = i;
        if (j->layer[i].settle) {
            KVC_TRY(kvc__store_settle(s, i));
        }
        if (j->layer[i].floor >= 0) {
            KVC_TRY(kvc__store_free_unseen(s, i, j->layer[i].floor));
        }
    }
    return KVC_OK;
}

void kvc__store_journal_undo(kvc__store *s) {
    kvc__journal *j = &s->journal;
    j->on = false;
    for (uint32_t i = 0; i < s->n_layer; i++) {
        for (uint32_t n = s->lane0[i]; n < s->lane0[i + 1]; n++) {
            kvc__lane *l = &s->lane[n];
            while (l->n_page > j->lane[n].n_page) {
                kvc__store_free_page(s, i, l, --l->n_page);
            }
            *l = j->lane[n];
            l->held = 0; /* rows were added over them */
            memcpy(l->page, j->ref + (size_t)n * s->cap_page, l->n_page * sizeof *l->page);
            if (j->column != NULL) {
                copy_columns(s, s->column, j->column, n, l->n_page + 1);
            }
        }
    }
    atomic_store(&s->evicted, j->evicted);
}
