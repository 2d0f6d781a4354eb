/* SPDX-License-Identifier: MIT
 * test_report.c: the parts of kvcompare that need no model: statistics, gates, and the formats. A
 * report is made from figures set by hand and then read back. */
#include "figures.h"
#include "gate.h"
#include "report.h"
#include "text.h"

#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---------------------------------------------------------------- statistics */

START_TEST(percentile_is_nearest_rank) {
    double x[100];
    for (int i = 0; i < 100; i++) {
        x[i] = i + 1;
    }
    ck_assert(cmp_percentile(x, 100, 50) == 50);
    ck_assert(cmp_percentile(x, 100, 99) == 99);
    ck_assert(cmp_percentile(x, 64, 99) == 64);
    ck_assert(cmp_percentile(x, 1, 50) == 1);
    ck_assert(isnan(cmp_percentile(x, 0, 50)));
}
END_TEST

START_TEST(median_of_even_count_is_between) {
    double x[] = {4, 1, 3, 2};
    cmp_sort(x, 4);
    ck_assert(cmp_median(x, 4) == 2.5);
    ck_assert(cmp_median(x, 3) == 2);
    ck_assert(isnan(cmp_median(x, 0)));
}
END_TEST

START_TEST(identical_logits_diverge_by_exactly_zero) {
    float logits[97];
    double p[97];
    for (int i = 0; i < 97; i++) {
        logits[i] = (float)((i * 37) % 97) * 0.173f - 5.0f;
    }
    logits[13] = -INFINITY;
    cmp_dist d = {.p = p};
    cmp_dist_set(&d, logits, 97);
    ck_assert(cmp_kld(&d, logits, cmp_log_sum_exp(logits, 97)) == 0);
}
END_TEST

START_TEST(divergence_of_two_known_distributions) {
    float ref[] = {logf(0.5f), logf(0.5f)};
    float pol[] = {logf(0.9f) + 7.0f, logf(0.1f) + 7.0f};
    double p[2];
    cmp_dist d = {.p = p};
    cmp_dist_set(&d, ref, 2);
    double want = 0.5 * log(0.5 / 0.9) + 0.5 * log(0.5 / 0.1);
    ck_assert_double_eq_tol(cmp_kld(&d, pol, cmp_log_sum_exp(pol, 2)), want, 1e-6);
}
END_TEST

START_TEST(top_token_is_the_lowest_of_equals_and_never_nan) {
    float x[] = {NAN, 2, 5, 5, NAN, 1};
    ck_assert_int_eq(cmp_argmax(x, 6), 2);
    float none[] = {NAN, NAN};
    ck_assert_int_eq(cmp_argmax(none, 2), -1);
}
END_TEST

START_TEST(divergence_that_is_not_finite_stays_unknown) {
    cmp_row row;
    cmp_row_init(&row, "x");
    double x[] = {1, NAN, 2};
    cmp_row_set_kld(&row, x, 3);
    ck_assert(isnan(row.v[CMP_KLD_MEAN]) && isnan(row.v[CMP_KLD_MAX]));
    double y[] = {3, 1, 2};
    cmp_row_set_kld(&row, y, 3);
    ck_assert(row.v[CMP_KLD_MEAN] == 2 && row.v[CMP_KLD_P99] == 3 && row.v[CMP_KLD_MAX] == 3);
}
END_TEST

/* ---------------------------------------------------------------- gates */

static const char *const specs[] = {"quant8", "window:size=256:sinks=4", "./dir.v1/my.so:x=1.5",
                                    "window+quant8", "quant8.speed"};

/* Parses over all specs; the rows it speaks of as a bit set, 0 when refused. */
static unsigned gate_rows(const char *text, cmp_gate *gate) {
    char why[1024] = "";
    if (cmp_gate_parse(text, specs, 5, gate, why, sizeof why) != 0) {
        ck_assert_str_ne(why, "");
        return 0;
    }
    unsigned rows = 0;
    for (unsigned i = 0; i < 5; i++) {
        rows |= gate->row[i] ? 1u << i : 0u;
    }
    return rows;
}

