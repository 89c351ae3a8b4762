// Package postgres keeps locks in PostgreSQL 15 or newer.
//
//	pool, err := pgxpool.New(ctx, url)
//	err = postgres.Migrate(ctx, pool) // once: it makes the tables, in a schema of their own
//	client := lock.New(postgres.New(pool))
//
// # Protocol
//
// A lock is a row. Every operation is one transaction of one statement, decided by the
// server's clock_timestamp() while that row is locked. Readers and waiters have rows of their
// own, which live and die with the lock's: whatever part of it is lost, a grant is lost. Tokens
// are max(previous + 1, server time in µs), so they rise even if the row is lost, as long as
// the servers' clocks agree within the time that the loss takes.
//
// An uncontended acquire, a renewal and a release are one statement each, a wait is one to line
// up, one for each third of the heartbeat, and one to claim, unless the grant came with a
// release.
//
// # What it survives
//
// Whatever the database does: a crash and a restart too, since a grant or a renewal is on disk
// when it is acknowledged, also where synchronous_commit is off. A release does not wait for the
// disk: a crash may take the last ones back (see wal_writer_delay), and such a key is held
// until its TTL is over. Nothing depends on a session, so a connection may break at any time,
// and a transaction pooler may be in between.
//
// # What breaks it
//
// A failover to a standby that replicates asynchronously may forget the last grants, and
// somebody else may get the lock; so may fsync = off, and a server clock that jumps forward.
// The holder learns it at its next renewal, and until then only its token tells it apart:
// [Fence] makes it the guard of your own transactions, in the same database. With a
// synchronous standby (synchronous_commit = on or remote_apply) a grant survives the failover.
//
// Renewals need a connection of the pool. An application that holds all of them for longer
// than a third of the TTL loses its locks: give the Locker a pool of its own then. No call
// holds a connection while it waits, or needs two at once; a pool of one will do.
//
// # Waiting
//
// Waiters stand in line in order of arrival. A live place in line is a reservation, which
// lasts as long as its heartbeat of min(TTL, 5 s). A release hands over to a next waiter of
// the same Locker in the same round trip; one elsewhere is woken by NOTIFY. A message that is
// lost costs a recheck: at least every third of the heartbeat. Each Locker has one connection
// that listens, beside the pool, opened at the first Acquire that waits or has a Lost
// callback. It sends itself a message now and then, and while that does not arrive rechecks
// are every tenth of the heartbeat: see [WithPushObserver]. Behind a transaction pooler, which
// keeps notifications to itself, give it a way to the server with [WithListenConfig], or do
// without, with [WithPolling]; and tell pgx not to prepare statements there
// (default_query_exec_mode=exec), unless the pooler can do that.
//
// # What it needs
//
// The role of the pool needs USAGE on the schema, SELECT, INSERT, UPDATE and DELETE on its
// tables, EXECUTE on its functions and on pg_notify, which all have by default, and for
// [Migrate], where there is something to do, CREATE. Without pg_notify, or while the server's
// queue of notifications is full, releases work and waiters are not woken.
//
// # What an operator may delete
//
// Anything, while nobody holds a lock. A row of a lock, or all: its holders learn it at their
// next renewal, of either mode, its waiters line up anew, and whoever comes first has the lock:
// ForceRelease is the better way. Rows of marks only if no stale holder can be left. Idle rows
// stay: see [Locker.Prune].
//
// # Limits
//
// Rows are updated in place, and die with each grant: a transaction that stays open for hours
// keeps autovacuum from removing them, and slows a busy key down.
package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

var (
	_ lock.Locker = (*Locker)(nil)
	_ lock.Admin  = (*Locker)(nil)
)

// Locker keeps locks in PostgreSQL. New makes one. It is safe for concurrent use. Close it
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
	liningUp chan struct{} // has room for as many as may line up at once: half of the pool
}

// New returns a Locker on pool, doing no I/O. A nil pool or a bad option is an error that
// every call returns; so is [ErrSchema] until [Migrate] has run. pool stays the caller's to
// close. Lockers with the same schema and table in the same database share their locks.
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
		Store: "postgres", Shared: true, FIFO: true, Push: listens, EarlyLoss: listens,
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

// Close ends this Locker's waits with ErrClosed and closes the connection that listens. It
// leaves the pool and the grants alone: those end with their TTL, unless another Locker
// releases them. It is idempotent and waits for no server.
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
