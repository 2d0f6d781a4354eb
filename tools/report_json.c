/* SPDX-License-Identifier: MIT
 * report_json.c: the report for programs. The objects of a policy are made from the table of
 * figures, so a figure has the same path here, in CSV and in a gate. Every number is finite or
 * null.
 */
#include "report_json.h"

#include "report.h"

#include <math.h>
#include <string.h>

json_t *cmp_json_text(const char *s) {
    json_t *value = json_string(s != NULL ? s : "");
    if (value != NULL) {
        return value;
    }
    char plain[1024];
    size_t n = 0;
    for (; s[n] != '\0' && n + 1 < sizeof plain; n++) {
        plain[n] = (unsigned char)s[n] < 0x80 ? s[n] : '?';
    }
    plain[n] = '\0';
    return json_string(plain);
}

json_t *cmp_json_number(double v, int integer) {
    if (!isfinite(v)) {
        return json_null();
    }
    return integer ? json_integer((json_int_t)v) : json_real(v);
}

/* The object under key, made when it isn't there. */
static json_t *child(json_t *parent, const char *key, size_t n) {
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)n, key);
    json_t *object = json_object_get(parent, name);
    if (object == NULL) {
        object = json_object();
        if (json_object_set_new(parent, name, object) != 0) {
            return NULL;
        }
    }
    return object;
}

static int add_figure(json_t *policy, const cmp_row *row, unsigned i) {
    const cmp_figure *f = &cmp_figure_table[i];
    json_t *at = child(policy, f->group, strlen(f->group));
    const char *leaf = f->path;
    const char *dot = strchr(f->path, '.');
    if (at != NULL && dot != NULL) {
        at = child(at, f->path, (size_t)(dot - f->path));
        leaf = dot + 1;
    }
    return at == NULL ? -1 : json_object_set_new(at, leaf, cmp_json_number(row->v[i], f->integer));
}

/* A stage's bytes, its time on the clock and among workers, and what it says it did. */
static json_t *stage_object(const cmp_stage *s) {
    return json_pack("{s:o, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:I, s:I, s:I, s:I, s:I}",
                     "name", cmp_json_text(s->name), "memory_bytes", (json_int_t)s->memory_bytes,
                     "peak_bytes", (json_int_t)s->peak_bytes, "payload_bytes",
                     (json_int_t)s->payload_bytes, "disk_bytes", (json_int_t)s->disk_bytes,
                     "stored_bytes", (json_int_t)s->stored_bytes, "hook_ms",
                     1e-6 * (double)s->hook_ns, "worker_ms", 1e-6 * (double)s->worker_ns, "tier_ms",
                     1e-6 * (double)s->tier_ns, "n_evicted", (json_int_t)s->n_evicted, "n_selected",
                     (json_int_t)s->n_selected, "n_skipped", (json_int_t)s->n_skipped, "n_put",
                     (json_int_t)s->n_put, "n_get", (json_int_t)s->n_get);
}

static json_t *stages_array(const cmp_row *row) {
    json_t *list = json_array();
    for (uint32_t i = 0; i < row->n_stage; i++) {
        if (json_array_append_new(list, stage_object(&row->stage[i])) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

static json_t *policy_object(const cmp_row *row) {
    json_t *o = json_object();
    int bad = o == NULL;
    bad |= json_object_set_new(o, "spec", cmp_json_text(row->spec)) != 0;
    bad |= json_object_set_new(o, "name", cmp_json_text(row->name)) != 0;
    bad |= json_object_set_new(o, "full_spec", cmp_json_text(row->full)) != 0;
    bad |= json_object_set_new(o, "transient", json_boolean(row->transient)) != 0;
    bad |= json_object_set_new(o, "chunk_invariant", json_boolean(!row->chunked)) != 0;
    bad |= json_object_set_new(o, "stages", stages_array(row)) != 0;
    for (unsigned i = 0; i < CMP_N_FIGURE; i++) {
        bad |= add_figure(o, row, i) != 0;
    }
    if (bad) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static json_t *policies_array(const cmp_job *job) {
    json_t *list = json_array();
    for (uint32_t i = 0; i < job->n_row; i++) {
        if (json_array_append_new(list, policy_object(&job->row[i])) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

json_t *cmp_json_host(const cmp_machine *m, uint32_t n_threads, const char *level,
                      const char *version) {
    return json_pack(
        "{s:o, s:I, s:I, s:o, s:o, s:o, s:o, s:o}", "cpu", cmp_json_text(m->cpu), "cores",
        (json_int_t)m->n_core, "threads", (json_int_t)n_threads, "level", cmp_json_text(level),
        "kernel", cmp_json_text(m->kernel), "compiler", cmp_json_text(m->compiler), "load",
        m->load < 0 ? json_null() : cmp_json_number(m->load, 0), "version", cmp_json_text(version));
}

json_t *cmp_json_model(const char *path, const kvc_model_info *i) {
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
                     "path", cmp_json_text(path), "name", cmp_json_text(i->name), "arch",
                     cmp_json_text(i->arch), "weights", cmp_json_text(i->weights), "fingerprint",
                     cmp_json_text(i->fingerprint), "file_bytes", (json_int_t)i->file_bytes,
                     "n_param", (json_int_t)i->n_param, "n_layer", (json_int_t)i->n_layer, "n_embd",
                     (json_int_t)i->n_embd, "n_head", (json_int_t)i->n_head, "n_head_kv",
                     (json_int_t)i->n_head_kv, "head_dim", (json_int_t)i->head_dim, "n_vocab",
                     (json_int_t)i->n_vocab, "n_ctx_train", (json_int_t)i->n_ctx_train);
}

static json_t *settings_object(const cmp_report *r) {
    const cmp_job *job = r->job;
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:s, s:s, s:o}", "ctx",
                     (json_int_t)job->ctx, "tokens", (json_int_t)job->n_score, "generate",
                     (json_int_t)job->n_greedy, "speed_tokens", (json_int_t)job->n_step, "rounds",
                     (json_int_t)job->n_round, "seed", (json_int_t)r->seed, "repack",
                     r->no_repack == 0, "compute", job->compute, "speed_compute", "int8", "text",
                     cmp_json_text(r->text));
}

/* What rounding alone does; null when the divergence pass doesn't round. */
static json_t *noise_object(const cmp_job *job) {
    if (!job->has_twin) {
        return json_null();
    }
    const double *v = job->twin.v;
    return json_pack("{s:{s:o, s:o, s:o}}", "kld", "mean", cmp_json_number(v[CMP_KLD_MEAN], 0),
                     "p99", cmp_json_number(v[CMP_KLD_P99], 0), "max",
                     cmp_json_number(v[CMP_KLD_MAX], 0));
}

int cmp_report_json(FILE *out, const cmp_report *r) {
    json_t *root = json_pack(
        "{s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "schema", "kvcompare/1", "host",
        cmp_json_host(r->machine, r->model->n_threads, r->level, r->version), "model",
        cmp_json_model(r->model_path, r->model), "settings", settings_object(r), "baseline",
        cmp_json_text(r->job->baseline), "baseline_ppl", cmp_json_number(r->job->baseline_ppl, 0),
        "noise_floor", noise_object(r->job), "policies", policies_array(r->job));
    if (root == NULL) {
        return -1;
    }
    int rc = json_dumpf(root, out, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
    fputc('\n', out);
    json_decref(root);
    return rc;
}
