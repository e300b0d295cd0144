// SPDX-License-Identifier: Apache-2.0

package filter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weftnet/weft/policy"
)

// Messages and attributes of nfnetlink_log (linux/netfilter/nfnetlink_log.h).
const (
	subsysLog     = 4
	logPacket     = 0
	logConfig     = 1
	cfgCommand    = 1
	cfgMode       = 2
	cfgTimeout    = 4
	cfgThreshold  = 5
	commandBind   = 1
	modePacket    = 2
	ulaPayload    = 9
	ulaPrefix     = 10
	logDelay      = 10 // hundredths of a second that the kernel gathers packets
	logThreshold  = 50 // packets that it gathers at most
	configMessage = subsysLog<<8 | logConfig
)

// hear listens to the group of nflog, until ctx ends.
func (f *Filter) hear(ctx context.Context) error {
	file, err := f.listen(0)
	if err != nil {
		return err
	}
	if err := f.bind(file); err != nil {
		return errors.Join(fmt.Errorf("listening to group %d of nflog: %w; is there another program that does? Denied packets are dropped all the same",
			f.config.Group, err), file.Close())
	}
	return attend(ctx, file, func() error { return f.packets(file) }, func(failed <-chan error) error {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return err
		}
	})
}

// bind makes the kernel send the group's packets to the socket.
func (f *Filter) bind(file *os.File) error {
	var b buffer
	add := func(kind uint16, v []byte) {
		at := b.begin(configMessage, unix.NLM_F_ACK, unix.AF_UNSPEC, f.config.Group)
		b.attr(kind, v)
		b.end(at)
	}
	add(cfgCommand, []byte{commandBind})
	add(cfgMode, append(binary.BigEndian.AppendUint32(nil, logBytes), modePacket, 0))
	add(cfgTimeout, binary.BigEndian.AppendUint32(nil, logDelay))
	add(cfgThreshold, binary.BigEndian.AppendUint32(nil, logThreshold))
	if _, err := file.Write(b); err != nil {
		return err
	}
	// The answers are there when the requests have been taken.
	answer := make([]byte, 4096)
	var result error
	for left := 4; left > 0; {
		if err := file.SetReadDeadline(time.Now().Add(answerPatience * time.Second)); err != nil {
			return err
		}
		n, err := file.Read(answer)
		if err != nil {
			return err
		}
		messages(answer[:n], func(h header, body []byte) bool {
			if h.kind == unix.NLMSG_ERROR && len(body) >= 4 {
				left--
				if code := int32(binary.NativeEndian.Uint32(body)); code != 0 && result == nil {
					result = unix.Errno(-code)
				}
			}
			return true
		})
		if result != nil {
			return result
		}
	}
	return file.SetReadDeadline(time.Time{})
}

// packets reads packets until file is closed.
func (f *Filter) packets(file *os.File) error {
	b := make([]byte, answerSize)
	for {
		n, err := file.Read(b)
		switch {
		case errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.ENOBUFS):
			f.denials.miss(1)
			continue
		case err != nil:
			return err
		}
		now := time.Now()
		messages(b[:n], func(h header, body []byte) bool {
			if h.kind == subsysLog<<8|logPacket {
				if d, ok := decodeLog(body); ok {
					d.Time = now
					f.denials.tell(d)
				} else {
					f.denials.miss(1)
				}
			}
			return true
		})
	}
}

// decodeLog reads one message about a denied packet.
func decodeLog(body []byte) (d Denial, ok bool) {
	if len(body) < 4 {
		return d, false
	}
	var direction, packet bool
	ok = attributes(body[4:], func(kind uint16, v []byte) bool {
		switch kind {
		case ulaPrefix:
			name, ours := strings.CutPrefix(stringOf(v), logPrefix)
			for _, e := range ends() {
				if ours && e.name == name {
					direction = true
					d.Direction = policy.Ingress
					if e.source {
						d.Direction = policy.Egress
					}
				}
			}
		case ulaPayload:
			d.Connection, packet = decodePacket(v)
		}
		return true
	})
	return d, ok && direction && packet
}
