/* SPDX-License-Identifier: MIT
 * offload_page.c: pages to records and back. The bytes of a page are sorted by what they are: the
 * first bytes of floats, which hold sign and exponent, come to lie together, the second ones, and
 * so on; integers whose scale is per entry become differences from entry to entry where that pays.
 * Each of these streams is compressed alone by zstd, or stored as it is. Streams keep the order of
 * the page: zstd gains by the bytes' frequencies here, hardly by repeats, and a transposition costs
 * time.
 *
 * That exponents of a model's numbers compress and mantissas don't is the observation of
 * Hershcovich et al., "ZipNN", arXiv:2411.05239. */
#include "offload_page.h"

#include <string.h>

#include <zstd_errors.h>

#define NONE UINT32_MAX

enum {
    HEAD = 4,        /* bytes of a stream's word in front of a record */
    SMALL = 256,     /* streams of fewer bytes aren't compressed */
    WINDOW_LOG = 13, /* zstd takes the memory for 8 KiB, however long a stream is */
    TABLE_LOG = 12   /* of its match finder */
};

/* ---------------------------------------------------------------- how a page is taken apart */

/* Whether the field lies in the page and shares no byte with those before it; marks its bytes. */
static bool mark_field(const kvc_field *f, uint8_t *map, size_t page_bytes) {
    if (f->n == 0 || f->run == 0 || f->n % f->run != 0 || f->elem == 0 || f->elem > 8 ||
        (f->elem & (f->elem - 1)) != 0) {
        return false;
    }
    const uint64_t bytes = (uint64_t)f->run * f->elem;
    for (uint64_t r = 0; r < f->n / f->run; r++) {
        for (uint64_t e = 0; e < KVC_PAGE; e++) {
            const uint64_t at = f->offset + r * f->run_stride + e * f->entry_stride;
            if (at > page_bytes || bytes > page_bytes - at) {
                return false;
            }
            for (uint64_t i = at; i < at + bytes; i++) {
                if (map[i]++ != 0) {
                    return false;
                }
            }
        }
    }
    return true;
}

/* The loops over a field's elements that walk the page forward. */
static offload_piece piece_of(const kvc_field *f) {
    const uint32_t n_run = f->n / f->run;
    offload_piece p = {.offset = f->offset, .elem = f->elem, .run = f->run, .n = f->n * KVC_PAGE};
    if (n_run > 1 && f->run_stride > f->entry_stride) {
        p.n_outer = n_run, p.outer_stride = f->run_stride;
        p.n_inner = KVC_PAGE, p.inner_stride = f->entry_stride;
        p.lag = f->run;
    } else {
        p.n_outer = KVC_PAGE, p.outer_stride = f->entry_stride;
        p.n_inner = n_run, p.inner_stride = n_run > 1 ? f->run_stride : f->run * f->elem;
        p.lag = f->n;
    }
    p.dense = p.inner_stride == p.run * p.elem && p.outer_stride == p.n_inner * p.inner_stride;
    if (f->kind != KVC_FIELD_INT || f->elem != 1) {
        p.lag = 0;
    }
    return p;
}

static offload_piece stretch(uint32_t from, uint32_t bytes) {
    return (offload_piece){.offset = from,
                           .elem = 1,
                           .run = bytes,
                           .n_inner = 1,
                           .inner_stride = bytes,
                           .n_outer = 1,
                           .outer_stride = bytes,
                           .n = bytes,
                           .dense = 1};
}

/* Finds the stretches of [0, page_bytes) that map leaves out and adds them as pieces; false when
 * there are too many. */
static bool add_gaps(offload_shape *s, const uint8_t *map) {
    for (uint32_t i = 0; i < s->page_bytes;) {
        uint32_t end = i;
        while (end < s->page_bytes && map[end] == 0) {
            end++;
        }
        if (end > i) {
            if (s->n_piece == OFFLOAD_MAX_PIECES) {
                return false;
            }
            s->piece[s->n_piece++] = stretch(i, end - i);
        }
        for (i = end; i < s->page_bytes && map[i] != 0; i++) {
        }
    }
    return true;
}

