// SPDX-License-Identifier: Apache-2.0

package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/weftnet/weft/cni"
	"github.com/weftnet/weft/internal/fault"
)

// Requests come in any order: a daemon that was stopped for a while finds in its socket what plugins have asked that have ended since, besides
// what they have kept in the backlog, and what newer ones ask. So each tells when it was begun; and none acts after a newer one of the same.

// errGone ends what nobody waits for any more, before it has begun.
var errGone = errors.New("whoever asked for it has gone; ask again")

// deletion is what a runtime has deleted.
type deletion struct{ id, network string }

// note remembers a deletion as long as an older request to attach the same may come.
func (ws *workloads) note(r cni.Release) {
	now := ws.uptime()
	if r.Begun == 0 || r.Begun > now || now-r.Begun > cni.Lifetime { // nobody knows, of another boot, or older than any such
		return
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.deleted == nil || now-ws.tidied > cni.Lifetime {
		kept := map[deletion]time.Duration{}
		for d, at := range ws.deleted {
			if now-at <= cni.Lifetime {
				kept[d] = at
			}
		}
		ws.deleted, ws.tidied = kept, now
	}
	d := deletion{keyID(r.Key), r.Network}
	ws.deleted[d] = max(ws.deleted[d], r.Begun)
}

// late says why a request to attach is not to be carried out any more. The caller has the workload's lock.
func (ws *workloads) late(ctx context.Context, want workload) error {
	if ctx.Err() != nil {
		return errGone
	}
	if want.Asked == 0 {
		return nil
	}
	if age := ws.uptime() - want.Asked; age > cni.Lifetime {
		return fmt.Errorf("it was asked for %v ago, and nobody waits for it any more; ask again", age.Round(time.Second))
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if at, ok := ws.deleted[deletion{want.ID, want.CNI.Network}]; ok && want.Asked <= at {
		return fmt.Errorf("%s of container %s was deleted after this was asked for; ask again", want.IfName, want.CNI.ContainerID)
	}
	if w, ok := ws.all[want.ID]; ok && w.Boot == ws.boot && want.Asked < w.Asked && (want.Netns != w.Netns || want.NetnsID != w.NetnsID) {
		return fmt.Errorf("%s of container %s was added again after this was asked for; ask again", want.IfName, want.CNI.ContainerID)
	}
	return nil
}

// means tells whether a release is of w: not of what another network has, nor of what was added again after it was asked for. A record that does not
// say whose it is belongs to whoever has its key.
func (ws *workloads) means(r cni.Release, w workload) bool {
	if w.CNI != nil && w.CNI.Network != r.Network {
		return false
	}
	return r.Begun == 0 || w.Boot != ws.boot || w.Asked <= r.Begun
}

// since tells whether w was attached, or asked for, after begun. Of what an earlier run has attached only the latter is known.
func (ws *workloads) since(w workload, begun time.Duration) bool {
	return begun != 0 && w.Boot == ws.boot && max(w.Asked, w.done) > begun
}

// stuckPause is how long a release that has failed is left alone by the requests of other workloads.
const stuckPause = repairInterval

// setbacks are the releases of the backlog that have failed. The zero value is ready, and safe for concurrent use.
type setbacks struct {
	mu sync.Mutex
	of map[deletion]setback
}

type setback struct {
	err error
	at  time.Duration
}

// last is how a release has failed a moment ago; nil: it has not.
func (s *setbacks) last(d deletion, now time.Duration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, ok := s.of[d]; ok && now-b.at < stuckPause {
		return b.err
	}
	return nil
}

// set keeps what has become of a release.
func (s *setbacks) set(d deletion, now time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		delete(s.of, d)
		return
	}
	if s.of == nil {
		s.of = map[deletion]setback{}
	}
	s.of[d] = setback{err, now}
}

// workOff does what runtimes have deleted while no daemon was there, and returns what of it could not be done, by workload; it is done the next
// time. The error says that it is not known what there is to do. A request of one workload, own, leaves alone for a while what has failed of others;
// with an empty own everything is tried.
func (n *Node) workOff(e *engines, own string) (failed map[string]error, err error) {
	failed = map[string]error{}
	known, news := false, false
	err = n.backlog.Each(func(r cni.Release) error {
		known = true
		if checkKey(r.Key) != nil {
			return nil // nothing is attached under such a key
		}
		d := deletion{keyID(r.Key), r.Network}
		if own != "" && d.id != own {
			if err := n.setbacks.last(d, n.sys.uptime()); err != nil {
				failed[d.id] = err
				return err
			}
		}
		err := e.workloads.detachCNI(context.Background(), r)
		fault.Point("backlog-carried-out")
		n.setbacks.set(d, n.sys.uptime(), err)
		if err != nil {
			news = true
			failed[d.id] = err
		}
		return err
	})
	if err == nil {
		n.setWarning("backlog", "")
		return nil, nil
	}
	text := strings.ReplaceAll(err.Error(), "\n", "; ")
	if news || !known {
		n.log.Warn("not all that was deleted while no daemon ran could be detached; trying again", zap.String("error", text))
	}
	n.setWarning("backlog", "not all that was deleted while no daemon ran could be detached: "+text)
	if known {
		return failed, nil
	}
	return nil, err
}