START_TEST(gate_finds_policies_whose_specs_hold_dots_and_signs) {
    cmp_gate g;
    ck_assert_uint_eq(gate_rows("quant8.kld.mean>1e-4", &g), 1u << 0);
    ck_assert_uint_eq(g.figure, CMP_KLD_MEAN);
    ck_assert_str_eq(g.op, ">");
    ck_assert(g.limit == 1e-4);
    ck_assert_uint_eq(gate_rows("window:size=256:sinks=4.kv_bytes >= 10", &g), 1u << 1);
    ck_assert_uint_eq(gate_rows("./dir.v1/my.so:x=1.5.decode_ms.p50<=2", &g), 1u << 2);
    ck_assert_uint_eq(gate_rows("my.ppl_ratio==1", &g), 1u << 2);
    ck_assert_uint_eq(gate_rows("window+quant8.speed.ttft_ms<3", &g), 1u << 3);
    ck_assert_uint_eq(gate_rows("quant8.memory.kv_bytes<3", &g), 1u << 0);
    ck_assert_uint_eq(gate_rows("quant8.speed.ttft_ms<3", &g), 1u << 4);
}
END_TEST

START_TEST(gate_that_cannot_be_read_is_refused_with_a_sentence) {
    cmp_gate g;
    static const char *const bad[] = {"",
                                      "quant8",
                                      "quant8.",
                                      "quant8.kld>1",
                                      "quant8.kld.mean",
                                      "quant8.kld.mean=1",
                                      "quant8.kld.mean=>1",
                                      "quant8.kld.mean<>1",
                                      "quant8.kld.mean>",
                                      "quant8.kld.mean>one",
                                      "quant8.kld.mean>1 2",
                                      "quant8.kld.mean>nan",
                                      "quant9.kld.mean>1",
                                      "window.kld.mean>1"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        ck_assert_msg(gate_rows(bad[i], &g) == 0, "accepted: %s", bad[i]);
    }
}
END_TEST

START_TEST(gate_is_missed_when_it_holds_or_nothing_is_known) {
    static const struct {
        const char *text;
        double v;
        int missed;
    } t[] = {{"quant8.ppl>1", 2, 1},  {"quant8.ppl>1", 1, 0},  {"quant8.ppl>=1", 1, 1},
             {"quant8.ppl<1", 0, 1},  {"quant8.ppl<1", 1, 0},  {"quant8.ppl<=1", 1, 1},
             {"quant8.ppl==1", 1, 1}, {"quant8.ppl==1", 2, 0}, {"quant8.ppl==1", NAN, 1}};
    for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) {
        cmp_gate g;
        cmp_row row;
        char why[256];
        ck_assert_uint_eq(gate_rows(t[i].text, &g), 1u);
        cmp_row_init(&row, "quant8");
        row.v[CMP_PPL] = t[i].v;
        ck_assert_msg(cmp_gate_missed(&g, &row, why, sizeof why) == t[i].missed, "%s of %g",
                      t[i].text, t[i].v);
    }
}
END_TEST

/* ---------------------------------------------------------------- formats */

enum { N_ROW = 3 };

/* A report of three policies: all known, little known, one with a spec that needs quoting. */
typedef struct sample {
    cmp_row row[N_ROW];
    cmp_job job;
    cmp_machine machine;
    kvc_model_info model;
    cmp_report report;
} sample;

static void sample_init(sample *s) {
    memset(s, 0, sizeof *s);
    cmp_row_init(&s->row[0], "window:size=256:sinks=4");
    cmp_row_init(&s->row[1], "none");
    cmp_row_init(&s->row[2], "./a \"b\"|c.so:text=a_very_long_value_that_does_not_fit_its_column");
    for (unsigned i = 0; i < CMP_N_FIGURE; i++) {
        s->row[0].v[i] = 1000.25 * (i + 1);
    }
    s->row[0].v[CMP_KV_BYTES] = 1099511627777.0;
    s->row[0].v[CMP_TOP1] = 0.99609375;
    s->row[1].transient = 1;
    s->row[1].v[CMP_SCORED] = 64;
    s->row[1].v[CMP_PPL_RATIO] = INFINITY;
    s->row[2].chunked = 1;
    s->job = (cmp_job){.ctx = 512,
                       .n_score = 256,
                       .n_step = 64,
                       .n_round = 3,
                       .compute = "f32",
                       .baseline = "full:type=f32",
                       .baseline_ppl = NAN,
                       .n_row = N_ROW,
                       .row = s->row};
    s->machine = (cmp_machine){.cpu = "Some \xff processor", .n_core = 2, .load = -1};
    s->model = (kvc_model_info){
        .arch = "llama", .name = "Tiny", .weights = "Q4_1", .fingerprint = "00", .n_threads = 2};
    s->report = (cmp_report){.job = &s->job,
                             .machine = &s->machine,
                             .model = &s->model,
                             .model_path = "m.gguf",
                             .text = "built-in",
                             .version = "0.1.0",
                             .level = "scalar"};
}

