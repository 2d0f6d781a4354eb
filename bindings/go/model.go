// SPDX-License-Identifier: MIT

package kvc

// Models: weights, vocabulary and threads. A model's C handle is held by the Model and by each of its
// open sessions, and closed with the last of them.

/*
#include <kvc/kvc.h>
#include <stdlib.h>
*/
import "C"

import (
	"runtime"
	"sync"
	"unsafe"
)

// Flags of [Model.Tokenize] and [Model.Detokenize].
const (
	TextSpecial TextFlags = C.KVC_TEXT_SPECIAL // special tokens are read in text, and written
	TextBOS     TextFlags = C.KVC_TEXT_BOS     // begin with the beginning-of-text token if the model wants one
	TextEOS     TextFlags = C.KVC_TEXT_EOS     // end with the end-of-text token if the model wants one
	TextTrim    TextFlags = C.KVC_TEXT_TRIM    // leave out the spaces that tokenizing put in; of tokens from the beginning of a text on
)

// TextFlags say how text becomes tokens, and tokens text.
type TextFlags uint32

// ModelInfo is what a model is.
type ModelInfo struct {
	Arch        string // "llama"
	Name        string // general.name of the file, or ""
	Weights     string // the most frequent weight type by bytes of the layers, "Q4_1"
	Fingerprint string // 32 hexadecimal digits over header, tensor table and samples of the weights
	Chat        string // family of its chat template, "chatml"; "" when it has none or an unknown one
	NLayer      int    // layers
	NEmbd       int    // width
	NVocab      int    // tokens in the vocabulary, and logits of a token
	NCtxTrain   int    // context it was trained for
	NHead       int    // query heads of the first layer
	NHeadKV     int    // KV heads of the first layer
	HeadDim     int    // elements of a key
	NThreads    int    // threads that compute
	BOS         Token  // beginning of text, or -1
	EOS         Token  // end of text, or -1
	EOT         Token  // end of a chat turn, or -1
	NParam      uint64 // weights
	FileBytes   uint64 // size of the file
	ReadBytes   uint64 // bytes of the file that decoding one token reads
	NMac        uint64 // multiply-adds of one token in the layers' products
}

// Model is an open model.
type Model struct {
	mu      sync.Mutex // for calls that leave a sentence on the handle, and for what follows
	c       *C.kvc_model
	closed  bool
	holds   int // who needs c: the Model until it is closed, and its open sessions
	info    ModelInfo
	cleanup runtime.Cleanup
}

// OpenModel opens a GGUF file. It uses NThreads, NBatch and NoRepack.
func OpenModel(path string, params *Params) (*Model, error) {
	cpath, err := cString("the model's path", path)
	if err != nil {
		return nil, err
	}
	defer free(cpath)
	var c *C.kvc_model
	if err := params.with(func(p *C.kvc_params) C.int32_t {
		return C.kvc_model_open(cpath, p, &c)
	}); err != nil {
		return nil, err
	}
	return newModel(c), nil
}

// OpenModelBytes does the same from bytes in memory, which aren't needed after the call.
func OpenModelBytes(bytes []byte, params *Params) (*Model, error) {
	var c *C.kvc_model
	if err := params.with(func(p *C.kvc_params) C.int32_t {
		return C.kvc_model_open_memory(unsafe.Pointer(unsafe.SliceData(bytes)), C.size_t(len(bytes)), p, &c)
	}); err != nil {
		return nil, err
	}
	return newModel(c), nil
}

func newModel(c *C.kvc_model) *Model {
	m := &Model{c: c, holds: 1, info: readInfo(c)}
	m.cleanup = runtime.AddCleanup(m, func(c *C.kvc_model) { C.kvc_model_close(c) }, c)
	return m
}

func readInfo(c *C.kvc_model) ModelInfo {
	var i C.kvc_model_info
	i.struct_size = C.uint32_t(unsafe.Sizeof(i))
	C.kvc_model_get_info(c, &i)
	return ModelInfo{
		Arch: C.GoString(i.arch), Name: C.GoString(i.name), Weights: C.GoString(i.weights),
		Fingerprint: C.GoString(i.fingerprint), Chat: C.GoString(i.chat),
		NLayer: int(i.n_layer), NEmbd: int(i.n_embd), NVocab: int(i.n_vocab),
		NCtxTrain: int(i.n_ctx_train), NHead: int(i.n_head), NHeadKV: int(i.n_head_kv),
		HeadDim: int(i.head_dim), NThreads: int(i.n_threads),
		BOS: Token(i.token_bos), EOS: Token(i.token_eos), EOT: Token(i.token_eot),
		NParam: uint64(i.n_param), FileBytes: uint64(i.file_bytes),
		ReadBytes: uint64(i.read_bytes), NMac: uint64(i.n_mac),
	}
}

