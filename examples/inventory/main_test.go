//go:build unix

package main

import (
	"fmt"
	"os/exec"
	"regexp"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/examples/internal/program"
	"github.com/seed-215fdefa/lock/internal/testserver"
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
