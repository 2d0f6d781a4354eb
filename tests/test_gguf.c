/* SPDX-License-Identifier: MIT
 * test_gguf.c: the reader of model files, on files written here: one that has everything, one for
 * each way of being wrong, every truncation, and two thousand damaged copies. Each file lies in a
 * block of its own size, so that a sanitizer sees the first byte read outside. */
#include "gguf_bytes.h"

#include "gguf.h"

#include <check.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static kvc__mem mem;
static kvc__err err;
static bytes file;
static uint8_t *exact; /* the file's bytes in a block of their size */

static void setup(void) {
    kvc__mem_init(&mem, NULL, NULL);
    memset(&err, 0, sizeof err);
}

static void teardown(void) {
    bytes_free(&file);
    free(exact);
    exact = NULL;
    ck_assert_uint_eq(atomic_load(&mem.used), 0);
}

static int32_t open_bytes(const uint8_t *p, size_t n, kvc__gguf *g) {
    free(exact);
    exact = malloc(n ? n : 1);
    ck_assert_ptr_nonnull(exact);
    memcpy(exact, p, n);
    return kvc__gguf_open(&mem, n ? exact : NULL, n, g, &err);
}

/* ---------------------------------------------------------------- a file that has everything */

static const uint64_t dim_a[] = {3}, dim_b[] = {32, 2}, dim_c[] = {4, 2, 2}, dim_d[] = {7, 1, 1, 1};

/* 21 keys, out of order, and 4 tensors; the file ends with the last tensor's last byte. */
static void put_keys(bytes *b) {
    static const double numbers[] = {200, -3, 60000, -300, 4e9, -5, 0.5, 1, 0, 0, 1e15, -7, 0.25};
    for (uint32_t type = KVC__GGUF_F64 + 1; type-- > 0;) {
        char key[] = "n.a";
        key[2] = (char)('a' + type);
        if (type != KVC__GGUF_STRING && type != KVC__GGUF_ARRAY) {
            put_key(b, key, type);
            put_number(b, type, numbers[type]);
        }
    }
    put_key(b, "s", KVC__GGUF_STRING);
    put_str(b, "text");
    put_key(b, "s.empty", KVC__GGUF_STRING);
    put_str(b, "");
    put_array(b, "a.str", KVC__GGUF_STRING, 3);
    put_str(b, "one");
    put_str(b, "");
    put_str(b, "three");
    put_array(b, "a.i16", KVC__GGUF_I16, 2);
    put_number(b, KVC__GGUF_I16, -2);
    put_number(b, KVC__GGUF_I16, 3);
    put_array(b, "a.none", KVC__GGUF_F64, 0);
    put_key(b, "f.nan", KVC__GGUF_F32);
    put_u32(b, 0x7fc00000u);
    put_key(b, "f.inf", KVC__GGUF_F64);
    put_number(b, KVC__GGUF_F64, HUGE_VAL);
    put_key(b, "f.big", KVC__GGUF_F64);
    put_number(b, KVC__GGUF_F64, 1e300);
    put_key(b, "odd.bool", KVC__GGUF_BOOL);
    put_number(b, KVC__GGUF_BOOL, 2);
    put_u32_kv(b, "general.alignment", 64);
}

static void put_everything(bytes *b) {
    put_header(b, 3, 4, 21);
    put_keys(b);
    put_tensor(b, "b", 2, dim_b, KVC__T_Q8_0, 64);
    put_tensor(b, "a", 1, dim_a, KVC__T_F32, 0);
    put_tensor(b, "unknown", 4, dim_d, 99, 192);
    put_tensor(b, "c", 3, dim_c, KVC__T_F16, 192);
    put_padding(b, 64);
    for (uint32_t i = 0; i < 192 + 32; i++) {
        uint8_t v = (uint8_t)i;
        put(b, &v, 1);
    }
}

static void open_everything(kvc__gguf *g) {
    put_everything(&file);
    int32_t rc = open_bytes(file.p, file.n, g);
    ck_assert_msg(rc == KVC_OK, "%s", err.text);
}

