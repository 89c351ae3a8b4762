//go:build linux

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/semaphore"
)

// worker does random ops, one after the other.
type worker struct {
	*child
	rng  *rand.Rand
	long bool // holds for about a TTL, on keys that only its like take
}

// work ends when it is told to stop, or the Client is closed.
func (c *child) work(i int) {
	w := worker{child: c, rng: rand.New(rand.NewPCG(c.Seed, uint64(c.Proc)<<16|uint64(i))), long: i == 0}
	for !c.stop.Load() {
		err := w.op()
		switch {
		case errors.Is(err, lock.ErrClosed):
			return
		case classOf(err) == "store", errors.Is(err, lock.ErrUnavailable):
			time.Sleep(between(w.rng, 20*time.Millisecond, 100*time.Millisecond))
		}
		time.Sleep(between(w.rng, 0, 6*time.Millisecond))
	}
}

func between(rng *rand.Rand, a, b time.Duration) time.Duration {
	return a + time.Duration(rng.Int64N(int64(b-a)+1))
}

// longest is the bound of an op that has no other.
const longest = 12 * time.Second

// op is one call of a Client, with what it does under the lock.
func (w *worker) op() (err error) {
	if w.rng.IntN(8) == 0 && !w.long {
		return w.permitOp()
	}
	e := event{Kind: kOp, Op: w.number(), Key: w.key()}
	ttl := between(w.rng, w.TTL[0], w.TTL[1])
	e.TTL, e.Text = int64(ttl), []string{"do", "do", "lock", "lock", "trydo", "trylock", "lead", "doall"}[w.rng.IntN(8)]
	e.Shared = e.Text != "lead" && w.rng.IntN(6) == 0
	opts := w.options(e, ttl)
	ctx, cancel := context.WithTimeout(context.WithValue(context.Background(), opKey{}, e.Op), longest)
	defer cancel()
	bound, tries := longest, false
	switch {
	case strings.HasPrefix(e.Text, "try"):
		bound, tries = ttl, true // a Client gives a try no longer
	case e.Text != "lead" && w.rng.IntN(2) == 0: // WithWait(0) is a try
		wait := max(0, between(w.rng, -100*time.Millisecond, 3*time.Second))
		opts = append(opts, lock.WithWait(wait))
		bound = wait
		if wait == 0 {
			bound, tries = ttl, true
		}
	case e.Text == "lead" || w.rng.IntN(2) == 0: // a candidate would go on until longest
		bound = between(w.rng, 5*time.Millisecond, 3*time.Second)
		var stop context.CancelFunc
		if w.rng.IntN(2) == 0 {
			ctx, stop = context.WithTimeout(ctx, bound)
		} else {
			ctx, stop = context.WithCancel(ctx)
			defer time.AfterFunc(bound, stop).Stop()
		}
		defer stop()
	}
	if !tries && w.conn.locker.Capabilities().Priority && w.rng.IntN(4) == 0 {
		opts = append(opts, lock.WithHeadStart(between(w.rng, 0, ttl)))
	}
	e.At = now()
	e.Bound = e.At + int64(bound)
	err = w.call(ctx, &e, ttl, opts)
	w.ended(e, err)
	return err
}

func (w *worker) ended(e event, err error) {
	e.End, e.Err = now(), classOf(err)
	if err != nil {
		e.Text += ": " + text(err)
	}
	w.journal.add(e)
}

