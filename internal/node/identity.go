// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/token"
	"github.com/weftnet/weft/ipam"
	"github.com/weftnet/weft/ipam/ring"
	"github.com/weftnet/weft/mesh"
	"github.com/weftnet/weft/router/session"
)

// Keys in the store's Meta bucket.
const (
	keyIdentity = "identity"
	keyUniverse = "universe"
	keyLeft     = "left"
)

// identity is what makes a node the node it is.
type identity struct {
	ID      mesh.NodeID `json:"node_id"`        // that of mesh
	Private []byte      `json:"private_key"`    // 32 bytes, Curve25519; what the node signs with is derived from it
	Seed    string      `json:"seed,omitempty"` // the name of --seed whose share is this node's; empty: none
}

func (i identity) key() session.PrivateKey { return session.PrivateKey(i.Private) }

// mesh is how the node signs what it says of itself.
func (i identity) mesh() (mesh.Identity, error) { return mesh.NewIdentity(i.Private) }

// universe is the range of the mesh, with the seed that makes it unique and the part that is kept for static use.
type universe struct {
	Range   string `json:"range"`
	Seed    []byte `json:"seed"`
	Reserve string `json:"reserve,omitempty"` // canonical
	Plain   bool   `json:"plain,omitempty"`   // founded with --encryption=off
}

// universeOf reads what a peer said of its mesh.
func universeOf(info mesh.UniverseInfo) (universe, error) {
	u := universe{Range: info.Ranges, Seed: info.Seed, Reserve: info.Reserve, Plain: info.Plain}
	got, err := u.info()
	if err != nil {
		return universe{}, err
	}
	if got.ID != info.ID {
		return universe{}, fmt.Errorf("its mesh ID does not fit its range %s; is it of another version?", info.Ranges)
	}
	return u, nil
}

func (u universe) parse() (ipam.Universe, ipam.Seed, error) {
	r, err := ipam.ParseUniverse(u.Range)
	if err != nil {
		return ipam.Universe{}, ipam.Seed{}, fmt.Errorf("range %s: %w", u.Range, err)
	}
	s, err := ipam.DecodeSeed(u.Seed)
	if err != nil {
		return ipam.Universe{}, ipam.Seed{}, fmt.Errorf("seed of range %s: %w", u.Range, err)
	}
	return r, s, nil
}

// reserve returns what is kept for static use.
func (u universe) reserve() (ipam.Reserve, error) {
	if u.Reserve == "" {
		return ipam.Reserve{}, nil
	}
	return parseReserve(u.Range, strings.Split(u.Reserve, ","))
}

func parseReserve(inRange string, prefixes []string) (ipam.Reserve, error) {
	u, err := ipam.ParseUniverse(inRange)
	if err != nil {
		return ipam.Reserve{}, err
	}
	return u.ParseReserve(prefixes)
}

// checkReserve refuses a reserve that was given and is not that of the mesh; whose says which mesh that is.
func (c *Config) checkReserve(u universe, whose, remedy string) error {
	if len(c.Reserve) == 0 {
		return nil
	}
	r, err := parseReserve(u.Range, c.Reserve)
	if err != nil {
		return fmt.Errorf("--reserve: %w", err)
	}
	if r.String() == u.Reserve {
		return nil
	}
	has := u.Reserve
	if has == "" {
		has = "none"
	}
	return fmt.Errorf("--reserve %s differs from %s mesh's, which has %s; %s", r, whose, has, remedy)
}

func (u universe) info() (mesh.UniverseInfo, error) {
	r, s, err := u.parse()
	if err != nil {
		return mesh.UniverseInfo{}, err
	}
	reserve, err := u.reserve()
	if err != nil {
		return mesh.UniverseInfo{}, err
	}
	return mesh.UniverseInfo{ID: u.id(r.ID(s, reserve)), Ranges: u.Range, Seed: u.Seed, Reserve: u.Reserve, Plain: u.Plain}, nil
}

func (u universe) isZero() bool { return u.Range == "" }

