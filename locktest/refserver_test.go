package locktest

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// refServer is the server of a sound store, as simple as one with everything declared
// can be. Lockers reach it by requests and replies, so that every fault can befall it.
// Its flaws are switches for what real stores get wrong.
type refServer struct {
	flaws

	mu     sync.Mutex // guards all below, and what refClient says
	keys   map[string]*refKey
	forced map[string]bool // owners whose grant was forced
	thaw   chan struct{}   // while frozen: closed at its end
	swept  time.Time       // for a flaw

	watches map[chan struct{}]refWatch // who is to be told of changes

	lined    map[string]bool // owners that stood in line, for a flaw
	late     sync.WaitGroup  // for a flaw
	immortal bool            // the place that is taken now, for a flaw
}

type refKey struct {
	token   lock.Token
	holders []*refHold
	line    []*refPlace
	ghosts  []*refPlace // dead places, for a flaw
	last    *refHold    // who released it, for a flaw
}

type refHold struct {
	req            lock.Request
	token          lock.Token
	since, expires time.Time
	by             *refClient
	version        int  // for a flaw
	unseen         bool // it does not stand in the way of others any more, for a flaw
}

type refPlace struct {
	req         lock.Request
	since, dies time.Time
	at          time.Time // its arrival less the head start
	by          *refClient
}

func newRefServer(f flaws) *refServer {
	return &refServer{
		flaws: f, keys: map[string]*refKey{}, forced: map[string]bool{}, watches: map[chan struct{}]refWatch{},
		lined: map[string]bool{},
	}
}

func (s *refServer) latency() time.Duration {
	if s.far {
		return farAway
	}
	return nearby
}

// comeLate is a request that waited in front of a frozen server, and comes after the
// undo, with a TTL that has grown if there is a flaw.
func (s *refServer) comeLate(thaw chan struct{}, do func(now time.Time)) {
	<-thaw
	time.Sleep(2 * s.latency())
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.lateRequests {
		now = now.Add(time.Hour)
	}
	s.immortal = s.latePlaces
	do(now)
	s.immortal = false
}

// key returns a key as it is now, by the clock of c's request.
func (s *refServer) key(name string, now time.Time) *refKey {
	k := s.keys[name]
	if k == nil {
		k = new(refKey)
		s.keys[name] = k
	}
	holders, line := len(k.holders), len(k.line)
	k.holders = slices.DeleteFunc(k.holders, func(h *refHold) bool { return s.over(h, now) })
	if !s.deadWaitersStay {
		for _, p := range k.line {
			if s.showsDeadWaiters && !p.dies.After(now) {
				k.ghosts = append(k.ghosts, p)
			}
		}
		s.bury(k, now)
	}
	if len(k.holders) < holders {
		s.ended(k, s.resetByExpiry)
	} else if len(k.line) < line {
		s.wake(k)
	}
	return k
}

func (s *refServer) over(h *refHold, now time.Time) bool {
	if h.expires.After(now) || s.deadProcessKeeps && h.by.dead {
		return false
	}
	if s.sweepsOneByOne {
		if now.Sub(s.swept) < 100*time.Millisecond {
			return false
		}
		s.swept = now
	}
	return true
}

// ended is what happens after a grant's end.
func (s *refServer) ended(k *refKey, reset bool) {
	if reset && len(k.holders) == 0 {
		k.token = 0
	}
	s.wake(k)
}

// wake wakes the first in line, and the readers behind a reader.
func (s *refServer) wake(k *refKey) {
	handsOver := s.handsOver || s.handsOverBeside && len(k.holders) > 0
	for handsOver && len(k.line) > 0 && s.admits(k, k.line[0].req, k.line[0].by) {
		s.grant(k, k.line[0], time.Now())
	}
	for i, p := range k.line {
		if i > 0 && (!p.req.Shared || !k.line[i-1].req.Shared) && !s.servesLast {
			return
		}
		p.by.wake(p.req.Owner)
		if s.wakesOneReader {
			return
		}
	}
}

