// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/policy"
	"github.com/weftnet/weft/policy/compile"
)

// FileName is the name, within a data directory, of the file in which the state in force is kept.
const FileName = "policy.state"

const (
	unfinished = ".new"
	// older, after the name of the file, is that of an empty one that is there as long as the kernel may have something newer.
	older = ".older"
	// maxFile bounds the file, in bytes. A state that does not fit is not kept.
	maxFile = 64 << 20
	// saveAfter is how long after a change the state is kept, and saveGap the shortest time between two times.
	saveAfter, saveGap = time.Second, 5 * time.Second
	// saveLook is how often it is looked, at the end, whether what is being written is.
	saveLook = 10 * time.Millisecond
)

// Files are the paths of all files that an Enforcer may leave in dir.
func Files(dir string) []string {
	path := filepath.Join(dir, FileName)
	return []string{path, path + unfinished, path + older}
}

// saved is what is kept: the state in force, and what was attached here with what was known of it. Nobody changes it.
type saved struct {
	state  *compile.State
	locals []policy.Endpoint            // without addresses
	spaces map[string]map[string]string // labels of their namespaces, where a source tells these
	behind bool                         // the kernel may have something newer
}

// saver keeps the state on disk. The goroutine of Enforcer.Run says what changes in it and when it is to be kept, and never waits: that of run has a copy, which it brings up to
// date and writes.
type saver struct {
	path, boot string
	log        *zap.Logger
	due        time.Time // when the state is to be kept next; zero: it is kept
	last       time.Time
	state      *compile.State // of run
	failing    bool           // of run

	mu      sync.Mutex
	newest  uint64 // counts what the kernel was told
	marked  bool   // that the file is older is on disk
	todo    []work // in order
	writing bool   // some of it is to be written, or is being
	closed  bool
	news    chan struct{} // capacity 1: there is something to do
}

// work is a change of the state, or, if keep is set, says that it is to be kept as it is then.
type work struct {
	compile.Delta
	keep  bool
	bare  bool   // there is nothing to be kept
	saved        // but for the state
	at    uint64 // of saver.newest
}

func newSaver(path, boot string, log *zap.Logger) *saver {
	return &saver{path: path, boot: boot, log: log, state: compile.NewState(), news: make(chan struct{}, 1)}
}

// follow takes a change of the state, which nobody changes.
func (s *saver) follow(d compile.Delta) {
	if s.path != "" && !d.Empty() {
		s.put(work{Delta: d})
	}
}

// put adds something to do. It refuses to if that is to be written and the disk is slow.
func (s *saver) put(w work) (taken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.keep && s.writing {
		return false
	}
	s.writing = s.writing || w.keep
	s.todo = append(s.todo, w)
	s.raise()
	return true
}

func (s *saver) raise() {
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// take returns what there is to do, and whether that is all that there will ever be.
func (s *saver) take() (todo []work, last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	todo, s.todo = s.todo, nil
	return todo, s.closed
}

// changed says that there is something new to be kept.
func (s *saver) changed(now time.Time) {
	if s.path == "" || !s.due.IsZero() {
		return
	}
	if s.due = now.Add(saveAfter); s.due.Before(s.last.Add(saveGap)) {
		s.due = s.last.Add(saveGap)
	}
}

// touch says that the kernel is told something that is not kept yet: a daemon that is killed now must not give it back what is.
func (s *saver) touch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.newest++
	if s.path == "" || s.marked {
		return
	}
	f, err := os.OpenFile(s.path+older, os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		err = f.Close()
	}
	if s.marked = err == nil; !s.marked { // rather nothing than what would be taken for the newest
		if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("an older state of the network policies is kept and could not be removed", zap.Error(err))
		}
	}
}

func (s *saver) told() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newest
}

// kept says that what the kernel was told up to at is on disk.
func (s *saver) kept(at uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at == s.newest && s.marked {
		s.marked = os.Remove(s.path+older) != nil
	}
}

// save keeps what is in force if that is due, or at the end.
func (e *Enforcer) save(end bool) {
	s, now := e.saver, time.Now()
	if s.due.IsZero() || !end && now.Before(s.due) || e.failure != nil {
		return
	}
	keep := work{keep: true, bare: len(e.sides) == 0, at: s.told()}
	if !keep.bare {
		keep.locals, keep.spaces = e.dir.known(), e.dir.spacesInUse()
	}
	for !s.put(keep) {
		if !end {
			s.due = now.Add(saveAfter)
			return
		}
		time.Sleep(saveLook)
	}
	s.due, s.last = time.Time{}, now
}

// known are the workloads of this node of which something is known.
func (d *directory) known() (known []policy.Endpoint) {
	for _, b := range d.locals {
		if b.known && !b.Given {
			known = append(known, policy.Endpoint{Name: b.Name, ID: b.ID, Labels: b.Labels, Ports: b.Ports})
		}
	}
	return known
}

// close ends run, once all is written.
func (s *saver) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.raise()
}

// run writes what there is to write, until close.
func (s *saver) run() {
	for last := false; !last; {
		<-s.news
		var todo []work
		todo, last = s.take()
		for _, w := range todo {
			if w.keep {
				s.keep(w)
			} else {
				s.state.Apply(w.Delta)
			}
		}
	}
}

// keep writes the state as it is now.
func (s *saver) keep(w work) {
	var what *saved
	if !w.bare {
		what = &saved{state: s.state, locals: w.locals, spaces: w.spaces}
	}
	err := s.write(what)
	if err == nil {
		s.kept(w.at)
	}
	if err != nil && !s.failing {
		s.log.Warn("the network policies in force could not be kept; a restart while their source is away could not put them back", zap.Error(err))
	}
	s.failing = err != nil
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writing = false
}

func (s *saver) write(keep *saved) error {
	if keep == nil {
		if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing %s: %w", s.path, err)
		}
		return nil
	}
	b, err := takeDown(s.boot, *keep).encode()
	if err != nil {
		return err
	}
	if len(b) > maxFile {
		return fmt.Errorf("%s would have %d bytes, and %d is the most", s.path, len(b), maxFile)
	}
	if _, _, err := decode(b); err != nil { // what is there is of more use
		return fmt.Errorf("%s could not be read again: %w", s.path, err)
	}
	if err := replaceFile(s.path, b); err != nil {
		return fmt.Errorf("writing %s: %w; make room there, or make it writable", s.path, err)
	}
	return nil
}

// replaceFile makes a file hold b, durably: after a crash it holds that or what it held before.
func replaceFile(path string, b []byte) (err error) {
	f, err := os.OpenFile(path+unfinished, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path+unfinished))
	}
	if err := os.Rename(path+unfinished, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// load reads what was kept in this boot; nothing if there is nothing.
func (s *saver) load() (saved, error) {
	if s.path == "" {
		return saved{}, nil
	}
	_, err := os.Lstat(s.path + older)
	s.mu.Lock()
	s.marked = err == nil
	behind := s.marked
	s.mu.Unlock()
	f, err := os.Open(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return saved{}, nil
	}
	if err != nil {
		return saved{}, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return saved{}, err
	}
	boot, kept, err := decode(b)
	if err != nil {
		return saved{}, fmt.Errorf("%s: %w", s.path, err)
	}
	if boot != s.boot { // nothing of it is attached any more
		return saved{}, nil
	}
	kept.behind = behind
	return kept, nil
}

// sum is put before what it is the checksum of.
func sum(b []byte) []byte {
	return binary.BigEndian.AppendUint32(nil, crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}
