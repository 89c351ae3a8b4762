package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

const (
	// batchSize is how many parts one request carries at most. A server takes 128 operations
	// by default, counted along the nesting.
	batchSize = 60
	// batchesInFlight bounds what a Locker asks of the server at once.
	batchesInFlight = 32
	// batchStuck is after which time a batch no longer holds others up.
	batchStuck = 50 * time.Millisecond
)

// lane sends requests of concurrent callers in batches: while one is under way, others gather
// for the next. That is sound since each part that writes has its own condition, on keys of its
// own, and etcd decides all conditions before it does anything: a part sees the state in front of
// all others. Only two that change the line of one lock must not travel together: both would
// find it free, or have the same revision, which is the token.
type lane struct {
	l     *Locker
	stuck time.Duration // batchStuck, except in tests

	mu      sync.Mutex // guards the rest, and the fields of parts and batches
	queue   []*part
	flying  int       // batches under way that are not stuck
	unheard int       // batches under way
	heard   time.Time // when the server last answered one
}

// part is one caller's request: one transaction, or some reads.
type part struct {
	ops   []clientv3.Op
	line  string        // the base of the lock whose line it may change; "": none
	every time.Duration // how long it goes unanswered before a copy is sent
	alone bool          // it does not wait for others

	batch *batch // nil: it has not been sent
	left  bool   // its caller has gone
	done  chan struct{}
	out   outcome
	err   error
}

// transaction is a part that does then if the conditions hold, and else or.
func transaction(conditions []clientv3.Cmp, then, or []clientv3.Op) []clientv3.Op {
	return []clientv3.Op{clientv3.OpTxn(conditions, then, or)}
}

// outcome is what came of a part at revision rev.
type outcome struct {
	rev   int64
	ops   []*pb.ResponseOp
	doubt bool // it may take effect yet, maybe once more: also beside an error
	full  bool // a server that is full has refused it before, and may have done it all the same
}

// did is what came of the transaction that a part was, or that is the first of its operations.
func did(ops []*pb.ResponseOp) (ok bool, inner []*pb.ResponseOp) {
	r := ops[0].GetResponseTxn()
	return r.Succeeded, r.Responses
}

// batch is a request that carries some parts.
type batch struct {
	parts  []*part
	sent   time.Time
	left   int // how many of their callers have gone
	ctx    context.Context
	cancel context.CancelFunc
}

// send sends p, alone or with others, and again if it must.
func (n *lane) send(ctx context.Context, p part) (outcome, error) {
	q := &p
	q.done = make(chan struct{})
	n.mu.Lock()
	if q.alone {
		n.fly([]*part{q})
	} else {
		n.queue = append(n.queue, q)
		n.pump()
	}
	n.mu.Unlock()
	select {
	case <-q.done:
		return q.out, q.err
	case <-ctx.Done():
		return n.leave(q, n.l.because(ctx.Err()))
	case <-n.l.ctx.Done():
		return n.leave(q, n.l.over())
	}
}

// leave gives p up, which has no effect if it is still in the queue.
func (n *lane) leave(p *part, err error) (outcome, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-p.done: // in the same moment
		return p.out, p.err
	default:
	}
	p.left = true
	if p.batch == nil {
		if storekit.Elapsed(n.heard) < lock.Patience {
			err = fmt.Errorf("%w: %w", storekit.ErrQueued, err)
		}
		return outcome{}, err
	}
	err = n.young(err, p.batch.sent)
	if p.batch.left++; p.batch.left == len(p.batch.parts) {
		p.batch.cancel()
	}
	return outcome{doubt: true}, err
}

// young is err, of a request that was given up after it was sent, as [storekit.ErrQueued] if that
// was not long ago and others are answered: in a crowd a waiter asks several times before it stands
// in line, and each time others come first. n.mu is held.
func (n *lane) young(err error, sent time.Time) error {
	if storekit.Elapsed(sent) < lock.Patience/2 && storekit.Elapsed(n.heard) < lock.Patience {
		return storekit.Queued(err)
	}
	return err
}

