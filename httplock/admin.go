package httplock

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"github.com/seed-215fdefa/lock"
)

// listLine is one line of a list: a record, or how the list ends. One that has no end was cut off.
type listLine struct {
	Record  *recordBody `json:"record,omitempty"`
	End     bool        `json:"end,omitempty"`
	Problem *problem    `json:"problem,omitempty"`
}

// list streams the records of a prefix, a line of JSON each.
func (h *Handler) list(w http.ResponseWriter, r *http.Request) {
	query, err := readQuery(r, "prefix")
	if err != nil {
		h.fail(w, r, err)
		return
	}
	prefix := query.Get("prefix")
	if err := h.server.Allow(r.Context(), ActionList, prefix); err != nil {
		h.fail(w, r, err)
		return
	}
	lines, begun := json.NewEncoder(w), false
	write := func(line listLine) bool {
		if !begun {
			begun = true
			w.Header().Set("Content-Type", "application/x-ndjson")
			w.Header().Set("Cache-Control", "no-store")
		}
		return lines.Encode(line) == nil
	}
	for rec, err := range h.server.List(r.Context(), prefix) {
		switch {
		case err != nil && !begun:
			h.fail(w, r, err)
			return
		case err != nil:
			write(listLine{Problem: toProblem(h.server.Fail(r.Context(), err))})
			return
		case !write(listLine{Record: toRecord(rec)}):
			return // the client has gone
		}
	}
	write(listLine{End: true})
}

// readQuery returns the query of a request, which has each parameter of known at most once, and no other.
func readQuery(r *http.Request, known ...string) (url.Values, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("%w: query %.80q is not percent-encoded", lock.ErrInvalid, r.URL.RawQuery)
	}
	for name, values := range query {
		switch {
		case !slices.Contains(known, name):
			return nil, fmt.Errorf("%w: unknown parameter %.80q: the path takes %q", lock.ErrInvalid, name, known)
		case len(values) > 1:
			return nil, fmt.Errorf("%w: parameter %q appears %d times", lock.ErrInvalid, name, len(values))
		}
	}
	return query, nil
}

// watch streams an event for each change of key. The end of the stream says that it has ended.
func (h *Handler) watch(w http.ResponseWriter, r *http.Request, key string) {
	begun := false
	err := h.server.Watch(r.Context(), key, func(changed bool) bool {
		event := ": alive\n\n"
		if changed {
			event = "event: changed\ndata:\n\n"
		}
		if !begun {
			begun = true
			w.Header().Set("Content-Type", "text/event-stream")
			w.Header().Set("Cache-Control", "no-store")
			w.Header().Set("X-Accel-Buffering", "no") // nginx would hold events back
		}
		return push(w, event)
	})
	if p := h.server.Fail(r.Context(), err); !begun {
		h.refuse(w, p)
	}
}
