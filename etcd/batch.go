package etcd

import (
	"context"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
)

const (
	// batchSize is how many transactions one request carries at most. A server takes 128
	// operations by default, counted along the nesting.
	batchSize = 60
	// batchesInFlight bounds what a Locker asks of the server at once.
	batchesInFlight = 16
	batchStuck      = 50 * time.Millisecond
)

// lane sends transactions of concurrent callers in batches: while one is under way, others
// gather for the next. That is sound since each part has its own condition, on keys of its own,
// and etcd decides all conditions before it does anything: a part sees the state in front of
// all others. Only two that change the line of one lock must not travel together: both would
// find it free, or have the same revision, which is the token.
type lane struct {
	l     *Locker
	stuck time.Duration // after which a batch no longer holds others up

	mu     sync.Mutex // guards the rest, and the fields of batches
	queue  []*part
	flying int // batches under way that are not stuck
}

// part is one caller's transaction.
type part struct {
	conditions []clientv3.Cmp
	then, or   []clientv3.Op
	line       string        // the base of the lock whose line it may change; "": none
	every      time.Duration // how long it goes unanswered before a copy is sent
	alone      bool          // it does not wait for others

	batch *batch // nil: it has not been sent
	left  bool   // its caller has gone
	done  chan struct{}
	outcome
	err error
}

// outcome is what came of a transaction, at revision rev.
type outcome struct {
	ok    bool
	rev   int64
	ops   []*pb.ResponseOp
	doubt bool // it may take effect yet, maybe once more: also beside an error
}

// batch is a request that carries some parts.
type batch struct {
	parts  []*part
	left   int // how many of their callers have gone
	ctx    context.Context
	cancel context.CancelFunc
}

// send sends p, alone or with others, and again if it must.
func (n *lane) send(ctx context.Context, p *part) (outcome, error) {
	p.done = make(chan struct{})
	n.mu.Lock()
	if p.alone {
		n.fly([]*part{p})
	} else {
		n.queue = append(n.queue, p)
		n.pump()
	}
	n.mu.Unlock()
	select {
	case <-p.done:
		return p.outcome, p.err
	case <-ctx.Done():
		return n.leave(p, ctx.Err())
	case <-n.l.ctx.Done():
		return n.leave(p, n.l.over())
	}
}

// leave gives p up, which has no effect if it is still in the queue.
func (n *lane) leave(p *part, err error) (outcome, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-p.done: // in the same moment
		return p.outcome, p.err
	default:
	}
	p.left = true
	if p.batch != nil {
		if p.batch.left++; p.batch.left == len(p.batch.parts) {
			p.batch.cancel()
		}
		return outcome{doubt: true}, err
	}
	for i, q := range n.queue {
		if q == p {
			n.queue = append(n.queue[:i:i], n.queue[i+1:]...)
			break
		}
	}
	return outcome{}, err
}

// pump sends what has gathered if nothing is under way, and more than one batch if they need
// not wait for each other: what is left by one would only be later in the next.
func (n *lane) pump() {
	for len(n.queue) > 0 && n.flying < batchesInFlight && (n.flying == 0 || n.overflows()) {
		n.fly(n.take())
	}
}

// overflows reports whether one batch cannot carry the queue.
func (n *lane) overflows() bool {
	if len(n.queue) > batchSize {
		return true
	}
	lines := make(map[string]bool, len(n.queue))
	for _, p := range n.queue {
		if p.line != "" && lines[p.line] {
			return true
		}
		lines[p.line] = true
	}
	return false
}

// take takes the next batch out of the queue.
func (n *lane) take() (parts []*part) {
	lines := make(map[string]bool)
	var rest []*part
	for i, p := range n.queue {
		if len(parts) == batchSize || i == 4*batchSize {
			rest = append(rest, n.queue[i:]...)
			break
		}
		if p.line != "" && lines[p.line] {
			rest = append(rest, p)
			continue
		}
		lines[p.line] = true
		parts = append(parts, p)
	}
	n.queue = rest
	return parts
}

// fly sends parts.
func (n *lane) fly(parts []*part) {
	b := &batch{parts: parts}
	b.ctx, b.cancel = context.WithTimeout(n.l.ctx, lock.Patience)
	for _, p := range parts {
		p.batch = b
	}
	n.flying++
	stuck := time.AfterFunc(n.stuck, n.land)
	if !n.l.spawn(func() {
		defer b.cancel()
		n.run(b)
		if stuck.Stop() {
			n.land()
		}
	}) { // nobody waits for it any more
		stuck.Stop()
		n.flying--
		b.cancel()
	}
}

// land gives the lane to those that have gathered.
func (n *lane) land() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.flying--
	n.pump()
}

func (n *lane) run(b *batch) {
	every := lock.Patience
	for _, p := range b.parts {
		every = min(every, p.every)
	}
	resp, copies, err := insist(b.ctx, every, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return b.commit(ctx, n.l.cli.KV)
	})
	err = n.l.heard(err)
	n.mu.Lock()
	defer n.mu.Unlock()
	if definite(err) && len(b.parts) > 1 { // of which another part may be the cause
		for _, p := range b.parts {
			if !p.left {
				n.fly([]*part{p})
			}
		}
		return
	}
	for i, p := range b.parts {
		p.doubt = copies > 1 || err != nil && !definite(err)
		if p.err = err; err == nil {
			p.read(resp, i, len(b.parts) == 1)
		}
		close(p.done)
	}
}

// commit sends a part as the transaction that it is, several as parts of one.
func (b *batch) commit(ctx context.Context, kv clientv3.KV) (*clientv3.TxnResponse, error) {
	if p := b.parts[0]; len(b.parts) == 1 {
		return kv.Txn(ctx).If(p.conditions...).Then(p.then...).Else(p.or...).Commit()
	}
	var ops []clientv3.Op
	for _, p := range b.parts {
		ops = append(ops, clientv3.OpTxn(p.conditions, p.then, p.or))
	}
	return kv.Txn(ctx).Then(ops...).Commit()
}

// read takes what came of the ith part from the answer.
func (p *part) read(resp *clientv3.TxnResponse, i int, single bool) {
	p.ok, p.rev, p.ops = resp.Succeeded, resp.Header.Revision, resp.Responses
	if !single {
		r := resp.Responses[i].GetResponseTxn()
		p.ok, p.ops = r.Succeeded, r.Responses
	}
}

// insist has f send a request, and a copy of it every time that it has not been answered for a
// while: the client asks its members in turn, so a copy does not meet one that is frozen. None is
// given up before another is answered, so a cluster that is but slow loses nothing, and after
// three they become rarer. At once, but not often, it sends a copy when a connection breaks. It
// returns how many were sent.
func insist[T any](ctx context.Context, every time.Duration, f func(context.Context) (T, error)) (v T, copies int, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		v   T
		err error
	}
	answers, pending := make(chan answer), 0
	send := func() {
		copies++
		pending++
		go func() {
			v, err := f(ctx)
			select {
			case answers <- answer{v, err}:
			case <-ctx.Done():
			}
		}()
	}
	late := time.NewTimer(every)
	defer late.Stop()
	send()
	for broken := 0; ; {
		select {
		case a := <-answers:
			pending--
			switch {
			case !isBroken(a.err):
				return a.v, copies, a.err
			case broken < breaks:
				broken++
				send()
			case pending == 0:
				return a.v, copies, a.err
			}
			err = a.err
		case <-late.C:
			send()
			late.Reset(every << min(max(copies-3, 0), 2))
		case <-ctx.Done():
			if err == nil {
				err = ctx.Err()
			}
			return v, copies, err
		}
	}
}
