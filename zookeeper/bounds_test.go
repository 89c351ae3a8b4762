package zookeeper_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/zookeeper"
)

// TestSessionIsBounded: the end of a session is one transaction with the paths of all its nodes. A server
// writes one that is too long to be read again, and so cannot start any more. What one Locker takes
// stays below that, whatever it is asked for; it takes more when it has released.
func TestSessionIsBounded(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	w.timeout = 4 * long
	a := w.open(t)
	const tries = 1500 // are enough to break a server
	var all sync.WaitGroup
	var mu sync.Mutex // guards grants
	var grants []lock.Grant
	for i := range tries {
		key := fmt.Sprint(strings.Repeat("/", lock.MaxKeyLen-4), i) // each slash is three bytes there
		all.Go(func() {
			g, err := a.Acquire(storetest.Bounded(t), storetest.Request(key))
			switch {
			case err == nil:
				mu.Lock()
				grants = append(grants, g)
				mu.Unlock()
			case !errors.Is(err, zookeeper.ErrFull):
				t.Error(err)
			}
		})
	}
	all.Wait()
	require.Greater(t, len(grants), 400)
	require.Less(t, len(grants), tries)
	waits := storetest.Request(grants[0].Key)
	waits.Wait = true
	_, err := a.Acquire(storetest.Bounded(t), waits)
	require.ErrorIs(t, err, zookeeper.ErrFull)
	for range 3 {
		storetest.Release(t, a, grants[0])
		grants[0] = storetest.Acquire(t, a, storetest.Request(grants[0].Key))
	}
	witness, container := dial(t, long, w.server.Addr()), w.root+"/"+zookeeper.Encode(grants[0].Key)
	a.conn.Close()
	storetest.Eventually(t, "the end of the session", func() bool { return len(names(t, witness, container)) == 0 })
	w.server.Stop()
	w.server.Start()
	b := w.open(t)
	storetest.Release(t, b, storetest.Acquire(t, b, storetest.Request(grants[0].Key)))
}
