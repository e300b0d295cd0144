// SPDX-License-Identifier: Apache-2.0

// Package store keeps a node's state in one bbolt file below its data
// directory.
//
// Invariants: every value carries a checksum, and every bucket a digest of what is in it; an update is one transaction, on
// disk (fsync) when Update returns nil; one process at a time has a data directory open, which a lock on the directory
// itself sees to before anything in it is looked at. What keys and values mean is the caller's business. internal/node
// imports it, and nothing else.
//
// # What Open does with a file
//
// It reads all of it and proves it sound before bbolt gets to see it (inspect), so damage of any kind costs neither a panic
// nor a hang, and what is served is what was stored. Then:
//
//   - A file whose contents the caller refuses is left as it is, and of its schema.
//   - A file of an earlier schema is brought up to date, one transaction for each step. The old file is kept aside as a copy
//     first, as weft.db.schema-N.
//   - A file of a later schema, or of another program, is refused and left as it is.
//   - A damaged file is renamed to weft.db.corrupt-TIME and refused. So is every later start, as long as no weft.db is put
//     there: to begin with an empty one would make this host another node, while the addresses that its workloads have
//     still belong to the one that was. `weft reset` does that knowingly.
package store

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/weftnet/weft/internal/dirs"
)

// Schema is the version of the buckets and of their meaning that this program writes. With a bucket more, or another
// meaning of one, it grows by one, and the table of migrations gets a line.
const Schema = 3

// FileName is the name of the file within the data directory.
const FileName = "weft.db"

// Bucket names one map from keys to values.
type Bucket string

// The buckets that exist.
const (
	Meta        Bucket = "meta"        // identity, universe, and what the node is
	IPAM        Bucket = "ipam"        // the ring and what the allocator knows besides
	Allocations Bucket = "allocations" // owner -> allocation
	Workloads   Bucket = "workloads"   // workload ID -> workload
	Records     Bucket = "records"     // NodeID -> the last known node record
	Host        Bucket = "host"        // what was changed on the host, for reset
	Clients     Bucket = "clients"     // name -> WireGuard client
	Events      Bucket = "events"      // what has happened, and what was said of whom
)

func buckets() []Bucket {
	return []Bucket{Meta, IPAM, Allocations, Workloads, Records, Host, Clients, Events}
}

// Errors that callers tell apart; each comes wrapped with path and remedy.
var (
	ErrInUse   = errors.New("is in use by another process")
	ErrCorrupt = errors.New("is corrupt")
	ErrSchema  = errors.New("was written by a newer version")
)

// keySchema is the key, in Meta, of the schema's version: 4 bytes, big-endian.
const keySchema = "schema"

// Store is an open data directory. It is safe for concurrent use.
type Store struct {
	db      *bolt.DB
	dir     string
	lock    *os.File // the directory
	created bool
	made    dirs.Made
	upgrade Upgrade
}

// Exists tells whether dir holds a node's state.
func Exists(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, FileName))
	return err == nil
}

// lockPatience is how long Open waits for a process that is just ending.
const lockPatience = time.Second

// A Check tells why a file that holds what the transaction shows cannot be used, to follow "data directory DIR "; nil if it
// can be. The file may be of any schema up to [Schema], as it was before an upgrade, so buckets may be missing; those are
// empty to Get. It must not change anything.
type Check func(*Tx) error

// Open opens or makes the data directory dir (mode 0700) and its file (0600). A file that one of checks refuses is not
// changed, nor upgraded; a new one is not checked.
func Open(dir string, checks ...Check) (*Store, error) {
	return openWith(dir, plan{Schema, migrations(), checks})
}

func openWith(dir string, p plan) (*Store, error) {
	s := &Store{dir: dir}
	var err error
	if s.made, err = dirs.Make(dir); err != nil {
		return nil, fmt.Errorf("data %w; choose another with --data-dir", err)
	}
	if err := s.take(); err != nil { // nothing in it may be touched
		return nil, err
	}
	if err = s.open(filepath.Join(dir, FileName), p); err == nil {
		return s, nil
	}
	if s.created {
		s.remove()
	}
	_ = s.lock.Close()
	return nil, err
}

