/* SPDX-License-Identifier: MIT
 * status.c: names and texts of status codes, the library's version, the kernel level in use. Part
 * of the exported surface. It must not know of any handle. */
#include "kvc/kvc.h"

#include "kern.h"

const char *kvc_status_name(int32_t status) {
    switch (status) {
#define NAME_CASE(name, number, text)                                                              \
    case number:                                                                                   \
        return "KVC_" #name;
        KVC_STATUS_LIST(NAME_CASE)
#undef NAME_CASE
    default:
        return "KVC_E_?";
    }
}

const char *kvc_status_text(int32_t status) {
    switch (status) {
#define TEXT_CASE(name, number, text)                                                              \
    case number:                                                                                   \
        return text;
        KVC_STATUS_LIST(TEXT_CASE)
#undef TEXT_CASE
    default:
        return "unknown status";
    }
}

const char *kvc_version(void) {
    return KVC_VERSION_STRING;
}

const char *kvc_cpu_level(void) {
    return kvc__kern_get()->name;
}