/* Splits a page into pieces, fields first; false when it can't be sorted. */
static bool find_pieces(offload_shape *s, const kvc_page_layout *l, uint8_t *map) {
    if (l->n_field > KVC_MAX_FIELDS) {
        return false;
    }
    for (uint32_t i = 0; i < l->n_field; i++) {
        const kvc_field *f = kvc_layout_field(l, i);
        if (!mark_field(f, map, s->page_bytes)) {
            return false;
        }
        s->piece[s->n_piece++] = piece_of(f);
    }
    return add_gaps(s, map);
}

/* Puts the planes of pieces [from, end) whose elements have that size, and which hold integers or
 * not, into streams: those of one piece alone, or of all together. */
static void add_streams(offload_shape *s, uint32_t from, uint32_t end, uint32_t elem, bool integers,
                        bool together) {
    uint32_t first = NONE;
    for (uint32_t i = from; i < end; i++) {
        offload_piece *p = &s->piece[i];
        if (p->elem != elem || (p->lag != 0) != integers) {
            continue;
        }
        if (first == NONE || !together) {
            first = s->n_stream;
            for (uint32_t b = 0; b < elem; b++) {
                s->stream[s->n_stream++] = (offload_stream){.direct = NONE};
            }
        }
        p->stream = first;
        p->at = s->stream[first].bytes;
        for (uint32_t b = 0; b < elem; b++) {
            offload_stream *t = &s->stream[first + b];
            t->direct = t->bytes == 0 && p->dense && elem == 1 ? p->offset : NONE;
            t->bytes += p->n;
            t->lag = p->lag;
        }
    }
}

void offload_shape_make(offload_shape *s, const kvc_page_layout *layout, bool sort, uint8_t *map) {
    memset(s, 0, sizeof *s);
    s->page_bytes = (uint32_t)layout->page_bytes;
    uint32_t n_field = layout->n_field;
    if (!sort || !find_pieces(s, layout, map)) {
        s->piece[0] = stretch(0, s->page_bytes);
        s->n_piece = 1;
        n_field = 0;
    }
    /* Floats of one size share their streams, as each has its price; integers differ too much. */
    add_streams(s, 0, n_field, 1, true, false);
    for (uint32_t elem = 1; elem <= 8; elem *= 2) {
        add_streams(s, 0, n_field, elem, false, true);
    }
    for (uint32_t i = 0; i < s->n_stream; i++) {
        s->stream[i].structured = 1;
    }
    add_streams(s, n_field, s->n_piece, 1, false, true);
    for (uint32_t i = 1; i < s->n_stream; i++) {
        s->stream[i].at = s->stream[i - 1].at + s->stream[i - 1].bytes;
    }
}

/* ---------------------------------------------------------------- bytes of elements */

/* Copies a piece's elements, side by side, to out. */
static void gather(const offload_piece *p, const uint8_t *page, uint8_t *out) {
    const size_t bytes = (size_t)p->run * p->elem;
    for (size_t i = 0; i < p->n_outer; i++) {
        for (size_t j = 0; j < p->n_inner; j++, out += bytes) {
            memcpy(out, page + p->offset + i * p->outer_stride + j * p->inner_stride, bytes);
        }
    }
}

/* And back. */
static void scatter(const offload_piece *p, const uint8_t *in, uint8_t *page) {
    const size_t bytes = (size_t)p->run * p->elem;
    for (size_t i = 0; i < p->n_outer; i++) {
        for (size_t j = 0; j < p->n_inner; j++, in += bytes) {
            memcpy(page + p->offset + i * p->outer_stride + j * p->inner_stride, in, bytes);
        }
    }
}

