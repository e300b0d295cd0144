// SPDX-License-Identifier: Apache-2.0

package portable_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	"github.com/weftnet/weft/router/tun/portable"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// device is a TUN device whose Read waits: what is written to it comes back.
type device struct {
	packets chan []byte
	closed  chan struct{}
	once    sync.Once
	fail    chan error
}

func newDevice() *device {
	return &device{packets: make(chan []byte, 100), closed: make(chan struct{}), fail: make(chan error, 1)}
}

func (d *device) Read(b []byte) (int, error) {
	select {
	case p := <-d.packets:
		return copy(b, p), nil
	case err := <-d.fail:
		return 0, err
	case <-d.closed:
		return 0, os.ErrClosed
	}
}

func (d *device) Write(b []byte) (int, error) {
	d.packets <- append([]byte(nil), b...)
	return len(b), nil
}

func (d *device) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}

// Packets come in their order, whole, and Read never waits.
func TestQueueReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := portable.NewQueue(newDevice())
		b := make([]byte, 100)
		if n, err := q.Read(b); n != 0 || err != nil {
			t.Errorf("an empty queue gives %d, %v", n, err)
		}
		for round := range 3 {
			for i := range 50 { // more than are read ahead
				if err := q.Write(fmt.Appendf(nil, "packet %d", 100*round+i)); err != nil {
					t.Fatal(err)
				}
			}
			for i := 0; i < 50; {
				<-q.Ready()
				for {
					n, err := q.Read(b)
					if err != nil {
						t.Fatal(err)
					}
					if n == 0 {
						break
					}
					if want := fmt.Sprintf("packet %d", 100*round+i); string(b[:n]) != want {
						t.Errorf("got %q, want %q", b[:n], want)
					}
					i++
				}
			}
		}
		if err := q.Write(nil); err != nil {
			t.Error(err)
		}
		if err := q.Write([]byte("too long")); err != nil {
			t.Error(err)
		}
		<-q.Ready()
		synctest.Wait()
		if n, err := q.Read(b[:3]); n != 3 || err != nil || string(b[:3]) != "too" {
			t.Errorf("%q, %v", b[:n], err)
		}
		for range 2 {
			if err := q.Close(); err != nil {
				t.Error(err)
			}
		}
		<-q.Ready()
		if _, err := q.Read(b); !errors.Is(err, os.ErrClosed) {
			t.Errorf("a closed queue says %v", err)
		}
	})
}

// The end of the device is told after the packets that came before it, and closing does not hang on packets that nobody reads.
func TestQueueEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDevice()
		q := portable.NewQueue(d)
		if err := q.Write([]byte("last")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		d.fail <- io.ErrUnexpectedEOF
		synctest.Wait()
		b := make([]byte, 10)
		if n, err := q.Read(b); string(b[:n]) != "last" || err != nil {
			t.Errorf("%q, %v", b[:n], err)
		}
		if _, err := q.Read(b); !errors.Is(err, os.ErrClosed) || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("error %v", err)
		}
		if err := q.Close(); err != nil {
			t.Error(err)
		}

		q = portable.NewQueue(newDevice())
		for range 60 {
			if err := q.Write([]byte("unread")); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	})
}
