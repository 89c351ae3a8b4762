package service

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/seed-215fdefa/lock"
)

const (
	lookInterval = time.Second
	lookPause    = 10     // times as long as the look before took, if that is longer
	maxPrefixes  = 8      // that are listed apart
	maxSeen      = 10_000 // grants and waiters
)

// looks finds by looking at the store what this server has not been asked for: expiries, and what
// other replicas and programs do. It lists what is read, and compares with the list before.
type looks struct {
	s     *Server
	admin lock.Admin
	stop  context.CancelFunc
	blind bool // the last look failed

	// The journal's mu guards these.
	seen     map[place]sight // what was there when it was last heard of: by a look, or a call since
	ended    map[place]bool  // what calls have ended during this look, which may have seen it
	prefixes []string        // that the last look listed: sorted, none begins with another
	partly   map[side]bool   // what it has not seen all of
}

// side is the holders or the waiters of a key.
type side struct {
	key  string
	kind EventKind // EventGranted or EventWaiting
}

// sight is a grant or a waiter that was there.
type sight struct {
	Event        // EventGranted or EventWaiting
	missing bool // the last look did not find it: a list may leave out what changes meanwhile
}

// startLooks begins to look, until stop or the end of s, if the store can list. It reports false if
// s has ended. The journal's mu is held.
func (s *Server) startLooks() bool {
	admin, ok := lock.As[lock.Admin](s.locker)
	if !ok {
		return !s.waits.stopped()
	}
	ctx, cancel := context.WithCancel(s.waits.base)
	l := &looks{s: s, admin: admin, stop: cancel, seen: make(map[place]sight)}
	if !s.waits.spawn(func() { l.run(ctx) }) {
		cancel()
		return false
	}
	s.journal.looks = l
	return true
}

func (l *looks) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		begun := time.Now()
		l.report(l.look(ctx))
		timer.Reset(max(lookInterval, lookPause*time.Since(begun)))
	}
}

// report tells readers that a look failed, once until one succeeds.
func (l *looks) report(failure string) {
	j := l.s.journal
	j.mu.Lock()
	defer j.mu.Unlock()
	if failure != "" && !l.blind && j.looks == l {
		j.add(Event{Kind: EventMissed, Reason: failure, Looked: true})
	}
	l.blind = failure != ""
}

// look lists what is read and tells what is new. It returns why it could not, or "".
func (l *looks) look(ctx context.Context) (failure string) {
	ctx, cancel := context.WithTimeout(ctx, lock.Patience)
	defer cancel()
	j := l.s.journal
	j.mu.Lock()
	l.ended = make(map[place]bool)
	prefixes := j.prefixes()
	j.mu.Unlock()
	begun, found, partly := time.Now(), make(map[place]sight), make(map[side]bool)
	for _, prefix := range prefixes {
		for rec, err := range l.admin.List(ctx, prefix) {
			if err != nil {
				return "the store did not answer a look"
			}
			if rec.HolderCount > len(rec.Holders) {
				partly[side{rec.Key, EventGranted}] = true
			}
			if rec.WaiterCount > len(rec.Waiters) {
				partly[side{rec.Key, EventWaiting}] = true
			}
			if addSights(found, rec, begun); len(found) > maxSeen {
				break
			}
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.looks != l: // others look now
	case len(found) > maxSeen:
		l.seen, l.prefixes = make(map[place]sight), nil
		failure = "there is too much to look at: more than 10000 grants and waiters"
	case len(l.ended) > journalSize:
		l.seen, l.prefixes = found, nil
		failure = "more ended during a look than is remembered"
	default:
		l.tellEnds(found, prefixes, partly)
		l.tellNew(found)
		l.seen, l.prefixes = found, prefixes
	}
	l.partly = partly
	l.ended = nil
	return failure
}

// known is the last that was heard of p, or nil. The journal's mu is held.
func (l *looks) known(p place) *Event {
	if s, ok := l.seen[p]; ok {
		return &s.Event
	}
	return nil
}

// note keeps what a call has told. The journal's mu is held.
func (l *looks) note(e Event) {
	p := place{e.Key, e.Owner}
	switch {
	case rank[e.Kind] <= 2 && len(l.seen) <= maxSeen:
		l.seen[p] = sight{Event: e}
	case rank[e.Kind] > 2:
		delete(l.seen, p)
		if l.ended != nil && len(l.ended) <= journalSize {
			l.ended[p] = true
		}
	}
}

// tellNew tells what only the new list has, unless the one before may have left it out. The journal's mu is
// held.
func (l *looks) tellNew(found map[place]sight) {
	for p, s := range found {
		before, had := l.seen[p]
		switch {
		case l.ended[p]:
			delete(found, p) // it was listed before it ended
		case had && before.Kind != s.Kind, !had && covered(p.key, l.prefixes) && !l.partly[side{p.key, s.Kind}]:
			l.s.journal.add(s.Event)
		}
	}
}

// tellEnds tells what two lists do not have any more, and adds to the new one what it alone does not
// have. The journal's mu is held.
func (l *looks) tellEnds(found map[place]sight, prefixes []string, partly map[side]bool) {
	now := time.Now()
	for p, s := range l.seen {
		_, still := found[p]
		if still || partly[side{p.key, s.Kind}] || partly[side{p.key, EventGranted}] || !covered(p.key, prefixes) {
			continue
		}
		if !s.missing {
			s.missing = true
			found[p] = s
			continue
		}
		switch {
		case s.Kind == EventWaiting:
			s.Kind = EventLeft
		case !s.deadline.IsZero() && s.deadline.Before(now):
			s.Kind = EventExpired
		default:
			s.Kind = EventGone
		}
		s.Looked = true
		l.s.journal.add(s.Event)
	}
}

// addSights adds what rec shows.
func addSights(to map[place]sight, rec lock.Record, now time.Time) {
	for _, h := range rec.Holders {
		e := Event{Kind: EventGranted, Key: rec.Key, Owner: h.Owner, Token: h.Token, Shared: h.Shared, Metadata: h.Metadata, Looked: true}
		if h.ExpiresIn >= 0 {
			e.deadline = now.Add(h.ExpiresIn)
		}
		to[place{rec.Key, h.Owner}] = sight{Event: e}
	}
	for _, w := range rec.Waiters {
		to[place{rec.Key, w.Owner}] = sight{Event: Event{Kind: EventWaiting, Key: rec.Key, Owner: w.Owner, Shared: w.Shared, Metadata: w.Metadata, Looked: true}}
	}
}

// prefixes are those that are read, or if there are many one that covers them all. j.mu is held.
func (j *journal) prefixes() []string {
	var all []string
	for r := range j.readers {
		all = append(all, r.prefix)
	}
	slices.Sort(all)
	all = slices.CompactFunc(all, func(a, b string) bool { return strings.HasPrefix(b, a) })
	if len(all) > maxPrefixes {
		first, last, n := all[0], all[len(all)-1], 0
		for n < len(first) && n < len(last) && first[n] == last[n] {
			n++
		}
		all = []string{strings.ToValidUTF8(first[:n], "")}
	}
	return all
}

// covered reports whether key begins with one of prefixes, which are sorted and do not begin with
// each other.
func covered(key string, prefixes []string) bool {
	i, found := slices.BinarySearch(prefixes, key)
	return found || i > 0 && strings.HasPrefix(key, prefixes[i-1])
}
