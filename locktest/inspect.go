package locktest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func inspect() group {
	const (
		knows = "Inspect returns what the store knows of key. A key that nobody holds is no error: its Record has no Holders."
		meta  = "Metadata says who and why; Inspect shows it."
		under = "Under are the owners of what the caller holds while it waits, at most MaxRecord. Where Inspect and List show the line, Waiter.Under shows them. They decide nothing."
		line  = "Record.Waiters: the first in line, in line order"
		held  = "Without req.Wait it returns an error that is ErrHeld (a *HeldError where the holder is known) when the key is taken; with it, it stands in line until ctx ends."
		until = "Holder.ExpiresIn: until its TTL is over; negative = unknown"
	)
	return group{"Inspect", []row{
		{"CanBeBelieved", knows, both, nil, inspectCanBeBelieved},
		{"FreeKey", knows, plain, nil, inspectFreeKey},
		{"Holder", knows, both, nil, inspectHolder},
		{"Readers", knows, shared, nil, inspectReaders},
		{"ThisKeyOnly", knows, both, nil, inspectThisKeyOnly},
		{"Metadata", meta, both, nil, inspectMetadata},
		{"Waiters", line, both, needs(declares("FIFO", hasFIFO)), unlessLate(inspectWaiters)},
		{"Under", under, both, needs(declares("FIFO", hasFIFO)), unlessLate(inspectUnder)},
		{"ExpiresIn", until, both, nil, inspectExpiresIn},
		{"HeldError", held, both, nil, inspectHeldError},
	}}
}

// inspectCanBeBelieved looks at what the cases of other groups look at. If it is wrong
// here, they are skipped.
func inspectCanBeBelieved(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	for range 2 {
		e.believe(b, key, nil, nil)
		h := e.mustAcquire(a, e.request(key))
		e.believe(a, key, &h, nil)
		w := e.wait(b, e.rival(key))
		e.believe(b, key, &h, w)
		e.mustRelease(h)
		e.mustRelease(w.granted())
	}
	e.believe(a, key, nil, nil)
}

// believe distrusts Inspect unless it shows and counts h, if that is not nil, as the only holder,
// and w as the only waiter. Only a store that declares FIFO has to know of those.
func (e *env) believe(l lock.Locker, key string, h *held, w *waiter) {
	e.Helper()
	var rec lock.Record
	err := e.call("Inspect", func(ctx context.Context) (err error) {
		rec, err = l.Inspect(ctx, key)
		return err
	})
	ok := err == nil && rec.Key == key && rec.HolderCount == len(rec.Holders)
	if h == nil {
		ok = ok && len(rec.Holders) == 0
	} else {
		got := holder(rec, h.g.Owner)
		ok = ok && len(rec.Holders) == 1 && got != nil && got.Token == h.g.Token && got.Shared == h.g.Shared
	}
	if e.caps.FIFO && w != nil {
		ok = ok && len(rec.Waiters) == 1 && inLine(rec, w.h.req.Owner)
	}
	if ok {
		return
	}
	e.suite.mu.Lock()
	e.suite.distrust = e.path + " failed"
	e.suite.mu.Unlock()
	want := "no holder"
	if h != nil {
		want = fmt.Sprintf("%s with token %d, shared %t, as the only holder", h.g.Owner, h.g.Token, h.g.Shared)
	}
	e.fail(fmt.Sprintf("the record of %q with %s, and the HolderCount of that", key, want), "%+v, error %v", rec, err)
}

func inspectFreeKey(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	for range 2 {
		if rec := e.mustInspect(a, key); len(rec.Holders)+len(rec.Waiters) > 0 {
			e.fail("no holders and no line", "%+v", rec)
		}
		e.free(b, key)
	}
	last := e.mustAcquire(b, e.rival(key))
	e.mustRelease(last)
	e.known(e.mustInspect(a, key), last)
}

