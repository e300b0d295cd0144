// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/weftnet/weft/integration/lab"
)

// A rogue holds the token of a mesh and means harm. It speaks the protocol by itself, as far as it needs to, from what is written of it.
type rogue struct {
	from     *lab.Namespace
	conn     net.PacketConn // nil: none
	hello    [32]byte
	control  cipher.AEAD
	keyID    uint32
	universe []byte
}

// persona is a node that the rogue says to be.
type persona struct {
	key ed25519.PrivateKey
	id  uint64
}

const (
	// Kinds of control datagrams.
	envelopeMesh, envelopePing, envelopePong, envelopePunch = 1, 2, 3, 4
	// Kinds of packets of the mesh.
	packetMember, packetStream, packetDigest, packetChanges = 0, 1, 2, 3
	// What a stream is for.
	streamProbe, streamMessage, streamSync = 1, 3, 4
)

func derive(secret []byte, salt, label string, n int) []byte {
	b, err := hkdf.Key(sha256.New, secret, []byte(salt), label, n)
	if err != nil {
		panic(err) // only where the program is restricted in its ciphers
	}
	return b
}

// newRogue makes one of the token, on a host.
func newRogue(token string, h *lab.Host) (*rogue, error) {
	raw, err := base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding).DecodeString(strings.TrimPrefix(token, "weft-"))
	if err != nil {
		return nil, err
	}
	secret := raw[:20]
	control := derive(secret, "weft token v1", "weft v1 control", 32)
	r := &rogue{
		from: h.Namespace, hello: [32]byte(derive(secret, "weft token v1", "weft v1 hello", 32)),
		keyID: binary.BigEndian.Uint32(derive(control, "weft control datagram v1", "key id", 4)),
	}
	if r.control, err = chacha20poly1305.NewX(derive(control, "weft control datagram v1", "key", 32)); err != nil {
		return nil, err
	}
	err = h.Do(func() (err error) {
		r.conn, err = net.ListenPacket("udp4", ":0")
		return err
	})
	return r, err
}

// invent makes up a node, with an ID below the given one; 0: any.
func invent(below uint64) persona {
	for {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			panic(err)
		}
		h := sha256.Sum256(append([]byte("weft v1 node id "), key[ed25519.SeedSize:]...))
		if id := binary.BigEndian.Uint64(h[:]) &^ (1 << 63); below == 0 || id < below {
			return persona{key, id}
		}
	}
}

func (p persona) sign(label string, context, body []byte) []byte {
	return slices.Concat(p.key[ed25519.SeedSize:], ed25519.Sign(p.key, slices.Concat([]byte(label), context, body)), body)
}

// wireRecord is the record of a node.
type wireRecord struct {
	ID        uint64   `cbor:"1,keyasint"`
	Seq       uint64   `cbor:"2,keyasint"`
	Boot      uint64   `cbor:"3,keyasint,omitempty"`
	Name      string   `cbor:"5,keyasint"`
	PublicKey []byte   `cbor:"6,keyasint"`
	Endpoints [][]byte `cbor:"7,keyasint,omitempty"`
	Suites    []byte   `cbor:"8,keyasint,omitempty"`
	MTU       uint16   `cbor:"11,keyasint,omitempty"`
	Universe  []byte   `cbor:"13,keyasint,omitempty"`
}

// record returns the record of a persona, signed.
func (r *rogue) record(p persona, w wireRecord) []byte {
	w.ID, w.Universe = p.id, r.universe
	if w.PublicKey == nil {
		w.PublicKey = make([]byte, 32)
		_, _ = rand.Read(w.PublicKey)
	}
	return p.sign("weft v1 node record\x00", nil, encoded(w))
}

func readRecord(signed []byte) (w wireRecord, err error) {
	err = cbor.Unmarshal(signed[96:], &w)
	return w, err
}

func encoded(v any) []byte {
	b, err := cbor.Marshal(v)
	if err != nil {
		panic(err) // of types that can be encoded
	}
	return b
}