START_TEST(reads_tensors) {
    kvc__gguf g;
    open_everything(&g);
    ck_assert_uint_eq(g.version, 3);
    ck_assert_uint_eq(g.n_tensor, 4);
    ck_assert_uint_eq(g.data_offset % 64, 0);
    ck_assert_uint_eq(g.data_offset, file.n - 224);
    ck_assert_uint_le(g.header_bytes, g.data_offset);
    const kvc__gguf_tensor *b = kvc__gguf_tensor_find(&g, "b");
    ck_assert_ptr_nonnull(b);
    ck_assert_uint_eq(b->n_dims, 2);
    ck_assert_uint_eq(b->dim[0], 32);
    ck_assert_uint_eq(b->dim[1], 2);
    ck_assert_uint_eq(b->dim[2], 1);
    ck_assert_uint_eq(b->bytes, 68);
    ck_assert_uint_eq(b->data[0], 64);
    ck_assert_uint_eq(kvc__gguf_tensor_find(&g, "c")->bytes, 32);
    ck_assert_uint_eq(kvc__gguf_tensor_find(&g, "c")->data[31], 192 + 31);
    ck_assert_ptr_null(kvc__gguf_tensor_find(&g, "unknown")->data);
    ck_assert_uint_eq(kvc__gguf_tensor_find(&g, "unknown")->bytes, 0);
    ck_assert_ptr_null(kvc__gguf_tensor_find(&g, "bb"));
    ck_assert_ptr_null(kvc__gguf_tensor_find(&g, ""));
    kvc__gguf_close(&g);
}
END_TEST

START_TEST(reads_integers) {
    kvc__gguf g;
    uint32_t v = 0;
    open_everything(&g);
    ck_assert_int_eq(kvc__gguf_u32(&g, "n.a", false, 0, 0, 255, &v, &err), KVC_OK);
    ck_assert_uint_eq(v, 200);
    ck_assert_int_eq(kvc__gguf_u32(&g, "n.c", false, 0, 0, 65535, &v, &err), KVC_OK);
    ck_assert_uint_eq(v, 60000);
    ck_assert_int_eq(kvc__gguf_u32(&g, "n.e", false, 0, 0, UINT32_MAX, &v, &err), KVC_OK);
    ck_assert_uint_eq(v, 4000000000u);
    ck_assert_int_eq(kvc__gguf_u32(&g, "none", true, 42, 0, 1, &v, &err), KVC_OK);
    ck_assert_uint_eq(v, 42);
    ck_assert_int_eq(kvc__gguf_u32(&g, "none", false, 0, 0, 1, &v, &err), KVC_E_FORMAT);
    ck_assert_ptr_nonnull(strstr(err.text, "none"));
    static const char *const refused[] = {"n.a", "n.b", "n.d", "n.f", "n.g",
                                          "n.h", "s",   "n.k", "n.l", "a.i16"};
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        err.text[0] = 0;
        ck_assert_int_eq(kvc__gguf_u32(&g, refused[i], true, 0, 0, 100, &v, &err), KVC_E_FORMAT);
        ck_assert_ptr_nonnull(strstr(err.text, refused[i]));
    }
    kvc__gguf_close(&g);
}
END_TEST

