// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"slices"
)

// What bbolt's pages look like (go.etcd.io/bbolt, internal/common): all numbers in the byte order of the host that wrote
// them, offsets in bytes.
const (
	boltMagic   = 0xED0CDAED
	boltVersion = 2

	headerBytes  = 16 // page: id 8, flags 2, count 2, overflow 4
	elementBytes = 16 // branch: pos 4, key size 4, page 8; leaf: flags 4, pos 4, key size 4, value size 4
	metaBytes    = 64 // magic 4, version 4, page size 4, flags 4, root 8, sequence 8, freelist 8, high 8, transaction 8, checksum 8
	bucketBytes  = 16 // root 8 (0: the page follows), sequence 8

	flagBranch, flagLeaf, flagFreelist = 0x01, 0x02, 0x10

	flagBucket = 0x01       // of a leaf element
	noFreelist = ^uint64(0) // the list is not kept
	maxKey     = 32768      // bytes
	firstPages = 4          // that a file begins with: two headers, the list of free pages, the root
	maxDepth   = 32         // of a tree; with two keys on a page that is more than any file has
)

// Errors of inspect; all others say what is damaged.
var (
	errForeign = errors.New("it was not written by weft")
	errRead    = errors.New("it cannot be read")
)

// inspect reads a whole file of size bytes and proves it sound, without bbolt, which answers damage with panics, faults on
// its memory map or loops: both header pages, every page that is in use, the list of free ones, the order of the keys,
// the checksum of every value, and that no value is missing. It returns the schema; 0 if nothing was ever stored.
// What the buckets of a schema above newest hold is not judged. Memory and time are bounded by the file's size.
//
// A header page that is damaged is one of the two that bbolt has, and bbolt would go on with the other, which is the
// state of one transaction before: an address that was answered for would be forgotten. A crash does not tear a header: it
// is 80 bytes of one sector.
func inspect(r io.ReaderAt, size int64, newest uint32) (schema uint32, err error) {
	p := &pages{r: r, seen: map[uint64]bool{}}
	root, free, err := p.headers(size)
	if err != nil {
		return 0, err
	}
	all := map[Bucket]*bucketSum{}
	if err := p.tree(root, nil, nil, 0, func(e element) error {
		if e.flags != flagBucket {
			return fmt.Errorf("the entry %.40q beside the buckets", e.key)
		}
		s := &bucketSum{name: Bucket(e.key)}
		all[s.name] = s
		return p.bucket(e.value, s)
	}); err != nil {
		return 0, err
	}
	if err := p.freelist(free); err != nil {
		return 0, err
	}
	switch {
	case len(all) > 0:
		return judge(all, newest)
	case p.last > 1:
		return 0, errors.New("its buckets are gone")
	}
	return 0, nil // killed before it was prepared
}

// judge decides about what the pages hold.
func judge(all map[Bucket]*bucketSum, newest uint32) (schema uint32, err error) {
	meta := all[Meta]
	for _, b := range buckets() {
		if meta == nil && all[b] != nil {
			return 0, fmt.Errorf("the bucket %q is missing", Meta)
		}
	}
	if meta == nil {
		return 0, errForeign
	}
	v, ok := unseal(Meta, keySchema, meta.schema)
	if !ok || len(v) != 4 || binary.BigEndian.Uint32(v) == 0 {
		return 0, errors.New("its schema version is missing")
	}
	schema = binary.BigEndian.Uint32(v)
	if schema > newest {
		return schema, nil
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if s := all[name]; s.bad != nil {
			return 0, s.bad
		} else if schema >= schemaDigests && s.sum != s.kept {
			return 0, fmt.Errorf("values of %q are missing, or older than the others", name)
		}
	}
	if schema == newest {
		for _, b := range buckets() {
			if all[b] == nil {
				return 0, fmt.Errorf("the bucket %q is missing", b)
			}
		}
	}
	return schema, nil
}

// bucketSum is what is learned about a bucket by reading it.
type bucketSum struct {
	name   Bucket
	kept   uint64 // the digest that the file has for it
	sum    uint64 // the digest of its entries
	bad    error  // the first value whose checksum is wrong
	schema []byte // if it is Meta: the schema's sealed value
}

