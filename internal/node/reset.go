// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/api"
	"github.com/weftnet/weft/internal/hostnet"
	"github.com/weftnet/weft/internal/netlock"
	"github.com/weftnet/weft/internal/store"
	"github.com/weftnet/weft/internal/token"
	"github.com/weftnet/weft/router/fastpath/kernel"
)

// Reset removes all that Weft made on this host, with the state in dataDir and
// the socket in runDir, and nothing else; it returns what it removed. The
// daemon must have ended. A state that cannot be read any more is removed, too, with what was kept aside of it.
func Reset(ctx context.Context, dataDir, runDir string) (removed []string, err error) {
	lock, err := awaitLock(ctx, runDir)
	if err != nil {
		return nil, err
	}
	defer closing(&err, lock)
	var changes hostnet.Changes
	if store.Exists(dataDir) {
		st, err := store.Open(dataDir)
		switch {
		case errors.Is(err, store.ErrInUse):
			return nil, err
		case err == nil:
			changes, err = loadChanges(st)
			if err = errors.Join(err, st.Close()); err != nil {
				return nil, err
			}
		}
	}
	if removed, err = kernel.New(kernel.Config{Log: zap.NewNop()}).Remove(); err != nil {
		return removed, err
	}
	also, err := hostnet.New(zap.NewNop()).Remove(changes)
	removed = append(removed, also...)
	if err != nil {
		return removed, err
	}
	for _, f := range append(store.Files(dataDir),
		append(token.Files(dataDir), filepath.Join(runDir, api.SocketName))...) {
		rerr := os.Remove(f)
		switch {
		case rerr == nil:
			removed = append(removed, f)
		case !errors.Is(rerr, os.ErrNotExist):
			err = errors.Join(err, fmt.Errorf("removing %s: %w", f, rerr))
		}
	}
	cleared, cerr := cni.NewBacklog(runDir).Clear()
	removed, err = append(removed, cleared...), errors.Join(err, cerr)
	// Directories go if nothing else lies in them.
	for _, d := range []string{dataDir, runDir} {
		if os.Remove(d) == nil {
			removed = append(removed, d)
		}
	}
	return removed, err
}

// awaitLock takes the lock of the network namespace, so that no daemon runs here
// meanwhile, and waits a little for one that is just ending.
func awaitLock(ctx context.Context, runDir string) (io.Closer, error) {
	for end := time.Now().Add(stopPatience); ; time.Sleep(stopPatience / 50) {
		lock, err := netlock.Take(ctx, netlock.Holder{PID: os.Getpid(), Socket: filepath.Join(runDir, api.SocketName)})
		if err == nil {
			return lock, nil
		}
		var taken *netlock.TakenError
		if !errors.As(err, &taken) || time.Now().After(end) {
			return nil, err
		}
	}
}