/* Files say counts with signed types too. */
START_TEST(reads_signed_integers_that_are_not_negative) {
    static const struct {
        const char *key;
        uint32_t type;
        double value;
    } keys[] = {{"i8", KVC__GGUF_I8, 127},
                {"i16", KVC__GGUF_I16, 300},
                {"i32", KVC__GGUF_I32, 0},
                {"i64", KVC__GGUF_I64, 4294967295.0}};
    kvc__gguf g;
    uint32_t v = 0;
    put_header(&file, 3, 0, 5);
    for (size_t i = 0; i < 4; i++) {
        put_key(&file, keys[i].key, keys[i].type);
        put_number(&file, keys[i].type, keys[i].value);
    }
    put_key(&file, "beyond", KVC__GGUF_I64);
    put_number(&file, KVC__GGUF_I64, 4294967296.0);
    ck_assert_msg(open_bytes(file.p, file.n, &g) == KVC_OK, "%s", err.text);
    for (size_t i = 0; i < 4; i++) {
        const uint32_t want = (uint32_t)keys[i].value;
        ck_assert_int_eq(kvc__gguf_u32(&g, keys[i].key, false, 1, want, want, &v, &err), KVC_OK);
        ck_assert_uint_eq(v, want);
    }
    ck_assert_int_eq(kvc__gguf_u32(&g, "beyond", true, 0, 0, UINT32_MAX, &v, &err), KVC_E_FORMAT);
    ck_assert_str_eq(err.text, "GGUF key 'beyond' is 4294967296; 0 to 4294967295 is allowed");
    kvc__gguf_close(&g);
}
END_TEST

START_TEST(reads_floats_bools_strings) {
    kvc__gguf g;
    float f = 0;
    bool b = false;
    kvc__str s;
    open_everything(&g);
    ck_assert_int_eq(kvc__gguf_f32(&g, "n.g", false, 0, &f, &err), KVC_OK);
    ck_assert(f == 0.5f);
    ck_assert_int_eq(kvc__gguf_f32(&g, "n.m", false, 0, &f, &err), KVC_OK);
    ck_assert(f == 0.25f);
    ck_assert_int_eq(kvc__gguf_f32(&g, "none", true, 2.0f, &f, &err), KVC_OK);
    ck_assert(f == 2.0f);
    static const char *const refused[] = {"f.nan", "f.inf", "f.big", "n.a", "s"};
    for (size_t i = 0; i < 5; i++) {
        ck_assert_int_eq(kvc__gguf_f32(&g, refused[i], true, 0, &f, &err), KVC_E_FORMAT);
    }
    ck_assert_int_eq(kvc__gguf_bool(&g, "n.h", false, &b, &err), KVC_OK);
    ck_assert(b);
    ck_assert_int_eq(kvc__gguf_bool(&g, "none", true, &b, &err), KVC_OK);
    ck_assert(b);
    ck_assert_int_eq(kvc__gguf_bool(&g, "odd.bool", true, &b, &err), KVC_E_FORMAT);
    ck_assert_int_eq(kvc__gguf_bool(&g, "n.a", true, &b, &err), KVC_E_FORMAT);
    ck_assert_int_eq(kvc__gguf_str(&g, "s", NULL, &s, &err), KVC_OK);
    ck_assert(s.n == 4 && memcmp(s.p, "text", 4) == 0);
    ck_assert_int_eq(kvc__gguf_str(&g, "s.empty", "x", &s, &err), KVC_OK);
    ck_assert_uint_eq(s.n, 0);
    ck_assert_int_eq(kvc__gguf_str(&g, "none", "def", &s, &err), KVC_OK);
    ck_assert(s.n == 3 && memcmp(s.p, "def", 3) == 0);
    ck_assert_int_eq(kvc__gguf_str(&g, "none", NULL, &s, &err), KVC_E_FORMAT);
    ck_assert_int_eq(kvc__gguf_str(&g, "n.a", "x", &s, &err), KVC_E_FORMAT);
    ck_assert_int_eq(kvc__gguf_str(&g, "a.str", "x", &s, &err), KVC_E_FORMAT);
    kvc__gguf_close(&g);
}
END_TEST

