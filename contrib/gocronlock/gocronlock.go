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
	"sync"
	"time"

	"github.com/go-co-op/gocron/v2"

	"github.com/seed-215fdefa/lock"
)

// DefaultMinHold is a Locker's minimum hold, or half of the TTL if that is less.
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
	hold := lock.WithMinHold(min(DefaultMinHold, set.TTL/2))
	l.opts = append([]lock.Option{hold}, opts...)
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

	mu    sync.Mutex  // guards the rest, and is held while the store is asked
	lease *lock.Lease // of the last time that this replica led; may be nil
}

var _ gocron.Elector = (*Elector)(nil)

// NewElector returns an Elector whose leader holds key at c. opts are for that lock.
func NewElector(c *lock.Client, key string, opts ...lock.Option) *Elector {
	return &Elector{client: c, key: key, opts: opts}
}

// IsLeader returns nil if this replica leads, or becomes the leader by this call.
func (e *Elector) IsLeader(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.lease != nil && e.lease.Err() == nil {
		return nil
	}
	lease, err := e.client.TryLock(ctx, e.key, e.opts...)
	if err != nil {
		return err
	}
	e.lease = lease
	return nil
}

// Lease returns the leader's lease, or nil if this replica does not lead.
func (e *Elector) Lease() *lock.Lease {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.lease == nil || e.lease.Err() != nil {
		return nil
	}
	return e.lease
}

// Close gives up leadership. Shut the scheduler down first: running jobs go on, and a scheduler
// that asks again may lead again.
func (e *Elector) Close(ctx context.Context) error {
	if l := e.Lease(); l != nil {
		return l.Release(ctx)
	}
	return nil
}
