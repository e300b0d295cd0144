// SPDX-License-Identifier: Apache-2.0

package portable

import (
	"errors"
	"io"
	"os"
	"sync"
)

const (
	maxPacket = 64 << 10
	// ahead is how many packets are read ahead of those that are asked for.
	ahead = 16
)

// Queue makes of a device whose Read waits for a packet one whose Read does not, at the price of a copy and a goroutine. Read and Write
// may be used by one goroutine each, Close and Ready by any.
type Queue struct {
	device io.ReadWriteCloser
	empty  chan []byte // buffers to read into
	full   chan []byte // packets that were read; closed after the last
	ready  chan struct{}
	closed chan struct{}
	reader sync.WaitGroup
	once   sync.Once
	err    error // why there are no more packets; valid when full is closed
}

// NewQueue makes a Queue, which owns the device from then on. Closing the device must end a Read that waits, and each Read
// return one packet.
func NewQueue(device io.ReadWriteCloser) *Queue {
	q := &Queue{
		device: device, empty: make(chan []byte, ahead), full: make(chan []byte, ahead),
		ready: make(chan struct{}, 1), closed: make(chan struct{}),
	}
	for range ahead {
		q.empty <- make([]byte, maxPacket)
	}
	q.reader.Go(q.readAhead)
	return q
}

func (q *Queue) readAhead() {
	defer q.announce()
	defer close(q.full)
	for {
		var b []byte
		select {
		case b = <-q.empty:
		case <-q.closed:
			q.err = os.ErrClosed
			return
		}
		n, err := q.device.Read(b)
		if err != nil {
			q.err = err
			return
		}
		q.full <- b[:n]
		q.announce()
	}
}

func (q *Queue) announce() {
	select {
	case q.ready <- struct{}{}:
	default: // there is one that nobody has seen yet
	}
}

// Ready returns a channel that has a value when there may be something to read, or an error to tell. Read until
// there is nothing before waiting again.
func (q *Queue) Ready() <-chan struct{} { return q.ready }

// Read reads one packet into b, which cuts off what does not fit, and returns its length; 0 and no error if there is none
// now. An error is final, and matches os.ErrClosed.
func (q *Queue) Read(b []byte) (int, error) {
	select {
	case p, ok := <-q.full:
		if !ok {
			return 0, q.gone()
		}
		n := copy(b, p)
		q.empty <- p[:cap(p)]
		return n, nil
	default:
		return 0, nil
	}
}

func (q *Queue) gone() error {
	if errors.Is(q.err, os.ErrClosed) {
		return q.err
	}
	return errors.Join(os.ErrClosed, q.err)
}

// Write delivers one packet.
func (q *Queue) Write(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	_, err := q.device.Write(b)
	return err
}

// Close closes the device, and returns when nobody reads it any more. Once is enough.
func (q *Queue) Close() (err error) {
	q.once.Do(func() {
		close(q.closed)
		err = q.device.Close()
		q.reader.Wait()
	})
	return err
}
