package storekit

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-215fdefa/lock"
)

// UndoLife is how long a tombstone refuses the late requests of an owner: longer than a request
// may linger in the buffers of a connection whose client has given it up.
const UndoLife = 2 * time.Minute

// ErrUndone is the outcome of an acquisition whose owner has been released already.
var ErrUndone = fmt.Errorf("%w: this owner's acquisition has been undone", lock.ErrReleased)

// Doubts remembers owners that have a grant, but of which a copy of a request may still be on its
// way, and arrive after the release: so a release of such an owner leaves a tombstone that refuses
// it. It forgets them after one [UndoLife] and before two, as long as others are added. The zero
// value has none. It is safe for concurrent use.
type Doubts struct {
	some atomic.Bool // whether there are any

	mu         sync.Mutex // guards the rest
	young, old map[string]struct{}
	since      time.Time // when the first of the young was added
}

// Add remembers owner.
func (d *Doubts) Add(owner string) {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	if age := now.Sub(d.since); age > UndoLife {
		if age > 2*UndoLife {
			d.young = nil
		}
		d.young, d.old, d.since = make(map[string]struct{}), d.young, now
	}
	d.young[owner] = struct{}{}
	d.some.Store(true)
}

// Take reports whether there are doubts about owner, and forgets them.
func (d *Doubts) Take(owner string) bool {
	if !d.some.Load() {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	_, young := d.young[owner]
	_, old := d.old[owner]
	delete(d.young, owner)
	delete(d.old, owner)
	d.some.Store(len(d.young)+len(d.old) > 0)
	return young || old
}

// Release ends g by end, or by undo if it has no token. undo leaves a tombstone: where there are
// doubts about the owner it follows end. A loss that end finds is told even if undo fails.
func (d *Doubts) Release(ctx context.Context, g lock.Grant, end, undo func(context.Context, lock.Grant) error) error {
	if g.Token == 0 {
		return undo(ctx, g)
	}
	err := end(ctx, g)
	if (err == nil || errors.Is(err, lock.ErrLost)) && d.Take(g.Owner) {
		if undone := undo(ctx, g); undone != nil {
			d.Add(g.Owner) // for the next try
			return errors.Join(err, undone)
		}
	}
	return err
}

// reuseOwner is the key in ctx of ReuseOwner.
type reuseOwner struct{}

// ReuseOwner is ctx for the calls of an Acquire by one who tries, and if it is refused stands in line as
// the same owner. A tombstone would refuse that, so the try leaves none: nothing needs undoing before the
// wait has ended. That one may have left nothing itself, and is not all that the owner may have.
func ReuseOwner(ctx context.Context) context.Context {
	return context.WithValue(ctx, reuseOwner{}, true)
}

// OwnerIsReused reports whether ctx is from [ReuseOwner].
func OwnerIsReused(ctx context.Context) bool { return ctx.Value(reuseOwner{}) != nil }

// Tried is [Tried], of a store whose tombstones refuse an owner for good. If ctx is from [ReuseOwner] it
// remembers the doubt for the release.
func (d *Doubts) Tried(ctx context.Context, req lock.Request, err error, unsure bool, undo func(context.Context, lock.Grant) error) error {
	if unsure && OwnerIsReused(ctx) {
		d.Add(req.Owner)
		return err
	}
	return Tried(ctx, req, err, unsure, undo)
}

// Tried is the error of a try of req that ended with err. Nobody undoes a try after ErrHeld, so if it is
// unsure whether a copy comes late, when the key is free, undo leaves a tombstone first. An error that
// says that this failed is one after which the caller undoes.
func Tried(ctx context.Context, req lock.Request, err error, unsure bool, undo func(context.Context, lock.Grant) error) error {
	var held *lock.HeldError
	if !unsure || !errors.As(err, &held) {
		return err
	}
	undone := WithinPatience(ctx, func(ctx context.Context) error {
		return undo(ctx, lock.Grant{Key: req.Key, Owner: req.Owner})
	})
	switch {
	case ctx.Err() != nil:
		return &lock.HeldError{Record: held.Record, Err: Ended(ctx, undone, held.Err)}
	case undone != nil:
		return fmt.Errorf("lock: the key is held, but an earlier copy of this try may still be executed: %w", undone)
	}
	return err
}
