package lock

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBoundContext(t *testing.T) {
	type key struct{}
	why := errors.New("why")
	for name, asked := range map[string]bool{"asked for Done": true, "asked for Err only": false} {
		for name2, detached := range map[string]bool{"detached": true, "child": false} {
			t.Run(name+", "+name2, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					parent, cancel := context.WithCancelCause(context.WithValue(t.Context(), key{}, 1))
					defer cancel(nil)
					bound := func() *boundContext {
						b := &boundContext{parent: parent, detached: detached, deadline: time.Now().Add(time.Minute)}
						if asked {
							_ = b.Done()
						}
						return b
					}
					b := bound()
					require.NoError(t, b.Err())
					require.Equal(t, 1, b.Value(key{}))
					time.Sleep(time.Minute)
					synctest.Wait()
					require.Equal(t, context.DeadlineExceeded, b.Err())
					<-b.Done()
					b.end()

					b = bound()
					child, stop := context.WithCancel(b)
					defer stop()
					cancel(why)
					if detached {
						require.NoError(t, b.Err())
						require.NoError(t, context.Cause(b))
						require.NoError(t, child.Err())
					} else {
						require.Equal(t, context.Canceled, b.Err())
						require.Equal(t, why, context.Cause(b))
						require.ErrorIs(t, child.Err(), context.Canceled)
					}
					b.end()
					<-b.Done()
					<-child.Done()
					require.Equal(t, context.Canceled, b.Err())
					b = &boundContext{parent: parent, detached: detached, deadline: time.Now().Add(time.Minute)}
					b.end()
					require.Equal(t, context.Canceled, b.Err(), "kept by a store, and asked later")
				})
			})
		}
	}
}

func TestBoundContextDeadline(t *testing.T) {
	soon := time.Now().Add(time.Minute)
	parent, cancel := context.WithDeadline(t.Context(), soon)
	defer cancel()
	for _, c := range []struct {
		own      time.Time
		detached bool
		want     time.Time
	}{
		{soon.Add(1), false, soon}, {soon.Add(-1), false, soon.Add(-1)}, {soon.Add(1), true, soon.Add(1)},
	} {
		got, ok := (&boundContext{parent: parent, deadline: c.own, detached: c.detached}).Deadline()
		require.True(t, ok)
		require.Equal(t, c.want, got)
	}
}