// state is what the data directory said at the start.
type state struct {
	identity identity
	signer   mesh.Identity
	universe universe // zero: not known yet
	first    bool     // the first start with this data directory
	founding bool     // its mesh is yet to be confirmed by the guide
}

// loadState reads the node's identity, or draws a new one, which is not saved
// before the start has succeeded (see saveState).
func loadState(st *store.Store) (state, error) {
	var s state
	err := st.View(func(tx *store.Tx) (err error) {
		if b := tx.Get(store.Meta, keyLeft); b != nil {
			var when time.Time
			if err := json.Unmarshal(b, &when); err != nil {
				return fmt.Errorf("reading when the node left: %w", err)
			}
			return fmt.Errorf("this node left its mesh for good at %s; run weft reset, then launch it as a new node", when.Format(time.DateTime))
		}
		b := tx.Get(store.Meta, keyIdentity)
		if b == nil {
			s.first = true
			return nil
		}
		if err := json.Unmarshal(b, &s.identity); err != nil {
			return fmt.Errorf("reading the node's identity: %w", err)
		}
		if !s.identity.ID.Valid() || len(s.identity.Private) != len(session.PrivateKey{}) {
			return errors.New("the node's identity is incomplete; put a copy of weft.db there that was made after the node ran last, or run weft reset to start as a new node")
		}
		if s.signer, err = s.identity.mesh(); err != nil {
			return err
		}
		if s.signer.ID() != s.identity.ID {
			return errors.New("the node's identity was made by a build from before the first release; run that build again and leave the mesh with it (weft leave), or run weft reset, launch this host as a new node, and run weft forget for the old one on another node")
		}
		if err := json.Unmarshal(tx.Get(store.Meta, keyUniverse), &s.universe); err != nil {
			return fmt.Errorf("reading the node's universe: %w", err)
		}
		s.founding = tx.Get(store.Meta, keyFounding) != nil
		return nil
	})
	if err != nil || !s.first {
		return s, err
	}
	key, err := session.NewPrivateKey(rand.Reader)
	if err != nil {
		return s, err
	}
	s.identity.Private = bytes.Clone(key[:])
	if s.signer, err = s.identity.mesh(); err != nil {
		return s, err
	}
	s.identity.ID = s.signer.ID()
	// A first start that was killed may have left what belongs to a node that
	// never was.
	return s, st.Update(func(tx *store.Tx) error {
		return errors.Join(tx.Clear(store.IPAM), tx.Clear(store.Allocations), tx.Clear(store.Workloads), tx.Clear(store.Records), tx.Clear(store.Events))
	})
}

// saveState makes a first start final.
func saveState(st *store.Store, s state) error {
	id, err := json.Marshal(s.identity) //nolint:gosec // G117: the store is where the private key is kept, in a 0600 file
	if err != nil {
		return fmt.Errorf("saving the node's identity: %w", err)
	}
	u, err := json.Marshal(s.universe)
	if err != nil {
		return fmt.Errorf("saving the node's universe: %w", err)
	}
	return st.Update(func(tx *store.Tx) error {
		if err := tx.Put(store.Meta, keyIdentity, id); err != nil {
			return err
		}
		if s.founding {
			if err := tx.Put(store.Meta, keyFounding, []byte("1")); err != nil {
				return err
			}
		}
		return tx.Put(store.Meta, keyUniverse, u)
	})
}

// foundTokens are what a node has to start with.
type foundTokens struct {
	tokens []token.Token // at least one; the first is the one to send under
	save   bool          // the data directory has yet to get it
	other  token.Token   // was given, and is none of them; zero: none was
}

