// SPDX-License-Identifier: MIT

// Package kvc runs the decode loop of a transformer language model against a pluggable KV cache, by
// libkvc, whose header kvc/kvc.h is the manual. It finds the library by pkg-config.
//
// A program opens a [Model] (a GGUF file), opens [Session]s on it (one sequence each, with a stack of
// cache policies), and loops: [Session.Decode] computes tokens and answers logits, a [Sampler] picks
// the next token. [Session.Generate] is that loop as an iterator.
//
//	model, err := kvc.OpenModel("model.gguf", nil)
//	session, err := model.OpenSession("window:size=1024+quant8", nil)
//	sampler, err := kvc.NewSampler(nil)
//	prompt, err := model.Tokenize("Once upon a time", kvc.TextBOS)
//	for token, err := range session.Generate(ctx, sampler, prompt) {
//
// Errors of the library are of type [*Error]: a status, which [errors.Is] finds as [ErrFull] and the
// like, and the sentence that names the thing and says what to do.
//
// Models, sessions and samplers are closed by Close, in any order and more than once; a model lives
// until its last session is closed. What is called later answers [ErrClosed]. What is forgotten is
// closed after the garbage collector found it, which may be late: it doesn't see their memory.
//
// All may be used by many goroutines. A session in use answers [ErrBusy], except to
// [Session.Cancel] and [Session.Close], which stop the call; calls on a model or a sampler wait for
// each other.
//
// Not wrapped: the caller's memory, the log, and policies linked into the program.
package kvc

/*
#cgo pkg-config: kvc
#include <kvc/kvc.h>
#include <stdlib.h>
*/
import "C"

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"unsafe"
)

// Token is an index into the vocabulary.
type Token int32

// Status is a status code of the library, and the error that stands for it in [errors.Is].
type Status int32

// The codes of kvc/status.h.
const (
	ErrNoMem        Status = C.KVC_E_NOMEM
	ErrArg          Status = C.KVC_E_ARG
	ErrRange        Status = C.KVC_E_RANGE
	ErrParam        Status = C.KVC_E_PARAM
	ErrSpec         Status = C.KVC_E_SPEC
	ErrIO           Status = C.KVC_E_IO
	ErrNotFound     Status = C.KVC_E_NOT_FOUND
	ErrFormat       Status = C.KVC_E_FORMAT
	ErrUnsupported  Status = C.KVC_E_UNSUPPORTED
	ErrFull         Status = C.KVC_E_FULL
	ErrBusy         Status = C.KVC_E_BUSY
	ErrCancelled    Status = C.KVC_E_CANCELLED
	ErrDead         Status = C.KVC_E_DEAD
	ErrPolicy       Status = C.KVC_E_POLICY
	ErrConflict     Status = C.KVC_E_CONFLICT
	ErrLost         Status = C.KVC_E_LOST
	ErrUTF8         Status = C.KVC_E_UTF8
	ErrLoadFile     Status = C.KVC_E_LOAD_FILE
	ErrLoadOpen     Status = C.KVC_E_LOAD_OPEN
	ErrLoadSymbol   Status = C.KVC_E_LOAD_SYMBOL
	ErrLoadABI      Status = C.KVC_E_LOAD_ABI
	ErrLoadTable    Status = C.KVC_E_LOAD_TABLE
	ErrLoadName     Status = C.KVC_E_LOAD_NAME
	ErrLoadParams   Status = C.KVC_E_LOAD_PARAMS
	ErrLoadRequires Status = C.KVC_E_LOAD_REQUIRES
)

// ErrClosed is answered by a handle that is closed.
var ErrClosed = errors.New("the handle is closed")

// Name is the code's name, "KVC_E_NOMEM".
func (s Status) Name() string {
	return C.GoString(C.kvc_status_name(C.int32_t(s)))
}

// Error is the code's text, "out of memory".
func (s Status) Error() string {
	return C.GoString(C.kvc_status_text(C.int32_t(s)))
}

// Error is what went wrong: a status and the library's sentence about it.
type Error struct {
	Status Status // which of the library's codes it is
	Text   string // names the thing and says what to do
	cause  error  // of a call that a context stopped: why
}

// Error is the sentence.
func (e *Error) Error() string {
	return e.Text
}

// Unwrap gives the status, and of a call that a context stopped the context's error.
func (e *Error) Unwrap() []error {
	if e.cause != nil {
		return []error{e.Status, e.cause}
	}
	return []error{e.Status}
}

// Version is the version of the library that runs, "0.1.0".
func Version() string {
	return C.GoString(C.kvc_version())
}

// CPULevel is the kernel level in use on this machine: "scalar", "avx2" or "avx512".
func CPULevel() string {
	return C.GoString(C.kvc_cpu_level())
}

// failure is the error of a call that left its sentence in text; nil for one that went well. A call
// without a sentence has its status's own text.
func failure(rc C.int32_t, text *C.char) error {
	if rc >= 0 {
		return nil
	}
	e := &Error{Status: Status(rc), Text: C.GoString(text)}
	if e.Text == "" {
		e.Text = e.Status.Error()
	}
	return e
}

func argument(format string, a ...any) error {
	return &Error{Status: ErrArg, Text: fmt.Sprintf(format, a...)}
}

// cString is a copy for C, to be freed, of text that C would read up to a NUL byte.
func cString(what, s string) (*C.char, error) {
	if i := strings.IndexByte(s, 0); i >= 0 {
		return nil, argument("%s holds a NUL byte at index %d; take it out", what, i)
	}
	return C.CString(s), nil
}

func free(s *C.char) {
	C.free(unsafe.Pointer(s))
}

// count is a length for a call that takes 32 bits.
func count(n int) (C.uint32_t, error) {
	if uint64(n) > math.MaxUint32 {
		return 0, argument("%d are more than a call takes", n)
	}
	return C.uint32_t(n), nil
}

// fill is a slice from a call that writes at most len(out) items and answers how many there are.
func fill[T any](n int, call func(out []T, n *C.size_t) error) ([]T, error) {
	for {
		out := make([]T, n)
		var want C.size_t
		if err := call(out, &want); err != nil {
			return nil, err
		}
		if uint64(want) <= uint64(n) {
			return out[:want], nil
		}
		n = int(want)
	}
}
