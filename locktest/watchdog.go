package locktest

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"
)

// watchdog barks when a case does not come to its end. Its clock is the real one, also
// if the case runs in a bubble: it must be made outside.
type watchdog struct {
	armed, done chan struct{}
	arming      sync.Once          // guards the closing of armed
	more        chan time.Duration // from extend
	end         time.Time          // if not zero, it barks by then; set before arm
}

// watch returns a watchdog that calls bark, once, when limit has passed since it was
// armed without having been stopped.
func watch(limit time.Duration, name string, bark func(report string)) *watchdog {
	d := &watchdog{armed: make(chan struct{}), done: make(chan struct{}), more: make(chan time.Duration)}
	go func() {
		select {
		case <-d.armed:
		case <-d.done:
			return
		}
		armed := time.Now()
		timer := time.NewTimer(limit)
		defer timer.Stop()
		for {
			select {
			case <-timer.C:
				bark(fmt.Sprintf("locktest: case %s is stuck: not done after %v. All goroutines:\n\n%s", name, limit, stacks()))
				return
			case more := <-d.more:
				limit += more
				if !d.end.IsZero() {
					limit = min(limit, d.end.Sub(armed))
				}
				timer.Reset(limit - time.Since(armed))
			case <-d.done:
				return
			}
		}
	}()
	return d
}

// arm starts the time. It may be called inside a bubble.
func (d *watchdog) arm() { d.arming.Do(func() { close(d.armed) }) }

// extend gives a watchdog that is armed more time, up to its end. It may be called inside
// a bubble.
func (d *watchdog) extend(more time.Duration) {
	select {
	case d.more <- more:
	case <-d.done:
	}
}

func (d *watchdog) stop() { close(d.done) }

// panics ends the test program: a goroutine that is stuck cannot be told to give up,
// and t.Run does not return before it does.
func panics(report string) { panic(report) }

func stacks() []byte {
	for n := 1 << 20; ; n *= 2 {
		buf := make([]byte, n)
		if m := runtime.Stack(buf, true); m < n {
			return buf[:m]
		}
	}
}

// caseLimit is how long a case may take on a machine that has other work to do.
const caseLimit = 10 * time.Minute

// limit is how long a case may take, and when it must have come to its end, if the test
// program has one: a little before that, so that it is not put down to the last test that
// happened to run.
func (h Harness) limit(t *testing.T) (limit time.Duration, end time.Time) {
	limit = caseLimit + 20*h.ttl()
	end, ok := t.Deadline()
	if ok {
		end = end.Add(-time.Second)
		limit = min(limit, max(time.Until(end), time.Second))
	}
	return limit, end
}