// grant hands the key over to p, which is in line.
func (s *refServer) grant(k *refKey, p *refPlace, now time.Time) {
	k.leave(p.req.Owner)
	k.holders = append(k.holders, &refHold{req: p.req, token: s.mint(k, p.req, now), since: now, expires: now.Add(p.req.TTL), by: p.by})
	p.by.wake(p.req.Owner)
}

func (k *refKey) holder(owner string) *refHold {
	for _, h := range k.holders {
		if h.req.Owner == owner {
			return h
		}
	}
	return nil
}

func (k *refKey) place(owner string) int {
	return slices.IndexFunc(k.line, func(p *refPlace) bool { return p.req.Owner == owner })
}

// admits reports whether req may be granted: beside the holders, and before the line.
func (s *refServer) admits(k *refKey, req lock.Request, c *refClient) bool {
	for _, h := range k.holders {
		if h.unseen {
			continue
		}
		beside := req.Shared && h.req.Shared && !s.readersExclude ||
			s.noExclusion || s.reentrant && h.by == c ||
			s.sharedBesideExclusive && req.Shared || s.exclusiveBesideShared && h.req.Shared
		if !beside {
			return false
		}
	}
	if s.servesLast && len(k.line) > 0 {
		return k.line[len(k.line)-1].req.Owner == req.Owner
	}
	if !req.Wait && (s.triesBargeIn && !req.Shared || s.sharedTriesPass && req.Shared) {
		return true
	}
	at := s.place(c, req, time.Now())
	for _, p := range k.line {
		if p.req.Owner == req.Owner || k.place(req.Owner) < 0 && at.Before(p.at) {
			return true
		}
		if !req.Shared || !p.req.Shared && !s.readersOvertake {
			return false
		}
	}
	return true
}

// acquire grants req, or, if it waits, gives it a place in line and keeps that alive.
func (s *refServer) acquire(c *refClient, req lock.Request, now time.Time) (*refHold, lock.Record) {
	defer s.changed(req.Key)
	sweep := now
	if s.triesKeepExpired && !req.Wait {
		sweep = time.Time{} // when nothing was over
	}
	k := s.key(req.Key, sweep)
	if h := k.holder(req.Owner); h != nil && !s.retryCreates {
		if !s.handsOverTTL {
			h.expires = now.Add(req.TTL)
		}
		return h, lock.Record{}
	}
	if !s.admits(k, req, c) {
		var rec lock.Record
		if k.place(req.Owner) < 0 {
			rec = s.record(req.Key, k, now)
		}
		if req.Wait || s.triesLineUp {
			s.join(k, c, req, now)
		}
		return nil, rec
	}
	h := &refHold{req: req, since: now, expires: now.Add(req.TTL), by: c}
	if !s.mintsLater {
		h.token = s.mint(k, req, now.Add(c.tokenSkew))
	}
	s.spoil(k, h)
	if s.halfTTL {
		h.expires = now.Add(req.TTL / 2)
	}
	if i := k.place(req.Owner); i >= 0 && s.ttlFromArrival {
		h.expires = k.line[i].since.Add(req.TTL)
	}
	k.holders = append(k.holders, h)
	k.leave(req.Owner)
	if !s.wakesOneReader {
		s.wake(k)
	}
	return h, lock.Record{}
}

func (s *refServer) mint(k *refKey, req lock.Request, now time.Time) lock.Token {
	switch {
	case s.clientToken:
		k.token = lock.Token(now.UnixMicro())
	case s.sharedTokenRepeats && req.Shared && k.token > 0:
	case s.counterOnly || s.resetByRelease || s.resetByExpiry:
		k.token++
	default:
		k.token = max(k.token+1, lock.Token(now.UnixMicro()))
	}
	return k.token
}

