/* SPDX-License-Identifier: MIT
 * offload_page.h: pages to records and back: what offload.c stores. It knows bytes and layouts, no
 * files, keys or hosts. */
#ifndef KVC_OFFLOAD_PAGE_H
#define KVC_OFFLOAD_PAGE_H

#include <kvc/policy.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <zstd.h>

enum {
    OFFLOAD_MAX_GAPS = 8, /* stretches outside the fields; a page with more is taken as it is */
    OFFLOAD_MAX_PIECES = KVC_MAX_FIELDS + OFFLOAD_MAX_GAPS,
    OFFLOAD_MAX_STREAMS = KVC_MAX_FIELDS + 1 + 2 + 4 + 8 + 1, /* integers, planes of floats, gaps */
    OFFLOAD_MAX_BYTES = 1 << 29,                              /* pages are smaller */
    OFFLOAD_SLACK = 4 * OFFLOAD_MAX_STREAMS /* bytes that a record may have more than its page */
};

/** A field, or a stretch of bytes that is in none: `run` elements side by side, n_inner times
 * inner_stride bytes apart, n_outer times outer_stride bytes apart. Its plane b goes to byte `at`
 * of stream `stream + b`. */
typedef struct offload_piece {
    uint32_t offset, elem, run;
    uint32_t n_inner, inner_stride, n_outer, outer_stride;
    uint32_t n;     /* elements */
    uint32_t dense; /* 1: they follow each other without a gap */
    uint32_t stream, at;
    uint32_t lag; /* of integers: bytes back to the entry before; else 0 */
} offload_piece;

/** What is compressed together. */
typedef struct offload_stream {
    uint32_t bytes;
    uint32_t at;         /* where it lies among the streams of a page */
    uint32_t direct;     /* where it lies in the page, when it is there as it is; else UINT32_MAX */
    uint32_t lag;        /* of integers, as of the piece */
    uint32_t structured; /* 1: its bytes are numbers, which an estimate can judge */
} offload_stream;

/** How the pages of a layer are taken apart. */
typedef struct offload_shape {
    uint32_t page_bytes, n_piece, n_stream;
    offload_stream stream[OFFLOAD_MAX_STREAMS];
    offload_piece piece[OFFLOAD_MAX_PIECES];
} offload_shape;

/** What one call works with; page_bytes: the most of a layer's. */
typedef struct offload_coder {
    ZSTD_CCtx *cctx;  /* to pack, or NULL */
    ZSTD_DCtx *dctx;  /* to unpack, or NULL */
    uint8_t *planes;  /* [page_bytes]: the streams of a page */
    uint8_t *staging; /* [page_bytes]: a piece without its gaps, or differences */
} offload_coder;

/** Says how pages of that layout (fewer than OFFLOAD_MAX_BYTES) are taken apart. sort false: not at
 * all. map: [page_bytes], zero. */
void offload_shape_make(offload_shape *s, const kvc_page_layout *layout, bool sort, uint8_t *map);

/** Opens c's compressor, with all the memory that it will need for pages of page_bytes; planes is
 * set. KVC_E_NOMEM, KVC_E_UNSUPPORTED (zstd refuses a setting). */
int32_t offload_coder_pack(offload_coder *c, int level, size_t page_bytes);
/** Opens its decompressor. KVC_E_NOMEM. */
int32_t offload_coder_unpack(offload_coder *c);
/** Closes them; a zeroed coder is legal. */
void offload_coder_close(offload_coder *c);
/** Bytes that they take. */
size_t offload_coder_bytes(const offload_coder *c);

/** Packs a page into record[page_bytes + OFFLOAD_SLACK]; returns the record's bytes, 0 when it
 * isn't smaller than the page. */
uint32_t offload_pack(offload_coder *c, const offload_shape *s, const uint8_t *page,
                      uint8_t *record);
/** Unpacks a record of n bytes; false when it isn't one of such a page, whose bytes are then of no
 * meaning. The record may be anything. */
bool offload_unpack(offload_coder *c, const offload_shape *s, const uint8_t *record, uint32_t n,
                    uint8_t *page);

#endif
