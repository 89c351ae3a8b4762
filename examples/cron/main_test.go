//go:build unix

package main

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/examples/internal/program"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/memory"
)

func TestMain(m *testing.M) { program.Main(testserver.Main{M: m}, main) }

// outcome is what a line says of a tick.
var outcome = regexp.MustCompile(`^replica \d+\.\d+ (\d\d:\d\d:\d\d\.\d{3}) (runs|done|is taken|failed)`)

// TestMemory has four replicas in fake time, whose clocks differ by more than the job takes:
// the first runs the tick, and none of the others.
func TestMemory(t *testing.T) {
	for tick, got := range inMemory(t, "-min-hold=500ms", "-differ=400ms") {
		require.Equal(t, map[string]int{"runs": 1, "done": 1, "is taken": 3}, got, tick)
	}
}

// TestWithoutMinHold shows that it is the minimum hold that the other tests rest on.
func TestWithoutMinHold(t *testing.T) {
	for tick, got := range inMemory(t, "-min-hold=0") {
		require.Equal(t, map[string]int{"runs": 4, "done": 4}, got, tick)
	}
}

// TestLateReplica has a replica that comes to a tick so late that another has run it, and its
// key is free again. It leaves the key to those who come to the next tick.
func TestLateReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := memory.New()
		var c config
		require.NoError(t, c.flags().Parse([]string{"-ticks=4"}))
		client := lock.New(store, lock.WithTTL(5*time.Second), lock.WithMinHold(c.minHold))
		var mu sync.Mutex // guards runs
		var wg sync.WaitGroup
		runs := make(map[string]int)
		for i := range 3 {
			slow := i == 0
			r := &replica{config: &c, client: client, behind: time.Duration(i) * c.behind}
			r.say = func(format string, args ...any) {
				tick, what, _ := strings.Cut(fmt.Sprintf(format, args...), " ")
				mu.Lock()
				if strings.HasPrefix(what, "runs ") {
					runs[tick]++
				}
				mu.Unlock()
				if slow && what == "done" { // until 1.6 s after the second tick
					slow = false
					time.Sleep(3550 * time.Millisecond)
				}
			}
			wg.Go(func() { r.run(t.Context()) })
		}
		wg.Wait()
		require.NoError(t, client.Close(t.Context()))
		require.NoError(t, store.Close())
		require.Equal(t, map[string]int{"00:00:02.000": 1, "00:00:04.000": 1, "00:00:06.000": 1, "00:00:08.000": 1}, runs)
	})
}

// inMemory counts what comes of five ticks.
func inMemory(t *testing.T, flags ...string) map[string]map[string]int {
	t.Helper()
	ticks := make(map[string]map[string]int)
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		require.NoError(t, run(t.Context(), append(flags,
			"-replicas=4", "-ticks=5", "-every=1s", "-behind=100ms", "-takes=50ms"), &out))
		for line := range bytes.Lines(out.Bytes()) {
			m := outcome.FindSubmatch(line)
			require.NotNil(t, m, "%s", line)
			tick := string(m[1])
			if ticks[tick] == nil {
				ticks[tick] = make(map[string]int)
			}
			ticks[tick][string(m[2])]++
		}
	})
	require.Len(t, ticks, 5)
	return ticks
}

// TestRedis has three processes of one replica each.
func TestRedis(t *testing.T) {
	server := testserver.SharedRedis(t)
	job := testserver.Prefix()
	var replicas []*program.Program
	for i := range 3 {
		p := program.Start(t, "-store=redis", "-redis", server.Addr(), "-job", job, "-replicas=1", "-first", strconv.Itoa(i),
			"-ticks=5", "-every=1s", "-takes=20ms", "-behind=100ms", "-min-hold=800ms", "-differ=200ms")
		replicas = append(replicas, p)
	}
	runs := make(map[string]int)
	for _, p := range replicas {
		out, err := p.Wait()
		require.NoError(t, err, "%s", out)
		for line := range strings.Lines(out) {
			m := outcome.FindStringSubmatch(line)
			require.NotNil(t, m, "%s", line)
			if m[2] == "runs" {
				runs[m[1]]++
			}
		}
	}
	// That a tick is not run at all takes a machine that is late by 600 ms, -min-hold less -differ.
	require.NotEmpty(t, runs)
	for tick, n := range runs {
		assert.Equal(t, 1, n, "tick %s", tick)
	}
}

// TestInterrupt ends a replica in the middle of its job.
func TestInterrupt(t *testing.T) {
	p := program.Start(t, "-replicas=1", "-every=100ms", "-takes=1h")
	p.Await(" runs the report")
	p.Signal(os.Interrupt)
	out, err := p.Wait()
	require.NoError(t, err, "%s", out)
}
