/* SPDX-License-Identifier: MIT */
/**
 * @file status.h
 * Status codes, shared by the library and by policies. A function that can fail returns an int32_t:
 * 0 (KVC_OK) or one of the negative codes below. Numbers are never reused.
 * This header is freestanding: it needs nothing but a C compiler.
 */
#ifndef KVC_STATUS_H
#define KVC_STATUS_H

/** Every status: X(name, number, text). The one list that codes, names and texts are made from. */
#define KVC_STATUS_LIST(X)                                                                         \
    X(OK, 0, "success")                                                                            \
    X(E_NOMEM, -1, "out of memory")                                                                \
    X(E_ARG, -2, "invalid argument")                                                               \
    X(E_RANGE, -3, "index or position out of range")                                               \
    X(E_PARAM, -4, "unknown parameter or value out of range")                                      \
    X(E_SPEC, -5, "policy specification can't be parsed")                                          \
    X(E_IO, -6, "input or output error")                                                           \
    X(E_NOT_FOUND, -7, "not found")                                                                \
    X(E_FORMAT, -8, "malformed file")                                                              \
    X(E_UNSUPPORTED, -9, "not supported")                                                          \
    X(E_FULL, -10, "context is full")                                                              \
    X(E_BUSY, -11, "session is in use by another call")                                            \
    X(E_CANCELLED, -12, "cancelled")                                                               \
    X(E_DEAD, -13, "session is dead after a policy failed")                                        \
    X(E_POLICY, -14, "policy failed or broke its contract")                                        \
    X(E_CONFLICT, -15, "two stages answer the same question")                                      \
    X(E_LOST, -16, "page lost by its tier")                                                        \
    X(E_UTF8, -17, "invalid UTF-8")                                                                \
    X(E_LOAD_FILE, -32, "policy file is missing or not a regular file")                            \
    X(E_LOAD_OPEN, -33, "policy file is not a loadable library")                                   \
    X(E_LOAD_SYMBOL, -34, "policy library has no kvc_policy_entry")                                \
    X(E_LOAD_ABI, -35, "policy was built for another ABI")                                         \
    X(E_LOAD_TABLE, -36, "policy table is too small or lacks a mandatory member")                  \
    X(E_LOAD_NAME, -37, "policy name is malformed")                                                \
    X(E_LOAD_PARAMS, -38, "policy parameter table is malformed")                                   \
    X(E_LOAD_REQUIRES, -39, "policy requires something this host doesn't have")

/** The codes as constants: KVC_OK, KVC_E_NOMEM, … */
enum {
#define KVC_STATUS_ENUM(name, number, text) KVC_##name = number,
    KVC_STATUS_LIST(KVC_STATUS_ENUM)
#undef KVC_STATUS_ENUM
};

#endif
