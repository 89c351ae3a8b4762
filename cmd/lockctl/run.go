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
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/cmd/internal/guard"
)

// A run has three processes. lockctl holds the lock and renews it. The guard, a second
// lockctl, is CMD's parent, and knows until when the lock is held: it ends CMD when that is
// over and it has not heard of a renewal, be it that lockctl lost the lock, was stopped, or is
// gone. lockctl ends CMD if the guard does not. So CMD outlives the lock only if both are
// stopped at once, and what it has started if both are killed; then only a resource that checks
// the fencing token is safe.
//
// The lease ends, for lockctl, as much sooner than in the store as the grace is long. In
// that time CMD may clean up after SIGTERM; at its end it gets SIGKILL. Nothing releases the lock
// in the store before CMD is dead.

const defaultGrace = 5 * time.Second

func (a *app) run(args []string) (int, error) {
	var q acquisition
	f := a.flags("run")
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
	if !given(f, "ttl") {
		q.ttl = max(q.ttl, 3*(*grace), *minHold) // which then holds even if lockctl is killed
	}
	switch {
	case usesUp(*grace, q.ttl):
		return exitUsage, misuse("--grace %v leaves nothing of --ttl %v", *grace, q.ttl)
	case *minHold < 0:
		return exitUsage, misuse("--min-hold %v: must not be negative", *minHold)
	}
	path, code, err := lookUp(argv[0])
	if err != nil {
		return code, err
	}

	ctx, stop, which := interrupted()
	defer stop()
	w := &ward{grace: *grace}
	a.wrap = func(store lock.Locker) lock.Locker { w.Locker = store; return w }
	return a.with(ctx, func(c *lock.Client) (int, error) {
		l, err := c.Lock(ctx, key, append(q.options(), lock.WithObserver(w))...)
		since := time.Now()
		passed := make(chan os.Signal, 16)
		guard.Notify(passed) // from here on signals are for CMD
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
	})
}

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

// ward is the store as the Client sees it: the grace is taken off each TTL, and no release passes while
// CMD runs.
type ward struct {
	lock.Locker
	grace  time.Duration // negative: the default, until there is a grant
	charge atomic.Pointer[charge]
}

// charge is what lockctl knows of the guard and of CMD.
type charge struct {
	lease *lock.Lease
	told  *os.File      // the deadlines go in here
	over  chan struct{} // closed when CMD does not run any more
}

// Unwrap returns the store itself, for [lock.As].
func (w *ward) Unwrap() lock.Locker { return w.Locker }

// cut is the grace, with its part of the drift, which a Client reckons from what is left of the TTL.
func (w *ward) cut() time.Duration { return w.grace + w.grace/100 }

// usesUp reports whether a grace leaves nothing of a TTL.
func usesUp(grace, ttl time.Duration) bool { return grace >= ttl-ttl/100 }

// Acquire refuses a TTL, as granted, of which the grace leaves nothing.
func (w *ward) Acquire(ctx context.Context, r lock.Request) (lock.Grant, error) {
	g, err := w.Locker.Acquire(ctx, r)
	if err != nil {
		return g, err
	}
	if w.grace < 0 {
		w.grace = min(defaultGrace, g.TTL/3)
	}
	if usesUp(w.grace, g.TTL) {
		if err := w.Locker.Release(ctx, lock.Grant{Key: r.Key, Owner: r.Owner}); err != nil {
			return lock.Grant{}, err // the Client undoes nothing after ErrInvalid
		}
		return lock.Grant{}, fmt.Errorf("%w: grace %v leaves nothing of a TTL of %v, which is what the store grants",
			lock.ErrInvalid, w.grace, g.TTL)
	}
	g.TTL -= w.cut()
	return g, nil
}

// Renew renews for the whole TTL.
func (w *ward) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	g.TTL += w.cut()
	g, err := w.Locker.Renew(ctx, g)
	g.TTL -= w.cut()
	return g, err
}

