//go:build unix

package main

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/examples/internal/program"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

func TestMain(m *testing.M) { program.Main(testserver.Main{M: m}, main) }

func start(t *testing.T, election, name string, flags ...string) *program.Program {
	t.Helper()
	server := testserver.SharedEtcd(t)
	return program.Start(t, append(flags, "-etcd", server.Addr(), "-election", election, "-name", name, "-every=20ms")...)
}

// stop interrupts a replica and returns what it has printed.
func stop(t *testing.T, p *program.Program) string {
	t.Helper()
	p.Signal(syscall.SIGTERM)
	out, err := p.Wait()
	require.NoError(t, err, "%s", out)
	return out
}

// TestTermPassesOnAtOnce: had the lock not been released, b would have to wait for a minute.
func TestTermPassesOnAtOnce(t *testing.T) {
	t.Parallel()
	election := testserver.Prefix()
	a := start(t, election, "a", "-ttl=1m")
	a.Await("a has written 2")
	b := start(t, election, "b", "-ttl=1m")
	b.Await("b follows a, term [0-9]+, who says [1-9][0-9]* plans")
	a.Await("a has written")
	stop(t, a)
	b.Await("b has written 2")
	stop(t, b)
}

// TestZombie freezes the leader before a write, until another leads. Whoever follows finds the
// new one, and so does the zombie, which is refused.
func TestZombie(t *testing.T) {
	t.Parallel()
	election := testserver.Prefix()
	a := start(t, election, "a", "-ttl=8s", "-freeze=3")
	a.Await("a freezes")
	b := start(t, election, "b", "-ttl=8s")
	b.Await("b has written 2")
	c := start(t, election, "c", "-ttl=8s")
	c.Await("c follows b, term [0-9]+, who says [1-9][0-9]* plans")

	a.Signal(syscall.SIGCONT)
	for seen := map[string]bool{}; len(seen) < 2; { // it learns of both at the same time
		seen[a.Await("a (is refused|follows b)")[1]] = true
	}
	b.Await("b has written")
	require.NotContains(t, stop(t, b), "is refused")
	c.Await("c (leads|follows a)")
	a.Await("a (leads|follows c)")
	stop(t, c)
	assert.NotContains(t, stop(t, a), "a has written 3\n")
}
