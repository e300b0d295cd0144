// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"syscall"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// dump returns all that a store holds.
func dump(t testing.TB, s *Store) map[string]string {
	t.Helper()
	all := map[string]string{}
	if err := s.View(func(tx *Tx) error {
		for _, b := range buckets() {
			if err := tx.Each(b, func(k string, v []byte) error { all[string(b)+"/"+k] = string(v); return nil }); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// lived makes a store that has seen some life: buckets within a page and of many, values of several pages, free pages. It
// returns the file after each of its last transactions, the newest last, and what it holds in the end.
func lived(t testing.TB) (files [][]byte, holds map[string]string) {
	t.Helper()
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 12 {
		if err := s.Update(func(tx *Tx) error {
			var errs []error
			for range 40 {
				errs = append(errs, tx.Put(Allocations, fmt.Sprintf("net:[4026%06d]/eth0", rng.IntN(600)), binary.BigEndian.AppendUint32(nil, rng.Uint32())))
				errs = append(errs, tx.Delete(Allocations, fmt.Sprintf("net:[4026%06d]/eth0", rng.IntN(600))))
			}
			errs = append(errs, tx.Put(IPAM, "ring", bytes.Repeat([]byte{byte(round)}, 3000*(round%5+1))))
			errs = append(errs, tx.Put(Meta, "identity", fmt.Append(nil, "node ", round)))
			return errors.Join(errs...)
		}); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, FileName))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, b)
	}
	holds = dump(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return files, holds
}

var refusal = regexp.MustCompile(`^data directory \S+ is corrupt \([^\n]+\) and kept as (weft\.db\.corrupt-\d{8}T\d{6}Z(-\d+)?); either put a copy there as weft\.db ` +
	`that was made after this node ran last \(an older one gives addresses out twice\), ` +
	`or run weft reset, launch this host as a new node, and run weft forget for the old one on another node$`)

// openDamaged opens a file that is damaged. What was stored is served, all of it, or nothing: then the file is kept as it was,
// and every later start says the same. It reports whether it was refused.
func openDamaged(t *testing.T, what string, b []byte, holds map[string]string) (why string) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, FileName)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir)
	if err == nil {
		if got := dump(t, s); !reflect.DeepEqual(got, holds) {
			t.Errorf("%s: something else is served than was stored", what)
		}
		if err := s.Close(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		return ""
	}
	m := refusal.FindStringSubmatch(err.Error())
	if m == nil || !errors.Is(err, ErrCorrupt) {
		t.Errorf("%s: %v", what, err)
		return err.Error()
	}
	kept := filepath.Join(dir, m[1])
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: the file is still there: %v", what, err)
	}
	if after, err := os.ReadFile(filepath.Clean(kept)); err != nil || !bytes.Equal(after, b) {
		t.Errorf("%s: the damaged file was not kept as it was: %v", what, err)
	}
	if st, err := os.Stat(kept); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%s: kept as %v, %v", what, st, err)
	}
	if _, again := Open(dir); again == nil || again.Error() != err.Error() {
		t.Errorf("%s: the second start says %v\nthe first said %v", what, again, err)
	}
	return err.Error()
}

func TestDamage(t *testing.T) {
	files, holds := lived(t)
	good, page := files[len(files)-1], os.Getpagesize()
	if why := openDamaged(t, "no damage", good, holds); why != "" {
		t.Fatal(why)
	}
	for what, c := range map[string]struct {
		b   []byte
		why string
	}{
		"text":              {[]byte("this is no database"), "weft.db is only 19 bytes long"},
		"longer text":       {bytes.Repeat([]byte("this is no database "), 2000), "its first header page is damaged"},
		"zeros":             {make([]byte, len(good)), "its first header page is damaged"},
		"cut":               {good[:len(good)/3], "pages of 4096 bytes"},
		"cut within a page": {good[:page+20], "it ends too early"},
		"one page":          {good[:page], "it ends too early"},
		"second header":     {with(good, page+headerBytes+50, 1), "its second header page is damaged"},
		"value":             {with(good, bytes.Index(good, []byte("node 11")), 1), `the checksum of "identity" in "meta" is wrong`},
		"key":               {with(good, bytes.Index(good, []byte("identitynode 11")), 1), `the checksum of "hdentity" in "meta" is wrong`},
	} {
		if why := openDamaged(t, what, c.b, holds); !strings.Contains(why, c.why) {
			t.Errorf("%s: %s\nwant %s", what, why, c.why)
		}
	}
}

