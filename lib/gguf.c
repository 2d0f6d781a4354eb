/* SPDX-License-Identifier: MIT
 * gguf.c: reads the container of a model file into two sorted tables. First step of opening a
 * model: bytes in, keys and tensors out. Every number of the file passes a bound here, so that what
 * leaves can be used without another check; a table is allocated only after its count was held
 * against the bytes that are left. It must not know what a key means, but for general.alignment. */
#include "gguf.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ALIGN_KEY       "general.alignment"
#define ALIGN_MAX       65536u
#define TENSOR_NAME_MAX 64u    /* bytes of a tensor's name */
#define KEY_NAME_MAX    65535u /* bytes of a key */
#define KV_LEAST        14u /* bytes of the shortest entry: length, one byte of key, type, one byte */
#define TENSOR_LEAST    33u /* length, one byte of name, n_dims, one dim, type, offset */
#define SHOWN           96u /* bytes of a string in a sentence */

/* A place in the file, and what stands there, for the sentence of a failure. */
typedef struct cursor {
    const uint8_t *base;
    size_t size, pos;
    const char *what; /* "header", "key", "tensor" */
    uint64_t index;
    kvc__err *err;
} cursor;

static const struct {
    uint32_t type, elems, bytes;
    const char *name;
} type_table[] = {
    {KVC__T_F32, 1, 4, "F32"},       {KVC__T_F16, 1, 2, "F16"},
    {KVC__T_BF16, 1, 2, "BF16"},     {KVC__T_Q4_0, 32, 18, "Q4_0"},
    {KVC__T_Q4_1, 32, 20, "Q4_1"},   {KVC__T_Q5_0, 32, 22, "Q5_0"},
    {KVC__T_Q5_1, 32, 24, "Q5_1"},   {KVC__T_Q8_0, 32, 34, "Q8_0"},
    {KVC__T_Q2_K, 256, 84, "Q2_K"},  {KVC__T_Q3_K, 256, 110, "Q3_K"},
    {KVC__T_Q4_K, 256, 144, "Q4_K"}, {KVC__T_Q5_K, 256, 176, "Q5_K"},
    {KVC__T_Q6_K, 256, 210, "Q6_K"}, {KVC__T_IQ4_NL, 32, 18, "IQ4_NL"},
};

static const struct {
    uint32_t bytes; /* 0: not of one size */
    const char *name;
} value_table[] = {
    [KVC__GGUF_U8] = {1, "u8"},         [KVC__GGUF_I8] = {1, "i8"},
    [KVC__GGUF_U16] = {2, "u16"},       [KVC__GGUF_I16] = {2, "i16"},
    [KVC__GGUF_U32] = {4, "u32"},       [KVC__GGUF_I32] = {4, "i32"},
    [KVC__GGUF_F32] = {4, "f32"},       [KVC__GGUF_BOOL] = {1, "bool"},
    [KVC__GGUF_STRING] = {0, "string"}, [KVC__GGUF_ARRAY] = {0, "array"},
    [KVC__GGUF_U64] = {8, "u64"},       [KVC__GGUF_I64] = {8, "i64"},
    [KVC__GGUF_F64] = {8, "f64"},
};

bool kvc__type_info(uint32_t type, uint32_t *elems, uint32_t *bytes, const char **name) {
    for (size_t i = 0; i < sizeof type_table / sizeof type_table[0]; i++) {
        if (type_table[i].type == type) {
            *elems = type_table[i].elems;
            *bytes = type_table[i].bytes;
            *name = type_table[i].name;
            return true;
        }
    }
    return false;
}

/* ---------------------------------------------------------------- numbers and strings */

/* The file is little endian whatever the machine is, and nothing in it is aligned. */
static uint64_t load_le(const uint8_t *p, uint32_t bytes) {
    uint64_t v = 0;
    for (uint32_t i = 0; i < bytes; i++) {
        v |= (uint64_t)p[i] << (8 * i);
    }
    return v;
}

