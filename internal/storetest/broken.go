package storetest

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

// crowd is how many calls meet each broken connection. Some are under way when it breaks,
// some come while the client has none, some when it has the next.
const crowd = 24

// BrokenConnections checks that every call outlives the connection that it meets broken: it
// is not an error, it takes effect, and it does so once. sever breaks all connections of l.
func BrokenConnections(t *testing.T, l interface {
	lock.Locker
	lock.Admin
}, sever func(),
) {
	t.Helper()
	reqs, grants := make([]lock.Request, crowd), make([]lock.Grant, crowd)
	all := func(call func(i int) error) {
		t.Helper()
		errs := make([]error, crowd)
		var wg sync.WaitGroup
		for i := range crowd {
			wg.Go(func() { errs[i] = call(i) })
			if i == crowd/3 {
				sever()
			}
		}
		wg.Wait()
		for _, err := range errs {
			require.NoError(t, err)
		}
	}
	acquire := func(i int) (err error) {
		reqs[i] = Request(fmt.Sprint("broken ", i))
		grants[i], err = l.Acquire(Bounded(t), reqs[i])
		return err
	}
	all(acquire)
	all(func(i int) (err error) {
		grants[i], err = l.Renew(Bounded(t), grants[i])
		return err
	})
	all(func(i int) error {
		rec, err := l.Inspect(Bounded(t), reqs[i].Key)
		if err == nil && (len(rec.Holders) != 1 || rec.Holders[0].Owner != reqs[i].Owner || len(rec.Waiters) > 0) {
			err = fmt.Errorf("want %v alone, got %+v", grants[i], rec)
		}
		return err
	})
	all(func(i int) error {
		_, err := l.Acquire(Bounded(t), Request(reqs[i].Key))
		if errors.Is(err, lock.ErrHeld) {
			return nil
		}
		return fmt.Errorf("want ErrHeld, got: %w", err)
	})
	all(func(i int) error {
		if i%(crowd/6) != 0 {
			return nil // a store whose List is a scan has all that a busy machine can do
		}
		n := 0
		for rec, err := range l.List(Bounded(t), "broken ") {
			if err != nil {
				return err
			}
			if len(rec.Holders) == 1 {
				n++
			}
		}
		if n != crowd {
			return fmt.Errorf("want %d, got %d", crowd, n)
		}
		return nil
	})
	all(func(i int) error { return l.Release(Bounded(t), grants[i]) })
	all(acquire)
	all(func(i int) error { return l.ForceRelease(Bounded(t), reqs[i].Key, reqs[i].Owner) })
	for i := range crowd {
		rec := Inspect(t, l, reqs[i].Key)
		require.Empty(t, rec.Holders)
		require.Empty(t, rec.Waiters)
	}
}
