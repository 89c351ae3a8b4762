package service

import (
	"context"
	"crypto/rand"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/seed-215fdefa/lock"
)

// EventKind is what an [Event] tells.
type EventKind string

// The kinds of an [Event].
const (
	EventWaiting  EventKind = "waiting"  // stands in line
	EventGranted  EventKind = "granted"  // has the lock
	EventReleased EventKind = "released" // the holder has let it go
	EventForced   EventKind = "forced"   // somebody has ended the grant by force, here
	EventLost     EventKind = "lost"     // the holder has been told that its grant is gone
	EventExpired  EventKind = "expired"  // the grant is gone, and its TTL was over
	EventGone     EventKind = "gone"     // the grant is gone before its TTL: let go, or forced, elsewhere
	EventLeft     EventKind = "left"     // is not in line any more
	EventMissed   EventKind = "missed"   // of no lock: events before this one may be missing
	EventDropped  EventKind = "dropped"  // of no lock, the last of a stream that was read too slowly
)

// Event is a change of an owner's place in line or grant.
type Event struct {
	ID       string            `json:"id"`   // for Last-Event-ID, at this server
	Time     time.Time         `json:"time"` // when the server learned of it
	Kind     EventKind         `json:"kind"`
	Key      string            `json:"key,omitempty"`
	Owner    string            `json:"owner,omitempty"`
	Token    lock.Token        `json:"token,omitempty"` // 0: unknown, or none yet
	Shared   bool              `json:"shared,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"` // as far as known
	Reason   string            `json:"reason,omitempty"`   // of lost, if known; of missed
	Looked   bool              `json:"looked,omitempty"`   // a look at the store has found it

	deadline time.Time // of a grant: when its TTL may be over; zero: unknown
}

const (
	journalSize = 4096
	maxReaders  = 1000
	maxBatch    = 256 // events that are sent at once
)

// journal has the newest events. It is safe for concurrent use.
type journal struct {
	epoch string // begins its ids: those of another server mean nothing here

	mu      sync.Mutex // guards the rest
	ring    [journalSize]*Event
	next    uint64           // the number of the event to come, from 1; number n is at n%journalSize
	last    map[place]*Event // the newest of each place in the ring
	readers map[*reader]bool
	looks   *looks // nil if nobody reads, or the store cannot list
}

// reader is a stream of events. The journal's mu guards next and dropped.
type reader struct {
	prefix  string
	wake    chan struct{} // has room for one: there are events
	next    uint64        // where it goes on
	dropped bool          // an event that it should have had is not there any more
}

func newJournal() *journal {
	return &journal{epoch: rand.Text()[:8], next: 1, last: make(map[place]*Event), readers: make(map[*reader]bool)}
}

// rank is how far an owner has come. What an event tells is news only if the rank rises: an answer
// may be given again, and a look may see what has been told, or is over.
var rank = map[EventKind]int{
	EventWaiting: 1, EventGranted: 2, EventForced: 3, EventExpired: 3, EventGone: 3,
	EventReleased: 4, EventLost: 4, EventLeft: 4,
}

// tell adds what a call has brought about, unless it is no news.
func (j *journal) tell(e Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.add(e) && j.looks != nil {
		j.looks.note(e)
	}
}

// granted tells of the grant of a request.
func (j *journal) granted(req lock.Request, g lock.Grant) {
	j.tell(Event{
		Kind: EventGranted, Key: req.Key, Owner: req.Owner, Token: g.Token, Shared: req.Shared, Metadata: req.Metadata,
		deadline: g.Start.Add(g.TTL),
	})
}

// add adds e, unless it is no news. j.mu is held.
func (j *journal) add(e Event) bool {
	p := place{e.Key, e.Owner}
	before := j.last[p]
	if before == nil && j.looks != nil {
		before = j.looks.known(p)
	}
	if before != nil {
		if !e.follows(before) {
			return false
		}
	} else if e.Kind == EventLeft && !e.Looked {
		return false // whatever it was that has been undone
	}
	e.ID, e.Time = j.id(j.next), time.Now()
	at := &j.ring[j.next%journalSize]
	old := *at
	if old != nil && j.last[place{old.Key, old.Owner}] == old {
		delete(j.last, place{old.Key, old.Owner})
	}
	*at = &e
	if e.Key != "" {
		j.last[p] = &e
	}
	for r := range j.readers {
		if old != nil && r.next <= j.next-journalSize && old.under(r.prefix) {
			r.dropped = true
		}
		if e.under(r.prefix) {
			select {
			case r.wake <- struct{}{}:
			default:
			}
		}
	}
	j.next++
	return true
}

// follows reports whether e is news after before, and adds to it what is known from there.
func (e *Event) follows(before *Event) bool {
	if e.Kind == EventLost && before.Token > 0 && e.Token != before.Token {
		return false // who asked with a wrong token knows of a grant that is not there, not of this one
	}
	// An owner that is used again, as scripts do, begins anew.
	if e.Kind == EventWaiting && !e.Looked && rank[before.Kind] > 2 || before.Token > 0 && e.Token > before.Token {
		return true
	}
	if rank[e.Kind] <= rank[before.Kind] {
		return false
	}
	if e.Kind == EventLeft && before.Kind == EventGranted {
		e.Kind = EventReleased // by an undo
	}
	e.Token = max(e.Token, before.Token)
	if e.Metadata == nil {
		e.Shared, e.Metadata = before.Shared, before.Metadata
	}
	return true
}

