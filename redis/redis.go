// Package redis keeps locks in Redis 7 or newer, or Valkey: a single server, one behind
// Sentinel, or a Cluster.
//
//	rdb := goredis.NewUniversalClient(&goredis.UniversalOptions{Addrs: addrs})
//	client := lock.New(redis.New(rdb))
//
// # What it survives
//
// Every operation is one script, in one round trip; the server's own clock decides. Tokens are
// max(previous + 1, server time in µs). They rise even after FLUSHALL, an evicted or expired
// counter, a restart without persistence, or a failover to a replica that missed the last
// writes, if the servers' clocks differ by less than the loss takes.
//
// # What breaks it
//
// Redis acknowledges a write before it is on disk or on a replica. After a restart or a failover
// it may have forgotten a live grant, and somebody else may get the lock. The same happens after
// FLUSHALL, under an eviction policy that drops keys, and when the server's clock jumps forward.
// The holder learns of it at its next renewal. Until then only its token tells it apart, so
// write to fenced resources ([Fence] for values in Redis). If exclusion itself must survive a
// failover, use a store with consensus, such as etcd. [Locker.Preflight] finds unfit settings.
//
// # Waiting
//
// Waiters stand in line in order of arrival, less their head start. A release sends a message to
// the process of the first waiter. That waiter's place reserves the key for as long as its
// heartbeat lasts, min(TTL, 5 s). A lost message costs a recheck, which waiters make at least
// every third of the heartbeat.
//
// Each Locker has one subscriber connection. It opens at the first Acquire that waits or has a
// Lost callback; that Acquire sends its request once the subscription is active or has failed.
// While anything depends on the connection, the Locker sends itself a message every half
// heartbeat. If the message does not arrive (no right to the channel, a demoted master, a
// proxy), the Locker subscribes again, and until messages arrive waiters recheck every tenth of
// their heartbeat. See [WithPushObserver].
//
// # Cost
//
// An acquire, a renewal and a release are one round trip each, which concurrent calls share. A
// waiter takes one round trip to line up, or two if its Locker has not met contention for the key
// within a second. Then it takes three for each heartbeat, or ten while wake-ups do not arrive.
//
// # What it needs
//
// The Locker needs rights to the keys and channels of its prefix, and to the commands that its
// scripts use. With the default prefix, in the syntax of Redis 7:
//
//	ACL SETUSER app ~lock:* &lock:wake:* +@read +@write +@scripting +@pubsub +@connection +info +time +cluster|slots
//
// Only the client of a Cluster needs the last. A [Fence] also needs rights to its marks and to the
// keys that it guards, such as those that begin with "stock:":
//
//	ACL SETUSER app ~fence:* ~stock:*
//
// # What an operator may delete
//
// Any key of the prefix: a holder whose lock is gone learns of it at its next renewal.
// [Locker.ForceRelease] is better, since it tells the holder at once. The marks of a [Fence],
// which begin with "fence:", only when no holder of an older token can still be running.
package redis

