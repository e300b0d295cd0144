// SPDX-License-Identifier: Apache-2.0

package kubetest

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// target is what a request is about.
type target struct {
	namespace, plural, name, sub string
}

func (t target) path() string {
	if t.namespace == "" {
		return t.plural + "/" + t.name
	}
	return t.namespace + "/" + t.plural + "/" + t.name
}

// parse reads /api/v1/... and /apis/GROUP/v1/... .
func parse(path string) (t target, ok bool) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	switch {
	case len(parts) > 2 && parts[0] == "api":
		parts = parts[2:]
	case len(parts) > 3 && parts[0] == "apis":
		parts = parts[3:]
	default:
		return t, false
	}
	if len(parts) > 2 && parts[0] == "namespaces" {
		t.namespace, parts = parts[1], parts[2:]
	}
	t.plural = parts[0]
	if len(parts) > 1 {
		t.name = parts[1]
	}
	if len(parts) > 2 {
		t.sub = parts[2]
	}
	return t, true
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	t, ok := parse(r.URL.Path)
	query := r.URL.Query()
	verb := map[string]string{http.MethodGet: "get", http.MethodPost: "create", http.MethodPatch: "patch"}[r.Method]
	if verb == "get" && t.name == "" {
		if verb = "list"; query.Get("watch") != "" {
			verb = "watch"
		}
	}
	if !ok || verb == "" {
		refuse(w, http.StatusMethodNotAllowed, "MethodNotAllowed", "kubetest does not do that: "+r.Method+" "+r.URL.Path)
		return
	}
	var body Object
	if verb == "create" || verb == "patch" { // whole before anything else: a request may take effect when its sender is gone
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			refuse(w, http.StatusBadRequest, "BadRequest", err.Error())
			return
		}
	}
	q := Request{Agent: r.UserAgent(), Verb: verb, Resource: t.plural}
	s.mu.Lock()
	s.counts[q]++
	fate, down, unknown, lists := s.fate, s.down, s.unknown[t.plural], s.lists
	s.mu.Unlock()
	q.Name = t.name
	became := Pass
	if fate != nil {
		became = fate(q)
	}
	if down || became == Refuse {
		panic(http.ErrAbortHandler)
	}
	if became == Forbid {
		refuse(w, http.StatusForbidden, "Forbidden", verb+" "+t.plural+" is forbidden")
		return
	}
	if unknown {
		refuse(w, http.StatusNotFound, "NotFound", "the server could not find the requested resource")
		return
	}
	if lists && query.Get("sendInitialEvents") != "" {
		refuse(w, http.StatusUnprocessableEntity, "Invalid", "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled")
		return
	}
	switch verb {
	case "watch":
		s.watch(w, r, t, query)
		return
	case "list":
		s.list(w, t, query)
		return
	}
	code, answer := s.change(r.Header.Get("Content-Type"), t, verb, body)
	if became == Lose {
		panic(http.ErrAbortHandler)
	}
	answerJSON(w, code, answer)
}

// change does what is asked for, and returns the answer.
func (s *Server) change(contentType string, t target, verb string, body Object) (int, any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if verb == "create" {
		if t.name, _ = metaOf(body)["name"].(string); t.name == "" {
			return status(http.StatusUnprocessableEntity, "Invalid", "the object has no name")
		}
	}
	o := decode(s.objects[t.path()])
	switch {
	case verb == "create" && o != nil:
		return status(http.StatusConflict, "AlreadyExists", t.path()+" already exists")
	case verb == "create":
		s.put(t.path(), body)
		return http.StatusCreated, json.RawMessage(s.objects[t.path()])
	case o == nil:
		return status(http.StatusNotFound, "NotFound", t.path()+" not found")
	case verb == "get":
		return http.StatusOK, o
	}
	if version, ok := metaOf(body)["resourceVersion"]; ok && version != metaOf(o)["resourceVersion"] {
		return status(http.StatusConflict, "Conflict", "the object has been modified")
	}
	if t.sub != "status" {
		delete(body, "status")
	} else {
		delete(body, "spec")
	}
	switch contentType {
	case "application/merge-patch+json":
		merge(o, body)
	case "application/strategic-merge-patch+json":
		conditions(o, body)
		delete(body, "status")
		merge(o, body)
	default:
		return status(http.StatusUnsupportedMediaType, "UnsupportedMediaType", contentType)
	}
	s.put(t.path(), o)
	return http.StatusOK, json.RawMessage(s.objects[t.path()])
}

// merge applies a merge patch (RFC 7386).
func merge(o, patch Object) {
	for k, v := range patch {
		sub, is := v.(Object)
		into, has := o[k].(Object)
		switch {
		case v == nil:
			delete(o, k)
		case is && has:
			merge(into, sub)
		default:
			o[k] = v
		}
	}
}

