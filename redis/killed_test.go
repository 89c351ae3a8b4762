package redis_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/redis"
)

// holderEnv makes this test binary a process that takes a lock and holds it until it is
// killed. Its value is the server's address, the prefix, the key and the TTL.
const holderEnv = "LOCK_TEST_HOLDER"

// holdForever is the main function of such a process. It prints the token.
func holdForever(spec string) error {
	parts := strings.Split(spec, " ")
	ttl, err := time.ParseDuration(parts[3])
	if err != nil {
		return err
	}
	rdb := goredis.NewClient(&goredis.Options{Addr: parts[0]})
	c := lock.New(redis.New(rdb, redis.WithPrefix(parts[1])), lock.WithTTL(ttl))
	lease, err := c.TryLock(context.Background(), parts[2])
	if err != nil {
		return err
	}
	fmt.Println("token", lease.Token())
	<-lease.Done()
	return lease.Err()
}

// holder is such a process.
type holder struct {
	cmd   *exec.Cmd
	token lock.Token
}

func startHolder(tb testing.TB, w world, key string, ttl time.Duration) holder {
	tb.Helper()
	exe, err := os.Executable()
	require.NoError(tb, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s %s", holderEnv, w.server.Addr(), w.prefix, key, ttl))
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
	return holder{cmd, token}
}

// kill is SIGKILL. It returns when the process is gone, and how long its grant still lives
// at most.
func (h holder) kill(tb testing.TB, w world, key string) time.Duration {
	tb.Helper()
	require.NoError(tb, h.cmd.Process.Kill())
	_ = h.cmd.Wait()
	left, err := w.rdb.PTTL(bounded(tb), w.prefix+"{"+key+"}").Result()
	require.NoError(tb, err)
	require.Positive(tb, left, "the dead holder's key")
	return left
}

// TestKilledHolder: the first TryLock after the TTL succeeds.
func TestKilledHolder(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	rival := w.open(t)
	ctx := bounded(t)
	h := startHolder(t, w, "k", time.Second)
	refused(t, rival, request("k"))
	time.Sleep(1500 * time.Millisecond) // it is renewed beyond its first TTL
	refused(t, rival, request("k"))
	left := h.kill(t, w, "k")
	time.Sleep(left + rival.Capabilities().ExpirySlack)

	c := lock.New(rival)
	defer func() { require.NoError(t, c.Close(ctx)) }()
	lease, err := c.TryLock(ctx, "k")
	require.NoError(t, err)
	require.Greater(t, lease.Token(), h.token)
}

// TestKilledHolderWaiter: a waiting Lock gets it, and asks no more than once a second and
// at the end.
func TestKilledHolderWaiter(t *testing.T) {
	t.Parallel()
	const ttl = 4 * time.Second
	w := ownWorld(t)
	rival := w.open(t)
	ctx := bounded(t)
	h := startHolder(t, w, "k", ttl)
	c := lock.New(rival, lock.WithTTL(ttl))
	defer func() { require.NoError(t, c.Close(ctx)) }()
	granted := make(chan *lock.Lease, 1)
	go func() {
		lease, err := c.Lock(ctx, "k")
		if err == nil {
			granted <- lease
		}
		close(granted)
	}()
	eventually(t, "the waiter", func() bool { return len(inspect(t, rival, "k").Waiters) == 1 })
	left := h.kill(t, w, "k")
	since := time.Now()
	require.NoError(t, w.rdb.ConfigResetStat(ctx).Err())
	lease := <-granted
	require.NotNil(t, lease)
	took := time.Since(since)
	n := calls(t, w.rdb, "evalsha", "eval")

	require.Greater(t, lease.Token(), h.token)
	require.GreaterOrEqual(t, took, left-10*time.Millisecond, "before the dead holder's TTL was over")
	require.LessOrEqual(t, n, 1+int(took/time.Second), "requests in %v", took)
}
