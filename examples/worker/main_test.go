//go:build unix

package main

import (
	"strconv"
	"syscall"
	"testing"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/examples/internal/program"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/redis"
)

func TestMain(m *testing.M) { program.Main(testserver.Main{M: m}, main) }

// start runs a worker. Its TTL is far longer than a program may take in these tests.
func start(t *testing.T, job string, flags ...string) *program.Program {
	t.Helper()
	server := testserver.SharedRedis(t)
	return program.Start(t, append([]string{"-redis", server.Addr(), "-job", job, "-ttl=10m", "-takes=20ms"}, flags...)...)
}

func TestJobIsDone(t *testing.T) {
	t.Parallel()
	job := testserver.Prefix()
	out, err := start(t, job, "-steps=3").Wait()
	require.NoError(t, err, "%s", out)
	assert.Contains(t, out, "step 3 of 3\n")
	assert.Contains(t, out, "is done\n")

	out, err = start(t, job, "-steps=3").Wait()
	require.NoError(t, err, "%s", out)
	assert.NotContains(t, out, "step 1 of 3\n", "the job was done already")
}

// TestTermReleasesAtOnce: had the lock not been released, the second worker would have to
// wait for ten minutes.
func TestTermReleasesAtOnce(t *testing.T) {
	t.Parallel()
	job := testserver.Prefix()
	first := start(t, job, "-steps=1000000")
	first.Await("step 2 of")
	second := start(t, job, "-steps=1000000")
	second.Await("waits in line")
	first.Signal(syscall.SIGTERM)
	out, err := first.Wait()
	require.NoError(t, err, "%s", out)
	require.Contains(t, out, "was asked to stop\n")

	second.Await("has the lock")
	after, err := strconv.Atoi(second.Await(`begins after step (\d+)`)[1])
	require.NoError(t, err)
	assert.GreaterOrEqual(t, after, 2)
	second.Await("step " + strconv.Itoa(after+1) + " of")
	second.Signal(syscall.SIGTERM)
	out, err = second.Wait()
	require.NoError(t, err, "%s", out)
}

// TestLoss takes the lock from a worker, which must stop working, and line up again.
func TestLoss(t *testing.T) {
	t.Parallel()
	job := testserver.Prefix()
	w := start(t, job, "-steps=1000000")
	w.Await("step 2 of")

	rdb := goredis.NewClient(&goredis.Options{Addr: testserver.SharedRedis(t).Addr()})
	defer rdb.Close()
	store := redis.New(rdb)
	defer store.Close()
	rec, err := store.Inspect(t.Context(), "job:"+job)
	require.NoError(t, err)
	require.Len(t, rec.Holders, 1)
	require.NotEmpty(t, rec.Holders[0].Metadata["pid"])
	require.NoError(t, store.ForceRelease(t.Context(), "job:"+job, rec.Holders[0].Owner))

	// The work may end, and begin again, before the observer is told of the loss.
	const either = `has lost the lock: lock: lost: forced|begins after step (\d+)`
	after, err := strconv.Atoi(w.Await(either)[1] + w.Await(either)[1])
	require.NoError(t, err)
	assert.GreaterOrEqual(t, after, 2)
	w.Signal(syscall.SIGTERM)
	out, err := w.Wait()
	require.NoError(t, err, "%s", out)
	assert.Contains(t, out, "lines up again")
}
