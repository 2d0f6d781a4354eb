/* SPDX-License-Identifier: MIT
 * test_registry.c: registry.c and api_policies.c: each check of a policy file has its code and a
 * sentence that names the file; the search and its order; the list. KVC_TEST_BROKEN is the
 * directory of the modules made from broken/broken.c. */
#include "registry.h"

#include <check.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *plugins; /* directory of the broken policies */
static char tmp[64];        /* one of the test's own */
static kvc__mem mem;
static kvc__err err;
static kvc__policy loaded;

static void setup(void) {
    kvc__mem_init(&mem, NULL, NULL);
    memset(&err, 0, sizeof err);
    memset(&loaded, 0, sizeof loaded);
    strcpy(tmp, "/tmp/kvc-registry-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(tmp));
    unsetenv("KVC_POLICY_PATH");
}

/* Every test ends with nothing held. */
static void teardown(void) {
    kvc__policy_free(&mem, &loaded);
    ck_assert_uint_eq(atomic_load(&mem.used), 0);
    ck_assert_int_eq(rmdir(tmp), 0);
    unsetenv("KVC_POLICY_PATH");
}

static const char *in(const char *dir, const char *file) {
    static char path[2][4096];
    static int turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "%s/%s", dir, file);
    return path[turn];
}

static void file_write(const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    fputs(text, f);
    fclose(f);
}

static int32_t load(const kvc__search *search, const char *word) {
    kvc__policy_free(&mem, &loaded);
    memset(&err, 0, sizeof err);
    return kvc__registry_load(&mem, search, word, &loaded, &err);
}

static int32_t load_path(const char *path) {
    const kvc__search nowhere = {0};
    return load(&nowhere, path);
}

static int32_t load_name(const char *name) {
    const kvc__search search = {.n_dir = 1, .dir = &plugins};
    return load(&search, name);
}

static void said(const char *words) {
    ck_assert_msg(strstr(err.text, words) != NULL, "\"%s\" is not in: %s", words, err.text);
}

/* ---------------------------------------------------------------- checks of a file */

START_TEST(a_sound_file_is_loaded_and_its_tables_copied) {
    ck_assert_msg(load_path(in(plugins, "b_nothing.so")) == KVC_OK, "%s", err.text);
    ck_assert_str_eq(loaded.desc.name, "b_nothing");
    ck_assert_uint_eq(loaded.desc.abi, KVC_POLICY_ABI);
    ck_assert_str_eq(loaded.desc.license, "MIT");
    ck_assert_ptr_eq(loaded.desc.api, &loaded.api);
    ck_assert(loaded.api.create != NULL);
    ck_assert(loaded.api.visible == NULL);
    ck_assert_uint_eq(loaded.desc.n_param, 1);
    ck_assert_ptr_eq(loaded.desc.param, loaded.param);
    ck_assert_str_eq(loaded.param[0].name, "sound");
    ck_assert_str_eq(loaded.path, in(plugins, "b_nothing.so"));
}
END_TEST

static const struct {
    const char *file;
    int32_t status;
    const char *words;
} breaks[] = {
    {"b_no_symbol", KVC_E_LOAD_SYMBOL, "exports no kvc_policy_entry"},
    {"b_null_table", KVC_E_LOAD_TABLE, "answers no policy"},
    {"b_endless", KVC_E_LOAD_TABLE, "more than 64 policies"},
    {"b_two", KVC_E_LOAD_NAME, "holds 2 policies"},
    {"b_abi_old", KVC_E_LOAD_ABI, "too old: built with ABI 1"},
    {"b_abi_new", KVC_E_LOAD_ABI, "too new: built with ABI 3"},
    {"b_abi_min", KVC_E_LOAD_ABI, "too new: built with ABI 2, needs a host of at least 3"},
    {"b_size_tiny", KVC_E_LOAD_TABLE, "8 bytes"},
    {"b_size_small", KVC_E_LOAD_TABLE, "struct_size is too small"},
    {"b_size_api", KVC_E_LOAD_TABLE, "api->struct_size is too small"},
    {"b_no_api", KVC_E_LOAD_TABLE, "api is NULL"},
    {"b_no_create", KVC_E_LOAD_TABLE, "api->create is NULL"},
    {"b_no_summary", KVC_E_LOAD_TABLE, "summary is NULL"},
    {"b_name_null", KVC_E_LOAD_TABLE, "name is NULL"},
    {"b_name_bad", KVC_E_LOAD_NAME, "\"Bad Name\""},
    {"b_name_long", KVC_E_LOAD_NAME, "at most 32 characters"},
    {"b_param_twice", KVC_E_LOAD_PARAMS, "row 1 (sound) of its parameter table: its name is used"},
    {"b_param_name", KVC_E_LOAD_PARAMS, "row 1 (Un-sound)"},
    {"b_param_name_null", KVC_E_LOAD_PARAMS, "row 1 (no name)"},
    {"b_param_type", KVC_E_LOAD_PARAMS, "row 1 (unsound) of its parameter table: its type"},
    {"b_param_help", KVC_E_LOAD_PARAMS, "row 1 (unsound) of its parameter table: its help"},
    {"b_param_def", KVC_E_LOAD_PARAMS, "row 1 (unsound) of its parameter table: its default"},
    {"b_param_nan", KVC_E_LOAD_PARAMS, "its default is not finite"},
    {"b_param_inf", KVC_E_LOAD_PARAMS, "its most is not finite"},
    {"b_param_bool", KVC_E_LOAD_PARAMS, "its default is neither 0 nor 1"},
    {"b_param_choice", KVC_E_LOAD_PARAMS, "its choices are missing"},
    {"b_param_choice_null", KVC_E_LOAD_PARAMS, "its choices are missing"},
    {"b_param_choice_def", KVC_E_LOAD_PARAMS, "its default is none of its choices"},
    {"b_param_size", KVC_E_LOAD_PARAMS, "row 1 of its parameter table has struct_size 8"},
    {"b_param_many", KVC_E_LOAD_PARAMS, "65 rows"},
    {"b_param_null", KVC_E_LOAD_PARAMS, "is not usable"},
    {"b_param_stride", KVC_E_LOAD_PARAMS, "4 bytes apart"},
    {"b_requires", KVC_E_LOAD_REQUIRES, "0x20"},
};

