package locktest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// held is a grant, and when it was asked for and had. The store's own start of the TTL
// lies between the two.
type held struct {
	l               lock.Locker
	req             lock.Request
	g               lock.Grant
	asked, answered time.Time
}

// end is how long the grant is exclusive at least.
func (h held) end() time.Time { return h.g.Start.Add(h.g.TTL) }

// overdue is when a dead holder's grant is over at the latest: for whoever asks later.
func (e *env) overdue(h held) time.Time {
	return h.answered.Add(h.g.TTL + e.caps.ExpirySlack + e.ttl/4)
}

// request asks in the case's mode for a grant that outlives the case.
func (e *env) request(key string) lock.Request {
	return lock.Request{Key: key, Owner: rand.Text(), TTL: e.long(), Shared: e.shared}
}

// brief is a request whose TTL the case waits for.
func (e *env) brief(key string) lock.Request {
	req := e.request(key)
	req.TTL = e.ttl
	return req
}

// rival is a request that no other grant stands: an exclusive one.
func (e *env) rival(key string) lock.Request {
	req := e.request(key)
	req.Shared = false
	return req
}

// anew is req for another try.
func anew(req lock.Request) lock.Request {
	req.Owner = rand.Text()
	return req
}

// tryAcquire acquires and says what came of it, which is ErrHeld or a grant as req asks for it.
func (e *env) tryAcquire(l lock.Locker, req lock.Request) (held, error) {
	e.Helper()
	h := held{l: l, req: req}
	err := e.call("Acquire", func(ctx context.Context) (err error) {
		h.asked = time.Now()
		h.g, err = l.Acquire(ctx, req)
		h.answered = time.Now()
		return err
	})
	if err == nil {
		if want, seen := h.flaw(h.asked); want != "" {
			e.fail(want, "%s", seen)
		}
		return h, nil
	}
	if !errors.Is(err, lock.ErrHeld) {
		e.fail(fmt.Sprintf("a grant of %q, or ErrHeld", req.Key), "%v", err)
	}
	return h, err
}

// flaw says what a grant is to be that this one is not. No request that can have proved
// it was sent before earliest.
func (h held) flaw(earliest time.Time) (want, seen string) {
	g := h.g
	switch {
	case g == lock.Grant{}:
		return "never a zero Grant with a nil error", "just that"
	case g.Key != h.req.Key || g.Owner != h.req.Owner || g.Shared != h.req.Shared:
		return fmt.Sprintf("a grant of %q to %s, shared %t", h.req.Key, h.req.Owner, h.req.Shared),
			fmt.Sprintf("of %q to %s, shared %t", g.Key, g.Owner, g.Shared)
	case g.Token == 0 || g.Token > lock.MaxToken:
		return fmt.Sprintf("a token from 1 to %d", lock.MaxToken), fmt.Sprint(g.Token)
	case g.TTL <= 0:
		return "a TTL above 0", g.TTL.String()
	case g.Start.Before(earliest):
		return "a Start from this call", fmt.Sprintf("one %v before", earliest.Sub(g.Start))
	case g.Start.After(h.answered):
		return "a Start from before the reply", fmt.Sprintf("one %v after the call", g.Start.Sub(h.answered))
	case monotonic(h.asked) && !monotonic(g.Start):
		return "a Start with a monotonic reading", "one without"
	}
	return "", ""
}

// monotonic reports whether t has a monotonic reading, which Round takes off; times in a
// bubble have none.
func monotonic(t time.Time) bool { return t != t.Round(0) }

// mustAcquire is a tryAcquire that must succeed.
func (e *env) mustAcquire(l lock.Locker, req lock.Request) held {
	e.Helper()
	h, err := e.tryAcquire(l, req)
	if err != nil {
		e.fail(fmt.Sprintf("a grant of %q, which is free", req.Key), "%v", err)
	}
	return h
}

// hold is a grant in the case's mode that lasts.
func (e *env) hold(l lock.Locker, key string) held {
	e.Helper()
	return e.lasting(l, e.request(key))
}

// lasting acquires, and keeps the grant up if the store gave it a shorter TTL than
// asked, until it is gone or the case over.
func (e *env) lasting(l lock.Locker, req lock.Request) held {
	e.Helper()
	h := e.mustAcquire(l, req)
	e.outlast(h)
	return h
}

// outlast is lasting for a grant that is there.
func (e *env) outlast(h held) {
	if h.g.TTL < h.req.TTL {
		e.start(func() { e.keep(h) })
	}
}

func (e *env) keep(h held) {
	every := time.NewTicker(h.g.TTL / 4)
	defer every.Stop()
	late := time.AfterFunc(h.g.TTL*3/4, func() { e.unkept.Store(true) })
	defer late.Stop()
	for {
		select {
		case <-e.ctx.Done():
			return
		case <-every.C:
			ctx, cancel := context.WithTimeout(e.ctx, h.g.TTL)
			_, err := h.l.Renew(ctx, h.g)
			cancel()
			switch {
			case err == nil:
				late.Reset(h.g.TTL * 3 / 4)
			case errors.Is(err, lock.ErrLost):
				return
			}
		}
	}
}

// mayBeOver skips the case where a grant that should be there was not kept up.
func (e *env) mayBeOver() {
	e.Helper()
	if e.unkept.Load() {
		e.skip("this machine or the store was so late with a renewal that the grant may have been over")
	}
}

