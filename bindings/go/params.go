// SPDX-License-Identifier: MIT

package kvc

// Options are kept here as Go values and become C params for the one call that uses them: an error's
// sentence stands on those.

/*
#include <kvc/kvc.h>
#include <stdlib.h>
*/
import "C"

import (
	"maps"
	"slices"
)

// Params are options of models, sessions, samplers and lists of policies. Zero values mean the
// library's defaults, and so does a nil *Params. They are checked where they are used: an unknown
// name or a value out of range is [ErrParam] there.
type Params struct {
	NThreads int    // model: threads that compute; 0: one per core that the process may use
	NBatch   int    // model: most tokens computed together; 0: 512
	NoRepack bool   // model: weights stay in the file, for less memory and much more time
	NCtx     int    // session: most positions; 0: the model's own, at most 8192
	Compute  string // session: "int8" (default), which rounds activations, or "f32", which is exact
	Seed     int64  // session and sampler: of random numbers

	Temperature float64 // sampler: 0 always picks the likeliest token
	TopK        int     // sampler: only the k likeliest; 0: all
	TopP        float64 // sampler: the likeliest that sum up to p; 0: all
	MinP        float64 // sampler: only those of at least p times the likeliest's probability; 0: all

	PolicyDirs      []string // directories to search for policies, before all others
	NoPolicyEnv     bool     // don't search KVC_POLICY_PATH
	NoPolicyDefault bool     // don't search the installed directory

	Options map[string]string // further options by name, as text
}

// with makes C params, calls f with them and answers its error with their sentence.
func (p *Params) with(f func(*C.kvc_params) C.int32_t) error {
	var c *C.kvc_params
	if rc := C.kvc_params_create(&c); rc < 0 {
		return failure(rc, nil)
	}
	defer C.kvc_params_destroy(c)
	if p != nil {
		if err := p.set(c); err != nil {
			return err
		}
	}
	rc := f(c)
	return failure(rc, C.kvc_params_error(c))
}

// set copies what isn't zero.
func (p *Params) set(c *C.kvc_params) error {
	s := setter{c: c}
	s.int("n_threads", int64(p.NThreads))
	s.int("n_batch", int64(p.NBatch))
	s.int("n_ctx", int64(p.NCtx))
	s.int("seed", p.Seed)
	s.int("top_k", int64(p.TopK))
	s.float("temperature", p.Temperature)
	s.float("top_p", p.TopP)
	s.float("min_p", p.MinP)
	if p.Compute != "" {
		s.text("compute", p.Compute)
	}
	if p.NoRepack {
		s.text("repack", "0")
	}
	if p.NoPolicyEnv {
		s.text("policy_env", "0")
	}
	if p.NoPolicyDefault {
		s.text("policy_default", "0")
	}
	for _, name := range slices.Sorted(maps.Keys(p.Options)) {
		s.text(name, p.Options[name])
	}
	for _, dir := range p.PolicyDirs {
		s.dir(dir)
	}
	return s.err
}

// setter keeps the first error.
type setter struct {
	c   *C.kvc_params
	err error
}

// put calls f with the C strings of a and b.
func (s *setter) put(whatA, a, whatB, b string, f func(a, b *C.char) C.int32_t) {
	if s.err != nil {
		return
	}
	ca, err := cString(whatA, a)
	if err != nil {
		s.err = err
		return
	}
	defer free(ca)
	cb, err := cString(whatB, b)
	if err != nil {
		s.err = err
		return
	}
	defer free(cb)
	rc := f(ca, cb)
	s.err = failure(rc, C.kvc_params_error(s.c))
}

func (s *setter) int(name string, value int64) {
	if value != 0 {
		s.put("an option's name", name, "", "", func(name, _ *C.char) C.int32_t {
			return C.kvc_params_set_i64(s.c, name, C.int64_t(value))
		})
	}
}

func (s *setter) float(name string, value float64) {
	if value != 0 {
		s.put("an option's name", name, "", "", func(name, _ *C.char) C.int32_t {
			return C.kvc_params_set_f64(s.c, name, C.double(value))
		})
	}
}

func (s *setter) text(name, value string) {
	s.put("an option's name", name, "the value of option "+name, value,
		func(name, value *C.char) C.int32_t { return C.kvc_params_set_str(s.c, name, value) })
}

func (s *setter) dir(dir string) {
	s.put("a policy directory", dir, "", "", func(dir, _ *C.char) C.int32_t {
		return C.kvc_params_add_policy_dir(s.c, dir)
	})
}
