package lock

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// DoAll runs fn while it holds all keys, and releases them: also if fn panics or calls
// runtime.Goexit, and also if ctx has ended. It takes them one after the other in the order
// of their bytes, whatever order they are given in, each once. So calls of DoAll never
// deadlock with each other. fn gets the leases in the order of keys; a key that is given
// twice has its one lease in both places. No keys are ErrInvalid.
//
// DoAll gets all keys or none. If one cannot be had, the others are given back in the
// background, and the *Error names the one that was in the way: with that, [Refused] reports
// true if somebody else holds it. [WithWait] bounds the whole. Keys that DoAll has already
// are renewed while it waits for others. If one of them is lost, fn has not run yet, so DoAll
// gives all back and begins again, within the same wait; without a wait it returns ErrLost.
//
// fn's ctx ends with ctx and with the lease that is lost, or released by fn, first. DoAll returns what Do does:
// fn's error as it is, joined once with a loss, however many were lost.
//
// A key that ctx holds already, or one that sorts before a key that ctx holds, is ErrDeadlock
// at once: ctx holds the keys of each Do and DoAll of this Client from whose fn it comes. A
// Do in fn takes any other key, and can deadlock with callers that take the two in another
// order.
func (c *Client) DoAll(ctx context.Context, keys []string, fn func(context.Context, []*Lease) error, opts ...Option) error {
	cfg, key, err := c.configAll(ctx, keys, opts)
	if err == nil && fn == nil {
		err = fmt.Errorf("%w: fn is nil", ErrInvalid)
	}
	if err != nil {
		return opDoAll.fail(key, err)
	}
	d := newAllCall(keys)
	d.init(ctx, c, opDoAll, key, cfg)
	if d.limit() > 0 {
		d.begun = time.Now()
	}
	d.around = fnContextOf(ctx)
	if err := d.ordered(d.around); err != nil {
		return d.failed(nil, err)
	}
	if err := d.acquireAll(); err != nil {
		return err
	}
	return d.run(d.under, fn)
}

// configAll is the configuration of a DoAll, or an error and the key that it is about: the
// first one if it is about none.
func (c *Client) configAll(ctx context.Context, keys []string, opts []Option) (*config, string, error) {
	if len(keys) == 0 {
		return nil, "", fmt.Errorf("%w: no keys: DoAll needs at least one", ErrInvalid)
	}
	for _, key := range keys {
		if err := CheckKey(key); err != nil {
			return nil, key, err
		}
	}
	cfg, err := c.config(ctx, opDoAll, keys[0], opts)
	return cfg, keys[0], err
}

// firstOf is the key that an error is told of which is about none.
func firstOf(keys []string) string {
	if len(keys) == 0 {
		return ""
	}
	return keys[0]
}

// allCall is a DoAll. Its call asks for one key after the other: the engine knows one call,
// which Close ends and waits for.
type allCall struct {
	call
	keys   []string   // sorted, each once
	places []int      // in keys, of the keys as given
	around *fnContext // the leases that ctx carries
	begun  time.Time
}

func newAllCall(given []string) *allCall {
	d := &allCall{keys: slices.Clone(given), places: make([]int, len(given))}
	slices.Sort(d.keys)
	d.keys = slices.Compact(d.keys)
	for i, key := range given {
		d.places[i], _ = slices.BinarySearch(d.keys, key)
	}
	return d
}

// ordered returns an error, and makes d's key the one that it is about, if d could wait for
// what its ctx holds, or for somebody who waits for that.
func (d *allCall) ordered(c *fnContext) error {
	for ; c != nil; c = c.outer {
		l := c.lease
		if l.e != &d.c.engine || l.Err() != nil {
			continue // it holds nothing to wait for any more
		}
		switch i, found := slices.BinarySearch(d.keys, l.Key()); {
		case found:
			d.key = l.Key()
			return fmt.Errorf("%w: ctx holds the key already", ErrDeadlock)
		case i > 0:
			d.key = d.keys[0]
			return fmt.Errorf("%w: ctx holds %q, which sorts after it: DoAll takes keys in order", ErrDeadlock, l.Key())
		}
	}
	return nil
}

