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

func TestPaidOnce(t *testing.T) {
	t.Parallel()
	out, err := pay(t)
	require.NoError(t, err, "%s", out)
	assert.Contains(t, out, "paid 1 times: cashier")
	assert.Contains(t, out, "finds the invoice paid\n")
}

func TestPaidOnceWithAFrozenHolder(t *testing.T) {
	t.Parallel()
	out, err := pay(t, "-freeze")
	require.NoError(t, err, "%s", out)
	assert.Contains(t, out, "cashier 1 goes on, and books the payment\n")
	assert.Contains(t, out, "cashier 1 tries again: ")
	assert.Contains(t, out, "idle-in-transaction timeout")
	assert.Contains(t, out, "cashier 1 finds the invoice paid\n")
	assert.Contains(t, out, "paid 1 times: cashier 2\n")
}

// TestWithoutTheFence shows that it is the fence that the other tests rest on.
func TestWithoutTheFence(t *testing.T) {
	t.Parallel()
	out, err := pay(t, "-freeze", "-unfenced")
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit, "%s", out)
	assert.Contains(t, out, "paid 2 times")
}

func pay(t *testing.T, flags ...string) (string, error) {
	t.Helper()
	server := testserver.SharedPostgres(t)
	return program.Start(t, append(flags, "-postgres", testserver.PostgresURL(server.Addr()), "-invoice", testserver.Prefix(), "-ttl=8s")...).Wait()
}