static int width = 80; /* of tables */

/* The report in one of the formats, to be freed. */
static char *render(const cmp_report *r, char format) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    ck_assert_ptr_nonnull(f);
    switch (format) {
    case 'j':
        ck_assert_int_eq(cmp_report_json(f, r), 0);
        break;
    case 'c':
        cmp_report_csv(f, r);
        break;
    case 'm':
        cmp_report_md(f, r);
        break;
    default:
        cmp_report_table(f, r, width, 0);
    }
    fclose(f);
    return text;
}

START_TEST(json_holds_the_specs_in_order_and_null_for_what_is_unknown) {
    sample s;
    sample_init(&s);
    char *text = render(&s.report, 'j');
    json_error_t error;
    json_t *root = json_loads(text, 0, &error);
    ck_assert_msg(root != NULL, "%s", error.text);
    ck_assert_str_eq(json_string_value(json_object_get(root, "schema")), "kvcompare/1");
    ck_assert(json_is_null(json_object_get(root, "baseline_ppl")));
    json_t *list = json_object_get(root, "policies");
    ck_assert_uint_eq(json_array_size(list), N_ROW);
    for (unsigned i = 0; i < N_ROW; i++) {
        json_t *p = json_array_get(list, i);
        ck_assert_str_eq(json_string_value(json_object_get(p, "spec")), s.row[i].spec);
    }
    json_t *full = json_array_get(list, 0);
    json_t *kld = json_object_get(json_object_get(full, "divergence"), "kld");
    ck_assert_double_eq_tol(json_number_value(json_object_get(kld, "p99")),
                            1000.25 * (CMP_KLD_P99 + 1), 1e-6);
    ck_assert_int_eq(
        json_integer_value(json_object_get(json_object_get(full, "memory"), "kv_bytes")),
        1099511627777);
    json_t *none = json_object_get(json_array_get(list, 1), "divergence");
    ck_assert(json_is_null(json_object_get(none, "ppl_ratio")));
    ck_assert(json_is_null(json_object_get(none, "first_divergence")));
    ck_assert_int_eq(json_integer_value(json_object_get(none, "scored")), 64);
    json_decref(root);
    free(text);
}
END_TEST

START_TEST(csv_quotes_and_ends_lines_as_rfc_4180_says) {
    sample s;
    sample_init(&s);
    char *text = render(&s.report, 'c');
    ck_assert(strncmp(text, "spec,name,speed.prefill_tok_s,", 30) == 0);
    ck_assert_ptr_nonnull(strstr(text, "\r\n\"./a \"\"b\"\"|c.so:text="));
    unsigned lines = 0, commas = 0;
    for (const char *p = text; *p != '\0'; p++) {
        lines += *p == '\n';
        commas += *p == ',';
        ck_assert(*p != '\n' || p[-1] == '\r');
    }
    ck_assert_uint_eq(lines, N_ROW + 1);
    ck_assert_uint_eq(commas, (N_ROW + 1) * (CMP_N_FIGURE + 1));
    ck_assert_ptr_null(strstr(text, "nan"));
    ck_assert_ptr_null(strstr(text, "inf"));
    free(text);
}
END_TEST

