// SPDX-License-Identifier: MIT

package kvc

import "unicode/utf8"

// TextStream turns tokens that come one by one into text, and holds back a UTF-8 character until it
// is whole. Special tokens give nothing. It is for one goroutine at a time.
type TextStream struct {
	model *Model
	held  []byte
}

// TextStream makes a stream of text.
func (m *Model) TextStream() *TextStream {
	return &TextStream{model: m}
}

// Push gives the characters that this token completes, perhaps none. Bytes that are no UTF-8 become
// U+FFFD.
func (t *TextStream) Push(token Token) (string, error) {
	bytes, err := t.model.Detokenize([]Token{token}, 0)
	if err != nil {
		return "", err
	}
	var text string
	text, t.held = takeWhole(append(t.held, bytes...))
	return text, nil
}

// Flush gives what was held back, as U+FFFD: the text ended inside a character. Mostly "".
func (t *TextStream) Flush() string {
	if len(t.held) == 0 {
		return ""
	}
	t.held = nil
	return string(utf8.RuneError)
}

// takeWhole parts bytes before the beginning of a character that may still be completed.
func takeWhole(held []byte) (string, []byte) {
	var text []byte
	for utf8.FullRune(held) {
		r, n := utf8.DecodeRune(held)
		text = utf8.AppendRune(text, r)
		held = held[n:]
	}
	return string(text), held
}
