package etcd

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
)

const (
	// laneBatch is how many transactions one request carries at most. A server takes 128
	// operations by default, counted along the nesting.
	laneBatch = 60
	// laneStuck is after which time a request no longer holds others up.
	laneStuck  = 50 * time.Millisecond
	laneYields = 3
	// laneTimeout is after which time nobody is thought to wait for a request any more.
	laneTimeout = time.Minute
	// lanePatience is how long who joins a line waits for a handover to go with: that one
	// need not share the server's disk with it then, and every other waiter gains.
	lanePatience = 2 * time.Millisecond
)

// lane sends transactions of concurrent callers together, as parts of one: while one is under
// way, others gather for the next. That is sound
// since each part has its own condition, on keys of its own, and etcd decides all conditions
// before it does anything: a part sees the state in front of all others. Only two that create
// entries of the same lock may not be together, since both would have the same revision.
type lane struct {
	l *Locker

	mu    sync.Mutex // guards the rest
	busy  bool       // a request is under way that is not stuck
	armed bool       // a timer will have the queue sent
	crowd bool       // the last request was of many callers: they will be back at once
	queue []*part
}

// part is one caller's transaction.
type part struct {
	conditions []clientv3.Cmp
	then, or   []clientv3.Op
	creates    string // the base of the lock of which it may create an entry; "": none
	patient    bool   // it may wait for a handover to go with

	done chan struct{}
	outcome
	err error
}

// outcome is what came of a transaction, at revision rev.
type outcome struct {
	ok  bool
	rev int64
	ops []*pb.ResponseOp
}

// errApart tells a caller to send its part by itself: the server refused the whole, of which
// another part may be the cause.
var errApart = errors.New("to be sent apart")

// commit sends p alone.
func (p *part) commit(ctx context.Context, kv clientv3.KV) (outcome, error) {
	resp, err := kv.Txn(ctx).If(p.conditions...).Then(p.then...).Else(p.or...).Commit()
	if err != nil {
		return outcome{}, err
	}
	return outcome{resp.Succeeded, resp.Header.Revision, resp.Responses}, nil
}

// send sends p, alone or with others. An error for which neverSent holds says that p has not
// been sent.
func (n *lane) send(ctx context.Context, p *part) (outcome, error) {
	n.mu.Lock()
	switch {
	case n.clashes(p):
		n.mu.Unlock()
		return p.commit(ctx, n.l.cli.KV)
	case p.patient && !n.armed:
		n.armed = true
		time.AfterFunc(lanePatience, n.flush)
	case !p.patient && !n.busy && !n.crowd && len(n.queue) == 0:
		n.busy = true
		n.mu.Unlock()
		defer n.hold()()
		return p.commit(ctx, n.l.cli.KV)
	}
	p.done = make(chan struct{})
	n.queue = append(n.queue, p)
	if !p.patient && !n.busy {
		n.busy = true
		n.next()
	}
	n.mu.Unlock()
	return n.await(ctx, p)
}

// ahead sends p at once, though the lane may be busy, and takes along who joins the same line.
func (n *lane) ahead(ctx context.Context, base string, p *part) (outcome, error) {
	n.mu.Lock()
	for i, q := range n.queue {
		if q.creates != base {
			continue
		}
		batch := []*part{p, q}
		p.done = make(chan struct{})
		if !n.l.spawn(func() { n.together(batch) }) {
			break
		}
		n.queue = append(n.queue[:i:i], n.queue[i+1:]...)
		n.mu.Unlock()
		return n.await(ctx, p)
	}
	n.mu.Unlock()
	return p.commit(ctx, n.l.cli.KV)
}

// await returns what came of p, which others send.
func (n *lane) await(ctx context.Context, p *part) (outcome, error) {
	select {
	case <-p.done:
	case <-ctx.Done():
		return outcome{}, n.leave(p, ctx.Err())
	case <-n.l.ctx.Done():
		return outcome{}, n.leave(p, lock.ErrClosed)
	}
	if errors.Is(p.err, errApart) {
		return p.commit(ctx, n.l.cli.KV)
	}
	return p.outcome, p.err
}

// clashes reports whether p would have to share a revision with another entry of its lock.
func (n *lane) clashes(p *part) bool {
	if p.creates == "" {
		return false
	}
	for _, q := range n.queue {
		if q.creates == p.creates {
			return true
		}
	}
	return false
}

// unsent is an error of a part that has not left the queue.
type unsent struct{ error }

func (u unsent) Unwrap() error { return u.error }

func neverSent(err error) bool {
	var u unsent
	return errors.As(err, &u)
}

func (n *lane) leave(p *part, err error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i, q := range n.queue {
		if q == p {
			n.queue = append(n.queue[:i:i], n.queue[i+1:]...)
			return unsent{err}
		}
	}
	return err
}

// hold keeps the lane busy until done is called, or until the request is stuck.
func (n *lane) hold() (done func()) {
	t := time.AfterFunc(laneStuck, n.landed)
	return func() {
		if t.Stop() {
			n.landed()
		}
	}
}

// landed gives the lane to those that have gathered.
func (n *lane) landed() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.busy = len(n.queue) > 0
	if n.busy {
		n.next()
	}
}

// flush sends those whose patience is over.
func (n *lane) flush() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.armed = false
	if !n.busy {
		n.busy = true
		n.next()
	}
}

// next has those sent that have gathered by the time that all goroutines which are ready have
// run: callers that were answered together come back together. The lane is the caller's.
func (n *lane) next() {
	n.busy = n.l.spawn(func() {
		for range laneYields {
			runtime.Gosched()
		}
		n.mu.Lock()
		batch := n.queue[:min(len(n.queue), laneBatch)]
		n.queue = append([]*part(nil), n.queue[len(batch):]...)
		n.crowd = len(batch) > 1
		n.mu.Unlock()
		defer n.hold()()
		if len(batch) > 0 {
			n.together(batch)
		}
	})
}

// together sends some parts as one transaction.
func (n *lane) together(batch []*part) {
	ctx, cancel := context.WithTimeout(n.l.ctx, laneTimeout) // callers have limits of their own
	defer cancel()
	var ops []clientv3.Op
	for _, p := range batch {
		ops = append(ops, clientv3.OpTxn(p.conditions, p.then, p.or))
	}
	resp, err := n.l.cli.Txn(ctx).Then(ops...).Commit()
	if err != nil && ctx.Err() != nil {
		err = errors.Join(errUnanswered, err)
	} else if err != nil && definite(err) {
		err = errApart
	}
	for i, p := range batch {
		if p.err = err; err == nil {
			r := resp.Responses[i].GetResponseTxn()
			p.outcome = outcome{r.Succeeded, resp.Header.Revision, r.Responses}
		}
		close(p.done)
	}
}
