/* SPDX-License-Identifier: MIT
 * check_page.h: the codec of the policy under test, called directly: pages of known rows, each call
 * with memory around what it may touch that must stay as it is. It says what a call does wrong;
 * what the numbers should be is the tests' matter (check_codec.c). */
#ifndef KVC_CHECK_PAGE_H
#define KVC_CHECK_PAGE_H

#include "check_kit.h"

#define CHK_MAX_ROW 96u /* query rows of a call: what every codec is promised */

/** Memory that is lent to a call: `size` bytes, aligned to 64, with a zone on either side. */
typedef struct chk_room {
    unsigned char *whole, fill;
    size_t size, cap;
} chk_room;

/** A session whose codec is called, between the session's own calls. */
typedef struct chk_rig {
    chk *c;
    chk_shape shape;
    const char *compute;
    char where[128]; /* what is being tested, for sentences */
    bool quiet;      /* what fails isn't said: it is another test's matter */
    kvc_model *model;
    kvc_session *session;
    kvc_codec api;
    void *self;
    size_t bytes[8]; /* of a page of each layer */
    chk_room page, other, out, more;
} chk_rig;

/** Says a failure, unless the rig is quiet. */
#define chk_rig_fail(r, ...) ((r)->quiet ? (void)0 : chk_fail((r)->c, __VA_ARGS__))

/** A sealed page and what it decodes to. */
typedef struct chk_sealed {
    uint32_t layer, n; /* n: entries */
    unsigned char *bytes;
    float *k, *v; /* [KVC_PAGE, dim] */
} chk_sealed;

/** Rows that pages are made of. All numbers are exact in each type of open pages. */
enum { CHK_PLAIN, CHK_ZEROS, CHK_EQUAL, CHK_SINGLE, CHK_LARGE, CHK_TINY, CHK_N_PATTERN };

/** Opens a session of that shape and computes some pages with it. False: the policy refuses the
 * shape, or what it does wrong is said. chk_rig_close() either way. */
bool chk_rig_open(chk_rig *r, chk *c, const chk_shape *shape, const char *compute);
/** Closes it. */
void chk_rig_close(chk_rig *r);

/* These are false when something was said. */

/** Whether pages have the size that they had when the session was opened. */
bool chk_rig_size(chk_rig *r);
/** Encodes new random rows of a pattern, n entries, and decodes the page. *error, if not NULL: how
 * far the entries are from what was encoded, against their length, on average: keys, then values.
 * The page is the caller's, also after a failure: chk_sealed_free(). */
bool chk_rig_encode(chk_rig *r, uint32_t pattern, uint32_t layer, uint32_t n, chk_sealed *out,
                    double error[2]);
/** Decodes a page's bytes, all rows finite. */
bool chk_rig_decode(chk_rig *r, chk_sealed *page);
/** s[n_q, KVC_PAGE] of q[n_q, dim_k]. */
bool chk_rig_score(chk_rig *r, const chk_sealed *page, const float *q, uint32_t n_q, float *s);
/** acc[n_q, dim_v] += p[n_q, KVC_PAGE] · values. */
bool chk_rig_mix(chk_rig *r, const chk_sealed *page, const float *p, uint32_t n_q, float *acc);
/** Moves entry `from` of src to entry `to` of dst; src may be dst. */
bool chk_rig_move(chk_rig *r, chk_sealed *dst, uint32_t to, const chk_sealed *src, uint32_t from);

/** A page of that layer whose bytes are zero, not decoded. */
void chk_sealed_make(const chk_rig *r, uint32_t layer, chk_sealed *out);
/** Makes to, of the same layer, a copy of from. */
void chk_sealed_copy(const chk_rig *r, chk_sealed *to, const chk_sealed *from);
/** Frees its memory. */
void chk_sealed_free(chk_sealed *p);

/** A number in [-1, 1). */
float chk_uniform(chk *c);

#endif