START_TEST(each_break_has_its_code_and_a_sentence_that_names_the_file) {
    for (size_t i = 0; i < sizeof breaks / sizeof breaks[0]; i++) {
        char file[64];
        snprintf(file, sizeof file, "%s.so", breaks[i].file);
        int32_t rc = load_path(in(plugins, file));
        ck_assert_msg(rc == breaks[i].status, "%s: %d %s", file, rc, err.text);
        said(file);
        said(breaks[i].words);
        ck_assert_uint_eq(atomic_load(&mem.used), 0);
    }
}
END_TEST

START_TEST(what_is_not_a_library_has_its_code) {
    ck_assert_int_eq(load_path(in(tmp, "missing.so")), KVC_E_LOAD_FILE);
    said("missing.so: can't be read: No such file");
    ck_assert_int_eq(load_path(tmp), KVC_E_LOAD_FILE);
    said("not a regular file");
    file_write(in(tmp, "empty.so"), "");
    ck_assert_int_eq(load_path(in(tmp, "empty.so")), KVC_E_LOAD_FILE);
    said("empty.so: is an empty file");
    file_write(in(tmp, "text.so"), "not a library");
    ck_assert_int_eq(load_path(in(tmp, "text.so")), KVC_E_LOAD_OPEN);
    said("text.so: is not a library");
    said("file too short"); /* the loader's own reason */
    unlink(in(tmp, "empty.so"));
    unlink(in(tmp, "text.so"));
}
END_TEST

/* ---------------------------------------------------------------- tables in memory */

static int32_t create(const kvc_host *host, const kvc_shape *shape, const kvc_value *value,
                      kvc_plan *plan, void **self) {
    (void)host, (void)shape, (void)value, (void)plan, (void)self;
    return KVC_OK;
}

static const kvc_policy_api api = {.struct_size = sizeof api, .create = create};

static kvc_policy table(const char *name) {
    return (kvc_policy){.struct_size = sizeof(kvc_policy),
                        .abi = KVC_POLICY_ABI,
                        .abi_min = KVC_POLICY_ABI_MIN,
                        .name = name,
                        .version = "9",
                        .summary = "s",
                        .license = "MIT",
                        .api = &api};
}