static double load_f32(const uint8_t *p) {
    uint32_t bits = (uint32_t)load_le(p, 4);
    float x;
    memcpy(&x, &bits, sizeof x);
    return (double)x;
}

static double load_f64(const uint8_t *p) {
    uint64_t bits = load_le(p, 8);
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static int64_t load_signed(const uint8_t *p, uint32_t bytes) {
    uint64_t v = load_le(p, bytes);
    uint64_t sign = (uint64_t)1 << (8 * bytes - 1);
    if (v & sign) {
        return -(int64_t)(sign - (v & (sign - 1)) - 1) - 1;
    }
    return (int64_t)v;
}

static bool is_signed(uint32_t type) {
    return type == KVC__GGUF_I8 || type == KVC__GGUF_I16 || type == KVC__GGUF_I32 ||
           type == KVC__GGUF_I64;
}

static bool is_unsigned(uint32_t type) {
    return type == KVC__GGUF_U8 || type == KVC__GGUF_U16 || type == KVC__GGUF_U32 ||
           type == KVC__GGUF_U64;
}

/* Length of the well-formed UTF-8 character at p, 0 when it is none. */
static size_t utf8_char(const char *p, size_t n) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *u = (const unsigned char *)p;
    size_t len = u[0] < 0x80 ? 1 : u[0] >= 0xf0 ? 4 : u[0] >= 0xe0 ? 3 : 2;
    if (len == 1) {
        return 1;
    }
    if (u[0] < 0xc2 || u[0] > 0xf4 || len > n) {
        return 0;
    }
    uint32_t c = u[0] & (0x7fu >> len);
    for (size_t i = 1; i < len; i++) {
        if ((u[i] & 0xc0) != 0x80) {
            return 0;
        }
        c = c << 6 | (u[i] & 0x3f);
    }
    return c < least[len] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000) ? 0 : len;
}

char *kvc__str_text(kvc__str s, char *out, size_t cap) {
    size_t w = 0;
    for (size_t i = 0; i < s.n;) {
        size_t len = utf8_char(s.p + i, s.n - i);
        size_t bytes = len ? len : 1;
        if (w + bytes >= cap) {
            break;
        }
        if (len == 0 || (len == 1 && ((unsigned char)s.p[i] < 0x20 || s.p[i] == 0x7f))) {
            out[w] = '?';
        } else {
            memcpy(out + w, s.p + i, bytes);
        }
        w += bytes;
        i += bytes;
    }
    out[w] = 0;
    return out;
}

static int str_cmp(kvc__str a, kvc__str b) {
    size_t n = a.n < b.n ? a.n : b.n;
    int c = n ? memcmp(a.p, b.p, n) : 0;
    return c ? c : (a.n > b.n) - (a.n < b.n);
}

/* ---------------------------------------------------------------- the cursor */

static int32_t cut_short(const cursor *c, uint64_t need) {
    return kvc__fail(c->err, KVC_E_FORMAT,
                     "GGUF %s %" PRIu64 ": %" PRIu64 " bytes are wanted at byte %zu of %zu; the "
                     "file is cut short or damaged, fetch it again",
                     c->what, c->index, need, c->pos, c->size);
}

static int32_t take(cursor *c, uint64_t n, const uint8_t **out) {
    if (n > c->size - c->pos) {
        return cut_short(c, n);
    }
    *out = c->base + c->pos;
    c->pos += (size_t)n;
    return KVC_OK;
}

static int32_t take_u32(cursor *c, uint32_t *out) {
    const uint8_t *p = NULL;
    KVC_TRY(take(c, 4, &p));
    *out = (uint32_t)load_le(p, 4);
    return KVC_OK;
}

static int32_t take_u64(cursor *c, uint64_t *out) {
    const uint8_t *p = NULL;
    KVC_TRY(take(c, 8, &p));
    *out = load_le(p, 8);
    return KVC_OK;
}

