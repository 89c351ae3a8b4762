// Package postgres keeps locks in PostgreSQL 15 or newer.
//
//	pool, err := pgxpool.New(ctx, url)
//	err = postgres.Migrate(ctx, pool) // once: it makes the tables, in a schema of their own
//	client := lock.New(postgres.New(pool))
//
// # Protocol
//
// A lock is a row. Every operation is one transaction of one statement; the server's
// clock_timestamp() decides it while that row is locked. Readers and waiters have rows of their
// own, which depend on the lock's row: if any part of a lock disappears, its grants are lost.
// Tokens are max(previous + 1, server time in µs). They rise even if the row is lost, if the
// servers' clocks differ by less than the loss takes.
//
// An uncontended acquire, a renewal and a release are one statement each. A wait is one
// statement to line up and one for each third of the heartbeat; one more claims the lock, unless
// a release has granted it already.
//
// # What it survives
//
// Grants survive whatever the database survives, such as a crash or a restart. A grant or a
// renewal is on disk when it is acknowledged, even where synchronous_commit is off. A release
// does not wait for the disk: a crash may undo the last ones (see wal_writer_delay), and their
// keys stay held until the TTL is over. Nothing depends on a session, so connections may break
// at any time, and a transaction pooler may be in between. A statement that is not answered for
// seconds, or by a server that has become read-only, is sent again on a new connection: the pool is
// told to drop those it has (its Reset), once a second at most.
//
// # What breaks it
//
// After a failover to an asynchronous standby the last grants may be forgotten, and somebody
// else may get the lock. The same happens with fsync = off and when the server's clock jumps
// forward. The holder learns of it at its next renewal. Until then only its token tells it
// apart: with [Fence], the token guards your own transactions in the same database. With a
// synchronous standby (synchronous_commit = on or remote_apply) a grant survives the failover.
//
// Renewals need a connection of the pool. An application that uses all connections for longer
// than a third of the TTL loses its locks: give the Locker a pool of its own then. No call holds
// a connection while it waits, and none needs two at once, so a pool of one is enough.
//
// # Waiting
//
// Waiters stand in line in order of arrival, less their head start. A live place in line
// reserves the key for as long as its heartbeat lasts, min(TTL, 5 s). A release hands over to a
// next waiter of the same Locker in the same round trip, and wakes one elsewhere by NOTIFY. A
// lost message costs a recheck, which waiters make at least every third of the heartbeat.
//
// Each Locker has one connection that listens. It is not the pool's, and opens at the first
// Acquire that waits or has a Lost callback. The Locker sends itself messages over it. While
// they do not arrive, waiters recheck every tenth of the heartbeat; see [WithPushObserver].
//
// A transaction pooler does not pass notifications on. Give the Locker a way around it with
// [WithListenConfig], or use [WithPolling]. Unless the pooler supports prepared statements, tell
// pgx not to prepare any (default_query_exec_mode=exec).
//
// # Cost
//
// An acquire, a renewal and a release are one statement each. The server syncs the first two to
// disk. A waiter takes one statement to line up, and three for each heartbeat, or ten while wake-ups
// do not arrive. With [WithPolling] the first in line takes one for each interval.
//
// # What it needs
//
// The role of the pool needs USAGE on the schema, SELECT, INSERT, UPDATE and DELETE on its
// tables, and EXECUTE on its functions and on pg_notify, which every role has by default.
// [Migrate] needs CREATE, and must own the tables, if anything is missing. Without pg_notify, or
// while the server's queue of notifications is full, releases work but wake nobody.
//
// # What an operator may delete
//
// Anything, while nobody holds a lock. Otherwise, a row of a lock or all of its rows: its
// holders, shared ones too, learn at their next renewal that they have lost it, its waiters line
// up again, and whoever comes first gets the lock. ForceRelease is better. Rows of marks only
// when no stale holder can be left. Idle rows stay until [Locker.Prune] deletes them.
//
// # Limits
//
// Each grant updates rows in place and leaves dead row versions behind. A transaction that stays
// open for hours keeps autovacuum from removing them, and so slows a busy key down.
package postgres

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

var (
	_ lock.Locker = (*Locker)(nil)
	_ lock.Admin  = (*Locker)(nil)
)

// Locker keeps locks in PostgreSQL. Make one with [New]. It is safe for concurrent use. Close it
// before its pool.
type Locker struct {
	settings
	db      db
	sql     statements
	process string // this Locker's name, part of its channel
	err     error  // of an option; returned by every call

	closed   context.Context // ends with Close
	close    context.CancelFunc
	registry *storekit.Registry
	listener *storekit.Listener
	doubts   storekit.Doubts
	free     *freeKeys
	liningUp chan struct{}             // has room for as many as may line up at once: half of the pool
	linedUp  atomic.Pointer[time.Time] // when the last of them was answered
}

// New returns a Locker on pool. It does no I/O. Every call returns an error if pool is nil or an
// option is bad, and [ErrSchema] until [Migrate] has run. pool stays the caller's to close.
// Lockers with the same schema and table in the same database share their locks.
func New(pool *pgxpool.Pool, opts ...Option) *Locker {
	l := &Locker{process: storekit.ProcessName(), free: newFreeKeys(), registry: storekit.NewRegistry()}
	l.closed, l.close = context.WithCancel(context.Background())
	l.settings, l.err = newSettings(opts)
	if l.err == nil && pool == nil {
		l.err = fmt.Errorf("%w: postgres: pool is nil", lock.ErrInvalid)
	}
	if l.err != nil {
		return l
	}
	l.db.pool, l.db.names, l.db.limit = pool, l.names, lock.Patience/4 // as often as it is sent
	l.sql = l.names.statements()
	l.liningUp = make(chan struct{}, max(1, pool.Config().MaxConns/2))
	l.listener = &storekit.Listener{
		Registry: l.registry, Closed: l.closed, Session: l.subscribe, Probe: l.probe, Tell: l.onPush,
	}
	return l
}

// Capabilities implements [lock.Locker].
func (l *Locker) Capabilities() lock.Capabilities {
	listens := l == nil || l.poll == 0
	return lock.Capabilities{
		Store: "postgres", Shared: true, FIFO: true, Priority: true, Push: listens, EarlyLoss: listens,
		MinTTL:      10 * time.Millisecond,
		ExpirySlack: time.Millisecond, // of timers: the server's clock counts µs
		TokenSurvives: lock.SurvivesRelease | lock.SurvivesExpiry | lock.SurvivesRecordLoss |
			lock.SurvivesRestart | lock.SurvivesFailover,
		HoldSurvives: lock.SurvivesRelease | lock.SurvivesExpiry | lock.SurvivesRestart,
	}
}

// ready is what every call asks first.
func (l *Locker) ready(ctx context.Context) error {
	switch {
	case l == nil || l.closed == nil:
		return fmt.Errorf("%w: postgres: Locker is nil or zero: New makes one", lock.ErrInvalid)
	case l.err != nil:
		return l.err
	case l.closed.Err() != nil:
		return lock.ErrClosed
	}
	return ctx.Err()
}

// Close ends this Locker's waits with ErrClosed and closes the connection that listens. It does
// not close the pool. Grants remain until their TTL expires, unless another Locker releases
// them. Close is idempotent and waits for no server.
func (l *Locker) Close() error {
	if l == nil || l.closed == nil {
		return nil
	}
	l.close()
	if l.listener != nil {
		l.listener.Wait()
	}
	return nil
}
