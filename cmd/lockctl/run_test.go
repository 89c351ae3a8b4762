//go:build unix

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/cmd/internal/storeurl"
	"github.com/seed-215fdefa/lock/httplock"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/memory"
)

const criticalCommand = "__critical"

// critical is a CMD: it notes when another one runs at the same time. A file lock tells, which
// the kernel takes from the dead. It says "in", and ends when its time is over, or never.
func critical(args []string) int {
	f, err := os.OpenFile(args[0], os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return 99
	}
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		_, _ = f.WriteString("overlap\n")
	}
	if args[2] == "stubborn" {
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	}
	fmt.Println("in", os.Getpid(), os.Getppid())
	d, err := time.ParseDuration(args[1])
	if err != nil {
		return 99
	}
	time.Sleep(d)
	return 7
}

// run is a lockctl run of the CMD above, once CMD has begun.
type running struct {
	*exec.Cmd
	child, guard int
}

// start runs critical under "job" and waits until it is in.
func start(t *testing.T, url, file, how string, flags ...string) *running {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	args := append(append([]string{"run"}, flags...), "job", "--", self, criticalCommand, file, "1h", how)
	r := &running{Cmd: lockctl(t, url, args...)}
	r.Stderr = os.Stderr
	out, err := r.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, r.Start())
	t.Cleanup(func() {
		_ = r.Process.Kill()
		_ = syscall.Kill(r.guard, syscall.SIGKILL)
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	_, err = fmt.Sscanf(line, "in %d %d", &r.child, &r.guard)
	require.NoError(t, err, line)
	return r
}

// ended waits for lockctl and returns its status.
func (r *running) ended(t *testing.T) int {
	t.Helper()
	_ = r.Wait()
	return r.ProcessState.ExitCode()
}

// next runs lockctl until it had the lock, and checks that nobody else was in meanwhile.
func next(t *testing.T, url, file string) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	status, _, errOut := outcome(t, url, "run", "job", "--", self, criticalCommand, file, "1ms", "")
	assert.Equal(t, 7, status, errOut)
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Empty(t, string(b), "two ran at once")
}

func TestNoOverlap(t *testing.T) {
	const ttl = 6 * time.Second
	short := []string{"--ttl", ttl.String(), "--grace", "500ms"}
	for _, c := range []struct {
		name, how string
		hurt      func(t *testing.T, r *running)
		status    int // of lockctl; -1: killed
	}{
		{"kill lockctl", "", func(t *testing.T, r *running) { require.NoError(t, r.Process.Kill()) }, -1},
		{"kill lockctl, CMD is stubborn", "stubborn", func(t *testing.T, r *running) { require.NoError(t, r.Process.Kill()) }, -1},
		{"kill the guard", "", func(t *testing.T, r *running) {
			require.NoError(t, syscall.Kill(r.guard, syscall.SIGKILL))
		}, 128 + 9},
		{"kill both", "stubborn", func(t *testing.T, r *running) {
			require.NoError(t, r.Process.Signal(syscall.SIGSTOP)) // it has no time to act
			require.NoError(t, syscall.Kill(r.guard, syscall.SIGKILL))
			require.NoError(t, r.Process.Kill())
		}, -1},
		{"stop lockctl", "stubborn", func(t *testing.T, r *running) {
			require.NoError(t, r.Process.Signal(syscall.SIGSTOP))
			gone(t, r.child)
			require.NoError(t, r.Process.Signal(syscall.SIGCONT))
		}, exitLost},
		{"kill CMD", "", func(t *testing.T, r *running) { require.NoError(t, syscall.Kill(r.child, syscall.SIGKILL)) }, 128 + 9},
		{"term lockctl", "", func(t *testing.T, r *running) { require.NoError(t, r.Process.Signal(syscall.SIGTERM)) }, 128 + 15},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, url, _ := client(t)
			file := filepath.Join(t.TempDir(), "critical")
			r := start(t, url, file, c.how, short...)
			c.hurt(t, r)
			next(t, url, file)
			assert.Equal(t, c.status, r.ended(t))
		})
	}
}

