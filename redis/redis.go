// Package redis keeps locks in Redis 7 or newer, or Valkey: a single server, one behind
// Sentinel, or a Cluster.
//
//	rdb := goredis.NewUniversalClient(&goredis.UniversalOptions{Addrs: addrs})
//	client := lock.New(redis.New(rdb))
//
// # What it survives
//
// Every operation is one script, one round trip, decided by the server's own clock. Tokens
// are max(previous + 1, server time in µs), so they rise even after FLUSHALL, an evicted
// or expired counter, a restart without persistence, and a failover to a replica that
// missed the last writes, as long as the servers' clocks agree within the time that the
// loss takes.
//
// # What breaks it
//
// Redis acknowledges a write before it is on disk or on a replica. A restart or a failover
// may forget a live grant, and somebody else may get the lock; so may FLUSHALL, an
// eviction policy that drops keys, and a server clock that jumps forward. The holder
// learns it at its next renewal, and until then only its token tells it apart: write to
// fenced resources ([Fence] for values in Redis). If exclusion itself must stand a
// failover, take a store with consensus, such as etcd. [Locker.Preflight] tells about
// unfit settings.
//
// # Waiting
//
// Waiters stand in line in order of arrival. A release wakes the first by a message to its
// process; its place is its reservation, which lasts as long as its heartbeat. A message
// that is lost costs a recheck: at least every third of the heartbeat of min(TTL, 5 s).
// Each Locker has one subscriber connection, opened at the first Acquire that waits or has
// a Lost callback, which is sent when the connection is there or has failed.
package redis

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

var (
	_ lock.Locker = (*Locker)(nil)
	_ lock.Admin  = (*Locker)(nil)
)

// Locker keeps locks in Redis. It is safe for concurrent use. Close it before its client.
type Locker struct {
	rdb        goredis.UniversalClient
	prefix     string
	counterTTL time.Duration
	process    string // this Locker's name, part of its channel
	err        error  // of an option; returned by every call

	runner *runner
	// contended has the keys that were found held or waited for a moment ago. They go to the
	// scripts that stand in line and hand over at once, instead of by way of the short ones,
	// which are for keys that are free. A wrong guess costs a round trip, and nothing else.
	contended  *storekit.Recent
	doubts     storekit.Doubts
	subscriber *subscriber
	closed     atomic.Bool
}

// Option sets up a [Locker].
type Option func(*Locker) error

// WithPrefix sets what the names of all keys and channels begin with. Default "lock:".
// Lockers with the same prefix on the same servers share their locks. Braces are refused.
func WithPrefix(prefix string) Option {
	return func(l *Locker) error {
		l.prefix = prefix
		return checkPrefix(prefix)
	}
}

// WithCounterTTL sets how long the token counter of a key outlives its last grant, at
// least a second. Default 24 h. Tokens rise after its end too; it only makes them do so
// should the server's clock be set back.
func WithCounterTTL(d time.Duration) Option {
	return func(l *Locker) error {
		if d < time.Second {
			return fmt.Errorf("%w: counter TTL %v: must be at least 1s", lock.ErrInvalid, d)
		}
		l.counterTTL = d
		return nil
	}
}

// New returns a Locker on rdb, doing no I/O. A nil client, a *goredis.Ring (whose shards
// change when one is down, so that two may hold a lock) or a bad option is an error that
// every call returns. rdb stays the caller's to close.
func New(rdb goredis.UniversalClient, opts ...Option) *Locker {
	l := &Locker{rdb: rdb, prefix: "lock:", counterTTL: 24 * time.Hour, process: storekit.ProcessName(), contended: storekit.NewRecent(contendedFor)}
	l.err = l.setUp(opts)
	l.subscriber = newSubscriber(rdb, l.channels()+l.process)
	return l
}

func (l *Locker) setUp(opts []Option) error {
	for _, o := range opts {
		if o == nil {
			return fmt.Errorf("%w: redis: option is nil", lock.ErrInvalid)
		}
		if err := o(l); err != nil {
			return err
		}
	}
	r, err := newRunner(l.rdb)
	l.runner = r
	return err
}

// contendedFor is how long a key counts as contended.
const contendedFor = time.Second

// channels is what the channels of all processes begin with.
func (l *Locker) channels() string { return l.prefix + "wake:" }

// Capabilities implements [lock.Locker].
func (l *Locker) Capabilities() lock.Capabilities {
	return lock.Capabilities{
		Store: "redis", Shared: true, FIFO: true, Push: true, EarlyLoss: true,
		MinTTL: 10 * time.Millisecond,
		// A key lives to the end of its millisecond.
		ExpirySlack: 2 * time.Millisecond,
		TokenSurvives: lock.SurvivesRelease | lock.SurvivesExpiry | lock.SurvivesRecordLoss |
			lock.SurvivesRestart | lock.SurvivesFailover,
		HoldSurvives: lock.SurvivesRelease | lock.SurvivesExpiry,
	}
}

// Acquire implements [lock.Locker]. TTLs round up to milliseconds.
func (l *Locker) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if err := lock.CheckRequest(req, l.Capabilities()); err != nil {
		return lock.Grant{}, err
	}
	if err := l.ready(ctx); err != nil {
		return lock.Grant{}, err
	}
	if req.Wait {
		return l.wait(ctx, req)
	}
	if req.Lost != nil {
		l.subscriber.hold(req.Owner, req.Lost)
	}
	g, err := l.try(ctx, req)
	l.settle(g, req, err)
	return g, err
}

