package locktest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func admin() group {
	const (
		list  = "List yields the Record of every key that begins with prefix and is held or waited for, in no order, each once. Keys that change while it runs may be seen or not. An error ends it."
		force = "ForceRelease ends owner's grant of key, and no other. Its holder learns it through Request.Lost or at its next renewal, with ReasonForced or ReasonTaken. It returns ErrLost when owner does not hold key."
		twice = "If it has to ask twice it returns nil then, since the first request may have ended the grant."
	)
	return group{"Admin", []row{
		{"List", list, both, needs(isAdmin), listAll},
		{"ListOfAPrefix", list, plain, needs(isAdmin), listOfPrefix},
		{"ListStopped", list, plain, needs(isAdmin), listStopped},
		{"ListWithAnEndedContext", list, plain, needs(isAdmin), listWithEndedContext},
		{"ForceRelease", force, both, needs(isAdmin), forceRelease},
		{"ForceReleaseOfOneReader", force, shared, needs(isAdmin), forceReleaseOfOneReader},
		{"ForceReleaseForAWaiter", force, both, needs(isAdmin), forceReleaseForWaiter},
		{"ForceReleaseOfNoHolder", force, both, needs(isAdmin), forceReleaseOfNoHolder},
		{"EachMessageOfAForceRelease", twice, both, needs(isAdmin, canStrike), forceStruck},
	}}
}

func adminOf(l lock.Locker) lock.Admin {
	a, _ := lock.As[lock.Admin](l)
	return a
}

// list returns the records of all keys with prefix, by key. They are n, which a store may have
// to look at one by one.
func (e *env) list(l lock.Locker, prefix string, n int) map[string]lock.Record {
	e.Helper()
	recs := make(map[string]lock.Record)
	err := e.callFor(e.patience()+time.Duration(n)*e.pace, "List", func(ctx context.Context) error {
		for rec, err := range adminOf(l).List(ctx, prefix) {
			if err != nil {
				return err
			}
			if _, twice := recs[rec.Key]; twice {
				return fmt.Errorf("key %q twice", rec.Key)
			}
			recs[rec.Key] = rec
		}
		return nil
	})
	if err != nil {
		e.fail("List to yield each record once", "%v", err)
	}
	return recs
}

// listed checks that List yields the records of these keys and no others.
func (e *env) listed(l lock.Locker, prefix string, keys ...string) map[string]lock.Record {
	e.Helper()
	recs := e.list(l, prefix, len(keys))
	var seen []string
	for key := range recs {
		seen = append(seen, key)
	}
	slices.Sort(seen)
	slices.Sort(keys)
	if !slices.Equal(seen, keys) {
		e.fail(fmt.Sprintf("with prefix %q the keys %q", prefix, keys), "%q", seen)
	}
	return recs
}

func listAll(e *env) {
	a, b := e.open(), e.open()
	e.listed(a, "")
	var hs []held
	var keys []string
	for range 30 {
		req := e.request(e.key())
		req.Metadata = map[string]string{"n": req.Key}
		hs = append(hs, e.lasting(a, req))
		keys = append(keys, req.Key)
	}
	e.free(a, "free")
	w := e.wait(b, e.rival(keys[0]))
	recs := e.listed(b, "", keys...)
	for _, h := range hs {
		rec := recs[h.g.Key]
		if got := holder(rec, h.g.Owner); got == nil || got.Token != h.g.Token || got.Metadata["n"] != h.g.Key {
			e.fail(fmt.Sprintf("%s with token %d and its metadata", h.g.Owner, h.g.Token), "%+v", rec)
		}
	}
	if e.caps.FIFO && !inLine(recs[keys[0]], w.h.req.Owner) {
		e.fail("the line of "+keys[0], "%+v", recs[keys[0]])
	}
	e.mustRelease(hs[0])
	e.mustRelease(w.granted())
	for _, h := range hs[1:] {
		e.mustRelease(h)
	}
	e.listed(a, "")
}

// listOfPrefix has prefixes that are patterns to some stores, and to others have an end
// of their own.
func listOfPrefix(e *env) {
	a, b := e.open(), e.open()
	keys := []string{
		"a", "ab", "a*", "a*b", "a?", "a[b]", "b", "B", "{a}", "{a}1", "}", "/", "/a", "/a/b", "%", "%a", "_", "_a",
		"\\", "\\a", "\x00", "\x00a", "é", "éa", "\U0010ffff", "\U0010ffffa", "'", "a'", ":", "a:", "a:b",
	}
	for _, key := range keys {
		e.hold(a, key)
	}
	for _, prefix := range append(keys, "", "*", "a[", "[ab]", "?", "aé", "\U0010ffff\U0010ffff", "a:b:c") {
		var want []string
		for _, key := range keys {
			if len(key) >= len(prefix) && key[:len(prefix)] == prefix {
				want = append(want, key)
			}
		}
		e.listed(b, prefix, want...)
	}
}

