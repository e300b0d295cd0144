// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// maxSamples bounds the memory of a latency phase.
const maxSamples = 200_000

// ask sends requests, one at a time, and takes the time until the response.
func (s *session) ask(p Phase, c net.Conn, f *Figures) error {
	s.taken.Store(0)
	var b [PacketSize]byte
	begin := time.Now()
	most := min(maxSamples, p.Bytes/(2*PacketSize))
	samples := make([]time.Duration, 0, 4096)
	now := begin
	for ; now.Sub(begin) < p.Time && int64(len(samples)) < most; s.taken.Add(1) {
		if err := c.SetDeadline(now.Add(patience)); err != nil {
			return err
		}
		if _, err := c.Write(b[:]); err != nil {
			return fmt.Errorf("the connection broke: %w", err)
		}
		if _, err := io.ReadFull(c, b[:]); err != nil {
			return fmt.Errorf("the connection broke: %w", err)
		}
		s.alive.Store(true)
		answered := time.Now()
		samples = append(samples, answered.Sub(now))
		now = answered
	}
	f.Elapsed = now.Sub(begin)
	f.Bytes = int64(len(samples)) * 2 * PacketSize
	f.Capped = int64(len(samples)) >= most
	f.summarize(samples)
	return c.Close()
}

// echo answers requests until the other side closes the connection.
func (s *session) echo(p Phase, c net.Conn) error {
	var b [PacketSize]byte
	until := time.Now().Add(p.Time + overhead)
	for left := p.Bytes; left > 0; left -= 2 * PacketSize {
		if err := c.SetDeadline(until); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, b[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("the connection broke: %w", err)
		}
		s.alive.Store(true)
		if _, err := c.Write(b[:]); err != nil {
			return fmt.Errorf("the connection broke: %w", err)
		}
	}
	return nil
}
