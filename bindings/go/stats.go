// SPDX-License-Identifier: MIT

package kvc

// What the library counts: copies of kvc_session_stats and kvc_stage_stats.

/*
#include <kvc/kvc.h>
*/
import "C"

import (
	"time"
	"unsafe"
)

// Stats are counters of a session. Bytes are counted by the library, not claimed by policies.
type Stats struct {
	NPast          int           // tokens held
	NCtx           int           // most it can hold
	KVBytes        uint64        // all that the cache holds in memory now
	KVPeakBytes    uint64        // the most of it
	SealedBytes    uint64        // payload of sealed pages
	OpenBytes      uint64        // open pages
	MetaBytes      uint64        // page tables, masks, positions
	ColumnBytes    uint64        // columns beside the entries
	BufferBytes    uint64        // buffers for pages on their way from and to a tier
	StageBytes     uint64        // what policies hold
	DiskBytes      uint64        // bytes of files
	TierBytes      uint64        // payload of the pages that live in a tier, as it would be in memory
	NComputed      uint64        // tokens computed, replayed ones included
	NReplayed      uint64        // tokens computed again
	NEntry         uint64        // live entries over all lanes
	NLost          uint64        // times that pages which the tier had lost were computed again
	Compute        time.Duration // in decode calls
	Attention      time.Duration // of it in attention and the cache
	Policy         time.Duration // of it in hooks on the clock
	Wait           time.Duration // that threads waited for pages, all threads together
	ChunkInvariant bool          // results don't depend on how a prompt is cut into calls
	Flags          uint32        // KVC_PLAN_… of the merged plan
	ComputeMode    string        // "int8" or "f32", as in [Params]
	Stages         []Stage       // of the stack, from left to right
}

// Stage holds one stage's figures.
type Stage struct {
	Name         string        // of the policy
	Path         string        // its file; "" when linked in
	MemoryBytes  uint64        // counted by the host
	PeakBytes    uint64        // the most of it
	DiskBytes    uint64        // counted by the host
	StoredBytes  uint64        // what the pages in a tier take there, as the policy says
	PayloadBytes uint64        // of the stage that answers the format: sealed pages, as in memory
	NEvicted     uint64        // entries given up, as the policy says
	NSelected    uint64        // pages left to be read, as the policy says
	NSkipped     uint64        // pages taken out, as the policy says
	NPut         uint64        // pages given to the tier
	NGet         uint64        // pages brought back from it
	Hook         time.Duration // in its hooks on the clock
	Tier         time.Duration // in the tier's functions, all threads together
	Worker       time.Duration // in its functions on the worker threads, all together
}

// Stats counts what the session holds and took so far.
func (s *Session) Stats() (Stats, error) {
	var out Stats
	err := s.with(func() C.int32_t {
		var c C.kvc_session_stats
		c.struct_size = C.uint32_t(unsafe.Sizeof(c))
		rc := C.kvc_session_get_stats(s.c, &c)
		if rc >= 0 {
			out = statsOf(&c)
			out.Stages = make([]Stage, c.n_stage)
		}
		for i := range out.Stages {
			var stage C.kvc_stage_stats
			stage.struct_size = C.uint32_t(unsafe.Sizeof(stage))
			if rc = C.kvc_session_get_stage(s.c, C.uint32_t(i), &stage); rc < 0 {
				break
			}
			out.Stages[i] = stageOf(&stage)
		}
		return rc
	})
	return out, err
}

func statsOf(c *C.kvc_session_stats) Stats {
	return Stats{
		NPast: int(c.n_past), NCtx: int(c.n_ctx),
		KVBytes: uint64(c.kv_bytes), KVPeakBytes: uint64(c.kv_peak_bytes),
		SealedBytes: uint64(c.sealed_bytes), OpenBytes: uint64(c.open_bytes),
		MetaBytes: uint64(c.meta_bytes), ColumnBytes: uint64(c.column_bytes),
		BufferBytes: uint64(c.buffer_bytes), StageBytes: uint64(c.stage_bytes),
		DiskBytes: uint64(c.disk_bytes), TierBytes: uint64(c.tier_bytes),
		NComputed: uint64(c.n_computed), NReplayed: uint64(c.n_replayed),
		NEntry: uint64(c.n_entry), NLost: uint64(c.n_lost),
		Compute: time.Duration(c.compute_ns), Attention: time.Duration(c.attention_ns),
		Policy: time.Duration(c.policy_ns), Wait: time.Duration(c.wait_ns),
		ChunkInvariant: c.chunk_invariant != 0, Flags: uint32(c.flags),
		ComputeMode: computeMode(c.compute),
	}
}

// computeMode is the value of the option compute that makes a session compute so.
func computeMode(compute C.uint32_t) string {
	if compute == C.KVC_COMPUTE_F32 {
		return "f32"
	}
	return "int8"
}

func stageOf(c *C.kvc_stage_stats) Stage {
	return Stage{
		Name: C.GoString(c.name), Path: C.GoString(c.path),
		MemoryBytes: uint64(c.memory_bytes), PeakBytes: uint64(c.peak_bytes),
		DiskBytes: uint64(c.disk_bytes), StoredBytes: uint64(c.stored_bytes),
		PayloadBytes: uint64(c.payload_bytes), NEvicted: uint64(c.n_evicted),
		NSelected: uint64(c.n_selected), NSkipped: uint64(c.n_skipped),
		NPut: uint64(c.n_put), NGet: uint64(c.n_get), Hook: time.Duration(c.hook_ns),
		Tier: time.Duration(c.tier_ns), Worker: time.Duration(c.worker_ns),
	}
}