func (s *refServer) join(k *refKey, c *refClient, req lock.Request, now time.Time) {
	if s.placesLiveTogether {
		for _, other := range s.keys {
			for _, p := range other.line {
				if p.by == c {
					p.dies = now.Add(min(req.TTL, 5*time.Second))
				}
			}
		}
	}
	i := k.place(req.Owner)
	if i < 0 {
		k.insert(&refPlace{req: req, since: now, at: s.place(c, req, now), by: c})
		s.lined[req.Owner] = true
		i = k.place(req.Owner)
	} else if s.headStartOnce && k.line[i].at != k.line[i].since {
		p := k.line[i]
		k.leave(req.Owner)
		p.at = p.since
		k.insert(p)
		i = k.place(req.Owner)
	}
	beat := min(req.TTL, 5*time.Second)
	if s.longHeartbeat {
		beat = 20 * time.Second
	}
	renewed := !s.heartbeatOnce && (i == 0 || !s.heartbeatOfFirst)
	if dies := &k.line[i].dies; renewed || dies.IsZero() {
		*dies = now.Add(beat)
	}
	if s.immortal {
		k.line[i].dies = now.Add(time.Hour)
	}
}

// insert puts p behind those with its place.
func (k *refKey) insert(p *refPlace) {
	i := slices.IndexFunc(k.line, func(o *refPlace) bool { return o.at.After(p.at) })
	if i < 0 {
		i = len(k.line)
	}
	k.line = slices.Insert(k.line, i, p)
}

func (k *refKey) leave(owner string) {
	if i := k.place(owner); i >= 0 {
		k.line = slices.Delete(k.line, i, i+1)
	}
}

func (s *refServer) lost(k *refKey, g lock.Grant, now time.Time) error {
	err := &lock.LostError{Token: g.Token}
	switch {
	case s.forced[g.Owner]:
		err.Reason = lock.ReasonForced
	case len(k.holders) > 0:
		err.Reason = lock.ReasonTaken
	case s.guessesExpired || !now.Before(g.Start.Add(g.TTL)):
		err.Reason = lock.ReasonExpired
	}
	return err
}

func (s *refServer) renew(c *refClient, g lock.Grant, now time.Time) error {
	k := s.key(g.Key, now)
	h := k.holder(g.Owner)
	if h == nil && s.renewCreates && len(k.holders) == 0 {
		h = &refHold{req: lock.Request{Key: g.Key, Owner: g.Owner, TTL: g.TTL, Shared: g.Shared}, token: g.Token, by: c}
		k.holders = append(k.holders, h)
	}
	if h == nil && s.renewByKey && len(k.holders) > 0 {
		h = k.holders[0]
	}
	for _, r := range k.holders {
		if h == nil && s.lateRenewalShortens && now.Add(g.TTL).Before(r.expires) {
			r.expires = now.Add(g.TTL)
		}
	}
	if h == nil || h.token != g.Token && !s.renewByKey && !s.anyToken || s.versioned && h.version != c.versions[g.Owner] {
		return s.lost(k, g, now)
	}
	h.version++
	if s.grantsLiveTogether {
		for _, other := range s.keys {
			for _, r := range other.holders {
				if r.by == c {
					r.expires = now.Add(r.req.TTL)
				}
			}
		}
	}
	for _, r := range k.holders {
		if r == h || s.readersLiveTogether {
			r.expires = now.Add(g.TTL)
		}
	}
	return nil
}

// release ends g's grant; without a token its place in line too.
func (s *refServer) release(c *refClient, g lock.Grant, now time.Time) error {
	defer s.changed(g.Key)
	k := s.key(g.Key, now)
	n := len(k.holders)
	k.holders = slices.DeleteFunc(k.holders, func(h *refHold) bool {
		if g.Token == 0 {
			return h.req.Owner == g.Owner && !s.undoLeavesGrant || s.undoByProcess && h.by == c
		}
		mine := h.req.Owner == g.Owner && (h.token == g.Token || s.anyToken)
		if mine {
			k.last = h
		}
		if mine && s.lostAfterRelease && h.req.Lost != nil {
			go h.req.Lost(lock.ReasonExpired)
		}
		return mine || s.releaseByKey || s.releaseByProcess && h.by == c || s.releaseOfReaders && g.Shared && h.req.Shared
	})
	if g.Token == 0 && !s.undoLeavesPlace {
		k.leave(g.Owner)
	}
	none := len(k.holders) == n
	if s.readerLetsIn && g.Shared && len(k.line) > 0 && k.line[0].by == c {
		s.grant(k, k.line[0], now)
	}
	if len(k.holders) == 0 && len(k.line) > 0 && s.handsOverTTL {
		k.line[0].req.TTL = g.TTL
		s.grant(k, k.line[0], now)
	}
	if s.expiredReleaseEnds && none && g.Shared && n > 0 {
		k.holders = k.holders[1:]
	}
	if s.handsOverInReply && len(k.holders) == 0 && len(k.line) > 0 && k.line[0].by == c {
		p := k.line[0]
		h := &refHold{req: p.req, token: s.mint(k, p.req, now), since: now, expires: now.Add(p.req.TTL), by: c}
		k.leave(p.req.Owner)
		k.holders = append(k.holders, h)
		c.handed = h
	}
	silent := s.silentUndo && g.Token == 0 || s.silentReaders && g.Shared
	if !silent {
		s.ended(k, s.resetByRelease)
	}
	if none && g.Token != 0 {
		return s.lost(k, g, now)
	}
	return nil
}

