package locktest

import (
	"errors"
	"fmt"

	lock "github.com/seed-215fdefa/lock"
)

func records() group {
	const bounded = "Records are bounded. A [Record] must hold at most [MaxRecord] holders and as many waiters, with the true counts beside them."
	return group{"RecordsAreBounded", []row{
		{"Holders", bounded, shared, nil, manyHolders},
		{"Waiters", bounded, both, needs(declares("FIFO", hasFIFO)), unlessLate(manyWaiters)},
		{"Few", bounded, both, needs(declares("FIFO", hasFIFO)), unlessLate(fewInRecord)},
	}}
}

// bounded checks what rec shows, and the counts beside it. A record that shows none of a
// kind may not know of them, unless Inspect returned it: then known is true.
func (e *env) bounded(from string, rec lock.Record, known bool, holders, waiters int) {
	e.Helper()
	if len(rec.Holders) > lock.MaxRecord || len(rec.Waiters) > lock.MaxRecord {
		e.fail(fmt.Sprintf("at most %d holders and as many waiters in the record of %s", lock.MaxRecord, from),
			"%d and %d", len(rec.Holders), len(rec.Waiters))
	}
	if (known || len(rec.Holders) > 0) && rec.HolderCount != holders {
		e.fail(fmt.Sprintf("HolderCount %d in the record of %s", holders, from), "%d, of which it shows %d", rec.HolderCount, len(rec.Holders))
	}
	if (known || len(rec.Waiters) > 0) && rec.WaiterCount != waiters {
		e.fail(fmt.Sprintf("WaiterCount %d in the record of %s", waiters, from), "%d, of which it shows %d", rec.WaiterCount, len(rec.Waiters))
	}
}

// boundedForAll looks at the record wherever one is told: in Inspect, in the error of a
// try, and in Request.Waiting, whose caller may be counted already. It returns the last
// in line.
func (e *env) boundedForAll(l lock.Locker, key string, holders, waiters int) *waiter {
	e.Helper()
	rec := e.mustInspect(l, key)
	e.bounded("Inspect", rec, true, holders, waiters)
	if waiters > 0 && len(rec.Waiters) == 0 {
		e.fail("the first in line", "%+v", rec)
	}
	if len(rec.Holders) == 0 {
		e.fail("those who hold the key", "%+v", rec)
	}
	_, err := e.tryAcquire(l, e.rival(key))
	var held *lock.HeldError
	if errors.As(err, &held) {
		e.bounded("a HeldError", held.Record, false, holders, waiters)
	}
	w := e.wait(l, e.rival(key))
	rec = w.record
	if rec.WaiterCount == waiters+1 && len(rec.Waiters) > 0 {
		rec.WaiterCount = waiters
	}
	e.bounded("Request.Waiting", rec, false, holders, waiters)
	return w
}

func manyHolders(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	var readers []held
	for range lock.MaxRecord + 1 {
		readers = append(readers, e.hold(a, key))
	}
	readers = append(readers, e.hold(b, key), e.hold(b, key))
	w := e.boundedForAll(b, key, len(readers), 0)
	shown := map[string]bool{}
	for _, h := range e.mustInspect(a, key).Holders {
		shown[h.Owner] = true
	}
	for _, r := range readers {
		delete(shown, r.g.Owner)
	}
	if len(shown) > 0 {
		e.fail("each holder of the record to be one of the readers, once", "%v are not", shown)
	}
	for _, r := range readers {
		e.mustRelease(r)
	}
	e.mustRelease(w.granted())
	e.vacant(b, key)
}

// manyWaiters shows the first in line, in the order of arrival, and counts all. Whose heartbeat is
// late loses its place.
func manyWaiters(e *env) {
	a, b := e.open(), e.open()
	e.onceOf("the first in line to be shown, in line order", func() bool {
		key := e.key()
		blocker := e.lasting(a, e.rival(key))
		var line []*waiter
		for i := range 40 {
			line = append(line, e.wait([]lock.Locker{a, b}[i%2], e.request(key)))
		}
		last := e.boundedForAll(b, key, 1, len(line))
		inOrder := true
		for i, w := range e.mustInspect(a, key).Waiters {
			inOrder = inOrder && w.Owner == line[i].h.req.Owner
		}
		e.mustRelease(blocker)
		e.served(append(line, last)...)
		e.vacant(a, key)
		return inOrder
	})
}

// fewInRecord: where all are shown the counts say so.
func fewInRecord(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	e.bounded("Inspect of a free key", e.mustInspect(b, key), true, 0, 0)
	h := e.hold(a, key)
	w := e.wait(b, e.rival(key))
	last := e.boundedForAll(b, key, 1, 1)
	if rec := e.mustInspect(a, key); len(rec.Holders) != 1 || len(rec.Waiters) != 2 {
		e.fail("one holder and two in line", "%+v", rec)
	}
	e.mustRelease(h)
	e.mustRelease(w.granted())
	e.mustRelease(last.granted())
}
