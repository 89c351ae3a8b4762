package etcd

import (
	"context"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock/internal/storekit"
)

const (
	// undoDelay is how long what a failed acquisition has left waits for the caller's undo.
	undoDelay = 250 * time.Millisecond
	// pruneBatch is how many are pruned by one transaction.
	pruneBatch = 30
)

// pruneRetries are the pauses while the server refuses.
var pruneRetries = storekit.Backoff{Min: 100 * time.Millisecond, Max: time.Second}

// pruner deletes what nobody uses any more: grants that have ended, places whose waiters have
// given up, and what a late request may yet bring about. One request at a time does it for all.
type pruner struct {
	l *Locker

	mu      sync.Mutex // guards the rest
	queue   []abandoned
	running bool
}

type abandoned struct {
	h   *hold
	due time.Time
}

// add has what hs left pruned after a while.
func (p *pruner) add(after time.Duration, hs ...*hold) {
	if len(hs) == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range hs {
		p.queue = append(p.queue, abandoned{h, time.Now().Add(after)})
	}
	if !p.running {
		p.running = p.l.spawn(p.run)
	}
}

// next takes those that are due. It ends the run if there is nobody.
func (p *pruner) next() (due []*hold, more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	var rest []abandoned
	for _, x := range p.queue {
		switch {
		case p.l.holds.of(x.h.g.Key, x.h.g.Owner) != x.h && x.h.number >= 0: // it is done
		case len(due) < pruneBatch && !x.due.After(now):
			due = append(due, x.h)
		default:
			rest = append(rest, x)
		}
	}
	p.queue = rest
	p.running = len(due)+len(rest) > 0
	return due, p.running
}

func (p *pruner) run() {
	for failures := 0; ; {
		due, more := p.next()
		if len(due) == 0 {
			if !more || storekit.Sleep(p.l.ctx, undoDelay/4) != nil {
				return
			}
			continue
		}
		switch err := p.prune(due); {
		case err == nil:
			failures = 0
		case classify(err).Passing():
			p.add(0, due...)
			if pruneRetries.Sleep(p.l.ctx, failures) != nil {
				return
			}
			failures++
		default: // a right has been taken away, say: their etcd leases must end them
			for _, h := range due {
				p.l.holds.forget(h, 0)
			}
		}
	}
}

// prune deletes what hs have, and leaves tombstones where there is doubt.
func (p *pruner) prune(hs []*hold) error {
	ctx, cancel := context.WithTimeout(p.l.ctx, requestTimeout)
	defer cancel()
	now, doubt := p.l.holds.now(hs)
	var le *lease
	var err error
	if doubt {
		if le, err = p.l.leases.get(ctx, storekit.UndoLife); err != nil && !isFull(err) {
			return err
		}
	}
	resp, err := p.send(ctx, now, le)
	if isFull(err) && le != nil {
		le = nil
		resp, err = p.send(ctx, now, nil)
	}
	p.l.leases.suspect(err, le)
	if err = p.l.heard(err); err != nil {
		return err
	}
	for i, h := range hs {
		r, rev := resp.Responses[i].GetResponseTxn(), int64(0)
		if r.Succeeded {
			rev = resp.Header.Revision
		} else if r.Responses[0].GetResponseRange().Count > 0 {
			p.l.holds.strange(h) // another Locker has taken the grant into its care
		}
		if now[i].doubt && le == nil {
			p.add(undoDelay, h) // for the tombstone
		} else {
			p.l.holds.forget(h, rev)
		}
	}
	return nil
}

// send deletes, and puts tombstones under le, if not nil.
func (p *pruner) send(ctx context.Context, hs []hold, le *lease) (*clientv3.TxnResponse, error) {
	var ops []clientv3.Op
	for i := range hs {
		h := &hs[i]
		then := []clientv3.Op{clientv3.OpDelete(h.name), h.leaveTail()}
		ops = append(ops, clientv3.OpTxn(h.abandoned(), then, []clientv3.Op{clientv3.OpGet(h.name, clientv3.WithCountOnly())}))
	}
	for i := range hs {
		if h := &hs[i]; h.doubt && le != nil {
			ops = append(ops, h.grave(le))
		}
	}
	return p.l.cli.Txn(ctx).Then(ops...).Commit()
}

// now is what hs are at this moment, and whether there is doubt about any.
func (hs *holds) now(some []*hold) (copies []hold, doubt bool) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	for _, h := range some {
		copies = append(copies, *h)
		doubt = doubt || h.doubt
	}
	return copies, doubt
}

// strange notes that h's name is not its own any more.
func (hs *holds) strange(h *hold) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	h.foreign = true
}

// abandoned is the condition on which h's key is deleted: for a grant, unless another Locker has
// taken it into its care, which its mod revision shows.
func (h *hold) abandoned() []clientv3.Cmp {
	if h.g.Token == 0 {
		return h.sure()
	}
	return []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(h.name), "=", h.mod)}
}
