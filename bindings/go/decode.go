// SPDX-License-Identifier: MIT

package kvc

// Decode calls. All go through kvc_decode(), so that a context is watched in one place.

/*
#include <kvc/kvc.h>
*/
import "C"

import (
	"context"
	"iter"
	"runtime"
	"unsafe"
)

// Want says which logits a run wants.
type Want uint32

// What a run may want.
const (
	WantLast Want = C.KVC_WANT_LAST // those of the last token
	WantNone Want = C.KVC_WANT_NONE // none
	WantAll  Want = C.KVC_WANT_ALL  // of every token
	WantList Want = C.KVC_WANT_LIST // of those whose flag in List is set
)

// Run is one session's part of a decode call.
type Run struct {
	Session   *Session
	Tokens    []Token // they follow the session's tokens
	Want      Want
	List      []bool // for WantList, one for each token
	PromptEnd bool   // the last token ends a prompt, even if its predecessor's logits were wanted too

	Rows int   // out: rows for [Session.Logits]
	Err  error // out: what became of this run
}

// Decode computes all runs together: the weights are read once for all. Their sessions share a model
// and a way to compute. A run that fails leaves its session as before the call; the others go on.
// The first error is answered, and each run's own in Err. When ctx ends, all runs stop.
func Decode(ctx context.Context, runs []Run) error {
	batch := batch{ctx: ctx}
	defer batch.done()
	for i := range runs {
		batch.add(&runs[i])
	}
	batch.decode()
	for i := range runs {
		if runs[i].Err != nil {
			return runs[i].Err
		}
	}
	return nil
}

// Decode computes tokens, which follow those that the session holds, and answers the logits of the
// last one: a view as of [Session.Logits]. When ctx ends, the call stops and leaves the session as
// before.
//
// A token whose logits are asked for ends a prompt unless its predecessor's were too, and policies may
// give up entries there: to cut a prompt into several calls, use [Session.Prefill] for all pieces but
// the last.
func (s *Session) Decode(ctx context.Context, tokens []Token) ([]float32, error) {
	var logits []float32
	err := s.decode(ctx, tokens, WantLast, func() error {
		logits = s.logits(0)
		return nil
	})
	return logits, err
}

// Prefill does the same without logits: pieces of a prompt that goes on.
func (s *Session) Prefill(ctx context.Context, tokens []Token) error {
	return s.decode(ctx, tokens, WantNone, func() error { return nil })
}

// Generate decodes the prompt and goes on with what the sampler picks: an iterator over the tokens. It
// ends before a token that ends generation ([Model.IsEnd]) and after an error; the loop bounds it
// otherwise. Within the loop, [Session.Logits] is what the token was picked from. The token that came
// last isn't decoded yet.
func (s *Session) Generate(ctx context.Context, sampler *Sampler, prompt []Token) iter.Seq2[Token, error] {
	return func(yield func(Token, error) bool) {
		tokens := prompt
		for {
			var token Token
			var end bool
			err := s.decode(ctx, tokens, WantLast, func() (err error) {
				token, err = sampler.Sample(s.logits(0))
				end = s.model.isEnd(token)
				return err
			})
			if err != nil {
				yield(-1, err)
				return
			}
			if end || !yield(token, nil) {
				return
			}
			tokens = []Token{token}
		}
	}
}

// decode computes tokens and calls then before another call or Close may use the session.
func (s *Session) decode(ctx context.Context, tokens []Token, want Want, then func() error) error {
	batch := batch{ctx: ctx}
	defer batch.done()
	run := Run{Session: s, Tokens: tokens, Want: want}
	batch.add(&run)
	batch.decode()
	if run.Err != nil {
		return run.Err
	}
	return then()
}

// batch is a decode call. Sessions are in use from add to done. The C runs lie in Go memory, so what
// they point to is pinned.
type batch struct {
	ctx  context.Context
	runs []*Run
	c    []C.kvc_run
	pin  runtime.Pinner
}

// add takes the run's session, or says in Err why it can't be computed.
func (b *batch) add(run *Run) {
	run.Rows = 0
	n, err := count(len(run.Tokens))
	switch {
	case err != nil:
	case run.Session == nil:
		err = argument("a run without a session: give one")
	case run.Want == WantList && len(run.List) != len(run.Tokens):
		err = argument("%d flags for %d tokens; give one each", len(run.List), len(run.Tokens))
	case b.ctx.Err() != nil:
		err = &Error{ErrCancelled, ErrCancelled.Error(), context.Cause(b.ctx)}
	default:
		err = run.Session.enter()
	}
	run.Err = err
	if err != nil {
		return
	}
	c := C.kvc_run{
		struct_size: C.uint32_t(unsafe.Sizeof(C.kvc_run{})),
		wants:       C.uint32_t(run.Want),
		session:     run.Session.c,
		n_token:     n,
	}
	if n > 0 {
		c.token = ids(run.Tokens)
		b.pin.Pin(c.token)
	}
	if run.Want == WantList && len(run.List) > 0 {
		c.want = (*C.uint8_t)(unsafe.Pointer(unsafe.SliceData(run.List))) // a bool is 0 or 1
		b.pin.Pin(c.want)
	}
	if run.PromptEnd {
		c.prompt_end = 1
	}
	b.runs = append(b.runs, run)
	b.c = append(b.c, c)
}

// done gives the sessions back.
func (b *batch) done() {
	for _, run := range b.runs {
		run.Session.leave()
	}
	b.pin.Unpin()
}

func (b *batch) decode() {
	if len(b.runs) == 0 {
		return
	}
	b.watched(0, len(b.runs))
	for i, run := range b.runs {
		s, c := run.Session, &b.c[i]
		if c.status == C.KVC_E_CANCELLED && b.ctx.Err() == nil && s.late && !s.asked.Load() {
			// Meant for an earlier call, which was over by then: this one has done nothing.
			s.late = false
			b.watched(i, i+1)
		}
		run.Rows = int(c.n_logits)
		run.Err = failure(c.status, C.kvc_session_error(s.c))
		if c.status == C.KVC_E_CANCELLED {
			s.asked.Store(false)
			run.Err.(*Error).cause = context.Cause(b.ctx)
		}
	}
}

// watched computes runs first to end - 1, and cancels them when the context ends.
func (b *batch) watched(first, end int) {
	runs := b.c[first:end]
	call := func() {
		C.kvc_decode(&runs[0], C.uint32_t(len(runs)), C.uint32_t(unsafe.Sizeof(runs[0])))
	}
	if b.ctx.Done() == nil {
		call()
		return
	}
	cancelled := make(chan struct{})
	stop := context.AfterFunc(b.ctx, func() {
		for i := range runs {
			C.kvc_session_cancel(runs[i].session)
		}
		close(cancelled)
	})
	call()
	if !stop() {
		<-cancelled
		for _, run := range b.runs[first:end] {
			run.Session.late = true // perhaps
		}
	}
}