static void split2(const uint8_t *restrict in, size_t n, uint8_t *restrict a, uint8_t *restrict b) {
    for (size_t i = 0; i < n; i++) {
        a[i] = in[2 * i];
        b[i] = in[2 * i + 1];
    }
}

static void merge2(const uint8_t *restrict a, const uint8_t *restrict b, size_t n,
                   uint8_t *restrict out) {
    for (size_t i = 0; i < n; i++) {
        out[2 * i] = a[i];
        out[2 * i + 1] = b[i];
    }
}

static void split4(const uint8_t *restrict in, size_t n, uint8_t *restrict a, uint8_t *restrict b,
                   uint8_t *restrict c, uint8_t *restrict d) {
    for (size_t i = 0; i < n; i++) {
        a[i] = in[4 * i];
        b[i] = in[4 * i + 1];
        c[i] = in[4 * i + 2];
        d[i] = in[4 * i + 3];
    }
}

static void merge4(const uint8_t *restrict a, const uint8_t *restrict b, const uint8_t *restrict c,
                   const uint8_t *restrict d, size_t n, uint8_t *restrict out) {
    for (size_t i = 0; i < n; i++) {
        out[4 * i] = a[i];
        out[4 * i + 1] = b[i];
        out[4 * i + 2] = c[i];
        out[4 * i + 3] = d[i];
    }
}

/* Takes n elements apart into planes that lie in streams. */
static void split(const uint8_t *in, const offload_piece *p, const offload_shape *s,
                  uint8_t *planes) {
    uint8_t *to[8];
    for (uint32_t b = 0; b < p->elem; b++) {
        to[b] = planes + s->stream[p->stream + b].at + p->at;
    }
    if (p->elem == 1) {
        memcpy(to[0], in, p->n);
    } else if (p->elem == 2) {
        split2(in, p->n, to[0], to[1]);
    } else if (p->elem == 4) {
        split4(in, p->n, to[0], to[1], to[2], to[3]);
    } else {
        for (size_t i = 0; i < (size_t)p->n * 8; i++) {
            to[i % 8][i / 8] = in[i];
        }
    }
}

/* Puts n elements together from planes; from: [n_stream]. */
static void merge(const uint8_t *const *from, const offload_piece *p, uint8_t *out) {
    const uint8_t *a[8];
    for (uint32_t b = 0; b < p->elem; b++) {
        a[b] = from[p->stream + b] + p->at;
    }
    if (p->elem == 1) {
        memcpy(out, a[0], p->n);
    } else if (p->elem == 2) {
        merge2(a[0], a[1], p->n, out);
    } else if (p->elem == 4) {
        merge4(a[0], a[1], a[2], a[3], p->n, out);
    } else {
        for (size_t i = 0; i < (size_t)p->n * 8; i++) {
            out[i] = a[i % 8][i / 8];
        }
    }
}

/* Differences from entry to entry. */
static void delta(const offload_stream *t, const uint8_t *restrict in, uint8_t *restrict out) {
    const size_t chain = (size_t)t->lag * KVC_PAGE;
    for (size_t c = 0; c < t->bytes; c += chain) {
        memcpy(out + c, in + c, t->lag);
        for (size_t i = c + t->lag; i < c + chain; i++) {
            out[i] = (uint8_t)(in[i] - in[i - t->lag]);
        }
    }
}

static void add_row(uint8_t *restrict row, const uint8_t *restrict before, size_t n) {
    for (size_t i = 0; i < n; i++) {
        row[i] = (uint8_t)(row[i] + before[i]);
    }
}

/* The four sums of bytes of two words. */
static uint32_t add_bytes(uint32_t x, uint32_t y) {
    return ((x & 0x7f7f7f7fu) + (y & 0x7f7f7f7fu)) ^ ((x ^ y) & 0x80808080u);
}

