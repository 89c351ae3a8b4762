package locktest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	lock "github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/semaphore"
)

// The keys of a round: those that owners and Clients ask for, and those of the semaphore.
const (
	lineKey       = 100         // of the semaphore
	slotKey       = lineKey + 1 // the first of its slots
	semaphoreName = "permits"
	jobName       = "job" // the metadata that says whose lease it is
)

// allKeys are those of pl.
func (pl plan) allKeys() (keys []int) {
	for key := range pl.keys {
		keys = append(keys, key)
	}
	for key := lineKey; pl.permits > 0 && key <= lineKey+pl.permits; key++ {
		keys = append(keys, key)
	}
	return keys
}

func keyName(key int) string {
	switch {
	case key >= slotKey:
		return fmt.Sprintf("%s#semaphore/slot/%d", semaphoreName, key-slotKey)
	case key == lineKey:
		return semaphoreName + "#semaphore/line"
	}
	return fmt.Sprintf("key-%d", key)
}

// keyOf is the key that has name, which may be a slot that there should not be.
func keyOf(name string) int {
	i := strings.LastIndexAny(name, "-/")
	n, err := strconv.Atoi(name[i+1:])
	switch {
	case err != nil:
		return lineKey
	case name[i] == '/':
		return slotKey + n
	}
	return n
}

// worker is a Client on a process of a round, and its semaphore. Its Locker is a recording one, so
// what the Client does at the store is in the history like what owners without one do.
type worker struct {
	client  client
	permits permits
	ctx     context.Context // ends with the process
	cancel  context.CancelFunc
	l       lock.Locker
}

// crashed reports whether w's process is no more.
func (w *worker) crashed() bool { return w.ctx.Err() != nil }

// job is a call of a worker, with what its function saw.
type job struct {
	step
	w       *worker
	call    *call
	fn      *call // nil if the function was not called
	names   []string
	owners  []string      // of its leases
	stopped time.Duration // when the function's ctx ended; 0: it has not
}

// worker returns that of process proc as it is now.
func (r *round) worker(proc int) *worker {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.procs[proc]
	if w := r.workers[proc]; w != nil && w.l == l {
		return w
	}
	w := &worker{l: l}
	w.ctx, w.cancel = context.WithCancel(r.ctx)
	rec := &recording{Locker: l, r: r, w: w, proc: proc}
	c := lock.New(rec, lock.WithTTL(r.ttl))
	e := newEnv(r.tb, r.tb, r.h, testCase{})
	w.client = realClient{c}
	if r.h.newClient != nil {
		w.client = r.h.newClient(e, rec, unseen{})
	}
	if r.h.newSemaphore != nil {
		w.permits = r.h.newSemaphore(e, c, semaphoreName, r.plan.permits)
	} else {
		w.permits = semaphore.New(c, semaphoreName, r.plan.permits)
	}
	r.workers[proc] = w
	r.tb.Cleanup(func() { // a Client that is left alone goes on for a TTL
		w.cancel()
		ctx, cancel := context.WithTimeout(context.Background(), r.patience()-starved(r.fake))
		defer cancel()
		_, _ = c.Close(ctx), w.client.Close(ctx)
	})
	return w
}

// unseen is an Observer that does not look.
type unseen struct{}

func (unseen) Observe(context.Context, lock.Event) {}

// crash is the end of process proc as far as its Client is concerned: no request of it is sent
// any more.
func (r *round) crash(s step) {
	w := r.worker(s.proc)
	c := r.add(&call{op: "the Client crashes", proc: s.proc, key: -1})
	w.cancel()
	r.finish(context.Background(), c, func() {})
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.workers[s.proc] == w {
		delete(r.workers, s.proc)
	}
}

// dismiss closes the Clients that are left: their releases may be under way.
func (r *round) dismiss() {
	ctx, cancel := context.WithTimeout(r.ctx, 2*r.ttl)
	defer cancel()
	var closing sync.WaitGroup
	for _, w := range r.workers {
		closing.Go(func() { _ = w.client.Close(ctx) })
	}
	closing.Wait()
}

// work does s, and notes what came of it.
func (r *round) work(s step) {
	s.shared, s.patient = s.shared && r.caps.Shared, s.patient && r.caps.FIFO
	if !r.caps.Priority {
		s.head = 0
	}
	j := &job{step: s, w: r.worker(s.proc)}
	if s.patient { // it must come to an end long before, if nobody waits for ever
		j.limit = 60 * r.ttl
	}
	ctx, cancel := context.WithCancel(j.w.ctx)
	defer cancel()
	switch {
	case s.cancel:
		defer time.AfterFunc(j.limit, cancel).Stop()
	case s.wait && !s.bounded:
		ctx, cancel = context.WithTimeout(ctx, j.limit)
		defer cancel()
	}
	j.call = r.add(&call{op: j.String(), proc: s.proc, key: -1})
	r.history.mu.Lock()
	j.call.limit = j.call.begin + j.limit + j.lasts + lock.Patience
	r.jobs = append(r.jobs, j)
	r.history.mu.Unlock()
	err := r.do(ctx, j)
	r.finish(ctx, j.call, func() { j.call.err = err })
}