/* The first n bytes of a sound library, in a file of their own: what is loaded stays loaded. */
static const char *cut_library(const uint8_t *bytes, size_t n) {
    char name[64];
    snprintf(name, sizeof name, "cut%zu.so", n);
    const char *path = in(tmp, name);
    FILE *f = fopen(path, "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(bytes, 1, n, f), n);
    fclose(f);
    return path;
}

START_TEST(a_library_that_was_cut_is_refused) {
    static uint8_t bytes[1 << 20];
    FILE *f = fopen(in(plugins, "b_nothing.so"), "rb");
    ck_assert_ptr_nonnull(f);
    const size_t size = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    uint32_t n_cut = 0;
    for (size_t n = 64; n < size; n += 500) {
        const char *path = cut_library(bytes, n);
        const int32_t rc = load_path(path);
        ck_assert_int_eq(unlink(path), 0);
        ck_assert_msg(rc == KVC_OK || err.text[0] != '\0', "%zu bytes: %d", n, (int)rc);
        n_cut += strstr(err.text, "cut off") != NULL;
    }
    ck_assert_uint_gt(n_cut, 10);
    /* Places of program headers that wrap or lie outside are no reason to end either. */
    for (int i = 0; i < 3; i++) {
        static const uint64_t place[] = {UINT64_MAX - 60, INT64_MAX, 1 << 30};
        memcpy(bytes + 32, &place[i], sizeof place[i]);
        const char *path = cut_library(bytes, size - 1 - (size_t)i);
        ck_assert_int_eq(load_path(path), KVC_E_LOAD_OPEN);
        said("cut off");
        ck_assert_int_eq(unlink(path), 0);
    }
}
END_TEST

START_TEST(tables_of_a_later_header_are_cut_to_ours) {
    struct {
        kvc_param row;
        uint64_t later[3];
    } rows[2] = {{.row = {.struct_size = sizeof rows[0],
                          .type = KVC_PARAM_BOOL,
                          .name = "one",
                          .help = "h"}},
                 {.row = {.struct_size = sizeof rows[0],
                          .type = KVC_PARAM_BOOL,
                          .name = "two",
                          .help = "h",
                          .def = {.i = 1}}}};
    struct {
        kvc_policy_api api;
        uint64_t later;
    } wide_api = {.api = {.struct_size = sizeof wide_api, .create = create}, .later = UINT64_MAX};
    struct {
        kvc_policy policy;
        uint64_t later;
    } wide = {.policy = table("wide"), .later = UINT64_MAX};
    wide.policy.struct_size = sizeof wide;
    wide.policy.api = &wide_api.api;
    wide.policy.n_param = 2;
    wide.policy.param_stride = sizeof rows[0];
    wide.policy.param = &rows[0].row;
    wide.policy.caps = UINT64_MAX; /* unknown capabilities are not an error */
    ck_assert_msg(kvc__policy_check(&mem, &wide.policy, "", &loaded, &err) == KVC_OK, "%s",
                  err.text);
    ck_assert_uint_eq(loaded.desc.param_stride, sizeof(kvc_param));
    ck_assert_str_eq(loaded.param[1].name, "two");
    ck_assert_int_eq(loaded.param[1].def.i, 1);
    ck_assert_str_eq(loaded.path, "");
}
END_TEST

START_TEST(names_are_what_the_header_allows) {
    static const struct {
        const char *name;
        int sound;
    } names[] = {{"a", 1},     {"a-b_9", 1}, {"a2345678901234567890123456789012", 1},
                 {"", 0},      {"9a", 0},    {"a2345678901234567890123456789012x", 0},
                 {"_a", 0},    {"-a", 0},    {"aB", 0},
                 {"a+b", 0},   {"a b", 0},   {"a/b", 0},
                 {"a\x80", 0}, {"a.so", 0},  {"a:b", 0}};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        kvc_policy p = table(names[i].name);
        int32_t rc = kvc__policy_check(&mem, &p, "", &loaded, &err);
        ck_assert_msg(rc == (names[i].sound ? KVC_OK : KVC_E_LOAD_NAME), "%s", names[i].name);
        kvc__policy_free(&mem, &loaded);
    }
}
END_TEST

static const char *const sound_choices[] = {"red", "green", NULL};
static const char *const empty_choice[] = {"red", "", NULL};
static const char *const colon_choice[] = {"red", "gre:en", NULL};
static const char *const comma_choice[] = {"a,b", NULL};
static const char *many_choices[66]; /* filled by the test: one more than are allowed */

#define INT(min_, def_, max_)                                                                      \
    .type = KVC_PARAM_INT, .min = {.i = (min_)}, .def = {.i = (def_)}, .max = {.i = (max_)}
#define SIZE(min_, def_, max_)                                                                     \
    .type = KVC_PARAM_SIZE, .min = {.i = (min_)}, .def = {.i = (def_)}, .max = {.i = (max_)}
#define FLOAT(min_, def_, max_)                                                                    \
    .type = KVC_PARAM_FLOAT, .min = {.f = (min_)}, .def = {.f = (def_)}, .max = {.f = (max_)}
#define CHOICE(choice_, def_) .type = KVC_PARAM_ENUM, .choice = (choice_), .def = {.i = (def_)}
#define BUDGET(def_)          .type = KVC_PARAM_BUDGET, .def = {.i = (def_)}
#define TEXT(def_)            .type = KVC_PARAM_STRING, .def = {.s = (def_)}

