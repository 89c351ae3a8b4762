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
	arming      sync.Once // guards the closing of armed
}

// watch returns a watchdog that calls bark, once, when limit has passed since it was
// armed without having been stopped.
func watch(limit time.Duration, name string, bark func(report string)) *watchdog {
	d := &watchdog{armed: make(chan struct{}), done: make(chan struct{})}
	go func() {
		select {
		case <-d.armed:
		case <-d.done:
			return
		}
		timer := time.NewTimer(limit)
		defer timer.Stop()
		select {
		case <-timer.C:
			bark(fmt.Sprintf("locktest: case %s is stuck: not done after %v. All goroutines:\n\n%s", name, limit, stacks()))
		case <-d.done:
		}
	}()
	return d
}

// arm starts the time. It may be called inside a bubble.
func (d *watchdog) arm() { d.arming.Do(func() { close(d.armed) }) }

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

// limit is how long a case may take: no longer than the test program may, so that its
// end is not put down to the last test that happened to run.
func (h Harness) limit(t *testing.T) time.Duration {
	limit := 30*time.Second + 20*h.ttl()
	if end, ok := t.Deadline(); ok {
		limit = min(limit, max(time.Until(end)-time.Second, time.Second))
	}
	return limit
}
