package redis

import (
	"context"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/rediskit"
)

// subscriber is the one connection on which a Locker hears of releases and forced losses.
// It connects when first needed. While it is broken nothing is heard; when it is back all
// waiters look again, since a message may have been lost.
type subscriber struct {
	rdb     goredis.UniversalClient
	channel string
	ctx     context.Context // ends with close
	cancel  context.CancelFunc
	ended   chan struct{} // closed when listen has returned
	tried   chan struct{} // closed when the first connection has subscribed, or could not

	mu      sync.Mutex // guards the rest; held for no I/O and no callback
	started bool
	waiters map[string]*place  // by owner
	holders map[string]*holder // by owner
	sweepAt int                // how many holders are enough to look for dead ones
}

const (
	quiet     = 3 * time.Second        // after which a silent connection is pinged, and then given up
	closeWait = 100 * time.Millisecond // for listen to end
)

func newSubscriber(rdb goredis.UniversalClient, channel string) *subscriber {
	s := &subscriber{
		rdb: rdb, channel: channel, ended: make(chan struct{}), tried: make(chan struct{}),
		waiters: make(map[string]*place), holders: make(map[string]*holder),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// place is where a waiter listens. Both channels have room for one.
type place struct {
	wakeup  chan struct{}
	granted chan handover
}

// holder is who has a grant, or asks for one, and wants to hear of its loss.
type holder struct {
	lost  func(lock.LostReason)
	until time.Time // the end of the grant; zero while it is asked for
}

// handover is a grant that the release of another holder in this process brought.
type handover struct {
	token lock.Token
	start time.Time
}

// wait registers a waiter, and its callback if it has one, until leave and drop.
func (s *subscriber) wait(owner string, lost func(lock.LostReason)) *place {
	p := &place{make(chan struct{}, 1), make(chan handover, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiters[owner] = p
	if lost != nil {
		s.remember(owner, lost)
	}
	s.start()
	return p
}

func (s *subscriber) leave(owner string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.waiters, owner)
}

// hold registers a holder's callback, before its grant can be forced. It is called until
// drop, or until the end that keep has told.
func (s *subscriber) hold(owner string, lost func(lock.LostReason)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remember(owner, lost)
	s.start()
}

// remember adds a holder, and now and then forgets those whose grants ended without a
// release. s.mu is held.
func (s *subscriber) remember(owner string, lost func(lock.LostReason)) {
	s.holders[owner] = &holder{lost: lost}
	if len(s.holders) < s.sweepAt {
		return
	}
	now := time.Now()
	for o, h := range s.holders {
		if !h.until.IsZero() && now.After(h.until) {
			delete(s.holders, o)
		}
	}
	s.sweepAt = max(64, 2*len(s.holders))
}

// keep tells when g, which was granted or renewed, ends.
func (s *subscriber) keep(g lock.Grant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.holders[g.Owner]; h != nil {
		h.until = g.Start.Add(g.TTL)
	}
}

// drop forgets a holder: its callback is not called any more, unless that has begun.
func (s *subscriber) drop(owner string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.holders, owner)
}

// start is called with mu held.
func (s *subscriber) start() {
	if !s.started && s.ctx.Err() == nil {
		s.started = true
		go s.listen()
	}
}

// await waits until the first connection has subscribed, so that what is sent to this
// process from then on is heard, or could not: then it is not heard, and nobody waits again.
func (s *subscriber) await(ctx context.Context) error {
	select {
	case <-s.tried:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.ctx.Done():
		return lock.ErrClosed
	}
}

// close ends listen and waits for it, but no longer than closeWait: while a connection is
// made to a server that does not answer, go-redis cannot be interrupted, and listen ends by
// the client's own timeout.
func (s *subscriber) close() {
	s.mu.Lock()
	s.cancel() // under mu, so that start comes before it or not at all
	started := s.started
	s.mu.Unlock()
	if !started {
		return
	}
	t := time.NewTimer(closeWait)
	defer t.Stop()
	select {
	case <-s.ended:
	case <-t.C:
	}
}

// listen subscribes until close. Errors are retried for ever, after growing pauses.
func (s *subscriber) listen() {
	defer close(s.ended)
	tried := sync.OnceFunc(func() { close(s.tried) })
	for n := 1; ; n++ {
		if s.session(tried) {
			n = 1
		}
		tried()
		if pause(s.ctx, n) != nil {
			return
		}
	}
}

// session is the life of one connection. It calls subscribed when it is, and reports whether
// it has ever worked.
func (s *subscriber) session(subscribed func()) (healthy bool) {
	ps := s.rdb.Subscribe(s.ctx, s.channel)
	defer func() { _ = ps.Close() }()
	stop := context.AfterFunc(s.ctx, func() { _ = ps.Close() }) // interrupts a blocked read
	defer stop()
	for pinged := false; ; {
		msg, err := ps.ReceiveTimeout(s.ctx, quiet)
		switch {
		case err == nil:
			pinged, healthy = false, true
			s.heard(msg)
			subscribed()
		case s.ctx.Err() != nil || !rediskit.IsTimeout(err) || pinged:
			return healthy
		default:
			if ps.Ping(s.ctx) != nil {
				return healthy
			}
			pinged = true
		}
	}
}

func (s *subscriber) heard(msg any) {
	switch m := msg.(type) {
	case *goredis.Subscription:
		s.wakeAll()
	case *goredis.Message:
		if owner, ok := strings.CutPrefix(m.Payload, "wake "); ok {
			s.wake(owner)
		} else if owner, ok := strings.CutPrefix(m.Payload, "forced "); ok {
			s.forced(owner)
		}
	}
}

func (s *subscriber) wake(owner string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.waiters[owner]; p != nil {
		signal(p.wakeup)
	}
}

// granted passes a grant to its waiter. If that has given up, its undo, which is sent after
// it has, finds the grant.
func (s *subscriber) granted(owner string, h handover) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.waiters[owner]; p != nil {
		select {
		case p.granted <- h:
		default: // it has this grant already
		}
	}
}

func (s *subscriber) wakeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.waiters {
		signal(p.wakeup)
	}
}

// signal never blocks: one wake-up that has not been seen yet is as good as two.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// forced takes the callback out before it is called, so that it is called at most once.
func (s *subscriber) forced(owner string) {
	s.mu.Lock()
	h := s.holders[owner]
	delete(s.holders, owner)
	s.mu.Unlock()
	if h != nil {
		h.lost(lock.ReasonForced)
	}
}
