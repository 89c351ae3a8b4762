package httplock

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/seed-215fdefa/lock"
)

// pingInterval is how often a stream says that it is alive.
const pingInterval = 5 * time.Second

// listLine is one line of a list: a record, or how the list ends. One that has no end was cut off.
type listLine struct {
	Record  *recordBody `json:"record,omitempty"`
	End     bool        `json:"end,omitempty"`
	Problem *problem    `json:"problem,omitempty"`
}

func unsupported(what string, l lock.Locker) error {
	return fmt.Errorf("%w: store %s does not %s", lock.ErrUnsupported, l.Capabilities().Store, what)
}

// force ends a grant by force.
func (h *Handler) force(w http.ResponseWriter, r *http.Request, key string) error {
	var b forceBody
	if err := read(w, r, &b); err != nil {
		return err
	}
	callOf(r).Owner = b.Owner
	if err := lock.CheckGrant(lock.Grant{Key: key, Owner: b.Owner}); err != nil {
		return err
	}
	admin, ok := lock.As[lock.Admin](h.locker)
	if !ok {
		return unsupported("force releases", h.locker)
	}
	err := admin.ForceRelease(r.Context(), key, b.Owner)
	if own := h.scope(r).add(b.Owner); own != b.Owner && errors.Is(err, lock.ErrLost) { // the caller's own is shown cut
		callOf(r).Owner = own
		err = admin.ForceRelease(r.Context(), key, own)
	}
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// list streams the records of a prefix, a line of JSON each.
func (h *Handler) list(w http.ResponseWriter, r *http.Request) {
	prefix := r.URL.Query().Get("prefix")
	if err := h.allow(r, ActionList, prefix); err != nil {
		h.fail(w, r, err)
		return
	}
	if !utf8.ValidString(prefix) {
		h.fail(w, r, newProblem(kindInvalid, "prefix is not valid UTF-8"))
		return
	}
	admin, ok := lock.As[lock.Admin](h.locker)
	if !ok {
		h.fail(w, r, unsupported("list", h.locker))
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
	s := h.scope(r)
	for rec, err := range admin.List(r.Context(), prefix) {
		switch {
		case err != nil && !begun:
			h.fail(w, r, err)
			return
		case err != nil:
			if h.errorLog != nil {
				h.errorLog(r, err)
			}
			p := problemOf(err)
			callOf(r).failed(r, p)
			write(listLine{Problem: p})
			return
		case !write(listLine{Record: s.view(toRecord(rec))}):
			return // the client has gone
		}
	}
	write(listLine{End: true})
}

// watch streams an event for each change of key.
func (h *Handler) watch(w http.ResponseWriter, r *http.Request, key string) {
	watcher, ok := lock.As[lock.Watcher](h.locker)
	if !ok {
		h.fail(w, r, unsupported("watch", h.locker))
		return
	}
	changed, ended := make(chan struct{}, 1), make(chan error, 1)
	spawned := h.waits.spawn(func() {
		ended <- watcher.Watch(r.Context(), key, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	})
	if !spawned {
		h.fail(w, r, newProblem(kindStopping, ""))
		return
	}
	h.stream(w, r, changed, ended)
}

// stream sends events until ended, or the client or the handler has gone.
func (h *Handler) stream(w http.ResponseWriter, r *http.Request, changed <-chan struct{}, ended <-chan error) {
	c, ping := http.NewResponseController(w), time.NewTicker(pingInterval)
	defer ping.Stop()
	for begun := false; ; {
		event := ""
		select {
		case <-changed:
			event = "event: changed\ndata:\n\n"
		case <-ping.C:
			event = ": alive\n\n"
		case err := <-ended:
			if !begun {
				h.fail(w, r, err)
			}
			return // the end of the stream says it
		case <-h.waits.base.Done():
			return
		}
		if !begun {
			begun = true
			w.Header().Set("Content-Type", "text/event-stream")
			w.Header().Set("Cache-Control", "no-store")
		}
		if _, err := w.Write([]byte(event)); err != nil {
			return
		}
		if err := c.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return
		}
	}
}