func (s *bucketSum) add(e element) error {
	if e.flags != 0 { // which a later schema may have
		s.bad = cmp.Or(s.bad, fmt.Errorf("the bucket %.40q within %q", e.key, s.name))
		return nil
	}
	if _, ok := unseal(s.name, string(e.key), e.value); !ok && s.bad == nil {
		s.bad = fmt.Errorf("the checksum of %.40q in %q is wrong", e.key, s.name)
	}
	if s.name == Meta && string(e.key) == keySchema {
		s.schema = e.value
	}
	s.sum += weight(e.value)
	return nil
}

// pages reads the pages of a file, each once at most.
type pages struct {
	r    io.ReaderAt
	size uint64 // of a page
	high uint64 // the number of pages that are in use or free
	last uint64 // the last transaction; 1 if there never was one
	seen map[uint64]bool
}

// element is an entry of a leaf page. Its slices are the page's.
type element struct {
	flags      uint32
	key, value []byte
}

func u16(b []byte) uint64 { return uint64(binary.NativeEndian.Uint16(b)) }
func u32(b []byte) uint64 { return uint64(binary.NativeEndian.Uint32(b)) }
func u64(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }

// read returns n bytes of the file.
func (p *pages) read(at, n uint64) ([]byte, error) {
	b := make([]byte, n)
	if k, err := p.r.ReadAt(b, int64(at)); k < len(b) {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("it ends too early")
		}
		return nil, fmt.Errorf("%w: %w", errRead, cause(err))
	}
	return b, nil
}

// headers checks the two header pages and returns the pages of the root and of the list of free pages.
func (p *pages) headers(size int64) (root, free uint64, err error) {
	if size < headerBytes+metaBytes {
		return 0, 0, fmt.Errorf("%s is only %d bytes long", FileName, size)
	}
	first, err := p.read(headerBytes, metaBytes)
	if err != nil {
		return 0, 0, err
	}
	p.size = u32(first[8:])
	if !sound(first) || p.size < 512 || p.size > 1<<16 || p.size&(p.size-1) != 0 {
		return 0, 0, errors.New("its first header page is damaged")
	}
	second, err := p.read(p.size+headerBytes, metaBytes)
	if err != nil {
		return 0, 0, err
	}
	if !sound(second) || u32(second[8:]) != p.size {
		return 0, 0, errors.New("its second header page is damaged")
	}
	a, b := u64(first[48:]), u64(second[48:])
	// The even transaction's comes first, and they take turns. But a copy that bbolt has made (WriteTo) may have them the other
	// way round, and then the first transaction in it takes the place of the last one.
	if a != b+1 && b != a+1 && (a != b+2 || a%2 != 0) {
		return 0, 0, fmt.Errorf("its header pages do not belong together (%d and %d)", a, b)
	}
	last := first
	if b > a {
		last = second
	}
	root, free, p.high, p.last = u64(last[16:]), u64(last[32:]), u64(last[40:]), u64(last[48:])
	if p.high < firstPages || p.high > uint64(size)/p.size {
		return 0, 0, fmt.Errorf("%s is only %d bytes long, and had %d pages of %d bytes", FileName, size, p.high, p.size)
	}
	return root, free, nil
}

// sound tells whether a header page is whole.
func sound(meta []byte) bool {
	h := fnv.New64a()
	_, _ = h.Write(meta[:metaBytes-8])
	return u32(meta) == boltMagic && u32(meta[4:]) == boltVersion && u64(meta[metaBytes-8:]) == h.Sum64()
}

// page reads a page with those that continue it.
func (p *pages) page(id uint64) ([]byte, error) {
	if id < 2 || id >= p.high {
		return nil, fmt.Errorf("page %d does not exist", id)
	}
	head, err := p.read(id*p.size, headerBytes)
	if err != nil {
		return nil, err
	}
	n := u32(head[12:]) + 1
	if u64(head) != id || n > p.high-id {
		return nil, fmt.Errorf("page %d is damaged", id)
	}
	for i := range n {
		if p.seen[id+i] {
			return nil, fmt.Errorf("page %d is used twice", id+i)
		}
		p.seen[id+i] = true
	}
	return p.read(id*p.size, n*p.size)
}