START_TEST(walks_arrays) {
    static const double numbers[] = {200, -3, 60000, -300, 4e9, -5, 0.5, 1, 0, 0, 1e15, -7, 0.25};
    static const char *const texts[] = {"one", "", "three"};
    kvc__gguf g;
    kvc__str s;
    open_everything(&g);
    const kvc__gguf_kv *kv = kvc__gguf_find(&g, "a.str");
    const uint8_t *at = kv->value;
    for (size_t i = 0; i < 3; i++) {
        ck_assert(kvc__gguf_next_str(kv, &at, &s));
        ck_assert(s.n == strlen(texts[i]) && memcmp(s.p, texts[i], s.n) == 0);
    }
    ck_assert(!kvc__gguf_next_str(kv, &at, &s));
    ck_assert(kvc__gguf_elem(kv, 0) == 0.0);
    kv = kvc__gguf_find(&g, "a.i16");
    at = kv->value;
    ck_assert(!kvc__gguf_next_str(kv, &at, &s));
    ck_assert_uint_eq(kv->n, 2);
    ck_assert_uint_eq(kv->bytes, 4);
    ck_assert(kvc__gguf_elem(kv, 0) == -2.0 && kvc__gguf_elem(kv, 1) == 3.0);
    ck_assert(kvc__gguf_elem(kv, 2) == 0.0);
    ck_assert_uint_eq(kvc__gguf_find(&g, "a.none")->n, 0);
    for (uint32_t type = 0; type <= KVC__GGUF_F64; type++) {
        char key[] = "n.a";
        key[2] = (char)('a' + type);
        kv = kvc__gguf_find(&g, key);
        ck_assert(type == KVC__GGUF_STRING || type == KVC__GGUF_ARRAY ||
                  kvc__gguf_elem(kv, 0) == numbers[type]);
    }
    kvc__gguf_close(&g);
}
END_TEST

START_TEST(version_2_and_no_tensors) {
    kvc__gguf g;
    put_header(&file, 2, 0, 1);
    put_u32_kv(&file, "k", 7);
    ck_assert_int_eq(open_bytes(file.p, file.n, &g), KVC_OK);
    ck_assert_uint_eq(g.header_bytes, file.n);
    ck_assert_uint_le(g.data_offset, file.n);
    kvc__gguf_close(&g);
    kvc__gguf_close(&g);
    bytes_free(&file);
    put_header(&file, 3, 0, 0);
    ck_assert_int_eq(open_bytes(file.p, file.n, &g), KVC_OK);
    ck_assert_ptr_null(kvc__gguf_find(&g, "k"));
    ck_assert_ptr_null(kvc__gguf_tensor_find(&g, "t"));
    kvc__gguf_close(&g);
}
END_TEST

/* ---------------------------------------------------------------- files that are wrong */

static void one_tensor(bytes *b, uint32_t n_dims, const uint64_t *dim, uint32_t type,
                       uint64_t offset) {
    put_header(b, 3, 1, 0);
    put_tensor(b, "t", n_dims, dim, type, offset);
    put_padding(b, 32);
    put_zeros(b, 64);
}