// Release waits for the end of CMD: a Client also releases what it has lost, as far as it knows,
// but CMD may still use its grace.
func (w *ward) Release(ctx context.Context, g lock.Grant) error {
	if c := w.charge.Load(); c != nil && c.lease.Owner() == g.Owner {
		select {
		case <-c.over:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return w.Locker.Release(ctx, g)
}

// Observe tells the guard of a renewal.
func (w *ward) Observe(_ context.Context, e lock.Event) {
	c := w.charge.Load()
	if c == nil || e.Kind != lock.EventRenewed {
		return
	}
	if end := endOf(c.lease); c.lease.Err() == nil { // else end means nothing
		c.tell(end)
	}
}

// endOf is when l ends unless it is renewed, in nanoseconds since boot.
func endOf(l *lock.Lease) int64 { return guard.SinceBoot() + int64(time.Until(l.Deadline())) }

// tell says when the lease ends. A guard that is gone is found out by its Wait.
func (c *charge) tell(end int64) { _ = binary.Write(c.told, binary.NativeEndian, end) }

// guarded runs CMD under a guard, until CMD has ended. Its error is errLeft if the guard was killed,
// and CMD is perhaps not yet dead: else the lock may be released.
func (w *ward) guarded(l *lock.Lease, path string, argv []string, signals chan os.Signal) (code int, err error) {
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
	self, err := guard.Executable()
	if err != nil {
		return exitUnavailable, err
	}
	c := &charge{l, told, make(chan struct{})}
	defer func() {
		if !errors.Is(err, errLeft) {
			close(c.over)
		}
	}()
	w.charge.Store(c)
	cmd := exec.Command(self, append([]string{
		guard.Command, number(deadlines), number(child), strconv.FormatInt(endOf(l), 10), w.grace.String(), path,
	}, argv...)...)
	cmd.Env = append(os.Environ(), "LOCK_KEY="+l.Key(), "LOCK_TOKEN="+l.Token().String(), "LOCK_OWNER="+l.Owner())

	if err = l.Err(); err != nil {
		return exitLost, errors.Join(err, deadlines.Close(), child.Close())
	}
	pid, _, err := syscall.StartProcess(cmd.Path, cmd.Args, &syscall.ProcAttr{
		Env: cmd.Environ(), Files: descriptors(deadlines, child),
	})
	_ = errors.Join(deadlines.Close(), child.Close()) // the guard has its own
	if err != nil {
		return exitUnavailable, fmt.Errorf("%s: %w", self, err)
	}
	parent, _ := os.FindProcess(pid) // which always succeeds on Unix

	group := childOf(report)
	over := make(chan struct{})
	var state *os.ProcessState
	go func() {
		state, _ = parent.Wait() // nobody else waits for it
		close(over)
	}()
	w.watch(c, pid, group, signals, over)
	return c.outcome(state, group)
}

func number(f *os.File) string { return strconv.Itoa(int(f.Fd())) }

// descriptors are those of the guard, each at its own number: what lockctl was started with, which may
// be meant for CMD, and the ends. These are made inheritable for the guard only. What a store's client
// starts meanwhile would keep them open.
func descriptors(ends ...*os.File) []uintptr {
	var fds []uintptr
	for _, end := range ends {
		for n := uintptr(len(fds)); n <= end.Fd(); n++ {
			flags, err := unix.FcntlInt(n, unix.F_GETFD, 0)
			if err != nil || flags&unix.FD_CLOEXEC != 0 {
				fds = append(fds, ^uintptr(0)) // closed
			} else {
				fds = append(fds, n)
			}
		}
		fds[end.Fd()] = end.Fd()
	}
	return fds
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
func (w *ward) watch(c *charge, parent, group int, signals chan os.Signal, over <-chan struct{}) {
	lost := c.lease.Context().Done()
	var last <-chan time.Time
	for {
		select {
		case <-over:
			return
		case s := <-signals:
			switch n := s.(syscall.Signal); {
			case group == 0:
			case guard.WantsTerminal(n):
				// Not CMD does, but this group, such as a pager that CMD writes to.
				reclaimed := guard.Reclaim(group)
				signal.Notify(signals, syscall.SIGTTOU)
				if reclaimed { // else it would only stop again
					_ = syscall.Kill(0, syscall.SIGCONT)
				}
			case passes(n):
				_ = syscall.Kill(-group, n) // it may be gone
				if ends(n) {
					_ = syscall.Kill(-group, syscall.SIGCONT) // a stopped one would not hear it
				}
			}
		case <-lost:
			lost = nil
			c.tell(guard.SinceBoot())
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

// ends tells whether a signal is to end CMD.
func ends(s syscall.Signal) bool {
	switch s {
	case syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM:
		return true
	}
	return false
}

// outcome reads how the guard has ended, which is how CMD has.
func (c *charge) outcome(state *os.ProcessState, group int) (code int, err error) {
	status := state.Sys().(syscall.WaitStatus)
	code = status.ExitStatus()
	if status.Signaled() {
		code = 128 + int(status.Signal())
		err = fmt.Errorf("the guard got signal %d (%v): CMD is killed, and %w", int(status.Signal()), status.Signal(), errLeft)
	}
	if lost := c.lease.Err(); lost != nil {
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