// Close closes the model; its memory is freed when its last session is closed too.
func (m *Model) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.closed = true
		m.release()
	}
	return nil
}

// release gives up one hold, under mu.
func (m *Model) release() {
	m.holds--
	if m.holds == 0 {
		m.cleanup.Stop()
		C.kvc_model_close(m.c)
		m.c = nil
	}
}

// with calls f alone on the open model and answers its error with the model's sentence.
func (m *Model) with(f func(*C.kvc_model) C.int32_t) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	rc := f(m.c)
	return failure(rc, C.kvc_model_error(m.c))
}

// Info is what the model is; of a closed model too.
func (m *Model) Info() ModelInfo {
	return m.info
}

// IsEnd says whether a model that gives this token has ended its turn or its text. A closed model
// says no.
func (m *Model) IsEnd(token Token) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.c != nil && m.isEnd(token)
}

// isEnd asks without the lock, for whoever holds the model open.
func (m *Model) isEnd(token Token) bool {
	return C.kvc_model_is_end(m.c, C.int32_t(token)) != 0
}

// Tokenize turns text, which is UTF-8, into tokens.
func (m *Model) Tokenize(text string, flags TextFlags) ([]Token, error) {
	// No token is shorter than a byte but those that are put in front.
	return fill(len(text)+2, func(out []Token, n *C.size_t) error {
		return m.with(func(c *C.kvc_model) C.int32_t {
			return C.kvc_model_tokenize(c, (*C.char)(unsafe.Pointer(unsafe.StringData(text))), C.size_t(len(text)),
				C.uint32_t(flags), ids(out), C.size_t(len(out)), n)
		})
	})
}

// Detokenize turns tokens into bytes, which may begin and end inside a UTF-8 character: a
// [TextStream] joins such pieces.
func (m *Model) Detokenize(tokens []Token, flags TextFlags) ([]byte, error) {
	return fill(8*len(tokens)+16, func(out []byte, n *C.size_t) error {
		return m.with(func(c *C.kvc_model) C.int32_t {
			return C.kvc_model_detokenize(c, ids(tokens), C.size_t(len(tokens)), C.uint32_t(flags),
				(*C.char)(unsafe.Pointer(unsafe.SliceData(out))), C.size_t(len(out)), n)
		})
	})
}

// ids is the tokens as C sees them.
func ids(tokens []Token) *C.int32_t {
	return (*C.int32_t)(unsafe.Pointer(unsafe.SliceData(tokens)))
}

// Message is one message of a chat.
type Message struct {
	Role    string // "system", "user" or "assistant"
	Content string // plain text throughout
}

// ChatFlags say how a chat becomes tokens.
type ChatFlags uint32

// ChatPrompt ends the tokens where the assistant's answer begins, for the model to go on.
const ChatPrompt ChatFlags = C.KVC_CHAT_PROMPT

// Chat turns a chat into tokens, in the form that the model was trained on, or in that of family
// unless it is "". Markers become special tokens and contents stay plain text, so that no user can
// end a turn by writing its marker.
//
// To go on with a chat give all its messages again: where the tokens differ from those that the
// session holds, [Session.Truncate] to there and decode the rest.
func (m *Model) Chat(family string, messages []Message, flags ChatFlags) ([]Token, error) {
	n, err := count(len(messages))
	if err != nil {
		return nil, err
	}
	var cfamily *C.char
	if family != "" {
		if cfamily, err = cString("the chat's family", family); err != nil {
			return nil, err
		}
		defer free(cfamily)
	}
	var pin runtime.Pinner // what the array points to
	defer pin.Unpin()
	c := make([]C.kvc_chat_message, len(messages))
	room := 32
	for i, message := range messages {
		if c[i].role, err = cString("a message's role", message.Role); err != nil {
			return nil, err
		}
		defer free(c[i].role)
		if message.Content != "" {
			p := unsafe.StringData(message.Content)
			pin.Pin(p)
			c[i].content = (*C.char)(unsafe.Pointer(p))
			c[i].n_content = C.size_t(len(message.Content))
		}
		room += len(message.Content) + 16
	}
	return fill(room, func(out []Token, n_out *C.size_t) error {
		return m.with(func(model *C.kvc_model) C.int32_t {
			return C.kvc_model_chat(model, cfamily, unsafe.SliceData(c), n, C.uint32_t(unsafe.Sizeof(C.kvc_chat_message{})),
				C.uint32_t(flags), ids(out), C.size_t(len(out)), n_out)
		})
	})
}