/* Rows that are sound (words NULL) or say what is wrong with them. */
static const struct {
    kvc_param row;
    const char *words;
} rows[] = {
    {{.name = "n", .help = "h", INT(-4, -4, 4)}, NULL},
    {{.name = "n", .help = "h", INT(-4, 4, 4)}, NULL},
    {{.name = "n", .help = "h", INT(-4, -5, 4)},
     "row 0 (n) of its parameter table: its default is"},
    {{.name = "n", .help = "h", INT(-4, 5, 4)}, "its default is not within its range"},
    {{.name = "n", .help = "h", SIZE(0, 1, 9)}, NULL},
    {{.name = "n", .help = "h", SIZE(-1, 1, 9)}, "its least is negative"},
    {{.name = "n", .help = "h", FLOAT(-1, 0.5, 1)}, NULL},
    {{.name = "n", .help = "h", FLOAT(-HUGE_VAL, 0, 1)}, "its least is not finite"},
    {{.name = "n", .help = "h", FLOAT(0, 0, HUGE_VAL)}, "its most is not finite"},
    {{.name = "n", .help = "h", FLOAT(0, -0.5, 1)}, "its default is not within its range"},
    {{.name = "n", .help = "h", FLOAT(0, 1.5, 1)}, "its default is not within its range"},
    {{.name = "n", .help = "h", CHOICE(sound_choices, 1)}, NULL},
    {{.name = "n", .help = "h", CHOICE(sound_choices, 2)}, "its default is none of its choices"},
    {{.name = "n", .help = "h", CHOICE(sound_choices, -1)}, "its default is none of its choices"},
    {{.name = "n", .help = "h", CHOICE(empty_choice, 0)}, "one of its choices is empty"},
    {{.name = "n", .help = "h", CHOICE(colon_choice, 0)}, "one of its choices holds ':'"},
    {{.name = "n", .help = "h", CHOICE(comma_choice, 0)}, "one of its choices holds ':'"},
    {{.name = "n", .help = "h", CHOICE(many_choices, 0)}, "its choices are too many"},
    {{.name = "n", .help = "h", CHOICE(many_choices + 1, 63)}, NULL},
    {{.name = "n", .help = "h", TEXT(NULL)}, NULL},
    {{.name = "n", .help = "h", TEXT("any text")}, NULL},
    {{.name = "n", .help = "h", TEXT("a+b")}, "its default holds ':', '+' or ','"},
    {{.name = "n", .help = "h", .type = 0}, "its type is unknown"},
    {{.name = "n", .help = "h", .type = KVC_PARAM_BUDGET + 1}, "its type is unknown"},
    {{.name = "n", .help = "h", BUDGET(KVC_BUDGET_PERCENT(25))}, NULL},
    {{.name = "n", .help = "h", BUDGET(512)}, "its default is no budget"},
    {{.name = "n", .help = "", INT(0, 0, 0)}, "its help is missing"},
    {{.name = "n", INT(0, 0, 0)}, "its help is missing"},
    {{.name = "a_9", .help = "h", INT(0, 0, 0)}, NULL},
    {{.name = "a-9", .help = "h", INT(0, 0, 0)}, "row 0 (a-9) of its parameter table: its name"},
    {{.name = "a234567890123456789012345678901", .help = "h", INT(0, 0, 0)}, NULL},
    {{.name = "a2345678901234567890123456789012", .help = "h", INT(0, 0, 0)}, "at most 31 char"},
};

START_TEST(each_row_of_a_table_is_checked) {
    for (size_t i = 0; i < 65; i++) {
        many_choices[i] = "same";
    }
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        kvc_param row = rows[i].row;
        kvc_policy p = table("probe");
        row.struct_size = sizeof row;
        p.n_param = 1;
        p.param_stride = sizeof row;
        p.param = &row;
        const int32_t rc = kvc__policy_check(&mem, &p, "", &loaded, &err);
        ck_assert_msg(rc == (rows[i].words ? KVC_E_LOAD_PARAMS : KVC_OK), "row %zu: %s", i,
                      err.text);
        if (rows[i].words) {
            said("a linked-in policy: policy probe: row 0");
            said(rows[i].words);
        }
        kvc__policy_free(&mem, &loaded);
        ck_assert_uint_eq(atomic_load(&mem.used), 0);
    }
}
END_TEST

/* Rows of a plugin's own size lie where its stride says: it must fit them and their alignment. */
START_TEST(strides_and_sizes_of_rows_are_checked) {
    kvc_param row[3] = {{.struct_size = sizeof row[0], .name = "n", .help = "h", INT(0, 0, 0)}};
    kvc_policy p = table("probe");
    p.n_param = 1;
    p.param = row;
    p.param_stride = sizeof row[0] + 4;
    ck_assert_int_eq(kvc__policy_check(&mem, &p, "", &loaded, &err), KVC_E_LOAD_PARAMS);
    said("bytes apart, is not usable");
    p.param_stride = sizeof row[0];
    row[0].struct_size = sizeof row[0] + 8;
    ck_assert_int_eq(kvc__policy_check(&mem, &p, "", &loaded, &err), KVC_E_LOAD_PARAMS);
    said("row 0 of its parameter table has struct_size");
    p.param_stride = 2 * sizeof row[0];
    ck_assert_msg(kvc__policy_check(&mem, &p, "", &loaded, &err) == KVC_OK, "%s", err.text);
}
END_TEST