// try acquires without waiting in line.
func (l *Locker) try(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if req.Lost != nil {
		if err := l.subscriber.await(ctx); err != nil {
			return lock.Grant{}, err
		}
	}
	g, no, err := l.acquisition(req).send(ctx)
	if no != nil {
		err = &lock.HeldError{Record: no.record}
	}
	return g, err
}

// settle has a grant's callback forgotten with the grant, or at once if there is none.
func (l *Locker) settle(g lock.Grant, req lock.Request, err error) {
	switch {
	case req.Lost == nil:
	case err != nil:
		l.subscriber.drop(req.Owner)
	default:
		l.subscriber.keep(g)
	}
}

// Renew implements [lock.Locker].
func (l *Locker) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	if err := l.check(ctx, g); err != nil {
		return lock.Grant{}, err
	}
	k, ttl := l.keys(g.Key), milliseconds(g.TTL)
	if ttl <= 0 {
		return lock.Grant{}, fmt.Errorf("%w: TTL %v: must be positive", lock.ErrInvalid, g.TTL)
	}
	start := time.Now()
	var reply any
	var err error
	if g.Shared {
		reply, _, err = l.runner.run(ctx, renewSharedScript, k.all(), g.Token.String()+":", ttl, g.Owner)
	} else {
		reply, _, err = l.runner.run(ctx, renewScript, []string{k.record()}, identity(g), ttl)
	}
	if err == nil {
		err = lost(reply, g)
	}
	if err != nil {
		if errors.Is(err, lock.ErrLost) {
			l.subscriber.drop(g.Owner)
		}
		return lock.Grant{}, err
	}
	g.TTL, g.Start = time.Duration(ttl)*time.Millisecond, start
	l.subscriber.keep(g)
	return g, nil
}

// Release implements [lock.Locker]. When the reply to a first try got lost and a second one
// finds the grant gone before it can have expired, the first has released it: that is no
// error.
func (l *Locker) Release(ctx context.Context, g lock.Grant) error {
	if err := l.check(ctx, g); err != nil {
		return err
	}
	l.subscriber.drop(g.Owner)
	if g.Token == 0 {
		return l.undo(ctx, g)
	}
	err := l.end(ctx, g)
	if (err == nil || errors.Is(err, lock.ErrLost)) && l.doubts.Take(g.Owner) {
		if undone := l.undo(ctx, g); undone != nil {
			l.doubts.Add(g.Owner) // for the next try
			return undone
		}
	}
	return err
}

// end ends a grant, an exclusive one by the short script unless somebody waits.
func (l *Locker) end(ctx context.Context, g lock.Grant) error {
	k := l.keys(g.Key)
	var reply any
	var sent int
	var err error
	if g.Shared {
		reply, sent, err = l.runner.run(ctx, releaseSharedScript, k.all(), g.Token.String()+":", l.channels(), g.Owner)
	} else {
		if !l.contended.Has(g.Key) {
			reply, sent, err = l.runner.run(ctx, dropScript, []string{k.record()}, identity(g))
		}
		if err == nil && (reply == nil || reply == int64(3)) {
			reply, sent, err = l.handOver(ctx, g, k)
		}
	}
	if err != nil {
		return err
	}
	if sent > 1 && time.Since(g.Start) < g.TTL {
		return nil
	}
	return lost(reply, g)
}

func (l *Locker) undo(ctx context.Context, g lock.Grant) error {
	_, _, err := l.runner.run(ctx, undoScript, l.keys(g.Key).all(),
		g.Owner, storekit.UndoLife.Milliseconds(), l.channels(), l.counterTTL.Milliseconds())
	return err
}

// identity is what the record of an exclusive grant begins with.
func identity(g lock.Grant) string { return g.Token.String() + ":" + g.Owner + ":" }

// lost reads the reply of the renew and release scripts.
func lost(reply any, g lock.Grant) error {
	switch reply {
	case int64(1):
		return nil
	case int64(0):
		return &lock.LostError{Reason: lock.ReasonExpired, Token: g.Token}
	case int64(2):
		return &lock.LostError{Reason: lock.ReasonTaken, Token: g.Token}
	}
	return fmt.Errorf("lock: redis: unexpected reply %v", reply)
}

// check is what every call but Acquire does first.
func (l *Locker) check(ctx context.Context, g lock.Grant) error {
	if err := lock.CheckGrant(g); err != nil {
		return err
	}
	return l.ready(ctx)
}

func (l *Locker) ready(ctx context.Context) error {
	switch {
	case l.err != nil:
		return l.err
	case l.closed.Load():
		return lock.ErrClosed
	}
	return ctx.Err()
}

// Close ends this Locker's waits with ErrClosed and closes its subscriber connection. It
// leaves the client and the grants alone: those end with their TTL, unless another Locker
// releases them. It is idempotent and waits for no server.
func (l *Locker) Close() error {
	l.closed.Store(true)
	l.subscriber.close()
	return nil
}

// milliseconds rounds up.
func milliseconds(d time.Duration) int64 {
	return int64((d + time.Millisecond - 1) / time.Millisecond)
}
