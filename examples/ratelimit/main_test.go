//go:build unix

package main

import (
	"fmt"
	"os/exec"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/examples/internal/program"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

func TestMain(m *testing.M) { program.Main(testserver.Main{M: m}, main) }

// start runs the program: the API, and the processes that call it.
func start(t *testing.T, flags ...string) (string, error) {
	t.Helper()
	server := testserver.SharedRedis(t)
	return program.Start(t, append(flags, "-redis", server.Addr(), "-key", testserver.Prefix())...).Wait()
}

// TestAllCallsAreAnswered: none is refused, and they use what is allowed.
func TestAllCallsAreAnswered(t *testing.T) {
	t.Parallel()
	out, err := start(t, "-takes=200ms") // so that they overlap on any machine
	require.NoError(t, err, "%s", out)
	require.Contains(t, out, fmt.Sprintf("answered %d calls, at most %d at once, and refused 0", processes*callers*calls, allowed))
}

// TestUnlimited shows that it is the semaphore that the other test rests on. Calls that take
// this long overlap on any machine.
func TestUnlimited(t *testing.T) {
	t.Parallel()
	out, err := start(t, "-unlimited", "-takes=1s")
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit, "%s", out)
	require.Regexp(t, regexp.MustCompile(`refused [1-9]`), out)
}