static int32_t take_str(cursor *c, kvc__str *out) {
    uint64_t n;
    const uint8_t *p = NULL;
    KVC_TRY(take_u64(c, &n));
    KVC_TRY(take(c, n, &p));
    out->p = (const char *)p;
    out->n = (size_t)n;
    return KVC_OK;
}

/* A key's or a tensor's name. */
static int32_t take_name(cursor *c, size_t max, kvc__str *out) {
    size_t at = c->pos;
    KVC_TRY(take_str(c, out));
    if (out->n == 0 || out->n > max) {
        return kvc__fail(c->err, KVC_E_FORMAT,
                         "GGUF %s %" PRIu64 " at byte %zu: its name has %zu bytes, 1 to %zu are "
                         "allowed",
                         c->what, c->index, at, out->n, max);
    }
    return KVC_OK;
}

/* ---------------------------------------------------------------- keys */

static int32_t bad_type(const cursor *c, kvc__str key, uint32_t type) {
    char text[SHOWN];
    return kvc__fail(c->err, KVC_E_FORMAT,
                     "GGUF key '%s' at byte %zu: value type %" PRIu32 " does not exist",
                     kvc__str_text(key, text, sizeof text), c->pos, type);
}

static int32_t take_array(cursor *c, kvc__gguf_kv *kv) {
    char text[SHOWN];
    KVC_TRY(take_u32(c, &kv->elem_type));
    KVC_TRY(take_u64(c, &kv->n));
    if (kv->elem_type > KVC__GGUF_F64) {
        return bad_type(c, kv->key, kv->elem_type);
    }
    if (kv->elem_type == KVC__GGUF_ARRAY) {
        return kvc__fail(c->err, KVC_E_UNSUPPORTED,
                         "GGUF key '%s': arrays inside arrays are not supported",
                         kvc__str_text(kv->key, text, sizeof text));
    }
    uint32_t each = value_table[kv->elem_type].bytes;
    uint32_t least = each ? each : 8; /* a string has at least its length */
    if (kv->n > (c->size - c->pos) / least) {
        return kvc__fail(c->err, KVC_E_FORMAT,
                         "GGUF key '%s': an array of %" PRIu64 " elements does not fit the %zu "
                         "bytes left; the file is cut short or damaged, fetch it again",
                         kvc__str_text(kv->key, text, sizeof text), kv->n, c->size - c->pos);
    }
    const uint8_t *begin = c->base + c->pos;
    if (each) {
        c->pos += (size_t)kv->n * each;
    } else {
        kvc__str s;
        for (uint64_t i = 0; i < kv->n; i++) {
            KVC_TRY(take_str(c, &s));
        }
    }
    kv->value = begin;
    return KVC_OK;
}

static int32_t take_kv(cursor *c, kvc__gguf_kv *kv) {
    kvc__str s;
    KVC_TRY(take_name(c, KEY_NAME_MAX, &kv->key));
    KVC_TRY(take_u32(c, &kv->type));
    if (kv->type > KVC__GGUF_F64) {
        return bad_type(c, kv->key, kv->type);
    }
    kv->n = 1;
    kv->value = c->base + c->pos;
    if (kv->type == KVC__GGUF_ARRAY) {
        KVC_TRY(take_array(c, kv));
    } else if (kv->type == KVC__GGUF_STRING) {
        KVC_TRY(take_str(c, &s));
    } else {
        KVC_TRY(take(c, value_table[kv->type].bytes, &kv->value));
    }
    kv->bytes = (size_t)(c->base + c->pos - kv->value);
    return KVC_OK;
}

static int kv_cmp(const void *a, const void *b) {
    const kvc__gguf_kv *x = a, *y = b;
    return str_cmp(x->key, y->key);
}

/* Before the allocation: the count is held against the least that so many entries take. */
static int32_t check_count(const cursor *c, uint64_t n, uint32_t least) {
    if (n > (c->size - c->pos) / least) {
        return kvc__fail(c->err, KVC_E_FORMAT,
                         "GGUF header: %" PRIu64 " %s entries do not fit the file's %zu bytes; it "
                         "is cut short or damaged, fetch it again",
                         n, c->what, c->size);
    }
    return KVC_OK;
}