// open opens the file, which nobody else does: the directory is locked.
func (s *Store) open(path string, p plan) error {
	_, err := os.Stat(path)
	unborn := err == nil && blank(path)
	s.created = errors.Is(err, fs.ErrNotExist) || unborn
	var schema uint32
	if s.created {
		if kept := lastCorrupt(s.dir); kept != "" {
			s.created = false
			_, err := look(filepath.Join(s.dir, kept), p.schema)
			return s.corrupt(cmp.Or(err, errors.New("an earlier start found it so")), kept)
		}
		if unborn {
			if err := os.Truncate(path, 0); err != nil { // bbolt makes a file of an empty one only
				return s.refused(err)
			}
		}
	} else if schema, err = look(path, p.schema); err != nil {
		return s.unsound(err)
	} else if schema > p.schema {
		return fmt.Errorf("data directory %s %w (schema %d, this one knows %d); run that version of weft again, or weft reset to start as a new node",
			s.dir, ErrSchema, schema, p.schema)
	}
	if err = s.database(path); err != nil {
		return s.refused(err)
	}
	if err = s.prepare(p, schema); err != nil {
		_ = s.db.Close()
	}
	return err
}

// prepare makes what the file holds, which is of a schema, or new if that is 0, what this program works with.
func (s *Store) prepare(p plan, schema uint32) error {
	if schema > 0 {
		for _, check := range p.checks {
			if err := s.View(check); err != nil {
				return fmt.Errorf("data directory %s %w", s.dir, err)
			}
		}
	}
	if schema > 0 && schema < p.schema {
		kept, err := keepCopy(s.dir, schema)
		if err != nil {
			return fmt.Errorf("data directory %s has to be upgraded from schema %d to %d, and its file cannot be copied first: %w; free some space there and try again",
				s.dir, schema, p.schema, cause(err))
		}
		s.upgrade = Upgrade{From: schema, To: p.schema, Kept: kept}
	}
	if err := p.prepare(s.db, schema); err != nil {
		return s.refused(err)
	}
	return nil
}

// look inspects a file.
func look(path string, newest uint32) (schema uint32, err error) {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errRead, err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errRead, err)
	}
	if !st.Mode().IsRegular() {
		return 0, errForeign
	}
	return inspect(f, st.Size(), newest)
}

// blank tells whether nothing was ever stored in a file, because the power went, or the process was killed, while bbolt made
// it: it is empty, or no longer than what bbolt makes first, and all zero. Whatever is committed makes it longer.
func blank(path string) bool {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() || st.Size() > int64(firstPages*os.Getpagesize()) {
		return false
	}
	b := make([]byte, st.Size())
	_, err = io.ReadFull(f, b)
	return err == nil && !slices.ContainsFunc(b, func(c byte) bool { return c != 0 })
}

// unsound says why a file that does not pass cannot be used, and keeps a damaged one aside.
func (s *Store) unsound(err error) error {
	if errors.Is(err, errForeign) || errors.Is(err, errRead) {
		return s.refused(err)
	}
	kept, kerr := setAside(s.dir)
	if kerr != nil {
		kept = fmt.Sprintf("%s, as it cannot be renamed (%v)", FileName, cause(kerr))
	}
	return s.corrupt(err, kept)
}

// refused says why a file cannot be used.
func (s *Store) refused(err error) error {
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return s.inUse()
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("data directory %s is not writable: %w; make it writable or choose another with --data-dir", s.dir, cause(err))
	case noSpace(err):
		return fmt.Errorf("data directory %s is full: %w; free some space there and try again", s.dir, cause(err))
	case errors.Is(err, errForeign):
		return fmt.Errorf("data directory %s has a %s that is no state of a node: %w; choose another with --data-dir", s.dir, FileName, err)
	case errors.Is(err, errMigration):
		return fmt.Errorf("data directory %s: %w; run the earlier version of weft again, or weft reset to start as a new node", s.dir, err)
	case errors.Is(err, errRead):
		return fmt.Errorf("data directory %s: %s: %w; see what is wrong with the disk and try again", s.dir, FileName, err)
	}
	return fmt.Errorf("data directory %s cannot be opened: %w; see what is wrong there and try again", s.dir, cause(err))
}