static void magic(bytes *b) {
    put(b, "GGML\3\0\0\0", 8);
    put_zeros(b, 16);
}
static void version_1(bytes *b) {
    put_header(b, 1, 0, 0);
}
static void version_0(bytes *b) {
    put_header(b, 0, 0, 0);
}
static void version_4(bytes *b) {
    put_header(b, 4, 0, 0);
}
static void big_endian(bytes *b) {
    put_header(b, 0x03000000u, 0, 0);
}
static void kv_count_huge(bytes *b) {
    put_header(b, 3, 0, (uint64_t)1 << 60);
    put_zeros(b, 1000);
}
static void kv_count_wraps(bytes *b) {
    put_header(b, 3, 0, UINT64_MAX / sizeof(kvc__gguf_kv) + 2);
    put_zeros(b, 1000);
}
static void kv_count_negative(bytes *b) {
    put_header(b, 3, 0, UINT64_MAX);
    put_zeros(b, 1000);
}
static void tensor_count_huge(bytes *b) {
    put_header(b, 3, (uint64_t)1 << 60, 0);
    put_zeros(b, 1000);
}
static void tensor_count_wraps(bytes *b) {
    put_header(b, 3, UINT64_MAX / sizeof(kvc__gguf_tensor) + 2, 0);
    put_zeros(b, 1000);
}
static void key_empty(bytes *b) {
    put_header(b, 3, 0, 1);
    put_u32_kv(b, "", 1);
    put_zeros(b, 8);
}
static void key_long(bytes *b) {
    put_header(b, 3, 0, 1);
    put_u64(b, 65536);
    put_zeros(b, 65536 + 8);
}
static void string_huge(bytes *b) {
    put_header(b, 3, 0, 1);
    put_key(b, "k", KVC__GGUF_STRING);
    put_u64(b, UINT64_MAX - 20);
    put_zeros(b, 64);
}
static void string_one_over(bytes *b) {
    put_header(b, 3, 0, 1);
    put_key(b, "k", KVC__GGUF_STRING);
    put_u64(b, 65);
    put_zeros(b, 64);
}
static void value_type(bytes *b) {
    put_header(b, 3, 0, 1);
    put_u32_kv(b, "k", 0);
    b->p[24 + 9] = 13;
}
static void array_type(bytes *b) {
    put_header(b, 3, 0, 1);
    put_array(b, "k", 13, 1);
    put_zeros(b, 8);
}
static void array_wraps(bytes *b) {
    put_header(b, 3, 0, 1);
    put_array(b, "k", KVC__GGUF_U64, ((uint64_t)1 << 61) + 1);
    put_zeros(b, 64);
}
static void array_one_over(bytes *b) {
    put_header(b, 3, 0, 1);
    put_array(b, "k", KVC__GGUF_U32, 17);
    put_zeros(b, 64);
}
static void array_of_strings_over(bytes *b) {
    put_header(b, 3, 0, 1);
    put_array(b, "k", KVC__GGUF_STRING, 4);
    put_str(b, "twenty-four bytes of text");
    put_str(b, "a");
}
static void array_nested(bytes *b) {
    put_header(b, 3, 0, 1);
    put_array(b, "k", KVC__GGUF_ARRAY, 1);
    put_u32(b, KVC__GGUF_U8);
    put_u64(b, 0);
}
static void key_twice(bytes *b) {
    put_header(b, 3, 0, 3);
    put_u32_kv(b, "same", 1);
    put_u32_kv(b, "other", 1);
    put_u32_kv(b, "same", 2);
}
static void tensor_twice(bytes *b) {
    put_header(b, 3, 2, 0);
    put_tensor(b, "same", 1, dim_a, KVC__T_F32, 0);
    put_tensor(b, "same", 1, dim_a, KVC__T_F32, 32);
    put_padding(b, 32);
    put_zeros(b, 64);
}
static void alignment_0(bytes *b) {
    put_header(b, 3, 0, 1);
    put_u32_kv(b, "general.alignment", 0);
}
static void alignment_48(bytes *b) {
    put_header(b, 3, 0, 1);
    put_u32_kv(b, "general.alignment", 48);
}
static void alignment_huge(bytes *b) {
    put_header(b, 3, 0, 1);
    put_u32_kv(b, "general.alignment", 1u << 31);
}
static void alignment_u64(bytes *b) {
    put_header(b, 3, 0, 1);
    put_key(b, "general.alignment", KVC__GGUF_U64);
    put_u64(b, 32);
}
static void dims_none(bytes *b) {
    one_tensor(b, 0, NULL, KVC__T_F32, 0);
}
static void dims_five(bytes *b) {
    static const uint64_t dim[] = {1, 1, 1, 1, 1};
    one_tensor(b, 5, dim, KVC__T_F32, 0);
}
static void dims_many(bytes *b) {
    put_header(b, 3, 1, 0);
    put_str(b, "t");
    put_u32(b, UINT32_MAX);
    put_zeros(b, 200);
}
static void dim_zero(bytes *b) {
    static const uint64_t dim[] = {4, 0};
    one_tensor(b, 2, dim, KVC__T_F32, 0);
}
static void dim_negative(bytes *b) {
    static const uint64_t dim[] = {UINT64_MAX - 3};
    one_tensor(b, 1, dim, 99, 0);
}
static void dims_wrap(bytes *b) {
    static const uint64_t dim[] = {(uint64_t)1 << 32, (uint64_t)1 << 32};
    one_tensor(b, 2, dim, KVC__T_F32, 0);
}
static void dims_wrap_to_little(bytes *b) {
    static const uint64_t dim[] = {(uint64_t)1 << 62, 1, 4, 1};
    one_tensor(b, 4, dim, KVC__T_F32, 0);
}
static void bytes_wrap(bytes *b) {
    static const uint64_t dim[] = {(uint64_t)1 << 62};
    one_tensor(b, 1, dim, KVC__T_F32, 0);
}
static void row_of_31(bytes *b) {
    static const uint64_t dim[] = {31, 32};
    one_tensor(b, 2, dim, KVC__T_Q4_0, 0);
}
static void data_one_over(bytes *b) {
    static const uint64_t dim[] = {17};
    one_tensor(b, 1, dim, KVC__T_F32, 0);
}
static void offset_odd(bytes *b) {
    one_tensor(b, 1, dim_a, KVC__T_F32, 4);
}
static void offset_outside(bytes *b) {
    one_tensor(b, 1, dim_a, KVC__T_F32, 96);
}
static void offset_wraps(bytes *b) {
    one_tensor(b, 1, dim_a, KVC__T_F32, UINT64_MAX - 31);
}
static void offset_of_unknown(bytes *b) {
    one_tensor(b, 1, dim_a, 99, 96);
}
static void tensor_name_empty(bytes *b) {
    put_header(b, 3, 1, 0);
    put_tensor(b, "", 1, dim_a, KVC__T_F32, 0);
    put_zeros(b, 96);
}
static void tensor_name_long(bytes *b) {
    put_header(b, 3, 1, 0);
    put_u64(b, 65);
    put_zeros(b, 200);
}
static void data_missing(bytes *b) {
    put_header(b, 3, 1, 0);
    put_tensor(b, "t", 1, dim_a, KVC__T_F32, 0);
}

