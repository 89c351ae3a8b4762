//go:build unix

package main

import (
	"fmt"
	"strconv"
	"testing"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/examples/internal/program"
	"github.com/seed-215fdefa/lock/internal/testserver"
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