// corrupt tells the ways out. A copy of the file that is older than what the node did last is none: what was given to other
// nodes since would still be this one's in it.
func (s *Store) corrupt(err error, kept string) error {
	return fmt.Errorf("data directory %s %w (%w) and kept as %s; either put a copy there as %s that was made after this node ran last (an older one gives addresses out twice), "+
		"or run weft reset, launch this host as a new node, and run weft forget for the old one on another node",
		s.dir, ErrCorrupt, err, kept, FileName)
}

// noSpace tells whether the disk, or a quota on it, is full.
func noSpace(err error) bool {
	return err != nil && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) ||
		// bbolt does not wrap the error of growing its file.
		strings.Contains(err.Error(), syscall.ENOSPC.Error()) || strings.Contains(err.Error(), syscall.EDQUOT.Error()))
}

// take locks the directory.
func (s *Store) take() error {
	d, err := os.Open(s.dir)
	if err != nil {
		return fmt.Errorf("data directory %s cannot be opened: %w; choose another with --data-dir", s.dir, cause(err))
	}
	for end := time.Now().Add(lockPatience); ; time.Sleep(lockPatience / 20) {
		if err = syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
			s.lock = d
			return nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) || time.Now().After(end) {
			_ = d.Close()
			return s.inUse()
		}
	}
}

func (s *Store) inUse() error {
	return fmt.Errorf("data directory %s %w; stop it (weft stop) or choose another with --data-dir", s.dir, ErrInUse)
}

// database lets bbolt open the file, which is sound.
func (s *Store) database(path string) (err error) {
	// A disk that fails now answers with a fault on bbolt's memory map.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	var file *os.File
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errRead, r)
			if file != nil {
				// bbolt's memory map stays, and would hold the lock.
				_ = syscall.Flock(int(file.Fd()), syscall.LOCK_UN)
				_ = file.Close()
			}
		}
	}()
	s.db, err = bolt.Open(path, 0o600, &bolt.Options{
		Timeout:      time.Second,
		FreelistType: bolt.FreelistMapType,
		OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			f, ferr := os.OpenFile(filepath.Clean(name), flag, mode)
			file = f
			return f, ferr
		},
	})
	return err
}

// seal appends the CRC-32C of bucket, key and value to the value: bbolt's pages
// carry no checksum of their own.
func seal(b Bucket, key string, value []byte) []byte {
	out := make([]byte, 0, len(value)+4)
	out = append(out, value...)
	return binary.BigEndian.AppendUint32(out, sum(b, key, value))
}

// unseal returns the value without its checksum, aliasing sealed.
func unseal(b Bucket, key string, sealed []byte) ([]byte, bool) {
	n := len(sealed) - 4
	if n < 0 {
		return nil, false
	}
	value := sealed[:n]
	return value, binary.BigEndian.Uint32(sealed[n:]) == sum(b, key, value)
}

func sum(b Bucket, key string, value []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	crc := crc32.Update(0, table, []byte(b+"/"))
	crc = crc32.Update(crc, table, []byte(key+"/"))
	return crc32.Update(crc, table, value)
}

// weight is what a sealed value adds to its bucket's digest, which is the sum of the weights of all its entries modulo
// 2^64, and is kept where bbolt has the bucket's sequence number: beside the page that the bucket begins with. So a page
// that was lost, or is that of an earlier transaction, shows. It is splitmix64 of the checksum; 0 if there is no value.
func weight(sealed []byte) uint64 {
	n := len(sealed) - 4
	if n < 0 {
		return 0
	}
	z := (uint64(binary.BigEndian.Uint32(sealed[n:])) + 1) * 0x9E3779B97F4A7C15
	z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
	z = (z ^ z>>27) * 0x94D049BB133111EB
	return z ^ z>>31
}

// Dir is the data directory.
func (s *Store) Dir() string { return s.dir }

