/* SPDX-License-Identifier: MIT
 * text.h: the text that kvcompare uses when none is given. */
#ifndef KVC_TEXT_H
#define KVC_TEXT_H

/** English prose in paragraphs, NULL behind the last. Written for this purpose. */
extern const char *const cmp_text[];

#endif
