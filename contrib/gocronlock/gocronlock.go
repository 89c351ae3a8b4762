// Package gocronlock lets replicas of a program share the schedule of
// github.com/go-co-op/gocron, with a [lock.Client]. With a Locker, each job runs on one replica
// at a time. With an Elector, all jobs run on one replica.
//
//	s, err := gocron.NewScheduler(gocron.WithDistributedLocker(gocronlock.NewLocker(client)))
//
// # Clocks
//
// The clocks of replicas differ. Suppose that a job takes less time than they differ by. It has
// ended and released its lock before the next replica's clock says that the job is due, so it
// would run on every replica. To prevent that, a Locker keeps a job's key taken for a minimum
// hold after the run began. The minimum hold must be more than the clocks differ by, and less
// than the time between two runs.
//
// # Loss
//
// gocron has no way to end a job whose lock was lost. If something must not happen twice, check
// a token: that of [Elector.Lease], or of a lock that the job itself takes.
package gocronlock

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-co-op/gocron/v2"

	"github.com/seed-215fdefa/lock"
)

// DefaultMinHold is a Locker's minimum hold, unless the Client has one ([lock.WithMinHold]). It is
// half of the TTL if that is less, or the TTL less the drift. A store that grants less than the TTL
// that is asked for, such as ZooKeeper, needs [lock.WithTTL] with what it grants.
const DefaultMinHold = 5 * time.Second

// Prefix is what the keys of jobs begin with. The job's name follows.
const Prefix = "gocron:"

// Locker is a [gocron.Locker]. It is safe for concurrent use.
type Locker struct {
	client *lock.Client
	opts   []lock.Option
	err    error
}

var _ gocron.Locker = (*Locker)(nil)

// NewLocker returns a Locker on c. opts are for its locks; [lock.WithMinHold] sets another
// minimum hold. If an option is not valid, every Lock returns an error.
//
// Give each job a name (gocron.WithName). The default is the name of its function, which several
// jobs may share.
func NewLocker(c *lock.Client, opts ...lock.Option) *Locker {
	l := &Locker{client: c}
	set, err := c.Settings(opts...)
	l.err = err
	if set.MinHold == 0 {
		hold := lock.WithMinHold(min(DefaultMinHold, set.TTL/2, set.TTL-set.Drift))
		l.opts = append(l.opts, hold)
	}
	l.opts = append(l.opts, opts...)
	return l
}

// Lock takes the job's lock. If it returns an error, gocron skips this run. The error is ErrHeld
// if another replica runs the job, or has just done so.
func (l *Locker) Lock(ctx context.Context, job string) (gocron.Lock, error) {
	if l.err != nil {
		return nil, l.err
	}
	lease, err := l.client.TryLock(ctx, Prefix+job, l.opts...)
	if err != nil {
		return nil, err
	}
	return held{lease}, nil
}

// held is a lock of gocron's.
type held struct{ lease *lock.Lease }

// Unlock returns at once; the key is free when the minimum hold is over.
func (h held) Unlock(ctx context.Context) error { return h.lease.Release(ctx) }

// Elector is a [gocron.Elector]: one of the replicas runs all jobs. It is safe for concurrent
// use. The first replica that is asked becomes the leader. It leads until it closes its Elector,
// dies or loses the lock; then the next one asked leads.
type Elector struct {
	client *lock.Client
	key    string
	opts   []lock.Option

	lease atomic.Pointer[lock.Lease] // of the last time that this replica led; nil if it never did

	mu    sync.Mutex // guards asked
	asked *inquiry   // in flight; nil if none is
}

// inquiry is one question to the store, for all who ask meanwhile.
type inquiry struct {
	done chan struct{} // closed when it is over
	err  error         // why this replica does not lead; nil if it does, or if the asker has given up
}

var _ gocron.Elector = (*Elector)(nil)

// NewElector returns an Elector whose leader holds key at c. opts are for that lock.
func NewElector(c *lock.Client, key string, opts ...lock.Option) *Elector {
	return &Elector{client: c, key: key, opts: opts}
}

// IsLeader returns nil if this replica leads, or becomes the leader by this call. Calls at the same
// time ask the store once.
func (e *Elector) IsLeader(ctx context.Context) error {
	for {
		last := e.lease.Load()
		if last != nil && last.Err() == nil {
			return nil
		}
		e.mu.Lock()
		q, mine := e.asked, e.asked == nil && e.lease.Load() == last
		if mine {
			q = &inquiry{done: make(chan struct{})}
			e.asked = q
		}
		e.mu.Unlock()
		switch {
		case mine:
			return e.ask(ctx, q)
		case q == nil: // it has just become the leader
			continue
		}
		select {
		case <-q.done:
			if q.err != nil {
				return q.err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ask asks the store. If that has no answer because ctx has ended, others ask for themselves.
func (e *Elector) ask(ctx context.Context, q *inquiry) error {
	defer func() {
		e.mu.Lock()
		e.asked = nil
		e.mu.Unlock()
		close(q.done)
	}()
	lease, err := e.client.TryLock(ctx, e.key, e.opts...)
	switch {
	case err == nil:
		e.lease.Store(lease)
	case !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded):
		q.err = err
	}
	return err
}

// Lease returns the leader's lease, or nil if this replica does not lead.
func (e *Elector) Lease() *lock.Lease {
	if l := e.lease.Load(); l != nil && l.Err() == nil {
		return l
	}
	return nil
}

// Close waits for a question to the store that is under way, and gives up leadership. Shut the
// scheduler down first: running jobs go on, and a scheduler that asks again may lead again.
func (e *Elector) Close(ctx context.Context) error {
	e.mu.Lock()
	q := e.asked
	e.mu.Unlock()
	if q != nil {
		select {
		case <-q.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if l := e.Lease(); l != nil {
		return l.Release(ctx)
	}
	return nil
}
