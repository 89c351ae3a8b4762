package postgres_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/postgres"
)

func TestHeadStartOfAFreeKey(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, b := w.open(t), w.open(t)
	storetest.HeadStartOfAFreeKey(t, a, b, a.net.deafen)
}

func TestHeadStartOfAReader(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	storetest.HeadStartOfAReader(t, w.open(t), w.open(t))
}

func TestHeadStartTies(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	w.keepPlaces(t)
	storetest.HeadStartTies(t, w.open(t), func(owner string) {
		w.exec(t, "UPDATE "+w.table("_waiters")+" SET ticket = ticket + 3600000000 WHERE owner = $1", owner)
	})
}

// TestMigrateTickets: version 2 drew tickets from a sequence. Who stands in line keeps its place, and
// who lines up by a program of that version, which gives no ticket, is the last.
func TestMigrateTickets(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	w.exec(t, "ALTER TABLE "+w.table("_waiters")+" ALTER COLUMN ticket DROP DEFAULT, ALTER COLUMN ticket ADD GENERATED ALWAYS AS IDENTITY")
	l := w.open(t)
	g := storetest.Acquire(t, l, storetest.Request("k"))
	lineUp := func(owner string) {
		w.exec(t, "INSERT INTO "+w.table("_waiters")+` (key, owner, shared, ttl, arrived, deadline, process, listens)
			VALUES ('k', $1, false, '1 min', now(), now() + interval '1 min', 'p', false)`, owner)
		w.exec(t, "UPDATE "+w.table("")+" SET crowd = true, line = line + 1")
	}
	lineUp("a")
	lineUp("b")
	w.exec(t, "DROP FUNCTION "+w.function("prune"))
	require.NoError(t, postgres.Migrate(storetest.Bounded(t), w.admin, w.options...))
	lineUp("c")
	last := storetest.Waits(t, l, storetest.Ahead("k", time.Nanosecond))
	lineUp("d")
	early := storetest.Waits(t, l, storetest.Ahead("k", time.Hour))
	var seen []string
	for _, x := range storetest.Inspect(t, l, "k").Waiters {
		seen = append(seen, x.Owner)
	}
	require.Equal(t, []string{"a", "b", early.Owner, "c", last.Owner, "d"}, seen)
	storetest.Release(t, l, g)
}
