package service

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"
	"unicode/utf8"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// Server answers what clients ask of a [lock.Locker]. Make one with [NewServer], and set its fields
// before it is used. A ctx is that of one request: the functions find there who sends it, and they
// are called concurrently. A Server is safe for concurrent use. Its errors are for Fail.
type Server struct {
	Err       error                                                      // of an option: no request is allowed then
	Authorize func(ctx context.Context, action Action, key string) error // nil: everybody may do everything
	Caller    func(ctx context.Context) string                           // whom owners belong to; nil or "": nobody
	Address   func(ctx context.Context) string                           // of the client, without a port; nil: ""
	ErrorLog  func(ctx context.Context, err error)                       // of what clients are not told; nil: none
	Observer  func(ctx context.Context, c Call)                          // nil: none

	locker  lock.Locker
	waits   *waits
	journal *journal
}

var _ Service = (*Server)(nil)

// ErrUnauthenticated says that nobody knows who sent a request, if Authorize returns it.
var ErrUnauthenticated = errors.New("lock: unauthenticated")

// shared is a Locker with what its servers have in common.
type shared struct {
	lock.Locker
	waits   *waits
	journal *journal
}

// Share returns l for several servers in this process, such as one for each transport. They have one
// line, and one journal: each tells of what the others are asked for. The first Close ends all.
func Share(l lock.Locker) lock.Locker { return &shared{l, newWaits(l), newJournal()} }

// noLocker stands for a Locker that is nil. Nothing but its Capabilities is asked for.
type noLocker struct{ lock.Locker }

func (noLocker) Capabilities() lock.Capabilities { return lock.Capabilities{} }

// NewServer returns a server of l, which stays the caller's to close, after the server. If l is nil
// Err says so.
func NewServer(l lock.Locker) *Server {
	if storekit.IsNil(l) {
		s := NewServer(noLocker{})
		s.Err = fmt.Errorf("%w: the server's Locker is nil", lock.ErrInvalid)
		return s
	}
	common, ok := l.(*shared)
	if !ok {
		common = Share(l).(*shared)
	}
	return &Server{locker: common.Locker, waits: common.waits, journal: common.journal}
}

// SetMaxWaiters limits how many may stand in line: in total, and for each Address. 0 is no limit.
func (s *Server) SetMaxWaiters(total, perClient int) {
	s.waits.most, s.waits.mostPerClient = total, perClient
}

// Close ends all waits and watches. Their clients, and those of later requests, are told to ask
// another replica. Grants remain. Close returns when no goroutine of s runs any more.
func (s *Server) Close() { s.waits.close() }

// Waiting returns how many waiters stand in line at s.
func (s *Server) Waiting() int {
	s.waits.mu.Lock()
	defer s.waits.mu.Unlock()
	return len(s.waits.all)
}

// Allow returns an error unless the server runs and the caller may do this. Streams ask it again.
func (s *Server) Allow(ctx context.Context, action Action, key string) error {
	c := callOf(ctx)
	c.Action, c.Key = action, key
	switch {
	case s.Err != nil:
		return s.Err
	case s.waits.stopped():
		return &Problem{Kind: KindStopping}
	case s.Authorize == nil:
		return nil
	}
	err := s.Authorize(ctx, action, key)
	switch {
	case err == nil:
		return nil
	case s.ErrorLog != nil:
		s.ErrorLog(ctx, err)
	}
	if errors.Is(err, ErrUnauthenticated) {
		return &Problem{Kind: KindUnauthenticated}
	}
	return &Problem{Kind: KindForbidden}
}

const noTTL = "ttl is missing or 0: say how long the grant shall last"

// Acquire grants, refuses, or lets the client stand in line.
func (s *Server) Acquire(ctx context.Context, req lock.Request) (Answer, error) {
	if req.TTL == 0 {
		return Answer{}, &Problem{Kind: KindInvalid, Detail: noTTL}
	}
	owners := s.scope(ctx)
	if err := owners.check(append([]string{req.Owner}, req.Under...)...); err != nil {
		return Answer{}, err
	}
	req.Owner, req.Under = owners.add(req.Owner), owners.addAll(req.Under)
	callOf(ctx).Owner = req.Owner
	if err := lock.CheckRequest(req, s.locker.Capabilities()); err != nil {
		return Answer{}, err
	}
	if req.Wait {
		if w := s.waits.join(place{req.Key, req.Owner}); w != nil {
			return s.poll(ctx, req, w, false)
		}
	}
	try, tctx := req, ctx
	if req.Wait {
		tctx = storekit.ReuseOwner(ctx)
	}
	try.Wait, try.HeadStart = false, 0
	g, err := s.try(tctx, try)
	if err == nil {
		s.journal.granted(req, g)
		return Answer{Grant: s.shown(ctx, g)}, nil
	}
	if !req.Wait || !errors.Is(err, lock.ErrHeld) {
		return Answer{}, err
	}
	if g := granted(req, err); g.Token != 0 {
		return Answer{Grant: s.shown(ctx, g), Renew: true}, nil
	}
	address := ""
	if s.Address != nil {
		address = s.Address(ctx)
	}
	w, fresh, err := s.waits.begin(req, address)
	if err != nil {
		return Answer{}, err
	}
	return s.poll(ctx, req, w, fresh)
}

