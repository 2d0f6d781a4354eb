// SPDX-License-Identifier: MIT

package kvc

// The package as a program uses it, on a tiny model: KVC_TEST_MODELS is the directory that ctest
// fills.

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var background = context.Background()

func modelPath(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("KVC_TEST_MODELS")
	if dir == "" {
		t.Fatal("KVC_TEST_MODELS: where tiny models are")
	}
	return filepath.Join(dir, "tiny-q4_0.gguf")
}

func must[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func testModel(t *testing.T) *Model {
	t.Helper()
	m := must(OpenModel(modelPath(t), nil))(t)
	t.Cleanup(func() { m.Close() })
	return m
}

func testSession(t *testing.T, m *Model, spec string, params *Params) *Session {
	t.Helper()
	s := must(m.OpenSession(spec, params))(t)
	t.Cleanup(func() { s.Close() })
	return s
}

func testSampler(t *testing.T, params *Params) *Sampler {
	t.Helper()
	s := must(NewSampler(params))(t)
	t.Cleanup(func() { s.Close() })
	return s
}

func prompt(n int) []Token {
	out := make([]Token, n)
	for i := range out {
		out[i] = Token(20 + i%50)
	}
	return out
}

// wantError asks for a status and for words of the sentence.
func wantError(t *testing.T, err error, want Status, words string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Status != want || !errors.Is(err, want) {
		t.Fatalf("%v (%T) isn't %s", err, err, want.Name())
	}
	if !strings.Contains(err.Error(), words) || len(e.Text) < 5 {
		t.Fatalf("%q doesn't say %q", err, words)
	}
}

func second[T any](_ T, err error) error {
	return err
}

func TestVersion(t *testing.T) {
	if Version() == "" || !slices.Contains([]string{"scalar", "avx2", "avx512"}, CPULevel()) {
		t.Fatal(Version(), CPULevel())
	}
	if ErrBusy != -11 || ErrFull.Name() != "KVC_E_FULL" || ErrFull.Error() != "context is full" {
		t.Fatal(ErrFull.Name(), ErrFull)
	}
}

func TestErrorsSayWhatAndWhere(t *testing.T) {
	wantError(t, second(OpenModel("/no/such/model.gguf", nil)), ErrNotFound, "/no/such/model.gguf")
	wantError(t, second(OpenModel(modelPath(t), &Params{Options: map[string]string{"n_threadz": "1"}})), ErrParam, "n_threadz")
	wantError(t, second(OpenModelBytes([]byte("GGUF"), nil)), ErrFormat, "")
	wantError(t, second(OpenModelBytes(nil, nil)), ErrArg, "")
	m := testModel(t)
	wantError(t, second(m.OpenSession("window:siz=64", nil)), ErrParam, "siz")
	wantError(t, second(m.OpenSession("quant8+quant4", nil)), ErrConflict, "")
	wantError(t, second(m.OpenSession("no_such", nil)), ErrNotFound, "no_such")
	wantError(t, second(m.OpenSession("full", &Params{Compute: "f64"})), ErrParam, "compute")
	wantError(t, second(NewSampler(&Params{Temperature: -1})), ErrParam, "temperature")
	wantError(t, second(m.Detokenize([]Token{1 << 20}, 0)), ErrRange, "")
	wantError(t, second(m.Tokenize("a\xffb", 0)), ErrUTF8, "1")
	wantError(t, second(m.LoadSession("/no/such", nil)), ErrNotFound, "/no/such")
}

func TestNULIsRefusedWhereCWouldStopReading(t *testing.T) {
	m := testModel(t)
	s := testSession(t, m, "full", nil)
	for _, err := range []error{
		second(OpenModel("a\x00b", nil)),
		second(m.OpenSession("full\x00quant8", nil)),
		second(m.LoadSession("a\x00b", nil)),
		s.Save("a\x00b"),
		second(NewSampler(&Params{Options: map[string]string{"see\x00d": "1"}})),
		second(NewSampler(&Params{Options: map[string]string{"seed": "1\x00"}})),
		second(ListPolicies(&Params{PolicyDirs: []string{"a\x00b"}})),
		second(m.Chat("a\x00b", []Message{{"user", ""}}, 0)),
		second(m.Chat("chatml", []Message{{"us\x00er", ""}}, 0)),
	} {
		wantError(t, err, ErrArg, "NUL")
	}
	// Text of a model has a length.
	tokens := must(m.Tokenize("a\x00b", 0))(t)
	if text := must(m.Detokenize(tokens, 0))(t); string(text) != "a\x00b" {
		t.Fatalf("%q", text)
	}
}

func TestPathsNeedNotBeUTF8(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "\xff\xfe.gguf")
	bytes := must(os.ReadFile(modelPath(t)))(t)
	if err := os.WriteFile(path, bytes, 0o600); err != nil {
		t.Fatal(err)
	}
	m := must(OpenModel(path, nil))(t)
	defer m.Close()
	s := testSession(t, m, "full", nil)
	must(s.Decode(background, []Token{1, 2, 3}))(t)
	saved := filepath.Join(dir, "\xff.kvc")
	if err := s.Save(saved); err != nil {
		t.Fatal(err)
	}
	loaded := must(m.LoadSession(saved, nil))(t)
	defer loaded.Close()
	if loaded.NPast() != 3 {
		t.Fatal(loaded.NPast())
	}
}