START_TEST(table_fits_80_columns_and_says_what_was_cut) {
    sample s;
    sample_init(&s);
    char *text = render(&s.report, 't');
    char *rest = text;
    for (char *line = text; line != NULL && *line != '\0'; line = rest) {
        rest = strchr(line, '\n');
        if (rest != NULL) {
            *rest++ = '\0';
        }
        ck_assert_msg(cmp_text_width(line) <= 80, "too wide: %s", line);
        ck_assert_ptr_null(strstr(line, "nan"));
    }
    free(text);
    text = render(&s.report, 't');
    ck_assert_ptr_nonnull(strstr(text, "none [1]"));
    ck_assert_ptr_nonnull(strstr(text, "\n[1] none computes all tokens again"));
    ck_assert_ptr_nonnull(strstr(text, "\n[2] "));
    ck_assert_ptr_null(strchr(text, '\033'));
    free(text);
}
END_TEST

/* Every figure of every row is there, and no line is wider than the terminal, if no spec is. */
START_TEST(table_fits_narrow_terminals) {
    sample s;
    sample_init(&s);
    for (width = CMP_LEAST_WIDTH; width <= 80; width++) {
        char *wide, *text, *rest, buf[64];
        text = rest = render(&s.report, 't');
        ck_assert_ptr_nonnull(strstr(text, "\nSpeed"));
        for (unsigned i = 0; i < CMP_N_FIGURE; i++) {
            if (i != CMP_TIMED_CTX && i != CMP_TIMED_STEPS && i != CMP_SCORED &&
                i != CMP_GENERATED) {
                ck_assert_ptr_nonnull(
                    strstr(text, cmp_figure_human(&s.row[0], i, buf, sizeof buf)));
            }
        }
        for (char *line = text; line != NULL && *line != '\0'; line = rest) {
            rest = strchr(line, '\n');
            if (rest != NULL) {
                *rest++ = '\0';
            }
            wide = line[0] == '.' && line[1] == '/' ? line : NULL; /* a spec */
            ck_assert_msg(wide != NULL || cmp_text_width(line) <= width, "beyond %d: %s", width,
                          line);
        }
        free(text);
    }
    width = 80;
}
END_TEST

START_TEST(width_is_the_terminals_or_said) {
    static const struct {
        const char *said;
        int width;
    } cases[] = {{"60", 60}, {"40", 40}, {"12", 40}, {"80", 80},   {"200", 80},
                 {"0", 80},  {"-5", 80}, {"", 80},   {"wide", 80}, {NULL, 80}};
    FILE *none = freopen("/dev/null", "w", stdout); /* no terminal */
    ck_assert_ptr_nonnull(none);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (cases[i].said != NULL) {
            setenv("COLUMNS", cases[i].said, 1);
        } else {
            unsetenv("COLUMNS");
        }
        ck_assert_int_eq(cmp_text_columns(), cases[i].width);
    }
}
END_TEST

START_TEST(claims_are_shown_as_such) {
    sample s;
    sample_init(&s);
    char *text = render(&s.report, 't');
    ck_assert_ptr_null(strstr(text, "Claims"));
    free(text);
    s.row[0].n_stage = 1;
    s.row[0].stage[0] = (cmp_stage){.name = "watch", .n_selected = 7, .n_skipped = 5};
    s.row[1].n_stage = 2;
    s.row[1].stage[0] = (cmp_stage){.name = "one"};
    s.row[1].stage[1] = (cmp_stage){.name = "two", .n_evicted = 3, .stored_bytes = 1 << 20};
    text = render(&s.report, 't');
    char want[512];
    snprintf(want, sizeof want,
             "\n\nClaims of the policies, which nobody measured\n  %s: 7 pages selected, 5 pages "
             "skipped\n  %s: two 3 entries given up, 1.000 MiB stored\n",
             s.row[0].spec, s.row[1].spec);
    ck_assert_msg(strstr(text, want) != NULL, "no '%s' in: %s", want, text);
    free(text);
}
END_TEST

START_TEST(markdown_rows_have_as_many_cells_as_the_head) {
    sample s;
    sample_init(&s);
    char *text = render(&s.report, 'm');
    unsigned bars = 0, row = 0;
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        if (line[0] != '|') {
            continue;
        }
        unsigned n = 0;
        for (const char *p = line; *p != '\0'; p++) {
            n += *p == '|' && (p == line || p[-1] != '\\');
        }
        ck_assert(row == 0 || n == bars);
        bars = n;
        row++;
    }
    ck_assert_uint_eq(row, N_ROW + 2);
    free(text);
}
END_TEST