START_TEST(each_text_of_a_table_is_wanted) {
    static const struct {
        size_t member;
        const char *words;
    } texts[] = {{offsetof(kvc_policy, name), "name is NULL"},
                 {offsetof(kvc_policy, version), "version is NULL"},
                 {offsetof(kvc_policy, summary), "summary is NULL"},
                 {offsetof(kvc_policy, license), "license is NULL"}};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        const char *none = NULL;
        kvc_policy p = table("probe");
        memcpy((char *)&p + texts[i].member, &none, sizeof none);
        ck_assert_int_eq(kvc__policy_check(&mem, &p, "", &loaded, &err), KVC_E_LOAD_TABLE);
        said("a linked-in policy: the policy table is not complete");
        said(texts[i].words);
    }
}
END_TEST

/* ---------------------------------------------------------------- the search */

START_TEST(a_name_finds_the_file_of_that_name) {
    ck_assert_msg(load_name("b_nothing") == KVC_OK, "%s", err.text);
    ck_assert_str_eq(loaded.path, in(plugins, "b_nothing.so"));
    ck_assert_msg(load_name("b_two") == KVC_OK, "%s", err.text);
    ck_assert_int_eq(load_name("b_name_bad"), KVC_E_LOAD_NAME);
    said("\"Bad Name\"");
    ck_assert_int_eq(load_name("b_abi_old"), KVC_E_LOAD_ABI);
}
END_TEST

START_TEST(a_file_named_unlike_its_policy_is_found_by_path_alone) {
    ck_assert_int_eq(load_name("b_name_other"), KVC_E_LOAD_NAME);
    said("b_name_other.so: holds policy \"other\", not \"b_name_other\"");
    ck_assert_int_eq(load_name("other"), KVC_E_NOT_FOUND);
    ck_assert_int_eq(load_path(in(plugins, "b_name_other.so")), KVC_OK);
    ck_assert_str_eq(loaded.desc.name, "other");
}
END_TEST

START_TEST(what_is_not_found_names_places_and_the_nearest) {
    const char *dirs[] = {tmp, plugins};
    const kvc__search search = {.n_dir = 2, .dir = dirs};
    ck_assert_int_eq(load(&search, "b_nothin"), KVC_E_NOT_FOUND);
    said("\"b_nothin\" is not found, did you mean \"b_nothing\"?");
    said(tmp);
    said(plugins);
    ck_assert_int_eq(load(&search, "zzzzzzzzzzzzzzzz"), KVC_E_NOT_FOUND);
    ck_assert_ptr_null(strstr(err.text, "did you mean"));
    ck_assert_int_eq(load_path("nothing"), KVC_E_NOT_FOUND);
    said("no directory");
}
END_TEST

START_TEST(a_word_of_any_length_is_looked_for) {
    char word[9000];
    memset(word, 'a', sizeof word);
    for (size_t n = 1; n < sizeof word; n = n * 2 + 1) {
        word[n] = '\0';
        ck_assert_int_eq(load_name(word), KVC_E_NOT_FOUND);
        word[n] = 'a';
    }
}
END_TEST

START_TEST(the_environment_names_directories) {
    kvc__search search = {.use_env = 1};
    char path[8192];
    snprintf(path, sizeof path, "/nowhere/at/all::%s//:", plugins);
    setenv("KVC_POLICY_PATH", path, 1);
    ck_assert_msg(load(&search, "b_nothing") == KVC_OK, "%s", err.text);
    ck_assert_str_eq(loaded.path, in(plugins, "b_nothing.so"));
    search.use_env = 0;
    ck_assert_int_eq(load(&search, "b_nothing"), KVC_E_NOT_FOUND);
}
END_TEST

START_TEST(the_current_directory_is_never_searched) {
    const kvc__search search = {.use_env = 1};
    int here = open(".", O_RDONLY);
    ck_assert_int_eq(chdir(plugins), 0);
    static const char *const paths[] = {"", ":", "::", ":/nowhere:"};
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        setenv("KVC_POLICY_PATH", paths[i], 1);
        ck_assert_int_eq(load(&search, "b_nothing"), KVC_E_NOT_FOUND);
        ck_assert_int_eq(load(&search, "b_nothing.so"), KVC_E_NOT_FOUND);
    }
    ck_assert_int_eq(load(&search, "./b_nothing.so"), KVC_OK);
    ck_assert_int_eq(fchdir(here), 0);
    close(here);
}
END_TEST

START_TEST(the_first_file_decides_even_if_it_is_broken) {
    const char *dirs[] = {tmp, plugins};
    const kvc__search search = {.n_dir = 2, .dir = dirs};
    file_write(in(tmp, "b_nothing.so"), "");
    ck_assert_int_eq(load(&search, "b_nothing"), KVC_E_LOAD_FILE);
    said(in(tmp, "b_nothing.so"));
    unlink(in(tmp, "b_nothing.so"));
    ck_assert_int_eq(load(&search, "b_nothing"), KVC_OK);
}
END_TEST

