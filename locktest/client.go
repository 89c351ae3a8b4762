package locktest

import (
	"context"
	"iter"
	"testing"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// RunClient checks what a [lock.Client] promises, over the store of h. It has a group of
// subtests each for Do, DoAll, minimum holds, waiting, leases, nested calls, deadlocks, Close,
// the events of an Observer, Lead, Watch and semaphores. It does not call Held, Inspect, List and
// ForceRelease. Make [Run] pass first: here a fault of the store looks like one of the Client.
//
// Skips and time limits are as in Run; Harness.Skips may name these cases too.
func RunClient(t *testing.T, h Harness) {
	t.Helper()
	// Some of them, with semaphores above all, are work enough for a machine by themselves.
	h.runGroups(t, clientGroups(), func(group) bool { return true })
}

func clientGroups() []group {
	return []group{
		doing(), doingAll(), minimumHolds(), waits(), leases(), nesting(), deadlocks(), closing(), observing(),
		leading(), watches(), semaphores(),
	}
}

// client is what the cases try of a [lock.Client], and lease what they try of a
// [lock.Lease]: the suite's own tests put broken ones in their place.
type client interface {
	Do(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error
	TryDo(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error
	DoAll(ctx context.Context, keys []string, fn doAllFunc, opts ...lock.Option) error
	Lock(ctx context.Context, key string, opts ...lock.Option) (lease, error)
	TryLock(ctx context.Context, key string, opts ...lock.Option) (lease, error)
	Lead(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error
	Watch(ctx context.Context, key string) iter.Seq2[lock.Record, error]
	Close(ctx context.Context) error
}

type (
	doFunc    func(ctx context.Context, l lease) error
	doAllFunc func(ctx context.Context, ls []lease) error
)

type lease interface {
	Key() string
	Owner() string
	Token() lock.Token
	Err() error
	Deadline() time.Time
	Context() context.Context
	Renew(ctx context.Context) error
	Release(ctx context.Context) error
}

// newClient is lock.New with an Observer. It is closed when the case ends.
func newClient(e *env, l lock.Locker, seen lock.Observer, opts ...lock.Option) client {
	c := lock.New(l, append(opts, lock.WithObserver(seen))...)
	e.tb.Cleanup(func() {
		e.cancel() // with the functions of Do that are still running
		ctx, cancel := context.WithTimeout(context.Background(), e.farewell())
		defer cancel()
		_ = c.Close(ctx)
	})
	return realClient{c}
}

type realClient struct{ *lock.Client }

func (c realClient) Do(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
	return c.Client.Do(ctx, key, fn.real, opts...)
}

func (c realClient) TryDo(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
	return c.Client.TryDo(ctx, key, fn.real, opts...)
}

func (c realClient) DoAll(ctx context.Context, keys []string, fn doAllFunc, opts ...lock.Option) error {
	return c.Client.DoAll(ctx, keys, func(ctx context.Context, ls []*lock.Lease) error {
		all := make([]lease, len(ls))
		for i, l := range ls {
			all[i] = l
		}
		return fn(ctx, all)
	}, opts...)
}

func (c realClient) Lock(ctx context.Context, key string, opts ...lock.Option) (lease, error) {
	return orNil(c.Client.Lock(ctx, key, opts...))
}

func (c realClient) TryLock(ctx context.Context, key string, opts ...lock.Option) (lease, error) {
	return orNil(c.Client.TryLock(ctx, key, opts...))
}

func (c realClient) Lead(ctx context.Context, key string, fn doFunc, opts ...lock.Option) error {
	return c.Client.Lead(ctx, key, fn.real, opts...)
}

func (f doFunc) real(ctx context.Context, l *lock.Lease) error { return f(ctx, l) }

// orNil keeps a nil pointer out of the interface.
func orNil(l *lock.Lease, err error) (lease, error) {
	if l == nil {
		return nil, err
	}
	return l, err
}
