//go:build linux

package chaos

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-215fdefa/lock"
)

// event is one line of a history: a moment, or a call and its answer. Times and durations
// are in nanoseconds.
type event struct {
	Kind     kind
	At       int64         `json:",omitempty"`
	End      int64         `json:",omitempty"` // of a call, a fault or a pause
	Proc     int           `json:",omitempty"` // unique, killed processes included; 0 is the test
	Op       int64         `json:",omitempty"` // unique to a call of a Client
	Key      string        `json:",omitempty"`
	Owner    string        `json:",omitempty"`
	Token    lock.Token    `json:",omitempty"`
	Shared   bool          `json:",omitempty"`
	Wait     bool          `json:",omitempty"`
	Head     int64         `json:",omitempty"` // start
	TTL      int64         `json:",omitempty"`
	Start    int64         `json:",omitempty"` // of the grant
	Waiting  int64         `json:",omitempty"` // when Request.Waiting was called
	Bound    int64         `json:",omitempty"` // when an op must have returned, if without a lease
	Value    int64         `json:",omitempty"` // of a register: the number of the round that wrote it
	Prev     int64         `json:",omitempty"` // the value that a write replaces
	Err      string        `json:",omitempty"` // a class: see classOf
	Text     string        `json:",omitempty"`
	Survives lock.Survival `json:",omitempty"` // what a store must declare for its grants to outlive a fault
	Takes    string        `json:",omitempty"` // what a fault may undo: "grants" or "releases"
}

type kind string

const (
	kOp      kind = "op"      // a worker's call of a Client; Text is the method, Value 1 if it got a lease
	kAcquire kind = "acquire" // calls of the Locker
	kRenew   kind = "renew"
	kRelease kind = "release"
	kHold    kind = "hold"  // the worker has the lease
	kEnded   kind = "ended" // the lease's context ended
	kDone    kind = "done"  // the worker begins to release

	kBareWrite  kind = "bare write" // at a register without a fence
	kFenceRead  kind = "fence read" // at the store's own fence
	kFenceSend  kind = "fence send" // a write begins
	kFenceWrite kind = "fence write"

	kFault  kind = "fault"
	kForce  kind = "force"
	kStop   kind = "stop" // SIGSTOP, of process Value
	kKill   kind = "kill" // SIGKILL, of process Value
	kLate   kind = "late" // the process did not get to run
	kClosed kind = "closed"
)

// String is what is not zero.
func (e event) String() string {
	b, _ := json.Marshal(e)
	return strings.NewReplacer(`"`, "", ",", " ").Replace(string(b))
}

func (e event) meets(from, to int64) bool { return e.At < to && from < e.End }

func now() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

// zeroTime and zeroNow tie Go's monotonic readings to CLOCK_MONOTONIC: one clock, two
// zeros. The best of some tries was not interrupted between its two readings.
var zeroTime, zeroNow = func() (at time.Time, n int64) {
	best := time.Hour
	for range 100 {
		t, m := time.Now(), now()
		if d := time.Since(t); d < best {
			best, at, n = d, t, m
		}
	}
	return at, n
}()

func monotonic(t time.Time) int64 { return zeroNow + int64(t.Sub(zeroTime)) }

// journal takes the events of one process. It is safe for concurrent use.
type journal struct {
	proc int
	mu   sync.Mutex // guards file
	file *os.File
}

func openJournal(name string, proc int) (*journal, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	return &journal{proc: proc, file: f}, err
}

// add writes e. A moment gets the time of now, a call its End.
func (j *journal) add(e event) {
	if e.At == 0 {
		e.At = now()
	} else if e.End == 0 {
		e.End = now()
	}
	e.Proc = j.proc
	b, _ := json.Marshal(e)
	j.mu.Lock()
	defer j.mu.Unlock()
	_, _ = j.file.Write(append(b, '\n'))
}

func readJournal(name string) ([]event, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []event
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) == nil { // a killed process may leave half a line
			all = append(all, e)
		}
	}
	return all, lines.Err()
}

// classOf names what err is to the contract: the first of these, or "store".
func classOf(err error) string {
	if err == nil {
		return ""
	}
	var lost *lock.LostError
	if errors.As(err, &lost) {
		return "lost: " + lost.Reason.String()
	}
	for _, class := range []error{
		lock.ErrLost, lock.ErrHeld, lock.ErrStale, lock.ErrReleased, lock.ErrClosed, lock.ErrUnavailable,
		lock.ErrInvalid, lock.ErrUnsupported, lock.ErrDeadlock, context.Canceled, context.DeadlineExceeded,
	} {
		if errors.Is(err, class) {
			return strings.TrimPrefix(class.Error(), "lock: ")
		}
	}
	return "store"
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return fmt.Sprintf("%.300s", err.Error())
}