static int32_t no_memory(const cursor *c, uint64_t n) {
    return kvc__fail(c->err, KVC_E_NOMEM, "no memory for a table of %" PRIu64 " GGUF %s entries", n,
                     c->what);
}

static int32_t read_kvs(cursor *c, kvc__gguf *g) {
    char text[SHOWN];
    c->what = "key";
    KVC_TRY(check_count(c, g->n_kv, KV_LEAST));
    if (g->n_kv == 0) {
        return KVC_OK;
    }
    g->kv = kvc__alloc_n(g->mem, (size_t)g->n_kv, sizeof *g->kv);
    if (!g->kv) {
        return no_memory(c, g->n_kv);
    }
    for (c->index = 0; c->index < g->n_kv; c->index++) {
        KVC_TRY(take_kv(c, &g->kv[c->index]));
    }
    qsort(g->kv, (size_t)g->n_kv, sizeof *g->kv, kv_cmp);
    for (uint64_t i = 1; i < g->n_kv; i++) {
        if (kv_cmp(&g->kv[i - 1], &g->kv[i]) == 0) {
            return kvc__fail(c->err, KVC_E_FORMAT, "GGUF key '%s' stands in the file twice",
                             kvc__str_text(g->kv[i].key, text, sizeof text));
        }
    }
    return KVC_OK;
}

/* ---------------------------------------------------------------- tensors */

/* Bytes of a tensor from its type and dims; 0 for a type that is unknown here. */
static int32_t tensor_bytes(const cursor *c, kvc__gguf_tensor *t) {
    char text[SHOWN];
    const char *type_name = "";
    uint32_t elems = 1, bytes = 0;
    bool known = kvc__type_info(t->type, &elems, &bytes, &type_name);
    kvc__str_text(t->name, text, sizeof text);
    size_t count = 1;
    bool fits = true;
    for (uint32_t i = 0; i < 4; i++) {
        if (t->dim[i] == 0) {
            return kvc__fail(c->err, KVC_E_FORMAT, "GGUF tensor '%s': dimension %" PRIu32 " is 0",
                             text, i);
        }
        fits = fits && t->dim[i] <= INT64_MAX && kvc__mul_size(count, (size_t)t->dim[i], &count);
    }
    if (known && t->dim[0] % elems != 0) {
        return kvc__fail(c->err, KVC_E_FORMAT,
                         "GGUF tensor '%s': a row of %" PRIu64 " elements is not a multiple of "
                         "%" PRIu32 ", the block of %s",
                         text, t->dim[0], elems, type_name);
    }
    fits = fits && kvc__mul_size(count / elems, bytes, &t->bytes);
    if (!fits) {
        return kvc__fail(c->err, KVC_E_FORMAT,
                         "GGUF tensor '%s': its size, the product of its dimensions, overflows",
                         text);
    }
    return KVC_OK;
}

static int32_t take_tensor(cursor *c, kvc__gguf_tensor *t) {
    char text[SHOWN];
    KVC_TRY(take_name(c, TENSOR_NAME_MAX, &t->name));
    KVC_TRY(take_u32(c, &t->n_dims));
    if (t->n_dims < 1 || t->n_dims > 4) {
        return kvc__fail(c->err, KVC_E_FORMAT,
                         "GGUF tensor '%s': %" PRIu32 " dimensions, 1 to 4 are allowed",
                         kvc__str_text(t->name, text, sizeof text), t->n_dims);
    }
    for (uint32_t i = 0; i < 4; i++) {
        t->dim[i] = 1;
        if (i < t->n_dims) {
            KVC_TRY(take_u64(c, &t->dim[i]));
        }
    }
    KVC_TRY(take_u32(c, &t->type));
    KVC_TRY(take_u64(c, &t->offset));
    return tensor_bytes(c, t);
}

