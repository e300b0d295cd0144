// SPDX-License-Identifier: Apache-2.0

// Package store keeps a node's state in one bbolt file below its data
// directory.
//
// Invariants: every value carries a checksum, verified at Open; an update is one
// transaction, on disk (fsync) when Update returns nil and absent when it returns
// an error; a file of another schema, of another program or a damaged one is
// refused at Open and left as it is; one process at a time has a data directory
// open, which a lock on the directory itself sees to before anything in it is
// looked at. What keys and values mean is the caller's business. internal/node imports it, and nothing else.
package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/weftnet/weft/internal/dirs"
)

// Schema is the version of the buckets' meaning that this program writes.
const Schema = 1

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
)

func buckets() []Bucket { return []Bucket{Meta, IPAM, Allocations, Workloads, Records, Host, Clients} }

// Errors that callers tell apart; each comes wrapped with path and remedy.
var (
	ErrInUse   = errors.New("is in use by another process")
	ErrCorrupt = errors.New("is corrupt")
	ErrSchema  = errors.New("was written by a newer version")
)

// Store is an open data directory. It is safe for concurrent use.
type Store struct {
	db      *bolt.DB
	dir     string
	lock    *os.File // the directory
	created bool
	made    dirs.Made
}

// Exists tells whether dir holds a node's state.
func Exists(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, FileName))
	return err == nil
}

// lockPatience is how long Open waits for a process that is just ending.
const lockPatience = time.Second

// Open opens or makes the data directory dir (mode 0700) and its file (0600).
func Open(dir string) (*Store, error) {
	s := &Store{dir: dir}
	var err error
	if s.made, err = dirs.Make(dir); err != nil {
		return nil, fmt.Errorf("data %w; choose another with --data-dir", err)
	}
	if err := s.take(); err != nil { // nothing in it may be touched
		return nil, err
	}
	path := filepath.Join(dir, FileName)
	st, err := os.Stat(path)
	// An empty file is what a process left that was killed when it had just made it.
	s.created = errors.Is(err, fs.ErrNotExist) || err == nil && st.Size() == 0
	if err = s.open(path); err == nil {
		return s, nil
	}
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		err = s.inUse()
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		err = fmt.Errorf("data directory %s is not writable: %w; make it writable or choose another with --data-dir", dir, cause(err))
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		err = fmt.Errorf("data directory %s is full: %w; free some space there and try again", dir, cause(err))
	case errors.Is(err, ErrSchema):
		err = fmt.Errorf("data directory %s %w; run that version of weft again, or weft reset to start as a new node", dir, err)
	default:
		err = fmt.Errorf("data directory %s %w (%w); restore %s from a backup, or run weft reset to start as a new node", dir, ErrCorrupt, err, FileName)
	}
	if s.created {
		s.remove()
	}
	_ = s.lock.Close()
	return nil, err
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

func (s *Store) open(path string) (err error) {
	// bbolt answers some kinds of damage with a panic or a fault on its
	// memory map; both are turned into an error here, once, at the start.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	var file *os.File
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("reading it: %v", r)
			if file != nil {
				// bbolt's memory map stays, and would hold the lock.
				_ = syscall.Flock(int(file.Fd()), syscall.LOCK_UN)
				_ = file.Close()
			}
		}
	}()
	if st, serr := os.Stat(path); serr == nil && st.Size() < 4*int64(os.Getpagesize()) && !s.created {
		return fmt.Errorf("%s is only %d bytes long", FileName, st.Size())
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout:      time.Second,
		FreelistType: bolt.FreelistMapType,
		OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			f, ferr := os.OpenFile(filepath.Clean(name), flag, mode)
			file = f
			return f, ferr
		},
	})
	if err != nil {
		return err
	}
	if err = check(db); err == nil {
		err = prepare(db, s.created)
	}
	if err != nil {
		_ = db.Close()
		return err
	}
	s.db = db
	return nil
}

// check reads every value of the file, which is small (kilobytes to a few
// megabytes), and verifies its checksum. It does not use bbolt's own Check,
// whose goroutine would take the process down with it at the first fault.
func check(db *bolt.DB) error {
	return db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
			return b.ForEach(func(k, v []byte) error {
				if _, ok := unseal(Bucket(name), string(k), v); !ok {
					return fmt.Errorf("the checksum of %q in %q is wrong", k, name)
				}
				return nil
			})
		})
	})
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

func prepare(db *bolt.DB, created bool) error {
	return db.Update(func(tx *bolt.Tx) error {
		if !created {
			meta := tx.Bucket([]byte(Meta))
			first, _ := tx.Cursor().First()
			if meta == nil && first == nil { // killed before it was prepared
				return makeBuckets(tx)
			}
			if meta == nil {
				return errors.New("it was not written by weft")
			}
			v, ok := unseal(Meta, "schema", meta.Get([]byte("schema")))
			if !ok || len(v) != 4 {
				return errors.New("its schema version is missing")
			}
			if n := binary.BigEndian.Uint32(v); n > Schema {
				return fmt.Errorf("%w (schema %d, this one knows %d)", ErrSchema, n, Schema)
			}
		}
		return makeBuckets(tx)
	})
}

func makeBuckets(tx *bolt.Tx) error {
	for _, b := range buckets() {
		if _, err := tx.CreateBucketIfNotExists([]byte(b)); err != nil {
			return err
		}
	}
	return (&Tx{tx}).Put(Meta, "schema", binary.BigEndian.AppendUint32(nil, Schema))
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

// Update runs f in a transaction of its own. When it returns nil, the changes
// are on disk; when it returns an error, none of them ever will be.
func (s *Store) Update(f func(*Tx) error) error {
	err := s.db.Update(func(tx *bolt.Tx) error { return f(&Tx{tx}) })
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("saving to %s: %w; nothing was changed: free some space there and try again", s.dir, cause(err))
	default:
		return fmt.Errorf("saving to %s: %w", s.dir, err)
	}
}

// Get returns a copy of the value of key, nil if there is none.
func (t *Tx) Get(b Bucket, key string) []byte {
	v, ok := unseal(b, key, t.tx.Bucket([]byte(b)).Get([]byte(key)))
	if !ok {
		return nil
	}
	return append([]byte{}, v...)
}

// Put sets the value of key; both are copied.
func (t *Tx) Put(b Bucket, key string, value []byte) error {
	return t.tx.Bucket([]byte(b)).Put([]byte(key), seal(b, key, value))
}

// Delete removes key; removing one that is not there is no error.
func (t *Tx) Delete(b Bucket, key string) error {
	return t.tx.Bucket([]byte(b)).Delete([]byte(key))
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
		return pe.Err
	}
	return err
}
