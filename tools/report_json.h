/* SPDX-License-Identifier: MIT
 * report_json.h: what the JSON reports of the tools share. Values are new references; NULL without
 * memory. */
#ifndef KVC_REPORT_JSON_H
#define KVC_REPORT_JSON_H

#include "machine.h"

#include "kvc/kvc.h"

#include <jansson.h>
#include <stdint.h>

/** A string of the system's, which may not be UTF-8; NULL is "". */
json_t *cmp_json_text(const char *s);
/** A number, null when it isn't finite; integer: without a fraction. */
json_t *cmp_json_number(double v, int integer);
/** The machine and the build. */
json_t *cmp_json_host(const cmp_machine *m, uint32_t n_threads, const char *level,
                      const char *version);
/** The model. */
json_t *cmp_json_model(const char *path, const kvc_model_info *info);

#endif
