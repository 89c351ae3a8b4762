package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/dynamo"
	"github.com/seed-215fdefa/lock/etcd"
	"github.com/seed-215fdefa/lock/memory"
	"github.com/seed-215fdefa/lock/postgres"
	"github.com/seed-215fdefa/lock/redis"
	"github.com/seed-215fdefa/lock/redlock"
	"github.com/seed-215fdefa/lock/zookeeper"
)

var update = flag.Bool("update", false, "write the table of stores in docs/choosing.md anew")

// described is what Capabilities do not say.
type described struct {
	store lock.Locker
	cost  string // of an uncontended acquire
	run   string // what its users must
}

func stores() []described {
	return []described{
		{memory.New(), "a mutex", "nothing: one process"},
		{redis.New(nil), "1 round trip, memory", "Redis 7 or newer: single, Sentinel, Cluster"},
		{redlock.New(nil), "1 or 2 round trips to all, memory", "five Redis servers that know nothing of each other; faults are those of a minority"},
		{etcd.New(nil), "1 round trip, a quorum's disks", "etcd 3.6 or newer: three or five members"},
		{postgres.New(nil), "1 round trip, the disk", "PostgreSQL 15 or newer"},
		{zookeeper.New(nil, zookeeper.WithSessionTimeout(10*time.Second)), "1 round trip, a quorum's disks", "ZooKeeper 3.8 or newer: three or five servers; here with sessions of 10 s"},
		{dynamo.New(nil, ""), "1 write of a few ms", "nothing: a table in DynamoDB"},
	}
}

// TestStores compares the table in docs/choosing.md with what the stores declare. To write it:
//
//	go test ./examples/readme -run Stores -update
func TestStores(t *testing.T) {
	const path, begin, end = "../../docs/choosing.md", "<!-- stores:begin -->\n", "<!-- stores:end -->"
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(b), begin)
	require.True(t, ok, begin)
	have, after, ok := strings.Cut(rest, end)
	require.True(t, ok, end)
	want := storeTable(t)
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(before+begin+want+end+after), 0o644))
		return
	}
	require.Equal(t, want, have, "run this test with -update")
}

func storeTable(t *testing.T) string {
	var b strings.Builder
	b.WriteString("| store | a live lock survives | tokens rise after | waiters | early notice of a loss | shortest TTL " +
		"| a dead holder's key is free after | an acquire costs | you run |\n" +
		"|---|---|---|---|---|---|---|---|---|\n")
	for _, d := range stores() {
		c := d.store.Capabilities()
		require.True(t, c.Shared, "%s: the text says that all have it", c.Store)
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %v | TTL + %v | %s | %s |\n",
			c.Store, faults(c.HoldSurvives&^(lock.SurvivesRelease|lock.SurvivesExpiry)), faults(c.TokenSurvives),
			waiting(c), yes(c.EarlyLoss), c.MinTTL, c.ExpirySlack, d.cost, d.run)
		if closer, ok := d.store.(interface{ Close() error }); ok {
			require.NoError(t, closer.Close())
		}
	}
	return b.String()
}

func faults(s lock.Survival) string {
	if s == 0 {
		return "neither restart nor failover"
	}
	return strings.ReplaceAll(s.String(), "|", ", ")
}

func waiting(c lock.Capabilities) string {
	switch {
	case c.Priority && c.Push:
		return "in line, woken; head starts"
	case c.FIFO && c.Push:
		return "in line, woken"
	case c.FIFO:
		return "in line, polling"
	case c.Push:
		return "woken"
	default:
		return "polling"
	}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// TestStoresOfNothing: what a table wants of a store without a server, a program may want.
func TestStoresOfNothing(t *testing.T) {
	for _, d := range stores() {
		if _, ok := d.store.(*memory.Locker); ok {
			continue
		}
		_, err := d.store.Inspect(context.Background(), "k")
		require.ErrorIs(t, err, lock.ErrInvalid, d.store.Capabilities().Store)
	}
}