// Close releases the data directory.
func (s *Store) Close() error {
	err := s.db.Close()
	if err = errors.Join(err, s.lock.Close()); err != nil {
		return fmt.Errorf("closing data directory %s: %w", s.dir, err)
	}
	return nil
}

// Discard closes the store and removes its file, and the directories that Open
// made for it: a start that was refused leaves nothing behind.
func (s *Store) Discard() error {
	err := s.db.Close()
	s.remove()
	if err = errors.Join(err, s.lock.Close()); err != nil {
		return fmt.Errorf("removing data directory %s: %w", s.dir, err)
	}
	return nil
}

func (s *Store) remove() {
	_ = os.Remove(filepath.Join(s.dir, FileName))
	s.made.Remove()
}

// Tx is one transaction; it is valid only within the function it is given to.
type Tx struct{ tx *bolt.Tx }

// View runs f on a consistent state.
func (s *Store) View(f func(*Tx) error) error {
	return s.db.View(func(tx *bolt.Tx) error { return f(&Tx{tx}) })
}

// Update runs f in a transaction of its own. When it returns nil, the changes are on disk; after an error of f, or of a
// disk that is full, none of them ever will be; after another one of the disk it is not known, but it is all or none.
func (s *Store) Update(f func(*Tx) error) error {
	err := s.db.Update(func(tx *bolt.Tx) error { return f(&Tx{tx}) })
	switch {
	case err == nil:
		return nil
	case noSpace(err):
		return fmt.Errorf("saving to %s: the disk is full (%w); nothing was changed: free some space there and try again", s.dir, cause(err))
	default:
		return fmt.Errorf("saving to %s: %w", s.dir, err)
	}
}

// Commits is how often something was written since the file was made, 0 if that cannot be told.
func (s *Store) Commits() (n int) {
	_ = s.db.View(func(tx *bolt.Tx) error {
		n = tx.ID()
		return nil
	})
	return n
}

// Get returns a copy of the value of key, nil if there is none.
func (t *Tx) Get(b Bucket, key string) []byte {
	bucket := t.tx.Bucket([]byte(b))
	if bucket == nil { // of an earlier schema
		return nil
	}
	v, ok := unseal(b, key, bucket.Get([]byte(key)))
	if !ok {
		return nil
	}
	return append([]byte{}, v...)
}

// Put sets the value of key; both are copied.
func (t *Tx) Put(b Bucket, key string, value []byte) error {
	bucket, sealed := t.tx.Bucket([]byte(b)), seal(b, key, value)
	digest := bucket.Sequence() - weight(bucket.Get([]byte(key))) + weight(sealed)
	if err := bucket.Put([]byte(key), sealed); err != nil {
		return err
	}
	return bucket.SetSequence(digest)
}

// Delete removes key; removing one that is not there is no error.
func (t *Tx) Delete(b Bucket, key string) error {
	bucket := t.tx.Bucket([]byte(b))
	digest := bucket.Sequence() - weight(bucket.Get([]byte(key)))
	if err := bucket.Delete([]byte(key)); err != nil {
		return err
	}
	return bucket.SetSequence(digest)
}

// Clear removes all keys of b.
func (t *Tx) Clear(b Bucket) error {
	if err := t.tx.DeleteBucket([]byte(b)); err != nil {
		return err
	}
	_, err := t.tx.CreateBucket([]byte(b))
	return err
}

// Each calls f with every key of b in order and a copy of its value.
func (t *Tx) Each(b Bucket, f func(key string, value []byte) error) error {
	return t.tx.Bucket([]byte(b)).ForEach(func(k, v []byte) error {
		value, ok := unseal(b, string(k), v)
		if !ok {
			return fmt.Errorf("%w: the checksum of %q in %q is wrong", ErrCorrupt, k, b)
		}
		return f(string(k), append([]byte{}, value...))
	})
}

// cause strips the operation and path that the os package adds, as the
// messages here name the path themselves.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	var se *os.SyscallError
	if errors.As(err, &se) {
		err = se.Err
	}
	return err
}
