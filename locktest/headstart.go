package locktest

import (
	"fmt"
	"slices"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func headStarts() group {
	const (
		order   = "A head start is a place in line. Where Priority is declared, waiters must be served in the order of their arrival minus Request.HeadStart, by the store's clock, and equal ones in the order of arrival."
		bounded = "So nobody is overtaken by one who came later than the largest head start."
		keeps   = "A request that is sent again must keep its place; one whose place was lost arrives anew, with its head start."
	)
	priority, fifo := declares("Priority", hasPriority), declares("FIFO", hasFIFO)
	return group{"AHeadStartIsAPlaceInLine", []row{
		{"InOrder", order, both, needs(priority, fifo), unlessLate(headStartsInOrder)},
		{"Hundreds", bounded, both, needs(priority), unlessLate(headStartsOfMany)},
		{"ReaderInFrontOfAWriter", order, shared, needs(priority, fifo), unlessLate(readerInFrontOfWriter)},
		{"SentAgain", keeps, both, needs(priority, fifo), headStartSentAgain},
		{"LostPlace", keeps, both, needs(priority, fifo, can(LoseRecord)), headStartAfterLostPlace},
	}}
}

func hasPriority(c lock.Capabilities) bool { return c.Priority }

// ahead is a request with a head start.
func (e *env) ahead(key string, d time.Duration) lock.Request {
	req := e.request(key)
	req.HeadStart = d
	return req
}

// headStartsInOrder has head starts that are long beside what the case takes. Shared waiters are
// kept apart by exclusive ones: every second in line is one.
func headStartsInOrder(e *env) {
	ls := []lock.Locker{e.open(), e.open(), e.open()}
	key := e.key()
	blocker := e.lasting(ls[0], e.rival(key))
	starts := []time.Duration{0, time.Hour, lock.MaxTTL, time.Hour, 0, time.Hour, lock.MaxTTL, 0, lock.MaxTTL}
	places := []int{6, 3, 0, 4, 7, 5, 1, 8, 2}
	line := make([]*waiter, len(starts))
	for i, d := range starts {
		req := e.ahead(key, d)
		req.Shared = e.shared && places[i]%2 == 0
		line[places[i]] = e.wait(ls[i%len(ls)], req)
	}
	e.inspectLine(ls[1], line)
	e.mustRelease(blocker)
	for i, w := range line {
		h := w.granted()
		for _, later := range line[i+1:] {
			later.still()
		}
		e.mustRelease(h)
	}
}

// headStartsOfMany has head starts that are short beside the time in which the waiters come. Who
// came when by the store's clock lies between two looks at the own one.
func headStartsOfMany(e *env) {
	ls := []lock.Locker{e.open(), e.open(), e.open(), e.open()}
	key := e.key()
	unit := max(e.ttl/5, 20*time.Millisecond)
	blocker := e.lasting(ls[0], e.rival(key))
	var line []arrival
	for i := range e.crowd {
		switch {
		case i%10 == 9:
			time.Sleep(e.tick())
		case i == e.crowd/2: // who has no head start, and is here, is in front of most who are not
			time.Sleep(2 * unit)
		}
		req := e.ahead(key, unit*time.Duration(i*i%7%4))
		req.Shared = e.shared && i%3 > 0
		w := e.wait(ls[i%len(ls)], req)
		line = append(line, arrival{w, time.Now()})
		e.start(func() {
			<-w.done
			if w.err == nil {
				_ = w.h.l.Release(e.ctx, w.h.g)
			}
		})
	}
	e.mustRelease(blocker)
	for _, a := range line {
		a.grantedWithin(time.Duration(e.crowd) * 100 * time.Millisecond)
	}
	slack := drift(line[len(line)-1].told.Sub(line[0].h.asked))
	for i, first := range line {
		for _, second := range line[i+1:] {
			e.inPlace(first, second, slack)
		}
	}
}

// arrival is a waiter that has lined up between h.asked and told.
type arrival struct {
	*waiter
	told time.Time
}

// inPlace checks who of two was served first, as far as it can be told who had to be: second
// lined up when first had. Tokens do not order readers among themselves.
func (e *env) inPlace(first, second arrival, slack time.Duration) {
	e.Helper()
	if first.h.req.Shared && second.h.req.Shared {
		return
	}
	more := second.h.req.HeadStart - first.h.req.HeadStart
	least, most := second.h.asked.Sub(first.told)-slack, second.told.Sub(first.h.asked)+slack
	switch rises := first.h.g.Token < second.h.g.Token; {
	case !rises && (more <= 0 || more < least):
		e.fail("the one who came earlier to be served first", "it was second, with a head start of %v: the other, with %v, came %v later or more",
			first.h.req.HeadStart, second.h.req.HeadStart, least)
	case rises && more > most:
		e.fail(fmt.Sprintf("the one with a head start of %v to be served first", second.h.req.HeadStart),
			"it was second: the other, with %v, came at most %v earlier", first.h.req.HeadStart, most)
	}
}

// readerInFrontOfWriter: a reader whose head start is longer than the writer has waited is beside
// those who hold the key at once; one whose head start is shorter is not, and a try never is.
func readerInFrontOfWriter(e *env) {
	a, b, c, key := e.open(), e.open(), e.open(), e.key()
	first := e.hold(a, key)
	writer := e.wait(b, e.rival(key))
	req := e.ahead(key, time.Hour)
	req.Wait = true
	second := e.ask(e.ctx, c, req).granted()
	writer.still()
	e.mustBeHeld(c, e.request(key))
	time.Sleep(10 * time.Millisecond)
	late := e.wait(c, e.ahead(key, time.Millisecond))
	e.mustRelease(first)
	e.mustRelease(second)
	w := writer.granted()
	late.still()
	e.mustRelease(w)
	e.mustRelease(late.granted())
}

// headStartSentAgain has one stand in line for longer than its heartbeat, so that its request
// is sent several times.
func headStartSentAgain(e *env) {
	a, b := e.open(), e.open()
	p := e.pulse()
	e.attempts(func() bool {
		key := e.key()
		blocker := e.lasting(a, e.rival(key))
		plain := e.wait(a, e.rival(key))
		req := e.ahead(key, time.Hour)
		req.TTL = max(e.ttl, time.Second)
		p.stall()
		early := e.wait(b, req)
		time.Sleep(e.heartbeat(req.TTL) * 3 / 2)
		early.still()
		if p.stall() > req.TTL/4+e.pace {
			early.withdraw()
			plain.withdraw()
			e.mustRelease(blocker)
			return false
		}
		e.inspectLine(b, []*waiter{early, plain})
		e.mustRelease(blocker)
		h := early.granted()
		plain.still()
		e.mustRelease(h)
		e.mustRelease(plain.granted())
		return true
	})
}

// headStartAfterLostPlace has the store forget holder and line. One of three has the key then,
// and the others line up anew, in whatever order.
func headStartAfterLostPlace(e *env) {
	for range 10 {
		if e.linesUpAnew() {
			return
		}
	}
	e.skip("ten times the one with the head start had the key when the others lined up anew")
}

func (e *env) linesUpAnew() (told bool) {
	e.Helper()
	a, b, c, key := e.open(), e.open(), e.open(), e.key()
	e.lasting(a, e.rival(key))
	early := e.ahead(key, time.Hour)
	line := []*waiter{e.wait(a, e.rival(key)), e.wait(b, e.rival(key)), e.wait(c, early)}
	e.fault(LoseRecord, a)()
	var next int // who has the key
	e.eventually("one who waits to have the key that nobody holds any more", e.heartbeat(e.long())+e.patience(), func() (bool, string) {
		next = slices.IndexFunc(line, (*waiter).ended)
		return next >= 0, "nobody"
	})
	h := line[next].granted()
	line = slices.Delete(line, next, next+1)
	if h.req.HeadStart > 0 {
		line[0].withdraw()
		line[1].withdraw()
		e.mustRelease(h)
		return false
	}
	slices.Reverse(line)
	e.eventually("the others to line up anew", e.heartbeat(e.long())+e.patience(), func() (bool, string) {
		rec := e.mustInspect(a, key)
		return inLine(rec, line[0].h.req.Owner) && inLine(rec, line[1].h.req.Owner), fmt.Sprintf("%+v", rec.Waiters)
	})
	e.inspectLine(b, line)
	e.mustRelease(h)
	first := line[0].granted()
	line[1].still()
	e.mustRelease(first)
	e.mustRelease(line[1].granted())
	return true
}
