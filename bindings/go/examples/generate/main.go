// SPDX-License-Identifier: MIT

// generate MODEL PROMPT [POLICY [N [SEED]]]: continues PROMPT by N tokens (32) under POLICY (quant8),
// greedily, or with SEED at temperature 0.8. Prints the stack, the tokens, their text and a hash of
// all logits (FNV-1a, 64 bits, over the bytes of the floats), as its twins in C and Rust do.
package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"strconv"

	"kvc"
)

func fnv1a(hash uint64, logits []float32) uint64 {
	for _, x := range logits {
		bits := math.Float32bits(x) // little-endian, as all that kvc runs on
		for range 4 {
			hash = (hash ^ uint64(bits&0xff)) * 0x100000001b3
			bits >>= 8
		}
	}
	return hash
}

func run(ctx context.Context, args []string) error {
	if len(args) < 3 {
		return errors.New("usage: generate MODEL PROMPT [POLICY [N [SEED]]]")
	}
	policy, n, params := "quant8", 32, &kvc.Params{}
	var err error
	if len(args) > 3 {
		policy = args[3]
	}
	if len(args) > 4 {
		if n, err = strconv.Atoi(args[4]); err != nil || n < 1 || n > 1000000 {
			return errors.New("N must be a number from 1 to 1000000")
		}
	}
	if len(args) > 5 {
		params.Temperature = 0.8
		if params.Seed, err = strconv.ParseInt(args[5], 10, 64); err != nil {
			return err
		}
	}

	model, err := kvc.OpenModel(args[1], params)
	if err != nil {
		return err
	}
	defer model.Close()
	session, err := model.OpenSession(policy, params)
	if err != nil {
		return err
	}
	defer session.Close()
	sampler, err := kvc.NewSampler(params)
	if err != nil {
		return err
	}
	defer sampler.Close()
	prompt, err := model.Tokenize(args[2], kvc.TextBOS)
	if err != nil {
		return err
	}
	fmt.Println("stack", session.Spec())

	var tokens []kvc.Token
	hash := uint64(0xcbf29ce484222325)
	for token, err := range session.Generate(ctx, sampler, prompt) {
		if err != nil {
			return err
		}
		tokens = append(tokens, token)
		hash = fnv1a(hash, session.Logits(0))
		if len(tokens) == n {
			break
		}
	}

	text, err := model.Detokenize(tokens, kvc.TextSpecial)
	if err != nil {
		return err
	}
	fmt.Print("tokens")
	for _, token := range tokens {
		fmt.Print(" ", token)
	}
	fmt.Printf("\ntext %s\nlogits %016x\n", text, hash)
	return nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		os.Exit(1)
	}
}
