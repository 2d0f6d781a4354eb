/* SPDX-License-Identifier: MIT
 * check_stages.h: policies that are part of kvcheck: the one under test, wrapped so that its plan
 * is seen; plain floats to hold it against; and a probe, which observes what a cache holds. */
#ifndef KVC_CHECK_STAGES_H
#define KVC_CHECK_STAGES_H

#include "check_tests.h"

#define CHK_F32   "kvcheck-f32"   /* keeps everything as f32 */
#define CHK_BF16  "kvcheck-bf16"  /* as bf16 */
#define CHK_PROBE "kvcheck-probe" /* observes */

/** The policy under test. */
const kvc_policy *chk_shim_entry(uint32_t host_abi, uint32_t index);
/** Makes chk_shim_entry() answer c->policy; c must live as long as sessions. */
void chk_shim_set(chk *c);
/** From now on a tier keeps as little as possible in memory, whatever its plan says, so that short
 * texts make it work. */
void chk_shim_cold(bool cold);
/** What load() reads is damaged at random places, which follow from seed; 0: it isn't. */
void chk_shim_damage(uint64_t seed);

/** The codec of the policy under test, as the latest instance has it. */
typedef struct chk_codec {
    kvc_codec api; /* struct_size 0: its plan has none */
    void *self;
} chk_codec;

extern chk_codec chk_shim_codec;

/** kvcheck's own. */
const kvc_policy *chk_stages_entry(uint32_t host_abi, uint32_t index);

/** What the probe has seen since chk_probe_reset(). */
typedef struct chk_probe {
    char wrong[256];         /* the first thing that can't be, or "" */
    uint64_t n_look;         /* lanes it looked at */
    uint64_t n_live;         /* live entries of all lanes at their last tick */
    uint64_t n_dropped;      /* entries that are gone */
    uint64_t n_inexact;      /* entries that read() didn't give as append() had them */
    uint64_t n_read;         /* entries that were read */
    double worst_k, worst_v; /* largest error of a key and of a value, against its length */
    double sum_k, sum_v;     /* sums of the errors of all entries read */
} chk_probe;

extern chk_probe chk_seen;
/** Forgets; whole: the policy gives up nothing, so all positions must be live. */
void chk_probe_reset(bool whole);

#endif
