/* SPDX-License-Identifier: MIT
 * bench_json.c: the report of `kvcompare bench` for programs, schema kvbench/1. Every number is
 * finite or null. */
#include "bench.h"

#include "report_json.h"

#include <math.h>

static json_t *row_object(const cmp_bench_row *r) {
    const int decode = r->test == CMP_BENCH_TG;
    return json_pack("{s:o, s:s, s:I, s:I, s:I, s:{s:o, s:o, s:o}, s:o, s:o, s:o, s:o, s:o, s:o}",
                     "spec", cmp_json_text(r->spec), "test", decode ? "tg" : "pp", "depth",
                     (json_int_t)r->depth, "n", (json_int_t)r->n, "sessions",
                     (json_int_t)r->sessions, "tok_s", "median", cmp_json_number(r->median, 0),
                     "min", cmp_json_number(r->min, 0), "max", cmp_json_number(r->max, 0), "share",
                     cmp_json_number(r->share, 0), "ms", cmp_json_number(r->ms, 0), "slope_ms",
                     cmp_json_number(r->slope, 0), "wait_share", cmp_json_number(r->wait, 0),
                     "read_bytes", cmp_json_number(decode ? r->work : NAN, 0), "mac",
                     cmp_json_number(decode ? NAN : r->work, 1));
}

static json_t *rows_array(const cmp_bench *b) {
    json_t *list = json_array();
    for (uint32_t i = 0; i < b->n_row; i++) {
        if (json_array_append_new(list, row_object(&b->row[i])) != 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

int cmp_bench_json(FILE *out, const cmp_bench *b, const cmp_machine *m) {
    json_t *root = json_pack(
        "{s:s, s:o, s:o, s:{s:o, s:o, s:s}, s:{s:I, s:I, s:I, s:I, s:b}, s:{s:I, s:I}, s:o}",
        "schema", "kvbench/1", "host",
        cmp_json_host(m, b->info.n_threads, kvc_cpu_level(), kvc_version()), "model",
        cmp_json_model(b->o->model, &b->info), "limits", "read_gb_s",
        cmp_json_number(b->limits.read_gb_s, 0), "int8_gmac_s",
        cmp_json_number(b->limits.int8_gmac_s, 0), "instructions", b->limits.instructions,
        "settings", "steps", (json_int_t)b->o->n_step, "pp", (json_int_t)b->o->n_prompt, "rounds",
        (json_int_t)b->o->rounds, "seed", (json_int_t)b->o->seed, "repack", b->o->no_repack == 0,
        "per_token", "weight_bytes", (json_int_t)b->info.read_bytes, "mac",
        (json_int_t)b->info.n_mac, "rows", rows_array(b));
    if (root == NULL) {
        return -1;
    }
    const int rc = json_dumpf(root, out, JSON_INDENT(2) | JSON_REAL_PRECISION(12));
    fputc('\n', out);
    json_decref(root);
    return rc;
}