static const kvc_policy *entry_two(uint32_t host_abi, uint32_t index) {
    static kvc_policy two[2];
    two[0] = table("linked");
    two[1] = table("b_nothing");
    return host_abi == KVC_POLICY_ABI && index < 2 ? &two[index] : NULL;
}

static const kvc_policy *entry_endless(uint32_t host_abi, uint32_t index) {
    (void)index;
    return entry_two(host_abi, 0);
}

static const kvc_policy *entry_old(uint32_t host_abi, uint32_t index) {
    static kvc_policy old;
    (void)host_abi;
    old = table("old");
    old.abi = 0;
    return index == 0 ? &old : NULL;
}

START_TEST(linked_in_policies_come_before_any_file) {
    const kvc__entry_fn entries[] = {entry_old, entry_two};
    const kvc__search search = {.n_entry = 2, .entry = entries, .n_dir = 1, .dir = &plugins};
    ck_assert_int_eq(load(&search, "linked"), KVC_OK);
    ck_assert_str_eq(loaded.path, "");
    ck_assert_int_eq(load(&search, "b_nothing"), KVC_OK);
    ck_assert_str_eq(loaded.desc.version, "9");
    ck_assert_int_eq(load(&search, "b_two"), KVC_OK);
    ck_assert_int_eq(load(&search, "linkde"), KVC_E_NOT_FOUND);
    said("did you mean \"linked\"?");
}
END_TEST

static uint32_t n_grant;

static void *grant_few(void *ctx, void *p, size_t old_size, size_t new_size, size_t align) {
    (void)ctx;
    void *q = NULL;
    if (new_size > 0 && (n_grant-- == 0 || posix_memalign(&q, align, new_size) != 0)) {
        return NULL;
    }
    if (p != NULL && new_size > 0) {
        memcpy(q, p, old_size < new_size ? old_size : new_size);
    }
    free(p);
    return q;
}

static const kvc_allocator few = {.struct_size = sizeof few, .realloc = grant_few};

START_TEST(loading_without_memory_says_so_and_keeps_nothing) {
    kvc__mem scarce;
    const kvc__search search = {.n_dir = 1, .dir = &plugins};
    kvc__mem_init(&scarce, &few, NULL);
    int32_t rc = KVC_E_NOMEM;
    for (uint32_t grants = 0; rc != KVC_OK; grants++) {
        n_grant = grants;
        rc = kvc__registry_load(&scarce, &search, "b_nothing", &loaded, &err);
        ck_assert(rc == KVC_OK ? grants > 0 : rc == KVC_E_NOMEM);
        kvc__policy_free(&scarce, &loaded);
        ck_assert_uint_eq(atomic_load(&scarce.used), 0);
    }
}
END_TEST

/* ---------------------------------------------------------------- the list */

static kvc_params *params_make(void) {
    kvc_params *params = NULL;
    ck_assert_int_eq(kvc_params_create(&params), KVC_OK);
    ck_assert_int_eq(kvc_params_set_i64(params, "policy_default", 0), KVC_OK);
    return params;
}

/* The entry of that name whose path begins with dir; its status must be the given one. */
static kvc_policy_info find(const kvc_policies *list, const char *name, const char *dir,
                            int32_t status) {
    kvc_policy_info info = {.struct_size = sizeof info};
    for (uint32_t i = 0; i < kvc_policies_count(list); i++) {
        ck_assert_int_eq(kvc_policies_get(list, i, &info), KVC_OK);
        if (strcmp(info.name, name) == 0 && strncmp(info.path, dir, strlen(dir)) == 0 &&
            info.status == status) {
            return info;
        }
    }
    ck_abort_msg("%s of %s is not in the list with status %d", name, dir, status);
    return info;
}

