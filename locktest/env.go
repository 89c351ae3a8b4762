package locktest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// reporter is where a case's failures go: the part of testing.TB that a test of this
// suite can stand in for.
type reporter interface {
	Helper()
	Errorf(format string, args ...any)
	FailNow()
	SkipNow()
}

// env is a case that runs, and what it has to work with. Its methods that may end the
// case, which is all but those that say otherwise, are for the case's own goroutine.
type env struct {
	reporter
	testCase
	tb     testing.TB // for New and the faults
	h      Harness
	ttl    time.Duration // at least Harness.TTL
	caps   lock.Capabilities
	suite  *suite
	onSkip func(reason string)
	onPace func(pace time.Duration)

	newLocker func() lock.Locker
	first     lock.Locker // opened to see caps; the case's first open returns it
	fake      bool        // the case runs in fake time, in which nothing is late
	opened    int
	keys      int
	crowd     int           // how many compete where many do
	pace      time.Duration // how long an Acquire and its Release take here

	ctx     context.Context // ends with the case
	cancel  context.CancelFunc
	running sync.WaitGroup // of start
	during  string         // which strike the case is at
	calls   chan func()    // to the goroutine that calls the store
	over    atomic.Bool    // nothing may be reported any more
	trial   atomic.Pointer[trial]
	unkept  atomic.Bool // a renewal of keep's was so late that a grant may be over
}

func newEnv(tb testing.TB, r reporter, h Harness, c testCase) *env {
	e := &env{
		reporter: r, testCase: c, tb: tb, h: h, ttl: h.ttl(),
		suite: new(suite), onSkip: func(string) {}, onPace: func(time.Duration) {}, calls: make(chan func()),
		fake: !monotonic(time.Now()),
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	return e
}

func (e *env) run() {
	e.newLocker = e.h.New(e.tb)
	e.tb.Cleanup(e.finish)
	defer e.settle()
	e.start(func() {
		for {
			select {
			case f := <-e.calls:
				f()
			case <-e.ctx.Done():
				return
			}
		}
	})
	e.first = e.newLocker()
	e.caps = e.first.Capabilities()
	if e.ttl < e.caps.MinTTL {
		e.fail("a Harness.TTL that the store takes", "TTL %v, below the store's MinTTL of %v", e.ttl, e.caps.MinTTL)
	}
	ns := e.needs
	if e.shared {
		ns = append(needs(declares("Shared", hasShared)), ns...)
	}
	for _, n := range ns {
		if missing := n(e); missing != "" {
			e.skip(missing)
		}
	}
	e.measure()
	if e.crowd == 0 {
		e.crowd = crowdFor(e.caps, e.pace)
	}
	e.check(e)
}

// measure finds the store's pace, once for the suite.
func (e *env) measure() {
	e.suite.mu.Lock()
	e.pace = e.suite.pace
	e.suite.mu.Unlock()
	if e.pace == 0 {
		turns := 2 // the first makes connections, and teaches the store what it has to know
		if !e.fake {
			turns = 6 // of which the shortest is the store's, and not the busy machine's
		}
		for n := range turns {
			d := e.turn()
			if d == 0 {
				e.pace = 0
				return // what is wrong is for the case to say
			}
			if n < 2 || d < e.pace {
				e.pace = d
			}
		}
		e.suite.mu.Lock()
		e.suite.pace = e.pace
		e.suite.mu.Unlock()
	}
	if m := 5 * e.pace; m > e.ttl { // so that something can be done within it
		unit := e.h.ttl() // a store may round what is between up
		e.ttl = (m + unit - 1) / unit * unit
	}
	e.onPace(e.pace)
}

// turn is how long it takes to acquire and release a key, or 0 if that fails.
func (e *env) turn() time.Duration {
	req := e.request("measured")
	begin := time.Now()
	err := e.call("Acquire", func(ctx context.Context) error {
		g, err := e.first.Acquire(ctx, req)
		if err != nil {
			return err
		}
		return e.first.Release(ctx, g)
	})
	if err != nil {
		return 0
	}
	return max(time.Since(begin), 1)
}

// settle ends the ctx of what the case left running, before a Locker is closed. It reports
// whether all of it has returned, for which it waits as long as that may take.
func (e *env) settle() bool {
	e.cancel()
	done := make(chan struct{})
	go func() { e.running.Wait(); close(done) }()
	timer := time.NewTimer(e.patience())
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
		return false
	}
}

// finish is settle once the Lockers are closed. New's own cleanup comes after it.
func (e *env) finish() {
	if !e.settle() {
		e.Errorf("a call has not returned %v after its ctx ended", e.patience())
	}
	e.over.Store(true)
}

func (e *env) skip(reason string) {
	e.onSkip(reason)
	e.SkipNow()
}

// report fails the case without ending it. Any goroutine may call it.
func (e *env) report(want, seen string, args ...any) {
	e.Helper()
	if e.over.Load() {
		return
	}
	during := ""
	if e.during != "" {
		during = "\n\twith:   " + e.during
	}
	failure := fmt.Sprintf("the contract says: %s\n\twanted: %s\n\tseen:   %s%s", e.sentence, want, fmt.Sprintf(seen, args...), during)
	if t := e.trial.Load(); t != nil {
		t.add(failure)
		return
	}
	e.Errorf("%s", failure)
}

// fail fails and ends the case.
func (e *env) fail(want, seen string, args ...any) {
	e.Helper()
	e.report(want, seen, args...)
	e.FailNow()
}

