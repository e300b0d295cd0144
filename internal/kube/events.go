// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"go.uber.org/zap"
)

// Types of an Event.
const (
	normal  = "Normal"
	warning = "Warning"
)

const (
	// sameAgain is how long an Event is not repeated, and maxRemembered how many are remembered for that.
	sameAgain     = 10 * time.Minute
	maxRemembered = 256
	// eventRate is the time between two Events in the long run; eventBurst may come at once, and as many wait.
	eventRate  = 5 * time.Second
	eventBurst = 20
	eventTries = 5
	maxMessage = 1000 // bytes, of the 1024 that the API server takes
)

// A Pod is one as the container runtime names it.
type Pod struct{ Namespace, Name, UID string }

// recorder writes Events, as many as one may want to read. It is safe for concurrent use.
type recorder struct {
	cluster *Cluster
	node    string
	log     *zap.Logger
	queue   chan event

	mu      sync.Mutex
	told    map[string]time.Time // by object, reason and message
	tokens  int
	counted time.Time // when tokens was
	number  uint64    // of the last Event
}

func newRecorder(c *Cluster, node string, log *zap.Logger) *recorder {
	return &recorder{cluster: c, node: node, log: log, queue: make(chan event, eventBurst), told: map[string]time.Time{}, tokens: eventBurst}
}

// onNode tells something about this node where kubectl describe node shows it.
func (r *recorder) onNode(kind, reason, message string) {
	// The kubelet names Nodes by their names in the place of their UIDs, and kubectl looks for that.
	r.add(objectReference{Kind: "Node", APIVersion: "v1", Name: r.node, UID: types.UID(r.node)}, metav1.NamespaceDefault, kind, reason, message)
}

// onPod tells something about a pod of this node.
func (r *recorder) onPod(p Pod, kind, reason, message string) {
	r.add(objectReference{Kind: "Pod", APIVersion: "v1", Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.UID)}, p.Namespace, kind, reason, message)
}

func (r *recorder) add(about objectReference, namespace, kind, reason, message string) {
	if len(message) > maxMessage {
		message = message[:maxMessage] + "..."
	}
	now := time.Now()
	number, ok := r.admit(now, fmt.Sprint(about, reason, message))
	if !ok {
		return
	}
	e := event{
		TypeMeta:       metav1.TypeMeta{APIVersion: "v1", Kind: "Event"},
		ObjectMeta:     metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("%s.weft.%x.%x", about.Name, now.UnixNano(), number)},
		InvolvedObject: about, Reason: reason, Message: message, Type: kind, Count: 1,
		Source: eventSource{Component: "weft", Host: r.node}, FirstTimestamp: metav1.NewTime(now), LastTimestamp: metav1.NewTime(now),
	}
	select {
	case r.queue <- e:
	default: // the API server is away, and there is enough to tell already
	}
}

// admit tells whether an Event is worth telling, and numbers it.
func (r *recorder) admit(now time.Time, what string) (number uint64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for told, at := range r.told {
		if now.Sub(at) > sameAgain || len(r.told) > maxRemembered {
			delete(r.told, told)
		}
	}
	if _, again := r.told[what]; again {
		return 0, false
	}
	if r.counted.IsZero() {
		r.counted = now
	}
	if gained := int(now.Sub(r.counted) / eventRate); gained > 0 {
		r.tokens, r.counted = min(r.tokens+gained, eventBurst), r.counted.Add(time.Duration(gained)*eventRate)
	}
	if r.tokens == 0 {
		return 0, false
	}
	r.tokens--
	r.told[what] = now
	r.number++
	return r.number, true
}

// run writes what is told until ctx ends.
func (r *recorder) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-r.queue:
			if err := r.write(ctx, e); err != nil && ctx.Err() == nil {
				r.log.Warn("an Event could not be written", zap.String("reason", e.Reason), zap.Error(err))
			}
		}
	}
}

func (r *recorder) write(ctx context.Context, e event) (err error) {
	wait := retryAfter
	for range eventTries {
		if err = r.cluster.events(e.Namespace).create(ctx, &e); err == nil || unmet(err) {
			return nil // unmet: it was written by a try that seemed to fail, or the namespace is gone
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
		wait *= 3
	}
	return err
}