static const struct {
    void (*write)(bytes *b);
    int32_t status;
    const char *says;
    bool no_alloc; /* refused before any memory is taken */
} wrong[] = {
    {magic, KVC_E_FORMAT, "not a GGUF file", true},
    {version_0, KVC_E_UNSUPPORTED, "version 0", true},
    {version_1, KVC_E_UNSUPPORTED, "version 1", true},
    {version_4, KVC_E_UNSUPPORTED, "version 4", true},
    {big_endian, KVC_E_UNSUPPORTED, "big-endian", true},
    {kv_count_huge, KVC_E_FORMAT, "1152921504606846976 key", true},
    {kv_count_wraps, KVC_E_FORMAT, "key entries", true},
    {kv_count_negative, KVC_E_FORMAT, "key entries", true},
    {tensor_count_huge, KVC_E_FORMAT, "tensor entries", true},
    {tensor_count_wraps, KVC_E_FORMAT, "tensor entries", true},
    {key_empty, KVC_E_FORMAT, "0 bytes", false},
    {key_long, KVC_E_FORMAT, "65536 bytes", false},
    {string_huge, KVC_E_FORMAT, "cut short", false},
    {string_one_over, KVC_E_FORMAT, "65 bytes", false},
    {value_type, KVC_E_FORMAT, "'k'", false},
    {array_type, KVC_E_FORMAT, "type 13", false},
    {array_wraps, KVC_E_FORMAT, "does not fit", false},
    {array_one_over, KVC_E_FORMAT, "17 elements", false},
    {array_of_strings_over, KVC_E_FORMAT, "cut short", false},
    {array_nested, KVC_E_UNSUPPORTED, "arrays inside arrays", false},
    {key_twice, KVC_E_FORMAT, "'same'", false},
    {tensor_twice, KVC_E_FORMAT, "'same'", false},
    {alignment_0, KVC_E_FORMAT, "general.alignment", false},
    {alignment_48, KVC_E_FORMAT, "general.alignment", false},
    {alignment_huge, KVC_E_FORMAT, "general.alignment", false},
    {alignment_u64, KVC_E_FORMAT, "general.alignment", false},
    {dims_none, KVC_E_FORMAT, "0 dimensions", false},
    {dims_five, KVC_E_FORMAT, "5 dimensions", false},
    {dims_many, KVC_E_FORMAT, "4294967295 dimensions", false},
    {dim_zero, KVC_E_FORMAT, "dimension 1 is 0", false},
    {dim_negative, KVC_E_FORMAT, "overflows", false},
    {dims_wrap, KVC_E_FORMAT, "overflows", false},
    {dims_wrap_to_little, KVC_E_FORMAT, "overflows", false},
    {bytes_wrap, KVC_E_FORMAT, "overflows", false},
    {row_of_31, KVC_E_FORMAT, "multiple of 32", false},
    {data_one_over, KVC_E_FORMAT, "68 bytes", false},
    {offset_odd, KVC_E_FORMAT, "offset 4", false},
    {offset_outside, KVC_E_FORMAT, "offset 96", false},
    {offset_wraps, KVC_E_FORMAT, "do not lie", false},
    {offset_of_unknown, KVC_E_FORMAT, "offset 96", false},
    {tensor_name_empty, KVC_E_FORMAT, "0 bytes", false},
    {tensor_name_long, KVC_E_FORMAT, "65 bytes", false},
    {data_missing, KVC_E_FORMAT, "cut short", false},
};

