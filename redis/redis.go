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
//
// Each Locker has one subscriber connection, opened at the first Acquire that waits or has
// a Lost callback, which is sent when the connection is there or has failed. While somebody
// depends on it the Locker sends itself a message every half heartbeat. If that does not
// arrive (no right to the channel, a master that was demoted, a proxy), it subscribes anew,
// and waiters look every tenth of their heartbeat until messages arrive again; see
// [WithPushObserver].
//
// # What it needs
//
// The rights to the keys and channels of the prefix, and to the commands that the scripts
// use. With the default prefix, as Redis 7 writes it:
//
//	ACL SETUSER app ~lock:* &lock:wake:* +@read +@write +@scripting +@pubsub +@connection +info +time
//
// An operator may delete any key of the prefix: holders whose lock is gone are told at their
// next renewal. [Locker.ForceRelease] is better, since it tells them at once.
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
	counterTTL time.Duration
	process    string // this Locker's name, part of its channel
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

// WithPrefix sets what the names of all keys and channels begin with. Default "lock:".
// Lockers with the same prefix on the same servers share their locks. Braces are refused.
func WithPrefix(prefix string) Option {
	return func(l *Locker) error {
		l.prefix = prefix
		return checkPrefix(prefix)
	}
}

// WithCounterTTL sets how long the token counter of a key outlives its last grant, from 1 s
// to lock.MaxTTL. Default 10 min, at about 160 bytes a key. Tokens rise after its end too;
// it only makes them do so should the server's clock be set back by less than that.
func WithCounterTTL(d time.Duration) Option {
	return func(l *Locker) error {
		if d < time.Second || d > lock.MaxTTL {
			return fmt.Errorf("%w: redis: counter TTL %v: must be from 1s to %v", lock.ErrInvalid, d, lock.MaxTTL)
		}
		l.counterTTL = d
		return nil
	}
}

// WithPushObserver has f called when wake-ups and notices of forced losses do not arrive any
// more, with the reason, and with nil when they do again. Calls do not overlap; f must not
// block. Default: nobody is told, and waiters look more often meanwhile.
func WithPushObserver(f func(error)) Option {
	return func(l *Locker) error {
		l.onPush = f
		return nil
	}
}

// New returns a Locker on rdb, doing no I/O. An error that every call returns are a bad
// option, a nil client, and a client whose kind cannot be told or is a *goredis.Ring: its
// shards change when one is down, so that two could hold a lock. A type of your own around a
// *goredis.Client or *goredis.ClusterClient must have a method
// Unwrap() goredis.UniversalClient. rdb stays the caller's to close.
func New(rdb goredis.UniversalClient, opts ...Option) *Locker {
	l := &Locker{
		prefix: "lock:", counterTTL: 10 * time.Minute, process: storekit.ProcessName(),
		contended: storekit.NewRecent(contendedFor), registry: storekit.NewRegistry(),
	}
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
		Store: "redis", Shared: true, FIFO: true, Push: true, EarlyLoss: true,
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

// Close ends this Locker's waits with ErrClosed and closes its subscriber connection. It
// leaves the client and the grants alone: those end with their TTL, unless another Locker
// releases them. It is idempotent and waits for no server.
func (l *Locker) Close() error {
	if l != nil && l.close != nil {
		l.close()
		l.listener.Wait()
	}
	return nil
}

// milliseconds rounds up.
func milliseconds(d time.Duration) int64 {
	return int64((d + time.Millisecond - 1) / time.Millisecond)
}