/* Once the data section's place is known. */
static int32_t place_tensor(const cursor *c, const kvc__gguf *g, uint32_t align,
                            kvc__gguf_tensor *t) {
    char text[SHOWN];
    size_t room = g->size - g->data_offset;
    if (t->offset % align != 0) {
        return kvc__fail(c->err, KVC_E_FORMAT,
                         "GGUF tensor '%s': offset %" PRIu64 " is not a multiple of the file's "
                         "alignment %" PRIu32,
                         kvc__str_text(t->name, text, sizeof text), t->offset, align);
    }
    if (t->offset > room || t->bytes > room - (size_t)t->offset) {
        return kvc__fail(c->err, KVC_E_FORMAT,
                         "GGUF tensor '%s': %zu bytes at offset %" PRIu64 " of the data do not lie "
                         "within its %zu; the file is cut short or damaged, fetch it again",
                         kvc__str_text(t->name, text, sizeof text), t->bytes, t->offset, room);
    }
    t->data = t->bytes ? g->base + g->data_offset + (size_t)t->offset : NULL;
    return KVC_OK;
}

static int tensor_cmp(const void *a, const void *b) {
    const kvc__gguf_tensor *x = a, *y = b;
    return str_cmp(x->name, y->name);
}

/* Where the data begins: the header's end, padded. A file without tensors may end at once. */
static int32_t find_data(const cursor *c, kvc__gguf *g, uint32_t align) {
    size_t pad = (align - c->pos % align) % align;
    g->header_bytes = c->pos;
    if (pad > c->size - c->pos) {
        if (g->n_tensor) {
            return cut_short(c, pad);
        }
        pad = c->size - c->pos;
    }
    g->data_offset = c->pos + pad;
    return KVC_OK;
}

static int32_t read_alignment(const cursor *c, const kvc__gguf *g, uint32_t *out) {
    const kvc__gguf_kv *kv = kvc__gguf_find(g, ALIGN_KEY);
    *out = 32;
    if (!kv) {
        return KVC_OK;
    }
    uint64_t v = kv->type == KVC__GGUF_U32 ? load_le(kv->value, 4) : 0;
    if (v == 0 || v > ALIGN_MAX || (v & (v - 1)) != 0) {
        return kvc__fail(c->err, KVC_E_FORMAT,
                         "GGUF key '" ALIGN_KEY "' must be a u32, a power of two up to %u",
                         ALIGN_MAX);
    }
    *out = (uint32_t)v;
    return KVC_OK;
}

static int32_t read_tensors(cursor *c, kvc__gguf *g, uint32_t align) {
    char text[SHOWN];
    c->what = "tensor";
    KVC_TRY(check_count(c, g->n_tensor, TENSOR_LEAST));
    if (g->n_tensor) {
        g->tensor = kvc__alloc_n(g->mem, (size_t)g->n_tensor, sizeof *g->tensor);
        if (!g->tensor) {
            return no_memory(c, g->n_tensor);
        }
    }
    for (c->index = 0; c->index < g->n_tensor; c->index++) {
        KVC_TRY(take_tensor(c, &g->tensor[c->index]));
    }
    KVC_TRY(find_data(c, g, align));
    for (uint64_t i = 0; i < g->n_tensor; i++) {
        KVC_TRY(place_tensor(c, g, align, &g->tensor[i]));
    }
    if (g->n_tensor) {
        qsort(g->tensor, (size_t)g->n_tensor, sizeof *g->tensor, tensor_cmp);
    }
    for (uint64_t i = 1; i < g->n_tensor; i++) {
        if (tensor_cmp(&g->tensor[i - 1], &g->tensor[i]) == 0) {
            return kvc__fail(c->err, KVC_E_FORMAT, "GGUF tensor '%s' stands in the file twice",
                             kvc__str_text(g->tensor[i].name, text, sizeof text));
        }
    }
    return KVC_OK;
}

/* ---------------------------------------------------------------- open and close */

