package dynamo_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/dynamo"
	"github.com/seed-215fdefa/lock/internal/storekit"
	"github.com/seed-215fdefa/lock/internal/storetest"
)

// both runs f for exclusive and for shared requests.
func both(t *testing.T, f func(t *testing.T, mode func(lock.Request) lock.Request)) {
	t.Run("exclusive", func(t *testing.T) { f(t, func(r lock.Request) lock.Request { return r }) })
	t.Run("shared", func(t *testing.T) { f(t, storetest.Shared) })
}

// TestOneWrite: uncontended, an acquire is one write, and so are a renewal and a release;
// nothing else is sent, to a key of which nobody has heard or to one that was held before.
// In the first second after a grant a renewal may take two: DynamoDB's time becomes better
// known, and a lease is never cut short.
func TestOneWrite(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		p := sharedWorld(t).open(t)
		p.http.sent()
		for n := range 3 {
			g := storetest.Acquire(t, p, mode(storetest.Request("k")))
			whole := "PutItem"
			if g.Shared {
				whole = "UpdateItem"
			}
			require.Equal(t, map[string]int{whole: 1}, p.http.sent())
			p.http.shift(always(time.Duration(n+1) * 2 * time.Second))
			storetest.Inspect(t, p, "other") // tells p that the time has come
			p.http.sent()
			g = storetest.Renew(t, p, g)
			require.Equal(t, map[string]int{"UpdateItem": 1}, p.http.sent())
			storetest.Release(t, p, g)
			require.Equal(t, map[string]int{whole: 1}, p.http.sent())
		}
	})
}

// TestRefusalIsOneWrite: the failed condition brings the holder's record.
func TestRefusalIsOneWrite(t *testing.T) {
	t.Parallel()
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		w := sharedWorld(t)
		a, b := w.open(t), w.open(t)
		req := mode(storetest.Request("k"))
		req.Metadata = map[string]string{"host": "web-1"}
		g := storetest.Acquire(t, a, req)
		b.http.sent()
		rec := storetest.Refused(t, b, storetest.Request("k"))
		require.Equal(t, map[string]int{"PutItem": 1}, b.http.sent())
		require.Len(t, rec.Holders, 1)
		require.Equal(t, g.Owner, rec.Holders[0].Owner)
		require.Equal(t, g.Token, rec.Holders[0].Token)
		require.Equal(t, req.Metadata, rec.Holders[0].Metadata)
	})
}

// meter is a client that asks what its requests have consumed.
type meter struct {
	*dynamodb.Client
	mu           sync.Mutex // guards the rest
	reads, write float64
}

func (m *meter) UpdateItem(ctx context.Context, in *dynamodb.UpdateItemInput, opts ...func(*dynamodb.Options)) (*dynamodb.UpdateItemOutput, error) {
	in.ReturnConsumedCapacity = types.ReturnConsumedCapacityTotal
	out, err := m.Client.UpdateItem(ctx, in, opts...)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.write++ // a condition that fails costs a unit for an item of up to 1 KiB
	} else {
		m.write += aws.ToFloat64(out.ConsumedCapacity.CapacityUnits)
	}
	return out, err
}

func (m *meter) PutItem(ctx context.Context, in *dynamodb.PutItemInput, opts ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	in.ReturnConsumedCapacity = types.ReturnConsumedCapacityTotal
	out, err := m.Client.PutItem(ctx, in, opts...)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.write++
	} else {
		m.write += aws.ToFloat64(out.ConsumedCapacity.CapacityUnits)
	}
	return out, err
}

func (m *meter) GetItem(ctx context.Context, in *dynamodb.GetItemInput, opts ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	in.ReturnConsumedCapacity = types.ReturnConsumedCapacityTotal
	out, err := m.Client.GetItem(ctx, in, opts...)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		m.reads += aws.ToFloat64(out.ConsumedCapacity.CapacityUnits)
	}
	return out, err
}

func (m *meter) used() (reads, writes float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reads, m.write
}

// TestCostOfWaiting: who waits writes at its beginning and at its end, and reads in
// between, at half a unit each and about twice a second; 20 waiters of one Locker do no
// more than one.
func TestCostOfWaiting(t *testing.T) {
	t.Parallel()
	for name, n := range map[string]int{"one waiter": 1, "twenty waiters": 20} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := sharedWorld(t)
			holder := w.open(t)
			m := &meter{Client: client(t, w.server.Addr())}
			l := dynamo.New(m, w.table, dynamo.WithPrefix(w.prefix))
			defer func() { _ = l.Close() }()
			g := storetest.Acquire(t, holder, storetest.Request("k"))
			storetest.Inspect(t, l, "other")
			_, before := m.used()
			var waiting []*storetest.Waiting
			for range n {
				waiting = append(waiting, storetest.Waits(t, l, storetest.Request("k")))
			}
			readsBefore, _ := m.used()
			begin := time.Now()
			time.Sleep(5 * time.Second)
			reads, writes := m.used()
			seconds := time.Since(begin).Seconds()
			require.InDelta(t, 1, writes-before, 0, "write units while the lock is held")
			// Pauses begin at 0.1 to 0.2 s and grow to 0.1 to 1 s.
			perSecond := (reads - readsBefore) / seconds
			t.Logf("%d waiting: %.2f read units in a second, no write units", n, perSecond)
			require.Less(t, perSecond, 2.5, "read units in a second")

			storetest.Release(t, holder, g)
			for _, w := range waiting {
				storetest.Release(t, l, w.Granted(t))
			}
			_, writes = m.used()
			require.LessOrEqual(t, writes-before, float64(1+3*n), "write units for all")
		})
	}
}