// changes is a packet of the mesh that tells of records, as many as have room in it.
func (r *rogue) changes(records ...[]byte) []byte {
	b := []byte{packetChanges}
	for _, raw := range records {
		c := encoded(map[int]any{1: 1, 2: r.universe, 3: "nodes", 4: encoded(map[int]any{1: 1, 2: [][]byte{raw}})})
		if len(b)+2+len(c) > 1200 {
			break
		}
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(c))), c...)
	}
	return b
}

// member is a packet of memberlist's with one message: a map of at most 15 entries.
func member(kind byte, kv ...any) []byte {
	b := []byte{kind, 0x80 | byte(len(kv)/2)}
	for _, v := range kv {
		switch v := v.(type) {
		case string:
			b = append(append(b, 0xd9, byte(len(v))), v...)
		case int:
			b = binary.BigEndian.AppendUint32(append(b, 0xce), uint32(v))
		}
	}
	return append(binary.BigEndian.AppendUint32([]byte{packetMember, 12}, crc32.ChecksumIEEE(b)), b...)
}

// seal makes a control datagram that says to be from a node.
func (r *rogue) seal(kind byte, source, destination uint64, body []byte, relays ...uint64) []byte {
	b := []byte{16, 1<<4 | kind, byte(len(relays)), 0}
	b = binary.BigEndian.AppendUint32(b, r.keyID)
	b = binary.BigEndian.AppendUint64(b, source)
	b = binary.BigEndian.AppendUint64(b, destination)
	for _, id := range relays {
		b = binary.BigEndian.AppendUint64(b, id)
	}
	header := slices.Clone(b)
	nonce := make([]byte, chacha20poly1305.NonceSizeX)
	_, _ = rand.Read(nonce)
	return r.control.Seal(append(b, nonce...), nonce, body, header)
}

// send sends a datagram to a host, from the rogue's own address.
func (r *rogue) send(to *lab.Host, b []byte) error {
	_, err := r.conn.WriteTo(b, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.Link().V4(), weftPort)))
	return err
}

// sealedStream is a connection after the hello.
type sealedStream struct {
	net.Conn
	in, out       cipher.AEAD
	inSeq, outSeq uint64
	rest          []byte
}

// dial connects to a host by TCP.
func (r *rogue) dial(to *lab.Host) (conn net.Conn, err error) {
	err = r.from.Do(func() error {
		conn, err = net.DialTimeout("tcp4", netip.AddrPortFrom(to.Link().V4(), weftPort).String(), 3*time.Second)
		return err
	})
	return conn, err
}

// greet opens a stream as a persona, and learns the universe by it.
func (r *rogue) greet(to *lab.Host, p persona, purpose int) (s *sealedStream, err error) {
	conn, err := r.dial(to)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = conn.Close()
		}
	}()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, err
	}
	said := append([]byte("WEFT\x01"), derive(r.hello[:], "", "weft hello 1 key id", 3)...)
	nonce := make([]byte, 32)
	_, _ = rand.Read(nonce)
	said = append(said, nonce...)
	if _, err := conn.Write(said); err != nil {
		return nil, err
	}
	reply := make([]byte, 8+32+32)
	if _, err := io.ReadFull(conn, reply); err != nil {
		return nil, err
	}
	said = append(said, reply...)
	mac := hmac.New(sha256.New, r.hello[:])
	mac.Write([]byte("weft hello 1 dialler\x00"))
	mac.Write(said)
	if _, err := conn.Write(mac.Sum(nil)); err != nil {
		return nil, err
	}
	transcript := sha256.Sum256(said)
	s = &sealedStream{Conn: conn}
	if s.out, err = r.streamKey(transcript, "weft stream 1 dialler"); err != nil {
		return nil, err
	}
	if s.in, err = r.streamKey(transcript, "weft stream 1 acceptor"); err != nil {
		return nil, err
	}
	me := map[int]any{1: purpose, 3: p.id, 4: p.id | 1, 5: "rogue"}
	if r.universe != nil {
		me[6] = r.universe
	}
	if err := s.writeFrame(p.sign("weft hello 1 dialler", transcript[:], encoded(me))); err != nil {
		return nil, err
	}
	them, err := s.readFrame()
	if err != nil {
		return nil, err
	}
	var w struct {
		Verdict  int    `cbor:"2,keyasint"`
		Universe []byte `cbor:"6,keyasint"`
	}
	if err := cbor.Unmarshal(them[96:], &w); err != nil {
		return nil, err
	}
	if w.Verdict != 0 {
		return nil, fmt.Errorf("refused for reason %d", w.Verdict)
	}
	r.universe = w.Universe
	return s, conn.SetDeadline(time.Time{})
}