START_TEST(refuses) {
    kvc__gguf g;
    wrong[_i].write(&file);
    int32_t rc = open_bytes(file.p, file.n, &g);
    ck_assert_msg(rc == wrong[_i].status, "case %d (%s): %d %s", _i, wrong[_i].says, rc, err.text);
    ck_assert_msg(strstr(err.text, wrong[_i].says) != NULL, "'%s' lacks '%s'", err.text,
                  wrong[_i].says);
    ck_assert_ptr_null(g.kv);
    ck_assert_ptr_null(g.tensor);
    ck_assert_uint_eq(g.n_kv + g.n_tensor, 0);
    ck_assert(!wrong[_i].no_alloc || atomic_load(&mem.peak) == 0);
    ck_assert_uint_le(atomic_load(&mem.peak), 4 * file.n);
}
END_TEST

START_TEST(every_truncation_is_refused) {
    bytes whole = {0};
    put_everything(&whole);
    for (size_t n = 0; n < whole.n; n++) {
        kvc__gguf g;
        int32_t rc = open_bytes(whole.p, n, &g);
        ck_assert_msg(rc == KVC_E_FORMAT, "%zu of %zu bytes: %d", n, whole.n, rc);
        ck_assert_uint_eq(atomic_load(&mem.used), 0);
    }
    bytes_free(&whole);
}
END_TEST

/* Touches all that a reader may touch. */
static uint64_t read_all(const kvc__gguf *g) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < g->n_kv; i++) {
        const kvc__gguf_kv *kv = &g->kv[i];
        const uint8_t *at = kv->value;
        kvc__str s;
        for (size_t k = 0; k < kv->key.n; k++) {
            sum += (uint8_t)kv->key.p[k];
        }
        while (kvc__gguf_next_str(kv, &at, &s)) {
            for (size_t k = 0; k < s.n; k++) {
                sum += (uint8_t)s.p[k];
            }
        }
        for (uint64_t k = 0; k < kv->n; k++) {
            sum += kvc__gguf_elem(kv, k) > 0;
        }
    }
    for (uint64_t i = 0; i < g->n_tensor; i++) {
        for (size_t k = 0; k < g->tensor[i].bytes; k++) {
            sum += g->tensor[i].data[k];
        }
    }
    return sum;
}

START_TEST(damaged_copies_are_survived) {
    uint64_t state = 88172645463325252u, sum = 0;
    uint32_t opened = 0;
    bytes whole = {0};
    put_everything(&whole);
    uint8_t *copy = malloc(whole.n);
    ck_assert_ptr_nonnull(copy);
    for (uint32_t i = 0; i < 2000; i++) {
        kvc__gguf g;
        memcpy(copy, whole.p, whole.n);
        mutate(copy, whole.n - 192, &state);
        if (open_bytes(copy, whole.n, &g) == KVC_OK) {
            sum += read_all(&g);
            opened++;
        }
        kvc__gguf_close(&g);
        ck_assert_uint_eq(atomic_load(&mem.used), 0);
    }
    ck_assert_uint_gt(sum, 0);
    ck_assert_uint_gt(opened, 50);
    ck_assert_uint_lt(opened, 1500);
    free(copy);
    bytes_free(&whole);
}
END_TEST

