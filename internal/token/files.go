// SPDX-License-Identifier: Apache-2.0

package token

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The files of a data directory that hold tokens.
const (
	FileName = "token"      // the one that this node sends under, and shows
	nextName = "token.next" // accepted, and to be sent under once all nodes have it
	oldName  = "token.old"  // accepted still
)

// MaxKept is how many tokens a node keeps at the most. Three are needed where a rotation was begun on either side of a partition.
const MaxKept = 6

// maxRead is how many tokens a file may hold after a crash in the midst of a change.
const maxRead = 3 * MaxKept

// Kept are the tokens of a data directory.
type Kept struct {
	Send Token
	Next []Token
	Old  []Token
}

// All returns the tokens, Send first, each once.
func (k Kept) All() []Token {
	var all []Token
	for _, t := range slices.Concat([]Token{k.Send}, k.Next, k.Old) {
		if !t.IsZero() && !slices.ContainsFunc(all, t.Equal) {
			all = append(all, t)
		}
	}
	return all
}

// Files returns the paths of all files in which [WriteKept] may have left a token.
func Files(dir string) []string {
	var paths []string
	for _, name := range []string{FileName, nextName, oldName} {
		paths = append(paths, filepath.Join(dir, name), filepath.Join(dir, name+UnfinishedSuffix))
	}
	return paths
}

// ReadKept reads the tokens of the data directory dir. A directory without the file [FileName] has none: the error is
// fs.ErrNotExist then. What else can go wrong is that of [ReadFile].
func ReadKept(dir string) (k Kept, err error) {
	if k.Send, err = ReadFile(filepath.Join(dir, FileName)); err != nil {
		return Kept{}, err
	}
	if k.Next, err = readMany(filepath.Join(dir, nextName)); err != nil {
		return Kept{}, err
	}
	if k.Old, err = readMany(filepath.Join(dir, oldName)); err != nil {
		return Kept{}, err
	}
	return k, nil
}

// readMany reads a file with a token in each line; there are none if it does not exist.
func readMany(path string) (ts []Token, err error) {
	b, err := readFile(path)
	if Missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		t, err := Parse(line)
		if err != nil {
			return nil, fmt.Errorf("token file %s: %w", path, err)
		}
		if ts = append(ts, t); len(ts) > maxRead {
			return nil, fmt.Errorf("token file %s holds more than %d tokens; put the one that another node's `weft token --raw` prints into %s, and remove it",
				path, maxRead, filepath.Join(filepath.Dir(path), FileName))
		}
	}
	return ts, nil
}

// WriteKept makes the files in dir hold k, each with mode 0600, durably. After a crash they hold, taken together, every token that is
// both in k and was there before, and Send is that of k or the one before; done again, it completes what was begun.
func WriteKept(dir string, k Kept) error {
	if err := writeKept(dir, k); err != nil {
		return fmt.Errorf("writing the tokens to %s: %w; make room there, or make it writable, and try again", dir, err)
	}
	return nil
}

func writeKept(dir string, k Kept) error {
	before, err := ReadKept(dir)
	if err != nil && !Missing(err) {
		return err
	}
	if before.Send.Equal(k.Send) && sameTokens(before.Next, k.Next) && sameTokens(before.Old, k.Old) {
		return nil
	}
	// Whatever moves from one file to another is in this one in the meantime.
	if err := writeMany(filepath.Join(dir, oldName), slices.Concat(k.Old, before.All())); err != nil {
		return err
	}
	if !before.Send.Equal(k.Send) {
		if err := writeFile(filepath.Join(dir, FileName), k.Send.Reveal()+"\n"); err != nil {
			return err
		}
	}
	if err := writeMany(filepath.Join(dir, nextName), k.Next); err != nil {
		return err
	}
	return writeMany(filepath.Join(dir, oldName), k.Old)
}

func sameTokens(a, b []Token) bool { return slices.EqualFunc(a, b, Token.Equal) }

// writeMany puts tokens into a file, a line for each; without any the file is removed.
func writeMany(path string, ts []Token) error {
	var text strings.Builder
	written := map[string]bool{}
	for _, t := range ts {
		if s := t.Reveal() + "\n"; !written[s] {
			written[s] = true
			text.WriteString(s)
		}
	}
	if b, err := readFile(path); err == nil && string(b) == text.String() {
		return nil
	}
	if len(ts) > 0 {
		return writeFile(path, text.String())
	}
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, syncDir(filepath.Dir(path)))
}
