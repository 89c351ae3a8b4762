package httplock

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/seed-215fdefa/lock/internal/service"
)

// pushTime is how long a client may take for what a stream sends it.
const pushTime = 10 * time.Second

// Event is a change of an owner's place in line or grant:
//
//	ID       string            // for Last-Event-ID, at this handler
//	Time     time.Time         // when the handler learned of it
//	Kind     EventKind
//	Key      string
//	Owner    string
//	Token    lock.Token        // 0: unknown, or none yet
//	Shared   bool
//	Metadata map[string]string // as far as known
//	Reason   string            // of EventLost, if known; of EventMissed, for people
//	Looked   bool              // a look at the store has found it
type Event = service.Event

// EventKind is what an [Event] tells.
type EventKind = service.EventKind

// The kinds of an [Event].
const (
	EventWaiting  = service.EventWaiting  // stands in line
	EventGranted  = service.EventGranted  // has the lock
	EventReleased = service.EventReleased // the holder has let it go
	EventForced   = service.EventForced   // somebody has ended the grant by force, here
	EventLost     = service.EventLost     // the holder has been told that its grant is gone
	EventExpired  = service.EventExpired  // the grant is gone, and its TTL was over
	EventGone     = service.EventGone     // the grant is gone before its TTL: let go, or forced, elsewhere
	EventLeft     = service.EventLeft     // is not in line any more
	EventMissed   = service.EventMissed   // of no lock: events before this one may be missing
	EventDropped  = service.EventDropped  // of no lock, the last of a stream that was read too slowly
)

// Events returns what the handler remembers: of its newest 4096 events those of keys that begin with
// prefix, and those of no lock, the oldest first, with owners as the store has them. Do not change
// them.
func (h *Handler) Events(prefix string) []*Event { return h.server.Events(prefix) }

// events streams the events of a prefix.
func (h *Handler) events(w http.ResponseWriter, r *http.Request) {
	query, err := readQuery(r, "prefix")
	if err != nil {
		h.fail(w, r, err)
		return
	}
	prefix := query.Get("prefix")
	if err := h.server.Allow(r.Context(), ActionEvents, prefix); err != nil {
		h.fail(w, r, err)
		return
	}
	begun := false
	err = h.server.StreamEvents(r.Context(), prefix, r.Header.Get("Last-Event-ID"), func(events []Event) bool {
		text := ": alive\n\n"
		if len(events) > 0 {
			text = eventText(events)
		}
		if !begun {
			begun = true
			w.Header().Set("Content-Type", "text/event-stream")
			w.Header().Set("Cache-Control", "no-store")
			w.Header().Set("X-Accel-Buffering", "no") // nginx would hold events back
		}
		return push(w, text)
	})
	if err == nil { // the client was too slow
		return
	}
	if p := h.server.Fail(r.Context(), err); !begun {
		h.refuse(w, p)
	}
}

func eventText(events []Event) string {
	var text strings.Builder
	for _, e := range events {
		b, err := json.Marshal(e)
		if err != nil {
			panic("httplock: an event has no JSON: " + err.Error())
		}
		if e.ID != "" {
			fmt.Fprintf(&text, "id: %s\n", e.ID)
		}
		fmt.Fprintf(&text, "event: %s\ndata: %s\n\n", e.Kind, b)
	}
	return text.String()
}

// push sends text on a stream. It reports false if the client has gone, or takes nothing.
func push(w http.ResponseWriter, text string) bool {
	c := http.NewResponseController(w)
	_ = c.SetWriteDeadline(time.Now().Add(pushTime)) // not all writers have it
	if _, err := io.WriteString(w, text); err != nil {
		return false
	}
	_ = c.Flush()                       // if the client has gone, the next write fails
	_ = c.SetWriteDeadline(time.Time{}) // which would end a stream of HTTP/2 that is silent
	return true
}