// pump sends what has gathered if nothing is under way, and more than one batch if one cannot
// carry all: what it leaves would only be later in the next.
func (n *lane) pump() {
	for n.unheard < batchesInFlight {
		parts, rest := n.pick()
		if len(parts) == 0 || n.flying > 0 && len(rest) == 0 {
			return
		}
		n.queue = rest
		n.fly(parts)
	}
}

// pick is what the next batch carries, and what it leaves.
func (n *lane) pick() (parts, rest []*part) {
	lines := make(map[string]bool)
	for i, p := range n.queue {
		switch {
		case p.left:
		case i == 4*batchSize:
			return parts, append(rest, n.queue[i:]...)
		case len(parts) == batchSize || p.line != "" && lines[p.line]:
			rest = append(rest, p)
		default:
			lines[p.line] = true
			parts = append(parts, p)
		}
	}
	return parts, rest
}

// fly sends parts.
func (n *lane) fly(parts []*part) {
	b := &batch{parts: parts, sent: time.Now()}
	b.ctx, b.cancel = context.WithTimeout(n.l.ctx, lock.Patience)
	for _, p := range parts {
		p.batch = b
	}
	n.flying++
	n.unheard++
	stuck := time.AfterFunc(n.stuck, func() { n.land(1, 0) })
	if !n.l.spawn(func() {
		defer b.cancel()
		n.run(b)
		if stuck.Stop() {
			n.land(1, 1)
		} else {
			n.land(0, 1)
		}
	}) { // nobody waits for it any more
		stuck.Stop()
		b.cancel()
	}
}

// land gives the lane to those that have gathered. A batch that is stuck does so, but is not
// answered: a server that is merely slow must not be sent more and more.
func (n *lane) land(flying, unheard int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.flying -= flying
	n.unheard -= unheard
	n.pump()
}

func (n *lane) run(b *batch) {
	every := lock.Patience
	var ops []clientv3.Op
	for _, p := range b.parts {
		every, ops = min(every, p.every), append(ops, p.ops...)
	}
	resp, copies, err := insist(b.ctx, every, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return n.l.cli.Txn(ctx).Then(ops...).Commit()
	})
	if errors.Is(err, errUnanswered) {
		err = n.l.because(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err == nil || definite(err) {
		n.heard = time.Now()
	}
	apart := len(b.parts) > 1 && definite(err) && !isBusy(err) // of which another part may be the cause
	for _, p := range b.parts {
		p.out.doubt = p.out.doubt || copies > 1 || err != nil && !definite(err)
		p.out.full = p.out.full || isFull(err)
		if apart {
			if !p.left {
				n.fly([]*part{p})
			}
			continue
		}
		if p.err = err; err == nil {
			p.out.rev, p.out.ops = resp.Header.Revision, resp.Responses[:len(p.ops)]
			resp.Responses = resp.Responses[len(p.ops):]
		}
		close(p.done)
	}
}

// insist has f send a request, and a copy of it every time that it has not been answered for a
// while: the client asks its members in turn, so a copy does not meet one that is frozen. None is
// given up before another is answered, so a cluster that is merely slow loses nothing, and after
// three they become rarer. At once, but not often, it sends a copy when a connection breaks. It
// returns how many were sent.
func insist[T any](ctx context.Context, every time.Duration, f func(context.Context) (T, error)) (v T, copies int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers, pending := make(chan func() (T, error)), 0
	send := func() {
		copies++
		pending++
		go func() {
			v, err := f(ctx)
			select {
			case answers <- func() (T, error) { return v, err }:
			case <-ctx.Done():
			}
		}()
	}
	late := time.NewTimer(every)
	defer late.Stop()
	send()
	for broken := 0; ; {
		select {
		case answer := <-answers:
			pending--
			v, err = answer()
			if isBroken(err) && broken < breaks {
				broken++
				send()
			} else if !isBroken(err) || pending == 0 {
				return v, copies, err
			}
		case <-late.C:
			send()
			late.Reset(every << min(max(copies-3, 0), 2))
		case <-ctx.Done():
			if err == nil {
				err = errUnanswered
			}
			return v, copies, err
		}
	}
}