// under reports whether readers of the prefix shall see e.
func (e *Event) under(prefix string) bool { return e.Key == "" || strings.HasPrefix(e.Key, prefix) }

func (j *journal) id(n uint64) string { return j.epoch + "-" + strconv.FormatUint(n, 10) }

// position is where to go on behind the event of that id: "" is now, "0" the oldest. If that is not
// known it is now too, and missed. j.mu is held.
func (j *journal) position(id string) (n uint64, missed bool) {
	switch id {
	case "":
		return j.next, false
	case "0":
		return j.oldest(), false
	}
	number, ours := strings.CutPrefix(id, j.epoch+"-")
	n, err := strconv.ParseUint(number, 10, 64)
	if !ours || err != nil || n >= j.next || n+1 < j.oldest() {
		return j.next, true
	}
	return n + 1, false
}

// oldest is the number of the oldest event. j.mu is held.
func (j *journal) oldest() uint64 { return max(j.next, journalSize+1) - journalSize }

// read returns the next events of r, at most so many. It reports false if some were dropped.
func (j *journal) read(r *reader, most int) (events []*Event, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if r.dropped {
		return nil, false
	}
	for r.next = max(r.next, j.oldest()); r.next < j.next && len(events) < most; r.next++ {
		if e := j.ring[r.next%journalSize]; e.under(r.prefix) {
			events = append(events, e)
		}
	}
	return events, true
}

// Events returns what the server remembers: of its newest 4096 events those of keys that begin with
// prefix, and those of no lock, the oldest first, with owners as the store has them. Do not change
// them.
func (s *Server) Events(prefix string) []*Event {
	events, _ := s.journal.read(&reader{prefix: prefix}, journalSize)
	return events
}

// listen begins a stream behind the event of that id, and with the first stream the looks. missed is
// that of position.
func (s *Server) listen(prefix, id string) (r *reader, missed bool, err error) {
	j := s.journal
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case len(j.readers) >= maxReaders:
		return nil, false, &Problem{Kind: KindCrowded, Detail: fmt.Sprintf("%d read events here already", maxReaders)}
	case len(j.readers) == 0 && !s.startLooks():
		return nil, false, &Problem{Kind: KindStopping}
	}
	r = &reader{prefix: prefix, wake: make(chan struct{}, 1)}
	r.next, missed = j.position(id)
	j.readers[r] = true
	return r, missed, nil
}

// unlisten ends a stream, and with the last one the looks.
func (j *journal) unlisten(r *reader) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.readers, r)
	if len(j.readers) == 0 && j.looks != nil {
		j.looks.stop()
		j.looks = nil
	}
}

// StreamEvents calls send with what becomes of the locks of a prefix, until that reports that the
// client has gone, ctx or the server ends, or the client is too slow. It begins behind the event
// that has the id after: "" is now, "0" the oldest. Every PingInterval it asks Allow, and ends with
// its error or calls send with none, as it does to begin.
func (s *Server) StreamEvents(ctx context.Context, prefix, after string, send func([]Event) bool) error {
	if !utf8.ValidString(prefix) {
		return &Problem{Kind: KindInvalid, Detail: "prefix is not valid UTF-8"}
	}
	r, missed, err := s.listen(prefix, after)
	if err != nil {
		return err
	}
	defer s.journal.unlisten(r)
	var events []Event
	if missed {
		events = []Event{{ID: s.journal.id(r.next - 1), Time: time.Now(), Kind: EventMissed, Reason: "the last event id is too old, or another replica's"}}
	}
	ping := time.NewTicker(PingInterval)
	defer ping.Stop()
	more := make(chan struct{})
	close(more)
	for begun := false; ; begun = true {
		if (!begun || len(events) > 0) && !send(events) {
			return context.Canceled
		}
		batch, ok := s.journal.read(r, maxBatch)
		if !ok {
			send([]Event{{Time: time.Now(), Kind: EventDropped}})
			return nil
		}
		ready := r.wake
		if events = s.scope(ctx).viewEvents(batch); len(events) > 0 {
			ready = more // among the others, so that a stream that never pauses ends too
		}
		select {
		case <-ready:
		case <-ping.C:
			if err := s.Allow(ctx, ActionEvents, prefix); err != nil {
				return err
			}
			if !send(nil) {
				return context.Canceled
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-s.waits.base.Done():
			return &Problem{Kind: KindStopping}
		}
	}
}

// viewEvents are the events as the caller shall see them.
func (s scope) viewEvents(events []*Event) []Event {
	var views []Event
	for _, e := range events {
		view := *e
		view.Owner = s.cut(e.Owner)
		views = append(views, view)
	}
	return views
}
