package locktest

import (
	"context"
	"fmt"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// mostMessages is where a sweep ends: no operation is expected to need more.
const mostMessages = 12

// bite is what a fault did to the operation that it was meant for.
type bite int

const (
	missed  bite = iota // the operation was over before
	shallow             // it was under way, and had not taken effect as far as one can see
	deep                // it had taken effect, and its caller did not know
)

// trouble is a fault that is to come while an operation of one Locker is under way.
type trouble struct {
	e      *env
	begin  func() // the fault
	heal   func()
	struck func() bool // nil: that cannot be known
	held   bool        // the operation cannot end before heal
}

// eachLateReply calls try for each reply that an operation needs: from that one on, none
// reaches l, which has been used before. Without Strike it does so for the first only. It
// ends the case as skipped if no fault bit deep: then what the case is about did not happen.
// It looks for that again, since an operation may need one reply now and two next time.
func (e *env) eachLateReply(try func(l lock.Locker, t *trouble) bite) {
	e.Helper()
	most, deepest := mostMessages, missed
	if e.h.striker() == nil {
		most = 1
	}
	for again := 2; ; again-- {
		deepest = max(deepest, e.lateRepliesUpTo(most, try))
		if deepest != shallow || most == 1 || again == 0 {
			break
		}
	}
	e.during = ""
	switch {
	case deepest == missed:
		e.skip("the fault did not bite: the operation was over before a reply was held back")
	case deepest == shallow && most == 1:
		e.skip("the fault did not bite: without its first reply the operation did not take effect, or gave up; Harness.Strike and Harness.Proxy can hold back a later one")
	case deepest == shallow:
		e.skip("the fault did not bite: no operation took effect whose reply was held back, and went on")
	}
}

// lateRepliesUpTo is one round of eachLateReply. It returns the deepest bite.
func (e *env) lateRepliesUpTo(most int, try func(l lock.Locker, t *trouble) bite) (deepest bite) {
	e.Helper()
	for k := 1; k <= most; k++ {
		t := e.lateReplies(e.open(), k)
		bit := try(t.l, t.trouble)
		t.heal()
		deepest = max(deepest, bit)
		if bit == missed && (t.struck == nil || !t.struck()) {
			break
		}
	}
	return deepest
}

type lateReplies struct {
	*trouble
	l lock.Locker
}

// lateReplies warms l up, so that it is not a handshake that the fault befalls.
func (e *env) lateReplies(l lock.Locker, k int) lateReplies {
	e.Helper()
	e.warm(l)
	t := &trouble{e: e, heal: func() {}, held: true}
	if e.h.striker() == nil {
		t.begin = func() { t.heal = e.fault(LoseReply, l) }
		return lateReplies{t, l}
	}
	s := Strike{Reply: true, Hold: true, K: k}
	t.struck = func() bool { return false }
	t.begin = func() {
		e.during = s.String()
		t.struck, t.heal = e.strike(l, s)
	}
	return lateReplies{t, l}
}

// warm uses l as the case will, on a key of its own.
func (e *env) warm(l lock.Locker) {
	e.Helper()
	h := e.mustRenew(e.mustAcquire(l, e.request(e.key())))
	e.mustRelease(h)
	e.mustUndo(l, h.g.Key, h.g.Owner)
}

// effect waits until late's grant is in the store, though its reply is not here, or until
// that cannot be expected any more within limit.
func (t *trouble) effect(late *waiter, other lock.Locker, limit time.Duration) bite {
	t.e.Helper()
	var struck time.Time
	for begin := time.Now(); ; time.Sleep(t.e.tick()) {
		over := time.Since(begin) > limit || !struck.IsZero() && time.Since(struck) > t.e.quick()
		there := holder(t.e.mustInspect(other, late.h.req.Key), late.h.req.Owner) != nil
		if there && t.struck == nil {
			time.Sleep(t.e.pace + t.e.tick()) // for a reply that was not held back
		}
		switch ended := late.ended(); {
		case ended && late.err == nil:
			return missed
		case there && (t.struck == nil || t.struck()):
			return deep
		case ended || over:
			return shallow
		}
		if t.struck != nil && struck.IsZero() && t.struck() {
			struck = time.Now()
		}
	}
}

// call begins the fault and calls f, whose ctx ends soon after the fault has struck if
// that cannot end otherwise. It returns missed if f was done before.
func (t *trouble) call(what string, f func(ctx context.Context) error) (bite, error) {
	t.e.Helper()
	ctx, cancel := context.WithTimeout(t.e.ctx, t.e.patience())
	defer cancel()
	t.begin()
	done := make(chan error, 1)
	t.e.start(func() { done <- f(ctx) })
	ended, err := t.await(done)
	if !ended {
		cancel()
		select {
		case err = <-done:
		case <-time.After(t.e.patience()):
			t.e.fail(what+" to return when its ctx ends", "it has not, %v after that", t.e.patience())
		}
	}
	if t.struck != nil && !t.struck() || t.struck == nil && ended && err == nil {
		return missed, err
	}
	return shallow, err
}

// await waits for done, or for as long as it can be expected to come.
func (t *trouble) await(done <-chan error) (ended bool, err error) {
	begin, struck := time.Now(), time.Time{}
	limit := t.e.patience()
	if t.struck == nil {
		limit = t.e.ttl/2 + t.e.pace
	}
	for time.Since(begin) < limit {
		select {
		case err = <-done:
			return true, err
		case <-time.After(t.e.tick()):
		}
		switch {
		case t.struck == nil || !t.held:
		case struck.IsZero() && t.struck():
			struck = time.Now()
		case !struck.IsZero() && time.Since(struck) > t.e.ttl/20:
			return false, nil
		}
	}
	return false, nil
}

// settledUndo undoes until the store, after a fault, says that it is done.
func (e *env) settledUndo(l lock.Locker, key, owner string) {
	e.Helper()
	e.eventually("the undo to be answered after the fault", e.recovery(), func() (bool, string) {
		err := e.tryRelease(l, lock.Grant{Key: key, Owner: owner})
		return err == nil, fmt.Sprint(err)
	})
}
