// SPDX-License-Identifier: MIT

package kvc

/*
#include <kvc/kvc.h>
*/
import "C"

import (
	"runtime"
	"sync"
	"unsafe"
)

// Sampler picks tokens from logits: always the likeliest one, or by chance.
type Sampler struct {
	mu      sync.Mutex
	c       *C.kvc_sampler // nil when closed
	cleanup runtime.Cleanup
}

// NewSampler makes a sampler. It uses Temperature, TopK, TopP, MinP and Seed.
func NewSampler(params *Params) (*Sampler, error) {
	var c *C.kvc_sampler
	if err := params.with(func(p *C.kvc_params) C.int32_t {
		return C.kvc_sampler_create(p, &c)
	}); err != nil {
		return nil, err
	}
	s := &Sampler{c: c}
	s.cleanup = runtime.AddCleanup(s, func(c *C.kvc_sampler) { C.kvc_sampler_destroy(c) }, c)
	return s, nil
}

// Close frees the sampler.
func (s *Sampler) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c != nil {
		s.cleanup.Stop()
		C.kvc_sampler_destroy(s.c)
		s.c = nil
	}
	return nil
}

// Sample picks a token. Ties go to the lowest id; NaN is never picked.
func (s *Sampler) Sample(logits []float32) (Token, error) {
	n, err := count(len(logits))
	if err != nil {
		return -1, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil {
		return -1, ErrClosed
	}
	token := C.kvc_sampler_sample(s.c, (*C.float)(unsafe.Pointer(unsafe.SliceData(logits))), n)
	if token < 0 {
		return -1, failure(token, nil)
	}
	return Token(token), nil
}