import (
	"context"
	"fmt"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

var (
	_ lock.Locker = (*Locker)(nil)
	_ lock.Admin  = (*Locker)(nil)
)

// Locker keeps locks in Redis. Make one with [New]. It is safe for concurrent use. Close it
// before its client.
type Locker struct {
	prefix     string
	counterMS  any    // how long a token counter is kept, an int64
	process    string // this Locker's name, part of its channel
	processArg any    // the same, for scripts
	onPush     func(error)
	err        error // of an option or the client; returned by every call

	servers *servers
	// contended has the keys that were found held or waited for a moment ago. They go to the
	// scripts that stand in line and hand over at once, instead of by way of the short ones,
	// which are for keys that are free. A wrong guess costs a round trip, and nothing else.
	contended *storekit.Recent
	doubts    storekit.Doubts
	registry  *storekit.Registry
	listener  *storekit.Listener
	closed    context.Context
	close     context.CancelFunc
}

// Option sets up a [Locker].
type Option func(*Locker) error

// WithPrefix sets what the names of all keys and channels begin with. Lockers with the same
// prefix on the same servers share their locks. A prefix with braces is ErrInvalid. Default
// "lock:".
func WithPrefix(prefix string) Option {
	return func(l *Locker) error {
		l.prefix = prefix
		return checkPrefix(prefix)
	}
}

// WithCounterTTL sets how long the token counter of a key is kept after the key's last grant,
// from 1 s to lock.MaxTTL. Default 10 min, at about 160 bytes a key. Without the counter tokens
// still rise by the server's clock. With it, they rise even if that clock is set back.
func WithCounterTTL(d time.Duration) Option {
	return func(l *Locker) error {
		if d < time.Second || d > lock.MaxTTL {
			return fmt.Errorf("%w: redis: counter TTL %v: must be from 1s to %v", lock.ErrInvalid, d, lock.MaxTTL)
		}
		l.counterMS = d.Milliseconds()
		return nil
	}
}

// WithPushObserver sets a function that learns whether wake-ups and notices of forced losses
// arrive. f is called with the reason when they stop, and with nil when they arrive again. Calls
// do not overlap. f must not block. Default: none.
func WithPushObserver(f func(error)) Option {
	return func(l *Locker) error {
		l.onPush = f
		return nil
	}
}

// New returns a Locker on rdb. It does no I/O. rdb stays the caller's to close.
//
// Every call returns an error if an option is bad, rdb is nil, or rdb is of an unknown kind. A
// *goredis.Ring is refused as well: its shards change when one is down, so two holders could get
// one lock. A type of your own around a *goredis.Client or *goredis.ClusterClient must have a
// method Unwrap() goredis.UniversalClient.
func New(rdb goredis.UniversalClient, opts ...Option) *Locker {
	l := &Locker{
		prefix: "lock:", counterMS: (10 * time.Minute).Milliseconds(), process: storekit.ProcessName(),
		contended: storekit.NewRecent(contendedFor), registry: storekit.NewRegistry(),
	}
	l.processArg = l.process
	l.closed, l.close = context.WithCancel(context.Background())
	l.err = l.setUp(rdb, opts)
	l.listener = &storekit.Listener{
		Registry: l.registry, Closed: l.closed,
		Session: l.subscribe, Probe: l.probe, Tell: l.onPush,
	}
	return l
}

func (l *Locker) setUp(rdb goredis.UniversalClient, opts []Option) (err error) {
	for _, o := range opts {
		if o == nil {
			return fmt.Errorf("%w: redis: option is nil", lock.ErrInvalid)
		}
		if err := o(l); err != nil {
			return err
		}
	}
	l.servers, err = newServers(rdb)
	return err
}

// contendedFor is how long a key counts as contended.
const contendedFor = time.Second

// channels is what the channels of all processes begin with.
func (l *Locker) channels() string { return l.prefix + "wake:" }

// Capabilities implements [lock.Locker].
func (l *Locker) Capabilities() lock.Capabilities {
	return lock.Capabilities{
		Store: "redis", Shared: true, FIFO: true, Priority: true, Push: true, EarlyLoss: true,
		MinTTL: 10 * time.Millisecond,
		// A key lives to the end of its millisecond.
		ExpirySlack: 2 * time.Millisecond,
		TokenSurvives: lock.SurvivesRelease | lock.SurvivesExpiry | lock.SurvivesRecordLoss |
			lock.SurvivesRestart | lock.SurvivesFailover,
		HoldSurvives: lock.SurvivesRelease | lock.SurvivesExpiry,
	}
}

// ready is what every call does before any I/O, once it has checked its arguments.
func (l *Locker) ready(ctx context.Context) error {
	switch {
	case l == nil || l.closed == nil:
		return fmt.Errorf("%w: redis: the Locker was not made by New", lock.ErrInvalid)
	case l.err != nil:
		return l.err
	case l.closed.Err() != nil:
		return lock.ErrClosed
	}
	return ctx.Err()
}

// Close ends this Locker's waits with ErrClosed and closes its subscriber connection. It does
// not close the client. Grants remain until their TTL expires, unless another Locker releases
// them. Close is idempotent and waits for no server.
func (l *Locker) Close() error {
	if l != nil && l.close != nil {
		l.close()
		l.listener.Wait()
	}
	return nil
}

// microseconds rounds up.
func microseconds(d time.Duration) int64 {
	return int64((d + time.Microsecond - 1) / time.Microsecond)
}
