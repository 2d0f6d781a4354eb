/* SPDX-License-Identifier: MIT
 * gguf.h: a reader of GGUF v2 and v3 files over bytes in memory. The file is untrusted: every
 * count, offset and size is checked before use, and what is returned points into the bytes with
 * lengths that were checked. It knows the container, not what a model means by a key.
 *
 * The format (little endian):
 *   "GGUF" u32 version, i64 n_tensors, i64 n_kv,
 *   n_kv × { string key, u32 type, value }                string: u64 length, bytes
 *   n_tensors × { string name, u32 n_dims (1..4), i64 dim[n_dims], u32 type, u64 offset }
 *   padding to general.alignment (u32, a power of two, 32 by default), then tensor data; offsets
 * are relative to it. */
#ifndef KVC_GGUF_H
#define KVC_GGUF_H

#include "err.h"
#include "mem.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** Value types of the file. */
enum {
    KVC__GGUF_U8 = 0,
    KVC__GGUF_I8,
    KVC__GGUF_U16,
    KVC__GGUF_I16,
    KVC__GGUF_U32,
    KVC__GGUF_I32,
    KVC__GGUF_F32,
    KVC__GGUF_BOOL,
    KVC__GGUF_STRING,
    KVC__GGUF_ARRAY,
    KVC__GGUF_U64,
    KVC__GGUF_I64,
    KVC__GGUF_F64
};

/** Tensor types that have a name here; others are known by number only. */
enum {
    KVC__T_F32 = 0,
    KVC__T_F16 = 1,
    KVC__T_Q4_0 = 2,
    KVC__T_Q4_1 = 3,
    KVC__T_Q5_0 = 6,
    KVC__T_Q5_1 = 7,
    KVC__T_Q8_0 = 8,
    KVC__T_Q2_K = 10,
    KVC__T_Q3_K = 11,
    KVC__T_Q4_K = 12,
    KVC__T_Q5_K = 13,
    KVC__T_Q6_K = 14,
    KVC__T_IQ4_NL = 20,
    KVC__T_BF16 = 30
};

/** A string inside the file; not terminated. */
typedef struct kvc__str {
    const char *p;
    size_t n;
} kvc__str;

/** Copies s to out (cap bytes, at least 1) as text that can be shown: cut at a character, control
 * characters and malformed UTF-8 as '?', terminated. Returns out. */
char *kvc__str_text(kvc__str s, char *out, size_t cap);

/** One key with its value. */
typedef struct kvc__gguf_kv {
    kvc__str key;
    uint32_t type;        /* KVC__GGUF_… */
    uint32_t elem_type;   /* of an array, else 0 */
    uint64_t n;           /* elements of an array, else 1 */
    const uint8_t *value; /* first byte of the value or of the array's first element */
    size_t bytes;         /* from value to the value's end */
} kvc__gguf_kv;

/** One tensor. */
typedef struct kvc__gguf_tensor {
    kvc__str name;
    uint32_t type; /* KVC__T_… or another number */
    uint32_t n_dims;
    uint64_t dim[4];     /* dim[0] is a row's elements; missing ones are 1 */
    uint64_t offset;     /* of its data in the data section */
    const uint8_t *data; /* NULL when the type is unknown here */
    size_t bytes;        /* 0 when the type is unknown here */
} kvc__gguf_tensor;

/** A parsed file. Pointers lead into the bytes given to kvc__gguf_open(). */
typedef struct kvc__gguf {
    kvc__mem *mem;
    const uint8_t *base;
    size_t size;
    uint32_t version;
    uint64_t n_kv, n_tensor;
    kvc__gguf_kv *kv;         /* [n_kv], sorted by key */
    kvc__gguf_tensor *tensor; /* [n_tensor], sorted by name */
    size_t header_bytes;      /* bytes before the tensor data */
    size_t data_offset;
} kvc__gguf;

/** Parses size bytes at base. KVC_E_FORMAT with the place and the reason, KVC_E_UNSUPPORTED
 * (version, byte order, arrays of arrays), KVC_E_NOMEM. On failure out is zeroed and owns nothing.
 */
int32_t kvc__gguf_open(kvc__mem *mem, const void *base, size_t size, kvc__gguf *out, kvc__err *err);
/** Frees the tables; a zeroed reader is legal. */
void kvc__gguf_close(kvc__gguf *g);

/** The entry of that key, or NULL. */
const kvc__gguf_kv *kvc__gguf_find(const kvc__gguf *g, const char *key);
/** The tensor of that name, or NULL. */
const kvc__gguf_tensor *kvc__gguf_tensor_find(const kvc__gguf *g, const char *name);

/** A number of any integer type, in [min, max]. A missing key gives def (if has_def) or
 * KVC_E_FORMAT naming it. */
int32_t kvc__gguf_u32(const kvc__gguf *g, const char *key, bool has_def, uint32_t def, uint32_t min,
                      uint32_t max, uint32_t *out, kvc__err *err);
/** A float (F32, F64), finite. */
int32_t kvc__gguf_f32(const kvc__gguf *g, const char *key, bool has_def, float def, float *out,
                      kvc__err *err);
/** A bool. */
int32_t kvc__gguf_bool(const kvc__gguf *g, const char *key, bool def, bool *out, kvc__err *err);
/** A string; a missing key gives { def, strlen(def) } or, when def is NULL, KVC_E_FORMAT. */
int32_t kvc__gguf_str(const kvc__gguf *g, const char *key, const char *def, kvc__str *out,
                      kvc__err *err);

/** Walks an array of strings: *at begins at kv->value; each call returns the next string. false at
 * the end. */
bool kvc__gguf_next_str(const kvc__gguf_kv *kv, const uint8_t **at, kvc__str *out);
/** Element i of an array of integers or floats of any width, as a double (integers up to 2^53
 * exact). i < n. */
double kvc__gguf_elem(const kvc__gguf_kv *kv, uint64_t i);

/** A type's block: elements, bytes, name ("Q4_1"). false when unknown. */
bool kvc__type_info(uint32_t type, uint32_t *elems, uint32_t *bytes, const char **name);

#endif
