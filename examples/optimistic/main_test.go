//go:build unix

package main

import (
	"context"
	"fmt"
	"strconv"
	"testing"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/examples/internal/program"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/memory"
)

func TestMain(m *testing.M) { program.Main(testserver.Main{M: m}, main) }

// TestAlone needs no lock.
func TestAlone(t *testing.T) {
	t.Parallel()
	free, locked := add(t, 1, 1, 10)
	require.Equal(t, 10, free)
	require.Zero(t, locked)
}

// TestMany has three processes of ten writers each: nothing that was added is lost, and some
// need the lock.
func TestMany(t *testing.T) {
	t.Parallel()
	free, locked := add(t, 3, 10, 5)
	require.Equal(t, 150, free+locked)
	require.Positive(t, locked)
}

// TestLossAfterTheWrite: what was added counts, even if the lock was lost since.
func TestLossAfterTheWrite(t *testing.T) {
	t.Parallel()
	store := memory.NewFaulty()
	rdb := goredis.NewClient(&goredis.Options{Addr: testserver.SharedRedis(t).Addr()})
	defer rdb.Close()
	w := &writer{config: &config{number: testserver.Prefix()}, rdb: rdb, client: lock.New(store)}
	rdb.AddHook(&loses{func() { require.Equal(t, 1, store.Lose(w.number)) }, tries})
	require.NoError(t, w.add(t.Context()))
	require.EqualValues(t, 1, w.locked.Load())
	n, err := rdb.Get(t.Context(), w.number).Int()
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.NoError(t, w.client.Close(t.Context()))
}

// loses has some transactions fail, and loses the lock after the next.
type loses struct {
	lose func()
	fail int
}

func (*loses) DialHook(next goredis.DialHook) goredis.DialHook          { return next }
func (*loses) ProcessHook(next goredis.ProcessHook) goredis.ProcessHook { return next }

func (l *loses) ProcessPipelineHook(next goredis.ProcessPipelineHook) goredis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []goredis.Cmder) error {
		if cmds[0].Name() != "multi" {
			return next(ctx, cmds)
		}
		if l.fail--; l.fail >= 0 {
			return goredis.TxFailedErr
		}
		defer l.lose()
		return next(ctx, cmds)
	}
}

// add runs the program, and returns what it says, once the number is right.
func add(t *testing.T, processes, writers, adds int) (free, locked int) {
	t.Helper()
	server := testserver.SharedRedis(t)
	number := testserver.Prefix()
	var running []*program.Program
	for range processes {
		running = append(running, program.Start(t, "-redis", server.Addr(), "-number", number,
			"-writers", strconv.Itoa(writers), "-adds", strconv.Itoa(adds)))
	}
	for _, p := range running {
		out, err := p.Wait()
		require.NoError(t, err, "%s", out)
		var f, l int
		_, err = fmt.Sscanf(out, "%d added without the lock, %d under it\n", &f, &l)
		require.NoError(t, err, "%s", out)
		free, locked = free+f, locked+l
	}
	rdb := goredis.NewClient(&goredis.Options{Addr: server.Addr()})
	defer rdb.Close()
	n, err := rdb.Get(t.Context(), number).Int()
	require.NoError(t, err)
	require.Equal(t, processes*writers*adds, n)
	return free, locked
}