// findToken returns the mesh's token: the data directory's, or the one given, or, for a node that founds a mesh alone, a new
// one. One that is given beside those of the data directory is for tryToken.
func (c *Config) findToken(first bool) (foundTokens, error) {
	kept, err := token.ReadKept(c.DataDir)
	if err != nil && !token.Missing(err) {
		return foundTokens{}, err
	}
	saved := kept.All()
	switch {
	case c.TokenFile != "" && len(saved) == 0:
		_, err := token.ReadFile(c.TokenFile)
		return foundTokens{}, err
	case len(saved) > 0 && !c.Token.IsZero() && !slices.ContainsFunc(saved, c.Token.Equal) && first:
		return foundTokens{}, fmt.Errorf("the token given is not the one in %s; give none to go on with that mesh, or run weft reset to join another", filepath.Join(c.DataDir, token.FileName))
	case len(saved) > 0 && !c.Token.IsZero() && !slices.ContainsFunc(saved, c.Token.Equal):
		return foundTokens{tokens: saved, other: c.Token}, nil
	case len(saved) > 0:
		return foundTokens{tokens: saved}, nil
	case !c.Token.IsZero():
		return foundTokens{tokens: []token.Token{c.Token}, save: true}, nil
	case !first:
		return foundTokens{}, fmt.Errorf("the token of this node's mesh is missing from %s; give it by --token-file or WEFT_TOKEN (weft token --raw on another node prints it)",
			filepath.Join(c.DataDir, token.FileName))
	case len(c.Peers) > 0:
		return foundTokens{}, fmt.Errorf("no token to join %s with; get it there by `weft token --raw`, and give it by --token-file or WEFT_TOKEN", strings.Join(c.Peers, ", "))
	case len(c.Seed) > 0:
		return foundTokens{}, errors.New("no token, which the nodes of --seed must share; make one by `weft token --generate`, and give it to each by --token-file or WEFT_TOKEN")
	}
	t, err := token.New(rand.Reader)
	return foundTokens{tokens: []token.Token{t}, save: true}, err
}

// chooseUniverse decides, before anything is sent, which universe the node is
// of; the result is zero for a node that has yet to learn it by joining.
func (c *Config) chooseUniverse(s state) (universe, error) {
	var mine universe // by the flags; zero: whatever the mesh has
	switch {
	case len(c.Seed) > 0:
		seed, err := ipam.SeedNames(c.Seed)
		if err != nil {
			return universe{}, fmt.Errorf("--seed %s: %w", strings.Join(c.Seed, ","), err)
		}
		mine = universe{Range: c.Range, Seed: seed.Encode()}
	case len(c.Peers) == 0 && !c.join && s.universe.isZero():
		mine = universe{Range: c.Range, Seed: founder(s.identity.ID).Encode()}
	}
	if s.universe.isZero() {
		if mine.isZero() {
			return mine, nil
		}
		r, err := parseReserve(c.Range, c.Reserve)
		if err != nil {
			return universe{}, fmt.Errorf("--reserve: %w", err)
		}
		mine.Reserve, mine.Plain = r.String(), c.Kernel.Encryption == EncryptionOff
		return mine, nil
	}
	if c.RangeGiven && c.Range != s.universe.Range {
		return universe{}, fmt.Errorf("--range %s differs from this node's mesh, which has %s; leave the flag out, or run weft reset to join another mesh", c.Range, s.universe.Range)
	}
	if err := c.checkReserve(s.universe, "this node's", "leave the flag out, or run weft reset to join another mesh"); err != nil {
		return universe{}, err
	}
	if len(c.Seed) > 0 && !bytes.Equal(mine.Seed, s.universe.Seed) {
		return universe{}, fmt.Errorf("data directory %s is of another universe: its mesh was not founded with --seed %s; choose another --data-dir, or run weft reset",
			c.DataDir, strings.Join(c.Seed, ","))
	}
	if len(c.Seed) > 0 && s.identity.Seed == "" {
		return universe{}, errors.New("this node is in its mesh already, and not by --seed; leave the flag out, or run weft reset")
	}
	if s.identity.Seed != "" && s.identity.Seed != c.Name {
		return universe{}, fmt.Errorf("this node has the share that --seed gave to the name %s; launch it with --name %s, or run weft reset", s.identity.Seed, s.identity.Seed)
	}
	return s.universe, c.Kernel.checkEncryption(s.universe, "this node's", "leave the flag out, or run weft reset to join another mesh")
}

func founder(id mesh.NodeID) ipam.Seed { return ipam.Seed{Owners: []ring.Owner{ring.Owner(id)}} }
