// Package postgres keeps locks in PostgreSQL 15 or newer.
//
//	pool, err := pgxpool.New(ctx, url)
//	err = postgres.Migrate(ctx, pool) // once: it makes the tables, in a schema of their own
//	client := lock.New(postgres.New(pool))
//
// # What it survives
//
// A lock is a row, so it survives whatever the database does: a crash and a restart too, since
// a grant or a renewal is on disk when it is acknowledged, also where synchronous_commit is
// off. A release does not wait for the disk: a crash may take the last ones back (see
// wal_writer_delay), and such a key is held until its TTL is over.
// Nothing depends on a session, so a connection may break at any time, and a transaction
// pooler may be in between. Every operation is one transaction of one statement, decided by
// the server's clock_timestamp() while the lock's row is locked. Tokens are max(previous + 1,
// server time in µs), so they rise even if the row is lost, as long as the servers' clocks
// agree within the time that the loss takes.
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
// callback. Behind a transaction pooler, which keeps notifications to itself, give it a way
// to the server with [WithListenConfig], or do without, with [WithPolling]; and tell pgx not
// to prepare statements there (default_query_exec_mode=exec), unless the pooler can do that.
//
// # What it costs
//
// An uncontended acquire, a renewal and a release are one statement each. A key that is
// found taken costs a second one, once a second; one that has been pruned since this Locker
// had it, once. A wait costs one to line up, one for each third of the heartbeat, and one to
// claim, unless the grant came with a release. Rows stay: see [Locker.Prune].
package postgres

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

var (
	_ lock.Locker = (*Locker)(nil)
	_ lock.Admin  = (*Locker)(nil)
)

// Locker keeps locks in PostgreSQL. It is safe for concurrent use. Close it before its pool.
type Locker struct {
	settings
	db      db
	sql     statements
	process string // this Locker's name, part of its channel
	err     error  // of an option; returned by every call

	// contended has the keys that were found held or waited for a moment ago. They go to the
	// functions that stand in line and hand over at once, instead of by way of the plain
	// statements, which are for keys that are free. A wrong guess costs a round trip, and
	// nothing else.
	contended *storekit.Recent
	// known has keys that were granted here, so that their rows are there unless they have been
	// pruned. A wrong guess costs a round trip here too.
	known    *storekit.Seen
	doubts   storekit.Doubts
	gates    gates
	registry *registry
	listener *listener
	closed   atomic.Bool
}

// New returns a Locker on pool, doing no I/O. A nil pool or a bad option is an error that
// every call returns; so is [ErrSchema] until [Migrate] has run. pool stays the caller's to
// close. Lockers with the same schema and table in the same database share their locks.
func New(pool *pgxpool.Pool, opts ...Option) *Locker {
	l := &Locker{
		process: storekit.ProcessName(), contended: storekit.NewRecent(contendedFor), known: storekit.NewSeen(),
		registry: newRegistry(),
	}
	l.settings, l.err = newSettings(opts)
	if l.err == nil && pool == nil {
		l.err = fmt.Errorf("%w: postgres: pool is nil", lock.ErrInvalid)
	}
	l.db.pool, l.sql = pool, l.names.statements()
	l.listener = newListener(l.registry, channelPrefix+l.process, l.listenConfig)
	return l
}

// contendedFor is how long a key counts as contended: longer than from one look of a waiter
// to the next, so that a key which somebody waits for here stays so.
const contendedFor = 2 * time.Second

// channelPrefix is what channels begin with; schema.sql has it too.
const channelPrefix = "lock_"

// listenConfig is how to connect in order to listen: as the pool does now, unless told.
func (l *Locker) listenConfig(ctx context.Context) (*pgx.ConnConfig, error) {
	if l.listen != nil {
		return l.listen.Copy(), nil
	}
	config := l.db.pool.Config()
	if config.BeforeConnect != nil { // it may bring the password
		if err := config.BeforeConnect(ctx, config.ConnConfig); err != nil {
			return nil, err
		}
	}
	return config.ConnConfig, nil
}

// hears is this Locker's name if a notification reaches it.
func (l *Locker) hears() any {
	if l.poll > 0 {
		return nil
	}
	return l.process
}

// Capabilities implements [lock.Locker].
func (l *Locker) Capabilities() lock.Capabilities {
	return lock.Capabilities{
		Store: "postgres", Shared: true, FIFO: true, Push: l.poll == 0, EarlyLoss: l.poll == 0,
		MinTTL:      10 * time.Millisecond,
		ExpirySlack: time.Millisecond, // of timers: the server's clock counts µs
		TokenSurvives: lock.SurvivesRelease | lock.SurvivesExpiry | lock.SurvivesRecordLoss |
			lock.SurvivesRestart | lock.SurvivesFailover,
		HoldSurvives: lock.SurvivesRelease | lock.SurvivesExpiry | lock.SurvivesRestart,
	}
}