// TestUndoOfAKnownOutcome: a wait that was canceled while nothing was under way leaves
// nothing, so its undo is not sent.
func TestUndoOfAKnownOutcome(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, b := w.open(t), w.open(t, dynamo.WithPoll(time.Minute, time.Minute))
	storetest.Acquire(t, a, storetest.Request("k"))
	waits := storetest.Waits(t, b, storetest.Request("k"))
	waits.Cancel()
	waits.End(t)
	require.ErrorIs(t, waits.Err, context.Canceled)
	require.ErrorIs(t, waits.Err, lock.ErrHeld)
	b.http.sent()
	storetest.Release(t, b, lock.Grant{Key: "k", Owner: waits.Owner})
	require.Empty(t, b.http.sent())
}

// TestUndoOfAnEarlierCall: an owner has been granted the lock, does not know of it, and stands in line
// for it, as a client of the lock service that missed a reply. Its undo ends that grant.
func TestUndoOfAnEarlierCall(t *testing.T) {
	t.Parallel()
	p := sharedWorld(t).open(t)
	req := storetest.Request("k")
	storetest.Acquire(t, p, req)
	ctx, cancel := context.WithCancel(storekit.ReuseOwner(storetest.Bounded(t)))
	req.Wait = true
	req.Waiting = func(lock.Record) { cancel() }
	_, err := p.Acquire(ctx, req)
	require.ErrorIs(t, err, context.Canceled)
	storetest.Release(t, p, lock.Grant{Key: "k", Owner: req.Owner})
	require.Empty(t, storetest.Inspect(t, p, "k").Holders)
}

// TestHint: a release wakes who waits in the same process, though it would look again only
// in a minute.
func TestHint(t *testing.T) {
	t.Parallel()
	p := sharedWorld(t).open(t, dynamo.WithPoll(time.Minute, time.Minute))
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		for name, release := range map[string]func(lock.Grant) error{
			"release": func(g lock.Grant) error { return p.Release(storetest.Bounded(t), g) },
			"undo": func(g lock.Grant) error {
				return p.Release(storetest.Bounded(t), lock.Grant{Key: g.Key, Owner: g.Owner})
			},
			"force": func(g lock.Grant) error { return p.ForceRelease(storetest.Bounded(t), g.Key, g.Owner) },
		} {
			key := t.Name() + name
			g := storetest.Acquire(t, p, mode(storetest.Request(key)))
			next := storetest.Waits(t, p, storetest.Request(key))
			require.NoError(t, release(g))
			storetest.Release(t, p, next.Granted(t))
		}
	})
}

// TestLineOfOneLocker: its waiters are served in order of arrival, and each of them who
// leaves makes room.
func TestLineOfOneLocker(t *testing.T) {
	t.Parallel()
	p := sharedWorld(t).open(t)
	g := storetest.Acquire(t, p, storetest.Request("k"))
	var line []*storetest.Waiting
	for range 8 {
		line = append(line, storetest.Waits(t, p, storetest.Request("k")))
	}
	for _, i := range []int{0, 3, 7} {
		line[i].Cancel()
		line[i].End(t)
		require.ErrorIs(t, line[i].Err, lock.ErrHeld)
	}
	storetest.Release(t, p, g)
	for _, i := range []int{1, 2, 4, 5, 6} {
		g := line[i].Granted(t)
		for _, later := range line[i+1 : 7] {
			select {
			case <-later.Done:
				require.ErrorIs(t, later.Err, context.Canceled, "served too early")
			default:
			}
		}
		storetest.Release(t, p, g)
	}
}

// TestTurns: nobody keeps a lock from others by handing it on within one Locker, or by taking
// it again and again.
func TestTurns(t *testing.T) {
	t.Parallel()
	for name, callers := range map[string]int{"one caller": 1, "a crowd": 4} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := sharedWorld(t)
			busy, other := w.open(t), w.open(t)
			ctx, cancel := context.WithCancel(storetest.Bounded(t))
			var crowd sync.WaitGroup
			for range callers {
				crowd.Go(func() { again(ctx, busy, func() { time.Sleep(5 * time.Millisecond) }) })
			}
			defer crowd.Wait()
			defer cancel()
			storetest.Eventually(t, "the crowd to hold it", func() bool { return len(storetest.Inspect(t, other, "k").Holders) > 0 })
			for range 3 {
				storetest.Release(t, other, storetest.Await(t, other, storetest.Request("k")))
			}
		})
	}
}

// TestAllLockersAreServed, of which each has a line that would keep the lock. It is so by chance
// too, without turns: those have tests of their own, TestYield and TestKeepTurn.
func TestAllLockersAreServed(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	ctx, cancel := context.WithCancel(storetest.Bounded(t))
	defer cancel()
	var served [4]atomic.Int32
	var crowd sync.WaitGroup
	defer crowd.Wait()
	defer cancel()
	for i := range served {
		p := w.open(t)
		for range 2 {
			crowd.Go(func() { again(ctx, p, func() { served[i].Add(1) }) })
		}
	}
	for round := range int32(3) {
		storetest.Eventually(t, "all to be served", func() bool {
			for i := range served {
				if served[i].Load() <= round {
					return false
				}
			}
			return true
		})
	}
}

// again waits for "k" and releases it, until ctx ends.
func again(ctx context.Context, l lock.Locker, held func()) {
	for ctx.Err() == nil {
		req := storetest.Request("k")
		req.Wait = true
		g, err := l.Acquire(ctx, req)
		if err != nil {
			_ = l.Release(context.WithoutCancel(ctx), lock.Grant{Key: req.Key, Owner: req.Owner})
			continue
		}
		held()
		_ = l.Release(context.WithoutCancel(ctx), g)
	}
}