// TestForced takes the lock away in different states of CMD and guard.
func TestForced(t *testing.T) {
	for _, c := range []struct {
		name, how string
		before    func(t *testing.T, r *running)
	}{
		{"willing", "", func(*testing.T, *running) {}},
		{"stubborn", "stubborn", func(*testing.T, *running) {}},
		{"CMD is stopped", "", func(t *testing.T, r *running) { require.NoError(t, syscall.Kill(r.child, syscall.SIGSTOP)) }},
		{"the guard is stopped", "", func(t *testing.T, r *running) { require.NoError(t, syscall.Kill(r.guard, syscall.SIGSTOP)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			admin, url, _ := client(t)
			r := start(t, url, filepath.Join(t.TempDir(), "critical"), c.how, "--grace", "500ms")
			c.before(t, r)
			force(t, admin)
			assert.Equal(t, exitLost, r.ended(t))
			gone(t, r.child)
		})
	}
}

func TestFrozenStore(t *testing.T) {
	_, url, server := client(t)
	r := start(t, url, filepath.Join(t.TempDir(), "critical"), "stubborn", "--ttl", "3s", "--grace", "500ms")
	server.Pause()
	gone(t, r.child)
	server.Resume()
	assert.Equal(t, exitLost, r.ended(t))
}

// TestChildrenOfCommand loses the lock while a child of CMD goes on in the background, and heeds no signal.
func TestChildrenOfCommand(t *testing.T) {
	for _, c := range []struct {
		name   string
		lose   func(t *testing.T, admin *lock.Client, lockctl *os.Process)
		status int
	}{
		{"force", func(t *testing.T, admin *lock.Client, _ *os.Process) { force(t, admin) }, exitLost},
		{"kill lockctl", func(t *testing.T, _ *lock.Client, lockctl *os.Process) { require.NoError(t, lockctl.Kill()) }, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			admin, url, _ := client(t)
			cmd, out := inBackground(t, url, `trap "" TERM; sleep 1000 & echo $!; trap "exit 0" TERM; wait`, "--grace", "500ms")
			line, err := out.ReadString('\n')
			require.NoError(t, err)
			child, err := strconv.Atoi(strings.TrimSpace(line))
			require.NoError(t, err)
			c.lose(t, admin, cmd.Process)
			_ = cmd.Wait()
			assert.Equal(t, c.status, cmd.ProcessState.ExitCode())
			gone(t, child)
		})
	}
}

// TestGraceOfChildren loses the lock while a child of CMD goes on: CMD dies by SIGTERM, but its child
// has something to do.
func TestGraceOfChildren(t *testing.T) {
	admin, url, _ := client(t)
	cmd, out := inBackground(t, url,
		`(trap "sleep 0.5; echo cleaned up; exit" TERM; echo in; while :; do sleep 1000; done) & wait`, "--ttl", "10m", "--grace", "5m")
	_, err := out.ReadString('\n')
	require.NoError(t, err)
	force(t, admin)
	rest, err := io.ReadAll(out)
	require.NoError(t, err)
	assert.Equal(t, "cleaned up\n", string(rest))
	_ = cmd.Wait()
	assert.Equal(t, exitLost, cmd.ProcessState.ExitCode())
}

