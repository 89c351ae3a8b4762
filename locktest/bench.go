package locktest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// RunBenchmarks measures the store behind h, with 1, 16 and 128 callers:
//
//   - Uncontended: each caller acquires and releases a key of its own.
//   - Contended: all callers, from up to four processes, wait for one key, and release it as
//     soon as they have it. The time is that from one grant to the next. Three more metrics are
//     reported: grants per second (hand-overs/s); the least served caller's grants divided by
//     the most served one's (fairness, 1 at best); and the 99th percentile of the wait as a
//     multiple of its mean.
//   - Renewals: each caller renews a grant of its own.
//
// It uses neither Harness.Around nor Harness.Faults.
func RunBenchmarks(b *testing.B, h Harness) {
	b.Helper()
	if err := h.check(); err != nil {
		b.Fatal(err)
	}
	for _, m := range []struct {
		name string
		run  func(*bench)
	}{
		{"Uncontended", (*bench).uncontended},
		{"Contended", (*bench).contended},
		{"Renewals", (*bench).renewals},
	} {
		for _, callers := range []int{1, 16, 128} {
			b.Run(fmt.Sprintf("%s/callers=%d", m.name, callers), func(b *testing.B) {
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				m.run(&bench{B: b, ctx: ctx, cancel: cancel, callers: callers, ttl: 30 * h.ttl(), open: h.New(b)})
			})
		}
	}
}

// bench is one measurement.
type bench struct {
	*testing.B
	ctx     context.Context
	cancel  context.CancelFunc
	callers int
	ttl     time.Duration
	open    func() lock.Locker
}

// share runs b.N operations, each by whichever caller is free. The first error ends it,
// and b.ctx.
func (b *bench) share(op func(caller int) error) {
	b.Helper()
	var left atomic.Int64
	left.Store(int64(b.N))
	var all sync.WaitGroup
	var first sync.Once
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.callers {
		all.Go(func() {
			for left.Add(-1) >= 0 {
				if err := op(i); err != nil {
					left.Store(0)
					first.Do(func() { b.Error(err) })
					b.cancel()
				}
			}
		})
	}
	all.Wait()
	b.StopTimer()
	if b.Failed() {
		b.FailNow()
	}
}

func (b *bench) request(key string) lock.Request {
	return lock.Request{Key: key, Owner: rand.Text(), TTL: b.ttl, Wait: true}
}

// keys are names of their own for the callers.
func (b *bench) keys() []string {
	ks := make([]string, b.callers)
	for i := range ks {
		ks[i] = fmt.Sprintf("bench-%d", i)
	}
	return ks
}

func (b *bench) uncontended() {
	l, keys := b.open(), b.keys()
	b.share(func(i int) error {
		g, err := l.Acquire(b.ctx, b.request(keys[i]))
		if err != nil {
			return err
		}
		return l.Release(b.ctx, g)
	})
}

func (b *bench) renewals() {
	l, keys := b.open(), b.keys()
	grants := make([]lock.Grant, b.callers)
	for i := range grants {
		g, err := l.Acquire(b.ctx, b.request(keys[i]))
		if err != nil {
			b.Fatal(err)
		}
		grants[i] = g
	}
	b.share(func(i int) (err error) {
		grants[i], err = l.Renew(b.ctx, grants[i])
		return err
	})
}

// contended begins when all callers are in line, behind one who is not counted.
func (b *bench) contended() {
	ls := make([]lock.Locker, min(b.callers, 4))
	for i := range ls {
		ls[i] = b.open()
	}
	blocker, err := ls[0].Acquire(b.ctx, b.request("bench"))
	if err != nil {
		b.Fatal(err)
	}
	inLine := make(chan struct{}, b.callers)
	released := make(chan error, 1)
	go func() { released <- b.begin(inLine, ls[0], blocker) }()
	waits := make([][]time.Duration, b.callers) // each by its caller alone
	b.share(func(i int) error {
		l, asked, req := ls[i%len(ls)], time.Now(), b.request("bench")
		if len(waits[i]) == 0 {
			req.Waiting = func(lock.Record) { inLine <- struct{}{} }
		}
		g, err := l.Acquire(b.ctx, req)
		if err != nil {
			return err
		}
		waits[i] = append(waits[i], time.Since(asked))
		return l.Release(b.ctx, g)
	})
	if err := <-released; err != nil {
		b.Fatal(err)
	}
	if b.callers > 1 {
		b.fairness(waits)
	}
}

// begin releases the key when all callers are in line, unless b.ctx ends before. Until then it
// renews blocker, since lining up may take longer than its TTL.
func (b *bench) begin(inLine <-chan struct{}, l lock.Locker, blocker lock.Grant) error {
	every := time.NewTicker(b.ttl / 3)
	defer every.Stop()
	for left := min(b.N, b.callers); left > 0; {
		select {
		case <-inLine:
			left--
		case <-every.C:
			if g, err := l.Renew(b.ctx, blocker); err == nil {
				blocker = g
			} else if errors.Is(err, lock.ErrLost) {
				return err
			}
		case <-b.ctx.Done():
			return b.ctx.Err()
		}
	}
	b.ResetTimer()
	return l.Release(b.ctx, blocker)
}

// fairness reports what the callers of one key had of it.
func (b *bench) fairness(waits [][]time.Duration) {
	least, most := b.N, 0
	var sum time.Duration
	var all []time.Duration
	for _, w := range waits {
		least, most = min(least, len(w)), max(most, len(w))
		for _, d := range w {
			sum += d
		}
		all = append(all, w...)
	}
	slices.Sort(all)
	p99, mean := all[len(all)*99/100], sum/time.Duration(len(all))
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "hand-overs/s")
	b.ReportMetric(float64(least)/float64(most), "fairness")
	b.ReportMetric(float64(p99)/float64(mean), "p99/mean-wait")
}
