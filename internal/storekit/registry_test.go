package storekit

import (
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

func TestRegistryTellsALossOnce(t *testing.T) {
	r := NewRegistry()
	calls := 0
	lost := func(reason lock.LostReason) { calls++; require.Equal(t, lock.ReasonForced, reason) }
	r.Hold("o", lost)
	r.Hold("silent", nil)
	r.Heard("forced silent")
	r.Heard("forced o")
	r.Heard("forced o")
	r.Heard("anything")
	require.Equal(t, 1, calls)

	first := r.Hold("o", lost)
	r.Drop("o")
	r.Heard("forced o")
	require.Equal(t, 1, calls, "after its own release")

	r.Hold("o", lost)
	r.Failed("o", first)
	r.Heard("forced o")
	require.Equal(t, 2, calls, "another request of the owner has failed meanwhile")

	r.Hold("o", lost)
	_, err := r.Renewed(lock.Grant{Owner: "o"}, &lock.LostError{})
	require.ErrorIs(t, err, lock.ErrLost)
	r.Heard("forced o")
	require.Equal(t, 3, calls, "the notice comes after the answer to a renewal, which knows no reason")

	r.Hold("o", lost)
	_, err = r.Renewed(lock.Grant{Owner: "o"}, &lock.LostError{Reason: lock.ReasonTaken})
	require.ErrorIs(t, err, lock.ErrLost)
	r.Heard("forced o")
	require.Equal(t, 3, calls, "that has told it")
}

// TestRegistrySuccessor: the lock service may have an owner wait anew while its last wait ends.
func TestRegistrySuccessor(t *testing.T) {
	r := NewRegistry()
	first := r.Join("o")
	second := r.Join("o")
	r.Leave("o", first)
	r.Deliver("o", Handover{Token: 1})
	require.Len(t, second.grants, 1)
	r.Leave("o", second)
	require.Empty(t, r.waiters)
}

// Grants that end without a release do not stay for ever, those that live and those that are
// asked for do.
func TestRegistryForgetsDeadHolders(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry()
		lost := func(lock.LostReason) {}
		r.Hold("asked for", lost)
		r.Hold("alive", lost)
		r.Keep(lock.Grant{Owner: "alive", Start: time.Now(), TTL: time.Hour})
		for i := range 1000 {
			owner := strconv.Itoa(i)
			r.Hold(owner, lost)
			r.Keep(lock.Grant{Owner: owner, Start: time.Now(), TTL: time.Second})
			time.Sleep(100 * time.Millisecond)
		}
		require.Less(t, len(r.holders), 200)
		require.Contains(t, r.holders, "asked for")
		require.Contains(t, r.holders, "alive")
	})
}

func TestHeartbeat(t *testing.T) {
	require.Equal(t, time.Second, Heartbeat(time.Second))
	require.Equal(t, 5*time.Second, Heartbeat(lock.MaxTTL))
}
