package storetest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

// holderEnv makes a test binary a process that takes a lock and holds it until it is
// killed. Its value is a holderSpec.
const holderEnv = "LOCK_TEST_HOLDER"

type holderSpec struct {
	Key  string
	TTL  time.Duration
	Args []string
}

// HolderMain is for the first line of a TestMain. In a process that [StartHolder] started
// it does not return: it opens a Locker with the args given there, and holds the lock. In
// any other it does nothing.
func HolderMain(open func(args []string) (lock.Locker, error)) {
	env := os.Getenv(holderEnv)
	if env == "" {
		return
	}
	fmt.Fprintln(os.Stderr, hold(env, open))
	os.Exit(1)
}

func hold(env string, open func(args []string) (lock.Locker, error)) error {
	var spec holderSpec
	if err := json.Unmarshal([]byte(env), &spec); err != nil {
		return err
	}
	l, err := open(spec.Args)
	if err != nil {
		return err
	}
	lease, err := lock.New(l, lock.WithTTL(spec.TTL)).TryLock(context.Background(), spec.Key)
	if err != nil {
		return err
	}
	fmt.Println("token", lease.Token())
	<-lease.Done()
	return lease.Err()
}

// Holder is a process that holds a lock.
type Holder struct {
	Token lock.Token
	cmd   *exec.Cmd
}

// StartHolder starts one and returns when it holds key.
func StartHolder(tb testing.TB, key string, ttl time.Duration, args ...string) Holder {
	tb.Helper()
	exe, err := os.Executable()
	require.NoError(tb, err)
	spec, err := json.Marshal(holderSpec{key, ttl, args})
	require.NoError(tb, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), holderEnv+"="+string(spec))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(tb, err)
	require.NoError(tb, cmd.Start())
	tb.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(tb, err, line)
	digits, ok := strings.CutPrefix(strings.TrimSpace(line), "token ")
	require.True(tb, ok, line)
	token, err := lock.ParseToken(digits)
	require.NoError(tb, err)
	return Holder{token, cmd}
}

// Kill is SIGKILL. It returns when the process is gone.
func (h Holder) Kill(tb testing.TB) {
	tb.Helper()
	require.NoError(tb, h.cmd.Process.Kill())
	_ = h.cmd.Wait()
}

// KilledHolder kills a process that has held a lock for longer than its TTL: the first
// TryLock after another TTL and the ExpirySlack must get it, with a greater token.
func KilledHolder(t *testing.T, rival lock.Locker, ttl time.Duration, args ...string) {
	t.Helper()
	const key = "killed holder"
	ctx := Bounded(t)
	h := StartHolder(t, key, ttl, args...)
	Refused(t, rival, Lasting(Request(key), ttl))
	time.Sleep(ttl + ttl/2) // it is renewed beyond its first TTL
	Refused(t, rival, Lasting(Request(key), ttl))
	h.Kill(t)
	time.Sleep(ttl + rival.Capabilities().ExpirySlack)

	c := lock.New(rival, lock.WithTTL(ttl))
	lease, err := c.TryLock(ctx, key)
	require.NoError(t, err)
	require.Greater(t, lease.Token(), h.Token)
	require.NoError(t, c.Close(ctx))
}