// acquireAll gets a lease of each key. When one is lost on the way, a call that waits begins
// again.
func (d *allCall) acquireAll() error {
	var late error
	for n := 0; ; n++ {
		err := d.round(n, late)
		if !errors.Is(err, ErrLost) {
			return err
		}
		l, lost := d.lost()
		if l == nil {
			return err // its wait is over, and a grant that came too late was the last it saw
		}
		if late = d.op.fail(l.Key(), lost); !d.waits() {
			return late
		}
	}
}

// round takes one key after the other; the n rounds before have ended by a loss, the last by
// late. If it returns an error, or panics, all leases are on their way back.
func (d *allCall) round(n int, late error) (err error) {
	d.key, d.leases, d.under = d.keys[0], make([]*Lease, 0, len(d.keys)), d.around
	d.cctx, d.cancel = context.WithCancelCause(d.ctx)
	d.seen.Store(nil)
	done := false
	defer func() {
		if !done { // the store or an Observer may have panicked
			d.giveUp()
		}
	}()
	fail := func(err error) error {
		d.giveUp() // before an Observer hears of it, who may call Close
		return d.failed(nil, err)
	}
	if err := d.enter(); err != nil {
		return d.failed(nil, err)
	}
	if late != nil {
		if err := d.rest(n-1, late); err != nil {
			return fail(err)
		}
	}
	terms := make([]struct { // of each key, in one allocation
		lease Lease
		fn    fnContext
	}, len(d.keys))
	for i := range d.keys {
		d.key = d.keys[i]
		d.seen.Store(nil)
		l, err := d.get(&terms[i].lease, d.left())
		if err != nil {
			return err
		}
		d.leases = append(d.leases, l)
		terms[i].fn = fnContext{Context: d.cctx, lease: l, outer: d.under}
		d.under = &terms[i].fn
	}
	if l, lost := d.lost(); l != nil {
		d.key = l.Key()
		return fail(lost)
	}
	done = true
	return nil
}

// rest is the pause after a round.
func (d *allCall) rest(n int, late error) error {
	defer d.bound(d.left())()
	return d.pause(n, late)
}

// left is the bound of what comes next: the rest of the wait, which is one for all keys, or
// that of a try.
func (d *allCall) left() time.Duration {
	limit := d.limit()
	if !d.waits() || limit == 0 {
		return limit
	}
	return max(limit-time.Since(d.begun), 1)
}

// lost returns the lease whose loss has ended d's ctx, and the loss; or nil.
func (d *allCall) lost() (*Lease, error) {
	var s section
	s.enter(&d.c.engine)
	for _, l := range d.leases {
		s.timeUp(l)
	}
	s.leaveLater()
	cause := context.Cause(d.cctx)
	if !errors.Is(cause, ErrLost) {
		return nil, nil
	}
	for _, l := range d.leases {
		if l.Err() == cause { //nolint:errorlint // this very one
			return l, cause
		}
	}
	return nil, nil
}

// run runs fn and releases, as that of a Do does.
func (d *allCall) run(ctx *fnContext, fn func(context.Context, []*Lease) error) (err error) {
	given := make([]*Lease, len(d.places))
	for i, place := range d.places {
		given[i] = d.leases[place]
	}
	defer func() { err = d.end(err) }()
	return fn(ctx, given)
}

// end releases all leases. It returns err, which is fn's, with the loss that ended fn's ctx,
// or else the last that a release has shown: told once, so only if fn has returned none. A
// release that the store does not answer ends the ctx of those that follow, which are thus
// left to the engine.
func (d *allCall) end(err error) error {
	ended := context.Cause(d.cctx)
	d.leave()       // before an Observer hears of a release, who may call Close
	defer d.letGo() // an Observer may panic
	ctx, cancel := context.WithCancel(&detached{d.ctx})
	defer cancel()
	key, lost, told := "", error(nil), false
	for _, l := range slices.Backward(d.leases) {
		loss := l.finish(d.parting(ctx, cancel))
		if !errors.Is(loss, ErrLost) {
			continue
		}
		told = told || err != nil && errors.Is(err, loss)
		if lost == nil || lost != ended { //nolint:errorlint // this very one
			key, lost = l.Key(), loss
		}
	}
	if told {
		return err
	}
	return d.op.join(key, err, lost)
}

// letGo has the engine release the leases that are held still.
func (d *allCall) letGo() {
	var s section
	s.enter(&d.c.engine)
	for _, l := range d.leases {
		s.letGo(l)
	}
	s.leave()
}