func TestInfo(t *testing.T) {
	m := must(OpenModel(modelPath(t), &Params{NThreads: 2}))(t)
	defer m.Close()
	info := m.Info()
	if info.Arch != "llama" || info.NThreads != 2 || info.NVocab <= 256 || len(info.Fingerprint) != 32 {
		t.Fatalf("%+v", info)
	}
	same := must(OpenModelBytes(must(os.ReadFile(modelPath(t)))(t), nil))(t)
	defer same.Close()
	if same.Info().Fingerprint != info.Fingerprint {
		t.Fatal("another fingerprint")
	}
	if !m.IsEnd(info.EOS) || m.IsEnd(30) || m.IsEnd(-1) || m.IsEnd(1<<20) {
		t.Fatal("ends")
	}
}

func TestTextInPieces(t *testing.T) {
	m := testModel(t)
	const text = "Zoë spent 3 € on a 🍎.\n"
	tokens := must(m.Tokenize(text, 0))(t)
	stream := m.TextStream()
	var pieces []string
	for _, token := range tokens {
		pieces = append(pieces, must(stream.Push(token))(t))
	}
	if strings.Join(pieces, "") != text || stream.Flush() != "" || !slices.Contains(pieces, "") {
		t.Fatalf("%q", pieces)
	}
	apple := must(m.Tokenize("🍎", 0))(t)
	if piece := must(stream.Push(apple[0]))(t); piece != "" {
		t.Fatalf("%q", piece)
	}
	if a, b := stream.Flush(), stream.Flush(); a != "\ufffd" || b != "" {
		t.Fatalf("%q %q", a, b)
	}
	if tokens := must(m.Tokenize("", 0))(t); len(tokens) != 0 {
		t.Fatal(tokens)
	}
	if bytes := must(m.Detokenize(nil, 0))(t); len(bytes) != 0 {
		t.Fatal(bytes)
	}
}

func TestWholeCharacters(t *testing.T) {
	for _, c := range []struct{ in, text, held string }{
		{"aé€😀", "aé€😀", ""}, {"a\xe2\x82", "a", "\xe2\x82"}, {"\xff\x80a", "\ufffd\ufffda", ""},
		{"\xe2\x28\xa1", "\ufffd(\ufffd", ""}, {"\xc3\xc3\xa9", "\ufffdé", ""}, {"", "", ""},
	} {
		if text, held := takeWhole([]byte(c.in)); text != c.text || string(held) != c.held {
			t.Errorf("%q: %q and %q", c.in, text, held)
		}
	}
}

func TestFailedCallsLeaveTheSession(t *testing.T) {
	m := testModel(t)
	s := testSession(t, m, "quant8", &Params{NCtx: 100})
	if s.Logits(0) != nil || s.Logits(-1) != nil {
		t.Fatal("logits of nothing")
	}
	if logits := must(s.Decode(background, prompt(70)))(t); len(logits) != m.Info().NVocab {
		t.Fatal(len(logits))
	}
	row, some := s.CopyLogits(nil, 0), make([]Token, 1)
	wantError(t, second(s.Decode(background, nil)), ErrArg, "token")
	wantError(t, s.Prefill(background, some[:0]), ErrArg, "token")
	wantError(t, second(s.Decode(background, []Token{5, 1 << 20})), ErrRange, "index 1")
	wantError(t, second(s.Decode(background, prompt(31))), ErrFull, "n_ctx")
	wantError(t, s.Truncate(71), ErrRange, "")
	wantError(t, s.Truncate(-1), ErrArg, "")
	if s.NPast() != 70 || len(row) != m.Info().NVocab {
		t.Fatal(s.NPast(), len(row))
	}
	if err := s.Prefill(background, prompt(30)); err != nil || s.Logits(0) != nil {
		t.Fatal(err)
	}
	if err := s.Truncate(0); err != nil || s.NPast() != 0 {
		t.Fatal(err)
	}
}