/* ---------------------------------------------------------------- memory, types, text */

static void *failing_realloc(void *ctx, void *p, size_t old_size, size_t new_size, size_t align) {
    uint32_t *left = ctx;
    (void)old_size;
    (void)align;
    if (new_size == 0) {
        free(p);
        return NULL;
    }
    if (*left == 0) {
        return NULL;
    }
    *left -= 1;
    return realloc(p, new_size);
}

START_TEST(without_memory) {
    int32_t rc = KVC_E_NOMEM;
    uint32_t allowed = 0;
    put_everything(&file);
    for (; rc == KVC_E_NOMEM; allowed++) {
        kvc__gguf g;
        uint32_t left = allowed;
        kvc_allocator a = {.struct_size = sizeof a, .ctx = &left, .realloc = failing_realloc};
        kvc__mem_init(&mem, &a, NULL);
        rc = open_bytes(file.p, file.n, &g);
        kvc__gguf_close(&g);
        ck_assert_uint_eq(atomic_load(&mem.used), 0);
    }
    ck_assert_int_eq(rc, KVC_OK);
    ck_assert_uint_eq(allowed, 3);
}
END_TEST

START_TEST(type_table) {
    uint32_t elems, size;
    const char *name;
    ck_assert(kvc__type_info(KVC__T_Q4_1, &elems, &size, &name));
    ck_assert(elems == 32 && size == 20 && strcmp(name, "Q4_1") == 0);
    ck_assert(kvc__type_info(KVC__T_Q6_K, &elems, &size, &name));
    ck_assert(elems == 256 && size == 210 && strcmp(name, "Q6_K") == 0);
    ck_assert(!kvc__type_info(4, &elems, &size, &name));
    ck_assert(!kvc__type_info(UINT32_MAX, &elems, &size, &name));
}
END_TEST

START_TEST(text_is_cut_and_cleaned) {
    static const struct {
        const char *in, *out;
        size_t cap;
    } cases[] = {
        {"plain", "plain", 16},
        {"plain", "pla", 4},
        {"a\nb\x7f", "a?b?", 16},
        {"\xc3\xa9t\xc3\xa9", "\xc3\xa9t", 5},
        {"\xff\xc3", "??", 16},
        {"\xe0\x80\x80", "???", 16},
        {"\xc0\x80", "??", 16},
        {"\xed\xa0\x80", "???", 16},
        {"\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80", 5},
        {"\xf0\x9f\x98\x80", "", 4},
        {"\xf4\x90\x80\x80", "????", 16},
        {"", "", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char out[16];
        kvc__str s = {cases[i].in, strlen(cases[i].in)};
        ck_assert_str_eq(kvc__str_text(s, out, cases[i].cap), cases[i].out);
    }
}
END_TEST

int main(void) {
    Suite *suite = suite_create("gguf");
    TCase *tc = tcase_create("gguf");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, reads_tensors);
    tcase_add_test(tc, reads_integers);
    tcase_add_test(tc, reads_signed_integers_that_are_not_negative);
    tcase_add_test(tc, reads_floats_bools_strings);
    tcase_add_test(tc, walks_arrays);
    tcase_add_test(tc, version_2_and_no_tensors);
    tcase_add_loop_test(tc, refuses, 0, (int)(sizeof wrong / sizeof wrong[0]));
    tcase_add_test(tc, every_truncation_is_refused);
    tcase_add_test(tc, damaged_copies_are_survived);
    tcase_add_test(tc, without_memory);
    tcase_add_test(tc, type_table);
    tcase_add_test(tc, text_is_cut_and_cleaned);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
