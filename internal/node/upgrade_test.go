// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	bolt "go.etcd.io/bbolt"

	"github.com/weftnet/weft/internal/store"
)

// oldIPAM is what the IPAM bucket of a node of before the first release held, that founded a mesh and gave half away.
var oldIPAM = map[string]string{
	keyRing: "\x01\x80\x80\x04\x02[\x94\x0eUVJ\xec\x14VX\x95WI\x81*,\x02\x00\xff\xff\x01\x00\x01\x00\xff\xff\x01\x02\x02",
	keyGrants: "\x01\x00\x14\x01\x80\x80\x04\x01[\x94\x0eUVJ\xec\x14\x01\x00\xff\xff\x01\x00\x01\x01\xd6\xb0\xbc\x95\xa9\xa0\x95," +
		"\x01\x16\x01\x80\x80\x04\x01VX\x95WI\x81*,\x01\x80\x80\x02\xff\xff\x01\x00\x02",
}

// backdate makes the file of m what a build of before the first release would have written: of schema 1, without digests, and
// with ipam in the bucket of the addresses.
func (m *machine) backdate(ipam map[string]string) (file []byte) {
	m.t.Helper()
	path := filepath.Join(m.dir, store.FileName)
	put := func(tx *bolt.Tx, bucket store.Bucket, key, value string) error {
		sum := crc32.Checksum([]byte(string(bucket)+"/"+key+"/"+value), crc32.MakeTable(crc32.Castagnoli))
		return tx.Bucket([]byte(bucket)).Put([]byte(key), binary.BigEndian.AppendUint32([]byte(value), sum))
	}
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	if err := db.Update(func(tx *bolt.Tx) error {
		errs := []error{tx.DeleteBucket([]byte(store.IPAM)), tx.DeleteBucket([]byte(store.Allocations))}
		for _, b := range []store.Bucket{store.IPAM, store.Allocations} {
			_, err := tx.CreateBucket([]byte(b))
			errs = append(errs, err)
		}
		errs = append(errs, put(tx, store.Meta, "schema", "\x00\x00\x00\x01"), put(tx, store.Allocations, hostOwner, "\x00\x00\x00\x01"))
		for k, v := range ipam {
			errs = append(errs, put(tx, store.IPAM, k, v))
		}
		return errors.Join(append(errs, tx.ForEach(func(_ []byte, b *bolt.Bucket) error { return b.SetSequence(0) }))...)
	}); err != nil {
		m.t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		m.t.Fatal(err)
	}
	if file, err = os.ReadFile(filepath.Clean(path)); err != nil {
		m.t.Fatal(err)
	}
	return file
}

// A ring of before the first release cannot be read, so its file stays what it was, for the build that can. A file in which
// there is none yet is upgraded.
func TestUpgradeFromBeforeTheFirstRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		n1 := c.machines[0]
		c.start(n1, nil)
		c.ready(n1)
		if err := n1.stop(); err != nil {
			t.Fatal(err)
		}
		old := n1.backdate(oldIPAM)
		want := "data directory " + n1.dir + " was written by a build from before the first release, whose address ring cannot be taken over, and stays as it is; " +
			"run that build again and leave the mesh with it (weft leave), or run weft reset, launch this host as a new node, and run weft forget for the old one on another node"
		for range 2 {
			c.start(n1, nil)
			if err := <-n1.done; err == nil || err.Error() != want {
				t.Errorf("got  %v\nwant %s", err, want)
			}
			n1.kill = nil
			if now, err := os.ReadFile(filepath.Join(n1.dir, store.FileName)); err != nil || !bytes.Equal(now, old) {
				t.Errorf("the file was changed (%v)", err)
			}
			if files := store.Files(n1.dir); len(files) != 1 {
				t.Errorf("files: %v", files)
			}
		}
		n1.backdate(nil)
		c.start(n1, nil)
		c.ready(n1)
	})
}