/* Sums along four chains of entries of four bytes; each waits for its own last sum alone. */
static void undo_four(uint8_t *p, size_t chain) {
    uint32_t sum[4] = {0}, x[4];
    for (size_t i = 0; i < chain; i += 4) {
        for (size_t k = 0; k < 4; k++) {
            memcpy(&x[k], p + k * chain + i, 4);
            sum[k] = add_bytes(sum[k], x[k]);
            memcpy(p + k * chain + i, &sum[k], 4);
        }
    }
}

/* Integers from their differences, in place. */
static void undo_delta(const offload_stream *t, uint8_t *p) {
    const size_t chain = (size_t)t->lag * KVC_PAGE;
    size_t c = 0;
    for (; t->lag == 4 && c + 4 * chain <= t->bytes; c += 4 * chain) {
        undo_four(p + c, chain);
    }
    for (; c < t->bytes; c += chain) {
        for (size_t i = c + t->lag; i < c + chain; i += t->lag) {
            add_row(p + i, p + i - t->lag, t->lag);
        }
    }
}

/* ---------------------------------------------------------------- records of pages */

/* A record: a word per stream, its bytes and the two bits below, then the streams. */
#define WORD_BYTES 0x3fffffffu
#define WORD_DELTA 0x40000000u
#define WORD_ZSTD  0x80000000u

/* n² times the chance that two bytes of p are equal: what entropy coding could gain. */
static uint64_t likeness(const uint8_t *p, size_t n) {
    uint32_t times[4][256] = {{0}};
    uint64_t sum = 0;
    for (size_t i = 0; i < n; i++) {
        times[i % 4][p[i]]++;
    }
    for (size_t i = 0; i < 256; i++) {
        const uint64_t t = (uint64_t)times[0][i] + times[1][i] + times[2][i] + times[3][i];
        sum += t * t;
    }
    return sum;
}

/* Writes a stream to out[bytes] and returns its word. A stream that doesn't shrink by a sixteenth
 * is stored as it is: it would cost each reader more than the disk gains. No code for bytes is
 * shorter than their collision entropy, so numbers with one above 7.3 bits (1/158) aren't even
 * tried. */
static uint32_t pack_stream(offload_coder *c, const offload_stream *t, const uint8_t *in,
                            uint8_t *out) {
    const uint64_t n2 = (uint64_t)t->bytes * t->bytes;
    const uint8_t *from = in;
    uint32_t word = WORD_ZSTD;
    bool try = t->bytes >= SMALL;
    if (try && t->structured) {
        uint64_t like = likeness(in, t->bytes);
        if (t->lag != 0) {
            delta(t, in, c->staging);
            const uint64_t other = likeness(c->staging, t->bytes);
            if (other > like) {
                like = other;
                from = c->staging;
                word |= WORD_DELTA;
            }
        }
        try = like > n2 / 158;
    }
    if (try) {
        const size_t n = ZSTD_compress2(c->cctx, out, t->bytes - t->bytes / 16, from, t->bytes);
        if (!ZSTD_isError(n)) {
            return word | (uint32_t)n;
        }
    }
    memcpy(out, in, t->bytes);
    return t->bytes;
}

uint32_t offload_pack(offload_coder *c, const offload_shape *s, const uint8_t *page,
                      uint8_t *record) {
    uint32_t at = HEAD * s->n_stream;
    for (uint32_t i = 0; i < s->n_piece; i++) {
        const offload_piece *p = &s->piece[i];
        if (s->stream[p->stream].direct == NONE) {
            if (!p->dense) {
                gather(p, page, c->staging);
            }
            split(p->dense ? page + p->offset : c->staging, p, s, c->planes);
        }
    }
    for (uint32_t i = 0; i < s->n_stream; i++) {
        const offload_stream *t = &s->stream[i];
        const uint8_t *in = t->direct != NONE ? page + t->direct : c->planes + t->at;
        const uint32_t word = pack_stream(c, t, in, record + at);
        memcpy(record + HEAD * i, &word, HEAD);
        at += word & WORD_BYTES;
    }
    return at < s->page_bytes ? at : 0;
}