// granted is what the holder has got, if err says that the owner of req is one: by an earlier copy of
// the request, whose reply was lost. It must not wait for itself.
func granted(req lock.Request, err error) (g lock.Grant) {
	var held *lock.HeldError
	if errors.As(err, &held) {
		for _, h := range held.Record.Holders {
			if h.Owner == req.Owner && h.Shared == req.Shared && h.ExpiresIn > 0 {
				g = lock.Grant{Key: req.Key, Owner: h.Owner, Token: h.Token, TTL: h.ExpiresIn, Start: time.Now(), Shared: req.Shared}
			}
		}
	}
	return g
}

// try asks for a grant at once, unless the owner is undone before there is one: after that the undo
// finds it.
func (s *Server) try(ctx context.Context, req lock.Request) (lock.Grant, error) {
	p := place{req.Key, req.Owner}
	if err := s.waits.check(p); err != nil {
		return lock.Grant{}, err
	}
	req.Lost = s.waits.notice(p)
	g, err := s.locker.Acquire(ctx, req)
	if err != nil {
		return lock.Grant{}, err
	}
	if err := s.waits.check(p); err != nil {
		_ = storekit.WithinPatience(context.WithoutCancel(ctx), func(ctx context.Context) error { // the client may be gone
			return s.locker.Release(ctx, g) // else it ends by its TTL
		})
		return lock.Grant{}, err
	}
	return g, nil
}

// poll answers with the outcome of w, or that it goes on: if it is fresh as soon as it stands in line.
func (s *Server) poll(ctx context.Context, req lock.Request, w *wait, fresh bool) (Answer, error) {
	defer s.waits.leave(w, percent(gapPercent, req.TTL))
	if w.shared != req.Shared {
		return Answer{}, &Problem{Kind: KindInvalid, Detail: "the owner waits in the other mode already"}
	}
	end := time.NewTimer(percent(pollPercent, req.TTL))
	defer end.Stop()
	var placed chan struct{}
	if fresh {
		placed = w.placed
	}
	line := Answer{New: fresh}
	select {
	case <-w.done:
		return s.outcome(ctx, req, w)
	case <-placed:
		line.Record = s.scope(ctx).view(w.record)
		w.record = lock.Record{} // nobody else looks at it
	case <-end.C:
	case <-ctx.Done():
		return Answer{}, ctx.Err()
	}
	if fresh {
		s.journal.tell(Event{Kind: EventWaiting, Key: req.Key, Owner: req.Owner, Shared: req.Shared, Metadata: req.Metadata})
	}
	callOf(ctx).Outcome = OutcomeWaiting
	return line, nil
}

// outcome answers with that of a wait that is over. A grant is kept for the gap, so that a client
// that missed the reply finds it.
func (s *Server) outcome(ctx context.Context, req lock.Request, w *wait) (Answer, error) {
	switch {
	case w.err == nil:
		s.journal.granted(req, w.grant)
		return Answer{Grant: s.shown(ctx, w.grant), Renew: true}, nil
	case s.waits.stopped():
		return Answer{}, &Problem{Kind: KindStopping}
	}
	s.waits.drop(w)
	return Answer{}, outOfLine{w.err}
}

// shown is g as the caller shall see it.
func (s *Server) shown(ctx context.Context, g lock.Grant) lock.Grant {
	callOf(ctx).Token = g.Token
	g.Owner = s.scope(ctx).cut(g.Owner)
	return g
}

// Renew renews a grant. g needs no Start.
func (s *Server) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	if g.Token == 0 {
		return lock.Grant{}, &Problem{Kind: KindInvalid, Detail: "token is missing or 0: a renewal needs that of the grant"}
	}
	if g.TTL == 0 {
		return lock.Grant{}, &Problem{Kind: KindInvalid, Detail: noTTL}
	}
	g, err := s.stored(ctx, g)
	if err == nil {
		err = storekit.CheckRenewal(g)
	}
	if err != nil {
		return lock.Grant{}, err
	}
	s.waits.forget(g.Key, g.Owner)
	renewed, err := s.locker.Renew(ctx, g)
	if err != nil {
		return lock.Grant{}, s.ended(g, err)
	}
	return s.shown(ctx, renewed), nil
}

// stored is the grant that the caller speaks of, begun now.
func (s *Server) stored(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	owners, owner := s.scope(ctx), g.Owner
	g.Owner, g.Start = owners.add(owner), time.Now()
	c := callOf(ctx)
	c.Owner, c.Token = g.Owner, g.Token
	if g.Token > lock.MaxToken {
		return g, &Problem{Kind: KindInvalid, Detail: fmt.Sprintf("token %d: must be at most %d", g.Token, lock.MaxToken)}
	}
	return g, owners.check(owner)
}