START_TEST(the_list_has_all_that_is_there_sound_ones_first) {
    kvc_params *params = params_make();
    kvc_policies *list = NULL;
    ck_assert_int_eq(kvc_params_add_policy_dir(params, plugins), KVC_OK);
    ck_assert_int_eq(kvc_policies_open(params, &list), KVC_OK);
    ck_assert_str_eq(kvc_policies_path(list), plugins);
    kvc_policy_info info = find(list, "b_nothing", plugins, KVC_OK);
    ck_assert_str_eq(info.error, "");
    ck_assert_str_eq(info.version, "1.0.0");
    ck_assert_uint_eq(info.n_param, 1);
    for (size_t i = 0; i < sizeof breaks / sizeof breaks[0]; i++) {
        if (strcmp(breaks[i].file, "b_two") == 0) {
            continue; /* a file of two is sound in a list */
        }
        char file[64];
        snprintf(file, sizeof file, "%s.so", breaks[i].file);
        info = find(list, file, plugins, breaks[i].status);
        ck_assert_ptr_nonnull(strstr(info.error, breaks[i].words));
        ck_assert_str_eq(info.version, "");
        ck_assert_uint_eq(info.n_param, 0);
    }
    ck_assert_ptr_nonnull(
        strstr(find(list, "b_name_other.so", plugins, KVC_E_LOAD_NAME).error, "\"other\""));
    char last[64] = "";
    int broken = 0;
    for (uint32_t i = 0; i < kvc_policies_count(list); i++) {
        kvc_policies_get(list, i, &info);
        if (info.status < 0 && !broken) {
            broken = 1;
            last[0] = '\0';
        }
        ck_assert_int_eq(info.status < 0, broken);
        /* The tables were moved when the list grew and when it was sorted. */
        ck_assert(broken || list->item[i].policy.desc.api == &list->item[i].policy.api);
        ck_assert_msg(strcmp(last, info.name) <= 0, "%s after %s", info.name, last);
        snprintf(last, sizeof last, "%s", info.name);
    }
    kvc_policies_close(list);
    kvc_params_destroy(params);
}
END_TEST

START_TEST(a_shadowed_policy_is_listed_with_both_files) {
    kvc_params *params = params_make();
    kvc_policies *list = NULL;
    const char *first = in(tmp, "b_nothing.so");
    ck_assert_int_eq(symlink(in(plugins, "b_nothing.so"), first), 0);
    ck_assert_int_eq(kvc_params_add_policy_dir(params, tmp), KVC_OK);
    setenv("KVC_POLICY_PATH", plugins, 1);
    ck_assert_int_eq(kvc_policies_open(params, &list), KVC_OK);
    find(list, "b_nothing", tmp, KVC_OK);
    kvc_policy_info info = find(list, "b_nothing.so", plugins, KVC_E_LOAD_NAME);
    ck_assert_ptr_nonnull(strstr(info.error, in(tmp, "b_nothing.so")));
    ck_assert_ptr_nonnull(strstr(info.error, in(plugins, "b_nothing.so")));
    char path[8192];
    snprintf(path, sizeof path, "%s:%s", tmp, plugins);
    ck_assert_str_eq(kvc_policies_path(list), path);
    kvc_policies_close(list);
    kvc_params_destroy(params);
    unlink(in(tmp, "b_nothing.so"));
}
END_TEST

START_TEST(linked_in_policies_are_listed_too) {
    kvc_params *params = params_make();
    kvc_policies *list = NULL;
    ck_assert_int_eq(kvc_params_add_policy(params, entry_two), KVC_OK);
    ck_assert_int_eq(kvc_params_add_policy(params, entry_old), KVC_OK);
    ck_assert_int_eq(kvc_params_add_policy(params, entry_endless), KVC_OK);
    ck_assert_int_eq(kvc_policies_open(params, &list), KVC_OK);
    ck_assert_uint_eq(kvc_policies_count(list), 4);
    find(list, "b_nothing", "", KVC_OK);
    find(list, "linked", "", KVC_OK);
    find(list, "(linked in)", "", KVC_E_LOAD_ABI);
    find(list, "(linked in)", "", KVC_E_LOAD_TABLE);
    ck_assert_str_eq(kvc_policies_path(list), "");
    kvc_policies_close(list);
    kvc_params_destroy(params);
}
END_TEST

START_TEST(the_list_checks_its_callers) {
    kvc_params *params = params_make();
    kvc_policies *list = NULL;
    kvc_policy_info info = {.struct_size = sizeof info};
    const kvc_param *row;
    ck_assert_int_eq(kvc_policies_open(params, NULL), KVC_E_ARG);
    ck_assert_int_eq(kvc_params_add_policy_dir(params, plugins), KVC_OK);
    ck_assert_int_eq(kvc_policies_open(params, &list), KVC_OK);
    uint32_t n = kvc_policies_count(list), at = 0;
    ck_assert_int_eq(kvc_policies_get(list, n, &info), KVC_E_RANGE);
    ck_assert_int_eq(kvc_policies_get(list, 0, NULL), KVC_E_ARG);
    ck_assert_int_eq(kvc_policies_get(NULL, 0, &info), KVC_E_ARG);
    while (kvc_policies_get(list, at, &info) == KVC_OK && strcmp(info.name, "b_nothing") != 0) {
        at++;
    }
    ck_assert_int_eq(kvc_policies_param(list, at, 0, &row), KVC_OK);
    ck_assert_str_eq(row->name, "sound");
    ck_assert_int_eq(kvc_policies_param(list, at, 1, &row), KVC_E_RANGE);
    ck_assert_int_eq(kvc_policies_param(list, n - 1, 0, &row), KVC_E_RANGE);
    ck_assert_int_eq(kvc_policies_param(list, n, 0, &row), KVC_E_RANGE);
    ck_assert_int_eq(kvc_policies_param(list, at, 0, NULL), KVC_E_ARG);
    ck_assert_uint_eq(kvc_policies_count(NULL), 0);
    kvc_policies_close(NULL);

    /* A caller built with an earlier header gets no more than it has room for. */
    memset(&info, 0x55, sizeof info);
    info.struct_size = offsetof(kvc_policy_info, path);
    ck_assert_int_eq(kvc_policies_get(list, at, &info), KVC_OK);
    ck_assert_str_eq(info.name, "b_nothing");
    ck_assert_uint_eq(info.n_param, 0x55555555);
    info.struct_size = 3;
    ck_assert_int_eq(kvc_policies_get(list, at, &info), KVC_E_ARG);
    kvc_policies_close(list);
    kvc_params_destroy(params);
}
END_TEST