// permitOp is one call of the process's semaphore.
func (w *worker) permitOp() (err error) {
	weight := 1 + w.rng.IntN(permits)
	e := event{Kind: kOp, Op: w.number(), Key: semaphoreName, Text: "permits"}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	do, bound := w.semaphore.Do, between(w.rng, 5*time.Millisecond, 3*time.Second)
	if w.rng.IntN(4) == 0 { // it tries one slot after the other, at worst
		do, bound, e.Text = w.semaphore.TryDo, permits*w.TTL[1], "trypermits"
	} else {
		defer time.AfterFunc(bound, cancel).Stop()
	}
	e.At = now()
	e.Bound = e.At + int64(bound)
	err = do(ctx, weight, func(ctx context.Context, ps []semaphore.Permit) error {
		e.Value = 1
		for _, p := range ps {
			w.has(e, p.Lease)
		}
		select {
		case <-ctx.Done():
		case <-time.After(max(w.length(w.TTL[0]), between(w.rng, 0, 30*time.Millisecond))): // so that they run out
		}
		for _, p := range ps {
			w.journal.add(event{Kind: kDone, Op: e.Op, Key: p.Lease.Key(), Token: p.Lease.Token()})
		}
		return nil
	})
	w.ended(e, err)
	return err
}

// number is of no other op, nor of a value that another round writes.
func (w *worker) number() int64 { return int64(w.Proc)<<32 | w.ops.Add(1) }

func (w *worker) key() string {
	if w.long {
		return keyName(shortKeys + w.rng.IntN(longKeys))
	}
	return keyName(w.rng.IntN(1 + w.rng.IntN(shortKeys))) // the first are the most contended
}

func (w *worker) options(e event, ttl time.Duration) []lock.Option {
	opts := []lock.Option{lock.WithTTL(ttl), lock.WithRenewal(w.rng.IntN(25) > 0)}
	if e.Shared {
		opts = append(opts, lock.WithShared())
	}
	if w.rng.IntN(8) == 0 {
		opts = append(opts, lock.WithMetadata(map[string]string{"op": fmt.Sprint(e.Op)}))
	}
	return opts
}

// call takes the lock by the method that e.Text names, and sets e.Value if it got it.
func (w *worker) call(ctx context.Context, e *event, ttl time.Duration, opts []lock.Option) error {
	section := func(ctx context.Context, l *lock.Lease) error {
		e.Value = 1
		err := w.hold(ctx, *e, l, ttl)
		w.journal.add(event{Kind: kDone, Op: e.Op, Key: l.Key(), Token: l.Token()})
		return err
	}
	switch e.Text {
	case "do":
		return w.client.Do(ctx, e.Key, section, opts...)
	case "trydo":
		return w.client.TryDo(ctx, e.Key, section, opts...)
	case "lead":
		return w.client.Lead(ctx, e.Key, section, opts...)
	case "doall":
		return w.client.DoAll(ctx, []string{e.Key, w.key(), w.key()}, func(ctx context.Context, ls []*lock.Lease) error {
			return w.all(ctx, ls, section)
		}, opts...)
	}
	take := w.client.Lock
	if e.Text == "trylock" {
		take = w.client.TryLock
	}
	l, err := take(ctx, e.Key, opts...)
	if err != nil {
		return err
	}
	err = section(l.Context(), l)
	rctx, stop := context.WithTimeout(context.WithoutCancel(ctx), between(w.rng, time.Millisecond, 2*time.Second))
	defer stop()
	if w.rng.IntN(20) == 0 {
		stop() // the release goes on in the background
	}
	return errors.Join(err, l.Release(rctx))
}