func (j *job) String() string {
	name := "DoAll"
	switch {
	case j.kind == limits:
		name = "semaphore: Do"
	case len(j.set) == 1:
		name = "Do"
	}
	if j.kind == limits {
		name = fmt.Sprintf("%s with %d permits", name, j.weight)
	} else {
		name = fmt.Sprintf("%s %d with keys %v, TTL %v", name, j.id, j.set, j.ttl)
	}
	if j.shared {
		name += ", shared"
	}
	if j.wait {
		name += ", waits"
	}
	return name
}

func (r *round) do(ctx context.Context, j *job) error {
	if j.kind == limits {
		do := j.w.permits.Do
		if !j.wait {
			do = j.w.permits.TryDo
		}
		return do(ctx, j.weight, func(ctx context.Context, ps []semaphore.Permit) error {
			return r.inside(ctx, j, len(ps), func(i int) lease { return ps[i].Lease })
		})
	}
	opts := []lock.Option{lock.WithTTL(j.ttl), lock.WithMetadata(map[string]string{jobName: strconv.Itoa(j.id)})}
	if j.shared {
		opts = append(opts, lock.WithShared())
	}
	if j.head > 0 {
		opts = append(opts, lock.WithHeadStart(j.head))
	}
	if j.bounded {
		opts = append(opts, lock.WithWait(j.limit))
	}
	one := func(ctx context.Context, l lease) error {
		return r.inside(ctx, j, 1, func(int) lease { return l })
	}
	switch {
	case len(j.set) == 1 && !j.wait:
		return j.w.client.TryDo(ctx, keyName(j.set[0]), one, opts...)
	case len(j.set) == 1:
		return j.w.client.Do(ctx, keyName(j.set[0]), one, opts...)
	case !j.wait:
		opts = append(opts, lock.WithWait(0))
	}
	names := make([]string, len(j.set))
	for i, key := range j.set {
		names[i] = keyName(key)
	}
	return j.w.client.DoAll(ctx, names, func(ctx context.Context, ls []lease) error {
		return r.inside(ctx, j, len(ls), func(i int) lease { return ls[i] })
	}, opts...)
}

// inside is the function of j's call, which has n leases.
func (r *round) inside(ctx context.Context, j *job, n int, lease func(i int) lease) error {
	c := r.add(&call{op: fmt.Sprintf("the function of %q", j), proc: j.proc, key: -1})
	r.history.mu.Lock()
	j.fn = c
	for i := range n {
		l := lease(i)
		j.names, j.owners = append(j.names, l.Key()), append(j.owners, l.Owner())
	}
	r.history.mu.Unlock()
	defer context.AfterFunc(ctx, func() {
		r.history.mu.Lock()
		defer r.history.mu.Unlock()
		j.stopped = r.now()
	})()
	select {
	case <-time.After(j.lasts):
	case <-ctx.Done():
	}
	r.finish(ctx, c, func() {})
	if j.fruitful {
		return nil
	}
	return errWork
}

// recording is a process whose Client is a worker's: it notes what goes to the store, and after
// a crash nothing goes there.
type recording struct {
	lock.Locker
	r    *round
	w    *worker
	proc int
}

// Unwrap finds the store's Admin.
func (c *recording) Unwrap() lock.Locker { return c.Locker }

// Acquire implements [lock.Locker].
func (c *recording) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	ctx, cancel, err := c.sent(ctx)
	if err != nil {
		return lock.Grant{}, err
	}
	defer cancel()
	t := &tenure{owner: req.Owner, worker: c.w, step: step{
		kind: acquires, proc: c.proc, key: keyOf(req.Key), ttl: req.TTL, shared: req.Shared, wait: req.Wait, head: req.HeadStart,
	}}
	t.job, _ = strconv.Atoi(req.Metadata[jobName])
	c.r.history.mu.Lock()
	t.name = fmt.Sprintf("c%d", len(c.r.lives))
	c.r.history.mu.Unlock()
	c.r.born(t)
	return c.r.ask(ctx, c.Locker, t, req)
}

// Renew implements [lock.Locker].
func (c *recording) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	return c.send(ctx, renews, g)
}

// Release implements [lock.Locker].
func (c *recording) Release(ctx context.Context, g lock.Grant) error {
	kind := releases
	if g.Token == 0 {
		kind = undoes
	}
	_, err := c.send(ctx, kind, g)
	return err
}

func (c *recording) send(ctx context.Context, kind actKind, g lock.Grant) (lock.Grant, error) {
	ctx, cancel, err := c.sent(ctx)
	if err != nil {
		return lock.Grant{}, err
	}
	defer cancel()
	c.r.history.mu.Lock()
	t := c.r.owners[g.Owner]
	c.r.history.mu.Unlock()
	return c.r.send(ctx, c.Locker, t, act{kind: kind}, g)
}

// sent is the ctx of what is sent: it ends with the process.
func (c *recording) sent(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if c.w.crashed() {
		return nil, nil, errCrashed
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(c.w.ctx, cancel)
	return ctx, func() { stop(); cancel() }, nil
}

var errCrashed = errors.New("the process has crashed")
