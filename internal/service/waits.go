package service

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// maxHeartbeat is how long a waiter that has died may stay in line, or less if its TTL is.
const maxHeartbeat = 5 * time.Second

// The parts of a heartbeat. A client that dies when it has sent a poll is found out when that is
// over and no other came; then its place, or its grant, ends in the store. Together they must be
// no more than a heartbeat.
const (
	pollPercent  = 25 // how long a poll lasts
	gapPercent   = 30 // how long the replica waits for the next one
	placePercent = 45 // the TTL with which the replica stands in line
)

func percent(n int, ttl time.Duration) time.Duration {
	return min(ttl, maxHeartbeat) * time.Duration(n) / 100
}

// waits are those who stand in line at this replica.
type waits struct {
	locker              lock.Locker
	early               bool // the store has EarlyLoss
	minTTL              time.Duration
	most, mostPerClient int

	base   context.Context // of all acquisitions; ends with the server
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex // guards the rest, and fields of each wait
	all     map[place]*wait
	clients map[string]int // how many wait, by client

	undone memory[struct{}]        // owners whose late requests are refused
	lost   memory[lock.LostReason] // what the store has told early, for their next renewal
}

// place is who waits for what.
type place struct{ key, owner string }

// wait is an acquisition that goes on between the polls of its client, and outlives them by a gap.
type wait struct {
	place
	shared bool
	client string
	cancel context.CancelFunc
	placed chan struct{} // closed when it stands in line
	done   chan struct{} // closed when the acquisition is over
	grant  lock.Grant    // the result, once done is closed
	err    error
	record lock.Record // of those in front, once placed is closed, for the first poll

	polls int         // that are under way; waits.mu guards it
	gap   *time.Timer // runs while polls is 0
}

func newWaits(l lock.Locker) *waits {
	ws := &waits{locker: l, most: 100_000, all: make(map[place]*wait), clients: make(map[string]int)}
	c := l.Capabilities()
	ws.early, ws.minTTL = c.EarlyLoss, c.MinTTL
	ws.base, ws.cancel = context.WithCancel(context.Background())
	return ws
}

func (ws *waits) stopped() bool { return ws.base.Err() != nil }

func (ws *waits) close() {
	ws.mu.Lock()
	ws.cancel()
	ws.mu.Unlock()
	ws.wg.Wait()
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, w := range ws.all {
		ws.remove(w)
	}
}

// spawn runs f, which ends with base, and which close waits for. It reports false once the server
// has stopped.
func (ws *waits) spawn(f func()) bool {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.stopped() {
		return false
	}
	ws.wg.Go(f)
	return true
}

// join adds a poll to the wait of p, or returns nil if there is none.
func (ws *waits) join(p place) *wait {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return ws.attach(p)
}

// attach is join. A wait whose grant is over it gives up: that was lost before its client had verified
// it, maybe by way of another replica. ws.mu is held.
func (ws *waits) attach(p place) *wait {
	w := ws.all[p]
	switch {
	case w == nil:
		return nil
	case w.over():
		ws.remove(w)
		return nil
	}
	w.polls++
	w.gap.Stop()
	return w
}

// over reports whether w has been granted for a TTL that has passed.
func (w *wait) over() bool {
	select {
	case <-w.done:
		return w.err == nil && storekit.Elapsed(w.grant.Start) >= w.grant.TTL
	default:
		return false
	}
}

