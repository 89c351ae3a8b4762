package zookeeper_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/internal/storetest"
)

// TestTriesOfAFreeKey: a holder releases while others try. One that it has refused is in the way of the
// next until it has left. Nobody holds the key then, so one of them gets it.
func TestTriesOfAFreeKey(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	holder, first, second := w.open(t), w.open(t), w.open(t)
	tries := func(p *process) (result chan error, goOn func()) {
		held := p.proxy.Hold(asks(opGetData, "/k/"))
		result = make(chan error, 1)
		go func() {
			g, err := p.Acquire(storetest.Bounded(t), storetest.Request("k"))
			if err == nil {
				err = p.Release(storetest.Bounded(t), g)
			}
			result <- err
		}()
		storetest.Receive(t, held.Hit()) // it has seen who is in front
		return result, held.Heal
	}
	for name, waits := range map[string]bool{"a try": false, "a waiter": true} {
		req := storetest.Request("k")
		req.Wait = waits
		g := storetest.Acquire(t, holder, req)
		one, goOn := tries(first)
		storetest.Release(t, holder, g)
		two, goOnToo := tries(second)
		goOn()
		errs := []error{storetest.Receive(t, one)}
		goOnToo()
		errs = append(errs, storetest.Receive(t, two))
		require.Contains(t, errs, nil, "all are refused, and the last holder was %s", name)
	}
}