// listStopped leaves the loop, and uses the store within it.
func listStopped(e *env) {
	a := e.open()
	for range 5 {
		e.hold(a, e.key())
	}
	n := 0
	for rec, err := range adminOf(a).List(e.ctx, "") {
		if err != nil {
			e.fail("List to yield records", "%v", err)
		}
		e.mustBeHeld(a, e.rival(rec.Key))
		if n++; n == 2 {
			break
		}
	}
	if n != 2 {
		e.fail("List to yield five records, of which two are taken", "%d", n)
	}
	if n := len(e.list(a, "", 5)); n != 5 {
		e.fail("the next List to yield five records", "%d", n)
	}
}

func listWithEndedContext(e *env) {
	a := e.open()
	e.hold(a, e.key())
	ended, cancel := context.WithCancel(e.ctx)
	cancel()
	var last error
	for _, err := range adminOf(a).List(ended, "") {
		if last != nil {
			e.fail("an error to end it", "more after %v", last)
		}
		last = err
	}
	if !errors.Is(last, context.Canceled) {
		e.fail(fmt.Sprintf("an error that is %q", context.Canceled), "%v", last)
	}
}

// force forces h through l.
func (e *env) force(l lock.Locker, h held) {
	e.Helper()
	if err := e.forces(l, h.g.Key, h.g.Owner); err != nil {
		e.fail("ForceRelease to end a live grant", "%v", err)
	}
}

func (e *env) forces(l lock.Locker, key, owner string) error {
	e.Helper()
	return e.call("ForceRelease", func(ctx context.Context) error {
		return adminOf(l).ForceRelease(ctx, key, owner)
	})
}

// forceRelease looks for the reason in the renewal, unless the store may have told it
// already. A service can have it from its store later than the loss.
func forceRelease(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.hold(a, key)
	e.force(b, h)
	_, err := e.tryRenew(h)
	e.mustBeLost("Renew", err)
	if !e.caps.EarlyLoss {
		e.eventually(fmt.Sprintf("a *LostError with reason %v or %v", lock.ReasonForced, lock.ReasonTaken), e.patience(), func() (bool, string) {
			_, err := e.tryRenew(h)
			var lost *lock.LostError
			return errors.As(err, &lost) && (lost.Reason == lock.ReasonForced || lost.Reason == lock.ReasonTaken), fmt.Sprint(err)
		})
	}
	e.vacant(b, key)
	next := e.hold(b, key)
	if e.caps.TokenSurvives.Has(lock.SurvivesRelease) {
		e.higher(next, h)
	}
	e.mustBeLost("Release", e.tryRelease(a, h.g))
	e.mustBeLost("ForceRelease", e.forces(b, key, h.g.Owner))
	e.only(a, next)
}

func forceReleaseOfOneReader(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	one, two, three := e.hold(a, key), e.hold(a, key), e.hold(b, key)
	e.force(b, two)
	_, err := e.tryRenew(two)
	e.mustBeLost("Renew", err)
	e.mustRenew(one)
	e.mustRenew(three)
	e.mustBeHeld(a, e.rival(key))
	e.mustRelease(one)
	e.mustRelease(three)
	e.vacant(b, key)
}

func forceReleaseForWaiter(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.lasting(a, e.rival(key))
	w := e.wait(b, e.request(key))
	e.force(b, h)
	next := w.granted()
	e.mustBeLost("Release", e.tryRelease(a, h.g))
	e.only(a, next)
	e.mustRelease(next)
}

// forceReleaseOfNoHolder: neither a place in line nor a grant of another key is what is
// asked to be ended.
func forceReleaseOfNoHolder(e *env) {
	a, b, key, other := e.open(), e.open(), e.key(), e.key()
	e.mustBeLost("ForceRelease", e.forces(a, key, e.request(key).Owner))
	h, o := e.hold(a, key), e.hold(a, other)
	w := e.wait(b, e.rival(key))
	for _, owner := range []string{o.g.Owner, w.h.req.Owner, e.request(key).Owner} {
		e.mustBeLost("ForceRelease", e.forces(b, key, owner))
	}
	e.only(b, h)
	e.only(b, o)
	w.still()
	e.mustRelease(h)
	e.mustRelease(w.granted())
}
