//go:build unix

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/cmd/internal/guard"
)

// A run has three processes. lockctl holds the lock and renews it. The guard, a second
// lockctl, is CMD's parent, and knows until when the lock is held: it ends CMD when that is
// over and it has not heard of a renewal, be it that lockctl lost the lock, was stopped, or is
// gone. lockctl ends CMD if the guard does not. So CMD outlives the lock only if both are
// stopped at once; then only a resource that checks the fencing token is safe.
//
// The lease ends, for lockctl, as much sooner than in the store as the grace is long. In
// that time CMD may clean up after SIGTERM; at its end it gets SIGKILL.

const defaultGrace = 5 * time.Second

func (a *app) run(args []string) (int, error) {
	var q acquisition
	f := a.flags("run", "")
	q.define(f)
	grace := f.Duration("grace", -1, "")
	minHold := f.Duration("min-hold", 0, "")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0, err
		}
		return exitUsage, usageError{err}
	}
	if err := q.check(); err != nil {
		return exitUsage, err
	}
	key, argv := f.Arg(0), f.Args()
	if len(argv) > 0 {
		argv = argv[1:]
	}
	if len(argv) > 0 && argv[0] == "--" {
		argv = argv[1:]
	}
	if len(argv) == 0 {
		return exitUsage, misuse("want KEY -- CMD")
	}
	if *grace < 0 {
		*grace = min(defaultGrace, q.ttl/3)
	}
	if *minHold < 0 {
		return exitUsage, misuse("--min-hold %v: must not be negative", *minHold)
	}
	if least := *grace + drift(*grace); !given(f, "ttl") {
		q.ttl = max(q.ttl, least+drift(least), *minHold) // which then holds even if lockctl is killed
	}
	path, code, err := lookUp(argv[0])
	if err != nil {
		return code, err
	}

	ctx, stop, which := interrupted()
	defer stop()
	w := &ward{grace: *grace}
	return a.with(ctx, func(c *lock.Client) (int, error) {
		l, err := c.Lock(ctx, key, q.options()...)
		since := time.Now()
		passed := make(chan os.Signal, 16)
		signal.Notify(passed) // from here on signals are for CMD
		defer signal.Stop(passed)
		stop()
		switch {
		case which() != 0:
			if err == nil {
				_, _ = a.release(l)
			}
			return 128 + int(which()), nil
		case err != nil:
			return q.status(err), err
		}
		code, err := w.guarded(l, path, argv, passed)
		signal.Stop(passed)
		switch {
		case errors.Is(err, errLeft):
			return code, err
		case err == nil: // a signal ends lockctl meanwhile, and the TTL the lock
			select {
			case <-time.After(time.Until(since.Add(*minHold))):
			case <-l.Context().Done():
			}
		}
		if relCode, relErr := a.release(l); relErr != nil {
			return relCode, relErr
		}
		return code, err
	}, lock.WithDrift(drift(q.ttl)+*grace), lock.WithTTL(q.ttl), lock.WithObserver(w))
}

// drift is the Client's default one for a TTL.
func drift(ttl time.Duration) time.Duration { return ttl/100 + 2*time.Millisecond }

// given reports whether the flag is on the command line.
func given(f *flag.FlagSet, name string) (is bool) {
	f.Visit(func(g *flag.Flag) { is = is || g.Name == name })
	return is
}

// lookUp finds CMD before the lock is taken: a typo should not wait for it.
func lookUp(name string) (path string, code int, err error) {
	path, err = exec.LookPath(name)
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, os.ErrNotExist):
		return "", 127, fmt.Errorf("%s: command not found", name)
	case err != nil:
		return "", 126, err
	}
	return path, 0, nil
}

// ward is what lockctl knows of the guard and of CMD.
type ward struct {
	grace time.Duration
	lease chan *lock.Lease // the lease once it is guarded; filled before the first send
	told  *os.File         // the deadlines go in here
}

// Observe tells the guard of a renewal.
func (w *ward) Observe(_ context.Context, e lock.Event) {
	if e.Kind != lock.EventRenewed || w.lease == nil {
		return
	}
	l := <-w.lease
	w.lease <- l
	w.tell(endOf(l))
}