// begin stands in line for req, which the client asked for, with a poll added. Another request of
// the owner may have been quicker: then it joins its wait, which is not fresh.
func (ws *waits) begin(req lock.Request, client string) (w *wait, fresh bool, err error) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	p := place{req.Key, req.Owner}
	if w := ws.attach(p); w != nil {
		return w, false, nil
	}
	if err := ws.refuse(p); err != nil {
		return nil, false, err
	}
	switch {
	case ws.stopped():
		return nil, false, &Problem{Kind: KindStopping}
	case ws.most > 0 && len(ws.all) >= ws.most:
		return nil, false, &Problem{Kind: KindCrowded, Detail: fmt.Sprintf("%d wait here already", ws.most)}
	case ws.mostPerClient > 0 && ws.clients[client] >= ws.mostPerClient:
		return nil, false, &Problem{Kind: KindCrowded, Detail: fmt.Sprintf("%d of this client wait here already", ws.mostPerClient)}
	}
	ctx, cancel := context.WithCancel(storekit.ReuseOwner(ws.base))
	w = &wait{
		place: p, shared: req.Shared, client: client, cancel: cancel, polls: 1,
		placed: make(chan struct{}), done: make(chan struct{}),
	}
	w.gap = time.AfterFunc(time.Hour, func() { ws.expire(w) })
	w.gap.Stop()
	ws.all[p] = w
	ws.clients[client]++
	req.TTL = min(req.TTL, max(percent(placePercent, req.TTL), ws.minTTL))
	req.Lost = ws.notice(p)
	req.Waiting = func(rec lock.Record) {
		w.record = rec
		close(w.placed)
	}
	ws.wg.Go(func() {
		w.grant, w.err = ws.locker.Acquire(ctx, req)
		close(w.done)
	})
	return w, true, nil
}

// leave ends a poll. With the last one the gap begins.
func (ws *waits) leave(w *wait, gap time.Duration) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	w.polls--
	if w.polls == 0 && ws.all[w.place] == w {
		w.gap.Reset(gap)
	}
}

// expire gives w up, unless it has been polled again.
func (ws *waits) expire(w *wait) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if w.polls == 0 {
		ws.remove(w)
	}
}

// undo gives up what p waits for, and refuses what its owner may still ask for. It returns when the
// acquisition is over, so that it cannot overtake what undoes it in the store.
func (ws *waits) undo(p place) {
	ws.mu.Lock()
	ws.undone.add(p, struct{}{}) // first: else a poll that comes late begins another wait
	ws.mu.Unlock()
	w := ws.forget(p.key, p.owner)
	if w != nil {
		<-w.done
	}
}

// check returns an error if p has been undone.
func (ws *waits) check(p place) error {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	return ws.refuse(p)
}

// refuse is check. ws.mu is held.
func (ws *waits) refuse(p place) error {
	if _, undone := ws.undone.get(p); undone {
		return storekit.ErrUndone
	}
	return nil
}

// notice returns a Request.Lost that remembers why p's grant is lost, or nil if it would not be
// called.
func (ws *waits) notice(p place) func(lock.LostReason) {
	if !ws.early {
		return nil
	}
	return func(reason lock.LostReason) {
		ws.mu.Lock()
		defer ws.mu.Unlock()
		ws.lost.add(p, reason)
	}
}

// explain gives a loss of which the store does not know the reason any more the one that it has
// told early.
func (ws *waits) explain(p place, err error) error {
	var lost *lock.LostError
	if !errors.As(err, &lost) || lost.Reason != 0 {
		return err
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	reason, _ := ws.lost.get(p)
	return &lock.LostError{Reason: reason, Token: lost.Token, Err: lost.Err}
}

// forget gives up the wait of an owner that has its grant, or wants none any more.
func (ws *waits) forget(key, owner string) *wait {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	w := ws.all[place{key, owner}]
	if w != nil {
		ws.remove(w)
	}
	return w
}

// drop gives w up.
func (ws *waits) drop(w *wait) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.remove(w)
}

// remove gives w up, if that has not happened yet. It undoes nothing: see the package comment.
// ws.mu is held.
func (ws *waits) remove(w *wait) {
	if ws.all[w.place] != w {
		return
	}
	w.gap.Stop()
	w.cancel()
	delete(ws.all, w.place)
	if ws.clients[w.client]--; ws.clients[w.client] == 0 {
		delete(ws.clients, w.client)
	}
}