// known checks the record's own token, that of last or none.
func (e *env) known(rec lock.Record, last held) {
	e.Helper()
	if rec.Token != 0 && rec.Token != last.g.Token {
		e.fail(fmt.Sprintf("Record.Token %d, the highest granted, or 0", last.g.Token), "%d", rec.Token)
	}
}

func inspectHolder(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.hold(a, key)
	for _, l := range []lock.Locker{a, b} {
		rec := e.mustInspect(l, key)
		e.one(l, h)
		e.known(rec, h)
		if held := rec.Holders[0].Held; held > time.Since(h.asked)+e.ttl/4+e.caps.ExpirySlack {
			e.fail("Held to be the time since the grant, or negative", "%v, %v after Acquire was called", held, time.Since(h.asked))
		}
	}
}

func inspectReaders(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	readers := []held{e.hold(a, key), e.hold(b, key), e.hold(b, key)}
	for len(readers) > 0 {
		rec := e.mustInspect(a, key)
		if len(rec.Holders) != len(readers) {
			e.fail(fmt.Sprintf("%d readers", len(readers)), "%+v", rec.Holders)
		}
		for _, r := range readers {
			if h := holder(rec, r.g.Owner); h == nil || !h.Shared || h.Token != r.g.Token {
				e.fail(fmt.Sprintf("%s among the holders, shared, with token %d", r.g.Owner, r.g.Token), "%+v", rec.Holders)
			}
		}
		e.mustRelease(readers[0])
		readers = readers[1:]
	}
}

// inspectThisKeyOnly holds keys that begin with, or are the beginning of, the one that
// is looked at.
func inspectThisKeyOnly(e *env) {
	a, b := e.open(), e.open()
	for _, key := range []string{"k", "ke", "key/", "key/1", "key*", "k?y", "[k]ey", "keyé"} {
		e.hold(a, key)
	}
	if rec := e.mustInspect(b, "key"); len(rec.Holders)+len(rec.Waiters) > 0 {
		e.fail(`nobody at "key"`, "%+v", rec)
	}
	h := e.hold(b, "key")
	e.one(a, h)
}

// odd is metadata that some encoding would not bring back.
func odd() map[string]string {
	return map[string]string{
		"host": "web-1.example.org", "": "no name", "no value": "", "quote\"'`": `\"{}[],:`, "line\nbreak": "\r\n\t",
		"\x00": "a\x00b", "é": "e\u0301", "😀": "\U0010ffff", "1": "01", "{a}": "%s %d", "=": "a=b&c=d;e", "<!--": "]]>",
		"long": strings.Repeat("x", 2000),
	}
}

func inspectMetadata(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	for _, m := range []map[string]string{odd(), nil, {"n": strings.Repeat("é", (lock.MaxMetadataLen-1)/2)}} {
		req := e.request(key)
		req.Metadata = maps.Clone(m)
		h := e.lasting(a, req)
		clear(req.Metadata) // the caller's map is the caller's
		for range 2 {
			rec := e.mustInspect(b, key)
			if got := holder(rec, h.g.Owner); got == nil || !maps.Equal(got.Metadata, m) {
				e.fail(fmt.Sprintf("the metadata %q", m), "%+v", rec.Holders)
			}
			e.mustRenew(h) // changes nothing of it
		}
		e.mustRelease(h)
	}
}

func inspectWaiters(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	blocker := e.lasting(a, e.rival(key))
	var line []*waiter
	for i := range 5 {
		req := e.request(key)
		req.Metadata = odd()
		line = append(line, e.wait([]lock.Locker{a, b}[i%2], req))
		e.inspectLine(b, line)
	}
	for i, w := range e.mustInspect(a, key).Waiters {
		if !maps.Equal(w.Metadata, odd()) {
			e.fail(fmt.Sprintf("waiter %d with the metadata %q", i, odd()), "%q", w.Metadata)
		}
	}
	line[2].withdraw()
	e.undone(a, b, key, line[2].h.req.Owner)
	e.inspectLine(a, append(line[:2:2], line[3:]...))
	e.only(b, blocker)
}

