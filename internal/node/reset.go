// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
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
	return reset(ctx, dataDir, runDir, false)
}

// Withdraw removes what [Reset] does, but for the state of the node, which can be launched again.
func Withdraw(ctx context.Context, dataDir, runDir string) (removed []string, err error) {
	return reset(ctx, dataDir, runDir, true)
}

func reset(ctx context.Context, dataDir, runDir string, keepState bool) (removed []string, err error) {
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
	also, err = removePolicies(dataDir) // when nothing is connected any more that they are about
	removed = append(removed, also...)
	if err != nil {
		return removed, err
	}
	files := []string{filepath.Join(runDir, api.SocketName)}
	if keepState {
		if err := forgetChanges(dataDir); err != nil {
			return removed, err
		}
	} else {
		files = slices.Concat(store.Files(dataDir), token.Files(dataDir), files)
	}
	for _, f := range files {
		rerr := os.Remove(f)
		switch {
		case rerr == nil:
			removed = append(removed, f)
		case !errors.Is(rerr, os.ErrNotExist):
			err = errors.Join(err, fmt.Errorf("removing %s: %w", f, rerr))
		}
	}
	if !keepState {
		cleared, cerr := cni.NewBacklog(runDir).Clear()
		removed, err = append(removed, cleared...), errors.Join(err, cerr)
	}
	// Directories go if nothing else lies in them.
	for _, d := range []string{dataDir, runDir} {
		if os.Remove(d) == nil {
			removed = append(removed, d)
		}
	}
	return removed, err
}

// forgetChanges has the next launch find a host on which nothing was changed.
func forgetChanges(dataDir string) error {
	if !store.Exists(dataDir) {
		return nil
	}
	st, err := store.Open(dataDir)
	if err != nil {
		return err
	}
	return errors.Join(saveChanges(st, hostnet.Changes{}), st.Close())
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