START_TEST(wrapped_text_keeps_its_words_and_its_width) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    ck_assert_ptr_nonnull(f);
    cmp_text_wrap(f, "> ", "one two three four fives sixes averyverylongword x", 12);
    fclose(f);
    ck_assert_str_eq(text, "> one two\n> three four\n> fives\n> sixes\n> averyverylongword\n> x\n");
    free(text);
}
END_TEST

START_TEST(nothing_but_text_is_written) {
    char *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    ck_assert_ptr_nonnull(f);
    cmp_text_wrap(f, "> ", "a\033[31mb c\nd\xff \xc2\x9b \xe2\x82\xac \xe2\x82 \xed\xa0\x80", 80);
    fclose(f);
    ck_assert_str_eq(text, "> a?[31mb c?d? ?? \xe2\x82\xac ?? ???\n");
    free(text);
}
END_TEST

START_TEST(report_is_written_whole_or_not_at_all) {
    char why[512] = "";
    ck_assert_int_eq(cmp_report_put("x", 1, "no/such/directory/report", why, sizeof why), -1);
    ck_assert_ptr_nonnull(strstr(why, "no/such/directory/report"));
    /* Neither a directory nor what has the name of a half-made file is harmed. */
    char dir[] = "test_report_XXXXXX", path[64], other[72];
    ck_assert_ptr_nonnull(mkdtemp(dir));
    ck_assert_int_eq(cmp_report_put("x", 1, dir, why, sizeof why), -1);
    ck_assert_int_eq(strncmp(why, dir, strlen(dir)), 0);
    snprintf(path, sizeof path, "%s/report", dir);
    snprintf(other, sizeof other, "%s.tmp", path);
    FILE *mine = fopen(other, "w");
    ck_assert_ptr_nonnull(mine);
    fclose(mine);
    ck_assert_int_eq(cmp_report_put("xyz", 3, path, why, sizeof why), 0);
    ck_assert_int_eq(remove(other), 0);
    char got[8] = "";
    FILE *f = fopen(path, "r");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fread(got, 1, sizeof got, f), 3);
    ck_assert_str_eq(got, "xyz");
    fclose(f);
    remove(path);
    ck_assert_int_eq(rmdir(dir), 0); /* nothing else was left */
}
END_TEST

START_TEST(built_in_text_is_long_enough_for_the_defaults) {
    size_t n = 0;
    for (size_t i = 0; cmp_text[i] != NULL; i++) {
        n += strlen(cmp_text[i]);
    }
    ck_assert_uint_ge(n, 11000);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("report");
    TCase *c = tcase_create("report");
    tcase_add_test(c, percentile_is_nearest_rank);
    tcase_add_test(c, median_of_even_count_is_between);
    tcase_add_test(c, identical_logits_diverge_by_exactly_zero);
    tcase_add_test(c, divergence_of_two_known_distributions);
    tcase_add_test(c, top_token_is_the_lowest_of_equals_and_never_nan);
    tcase_add_test(c, divergence_that_is_not_finite_stays_unknown);
    tcase_add_test(c, gate_finds_policies_whose_specs_hold_dots_and_signs);
    tcase_add_test(c, gate_that_cannot_be_read_is_refused_with_a_sentence);
    tcase_add_test(c, gate_is_missed_when_it_holds_or_nothing_is_known);
    tcase_add_test(c, json_holds_the_specs_in_order_and_null_for_what_is_unknown);
    tcase_add_test(c, csv_quotes_and_ends_lines_as_rfc_4180_says);
    tcase_add_test(c, table_fits_80_columns_and_says_what_was_cut);
    tcase_add_test(c, table_fits_narrow_terminals);
    tcase_add_test(c, width_is_the_terminals_or_said);
    tcase_add_test(c, claims_are_shown_as_such);
    tcase_add_test(c, markdown_rows_have_as_many_cells_as_the_head);
    tcase_add_test(c, wrapped_text_keeps_its_words_and_its_width);
    tcase_add_test(c, nothing_but_text_is_written);
    tcase_add_test(c, report_is_written_whole_or_not_at_all);
    tcase_add_test(c, built_in_text_is_long_enough_for_the_defaults);
    suite_add_tcase(suite, c);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
