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

// Harness says how to get at a store, and what can be done to it.
type Harness struct {
	// New is called once per case, inside Around, and returns a clean keyspace. Each
	// call of open is one more process on it: a Locker that shares no session with the
	// others. It is called from the case's goroutine only. What it opens is to be
	// closed by tb.Cleanup. New must not be nil.
	New func(tb testing.TB) (open func() lock.Locker)

	// TTL is the shortest that the store honors, 1 s if it is 0. Cases wait for it to
	// run out and hold keys for 30 times as long, and longer on a slow network. On a real clock a TTL under
	// 200 ms makes a busy machine miss a renewal; such a case is tried again, and
	// says so when the machine is too slow for it.
	TTL time.Duration

	// Around, if not nil, runs each case: it must call f once. synctest.Test runs it in
	// fake time. It may call t.Parallel first if each keyspace is independent of the
	// others and no fault reaches beyond the case's own.
	Around func(t *testing.T, f func(*testing.T))

	// Faults are what the harness can do to the store: see [Fault]. Each is called at
	// most once for a Locker, and heal, which may be nil, once after it, or never. A
	// fault without a function is a named skip of the cases that need it.
	Faults map[Fault]func(tb testing.TB, l lock.Locker) (heal func())

	// Strike, if not nil, lets s befall one message on l's way to the store, so that cases
	// can sweep over all that an operation sends and receives. struck reports whether it
	// has happened; heal ends it. It is not called again for a Locker before heal was.
	// Without it an operation is tried with its first reply held only, by LoseReply.
	Strike func(tb testing.TB, l lock.Locker, s Strike) (struck func() bool, heal func())

	// Proxy, if not nil, returns the proxy through which l, and nobody else, reaches the
	// store. It does for Sever, Freeze, LoseReply and Strike where those are not set.
	Proxy func(l lock.Locker) *faultproxy.Proxy

	// LosePart, if not nil, makes the store forget the k-th part, from 0, of what it keeps of
	// key: a row, an item, a node, whatever can disappear alone. It returns false if there
	// are not so many. l is a Locker of the case.
	LosePart func(tb testing.TB, l lock.Locker, key string, k int) (lost bool)

	// Skips says which cases not to run, and why: "Inspect/Waiters", or "Admin" for all
	// of its cases. Each is shown as a skip with its reason. A name that no case has is
	// a failure.
	Skips map[string]string

	// newClient makes the Clients of RunClient: nil is lock.New.
	newClient func(e *env, l lock.Locker, seen lock.Observer) client
}

// Fault is something that goes wrong, between the call of its function in
// Harness.Faults and that of the function which it returned.
type Fault uint8

// The faults. l is the Locker that was passed.
const (
	// Sever cuts off l's process, as if it had been killed: from when the function
	// returns nothing that l does reaches the store, and nothing comes from there,
	// wake-ups and heartbeats included. Its calls may fail or hang until their ctx
	// ends. It need not heal.
	Sever Fault = iota + 1

	// Freeze stops the store, as SIGSTOP would: l's requests stay unanswered until heal.
	// What was sent meanwhile may take effect then. Other Lockers may be frozen too.
	Freeze

	// LoseReply lets l's requests reach the store and take effect, but keeps the replies
	// back: until heal, which delivers them, or for good, cutting the connection.
	LoseReply

	// LoseWakeup keeps from l until heal what the store sends on its own to end a wait
	// (a message, a notification, a watch event). Requests and replies pass.
	LoseWakeup

	// LoseRecord makes the store forget all it knows of this case's keys, token
	// counters included. It is done when the function returns.
	LoseRecord

	// Restart kills the server and starts it again. It is done when the function or
	// heal returns. Lockers find their way back by themselves.
	Restart

	// Failover kills the server, and another takes over. It is done when the function
	// or heal returns. Lockers find their way by themselves.
	Failover
)

var faultNames = [...]string{
	Sever: "Sever", Freeze: "Freeze", LoseReply: "LoseReply", LoseWakeup: "LoseWakeup",
	LoseRecord: "LoseRecord", Restart: "Restart", Failover: "Failover",
}

// String is the name of the constant.
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