// inBackground starts a script under "job".
func inBackground(t *testing.T, url, script string, flags ...string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := lockctl(t, url, append(append([]string{"run"}, flags...), "job", "--", "sh", "-c", script)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	return cmd, bufio.NewReader(out)
}

// TestGuardKilled: the lock stays, since nobody knows whether CMD does.
func TestGuardKilled(t *testing.T) {
	admin, url, _ := client(t)
	r := start(t, url, filepath.Join(t.TempDir(), "critical"), "", "--ttl", "5m")
	require.NoError(t, syscall.Kill(r.guard, syscall.SIGKILL))
	assert.Equal(t, 128+9, r.ended(t))
	gone(t, r.child)
	rec, err := admin.Inspect(t.Context(), "job")
	require.NoError(t, err)
	assert.Len(t, rec.Holders, 1)
}

// TestGraceIsHeld has the store answer again when the lock counts as lost, and CMD has its grace.
func TestGraceIsHeld(t *testing.T) {
	next, url, server := client(t)
	end := filepath.Join(t.TempDir(), "end")
	cmd, out := inBackground(t, url,
		`trap "echo term" TERM; echo in; while [ ! -e `+end+` ]; do sleep 0.1; done`, "--ttl", "10m", "--grace", "590s")
	_, err := out.ReadString('\n')
	require.NoError(t, err)
	server.Pause()
	line, err := out.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "term\n", line)
	server.Resume()
	_, err = next.Lock(t.Context(), "job", lock.WithWait(3*time.Second))
	assert.ErrorIs(t, err, lock.ErrHeld, "CMD still runs")
	require.NoError(t, os.WriteFile(end, nil, 0o600))
	_ = cmd.Wait()
	assert.Equal(t, exitLost, cmd.ProcessState.ExitCode())
	l, err := next.TryLock(t.Context(), "job")
	require.NoError(t, err)
	require.NoError(t, l.Release(t.Context()))
}

// TestShortSession has a store that grants less than the default TTL, and than the minimum hold.
func TestShortSession(t *testing.T) {
	url := "zookeeper://" + testserver.ZooKeeper(t).Addr()
	status, _, errOut := outcome(t, url, "run", "--min-hold", "6s", "job", "--", "true")
	assert.Zero(t, status, errOut)
	status, _, errOut = outcome(t, url, "run", "-n", "--grace", "5s", "job", "--", "true")
	assert.Equal(t, exitUsage, status)
	assert.Contains(t, errOut, "grace 5s leaves nothing of a TTL of 4.6")
	status, _, errOut = outcome(t, url, "run", "-n", "--grace", "1s", "job", "--", "true")
	assert.Zero(t, status, errOut)
}

// TestMinHold runs a command that is over at once. The key is taken until the minimum hold is over, and no
// longer.
func TestMinHold(t *testing.T) {
	admin, url, _ := client(t)
	began := time.Now()
	cmd, out := inBackground(t, url, "exit 3", "--ttl", "10m", "--min-hold", "2s")
	_, err := io.ReadAll(out) // until all are over, CMD and guard and lockctl
	require.NoError(t, err)
	_ = cmd.Wait()
	assert.Equal(t, 3, cmd.ProcessState.ExitCode())
	assert.Greater(t, time.Since(began), 2*time.Second)
	l, err := admin.TryLock(t.Context(), "job")
	require.NoError(t, err)
	require.NoError(t, l.Release(t.Context()))
}

// TestDeadlocks finds two that wait for each other.
func TestDeadlocks(t *testing.T) {
	c, url, _ := client(t)
	status, out, errOut := outcome(t, url, "deadlocks")
	require.Zero(t, status, errOut)
	assert.Empty(t, out)

	store, err := storeurl.Open(t.Context(), url)
	require.NoError(t, err)
	other := lock.New(store)
	ctx, cancel := context.WithCancel(t.Context())
	held, ended := make(chan struct{}, 2), make(chan struct{}, 2)
	both := make(chan struct{})
	cross := func(c *lock.Client, first, second string) {
		_ = c.Do(ctx, first, func(ctx context.Context, _ *lock.Lease) error {
			held <- struct{}{}
			<-both
			return c.Do(ctx, second, func(context.Context, *lock.Lease) error { return nil })
		})
		ended <- struct{}{}
	}
	go cross(c, "a", "b")
	go cross(other, "b", "a")
	<-held
	<-held
	close(both)
	assert.Eventually(t, func() bool {
		status, out, _ = outcome(t, url, "deadlocks")
		return status == exitFound
	}, time.Minute, 10*time.Millisecond)
	assert.Contains(t, out, `waits for "a"`)
	cancel()
	<-ended
	<-ended
	require.NoError(t, other.Close(context.Background()))
	require.NoError(t, store.Close())
}