func TestGenerateToTheEndOfTheContext(t *testing.T) {
	m := testModel(t)
	s := testSession(t, m, "full", &Params{NCtx: 80})
	// By chance, so that no end of text comes first.
	sampler := testSampler(t, &Params{Temperature: 1, Seed: 3})
	n, last := 0, error(nil)
	for token, err := range s.Generate(background, sampler, prompt(70)) {
		if last != nil {
			t.Fatal("goes on after an error")
		}
		if last = err; err == nil {
			n++
		} else if token != -1 {
			t.Fatal(token)
		}
	}
	// 70 + 10 are held; the 11th is picked and doesn't fit.
	wantError(t, last, ErrFull, "n_ctx")
	if n != 11 || s.NPast() != 80 {
		t.Fatal(n, s.NPast())
	}
	for _, err := range s.Generate(background, sampler, nil) {
		wantError(t, err, ErrArg, "token")
	}
}

func TestGenerateIsTheLoop(t *testing.T) {
	m := testModel(t)
	a, b := testSession(t, m, "quant8", nil), testSession(t, m, "quant8", nil)
	params := &Params{Temperature: 1, Seed: 3}
	x, y := testSampler(t, params), testSampler(t, params)
	tokens, n := prompt(70), 0
	for token, err := range a.Generate(background, x, prompt(70)) {
		logits := must(b.Decode(background, tokens))(t)
		want := must(y.Sample(logits))(t)
		if err != nil || token != want || !slices.Equal(a.Logits(0), logits) {
			t.Fatal(token, want, err)
		}
		tokens = []Token{token}
		if n++; n == 8 {
			break
		}
	}
	if n != 8 || a.NPast() != 77 {
		t.Fatal(n, a.NPast())
	}
}

// A call that takes a while, for others to meet it.
func longPrefill(s *Session, ctx context.Context) chan error {
	done := make(chan error, 1)
	go func() {
		err := s.Prefill(ctx, prompt(8000))
		for errors.Is(err, ErrBusy) { // it met the probe below
			err = s.Prefill(ctx, prompt(8000))
		}
		done <- err
	}()
	for s.busy.TryLock() { // not begun yet
		s.busy.Unlock()
		time.Sleep(100 * time.Microsecond)
	}
	return done
}

func TestBusy(t *testing.T) {
	m := testModel(t)
	s := testSession(t, m, "full", &Params{NCtx: 8192})
	done := longPrefill(s, background)
	wantError(t, second(s.Decode(background, []Token{1})), ErrBusy, "in use")
	wantError(t, second(s.Fork()), ErrBusy, "")
	wantError(t, second(s.Stats()), ErrBusy, "")
	wantError(t, second(s.Tokens(0, 0)), ErrBusy, "")
	if s.NPast() != 0 || s.Spec() != "" || s.Logits(0) != nil {
		t.Fatal("answers while in use")
	}
	s.Cancel()
	err := <-done
	wantError(t, err, ErrCancelled, "cancelled")
	if errors.Is(err, context.Canceled) {
		t.Fatal("no context was cancelled")
	}
	runs := []Run{{Session: s, Tokens: []Token{1}}, {Session: s, Tokens: []Token{2}}}
	wantError(t, Decode(background, runs), ErrBusy, "")
	if runs[0].Err != nil || s.NPast() != 1 {
		t.Fatal(runs[0].Err)
	}
}