// with returns b with a bit turned over.
func with(b []byte, at int, bit byte) []byte {
	b = bytes.Clone(b)
	b[at] ^= bit
	return b
}

// What disks do: bits and bytes that change, a page that is lost, that is of another place or of an earlier time, an end
// that is missing.
func TestDamageAtRandom(t *testing.T) {
	files, holds := lived(t)
	good, page := files[len(files)-1], os.Getpagesize()
	rng := rand.New(rand.NewPCG(3, 4))
	refused := map[string]int{}
	for n := range 800 {
		b := bytes.Clone(good)
		at := rng.IntN(len(b))
		from := at / page * page
		var what string
		switch n % 8 {
		case 0:
			what, b[at] = "bit", b[at]^1<<rng.IntN(8)
		case 1: // where the structure is
			at = from + rng.IntN(64)
			what, b[at] = "bit of a page's head", b[at]^1<<rng.IntN(8)
		case 2:
			what = "bytes"
			for range 1 + rng.IntN(20) {
				b[rng.IntN(len(b))] = byte(rng.Uint32())
			}
		case 3:
			what, b = "end", b[:at]
		case 4:
			what = "zeroed page"
			clear(b[from : from+page])
		case 5:
			what = "erased sector"
			at = at / 512 * 512
			copy(b[at:], bytes.Repeat([]byte{0xff}, 512))
		case 6:
			what = "page of another place"
			other := rng.IntN(len(b)/page) * page
			copy(b[from:from+page], good[other:other+page])
		case 7:
			// But for the header pages: with one that is two transactions old the file is the whole state of one transaction
			// before, which is sound. No look at the file can tell that from what it ought to be.
			what = "page of an earlier time"
			from = max(from, 2*page)
			if old := files[rng.IntN(len(files)-1)]; from+page <= len(old) {
				copy(b[from:from+page], old[from:from+page])
			}
		}
		if openDamaged(t, fmt.Sprintf("%s at %d of round %d", what, at, n), b, holds) != "" {
			refused[what]++
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("refused: %v", refused)
	if len(refused) != 8 {
		t.Errorf("not every kind of damage was ever noticed: %v", refused)
	}
}

// A file that passes is one that bbolt can read; the fuzzer patches a sound one at several places.
func FuzzInspect(f *testing.F) {
	files, _ := lived(f)
	good, dir := files[len(files)-1], f.TempDir()
	f.Add([]byte{})
	f.Add([]byte{0, 3, 0, 10, 7})                 // page 3, offset 10: the number of elements
	f.Add([]byte{0, 3, 0, 8, 1, 0, 4, 0, 12, 1})  // a branch instead of a leaf, a page more
	f.Add([]byte{0, 0, 0, 16, 0, 0, 1, 0, 16, 0}) // both headers
	f.Fuzz(func(t *testing.T, patches []byte) {
		b := bytes.Clone(good)
		for ; len(patches) >= 5; patches = patches[5:] {
			at := int(binary.BigEndian.Uint16(patches))*os.Getpagesize() + int(binary.BigEndian.Uint16(patches[2:]))
			b[at%len(b)] ^= patches[4]
		}
		if _, err := inspect(bytes.NewReader(b), int64(len(b)), Schema); err != nil {
			return
		}
		if err := os.WriteFile(filepath.Join(dir, FileName), b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		dump(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// brokenDisk cannot be read from some place on.
type brokenDisk struct {
	*bytes.Reader
	good int64
}

func (d brokenDisk) ReadAt(b []byte, at int64) (int, error) {
	if at+int64(len(b)) > d.good {
		return 0, &os.PathError{Op: "read", Path: FileName, Err: syscall.EIO}
	}
	return d.Reader.ReadAt(b, at)
}

// What cannot be read is not called damaged: it may be there again after the disk was seen to.
func TestUnreadable(t *testing.T) {
	files, _ := lived(t)
	b := files[0]
	for good := range int64(len(b) / 512) {
		if _, err := inspect(brokenDisk{bytes.NewReader(b), 512 * good}, int64(len(b)), Schema); err != nil && !errors.Is(err, errRead) {
			t.Fatalf("%d sectors: %v", good, err)
		} else if good == 0 && err.Error() != "it cannot be read: input/output error" {
			t.Error(err)
		}
	}
	s := &Store{dir: "/data"}
	want := "data directory /data: weft.db: it cannot be read: input/output error; see what is wrong with the disk and try again"
	if err := s.unsound(fmt.Errorf("%w: %w", errRead, syscall.EIO)); err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

// A copy that is put there is used, whatever was kept aside before; without one there is no start.
func TestWayOut(t *testing.T) {
	files, holds := lived(t)
	good, dir := files[len(files)-1], t.TempDir()
	path := filepath.Join(dir, FileName)
	for range 3 { // within a second
		if err := os.WriteFile(path, good[:5000], 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
	}
	if kept := Files(dir); len(kept) != 3 {
		t.Errorf("kept: %v", kept)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); !errors.Is(err, ErrCorrupt) {
		t.Errorf("an empty file was made a new node: %v", err)
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	if !reflect.DeepEqual(dump(t, s), holds) {
		t.Error("what was put there is not what is served")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := Files(dir); len(got) != 4 || got[0] != path {
		t.Errorf("files: %v", got)
	}
}

// Where nothing can be renamed the file stays where it is, and is refused all the same.
func TestCannotBeSetAside(t *testing.T) {
	s := &Store{dir: t.TempDir()} // there is nothing to rename
	err := s.unsound(errors.New("page 7 is damaged"))
	if want := "(page 7 is damaged) and kept as weft.db, as it cannot be renamed (no such file or directory); either put"; !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
}

// What is no state of a node is not Weft's to move.
func TestForeignFileIsRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, FileName)
	want := "data directory " + dir + " has a weft.db that is no state of a node: it was not written by weft; choose another with --data-dir"
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(func(tx *bolt.Tx) error { _, err := tx.CreateBucket([]byte("theirs")); return err }); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("it was moved: %v", err)
	}
}

// The heads of pages carry no checksum: each bit of them, and of the first elements, is turned over on all pages that are in use.
func TestEveryBitOfPageHeads(t *testing.T) {
	files, holds := lived(t)
	good, page := files[len(files)-1], os.Getpagesize()
	f, refused := forge(good), 0
	used := append(append(f.find(t, flagLeaf), f.find(t, flagBranch)...), 0, 1, f.find(t, flagFreelist)[0], f.root(t))
	for _, id := range used {
		from := id * page
		for bit := range 8 * (headerBytes + 2*elementBytes) {
			at := from + bit/8
			if from < 2*page {
				at += headerBytes // the rest of a header page's head is not looked at by anybody
			}
			b := with(good, at, 1<<(bit%8))
			if _, err := inspect(bytes.NewReader(b), int64(len(b)), Schema); err != nil {
				if refused++; errors.Is(err, errForeign) {
					t.Errorf("bit %d of page %d: %v", bit, from/page, err)
				}
				continue
			}
			openDamaged(t, fmt.Sprintf("bit %d of page %d", bit, from/page), b, holds)
			if t.Failed() {
				return
			}
		}
	}
	t.Logf("refused %d", refused)
}

// forged is a file whose pages are changed on purpose.
type forged struct {
	b    []byte
	size int
}

func forge(b []byte) forged { return forged{bytes.Clone(b), os.Getpagesize()} }

func (f forged) page(id int) []byte { return f.b[id*f.size:] }

func (f forged) root(t *testing.T) int {
	t.Helper()
	p := &pages{r: bytes.NewReader(f.b), seen: map[uint64]bool{}}
	root, _, err := p.headers(int64(len(f.b)))
	if err != nil {
		t.Fatal(err)
	}
	return int(root)
}

// find returns the pages of a kind that are in use, without the root.
func (f forged) find(t *testing.T, kind uint16) (ids []int) {
	t.Helper()
	p := &pages{r: bytes.NewReader(f.b), seen: map[uint64]bool{}}
	root, free, err := p.headers(int64(len(f.b)))
	if err != nil {
		t.Fatal(err)
	}
	if kind == flagFreelist {
		return []int{int(free)}
	}
	if err := p.tree(root, nil, nil, 0, func(e element) error { return p.bucket(e.value, &bucketSum{name: Bucket(e.key)}) }); err != nil {
		t.Fatal(err)
	}
	for id := range len(f.b) / f.size {
		if head := f.page(id); p.seen[uint64(id)] && u64(head) == uint64(id) && u16(head[8:]) == uint64(kind) && id != int(root) {
			ids = append(ids, id)
		}
	}
	return ids
}

// What all checksums of values agree with, and is wrong nevertheless.
func TestForgedPages(t *testing.T) {
	files, holds := lived(t)
	good := files[len(files)-1]
	order := binary.NativeEndian
	check := func(what string, f forged, want string) {
		t.Helper()
		if why := openDamaged(t, what, f.b, holds); !strings.Contains(why, want) {
			t.Errorf("%s: %q, want %q", what, why, want)
		}
	}
	f := forge(good)
	leaves, branches := f.find(t, flagLeaf), f.find(t, flagBranch)
	if len(leaves) < 3 || len(branches) < 1 {
		t.Fatalf("leaves %v, branches %v", leaves, branches)
	}
	for _, id := range leaves {
		f := forge(good)
		if n := order.Uint16(f.page(id)[10:]); n > 1 {
			order.PutUint16(f.page(id)[10:], n-1)
			check("the last value of a page is gone", f, "are missing, or older than the others")
		}
		f = forge(good)
		if n := order.Uint16(f.page(id)[10:]); n > 1 {
			// The first two elements change places. Their offsets count from where they stand.
			one, two := f.page(id)[headerBytes:headerBytes+elementBytes], f.page(id)[headerBytes+elementBytes:headerBytes+2*elementBytes]
			for i := range one {
				one[i], two[i] = two[i], one[i]
			}
			order.PutUint32(one[4:], order.Uint32(one[4:])+elementBytes)
			order.PutUint32(two[4:], order.Uint32(two[4:])-elementBytes)
			check("keys out of order", f, fmt.Sprintf("page %d is damaged", id))
		}
	}
	for _, id := range branches {
		f := forge(good)
		first, second := f.page(id)[headerBytes+8:], f.page(id)[headerBytes+elementBytes+8:]
		copy(second[:8], first[:8])
		if why := openDamaged(t, "one page for another", f.b, holds); why == "" {
			t.Error("one page for another: accepted")
		}
		f = forge(good)
		order.PutUint64(f.page(id)[headerBytes+8:], uint64(id))
		check("a page below itself", f, fmt.Sprintf("page %d is used twice", id))
	}
	f = forge(good)
	bucket := func(name string) []byte { return f.b[bytes.LastIndex(f.b, []byte(name))+len(name):] }
	for id := range len(f.b) / f.size { // wherever the root is, or was
		p := f.page(id)[:f.size]
		if from, to := bytes.Index(p, []byte("allocations")), bytes.Index(p, []byte("ipam")); from >= 0 && to >= 0 {
			copy(p[to+len("ipam"):][:8], p[from+len("allocations"):][:8])
		}
	}
	if u64(bucket("allocations")) != u64(bucket("ipam")) {
		t.Fatal("the buckets were not found")
	}
	check("one bucket for another", f, "is used twice")
	f = forge(good)
	for id := range len(f.b) / f.size {
		if p := f.page(id)[:f.size]; bytes.Contains(p, []byte("allocations")) && bytes.Contains(p, []byte("ipam")) {
			order.PutUint16(p[10:], 0)
		}
	}
	check("no bucket at all", f, "its buckets are gone")
	list := f.find(t, flagFreelist)[0]
	for _, used := range append(append(leaves, branches...), 0, 1, list, len(good)) {
		f := forge(good)
		order.PutUint64(f.page(list)[headerBytes:], uint64(used))
		check("a page that is in use is free", f, fmt.Sprintf("the list of free pages is damaged: page %d", used))
	}
}
