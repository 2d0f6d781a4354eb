/* SPDX-License-Identifier: MIT
 * state.h: sessions as files, and copies of them. What a session holds is its tokens with their
 * flags, its store, and what its stages keep for themselves. A file also says for which model, spec
 * and shape it is; all of it comes from somewhere and is checked.
 *
 * The file, little endian, XXH3 over all that went before at the two places marked:
 *   "kvcsess\n", u32 format (1), u32 0x01020304
 *   the head: fingerprint, spec, versions of the policies (each u32 length, bytes),
 *     u32 compute, n_ctx, n_layer, n_column, n_token, n_valid; per layer u32 heads, dim_k, dim_v,
 * open type, u64 page bytes checksum i32 token[n_token], u8 flag[n_token] the store: u32 evicted;
 * per lane u32 n_page, open_n, i32 open_pos0, u64 open_live; per page u64 live, i32 pos0, u32 n,
 * moved, held; i32 pos[64] if moved; its bytes if held; its columns the open page's columns; its
 * rows if there are any per stage: u64 random state, u64 length, bytes checksum */
#ifndef KVC_STATE_H
#define KVC_STATE_H

#include "session.h"
#include "stream.h"

/** Writes a session to path; what stood there stays whole until the new file is. KVC_E_IO,
 * KVC_E_UNSUPPORTED (a stage that can't be saved), KVC_E_NOMEM. The sentence is on the session. */
int32_t kvc__state_save(kvc_session *s, const char *path);
/** Opens a session from a file. KVC_E_NOT_FOUND, KVC_E_IO, KVC_E_FORMAT (damaged, or of another
 * version), KVC_E_UNSUPPORTED (of another model or policy version), or what opening a session
 * answers. */
int32_t kvc__state_load(kvc_model *model, const char *path, const struct kvc_params *params,
                        kvc_session **out, kvc__err *err);
/** Copies a session; sealed pages are shared. The sentence is on s. */
int32_t kvc__state_fork(kvc_session *s, kvc_session **out);

#endif