// Release ends a grant, or without a token undoes what its owner may have. The grant's TTL is what is
// left of it, which only the client knows; 0 is unknown. A store that has to ask twice takes a grant
// that has gone meanwhile for released by the first request unless its TTL was over.
func (s *Server) Release(ctx context.Context, g lock.Grant) error {
	if g.TTL == 0 {
		g.TTL = lock.MaxTTL
	}
	g, err := s.stored(ctx, g)
	if err == nil {
		err = lock.CheckGrant(g)
	}
	if err != nil {
		return err
	}
	if g.Token == 0 {
		s.waits.undo(place{g.Key, g.Owner})
	} else {
		s.waits.forget(g.Key, g.Owner)
	}
	if err := s.locker.Release(ctx, g); err != nil {
		return s.ended(g, err)
	}
	kind := EventReleased
	if g.Token == 0 {
		kind = EventLeft
	}
	s.journal.tell(Event{Kind: kind, Key: g.Key, Owner: g.Owner, Token: g.Token, Shared: g.Shared})
	return nil
}

// ended is err, of a renewal or a release of g, with the reason if it is a loss, which readers of
// events hear of.
func (s *Server) ended(g lock.Grant, err error) error {
	err = s.waits.explain(place{g.Key, g.Owner}, err)
	if !errors.Is(err, lock.ErrLost) {
		return err
	}
	e := Event{Kind: EventLost, Key: g.Key, Owner: g.Owner, Token: g.Token}
	if p := problemOf(err); p.Reason != 0 {
		e.Reason = p.Reason.String()
	}
	s.journal.tell(e)
	return err
}

// ForceRelease ends a grant by force.
func (s *Server) ForceRelease(ctx context.Context, key, owner string) error {
	callOf(ctx).Owner = owner
	if err := lock.CheckGrant(lock.Grant{Key: key, Owner: owner}); err != nil {
		return err
	}
	admin, ok := lock.As[lock.Admin](s.locker)
	if !ok {
		return s.unsupported("force releases")
	}
	err := admin.ForceRelease(ctx, key, owner)
	own := s.scope(ctx).add(owner)
	if own != owner && len(own) <= lock.MaxOwnerLen && errors.Is(err, lock.ErrLost) { // the caller's own is shown cut
		callOf(ctx).Owner = own
		owner, err = own, admin.ForceRelease(ctx, key, own)
	}
	if err == nil {
		s.journal.tell(Event{Kind: EventForced, Key: key, Owner: owner})
	}
	return err
}

func (s *Server) unsupported(what string) error {
	return fmt.Errorf("%w: store %s does not %s", lock.ErrUnsupported, s.locker.Capabilities().Store, what)
}

// Inspect returns the record of key.
func (s *Server) Inspect(ctx context.Context, key string) (lock.Record, error) {
	rec, err := s.locker.Inspect(ctx, key)
	if err != nil {
		return lock.Record{}, err
	}
	return s.scope(ctx).view(rec), nil
}

// List yields the records of a prefix.
func (s *Server) List(ctx context.Context, prefix string) iter.Seq2[lock.Record, error] {
	return func(yield func(lock.Record, error) bool) {
		admin, ok := lock.As[lock.Admin](s.locker)
		switch {
		case !utf8.ValidString(prefix):
			yield(lock.Record{}, &Problem{Kind: KindInvalid, Detail: "prefix is not valid UTF-8"})
			return
		case !ok:
			yield(lock.Record{}, s.unsupported("list"))
			return
		}
		owners := s.scope(ctx)
		for rec, err := range admin.List(ctx, prefix) {
			if !yield(owners.view(rec), err) || err != nil {
				return
			}
		}
	}
}

// Watch calls event with true for each change of key, and with false every PingInterval, until that
// reports that the client has gone, or Allow an error.
func (s *Server) Watch(ctx context.Context, key string, event func(changed bool) bool) error {
	watcher, ok := lock.As[lock.Watcher](s.locker)
	if !ok {
		return s.unsupported("watch")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.waits.base, cancel)() // Close does not wait for a client that takes nothing
	changes, ended := make(chan struct{}, 1), make(chan error, 1)
	spawned := s.waits.spawn(func() {
		ended <- watcher.Watch(ctx, key, func() {
			select {
			case changes <- struct{}{}:
			default:
			}
		})
	})
	if !spawned {
		return &Problem{Kind: KindStopping}
	}
	ping := time.NewTicker(PingInterval)
	defer ping.Stop()
	for {
		changed := false
		select {
		case <-changes:
			changed = true
		case <-ping.C:
			if err := s.Allow(ctx, ActionWatch, key); err != nil {
				return err
			}
		case err := <-ended:
			if s.waits.stopped() {
				return &Problem{Kind: KindStopping}
			}
			return err
		case <-s.waits.base.Done():
			return &Problem{Kind: KindStopping}
		}
		if !event(changed) {
			return context.Canceled
		}
	}
}

// Capabilities returns what the store declares.
func (s *Server) Capabilities(context.Context) (lock.Capabilities, error) {
	return s.locker.Capabilities(), nil
}