// inspectUnder has waiters that hold nothing, something, and as much as can be said, and shows
// that a grant does not take over what its waiter said.
func inspectUnder(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	most := slices.Repeat([]string{strings.Repeat("o", lock.MaxOwnerLen)}, lock.MaxRecord)
	most[1], most[2] = "-", "_0"
	blocker := e.lasting(a, e.rival(key))
	var line []*waiter
	for i, under := range [][]string{{"another"}, most, nil} {
		req := e.request(key)
		req.Metadata, req.Under = odd(), slices.Clone(under)
		line = append(line, e.wait([]lock.Locker{a, b}[i%2], req))
		e.showsUnder(e.mustInspect(b, key), line)
	}
	if isAdmin(e) == "" {
		e.showsUnder(e.list(b, key, 1)[key], line)
	}
	e.mustRelease(blocker)
	for _, w := range line {
		h := w.granted()
		if got := holder(e.mustInspect(b, key), h.g.Owner); got == nil || !maps.Equal(got.Metadata, odd()) {
			e.fail(fmt.Sprintf("%s to hold the key, with the metadata %q", h.g.Owner, odd()), "%+v", got)
		}
		e.mustRelease(h)
	}
}

// showsUnder checks what rec says of the waiters in line.
func (e *env) showsUnder(rec lock.Record, line []*waiter) {
	e.Helper()
	for _, w := range line {
		i := slices.IndexFunc(rec.Waiters, func(o lock.Waiter) bool { return o.Owner == w.h.req.Owner })
		if i < 0 || !slices.Equal(rec.Waiters[i].Under, w.h.req.Under) || !maps.Equal(rec.Waiters[i].Metadata, odd()) {
			e.fail(fmt.Sprintf("%s in line under %q, with the metadata %q", w.h.req.Owner, w.h.req.Under, odd()), "%+v", rec.Waiters)
		}
	}
}

// inspectExpiresIn compares two spans that overlap: the store's start of the TTL lies
// within the Acquire, its look at the clock within the Inspect.
func inspectExpiresIn(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.mustAcquire(a, e.request(key))
	time.Sleep(e.ttl / 2)
	asked := time.Now()
	rec := e.mustInspect(b, key)
	answered := time.Now()
	got := holder(rec, h.g.Owner)
	if got == nil {
		e.fail(fmt.Sprintf("%s to hold the key", h.g.Owner), "%+v", rec)
	}
	in := got.ExpiresIn
	if in < 0 {
		return
	}
	slack := e.caps.ExpirySlack + e.ttl/4 + drift(h.g.TTL)
	least, most := h.end().Sub(answered)-slack, h.answered.Add(h.g.TTL).Sub(asked)+slack
	if in < least || in > most {
		e.fail(fmt.Sprintf("ExpiresIn from %v to %v", least, most), "%v", in)
	}
}

func inspectHeldError(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	req := e.request(key)
	req.Metadata = map[string]string{"why": "to be seen"}
	h := e.lasting(a, req)
	_, err := e.tryAcquire(b, e.rival(key))
	e.holderOf(err, h)
}

// holderOf checks what an error that is ErrHeld says of the holder, if it does.
func (e *env) holderOf(err error, h held) {
	e.Helper()
	var held *lock.HeldError
	if !errors.As(err, &held) || len(held.Record.Holders) == 0 {
		return
	}
	got := held.Record.Holders[0]
	if held.Record.Key != h.g.Key || got.Owner != h.g.Owner || got.Token != h.g.Token || got.Shared != h.g.Shared {
		e.fail(fmt.Sprintf("a record of %s with token %d", h.g.Owner, h.g.Token), "%+v", held.Record)
	}
	if held.Record.HolderCount < len(held.Record.Holders) {
		e.fail("HolderCount to count the holders that the record shows", "%+v", held.Record)
	}
	if len(got.Metadata) > 0 && !maps.Equal(got.Metadata, h.req.Metadata) {
		e.fail(fmt.Sprintf("the metadata %q", h.req.Metadata), "%q", got.Metadata)
	}
}
