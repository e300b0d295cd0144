// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"math/rand/v2"

	"pgregory.net/rapid"
)

// A Source chooses.
type Source interface {
	// IntN returns a number of [0, n), n > 0. Zero is the simplest choice.
	IntN(n int) int
}

// Seeded returns a source that always chooses the same for the same seed. One goroutine at a time may use it.
func Seeded(seed uint64) Source { return rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15)) }

// Rapid returns a source that draws from t, which shrinks what fails.
func Rapid(t *rapid.T) Source { return drawn{t} }

type drawn struct{ t *rapid.T }

// IntN draws one.
func (d drawn) IntN(n int) int { return rapid.IntRange(0, n-1).Draw(d.t, "choice") }

// pick returns one of several.
func pick[T any](s Source, of ...T) T { return of[s.IntN(len(of))] }

// chance is true once in n times on average. Not so is the simpler choice.
func chance(s Source, n int) bool { return s.IntN(n) == n-1 }

// some returns up to n that one makes.
func some[T any](s Source, n int, one func(i int) T) []T {
	var all []T
	for i := range s.IntN(n + 1) {
		all = append(all, one(i))
	}
	return all
}
