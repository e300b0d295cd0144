// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	backlogDir  = "cni"        // within the run directory
	newEntry    = "new"        // being written, by whoever holds the lock
	asideSuffix = ".malformed" // of what Each could not read
	maxEntry    = 4 << 10      // bytes of an entry
	maxPut      = 20           // attempts of Put when the directory is removed meanwhile

	lockPatience = 5 * time.Second
	lockPause    = 5 * time.Millisecond
)

// Backlog keeps the releases that no daemon was there for: a file for each key and network in a directory of the run directory, which is there only as long as
// something is kept. The plugin puts them in, the daemon works them off; a process may be killed at any step of either. A Backlog is safe for
// concurrent use, by several processes as well.
//
// A lock on the directory (flock) orders the changes of its entries. Nobody holds it while a release is carried out.
type Backlog struct {
	dir      string
	patience time.Duration // with who holds the lock

	step func(name string) // told what Put has done; may be nil
	each sync.Mutex        // held by Each: a release is never carried out twice at a time
}

// NewBacklog returns the backlog of the daemon with that run directory. Nothing is read or made before the first call.
func NewBacklog(runDir string) *Backlog {
	return &Backlog{dir: filepath.Join(runDir, backlogDir), patience: lockPatience}
}

// Put keeps a release until Each has carried it out, whatever process is killed meanwhile. It does not promise to outlast the machine: a run directory is
// in memory as a rule, and what was attached ends with the machine, too. An older one of the same key and network is replaced. The error tells which file could not be written, and why.
func (b *Backlog) Put(r Release) error {
	if !r.complete() {
		return fmt.Errorf("a release of container %q, interface %q and %d others cannot be kept: it has to be of one", r.ContainerID, r.IfName, len(r.Valid))
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		return fmt.Errorf("a release cannot be kept: %w", err)
	}
	if buf.Len() > maxEntry {
		return fmt.Errorf("a release of %d bytes cannot be kept: %d are the most", buf.Len(), maxEntry)
	}
	var err error
	for range maxPut {
		// The directory is removed when the last entry goes: then it is made again.
		if err = b.put(entryName(r), buf.Bytes()); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return err
}

func (b *Backlog) put(name string, content []byte) error {
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return err
	}
	dir, err := b.lock(b.patience)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	temporary := filepath.Join(b.dir, newEntry)
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		if b.step != nil {
			b.step("del-written")
		}
		err = os.Rename(temporary, filepath.Join(b.dir, name))
	}
	if err != nil {
		_ = os.Remove(temporary)
		return err
	}
	return dir.Sync()
}

// Each hands the releases that are kept to f, the oldest first, and forgets those for which f returns nil; the others stay for the next time. What
// cannot be read is put aside, and told once. The error joins all that went wrong; with a nil error nothing is left of what there was when Each
// was called. One Each of a Backlog runs at a time, others wait for it. f is given releases of one key only.
func (b *Backlog) Each(f func(Release) error) error {
	b.each.Lock()
	defer b.each.Unlock()
	kept, err := b.list()
	if err != nil || len(kept) == 0 {
		return err
	}
	var errs []error
	for _, k := range kept {
		if err := b.carryOut(k.Name(), f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	b.tidy()
	return errors.Join(errs...)
}

// list lists what may be entries, the oldest first.
func (b *Backlog) list() ([]fs.FileInfo, error) {
	all, err := os.ReadDir(b.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the backlog of releases cannot be read: %w", err)
	}
	var kept []fs.FileInfo
	for _, d := range all {
		if d.Name() == newEntry || strings.HasSuffix(d.Name(), asideSuffix) {
			continue
		}
		if info, err := d.Info(); err == nil { // otherwise it is gone
			kept = append(kept, info)
		}
	}
	if len(kept) == 0 {
		b.tidy()
	}
	slices.SortStableFunc(kept, func(a, b fs.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	return kept, nil
}

// carryOut hands an entry to f.
func (b *Backlog) carryOut(name string, f func(Release) error) error {
	path := filepath.Join(b.dir, name)
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return b.replace(path, nil, path+asideSuffix, errors.New("it is a link"))
	}
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // not before it is removed: no other can be taken for it as long as it is open
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return b.replace(path, info, path+asideSuffix, errors.New("it is no file"))
	}
	content, err := io.ReadAll(io.LimitReader(file, maxEntry+1))
	if err != nil {
		return err
	}
	r, err := decodeEntry(name, content)
	if err != nil {
		return b.replace(path, info, path+asideSuffix, err)
	}
	if err := f(r); err != nil {
		return err
	}
	return b.replace(path, info, "", nil)
}

// decodeEntry reads the entry in the file of that name.
func decodeEntry(name string, content []byte) (Release, error) {
	if len(content) > maxEntry {
		return Release{}, fmt.Errorf("it is larger than %d bytes", maxEntry)
	}
	var r Release
	if err := json.Unmarshal(content, &r); err != nil {
		return Release{}, err
	}
	if !r.complete() || entryName(r) != name {
		return Release{}, errors.New("it is not the release that its name says")
	}
	return r, nil
}

// replace removes the file at path or, because of why, gives it the name aside, unless it is not the one that info tells of any more.
func (b *Backlog) replace(path string, info fs.FileInfo, aside string, why error) error {
	dir, err := b.lock(b.patience)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	now, err := os.Lstat(path)
	if err != nil {
		return err
	}
	switch {
	case info != nil && !os.SameFile(now, info):
		return nil
	case why == nil:
		return os.Remove(path)
	}
	if err := os.Rename(path, aside); err != nil {
		return fmt.Errorf("backlog of releases: %s is none (%w), and cannot be put aside: %w", path, why, err)
	}
	return fmt.Errorf("backlog of releases: %s is none: %w; it is now %s, and what it should have released goes with the runtime's next GC", path, why, aside)
}

// tidy removes what a killed plugin has begun, and the directory if it is empty. Where somebody else is at it, so will they.
func (b *Backlog) tidy() {
	dir, err := b.lock(0)
	if err != nil {
		return
	}
	defer func() { _ = dir.Close() }()
	_ = os.Remove(filepath.Join(b.dir, newEntry))
	_ = os.Remove(b.dir)
}

// lock locks the directory until the file that it returns is closed, or gives up after patience. Until then nobody else removes it.
func (b *Backlog) lock(patience time.Duration) (*os.File, error) {
	dir, err := os.Open(b.dir)
	if err != nil {
		return nil, err
	}
	for until := time.Now().Add(patience); ; time.Sleep(lockPause) {
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || !errors.Is(err, unix.EINTR) && (!errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(until)) {
			break
		}
	}
	if err != nil {
		_ = dir.Close()
		return nil, &fs.PathError{Op: "lock", Path: b.dir, Err: err}
	}
	locked, err := dir.Stat()
	if err == nil {
		var now fs.FileInfo
		if now, err = os.Stat(b.dir); err == nil && !os.SameFile(now, locked) {
			err = fs.ErrNotExist // removed before it was locked, and made again
		}
	}
	if err != nil {
		_ = dir.Close()
		return nil, err
	}
	return dir, nil
}

// complete reports whether r releases one attachment: with the zero key it would be a GC.
func (r Release) complete() bool { return r.ContainerID != "" && r.IfName != "" && len(r.Valid) == 0 }

// entryName is the name of the file that keeps r: what one network has lost says nothing of what another has.
func entryName(r Release) string {
	sum := sha256.Sum256([]byte(r.ContainerID + "/" + r.IfName + "/" + r.Network))
	return hex.EncodeToString(sum[:])
}
