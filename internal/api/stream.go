// SPDX-License-Identifier: Apache-2.0

package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

const (
	maxEventLine = 64 << 10
	// eventTime is how long a client may take to accept a line.
	eventTime = 5 * time.Second
)

// event is a line of an answer that comes in parts: any number with progress, then one with the result or an error.
type event[P, R any] struct {
	Progress *P     `json:"progress,omitempty"`
	Result   *R     `json:"result,omitempty"`
	Error    string `json:"error,omitempty"`
}

// stream answers line by line what f tells of its progress, and then its result. The context of f ends when the client
// hangs up; f calls progress from one goroutine at a time, as long as it runs.
func stream[Q, P, R any](mux *http.ServeMux, name string, f func(ctx context.Context, q Q, progress func(P)) (R, error)) {
	mux.HandleFunc("POST /v1/"+name, func(w http.ResponseWriter, r *http.Request) {
		var q Q
		if !decode(w, r, name, maxBody, &q) {
			return
		}
		// That the client hangs up is seen only once its request has been read to the end.
		_, _ = io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxBody))
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		begun := false
		rc := http.NewResponseController(w)
		say := func(e event[P, R]) {
			if !begun {
				w.Header().Set("Content-Type", "application/x-ndjson")
				begun = true
			}
			err := rc.SetWriteDeadline(time.Now().Add(eventTime))
			if err == nil {
				encode(w, e)
				err = rc.Flush()
			}
			if err != nil {
				cancel() // nobody is there any more
			}
		}
		res, err := f(ctx, q, func(p P) { say(event[P, R]{Progress: &p}) })
		switch {
		case err != nil && !begun:
			answer(w, nil, err)
		case err != nil:
			say(event[P, R]{Error: err.Error()})
		default:
			say(event[P, R]{Result: &res})
		}
	})
}

// follow asks for what stream answers; progress is called as it comes, unless it is nil.
func follow[P, R any](ctx context.Context, c *Client, name string, in any, progress func(P)) (result R, err error) {
	res, err := c.send(ctx, http.MethodPost, name, in)
	if err != nil {
		return result, err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
		if err != nil {
			return result, c.brokeOff(err)
		}
		return result, c.refusal(res, b)
	}
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, maxEventLine)
	for lines.Scan() {
		var e event[P, R]
		if err := json.Unmarshal(bytes.TrimSpace(lines.Bytes()), &e); err != nil {
			return result, fmt.Errorf("the daemon's answer cannot be read: %w; are weft and its daemon of the same version?", err)
		}
		switch {
		case e.Error != "":
			return result, &Refusal{Text: e.Error}
		case e.Result != nil:
			return *e.Result, nil
		case e.Progress != nil && progress != nil:
			progress(*e.Progress)
		}
	}
	err = lines.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return result, c.brokeOff(err)
}
