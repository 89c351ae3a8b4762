package lock

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// Deadlock is a cycle of waits, none of which ends while the others last.
type Deadlock struct {
	// Cycle has each wait once. Each waits for a grant that the next one holds, and the last
	// for one that the first holds. The first is the youngest: its newest grant has the
	// highest token.
	Cycle []DeadlockWait
}

// DeadlockWait is one wait of a [Deadlock].
type DeadlockWait struct {
	Key    string // what it waits for
	Waiter Waiter // its place in line; of a call that has not been sent, Owner is empty
	For    string // the owner of the grant of Key that it waits for: the next one is under it
	Behind string // the exclusive waiter ahead of it, without which it could share Key with For; or empty
}

// String says in one line who holds what and waits for what, in the order of the cycle.
func (d Deadlock) String() string {
	var b strings.Builder
	for i, w := range d.Cycle {
		held := d.Cycle[(i+len(d.Cycle)-1)%len(d.Cycle)] // the one before waits for what this one holds
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(held.For)
		if facts := metadataFacts(w.Waiter.Metadata); len(facts) > 0 {
			b.WriteString(" (" + strings.Join(facts, ", ") + ")")
		}
		fmt.Fprintf(&b, " holds %q and waits for %q", held.Key, w.Key)
		if w.Behind != "" {
			fmt.Fprintf(&b, " behind %s, which waits for it exclusively", w.Behind)
		}
	}
	return b.String()
}

// DeadlockError names the deadlock that a call was part of, or would have made. It is
// ErrDeadlock.
type DeadlockError struct {
	Deadlock Deadlock // the call that failed is the first of its Cycle
}

// Error names the keys and the owners of the cycle, in its order.
func (e *DeadlockError) Error() string { return "lock: deadlock: " + e.Deadlock.String() }

// Is reports true for ErrDeadlock.
func (e *DeadlockError) Is(target error) bool { return target == ErrDeadlock }

// FindDeadlocks returns the deadlocks among those who wait at a store, or none. It is for people and for tools: [WithDeadlockDetection] ends one by itself.
//
// It lists all keys. If that shows a cycle, it lists them again, and returns the cycle only if
// the same owners still wait and hold in it: so they all did at one moment between the two
// looks. Of cycles that overlap it returns as many as must be broken.
//
// A wait takes part in a cycle by what it is under: see Request.Under, which a Client fills in
// for a call whose ctx comes from the fn of a Do. An exclusive waiter waits for every holder,
// so one reader in the cycle is enough. A shared one waits for an exclusive holder; where
// FIFO is declared it waits for readers as well, behind an exclusive waiter. Waiters that are
// merely ahead in line add nothing: what they wait for, those behind them wait for too.
//
// It sees what Records show: at most MaxRecord holders and waiters of each key, none where the
// store shows no line. The error is that of List.
func FindDeadlocks(ctx context.Context, a Admin) ([]Deadlock, error) {
	l, ok := a.(Locker)
	return findDeadlocks(ctx, a, ok && l.Capabilities().FIFO, nil)
}

// findDeadlocks is FindDeadlocks. If there are callers, it returns those of which they are the
// victims.
func findDeadlocks(ctx context.Context, a Admin, fifo bool, callers []DeadlockWait) ([]Deadlock, error) {
	first, err := readWaits(ctx, a, fifo, callers)
	if err != nil {
		return nil, err
	}
	found := first.deadlocks()
	if len(callers) > 0 {
		found = slices.DeleteFunc(found, func(d Deadlock) bool {
			return !slices.ContainsFunc(callers, func(w DeadlockWait) bool { return w.Waiter.Owner == d.Cycle[0].Waiter.Owner })
		})
	}
	if len(found) == 0 {
		return nil, nil
	}
	again, err := readWaits(ctx, a, fifo, callers)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(found, func(d Deadlock) bool { return !again.has(d) }), nil
}