// notices is how often h, which is forced, is told.
func (s *refServer) notices(h *refHold, now time.Time) int {
	switch {
	case s.forcesSilently, s.noticeOfFirstTTL && now.Sub(h.since) >= h.req.TTL:
		return 0
	case s.tellsTwice:
		return 2
	}
	return 1
}

func (s *refServer) force(key, owner string, now time.Time) error {
	defer s.changed(key)
	k := s.key(key, now)
	n := len(k.holders)
	k.holders = slices.DeleteFunc(k.holders, func(h *refHold) bool {
		if h.req.Owner != owner && !s.forcesAll {
			return false
		}
		told := s.forced[h.req.Owner] // of a grant before this one: a request hears of a loss once
		s.forced[h.req.Owner] = true
		for range s.notices(h, now) {
			if h.req.Lost != nil && !h.by.dead && !told {
				go h.req.Lost(lock.ReasonForced)
			}
		}
		return !s.forceWarnsOnly
	})
	none := len(k.holders) == n
	if !s.silentForce {
		s.ended(k, false)
	}
	if none && !s.forceWarnsOnly {
		return fmt.Errorf("%w: %s does not hold %q", lock.ErrLost, owner, key)
	}
	return nil
}

func (s *refServer) record(key string, k *refKey, now time.Time) lock.Record {
	rec := lock.Record{Key: key, Token: k.token}
	for _, h := range k.holders {
		if s.recordOfFirstTTL && now.Sub(h.since) >= h.req.TTL {
			continue
		}
		rec.Holders = append(rec.Holders, lock.Holder{
			Owner: h.req.Owner, Token: h.token, Shared: h.req.Shared, Held: now.Sub(h.since),
			ExpiresIn: h.expires.Sub(now), Metadata: h.req.Metadata,
		})
	}
	for _, p := range append(k.ghosts, k.line...) {
		rec.Waiters = append(rec.Waiters, lock.Waiter{
			Owner: p.req.Owner, Shared: p.req.Shared, Waited: now.Sub(p.since), Metadata: p.req.Metadata, Under: s.shown(p.req.Under),
		})
	}
	return s.bounded(rec)
}

func (s *refServer) bounded(rec lock.Record) lock.Record {
	rec.HolderCount, rec.WaiterCount = len(rec.Holders), len(rec.Waiters)
	if !s.unboundedRecords {
		rec.Holders = rec.Holders[:min(rec.HolderCount, lock.MaxRecord)]
		rec.Waiters = rec.Waiters[:min(rec.WaiterCount, lock.MaxRecord)]
	}
	if s.countsWhatIsShown {
		rec.HolderCount, rec.WaiterCount = len(rec.Holders), len(rec.Waiters)
	}
	return rec
}

func (s *refServer) list(prefix string, now time.Time) iter.Seq[lock.Record] {
	return func(yield func(lock.Record) bool) {
		for name := range s.keys {
			k := s.key(name, now)
			if !strings.HasPrefix(name, prefix) || len(k.holders)+len(k.line) == 0 {
				continue
			}
			if !yield(s.record(name, k, now)) {
				return
			}
		}
	}
}
