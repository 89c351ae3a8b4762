package httplock_test

import (
	"bytes"
	"regexp"
	"testing"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/locktest"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
)

var underRace bool

// alone skips a suite beside those of all stores with the race detector: each call goes through three
// processes' worth of goroutines, and TTLs of a second run out. make test runs it without, by itself.
func alone(t *testing.T) {
	t.Helper()
	if underRace {
		t.Skip("it runs without the race detector")
	}
}

func TestSuiteOverMemory(t *testing.T) {
	alone(t)
	t.Parallel()
	locktest.Run(t, harness(onMemory))
}

func TestClientSuiteOverMemory(t *testing.T) {
	alone(t)
	t.Parallel()
	locktest.RunClient(t, harness(onMemory))
}

var crowded = regexp.MustCompile("Crowd|Hundreds|TriesDuringAHandOver")

// harness is that of clients of one service, which is another process than its store.
func harness(on func(tb testing.TB) *store) locktest.Harness {
	return locktest.Harness{
		New: func(tb testing.TB) func() lock.Locker {
			st := on(tb)
			s := serve(tb, st.open)
			return func() lock.Locker { return connect(tb, s.addr, st, []*service{s}) }
		},
		Around: func(t *testing.T, f func(*testing.T)) {
			if !crowded.MatchString(t.Name()) { // those are enough for the machine by themselves
				t.Parallel()
			}
			f(t)
		},
		Proxy:  func(l lock.Locker) *faultproxy.Proxy { return l.(*process).proxy },
		Faults: faults(),
		LosePart: func(_ testing.TB, l lock.Locker, key string, k int) bool {
			lose := l.(*process).store.losePart
			return lose != nil && lose(key, k)
		},
	}
}

func faults() map[locktest.Fault]func(testing.TB, lock.Locker) func() {
	restart := func(_ testing.TB, l lock.Locker) func() {
		for _, s := range l.(*process).services {
			s.restart()
		}
		return nil
	}
	return map[locktest.Fault]func(testing.TB, lock.Locker) func(){
		locktest.LoseWakeup: func(_ testing.TB, l lock.Locker) func() {
			// The reply to a poll is the wake-up. The poll after it is answered at once.
			wakeups := faultproxy.Replies().Matching(func(m []byte) bool { return bytes.Contains(m, []byte(`"renew":true`)) })
			return l.(*process).proxy.Hold(wakeups.Nth(1)).Heal
		},
		locktest.LoseRecord: func(tb testing.TB, l lock.Locker) func() {
			if l.(*process).store.forget == nil {
				tb.Skip("the store cannot forget")
			}
			l.(*process).store.forget()
			return nil
		},
		locktest.Restart:  restart,
		locktest.Failover: restart, // the life that takes over has a Locker of its own
	}
}
