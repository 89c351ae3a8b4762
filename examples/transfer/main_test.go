//go:build unix

package main

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/examples/internal/program"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

func TestMain(m *testing.M) { program.Main(testserver.Main{M: m}, main) }

func TestTheSumStays(t *testing.T) {
	t.Parallel()
	out, err := transfer(t)
	require.NoError(t, err, "%s", out)
	assert.Contains(t, out, "100 transfers, 3000 in all accounts, of 3000\n")
}

// TestWithoutTheLocks shows that it is the locks that the other test rests on.
func TestWithoutTheLocks(t *testing.T) {
	t.Parallel()
	out, err := transfer(t, "-unlocked")
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit, "%s", out)
	assert.Regexp(t, `transfer: \d+ in all accounts, and 3000 were paid in`, out)
}

func transfer(t *testing.T, flags ...string) (string, error) {
	t.Helper()
	server := testserver.SharedPostgres(t)
	return program.Start(t, append(flags, "-postgres", testserver.PostgresURL(server.Addr()), "-bank", testserver.Prefix())...).Wait()
}