START_TEST(a_directory_that_isnt_there_has_no_policies) {
    kvc_params *params = params_make();
    kvc_policies *list = NULL;
    ck_assert_int_eq(kvc_params_add_policy_dir(params, "/nowhere/at/all"), KVC_OK);
    ck_assert_int_eq(kvc_policies_open(params, &list), KVC_OK);
    ck_assert_uint_eq(kvc_policies_count(list), 0);
    ck_assert_str_eq(kvc_policies_path(list), "/nowhere/at/all");
    kvc_policies_close(list);
    kvc_params_destroy(params);
}
END_TEST

START_TEST(listing_without_memory_says_so_and_keeps_nothing) {
    int32_t rc = KVC_E_NOMEM;
    for (uint32_t grants = 0; rc != KVC_OK; grants++) {
        kvc_params *params = params_make();
        kvc_policies *list = NULL;
        ck_assert_int_eq(kvc_params_set_allocator(params, &few), KVC_OK);
        ck_assert_int_eq(kvc_params_add_policy_dir(params, plugins), KVC_OK);
        ck_assert_int_eq(kvc_params_add_policy(params, entry_two), KVC_OK);
        n_grant = grants;
        rc = kvc_policies_open(params, &list);
        ck_assert(rc == KVC_OK || (rc == KVC_E_NOMEM && list == NULL));
        ck_assert(rc == KVC_OK || strstr(kvc_params_error(params), "no memory") != NULL);
        n_grant = UINT32_MAX;
        kvc_policies_close(list);
        kvc_params_destroy(params);
    }
}
END_TEST

int main(void) {
    plugins = getenv("KVC_TEST_BROKEN");
    plugins = plugins ? plugins : getenv("KVC_TEST_PLUGINS");
    if (plugins == NULL) {
        fputs("set KVC_TEST_BROKEN to the directory of the broken policies\n", stderr);
        return 1;
    }
    Suite *s = suite_create("registry");
    TCase *t = tcase_create("checks");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, a_sound_file_is_loaded_and_its_tables_copied);
    tcase_add_test(t, each_break_has_its_code_and_a_sentence_that_names_the_file);
    tcase_add_test(t, what_is_not_a_library_has_its_code);
    tcase_add_test(t, a_library_that_was_cut_is_refused);
    tcase_add_test(t, tables_of_a_later_header_are_cut_to_ours);
    tcase_add_test(t, names_are_what_the_header_allows);
    tcase_add_test(t, each_row_of_a_table_is_checked);
    tcase_add_test(t, strides_and_sizes_of_rows_are_checked);
    tcase_add_test(t, each_text_of_a_table_is_wanted);
    suite_add_tcase(s, t);
    t = tcase_create("search");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, a_name_finds_the_file_of_that_name);
    tcase_add_test(t, a_file_named_unlike_its_policy_is_found_by_path_alone);
    tcase_add_test(t, what_is_not_found_names_places_and_the_nearest);
    tcase_add_test(t, a_word_of_any_length_is_looked_for);
    tcase_add_test(t, the_environment_names_directories);
    tcase_add_test(t, the_current_directory_is_never_searched);
    tcase_add_test(t, the_first_file_decides_even_if_it_is_broken);
    tcase_add_test(t, linked_in_policies_come_before_any_file);
    tcase_add_test(t, loading_without_memory_says_so_and_keeps_nothing);
    suite_add_tcase(s, t);
    t = tcase_create("list");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, the_list_has_all_that_is_there_sound_ones_first);
    tcase_add_test(t, a_shadowed_policy_is_listed_with_both_files);
    tcase_add_test(t, linked_in_policies_are_listed_too);
    tcase_add_test(t, the_list_checks_its_callers);
    tcase_add_test(t, a_directory_that_isnt_there_has_no_policies);
    tcase_add_test(t, listing_without_memory_says_so_and_keeps_nothing);
    suite_add_tcase(s, t);
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
