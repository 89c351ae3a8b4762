//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"testing"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/examples/internal/program"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/memory"
	"github.com/seed-215fdefa/lock/redis"
)

func TestMain(m *testing.M) { program.Main(testserver.Main{M: m}, main) }

func TestSoldTenTimes(t *testing.T) {
	t.Parallel()
	out, err := sell(t)
	require.NoError(t, err, "%s", out)
	requireTenSold(t, out)
}

func TestSoldTenTimesWithAFrozenHolder(t *testing.T) {
	t.Parallel()
	out, err := sell(t, "-freeze")
	require.NoError(t, err, "%s", out)
	requireTenSold(t, out)
	assert.Contains(t, out, "buyer 1 freezes, having read 10\n")
	assert.Contains(t, out, "buyer 1 goes on, and writes 9\n")
	assert.Regexp(t, `buyer 1 tries again: .*lock: stale token`, out)
	assert.NotContains(t, out, "number 10 to buyer 1")
}

// TestWithoutTheFence shows that it is the fence that the other tests rest on.
func TestWithoutTheFence(t *testing.T) {
	t.Parallel()
	out, err := sell(t, "-freeze", "-unfenced")
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit, "%s", out)
	require.Contains(t, out, "number 10 to buyer 1")
	require.Greater(t, len(sold(out)), items)
}

// TestSoldAndNotRecorded: a sale that could not be recorded is an error, even if the lock was
// lost, which by itself would be another try.
func TestSoldAndNotRecorded(t *testing.T) {
	t.Parallel()
	store := memory.NewFaulty()
	rdb := goredis.NewClient(&goredis.Options{Addr: testserver.SharedRedis(t).Addr()})
	defer rdb.Close()
	client := lock.New(store)
	s := &shelf{item: testserver.Prefix(), rdb: rdb, fence: redis.NewFence(rdb)}
	require.NoError(t, client.Do(t.Context(), s.item, (&shop{client: client, shelf: s}).fill))
	rdb.AddHook(noRecord(func() { require.Equal(t, 1, store.Lose(s.item)) }))
	err := (&buyer{name: "buyer 1", client: client, shelf: s, out: io.Discard}).run(t.Context())
	require.ErrorIs(t, err, errHalfDone)
	require.ErrorIs(t, err, lock.ErrLost)
	require.NoError(t, client.Do(t.Context(), s.item, func(ctx context.Context, l *lock.Lease) error {
		n, err := s.stock(ctx, l.Token())
		require.Equal(t, items-1, n)
		return err
	}))
	require.NoError(t, client.Close(t.Context()))
}

// noRecord has no sale recorded, and is called instead.
type noRecord func()

func (noRecord) DialHook(next goredis.DialHook) goredis.DialHook { return next }

func (noRecord) ProcessPipelineHook(next goredis.ProcessPipelineHook) goredis.ProcessPipelineHook {
	return next
}

func (f noRecord) ProcessHook(next goredis.ProcessHook) goredis.ProcessHook {
	return func(ctx context.Context, cmd goredis.Cmder) error {
		if cmd.Name() != "rpush" {
			return next(ctx, cmd)
		}
		f()
		cmd.SetErr(errors.New("away"))
		return cmd.Err()
	}
}

// sell runs the program: the shop, and the buyers that it starts.
func sell(t *testing.T, flags ...string) (string, error) {
	t.Helper()
	server := testserver.SharedRedis(t)
	return program.Start(t, append(flags, "-redis", server.Addr(), "-item", testserver.Prefix(), "-ttl=8s")...).Wait()
}

// sold are the sales as the shop lists them at the end.
func sold(out string) []string {
	return regexp.MustCompile(`(?m)^  number \d+`).FindAllString(out, -1)
}

func requireTenSold(t *testing.T, out string) {
	t.Helper()
	var want []string
	for n := items; n > 0; n-- {
		want = append(want, fmt.Sprintf("  number %d", n))
	}
	got := sold(out)
	// A sale is recorded after it was made, so not always in order.
	require.ElementsMatch(t, want, got, "%s", out)
}
