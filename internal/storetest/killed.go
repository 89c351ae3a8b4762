package storetest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
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
	Key   string
	TTL   time.Duration
	Args  []string
	Fence bool // it reads its resource, and writes it when told to
}

// Resource is what a lock guards, by way of the store's fence. Write overwrites what Read
// returns.
type Resource struct {
	Read  func(ctx context.Context, token lock.Token) (string, error)
	Write func(ctx context.Context, token lock.Token, value string) error
}

// HolderMain is for the first line of a TestMain. In a process that [StartHolder] or
// [StoppedHolder] started it does not return: it opens a Locker and a Resource with the
// args given there, and holds the lock. In any other it does nothing.
func HolderMain(open func(args []string) (lock.Locker, Resource, error)) {
	env := os.Getenv(holderEnv)
	if env == "" {
		return
	}
	fmt.Fprintln(os.Stderr, hold(env, open))
	os.Exit(1)
}

func hold(env string, open func(args []string) (lock.Locker, Resource, error)) error {
	var spec holderSpec
	if err := json.Unmarshal([]byte(env), &spec); err != nil {
		return err
	}
	l, r, err := open(spec.Args)
	if err != nil {
		return err
	}
	lease, err := lock.New(l, lock.WithTTL(spec.TTL)).TryLock(context.Background(), spec.Key)
	if err != nil {
		return err
	}
	if spec.Fence {
		return readAndWrite(r, lease)
	}
	fmt.Println("token", lease.Token())
	<-lease.Context().Done()
	return lease.Err()
}

// Holder is a process that holds a lock.
type Holder struct {
	Token lock.Token
	cmd   *exec.Cmd
	in    io.Writer
	out   *bufio.Reader
}

// StartHolder starts one and returns when it holds key.
func StartHolder(tb testing.TB, key string, ttl time.Duration, args ...string) Holder {
	tb.Helper()
	return startHolder(tb, holderSpec{Key: key, TTL: ttl, Args: args})
}

func startHolder(tb testing.TB, spec holderSpec) Holder {
	tb.Helper()
	exe, err := os.Executable()
	require.NoError(tb, err)
	env, err := json.Marshal(spec)
	require.NoError(tb, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), holderEnv+"="+string(env))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(tb, err)
	out, err := cmd.StdoutPipe()
	require.NoError(tb, err)
	require.NoError(tb, cmd.Start())
	tb.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	h := Holder{cmd: cmd, in: in, out: bufio.NewReader(out)}
	h.Token, err = lock.ParseToken(h.says(tb, "token "))
	require.NoError(tb, err)
	return h
}

// says reads what the holder prints next, which must begin with prefix.
func (h Holder) says(tb testing.TB, prefix string) string {
	tb.Helper()
	line, err := h.out.ReadString('\n')
	require.NoError(tb, err, line)
	rest, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), prefix)
	require.True(tb, ok, "%q, not %q", line, prefix)
	return rest
}

// Kill is SIGKILL. It returns when the process is gone.
func (h Holder) Kill(tb testing.TB) {
	tb.Helper()
	require.NoError(tb, h.cmd.Process.Kill())
	_ = h.cmd.Wait()
}

// KilledHolder kills a process that has held a lock for longer than its TTL: the first
// Acquire after another TTL and the ExpirySlack must get it, with a greater token.
func KilledHolder(t *testing.T, rival lock.Locker, ttl time.Duration, args ...string) {
	t.Helper()
	const key = "killed holder"
	h := StartHolder(t, key, ttl, args...)
	Refused(t, rival, Lasting(Request(key), ttl))
	time.Sleep(ttl + ttl/2) // it is renewed beyond its first TTL
	Refused(t, rival, Lasting(Request(key), ttl))
	h.Kill(t)
	time.Sleep(ttl + rival.Capabilities().ExpirySlack + ttl/10) // its last renewal may have been on its way

	g := Acquire(t, rival, Lasting(Request(key), ttl))
	require.Greater(t, g.Token, h.Token)
}
