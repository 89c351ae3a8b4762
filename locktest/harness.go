package locktest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	lock "github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
)

// Harness gives access to a store, and says what can be done to it.
type Harness struct {
	// New is called once per case, inside Around, and returns a clean keyspace. Each call of
	// open starts one more process on it: a Locker that shares no session with the others. open
	// is called only from the case's goroutine, and must close what it opens with tb.Cleanup:
	// the ctx of each call has ended by then. New must not be nil.
	New func(tb testing.TB) (open func() lock.Locker)

	// TTL is the shortest TTL that the store honors; 0 means 1 s. Cases wait for it to run out,
	// and hold keys for 30 times as long, or longer on a slow network. With a TTL under 200 ms
	// on a real clock, a busy machine may miss a renewal. Such a case is tried again, and says
	// so if the machine is too slow for it.
	TTL time.Duration

	// Around, if not nil, runs each case: it must call f once. synctest.Test runs it in fake
	// time. Around may call t.Parallel first if keyspaces are independent and no fault affects
	// other cases.
	Around func(t *testing.T, f func(*testing.T))

	// Faults are what the harness can do to the store: see [Fault]. Each function is called at
	// most once for a Locker. It may return nil; otherwise heal is called at most once. Cases
	// that need a fault without a function are skipped by name.
	Faults map[Fault]func(tb testing.TB, l lock.Locker) (heal func())

	// Strike, if not nil, makes s happen to one message between l and the store, so that cases
	// can try each message of an operation in turn. struck reports whether it has happened; heal
	// ends it. Strike is not called again for a Locker before heal was. Without it, cases only
	// hold the first reply of an operation, with LoseReply.
	Strike func(tb testing.TB, l lock.Locker, s Strike) (struck func() bool, heal func())

	// Proxy, if not nil, returns the proxy through which l, and nobody else, reaches the store.
	// It provides Sever, Freeze, LoseReply and Strike where those are not set.
	Proxy func(l lock.Locker) *faultproxy.Proxy

	// LosePart, if not nil, makes the store forget the k-th part, from 0, of what it keeps of
	// key: a row, an item, a node, whatever can disappear alone. It returns false if there is no
	// such part. l is a Locker of the case.
	LosePart func(tb testing.TB, l lock.Locker, key string, k int) (lost bool)

	// Skips names the cases not to run, and why: "Inspect/Waiters", or "Admin" for all of its
	// cases. Each is shown as a skip with its reason. A name that no case has is a failure.
	Skips map[string]string

	// newClient makes the Clients of RunClient: nil is lock.New.
	newClient func(e *env, l lock.Locker, seen lock.Observer) client

	// newSemaphore makes the semaphores of RunClient: nil is semaphore.New.
	newSemaphore func(e *env, c *lock.Client, key string, n int) permits
}

// Fault is something that goes wrong. It begins when its function in Harness.Faults is called,
// and ends when the function that this returned is called.
type Fault uint8

// The faults. l is the Locker that was passed.
const (
	// Sever cuts off l's process, as if it had been killed. Once the function has returned,
	// nothing that l does reaches the store, and nothing reaches l, wake-ups and heartbeats
	// included. l's calls may fail, or hang until their ctx ends. The connections of a
	// [lock.Watcher] break, so that its Watch can know. It need not heal.
	Sever Fault = iota + 1

	// Freeze stops the store, as SIGSTOP would: l's requests stay unanswered until heal.
	// Requests sent meanwhile may take effect then. Other Lockers may be frozen too.
	Freeze

	// LoseReply lets l's requests reach the store and take effect, but keeps the replies back.
	// It delivers them on heal, or never, if it cuts the connection.
	LoseReply

	// LoseWakeup keeps back from l, until heal, what the store sends on its own to end a wait: a
	// message, a notification, a watch event. Requests and replies pass.
	LoseWakeup

	// LoseRecord makes the store forget all it knows of this case's keys, token counters
	// included. It is done when the function returns.
	LoseRecord

	// Restart kills the server and starts it again. It is done when the function or heal
	// returns. Lockers find their way back by themselves.
	Restart

	// Failover kills the server, and another takes over. It is done when the function or heal
	// returns. Lockers find their way by themselves.
	Failover
)

var faultNames = [...]string{
	Sever: "Sever", Freeze: "Freeze", LoseReply: "LoseReply", LoseWakeup: "LoseWakeup",
	LoseRecord: "LoseRecord", Restart: "Restart", Failover: "Failover",
}

// String returns the name of the constant.
func (f Fault) String() string {
	if f < Sever || int(f) >= len(faultNames) {
		return fmt.Sprintf("Fault(%d)", uint8(f))
	}
	return faultNames[f]
}

func (h Harness) ttl() time.Duration {
	if h.TTL == 0 {
		return time.Second
	}
	return h.TTL
}

// skips looks c's path up in Skips, and what is above it.
func (h Harness) skips(path string) (reason string, ok bool) {
	for {
		if reason, ok = h.Skips[path]; ok {
			return reason, true
		}
		i := strings.LastIndexByte(path, '/')
		if i < 0 {
			return "", false
		}
		path = path[:i]
	}
}

// check returns an error for a harness that could not do, or would silently test less
// than it seems to.
func (h Harness) check() error {
	var errs []error
	if h.New == nil {
		errs = append(errs, errors.New("locktest: Harness.New is nil"))
	}
	if h.TTL < 0 {
		errs = append(errs, fmt.Errorf("locktest: Harness.TTL is %v: must not be negative", h.TTL))
	}
	for f, do := range h.Faults {
		switch {
		case f < Sever || int(f) >= len(faultNames):
			errs = append(errs, fmt.Errorf("locktest: Harness.Faults has %v: the faults are %s",
				f, strings.Join(faultNames[1:], ", ")))
		case do == nil:
			errs = append(errs, fmt.Errorf("locktest: Harness.Faults[%v] is nil: leave it out instead", f))
		}
	}
	return errors.Join(append(errs, h.checkSkips())...)
}

func (h Harness) checkSkips() error {
	if len(h.Skips) == 0 {
		return nil
	}
	valid := names()
	var errs []error
	for name, reason := range h.Skips {
		if _, ok := slices.BinarySearch(valid, name); !ok {
			errs = append(errs, fmt.Errorf("locktest: Harness.Skips has %q, which no case is called; the names are:\n\t%s",
				name, strings.Join(valid, "\n\t")))
		}
		if reason == "" {
			errs = append(errs, fmt.Errorf("locktest: Harness.Skips[%q] gives no reason", name))
		}
	}
	return errors.Join(errs...)
}