// endOf is when l ends unless it is renewed, in nanoseconds since boot.
func endOf(l *lock.Lease) int64 { return guard.SinceBoot() + int64(time.Until(l.Deadline())) }

// tell says when the lease ends. A guard that is gone is found out by its Wait.
func (w *ward) tell(end int64) { _ = binary.Write(w.told, binary.NativeEndian, end) }

// guarded runs CMD under a guard, until CMD has ended. Its error is errLeft if the guard was killed,
// and CMD is perhaps not yet dead: else the lock may be released.
func (w *ward) guarded(l *lock.Lease, path string, argv []string, signals <-chan os.Signal) (code int, err error) {
	deadlines, told, err := os.Pipe()
	if err != nil {
		return exitUnavailable, err
	}
	defer told.Close()
	report, child, err := os.Pipe()
	if err != nil {
		return exitUnavailable, errors.Join(err, deadlines.Close())
	}
	defer report.Close()
	self, err := os.Executable()
	if err != nil {
		return exitUnavailable, err
	}
	cmd := exec.Command(self, append([]string{guard.Command, strconv.FormatInt(endOf(l), 10), w.grace.String(), path}, argv...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{deadlines, child}
	cmd.Env = append(os.Environ(), "LOCK_KEY="+l.Key(), "LOCK_TOKEN="+l.Token().String(), "LOCK_OWNER="+l.Owner())

	err = cmd.Start()
	_ = errors.Join(deadlines.Close(), child.Close()) // the guard has its own
	if err != nil {
		return exitUnavailable, err
	}
	w.told = told
	lease := make(chan *lock.Lease, 1)
	lease <- l
	w.lease = lease

	group := childOf(report)
	over := make(chan struct{})
	go func() {
		_ = cmd.Wait() // its ProcessState says it all
		close(over)
	}()
	w.watch(l, cmd.Process.Pid, group, signals, over)
	return w.outcome(l, cmd.ProcessState, group)
}

// childOf reads CMD's process ID, which is that of its group, 0 if there is no CMD.
func childOf(report io.Reader) int {
	var id int64
	if binary.Read(report, binary.NativeEndian, &id) != nil {
		return 0
	}
	return int(id)
}

// watch passes signals on until over, and sees that CMD ends with the lease.
func (w *ward) watch(l *lock.Lease, parent, group int, signals <-chan os.Signal, over <-chan struct{}) {
	lost := l.Context().Done()
	var last <-chan time.Time
	for {
		select {
		case <-over:
			return
		case s := <-signals:
			if n := s.(syscall.Signal); group != 0 && passes(n) {
				_ = syscall.Kill(-group, n) // it may be gone
			}
		case <-lost:
			lost = nil
			w.tell(guard.SinceBoot())
			last = time.After(w.grace)
		case <-last:
			if group != 0 {
				_ = syscall.Kill(-group, syscall.SIGKILL)
			}
			_ = syscall.Kill(parent, syscall.SIGCONT) // it may be stopped, which CMD's end would wait for
		}
	}
}

// passes tells whether a signal is meant for CMD, as opposed to those that a process gets by
// itself.
func passes(s syscall.Signal) bool {
	switch s {
	case syscall.SIGCHLD, syscall.SIGURG, syscall.SIGPIPE:
		return false
	}
	return true
}

// outcome reads how the guard has ended, which is how CMD has.
func (w *ward) outcome(l *lock.Lease, state *os.ProcessState, group int) (code int, err error) {
	status := state.Sys().(syscall.WaitStatus)
	code = status.ExitStatus()
	if status.Signaled() {
		code = 128 + int(status.Signal())
		err = fmt.Errorf("the guard got signal %d (%v): CMD is killed, and %w", int(status.Signal()), status.Signal(), errLeft)
	}
	if lost := l.Err(); lost != nil {
		code, err = exitLost, errors.Join(lost, err)
	}
	if err != nil {
		// What CMD has left in its group must not go on without the lock, and nor must
		// CMD without its guard.
		if group != 0 {
			_ = syscall.Kill(-group, syscall.SIGKILL)
		}
		guard.Reclaim(group)
	}
	return code, err
}