func (r *rogue) streamKey(transcript [32]byte, label string) (cipher.AEAD, error) {
	block, err := aes.NewCipher(derive(r.hello[:], string(transcript[:]), label, 32))
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func sequence(n *uint64) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 4, 12), *n)
	*n++
	return b
}

// writeFrame sends one frame.
func (s *sealedStream) writeFrame(b []byte) error {
	b = append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
	for chunk := range slices.Chunk(b, 16<<10) {
		head := binary.BigEndian.AppendUint32(nil, uint32(len(chunk)))
		if _, err := s.Write(s.out.Seal(slices.Clone(head), sequence(&s.outSeq), chunk, head)); err != nil {
			return err
		}
	}
	return nil
}

// readFrame reads one.
func (s *sealedStream) readFrame() ([]byte, error) {
	for len(s.rest) < 4 || len(s.rest) < 4+int(binary.BigEndian.Uint32(s.rest)) {
		head := make([]byte, 4)
		if _, err := io.ReadFull(s, head); err != nil {
			return nil, err
		}
		sealed := make([]byte, binary.BigEndian.Uint32(head)+16)
		if _, err := io.ReadFull(s, sealed); err != nil {
			return nil, err
		}
		plain, err := s.in.Open(nil, sequence(&s.inSeq), sealed, head)
		if err != nil {
			return nil, err
		}
		s.rest = append(s.rest, plain...)
	}
	n := 4 + int(binary.BigEndian.Uint32(s.rest))
	frame := s.rest[4:n]
	s.rest = s.rest[n:]
	return frame, nil
}

// records returns the signed records of all nodes that a host knows, by their names: what a member gets for the asking.
func (r *rogue) records(of *lab.Host, p persona) (map[string][]byte, error) {
	s, err := r.greet(of, p, streamSync)
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Close() }()
	if err := s.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, err
	}
	if err := s.writeFrame(encoded(map[int]any{1: 1, 2: r.universe, 3: make([]byte, 8*256), 4: map[string]uint64{}, 5: 0})); err != nil {
		return nil, err
	}
	b, err := s.readFrame()
	if err != nil {
		return nil, err
	}
	var answer struct {
		Entries []byte `cbor:"3,keyasint"`
	}
	if err := cbor.Unmarshal(b, &answer); err != nil {
		return nil, err
	}
	var want []byte
	for e := range slices.Chunk(answer.Entries, 16) {
		want = append(want, e[:8]...)
	}
	none := encoded(map[int]any{1: 1, 2: [][]byte{}})
	if err := s.writeFrame(encoded(map[int]any{1: 1, 2: want, 3: map[string][]byte{"nodes": none}, 4: []byte{}})); err != nil {
		return nil, err
	}
	if b, err = s.readFrame(); err != nil {
		return nil, err
	}
	var rest struct {
		Records []byte `cbor:"2,keyasint"`
	}
	if err := cbor.Unmarshal(b, &rest); err != nil {
		return nil, err
	}
	var list struct {
		Records [][]byte `cbor:"2,keyasint"`
	}
	if err := cbor.Unmarshal(rest.Records, &list); err != nil {
		return nil, err
	}
	all := map[string][]byte{}
	for _, raw := range list.Records {
		w, err := readRecord(raw)
		if err != nil {
			return nil, err
		}
		all[w.Name] = raw
	}
	if len(all) == 0 {
		return nil, errors.New("the host has told of no records")
	}
	return all, nil
}