// TestDeadlocksUnsupported asks a service whose store cannot list.
func TestDeadlocksUnsupported(t *testing.T) {
	store := memory.New()
	h := httplock.NewHandler(struct{ lock.Locker }{store})
	s := httptest.NewServer(h)
	t.Cleanup(func() { s.Close(); h.Close(); assert.NoError(t, store.Close()) })
	status, _, errOut := outcome(t, s.URL, "deadlocks")
	assert.Equal(t, exitUsage, status, errOut)
}

// TestSignalIsNotLost gets a signal just before it stops taking them.
func TestSignalIsNotLost(t *testing.T) {
	sent := make(chan os.Signal, 1)
	signal.Notify(sent, syscall.SIGHUP)
	defer signal.Stop(sent)
	for range 100 {
		_, stop, which := interrupted()
		require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGHUP))
		<-sent
		stop()
		require.Equal(t, syscall.SIGHUP, which())
	}
}

// TestInterruptedWait ends lockctl while it waits: nothing of it stays in line.
func TestInterruptedWait(t *testing.T) {
	c, url, _ := client(t)
	l, err := c.Lock(t.Context(), "job")
	require.NoError(t, err)
	cmd := lockctl(t, url, "run", "job", "--", "true")
	require.NoError(t, cmd.Start())
	waits(t, c)
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	_ = cmd.Wait()
	assert.Equal(t, 128+15, cmd.ProcessState.ExitCode())
	r, err := c.Inspect(t.Context(), "job")
	require.NoError(t, err)
	assert.Zero(t, r.WaiterCount)
	require.NoError(t, l.Release(t.Context()))
}

// waits waits until somebody waits for "job".
func waits(t *testing.T, c *lock.Client) {
	t.Helper()
	require.Eventually(t, func() bool {
		r, err := c.Inspect(t.Context(), "job")
		return err == nil && r.WaiterCount == 1
	}, time.Minute, 10*time.Millisecond)
}

func force(t *testing.T, admin *lock.Client) {
	t.Helper()
	r, err := admin.Inspect(t.Context(), "job")
	require.NoError(t, err)
	require.Len(t, r.Holders, 1)
	require.NoError(t, admin.ForceRelease(context.Background(), "job", r.Holders[0].Owner))
}

// gone waits until a process does not run any more.
func gone(t *testing.T, pid int) {
	t.Helper()
	require.Eventually(t, func() bool { return !runs(pid) }, time.Minute, 10*time.Millisecond)
}

// runs reports whether a process runs. A zombie does not.
func runs(pid int) bool {
	s := state(pid)
	return s != "" && s != "Z"
}

// state is the letter for a process's state, "" if it is gone.
func state(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	_, state, _ := strings.Cut(string(b), ") ")
	return state[:1]
}

// left is a store that grants less than it is asked for, and fails to release.
type left struct{ lock.Locker }

func (left) Acquire(_ context.Context, r lock.Request) (lock.Grant, error) {
	return lock.Grant{Key: r.Key, Owner: r.Owner, Token: 1, TTL: time.Second, Start: time.Now()}, nil
}

func (left) Release(context.Context, lock.Grant) error { return lock.ErrUnavailable }

// TestGraceOfAShortGrant: a grant that the grace uses up is given back. If that fails the Client does it
// later, which it does not after ErrInvalid.
func TestGraceOfAShortGrant(t *testing.T) {
	w := &ward{Locker: left{}, grace: 2 * time.Second}
	_, err := w.Acquire(t.Context(), lock.Request{Key: "k", Owner: "o", TTL: time.Minute})
	require.ErrorIs(t, err, lock.ErrUnavailable)
	require.NotErrorIs(t, err, lock.ErrInvalid)
}
