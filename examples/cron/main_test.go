//go:build unix

package main

import (
	"bytes"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/examples/internal/program"
	"github.com/seed-215fdefa/lock/internal/testserver"
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
	// That a tick is not run at all takes a machine that is late by more than a tick.
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