// mustBeHeld is a tryAcquire that must find the key held.
func (e *env) mustBeHeld(l lock.Locker, req lock.Request) {
	e.Helper()
	if h, err := e.tryAcquire(l, req); err == nil {
		e.mayBeOver()
		e.fail(fmt.Sprintf("ErrHeld for %s, shared %t", req.Owner, req.Shared), "a grant with token %d", h.g.Token)
	}
}

// free takes key to show that it is free, and gives it back.
func (e *env) free(l lock.Locker, key string) {
	e.Helper()
	e.mustRelease(e.mustAcquire(l, e.rival(key)))
}

// mustRelease ends a grant that is live, or was on a faster machine.
func (e *env) mustRelease(h held) {
	e.Helper()
	if err := e.tryRelease(h.l, h.g); err != nil && (live(h) || !errors.Is(err, lock.ErrLost)) {
		e.fail("a nil error from the Release of a live grant", "%v", err)
	}
}

func (e *env) tryRelease(l lock.Locker, g lock.Grant) error {
	e.Helper()
	return e.call("Release", func(ctx context.Context) error { return l.Release(ctx, g) })
}

// mustUndo is what a caller does about an outcome that it does not know.
func (e *env) mustUndo(l lock.Locker, key, owner string) {
	e.Helper()
	if err := e.tryRelease(l, lock.Grant{Key: key, Owner: owner}); err != nil {
		e.fail("a nil error from a Release without a token", "%v", err)
	}
}

// tryRenew renews; the held that it returns is h as renewed. On an error it is h.
func (e *env) tryRenew(h held) (held, error) {
	e.Helper()
	r := h
	err := e.call("Renew", func(ctx context.Context) (err error) {
		r.asked = time.Now()
		r.g, err = h.l.Renew(ctx, h.g)
		r.answered = time.Now()
		return err
	})
	if err != nil {
		return h, err
	}
	// Renewals may share a request that was under way already.
	if want, seen := r.flaw(h.g.Start); want != "" {
		e.fail(want, "%s", seen)
	}
	if r.g.Token != h.g.Token {
		e.fail(fmt.Sprintf("the token to stay %d", h.g.Token), "%d", r.g.Token)
	}
	return r, nil
}

// mustRenew renews a grant that is live.
func (e *env) mustRenew(h held) held {
	e.Helper()
	r, err := e.tryRenew(h)
	if err != nil {
		e.fail("a nil error from the Renew of a live grant", "%v", err)
	}
	return r
}

// mustBeLost checks the error of a Renew or Release of a grant that is not live.
func (e *env) mustBeLost(op string, err error) {
	e.Helper()
	if !errors.Is(err, lock.ErrLost) {
		e.fail("ErrLost from "+op+" of a grant that is not live", "%v", err)
	}
}

// mustInspect returns the record of key.
func (e *env) mustInspect(l lock.Locker, key string) lock.Record {
	e.Helper()
	e.needsInspect()
	var rec lock.Record
	err := e.call("Inspect", func(ctx context.Context) (err error) {
		rec, err = l.Inspect(ctx, key)
		return err
	})
	if err != nil || rec.Key != key {
		e.fail(fmt.Sprintf("the record of %q", key), "that of %q, error %v", rec.Key, err)
	}
	return rec
}

// needsInspect skips the case if an earlier one has shown that Inspect does not tell the truth.
// The cases of Inspect itself are not skipped.
func (e *env) needsInspect() {
	if why := e.distrust(); why != "" {
		e.skip("Inspect cannot be believed: " + why)
	}
}

// distrust is why a case of another group must not call Inspect, or "".
func (e *env) distrust() string {
	e.suite.mu.Lock()
	defer e.suite.mu.Unlock()
	if strings.HasPrefix(e.path, "Inspect/") {
		return ""
	}
	return e.suite.distrust
}

// holder returns owner's grant in rec, or nil.
func holder(rec lock.Record, owner string) *lock.Holder {
	for i := range rec.Holders {
		if rec.Holders[i].Owner == owner {
			return &rec.Holders[i]
		}
	}
	return nil
}

// expired waits until a process other than the holder sees that h is over. It fails if
// that takes longer than a dead holder may block.
func (e *env) expired(l lock.Locker, h held) {
	e.Helper()
	for {
		late := time.Now().After(e.overdue(h))
		rec := e.mustInspect(l, h.g.Key)
		if holder(rec, h.g.Owner) == nil {
			return
		}
		if late {
			e.fail(fmt.Sprintf("a grant with a TTL of %v to be over", h.g.TTL),
				"%v after it began it is there: %+v", time.Since(h.answered), rec)
		}
		time.Sleep(e.tick())
	}
}

// vacant checks that nobody holds key, then takes it and gives it back.
func (e *env) vacant(l lock.Locker, key string) {
	e.Helper()
	if rec := e.mustInspect(l, key); len(rec.Holders) > 0 {
		e.fail(fmt.Sprintf("nobody to hold %q", key), "%+v", rec.Holders)
	}
	e.free(l, key)
}

// only checks that h, and nobody else, holds its key, and that h can be renewed.
func (e *env) only(l lock.Locker, h held) {
	e.Helper()
	rec := e.mustInspect(l, h.g.Key)
	if len(rec.Holders) != 1 || rec.Holders[0].Owner != h.g.Owner || rec.Holders[0].Token != h.g.Token {
		e.mayBeOver()
		e.fail(fmt.Sprintf("%s with token %d to be the only holder", h.g.Owner, h.g.Token), "%+v", rec.Holders)
	}
	e.mustRenew(h)
}