static int32_t read_header(cursor *c, kvc__gguf *g) {
    const uint8_t *magic = NULL;
    c->what = "header";
    KVC_TRY(take(c, 4, &magic));
    if (memcmp(magic, "GGUF", 4) != 0) {
        return kvc__fail(c->err, KVC_E_FORMAT,
                         "not a GGUF file: it begins with %02x %02x %02x %02x, not \"GGUF\"",
                         magic[0], magic[1], magic[2], magic[3]);
    }
    KVC_TRY(take_u32(c, &g->version));
    if (g->version != 0 && (g->version & 0xffff) == 0) {
        return kvc__fail(c->err, KVC_E_UNSUPPORTED,
                         "GGUF file in big-endian byte order; convert it to little-endian");
    }
    if (g->version != 2 && g->version != 3) {
        return kvc__fail(c->err, KVC_E_UNSUPPORTED,
                         "GGUF version %" PRIu32 "; versions 2 and 3 are supported, convert the "
                         "file",
                         g->version);
    }
    KVC_TRY(take_u64(c, &g->n_tensor));
    return take_u64(c, &g->n_kv);
}

int32_t kvc__gguf_open(kvc__mem *mem, const void *base, size_t size, kvc__gguf *out,
                       kvc__err *err) {
    int32_t rc = KVC_OK;
    uint32_t align;
    kvc__gguf g = {.mem = mem, .base = base, .size = size};
    cursor c = {.base = base, .size = size, .err = err};
    memset(out, 0, sizeof *out);
    KVC_CHECK(read_header(&c, &g));
    KVC_CHECK(read_kvs(&c, &g));
    KVC_CHECK(read_alignment(&c, &g, &align));
    KVC_CHECK(read_tensors(&c, &g, align));
    *out = g;
out:
    if (rc < 0) {
        kvc__gguf_close(&g);
    }
    return rc;
}

void kvc__gguf_close(kvc__gguf *g) {
    if (g->mem) {
        kvc__free(g->mem, g->kv, (size_t)g->n_kv * sizeof *g->kv);
        kvc__free(g->mem, g->tensor, (size_t)g->n_tensor * sizeof *g->tensor);
    }
    memset(g, 0, sizeof *g);
}

/* ---------------------------------------------------------------- look-up */

const kvc__gguf_kv *kvc__gguf_find(const kvc__gguf *g, const char *key) {
    kvc__gguf_kv want = {.key = {key, strlen(key)}};
    return g->kv ? bsearch(&want, g->kv, (size_t)g->n_kv, sizeof want, kv_cmp) : NULL;
}

const kvc__gguf_tensor *kvc__gguf_tensor_find(const kvc__gguf *g, const char *name) {
    kvc__gguf_tensor want = {.name = {name, strlen(name)}};
    return g->tensor ? bsearch(&want, g->tensor, (size_t)g->n_tensor, sizeof want, tensor_cmp)
                     : NULL;
}

static int32_t missing(kvc__err *err, const char *key) {
    return kvc__fail(err, KVC_E_FORMAT, "GGUF key '%s' is missing; it is required", key);
}

static int32_t wrong_type(kvc__err *err, const kvc__gguf_kv *kv, const char *key,
                          const char *want) {
    return kvc__fail(err, KVC_E_FORMAT, "GGUF key '%s' is of type %s; %s is expected", key,
                     value_table[kv->type].name, want);
}