// conditions applies a patch of status.conditions, which are merged by their type.
func conditions(o, patch Object) {
	st, _ := o["status"].(Object)
	if st == nil {
		st = Object{}
		o["status"] = st
	}
	of, _ := patch["status"].(Object)
	news, _ := of["conditions"].([]any)
	have, _ := st["conditions"].([]any)
	for _, n := range news {
		c, _ := n.(Object)
		found := false
		for i, h := range have {
			if old, _ := h.(Object); old["type"] == c["type"] {
				merge(old, c)
				have[i], found = old, true
			}
		}
		if !found {
			have = append(have, c)
		}
	}
	st["conditions"] = have
}

// selects tells whether a list or watch has an object of this path.
func selects(t target, query url.Values, path string) bool {
	prefix := t.plural + "/"
	if t.namespace != "" {
		prefix = t.namespace + "/" + prefix
	}
	if t.namespace == "" && strings.Count(path, "/") == 2 { // of all namespaces
		_, path, _ = strings.Cut(path, "/")
	}
	name, ok := strings.CutPrefix(path, prefix)
	if wanted, only := strings.CutPrefix(query.Get("fieldSelector"), "metadata.name="); only {
		return ok && name == wanted
	}
	return ok
}

// list answers with all objects, or with a page of them, in the order of their paths; the next page begins where that ends.
func (s *Server) list(w http.ResponseWriter, t target, query url.Values) {
	s.mu.Lock()
	apiVersion, kind := kindOf(t.plural)
	limit, _ := strconv.Atoi(query.Get("limit"))
	after := query.Get("continue")
	meta := Object{"resourceVersion": strconv.Itoa(s.version)}
	items := []json.RawMessage{}
	last := ""
	for _, path := range slices.Sorted(maps.Keys(s.objects)) {
		if !selects(t, query, path) || path <= after {
			continue
		}
		if limit > 0 && len(items) == limit {
			meta["continue"] = last
			break
		}
		items, last = append(items, s.objects[path]), path
	}
	answer := Object{"apiVersion": apiVersion, "kind": kind + "List", "metadata": meta, "items": items}
	s.mu.Unlock()
	answerJSON(w, http.StatusOK, answer)
}

// watch sends what changes from a version on, until the client or the server goes. Where initial events are asked for, what there is comes
// first, and a bookmark after it.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, t target, query url.Values) {
	s.watches.Add(1)
	defer s.watches.Add(-1)
	flush, _ := w.(http.Flusher)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	s.mu.Lock()
	at, _ := strconv.Atoi(query.Get("resourceVersion"))
	var first []change
	if query.Get("sendInitialEvents") != "true" && at < s.oldest {
		_, answer := status(http.StatusGone, "Expired", "too old resource version")
		first, at = []change{{kind: "ERROR", object: encode(answer.(Object))}}, s.version
	}
	if query.Get("sendInitialEvents") == "true" {
		at = s.version
		for path, o := range s.objects {
			if selects(t, query, path) {
				first = append(first, change{kind: "ADDED", object: o})
			}
		}
		apiVersion, kind := kindOf(t.plural)
		first = append(first, change{kind: "BOOKMARK", object: encode(Object{"apiVersion": apiVersion, "kind": kind, "metadata": Object{
			"resourceVersion": strconv.Itoa(at), "annotations": Object{"k8s.io/initial-events-end": "true"},
		}})})
	}
	s.mu.Unlock()
	for _, c := range first {
		if c.send(w) != nil {
			return
		}
	}
	for {
		s.mu.Lock()
		var events []change
		for i := len(s.history) - 1; i >= 0 && s.history[i].version > at; i-- {
			if selects(t, query, s.history[i].path) {
				events = append(events, s.history[i])
			}
		}
		at = s.version
		news, down := s.news, s.down
		s.mu.Unlock()
		for i := len(events) - 1; i >= 0; i-- {
			if events[i].send(w) != nil {
				return
			}
		}
		flush.Flush()
		if down {
			panic(http.ErrAbortHandler)
		}
		select {
		case <-r.Context().Done():
			return
		case <-news:
		}
	}
}

// send writes a change as watches have it.
func (c change) send(w io.Writer) error {
	_, err := fmt.Fprintf(w, `{"type":%q,"object":%s}`+"\n", c.kind, c.object)
	return err
}

func status(code int, reason, message string) (int, any) {
	return code, Object{"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": code}
}

func refuse(w http.ResponseWriter, code int, reason, message string) {
	_, answer := status(code, reason, message)
	answerJSON(w, code, answer)
}

func answerJSON(w http.ResponseWriter, code int, answer any) {
	b, err := json.Marshal(answer)
	if err != nil {
		panic(fmt.Sprintf("kubetest: %v", err))
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(b)
}
