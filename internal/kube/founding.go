// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/weftnet/weft/internal/token"
)

// SecretName is the name of the Secret by which the nodes of a cluster find their mesh.
const SecretName = "weft"

// Keys of the Secret.
const (
	keyToken      = "token"
	keyRange      = "range"
	keyEncryption = "encryption"
	keyFounder    = "founder"
	keyFounded    = "founded"
	keyMesh       = "mesh"
)

// maxValue bounds what is read of one key of the Secret, in bytes.
const maxValue = 1024

// A founding is what the Secret says: which mesh there is, or who is about to found it.
type founding struct {
	token      token.Token
	inRange    string // of the mesh
	encryption string // "on" or "off", as it was to be founded
	founder    founder
	founded    bool   // only then may anybody join
	mesh       string // its ID; empty: that is not known
	version    string // of the Secret, that guards a change
}

// founder is who founds the mesh, or has founded it.
type founder struct {
	Node   string `json:"node"`    // name of the Node
	UID    string `json:"uid"`     // of the Node
	NodeID string `json:"node_id"` // of Weft
}

// readFounding reads the Secret. It may be one that a user has made with nothing but a token: then nobody founds the mesh yet.
func readFounding(s *secret) (f founding, err error) {
	if s == nil {
		return founding{}, errors.New("there is none")
	}
	for key, v := range s.Data {
		if len(v) > maxValue {
			return founding{}, fmt.Errorf("its %s has %d bytes, %d are the most", key, len(v), maxValue)
		}
	}
	if f.token, err = token.Parse(string(s.Data[keyToken])); err != nil {
		return founding{}, fmt.Errorf("its token: %w", err)
	}
	if v := s.Data[keyFounded]; len(v) > 0 {
		if f.founded, err = strconv.ParseBool(string(v)); err != nil {
			return founding{}, fmt.Errorf("its founded is %q, neither true nor false", v)
		}
	}
	if v := s.Data[keyFounder]; len(v) > 0 {
		if err := json.Unmarshal(v, &f.founder); err != nil {
			return founding{}, fmt.Errorf("its founder is no JSON object with node, uid and node_id: %s", brief(err))
		}
	}
	f.inRange, f.encryption, f.mesh = string(s.Data[keyRange]), string(s.Data[keyEncryption]), string(s.Data[keyMesh])
	f.version = s.ResourceVersion
	return f, nil
}

// data is what is written into the Secret.
func (f founding) data() (map[string][]byte, error) {
	who, err := json.Marshal(f.founder)
	if err != nil {
		return nil, fmt.Errorf("writing the founder: %w", err)
	}
	return map[string][]byte{
		keyToken: []byte(f.token.Reveal()), keyRange: []byte(f.inRange), keyEncryption: []byte(f.encryption),
		keyFounder: who, keyFounded: []byte(strconv.FormatBool(f.founded)), keyMesh: []byte(f.mesh),
	}, nil
}