int32_t kvc__gguf_u32(const kvc__gguf *g, const char *key, bool has_def, uint32_t def, uint32_t min,
                      uint32_t max, uint32_t *out, kvc__err *err) {
    const kvc__gguf_kv *kv = kvc__gguf_find(g, key);
    if (!kv) {
        *out = def;
        return has_def ? KVC_OK : missing(err, key);
    }
    uint32_t bytes = value_table[kv->type].bytes;
    if (is_signed(kv->type) && load_signed(kv->value, bytes) < 0) {
        return kvc__fail(err, KVC_E_FORMAT,
                         "GGUF key '%s' is %" PRId64 "; %" PRIu32 " to %" PRIu32 " is allowed", key,
                         load_signed(kv->value, bytes), min, max);
    }
    if (!is_signed(kv->type) && !is_unsigned(kv->type)) {
        return wrong_type(err, kv, key, "an integer");
    }
    uint64_t v = load_le(kv->value, bytes);
    if (v < min || v > max) {
        return kvc__fail(err, KVC_E_FORMAT,
                         "GGUF key '%s' is %" PRIu64 "; %" PRIu32 " to %" PRIu32 " is allowed", key,
                         v, min, max);
    }
    *out = (uint32_t)v;
    return KVC_OK;
}

int32_t kvc__gguf_f32(const kvc__gguf *g, const char *key, bool has_def, float def, float *out,
                      kvc__err *err) {
    const kvc__gguf_kv *kv = kvc__gguf_find(g, key);
    if (!kv) {
        *out = def;
        return has_def ? KVC_OK : missing(err, key);
    }
    if (kv->type != KVC__GGUF_F32 && kv->type != KVC__GGUF_F64) {
        return wrong_type(err, kv, key, "a float");
    }
    double v = kvc__gguf_elem(kv, 0);
    if (!(fabs(v) <= FLT_MAX)) {
        return kvc__fail(err, KVC_E_FORMAT, "GGUF key '%s' is not a finite float", key);
    }
    *out = (float)v;
    return KVC_OK;
}

int32_t kvc__gguf_bool(const kvc__gguf *g, const char *key, bool def, bool *out, kvc__err *err) {
    const kvc__gguf_kv *kv = kvc__gguf_find(g, key);
    if (!kv) {
        *out = def;
        return KVC_OK;
    }
    if (kv->type != KVC__GGUF_BOOL) {
        return wrong_type(err, kv, key, "a bool");
    }
    if (kv->value[0] > 1) {
        return kvc__fail(err, KVC_E_FORMAT, "GGUF key '%s' is %u; a bool is 0 or 1", key,
                         (unsigned)kv->value[0]);
    }
    *out = kv->value[0] == 1;
    return KVC_OK;
}

int32_t kvc__gguf_str(const kvc__gguf *g, const char *key, const char *def, kvc__str *out,
                      kvc__err *err) {
    const kvc__gguf_kv *kv = kvc__gguf_find(g, key);
    if (!kv) {
        *out = (kvc__str){def, def ? strlen(def) : 0};
        return def ? KVC_OK : missing(err, key);
    }
    if (kv->type != KVC__GGUF_STRING) {
        return wrong_type(err, kv, key, "a string");
    }
    *out = (kvc__str){(const char *)kv->value + 8, kv->bytes - 8};
    return KVC_OK;
}

bool kvc__gguf_next_str(const kvc__gguf_kv *kv, const uint8_t **at, kvc__str *out) {
    size_t left = kv->bytes - (size_t)(*at - kv->value);
    if (kv->type != KVC__GGUF_ARRAY || kv->elem_type != KVC__GGUF_STRING || left < 8) {
        return false;
    }
    size_t n = (size_t)load_le(*at, 8); /* held against the file by take_array() */
    *out = (kvc__str){(const char *)*at + 8, n};
    *at += 8 + n;
    return true;
}

double kvc__gguf_elem(const kvc__gguf_kv *kv, uint64_t i) {
    uint32_t type = kv->type == KVC__GGUF_ARRAY ? kv->elem_type : kv->type;
    uint32_t bytes = value_table[type].bytes;
    if (bytes == 0 || i >= kv->n) {
        return 0.0;
    }
    const uint8_t *p = kv->value + (size_t)i * bytes;
    if (type == KVC__GGUF_F32) {
        return load_f32(p);
    }
    if (type == KVC__GGUF_F64) {
        return load_f64(p);
    }
    return is_signed(type) ? (double)load_signed(p, bytes) : (double)load_le(p, bytes);
}
