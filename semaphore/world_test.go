package semaphore_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
	"github.com/seed-215fdefa/lock/semaphore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	ttl = 10 * time.Second
	key = "api"
)

// world is a store in fake time, and the processes on it.
type world struct {
	t     *testing.T
	store *memory.Locker

	mu       sync.Mutex // guards both
	in, most int        // how many permits functions have that may work: now, at most
}

// bubble runs f in fake time, and checks that nothing is left in the store afterwards.
func bubble(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, store: memory.New()}
		f(t, w)
		synctest.Wait()
		for rec, err := range w.store.List(t.Context(), "") {
			require.NoError(t, err)
			require.Empty(t, rec, "left in the store")
		}
	})
}

// process is a Client of its own, and the way to the store, which can be cut.
type process struct {
	*memory.Locker
	*lock.Client
	w     *world
	dead  chan struct{} // closed by die
	calls atomic.Int64  // of Acquire
}

func (w *world) process(opts ...lock.Option) *process {
	p := &process{Locker: w.store.Open(), w: w, dead: make(chan struct{})}
	p.Client = lock.New(p, append([]lock.Option{lock.WithTTL(ttl)}, opts...)...)
	require.NoError(w.t, p.Err())
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		_ = p.Client.Close(ctx)
	})
	return p
}

func (p *process) semaphore(n int, opts ...lock.Option) *semaphore.Semaphore {
	s := semaphore.New(p.Client, key, n, opts...)
	require.NoError(p.w.t, s.Err())
	return s
}

// die cuts the process off: nothing it does reaches the store, and nothing comes from there.
func (p *process) die() { close(p.dead) }

func (p *process) cut(ctx context.Context) bool {
	select {
	case <-p.dead:
		<-ctx.Done()
		return true
	default:
		return false
	}
}

func (p *process) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	p.calls.Add(1)
	if p.cut(ctx) {
		return lock.Grant{}, ctx.Err()
	}
	lost := req.Lost
	req.Lost = func(r lock.LostReason) {
		select {
		case <-p.dead:
		default:
			if lost != nil {
				lost(r)
			}
		}
	}
	return p.Locker.Acquire(ctx, req)
}

func (p *process) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	if p.cut(ctx) {
		return lock.Grant{}, ctx.Err()
	}
	return p.Locker.Renew(ctx, g)
}

func (p *process) Release(ctx context.Context, g lock.Grant) error {
	if p.cut(ctx) {
		return ctx.Err()
	}
	return p.Locker.Release(ctx, g)
}

func (p *process) Inspect(ctx context.Context, key string) (lock.Record, error) {
	return p.Locker.Inspect(ctx, key)
}

func (p *process) Capabilities() lock.Capabilities { return p.Locker.Capabilities() }

// Close is the Client's; the Locker's does nothing that a test would miss.
func (p *process) Close(ctx context.Context) error { return p.Client.Close(ctx) }

// Do functions.

var errWork = errors.New("the work went wrong")

// counts is a function of Do that keeps count of permits, while its ctx lasts, for d.
func (w *world) counts(d time.Duration) func(context.Context, []semaphore.Permit) error {
	return func(ctx context.Context, ps []semaphore.Permit) error {
		w.count(len(ps))
		defer w.count(-len(ps))
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
		return nil
	}
}

func (w *world) count(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.in += n
	w.most = max(w.most, w.in)
}

// work is a Do that goes on beside the test.
type work struct {
	t       *testing.T
	ctx     context.Context // the function's
	permits []semaphore.Permit
	inside  chan struct{}
	out     chan error
	done    chan struct{}
	err     error // once done is closed
}

type doing func(context.Context, int, func(context.Context, []semaphore.Permit) error) error

func (w *world) do(ctx context.Context, do doing, weight int) *work {
	k := &work{t: w.t, inside: make(chan struct{}), out: make(chan error, 1), done: make(chan struct{})}
	go func() {
		defer close(k.done)
		k.err = do(ctx, weight, func(ctx context.Context, ps []semaphore.Permit) error {
			k.ctx, k.permits = ctx, ps
			close(k.inside)
			select {
			case err := <-k.out:
				return err
			case <-w.t.Context().Done():
				return nil
			}
		})
	}()
	return k
}

// holds is a Do whose function runs.
func (w *world) holds(s *semaphore.Semaphore, weight int) *work {
	w.t.Helper()
	k := w.do(w.t.Context(), s.Do, weight)
	k.runs()
	return k
}

// waits is a Do that stands in line.
func (w *world) waits(ctx context.Context, s *semaphore.Semaphore, weight int) *work {
	w.t.Helper()
	k := w.do(ctx, s.Do, weight)
	k.pending()
	return k
}

func (k *work) runs() {
	k.t.Helper()
	synctest.Wait()
	select {
	case <-k.inside:
	default:
		select {
		case <-k.done:
			require.FailNow(k.t, "the function does not run", "%v", k.err)
		default:
			require.FailNow(k.t, "the function does not run")
		}
	}
}

func (k *work) pending() {
	k.t.Helper()
	synctest.Wait()
	select {
	case <-k.inside:
		require.FailNow(k.t, "the function runs")
	case <-k.done:
		require.FailNow(k.t, "Do has returned", "%v", k.err)
	default:
	}
}

// ended is what Do returned.
func (k *work) ended() error {
	k.t.Helper()
	synctest.Wait()
	select {
	case <-k.done:
	default:
		require.FailNow(k.t, "Do has not returned")
	}
	return k.err
}

func (k *work) leave() {
	k.t.Helper()
	k.out <- nil
	require.NoError(k.t, k.ended())
}

// all runs fs beside each other.
func all(n int, f func(i int)) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { f(i) })
	}
	wg.Wait()
}
