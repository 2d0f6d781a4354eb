// SPDX-License-Identifier: MIT

package kvc

// Sessions: one sequence each. Two locks: `busy` is held by the call that uses the handle, and is
// only tried, so that another call answers ErrBusy; `life` keeps the handle open for Cancel, which
// doesn't wait for calls.

/*
#include <kvc/kvc.h>
#include <stdlib.h>
*/
import "C"

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"
)

// Session is one sequence with its cache.
type Session struct {
	busy    sync.Mutex
	life    sync.RWMutex
	c       *C.kvc_session // nil when closed; changed under both locks
	model   *Model
	asked   atomic.Bool // Cancel was called, and no decode call has answered it yet
	late    bool        // a context's cancel may have come after its call: the next one meets it then
	cleanup runtime.Cleanup
}

// OpenSession opens a session with a stack of policies: "full", "window:size=1024:sinks=4+quant8",
// "./my.so:x=1"; "" keeps everything as f16. It uses NCtx, Compute, Seed and where to search for
// policies.
func (m *Model) OpenSession(spec string, params *Params) (*Session, error) {
	return m.newSession("the stack of policies", spec, params,
		func(spec *C.char, p *C.kvc_params, out **C.kvc_session) C.int32_t {
			return C.kvc_session_open(m.c, spec, p, out)
		})
}

// LoadSession opens a session that was saved; it goes on where it was, with the same logits to the
// last bit. The stack, NCtx and Compute come from the file.
func (m *Model) LoadSession(path string, params *Params) (*Session, error) {
	return m.newSession("the session's path", path, params,
		func(path *C.char, p *C.kvc_params, out **C.kvc_session) C.int32_t {
			return C.kvc_session_load(m.c, path, p, out)
		})
}

func (m *Model) newSession(what, text string, params *Params,
	open func(*C.char, *C.kvc_params, **C.kvc_session) C.int32_t) (*Session, error) {
	ctext, err := cString(what, text)
	if err != nil {
		return nil, err
	}
	defer free(ctext)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	var c *C.kvc_session
	if err := params.with(func(p *C.kvc_params) C.int32_t { return open(ctext, p, &c) }); err != nil {
		return nil, err
	}
	return m.adopt(c), nil
}

// adopt makes the Session of a handle, under the model's lock.
func (m *Model) adopt(c *C.kvc_session) *Session {
	m.holds++
	s := &Session{c: c, model: m}
	s.cleanup = runtime.AddCleanup(s, func(c *C.kvc_session) { C.kvc_session_close(c) }, c)
	return s
}

// Close stops the call that uses the session, waits for it, and closes the session.
func (s *Session) Close() error {
	s.Cancel()
	s.busy.Lock()
	defer s.busy.Unlock()
	s.life.Lock()
	defer s.life.Unlock()
	if s.c != nil {
		s.cleanup.Stop()
		C.kvc_session_close(s.c)
		s.c = nil
		s.model.mu.Lock()
		s.model.release()
		s.model.mu.Unlock()
	}
	return nil
}

// enter takes the session for a call; leave gives it back.
func (s *Session) enter() error {
	if !s.busy.TryLock() {
		return failure(C.KVC_E_BUSY, nil)
	}
	if s.c == nil {
		s.busy.Unlock()
		return ErrClosed
	}
	return nil
}

func (s *Session) leave() {
	s.busy.Unlock()
}

// with calls f alone on the open session and answers its error with the session's sentence.
func (s *Session) with(f func() C.int32_t) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	rc := f()
	return failure(rc, C.kvc_session_error(s.c))
}

// Cancel stops the decode call that uses the session, or the next one, which then answers
// [ErrCancelled] and leaves the session as it was before. It never waits for a call. A context does
// the same for its own call only.
func (s *Session) Cancel() {
	s.life.RLock()
	defer s.life.RUnlock()
	if s.c != nil {
		s.asked.Store(true)
		C.kvc_session_cancel(s.c)
	}
}

// Model is the model that the session was opened on.
func (s *Session) Model() *Model {
	return s.model
}

// Logits is row i of the wanted logits of the last decode call; nil when there is none. It is a view
// of the session's memory, valid until the next call that decodes, truncates or closes it, and only
// while the session is referred to (a deferred Close does that). [Session.CopyLogits] has no such
// limits.
func (s *Session) Logits(i int) []float32 {
	var row []float32
	s.with(func() C.int32_t {
		row = s.logits(i)
		return C.KVC_OK
	})
	return row
}

// CopyLogits appends row i of the wanted logits to dst, nothing when there is none.
func (s *Session) CopyLogits(dst []float32, i int) []float32 {
	s.with(func() C.int32_t {
		dst = append(dst, s.logits(i)...)
		return C.KVC_OK
	})
	return dst
}

// logits is the view, of a session that was entered.
func (s *Session) logits(i int) []float32 {
	n, err := count(i)
	if err != nil {
		return nil
	}
	row := C.kvc_session_logits(s.c, n)
	if row == nil {
		return nil
	}
	return unsafe.Slice((*float32)(unsafe.Pointer(row)), s.model.info.NVocab)
}

// NPast is how many tokens the session holds; 0 when it is closed or in use.
func (s *Session) NPast() int {
	var n int
	s.with(func() C.int32_t {
		n = int(C.kvc_session_n_past(s.c))
		return C.KVC_OK
	})
	return n
}

// Spec is the stack with every parameter filled in; "" when the session is closed or in use.
func (s *Session) Spec() string {
	var spec string
	s.with(func() C.int32_t {
		spec = C.GoString(C.kvc_session_spec(s.c))
		return C.KVC_OK
	})
	return spec
}

// Tokens are n of the tokens that the session holds, from position pos on. Of a session that was
// loaded they are all that says what it is about.
func (s *Session) Tokens(pos, n int) ([]Token, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	nPast := int(C.kvc_session_n_past(s.c))
	// The library has no sentence for this, and would be asked after room was made.
	if pos < 0 || n < 0 || pos > nPast || n > nPast-pos {
		text := fmt.Sprintf("%d tokens from position %d on aren't in the %d of the session; "+
			"ask for those below NPast", n, pos, nPast)
		return nil, &Error{Status: ErrRange, Text: text}
	}
	out := make([]Token, n)
	rc := C.kvc_session_tokens(s.c, C.uint32_t(pos), C.uint32_t(n), ids(out))
	return out, failure(rc, C.kvc_session_error(s.c))
}

// Truncate forgets the tokens from position nPast on; 0 clears. What the cache has lost of the rest
// is computed again in the next decode call.
func (s *Session) Truncate(nPast int) error {
	n, err := count(nPast)
	if err != nil {
		return err
	}
	return s.with(func() C.int32_t { return C.kvc_session_truncate(s.c, n) })
}

// Fork copies the session: the same tokens, the same cache, whose sealed pages are shared until one
// of the two changes them, and policies of its own in the same state.
func (s *Session) Fork() (*Session, error) {
	var copy *Session
	err := s.with(func() C.int32_t {
		var c *C.kvc_session
		rc := C.kvc_session_fork(s.c, &c)
		if rc >= 0 {
			s.model.mu.Lock()
			defer s.model.mu.Unlock()
			copy = s.model.adopt(c)
		}
		return rc
	})
	return copy, err
}

// Save writes the session to a file, which holds the old session or the new one, never a part.
func (s *Session) Save(path string) error {
	cpath, err := cString("the session's path", path)
	if err != nil {
		return err
	}
	defer free(cpath)
	return s.with(func() C.int32_t { return C.kvc_session_save(s.c, cpath) })
}
