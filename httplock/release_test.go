package httplock_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/httplock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/memory"
)

// asked notes with what TTL its grants are released.
type asked struct {
	*memory.Locker
	ttl chan time.Duration
}

func (a asked) Release(ctx context.Context, g lock.Grant) error {
	a.ttl <- g.TTL
	return a.Locker.Release(ctx, g)
}

// TestReleaseSaysWhatIsLeft of the grant: the service does not know when it began, and a store that
// has to ask twice must not take an expired grant for one that its first request has released.
func TestReleaseSaysWhatIsLeft(t *testing.T) {
	t.Parallel()
	store := asked{memory.New(), make(chan time.Duration, 1)}
	defer store.Close()
	s := serve(t, func() lock.Locker { return store })
	l := httplock.New("http://" + s.Addr)
	defer l.Close()

	g := storetest.Acquire(t, l, lock.Request{Key: "k", Owner: "o", TTL: time.Hour})
	storetest.Release(t, l, g)
	require.LessOrEqual(t, <-store.ttl, time.Hour)
	g.Start = g.Start.Add(-2 * time.Hour)
	storetest.Lost(t, l.Release(t.Context(), g))
	require.Equal(t, time.Duration(1), <-store.ttl)
	require.Zero(t, storetest.Lost(t, l.Release(t.Context(), lock.Grant{Key: "k", Owner: "o", Token: g.Token})))
	require.Equal(t, lock.MaxTTL, <-store.ttl, "it is not known")

	require.Equal(t, 410, ask(t, s, "POST", "/v1/locks/k:release", "application/json", `{"owner":"o","token":1}`).Status)
	require.Equal(t, lock.MaxTTL, <-store.ttl, "it is not known")
}

func TestReleaseWhoseReplyIsLost(t *testing.T) { protocol().LoseReleaseReply(t) }
func TestReleaseOfWhatWasForced(t *testing.T)  { protocol().KeepForcedReason(t) }
func TestAcquireWhoseReplyIsLost(t *testing.T) { protocol().LoseAcquireReply(t) }
func TestLateTryOfHeldKey(t *testing.T)        { protocol().LateTryOfHeldKey(t) }
func TestDoubtBeforeAWait(t *testing.T)        { protocol().DoubtBeforeAWait(t) }
func TestLoseGrant(t *testing.T)               { protocol().LoseGrant(t) }
