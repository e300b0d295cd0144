// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"crypto/subtle"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A TCP connection of a session begins with a greeting: magic, version, what
// the connection is for, phase, stream, secret.
const (
	magic        = "wfbn"
	greetingSize = len(magic) + 4 + len(Secret{})

	forControl = 0
	forStream  = 1
)

type greeting struct {
	purpose, phase, stream uint8
}

func (g greeting) encode(s Secret) []byte {
	return append(append([]byte(magic), version, g.purpose, g.phase, g.stream), s[:]...)
}

// decodeGreeting is valid iff b is what encode makes of the same secret.
func decodeGreeting(b []byte, s Secret) (greeting, bool) {
	if len(b) != greetingSize {
		return greeting{}, false
	}
	head := len(magic)
	ok := subtle.ConstantTimeCompare(b[head+4:], s[:]) == 1
	ok = ok && string(b[:head]) == magic && b[head] == version && b[head+1] <= forStream
	if !ok {
		return greeting{}, false
	}
	return greeting{purpose: b[head+1], phase: b[head+2], stream: b[head+3]}, true
}

// Steps of a session, as the notes on the control connection name them. The
// asking node leads: hello, hello, probed, probed; then for each phase: phase,
// armed, (connections,) ready, start, done, done; then end, end.
const (
	noteHello  = "hello"
	noteProbed = "probed" // a datagram of the other arrived
	notePhase  = "phase"
	noteArmed  = "armed"
	noteReady  = "ready"
	noteStart  = "start"
	noteDone   = "done"
	noteEnd    = "end"
	noteBeat   = "beat"
	noteFailed = "failed"
)

// note is one message on the control connection.
type note struct {
	Type  string `json:"type"`
	Phase int    `json:"phase,omitempty"`
	Port  uint16 `json:"port,omitempty"` // hello of the asking node: where it takes datagrams

	// done
	Usage   Usage         `json:"usage,omitzero"`
	Bytes   int64         `json:"bytes,omitempty"`   // that arrived here; beat: so far
	Packets int64         `json:"packets,omitempty"` // that arrived here, or were sent
	Elapsed time.Duration `json:"elapsed_ns,omitempty"`
	Capped  bool          `json:"capped,omitempty"`

	Strangers int64  `json:"strangers,omitempty"` // end: what was turned away
	Text      string `json:"text,omitempty"`      // failed
}

const (
	maxNote  = 1 << 10 // bytes of an encoded note
	noteHead = 2       // its length, big endian
)

func encodeNote(n note) ([]byte, error) {
	n.Text = printable(n.Text)
	b, err := json.Marshal(n)
	if err != nil {
		return nil, fmt.Errorf("encoding a note: %w", err)
	}
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...), nil
}

// decodeNote reads what follows the length.
func decodeNote(b []byte) (note, error) {
	var n note
	if len(b) > maxNote || json.Unmarshal(b, &n) != nil {
		return note{}, errWire
	}
	n.Text = printable(n.Text)
	for _, v := range []int64{
		int64(n.Phase), n.Bytes, n.Packets, n.Strangers, int64(n.Elapsed), int64(n.Usage.Process), int64(n.Usage.Engine),
	} {
		if v < 0 {
			return note{}, errWire
		}
	}
	return n, nil
}

func readNote(r io.Reader) (note, error) {
	var head [noteHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return note{}, err
	}
	size := binary.BigEndian.Uint16(head[:])
	if size > maxNote {
		return note{}, errWire
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return note{}, err
	}
	return decodeNote(b)
}

var (
	// errSilent says that the other node, or the way to it, is gone.
	errSilent = fmt.Errorf("no sign of life from the other node for %v", Silence)
	// errEnded says that the other node hung up.
	errEnded = errors.New("the other node ended the measurement")
)

// converse starts what runs beside the phases: it takes the other's notes,
// tells it that this side lives, and ends the session when the other is silent.
func (s *session) converse(ctl net.Conn) {
	s.ctl = ctl
	s.notes = make(chan note, 4)
	s.work.Go(func() {
		for {
			n, err := readNote(ctl)
			switch {
			case errors.Is(err, errWire):
				s.fail(err)
				return
			case err != nil:
				s.fail(gone(err))
				return
			case n.Type == noteFailed:
				s.told.Store(true)
				s.fail(fmt.Errorf("the other node ended the measurement: %s", n.Text))
				return
			}
			s.alive.Store(true)
			if n.Type == noteBeat {
				s.theirs.Store(n.Bytes)
				continue
			}
			select {
			case s.notes <- n:
			case <-s.ctx.Done():
				return
			}
			if n.Type == noteEnd { // nothing follows but the end of the connection
				return
			}
		}
	})
	s.work.Go(s.watch)
}

// watch sends the signs of life and looks for the other's.
func (s *session) watch() {
	tick := time.NewTicker(beatInterval)
	defer tick.Stop()
	silent := time.Duration(0) // counted in looks: a process that got no processor for a while has not listened meanwhile
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		silent += beatInterval
		if s.alive.Swap(false) {
			silent = 0
		} else if silent > Silence {
			s.fail(errSilent)
			return
		}
		if s.flood.Load() {
			s.udp.send(datagramBeat, s.taken.Load()) // a lost one is followed by the next
		} else if err := s.tell(note{Type: noteBeat, Bytes: s.taken.Load()}); err != nil {
			s.fail(err)
			return
		}
	}
}

// say sends a note, which takes no longer than the time.
func (s *session) say(n note, within time.Duration) error {
	b, err := encodeNote(n)
	if err != nil {
		return err
	}
	s.saying.Lock()
	defer s.saying.Unlock()
	if err := s.ctl.SetWriteDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	_, err = s.ctl.Write(b)
	return err
}

// tell sends a note; where that fails, the other has hung up or is silent.
func (s *session) tell(n note) error {
	if err := s.say(n, patience); err != nil {
		return gone(err)
	}
	return nil
}

// gone is what an error of the control connection says of the other node.
func gone(err error) error {
	if errors.Is(err, unix.ETIMEDOUT) || errors.Is(err, os.ErrDeadlineExceeded) {
		return errSilent
	}
	return errEnded
}

// hear waits for a note of the type, about the phase, at most for the time.
func (s *session) hear(what string, phase int, within time.Duration) (note, error) {
	ctx, cancel := context.WithTimeout(s.ctx, within)
	defer cancel()
	var n note
	select {
	case n = <-s.notes:
	case <-ctx.Done():
		select {
		case n = <-s.notes: // said before it hung up
		default:
			if s.ctx.Err() != nil {
				return note{}, context.Cause(s.ctx)
			}
			return note{}, fmt.Errorf("the other node did not say %q within %v", what, within)
		}
	}
	if n.Type != what || n.Phase != phase {
		return note{}, fmt.Errorf("the other node says %q of phase %d where %q of phase %d is due: %w",
			printable(n.Type), n.Phase, what, phase, errWire)
	}
	return n, nil
}