/* Brings a stream of a record to `to`, or tells in *from where in the record it lies. */
static bool unpack_stream(offload_coder *c, const offload_stream *t, uint32_t word,
                          const uint8_t *in, uint8_t *to, const uint8_t **from) {
    const uint32_t n = word & WORD_BYTES;
    *from = in;
    if ((word & WORD_ZSTD) == 0) {
        if ((word & WORD_DELTA) != 0 || n != t->bytes) {
            return false;
        }
        if (t->direct != NONE) {
            memcpy(to, in, n);
        }
        return true;
    }
    if (((word & WORD_DELTA) != 0 && t->lag == 0) ||
        ZSTD_decompressDCtx(c->dctx, to, t->bytes, in, n) != t->bytes) {
        return false;
    }
    if ((word & WORD_DELTA) != 0) {
        undo_delta(t, to);
    }
    *from = to;
    return true;
}

bool offload_unpack(offload_coder *c, const offload_shape *s, const uint8_t *record, uint32_t n,
                    uint8_t *page) {
    const uint8_t *from[OFFLOAD_MAX_STREAMS];
    uint32_t at = HEAD * s->n_stream;
    if (n < at) {
        return false;
    }
    for (uint32_t i = 0; i < s->n_stream; i++) {
        const offload_stream *t = &s->stream[i];
        uint8_t *to = t->direct != NONE ? page + t->direct : c->planes + t->at;
        uint32_t word;
        memcpy(&word, record + HEAD * i, HEAD);
        if ((word & WORD_BYTES) > n - at || !unpack_stream(c, t, word, record + at, to, &from[i])) {
            return false;
        }
        at += word & WORD_BYTES;
    }
    for (uint32_t i = 0; i < s->n_piece; i++) {
        const offload_piece *p = &s->piece[i];
        if (s->stream[p->stream].direct == NONE) {
            merge(from, p, p->dense ? page + p->offset : c->staging);
            if (!p->dense) {
                scatter(p, c->staging, page);
            }
        }
    }
    return at == n;
}

/* ---------------------------------------------------------------- zstd */

int32_t offload_coder_pack(offload_coder *c, int level, size_t page_bytes) {
    const int set[][2] = {{ZSTD_c_compressionLevel, level},
                          {ZSTD_c_windowLog, WINDOW_LOG},
                          {ZSTD_c_hashLog, TABLE_LOG},
                          {ZSTD_c_chainLog, TABLE_LOG},
                          {ZSTD_c_contentSizeFlag, 0}};
    c->cctx = ZSTD_createCCtx();
    if (c->cctx == NULL) {
        return KVC_E_NOMEM;
    }
    for (size_t i = 0; i < sizeof set / sizeof *set; i++) {
        if (ZSTD_isError(ZSTD_CCtx_setParameter(c->cctx, (ZSTD_cParameter)set[i][0], set[i][1]))) {
            return KVC_E_UNSUPPORTED;
        }
    }
    /* The longest stream takes the memory that any later one needs. */
    uint8_t out[1024];
    const size_t n = ZSTD_compress2(c->cctx, out, sizeof out, c->planes, page_bytes);
    return ZSTD_getErrorCode(n) == ZSTD_error_memory_allocation ? KVC_E_NOMEM : KVC_OK;
}

int32_t offload_coder_unpack(offload_coder *c) {
    c->dctx = ZSTD_createDCtx();
    return c->dctx != NULL ? KVC_OK : KVC_E_NOMEM;
}

void offload_coder_close(offload_coder *c) {
    (void)ZSTD_freeCCtx(c->cctx);
    (void)ZSTD_freeDCtx(c->dctx);
    c->cctx = NULL;
    c->dctx = NULL;
}

size_t offload_coder_bytes(const offload_coder *c) {
    return ZSTD_sizeof_CCtx(c->cctx) + ZSTD_sizeof_DCtx(c->dctx);
}