// Acquire implements [lock.Locker]. TTLs round up to microseconds.
func (l *Locker) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if err := lock.CheckRequest(req, l.Capabilities()); err != nil {
		return lock.Grant{}, err
	}
	if err := l.ready(ctx); err != nil {
		return lock.Grant{}, err
	}
	req.TTL = roundUp(req.TTL)
	notified := req.Lost != nil && l.poll == 0
	if notified {
		l.registry.hold(req.Owner, req.Lost)
	}
	var g lock.Grant
	var err error
	if l.poll == 0 && (req.Wait || notified) {
		err = l.listener.await(ctx)
	}
	switch {
	case err != nil:
	case req.Wait:
		g, err = l.wait(ctx, req)
	default:
		g, err = l.try(ctx, req)
	}
	if err != nil {
		l.registry.drop(req.Owner)
	} else if notified {
		l.registry.keep(g)
	}
	return g, err
}

// try acquires without waiting in line.
func (l *Locker) try(ctx context.Context, req lock.Request) (lock.Grant, error) {
	g, no, err := l.acquisition(req).send(ctx)
	if no != nil {
		err = &lock.HeldError{Record: no.record}
	}
	return g, err
}

// Renew implements [lock.Locker].
func (l *Locker) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	if err := l.check(ctx, g); err != nil {
		return lock.Grant{}, err
	}
	if g.TTL <= 0 {
		return lock.Grant{}, fmt.Errorf("%w: TTL %v: must be positive", lock.ErrInvalid, g.TTL)
	}
	g.TTL = roundUp(g.TTL)
	start := time.Now()
	var renewed bool
	var err error
	if !g.Shared {
		renewed, _, err = l.db.exec(ctx, l.sql.extend, []byte(g.Key), g.Owner, int64(g.Token), g.TTL)
	}
	reply := done
	if err == nil && !renewed {
		start = time.Now()
		reply, _, err = l.db.text(ctx, l.sql.renew, []byte(g.Key), g.Owner, int64(g.Token), g.Shared, g.TTL)
	}
	if err == nil {
		err = lost(reply, g)
	}
	if err != nil {
		if errors.Is(err, lock.ErrLost) {
			l.registry.drop(g.Owner)
		}
		return lock.Grant{}, err
	}
	g.Start = start
	l.registry.keep(g)
	return g, nil
}

// Release implements [lock.Locker]. When the reply to a first try got lost and a second one
// finds the grant gone before it can have expired, the first has released it: that is no
// error.
func (l *Locker) Release(ctx context.Context, g lock.Grant) error {
	if err := l.check(ctx, g); err != nil {
		return err
	}
	l.registry.drop(g.Owner)
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

// end ends a grant, an exclusive one by the plain statement unless somebody may wait.
func (l *Locker) end(ctx context.Context, g lock.Grant) error {
	var doubt bool
	if !g.Shared && !l.contended.Has(g.Key) {
		dropped, unsure, err := l.db.exec(ctx, l.sql.drop, []byte(g.Key), g.Owner, int64(g.Token))
		if err != nil || dropped {
			return err
		}
		doubt = unsure
	}
	reply, unsure, err := l.handOver(ctx, g)
	switch {
	case err != nil:
		return err
	case (doubt || unsure) && time.Since(g.Start) < g.TTL:
		return nil
	}
	return lost(reply, g)
}

func (l *Locker) undo(ctx context.Context, g lock.Grant) error {
	_, _, err := l.db.text(ctx, l.sql.undo, []byte(g.Key), g.Owner, storekit.UndoLife)
	return err
}

// done is the reply of functions that have done what they were asked.
const done = "1"

// lost reads the reply to a renewal or a release.
func lost(reply string, g lock.Grant) error {
	switch reply {
	case done:
		return nil
	case "0":
		return &lock.LostError{Reason: lock.ReasonExpired, Token: g.Token}
	case "2":
		return &lock.LostError{Reason: lock.ReasonTaken, Token: g.Token}
	case "3":
		return &lock.LostError{Reason: lock.ReasonForced, Token: g.Token}
	}
	return unexpected(reply)
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

// Close ends this Locker's waits with ErrClosed and closes the connection that listens. It
// leaves the pool and the grants alone: those end with their TTL, unless another Locker
// releases them. It is idempotent and waits for no server.
func (l *Locker) Close() error {
	l.closed.Store(true)
	l.registry.cancel()
	l.listener.close()
	return nil
}

// roundUp is d in whole microseconds, as the server counts, rounded down if there are no more.
func roundUp(d time.Duration) time.Duration {
	return (min(d, math.MaxInt64-time.Microsecond) + time.Microsecond - 1).Truncate(time.Microsecond)
}