// tree visits the elements below a page, whose keys lie from lo to below hi (nil: no bound), in order.
func (p *pages) tree(id uint64, lo, hi []byte, depth int, visit func(element) error) error {
	if depth > maxDepth {
		return fmt.Errorf("page %d lies too deep", id)
	}
	b, err := p.page(id)
	if err != nil {
		return err
	}
	count := u16(b[10:])
	damaged := fmt.Errorf("page %d is damaged", id)
	switch {
	case count == 0 && depth > 0:
		return damaged
	case u16(b[8:]) == flagLeaf:
		if !leaf(b, lo, hi, &err, visit) {
			return cmp.Or(err, damaged)
		}
		return nil
	case u16(b[8:]) != flagBranch || count == 0:
		return damaged
	}
	keys, kids := make([][]byte, count), make([]uint64, count)
	for i := range count {
		at := headerBytes + i*elementBytes
		if at+elementBytes > uint64(len(b)) {
			return damaged
		}
		key, _, ok := data(b, at, u32(b[at:]), u32(b[at+4:]), 0)
		if !ok || !ordered(key, lo, hi, i > 0) {
			return damaged
		}
		lo, keys[i], kids[i] = key, key, u64(b[at+8:])
	}
	for i, kid := range kids {
		until := hi
		if i+1 < len(keys) {
			until = keys[i+1]
		}
		if err := p.tree(kid, keys[i], until, depth+1, visit); err != nil {
			return err
		}
	}
	return nil
}

// leaf visits the elements of a leaf page. It reports whether that went well; err is set if visit ended it.
func leaf(b, lo, hi []byte, err *error, visit func(element) error) bool {
	for i := range u16(b[10:]) {
		at := headerBytes + i*elementBytes
		if at+elementBytes > uint64(len(b)) {
			return false
		}
		key, value, ok := data(b, at, u32(b[at+4:]), u32(b[at+8:]), u32(b[at+12:]))
		if !ok || !ordered(key, lo, hi, i > 0) {
			return false
		}
		lo = key
		if *err = visit(element{binary.NativeEndian.Uint32(b[at:]), key, value}); *err != nil {
			return false
		}
	}
	return true
}

// data returns key and value of the element at an offset of page b.
func data(b []byte, at, pos, key, value uint64) (k, v []byte, ok bool) {
	at += pos
	if key == 0 || key > maxKey || at+key+value > uint64(len(b)) {
		return nil, nil, false
	}
	return b[at : at+key : at+key], b[at+key : at+key+value : at+key+value], true
}

// ordered tells whether a key comes behind lo, or is it unless strictly, and before hi.
func ordered(key, lo, hi []byte, strictly bool) bool {
	c := bytes.Compare(key, lo)
	return (lo == nil || c > 0 || c == 0 && !strictly) && (hi == nil || bytes.Compare(key, hi) < 0)
}

// bucket visits the entries of a bucket, whose header is b.
func (p *pages) bucket(b []byte, s *bucketSum) error {
	if len(b) < bucketBytes {
		return fmt.Errorf("the bucket %q is damaged", s.name)
	}
	root := u64(b)
	s.kept = u64(b[8:])
	if root != 0 {
		return p.tree(root, nil, nil, 0, s.add)
	}
	var err error
	if b = b[bucketBytes:]; len(b) < headerBytes || u16(b[8:]) != flagLeaf || !leaf(b, nil, nil, &err, s.add) {
		return cmp.Or(err, fmt.Errorf("the bucket %q is damaged", s.name))
	}
	return nil
}

// freelist checks the list of free pages: none of them may be in use.
func (p *pages) freelist(id uint64) error {
	if id == noFreelist {
		return nil
	}
	b, err := p.page(id)
	if err != nil {
		return err
	}
	count, list := u16(b[10:]), b[headerBytes:]
	if count == 0xFFFF { // more than fits there
		count, list = u64(list), list[8:]
	}
	if u16(b[8:]) != flagFreelist || count > uint64(len(list)/8) {
		return errors.New("the list of free pages is damaged")
	}
	for i := range count {
		free := u64(list[8*i:])
		if free < 2 || free >= p.high || p.seen[free] {
			return fmt.Errorf("the list of free pages is damaged: page %d", free)
		}
		p.seen[free] = true
	}
	return nil
}