// all is the section of several keys, one after the other, until ctx ends: it ends with each
// of the leases.
func (w *worker) all(ctx context.Context, ls []*lock.Lease, section func(context.Context, *lock.Lease) error) error {
	slices.SortFunc(ls, func(a, b *lock.Lease) int { return strings.Compare(a.Key(), b.Key()) })
	for _, l := range slices.Compact(ls) { // a key that was given twice
		if ctx.Err() != nil {
			break
		}
		if err := section(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// hold is the critical section: one round or two.
func (w *worker) hold(ctx context.Context, e event, l *lock.Lease, ttl time.Duration) error {
	w.has(e, l)
	r := round{worker: w, l: l, work: w.length(ttl), heedless: w.rng.IntN(8) == 0}
	for range 1 + w.rng.IntN(5)/4 {
		r.value = w.number() // e.Op may have several terms, and several keys
		if err := r.do(ctx, e.Shared); err != nil {
			return err
		}
	}
	return nil
}

// has notes that e's section has l, and when l ends.
func (w *worker) has(e event, l *lock.Lease) {
	w.journal.add(event{Kind: kHold, Op: e.Op, Key: l.Key(), Owner: l.Owner(), Token: l.Token(), Shared: e.Shared})
	context.AfterFunc(l.Context(), func() {
		at := now()
		err := context.Cause(l.Context())
		w.journal.add(event{Kind: kEnded, At: at, Op: e.Op, Key: l.Key(), Token: l.Token(), Err: classOf(err), Text: text(err)})
	})
}

// length is how long a section takes: mostly little, at times more than a TTL.
func (w *worker) length(ttl time.Duration) time.Duration {
	n := w.rng.IntN(1000)
	switch {
	case w.long:
		return between(w.rng, ttl/20, 3*ttl/2)
	case n < 850:
		return between(w.rng, 0, time.Millisecond)
	case n < 970:
		return between(w.rng, time.Millisecond, 15*time.Millisecond)
	case n < 994:
		return between(w.rng, 15*time.Millisecond, 300*time.Millisecond)
	}
	return between(w.rng, ttl/2, 5*ttl/2)
}

// round is a read and a write of both registers of the key: the one behind the store's own
// fence, and one that only the lock protects.
type round struct {
	*worker
	l        *lock.Lease
	value    int64 // to write: unique
	work     time.Duration
	heedless bool // goes on after a loss: that is what fences are for
}

// do returns an error if the outcome of its write is unknown: nothing may follow it.
func (r *round) do(ctx context.Context, shared bool) error {
	bare := r.getBare()
	if shared {
		r.sleep(ctx)
		return nil
	}
	fenced, err := r.get(ctx)
	if err != nil {
		return nil
	}
	r.sleep(ctx)
	if r.rng.IntN(20) == 0 {
		rctx, cancel := context.WithTimeout(ctx, time.Second)
		_ = r.l.Renew(rctx)
		cancel()
	}
	if !r.heedless && (ctx.Err() != nil || r.l.Err() != nil) {
		return nil
	}
	r.setBare(bare)
	return r.set(ctx, fenced)
}

func (r *round) get(ctx context.Context) (value int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	e := event{Kind: kFenceRead, At: now(), Key: r.l.Key(), Token: r.l.Token()}
	v, err := r.conn.get(ctx, e.Key, e.Token)
	e.Value, _ = strconv.ParseInt(v, 10, 64) // "" is 0: nothing was written yet
	e.Err, e.Text = classOf(err), text(err)
	r.journal.add(e)
	return e.Value, err
}

func (r *round) set(ctx context.Context, prev int64) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	e := event{Kind: kFenceSend, At: now(), Key: r.l.Key(), Token: r.l.Token(), Value: r.value, Prev: prev}
	r.journal.add(e)
	err := r.conn.set(ctx, e.Key, e.Token, fmt.Sprint(r.value))
	e.Kind, e.Err, e.Text = kFenceWrite, classOf(err), text(err)
	r.journal.add(e)
	if err != nil && !errors.Is(err, lock.ErrStale) {
		return fmt.Errorf("unknown outcome: %w", err)
	}
	return nil
}

// The bare registers are numbers in a file, each read and written by one system call.
const digits = 20

func (r *round) getBare() (value int64) {
	b := make([]byte, digits)
	_, _ = r.bare.ReadAt(b, keyNumber(r.l.Key())*digits)
	value, _ = strconv.ParseInt(string(b), 10, 64) // not written yet: 0
	return value
}

func (r *round) setBare(prev int64) {
	e := event{Kind: kBareWrite, At: now(), Key: r.l.Key(), Token: r.l.Token(), Value: r.value, Prev: prev}
	_, _ = r.bare.WriteAt(fmt.Appendf(nil, "%0*d", digits, r.value), keyNumber(e.Key)*digits)
	r.journal.add(e)
}

func (r *round) sleep(ctx context.Context) {
	if r.heedless {
		ctx = context.Background()
	}
	select {
	case <-ctx.Done():
	case <-time.After(r.work):
	}
}