func TestContextStopsItsOwnCall(t *testing.T) {
	m := testModel(t)
	s := testSession(t, m, "full", &Params{NCtx: 8192})
	ctx, cancel := context.WithCancel(background)
	done := longPrefill(s, ctx)
	cancel()
	err := <-done
	wantError(t, err, ErrCancelled, "")
	if !errors.Is(err, context.Canceled) || s.NPast() != 0 {
		t.Fatal(err)
	}
	wantError(t, second(s.Decode(ctx, []Token{1})), ErrCancelled, "")
	must(s.Decode(background, []Token{1}))(t)
	ctx, cancel = context.WithTimeout(background, time.Millisecond)
	defer cancel()
	if err := s.Prefill(ctx, prompt(8000)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	s.Cancel()
	wantError(t, second(s.Decode(background, []Token{1})), ErrCancelled, "")
	must(s.Decode(background, []Token{1}))(t)
}

// A context that ends when its call is over, or nearly, must not stop the next call.
func TestContextThatEndsLate(t *testing.T) {
	m := testModel(t)
	s := testSession(t, m, "full", nil)
	for range 2000 {
		ctx, cancel := context.WithCancel(background)
		go cancel()
		s.Decode(ctx, []Token{3})
		must(s.Decode(background, []Token{4}))(t)
		s.Truncate(0)
	}
	s.late = true // a flag that is certainly there
	s.Cancel()
	s.asked.Store(false)
	n := s.NPast()
	if must(s.Decode(background, []Token{5}))(t); s.NPast() != n+1 {
		t.Fatal(s.NPast())
	}
	s.late = true
	s.Cancel() // but this one is meant
	wantError(t, second(s.Decode(background, []Token{5})), ErrCancelled, "")
}

func TestGenerateStopsWithItsContext(t *testing.T) {
	m := testModel(t)
	s := testSession(t, m, "full", nil)
	ctx, cancel := context.WithCancelCause(background)
	defer cancel(nil)
	why := errors.New("enough")
	n, last := 0, error(nil)
	for _, err := range s.Generate(ctx, testSampler(t, &Params{Temperature: 1, Seed: 3}), prompt(70)) {
		if last = err; err == nil {
			n++
		}
		if n == 3 {
			cancel(why)
		}
	}
	wantError(t, last, ErrCancelled, "")
	if n != 3 || !errors.Is(last, why) {
		t.Fatal(n, last)
	}
}

func TestClosedHandles(t *testing.T) {
	m := must(OpenModel(modelPath(t), nil))(t)
	s := must(m.OpenSession("full", nil))(t)
	sampler := must(NewSampler(nil))(t)
	stream := m.TextStream()
	for range 2 {
		if err := errors.Join(s.Close(), sampler.Close(), m.Close()); err != nil {
			t.Fatal(err)
		}
	}
	s.Cancel()
	run := []Run{{Session: s, Tokens: []Token{1}}}
	for i, err := range []error{
		second(s.Decode(background, []Token{1})), s.Prefill(background, []Token{1}), s.Truncate(0),
		second(s.Fork()), s.Save("x"), second(s.Stats()), second(s.Tokens(0, 0)), Decode(background, run), run[0].Err,
		second(sampler.Sample([]float32{1})), second(m.Tokenize("a", 0)),
		second(m.Detokenize([]Token{1}, 0)), second(m.OpenSession("full", nil)),
		second(m.LoadSession("x", nil)), second(m.Chat("", []Message{{"user", ""}}, 0)),
		second(stream.Push(30)),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if s.NPast() != 0 || s.Spec() != "" || s.Logits(0) != nil || len(s.CopyLogits(nil, 0)) != 0 {
		t.Fatal("a closed session answers")
	}
	if m.IsEnd(2) || m.Info().NVocab == 0 || s.Model() != m {
		t.Fatal("a closed model")
	}
	for _, err := range s.Generate(background, sampler, []Token{1}) {
		if !errors.Is(err, ErrClosed) {
			t.Fatal(err)
		}
	}
	wantError(t, Decode(background, []Run{{}}), ErrArg, "session")
}

func TestModelLivesUntilItsLastSession(t *testing.T) {
	m := must(OpenModel(modelPath(t), nil))(t)
	s := must(m.OpenSession("quant8", nil))(t)
	m.Close()
	must(s.Decode(background, prompt(70)))(t)
	fork := must(s.Fork())(t)
	s.Close()
	n := 0
	sampler := testSampler(t, &Params{Temperature: 1, Seed: 3})
	for _, err := range fork.Generate(background, sampler, []Token{7}) {
		if n++; err != nil || n == 4 {
			break
		}
	}
	if n == 0 || m.holds != 1 || m.c == nil {
		t.Fatal(n, m.holds)
	}
	fork.Close()
	if m.c != nil {
		t.Fatal("the model is still open")
	}
}

func TestCloseStopsTheCall(t *testing.T) {
	m := testModel(t)
	s := testSession(t, m, "full", &Params{NCtx: 8192})
	done := longPrefill(s, background)
	s.Close()
	wantError(t, <-done, ErrCancelled, "")
	// Within a loop.
	s = testSession(t, m, "full", nil)
	for _, err := range s.Generate(background, testSampler(t, nil), prompt(70)) {
		if err != nil && !errors.Is(err, ErrClosed) {
			t.Fatal(err)
		}
		s.Close()
	}
}

// Threads of this process: a model has some of its own while it is open.
func threads(t *testing.T) int {
	return len(must(os.ReadDir("/proc/self/task"))(t))
}

func TestForgottenHandlesAreClosed(t *testing.T) {
	before := threads(t)
	for range 4 {
		m := must(OpenModel(modelPath(t), &Params{NThreads: 9}))(t)
		s := must(m.OpenSession("full", nil))(t)
		must(s.Decode(background, []Token{1}))(t)
		must(NewSampler(nil))(t)
	}
	if threads(t) < before+32 {
		t.Skip("a model's threads can't be counted here")
	}
	for range 200 {
		runtime.GC()
		if threads(t) < before+16 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%d threads, %d before", threads(t), before)
}

func TestManySessions(t *testing.T) {
	m := testModel(t)
	a, b, c := testSession(t, m, "full", nil), testSession(t, m, "quant8", nil), testSession(t, m, "full", nil)
	alone := testSession(t, m, "full", nil)
	must(alone.Decode(background, prompt(70)))(t)
	runs := []Run{
		{Session: a, Tokens: prompt(70), PromptEnd: true},
		{Session: b, Tokens: []Token{1, 2, 3}, Want: WantList, List: []bool{true, false, true}},
		{Session: c, Tokens: []Token{1, 1 << 20}, Want: WantAll},
	}
	wantError(t, Decode(background, runs), ErrRange, "index 1")
	if runs[0].Err != nil || runs[1].Err != nil || runs[0].Rows != 1 || runs[1].Rows != 2 {
		t.Fatalf("%+v", runs)
	}
	if !slices.Equal(a.Logits(0), alone.Logits(0)) || b.Logits(1) == nil || b.Logits(2) != nil {
		t.Fatal("logits")
	}
	if a.NPast() != 70 || b.NPast() != 3 || c.NPast() != 0 {
		t.Fatal("positions")
	}
	if err := Decode(background, nil); err != nil {
		t.Fatal(err)
	}
	short := []Run{{Session: a, Tokens: []Token{1, 2}, Want: WantList, List: []bool{true}}}
	wantError(t, Decode(background, short), ErrArg, "flags")
	wantError(t, Decode(background, []Run{{Session: a, Tokens: []Token{1}, Want: 9}}), ErrArg, "")
	other := testSession(t, testModel(t), "full", nil)
	mixed := []Run{{Session: a, Tokens: []Token{1}}, {Session: other, Tokens: []Token{1}}}
	wantError(t, Decode(background, mixed), ErrArg, "model")
}

func TestManyGoroutines(t *testing.T) {
	m := testModel(t)
	rows := make([][]float32, 4)
	var all sync.WaitGroup
	for i := range rows {
		all.Add(1)
		go func() {
			defer all.Done()
			s, err := m.OpenSession("full", nil)
			if err != nil {
				return
			}
			defer s.Close()
			s.Decode(background, prompt(70))
			rows[i] = s.CopyLogits(nil, 0)
		}()
	}
	all.Wait()
	for _, row := range rows {
		if len(row) == 0 || !slices.Equal(row, rows[0]) {
			t.Fatal("rows differ")
		}
	}
}

func TestSaveLoadFork(t *testing.T) {
	m := testModel(t)
	path := filepath.Join(t.TempDir(), "saved")
	s := testSession(t, m, "window:size=64+quant8", nil)
	must(s.Decode(background, prompt(150)))(t)
	if err := s.Save(path); err != nil {
		t.Fatal(err)
	}
	fork := must(s.Fork())(t)
	defer fork.Close()
	loaded := must(m.LoadSession(path, nil))(t)
	defer loaded.Close()
	want := must(s.Decode(background, []Token{9}))(t)
	for _, copy := range []*Session{fork, loaded} {
		if got := must(copy.Decode(background, []Token{9}))(t); !slices.Equal(got, want) {
			t.Fatal("other logits")
		}
	}
	if loaded.Spec() != s.Spec() || !strings.HasPrefix(s.Spec(), "window:size=64:sinks=4") {
		t.Fatal(loaded.Spec())
	}
	os.WriteFile(path, []byte("KVC"), 0o600)
	wantError(t, second(m.LoadSession(path, nil)), ErrFormat, "")
	wantError(t, s.Save("/no/such/dir/file"), ErrIO, "")
}

func TestStats(t *testing.T) {
	m := testModel(t)
	s := testSession(t, m, "window:size=64:sinks=4+quant8", nil)
	must(s.Decode(background, prompt(300)))(t)
	stats := must(s.Stats())(t)
	if stats.NPast != 300 || stats.NComputed != 300 || stats.KVBytes == 0 || stats.Compute <= 0 {
		t.Fatalf("%+v", stats)
	}
	if len(stats.Stages) != 2 || stats.Stages[0].Name != "window" || stats.Stages[1].PayloadBytes == 0 ||
		!strings.HasSuffix(stats.Stages[1].Path, "quant8.so") {
		t.Fatalf("%+v", stats.Stages)
	}
}

func TestLoadedSessionSaysWhatItIsAbout(t *testing.T) {
	m := testModel(t)
	path := filepath.Join(t.TempDir(), "about")
	s := testSession(t, m, "window:size=64", &Params{Compute: "f32"})
	if tokens := must(s.Tokens(0, 0))(t); len(tokens) != 0 {
		t.Fatal(tokens)
	}
	p := prompt(300)
	whole := testSession(t, m, "full", nil)
	must(whole.Decode(background, p))(t)
	must(s.Decode(background, p))(t)
	if err := s.Save(path); err != nil {
		t.Fatal(err)
	}
	s = must(m.LoadSession(path, nil))(t)
	defer s.Close()
	if must(s.Stats())(t).NEntry >= must(whole.Stats())(t).NEntry {
		t.Fatal("the window has given up nothing")
	}
	// What the window has given up too.
	for _, c := range [][2]int{{0, 300}, {290, 10}, {8, 1}, {300, 0}} {
		if tokens := must(s.Tokens(c[0], c[1]))(t); !slices.Equal(tokens, p[c[0]:c[0]+c[1]]) {
			t.Fatal(c, tokens)
		}
	}
	s.Decode(background, nil) // its sentence is another
	for _, c := range [][2]int{{0, 301}, {301, 0}, {300, 1}, {-1, 1}, {1, -1}, {1, math.MaxInt}} {
		wantError(t, second(s.Tokens(c[0], c[1])), ErrRange, "the 300 of the session")
	}
	if mode := must(s.Stats())(t).ComputeMode; mode != "f32" {
		t.Fatal(mode)
	}
	if mode := must(testSession(t, m, "", nil).Stats())(t).ComputeMode; mode != "int8" {
		t.Fatal(mode)
	}
}

func TestWeightsThatStayInTheFile(t *testing.T) {
	left := &Params{NoRepack: true}
	wantError(t, second(OpenModelBytes(must(os.ReadFile(modelPath(t)))(t), left)), ErrUnsupported, "repack=0")
	m := must(OpenModel(modelPath(t), left))(t)
	defer m.Close()
	a, b := testSession(t, m, "full", nil), testSession(t, testModel(t), "full", nil)
	want := must(b.Decode(background, prompt(70)))(t)
	if !slices.Equal(must(a.Decode(background, prompt(70)))(t), want) {
		t.Fatal("other bits")
	}
}

func TestPolicies(t *testing.T) {
	found := must(ListPolicies(&Params{NoPolicyEnv: true}))(t)
	i := slices.IndexFunc(found.List, func(p Policy) bool { return p.Name == "window" })
	if i < 0 || found.List[i].Err != nil || found.List[i].License != "MIT" || !strings.Contains(found.Path, "kvc/policies") {
		t.Fatalf("%+v", found)
	}
	params := found.List[i].Params
	if params[0].Name != "size" || params[0].Unit != "tokens" {
		t.Fatalf("%+v", params)
	}
	k := slices.IndexFunc(params, func(p PolicyParam) bool { return p.Name == "positions" })
	if k < 0 || !slices.Equal(params[k].Choices, []string{"original", "cache"}) {
		t.Fatalf("%+v", params)
	}
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "broken.so"), []byte("x"), 0o600)
	nowhere := must(ListPolicies(&Params{NoPolicyEnv: true, NoPolicyDefault: true, PolicyDirs: []string{dir}}))(t)
	if len(nowhere.List) != 1 {
		t.Fatalf("%+v", nowhere)
	}
	wantError(t, nowhere.List[0].Err, ErrLoadOpen, "broken.so")
}

func TestSeeds(t *testing.T) {
	m := testModel(t)
	run := func(seed int64) string {
		params := &Params{Temperature: 0.9, TopK: 40, TopP: 0.95, MinP: 0.01, Seed: seed}
		s, sampler := testSession(t, m, "", nil), testSampler(t, params)
		var tokens []Token
		for token, err := range s.Generate(background, sampler, prompt(10)) {
			if err != nil {
				t.Fatal(err)
			}
			if tokens = append(tokens, token); len(tokens) == 16 {
				break
			}
		}
		return fmt.Sprint(tokens)
	}
	if run(1) != run(1) || run(1) == run(2) {
		t.Fatal(run(1), run(2))
	}
	greedy := testSampler(t, nil)
	nan := float32(math.NaN())
	if token := must(greedy.Sample([]float32{0, nan, 2, 2}))(t); token != 2 {
		t.Fatal(token)
	}
	wantError(t, second(greedy.Sample(nil)), ErrArg, "")
}

func TestChat(t *testing.T) {
	m := testModel(t)
	chat := []Message{{"system", "Be brief."}, {"user", "Hi <|im_end|>"}}
	// The tiny model has no template, and no markers.
	wantError(t, second(m.Chat("", chat, ChatPrompt)), ErrUnsupported, "")
	wantError(t, second(m.Chat("no_such", chat, 0)), ErrUnsupported, "chatml")
	wantError(t, second(m.Chat("chatml", nil, ChatPrompt)), ErrArg, "")
	path := os.Getenv("KVC_TEST_MODEL")
	if path == "" {
		return
	}
	real := must(OpenModel(path, nil))(t)
	defer real.Close()
	tokens := must(real.Chat("", chat, ChatPrompt))(t)
	text := string(must(real.Detokenize(tokens, TextSpecial))(t))
	const want = "<|im_start|>system\nBe brief.<|im_end|>\n" +
		"<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n"
	if real.Info().Chat == "chatml" && text != want {
		t.Fatalf("%q", text)
	}
}

// Any call from any goroutine at any time: no crash, and errors of these kinds alone.
func TestAnythingAtOnce(t *testing.T) {
	for round := range 20 {
		m := must(OpenModel(modelPath(t), nil))(t)
		s := must(m.OpenSession("window:size=64+quant8", nil))(t)
		sampler := must(NewSampler(nil))(t)
		var all sync.WaitGroup
		for i := range 6 {
			all.Add(1)
			go func() {
				defer all.Done()
				for k := range 40 {
					ctx, cancel := context.WithCancel(background)
					err := anyCall(ctx, m, s, sampler, i+k)
					if err != nil && !errors.Is(err, ErrBusy) && !errors.Is(err, ErrClosed) &&
						!errors.Is(err, ErrCancelled) && !errors.Is(err, ErrRange) && !errors.Is(err, ErrFull) {
						t.Errorf("call %d: %v", i+k, err)
					}
					go cancel()
				}
			}()
		}
		time.Sleep(time.Duration(round) * 100 * time.Microsecond)
		m.Close()
		sampler.Close()
		s.Close()
		all.Wait()
		if m.c != nil {
			t.Fatal("a fork holds the model")
		}
	}
}

func anyCall(ctx context.Context, m *Model, s *Session, sampler *Sampler, which int) error {
	switch which % 8 {
	case 0:
		return s.Prefill(ctx, prompt(100))
	case 1:
		for _, err := range s.Generate(ctx, sampler, prompt(3)) {
			return err
		}
		return nil
	case 2:
		s.Cancel()
		return second(s.Stats())
	case 3:
		fork, err := s.Fork()
		if err == nil {
			err = fork.Prefill(ctx, prompt(70))
			fork.Close()
		}
		return err
	case 4:
		return s.Truncate(1)
	case 5:
		s.CopyLogits(nil, 0)
		s.NPast()
		return second(m.Tokenize("text", 0))
	case 6:
		other, err := m.OpenSession("full", nil)
		if err != nil {
			return err
		}
		defer other.Close()
		return Decode(ctx, []Run{{Session: s, Tokens: prompt(5)}, {Session: other, Tokens: prompt(5)}})
	default:
		return second(m.TextStream().Push(30))
	}
}
