/* SPDX-License-Identifier: MIT */
/**
 * @file version.h
 * Version of the library. The ABI that policies are built against is versioned apart, in policy.h.
 */
#ifndef KVC_VERSION_H
#define KVC_VERSION_H

#define KVC_VERSION_MAJOR 0 /**< raised by a breaking change once it is above 0 */
#define KVC_VERSION_MINOR                                                                          \
    1 /**< raised by a breaking change while major is 0, else by an addition */
#define KVC_VERSION_PATCH  0       /**< raised by a fix */
#define KVC_VERSION_STRING "0.1.0" /**< the three above as text */

#endif