// open returns one more process on the case's keyspace.
func (e *env) open() lock.Locker {
	e.opened++
	if e.opened == 1 {
		return e.first
	}
	return e.newLocker()
}

// key returns a key that the case has not used.
func (e *env) key() string {
	e.keys++
	return fmt.Sprintf("key-%d", e.keys)
}

// patience is how long a thing may take that the contract calls prompt or bounded. It
// is meant to fail hangs, and nothing else, on the busiest machine and the longest way.
func (e *env) patience() time.Duration { return e.farewell() + e.starved() }

// farewell is how long a Client has at the end of a case to give back what it can.
func (e *env) farewell() time.Duration { return 5*time.Second + 2*e.ttl + 10*e.pace }

// starved is by how much the busiest machine is later than an idle one.
func (e *env) starved() time.Duration { return starved(e.fake) }

func starved(fake bool) time.Duration {
	if fake {
		return 0
	}
	return 25 * time.Second
}

// long is a TTL that does not run out within a case.
func (e *env) long() time.Duration {
	d := 30*e.ttl + 600*e.pace
	if !e.fake {
		d += caseLimit
	}
	return d
}

// tick is the pause between two looks at what a case waits for.
func (e *env) tick() time.Duration { return max(e.ttl/50, time.Millisecond) }

// drift is by how much two machines may differ on how long d is: what a Client takes
// off a lease by default.
func drift(d time.Duration) time.Duration { return d/100 + 2*time.Millisecond }

// start runs f beside the case, which waits for it at its end. f must not end the case.
func (e *env) start(f func()) {
	e.running.Add(1)
	go func() {
		defer e.running.Done()
		f()
	}()
}

// call runs f with a ctx of its own, which ends after e.patience(), and fails the case
// if f has not returned as long after that.
func (e *env) call(what string, f func(ctx context.Context) error) error {
	e.Helper()
	return e.callFor(e.patience(), what, f)
}

// callFor is call with a ctx that ends after limit.
func (e *env) callFor(limit time.Duration, what string, f func(ctx context.Context) error) error {
	e.Helper()
	ctx, cancel := context.WithTimeout(e.ctx, limit)
	defer cancel()
	done := make(chan error, 1)
	e.calls <- func() { done <- f(ctx) }
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(e.patience()):
		e.fail(what+" to return when its ctx ends", "it has not, %v after that", e.patience())
		return nil
	}
}

// eventually looks every tick until ok, and fails the case when a look that began after
// limit has passed still finds it wanting.
func (e *env) eventually(want string, limit time.Duration, look func() (ok bool, seen string)) {
	e.Helper()
	for begin := time.Now(); ; time.Sleep(e.tick()) {
		late := time.Since(begin) > limit
		ok, seen := look()
		if ok {
			return
		}
		if late {
			e.fail(fmt.Sprintf("%s within %v", want, limit), "%s", seen)
		}
	}
}

// fault lets f happen to l and returns what ends it, which the case's end does too.
func (e *env) fault(f Fault, l lock.Locker) func() {
	return e.healing(e.h.fault(f)(e.tb, l))
}

// strike lets s befall l and returns what ends it, which the case's end does too.
func (e *env) strike(l lock.Locker, s Strike) (struck func() bool, heal func()) {
	struck, heal = e.h.striker()(e.tb, l, s)
	return struck, e.healing(heal)
}

func (e *env) healing(heal func()) func() {
	var once sync.Once
	end := func() {
		once.Do(func() {
			if heal != nil {
				heal()
			}
		})
	}
	e.tb.Cleanup(end)
	return end
}

// attempts runs a check that a busy machine can spoil until it says that it came about.
func (e *env) attempts(try func() (valid bool)) {
	e.Helper()
	const most = 10
	for range most {
		if try() {
			return
		}
	}
	e.skip(fmt.Sprintf("%d times this machine or the way to the store was too slow for a TTL of %v: raise Harness.TTL", most, e.ttl))
}

// fastest runs try until one run takes less than limit, and fails if none of many does.
func (e *env) fastest(want string, limit time.Duration, try func() time.Duration) {
	e.Helper()
	e.fastestOf(8, want, limit, try)
}

// soon is fastest for what may take seconds by the contract: it adds to limit what is enough on a
// machine that is not starved.
func (e *env) soon(want string, limit time.Duration, try func() time.Duration) {
	e.Helper()
	e.fastestOf(3, want, limit+e.farewell(), try)
}

func (e *env) fastestOf(most int, want string, limit time.Duration, try func() time.Duration) {
	e.Helper()
	var took []time.Duration
	ok := e.repeatedly(most, limit/4, func() bool {
		took = append(took, try())
		return took[len(took)-1] < limit
	})
	if !ok {
		e.fail(fmt.Sprintf("%s: within %v, once in %d times at least", want, limit, len(took)), "it took %v", took)
	}
}

// repeatedly runs a check that a busy machine can spoil until it succeeds, or has failed most
// times while machine and store were at most late. It skips the case if they hardly ever are.
func (e *env) repeatedly(most int, late time.Duration, try func() bool) (ok bool) {
	e.Helper()
	if try() {
		return true
	}
	p := e.pulse()
	for n, failures := 1, 1; failures < most; n++ {
		if n == 3*most {
			e.skip(fmt.Sprintf("%d times of %d this machine or the store was more than %v late", n-failures, n, late))
		}
		p.stall()
		if try() {
			return true
		}
		if p.stall() <= late+e.tick()+e.pace {
			failures++
		}
	}
	return false
}
