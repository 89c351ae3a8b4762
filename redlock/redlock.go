package redlock

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/rediskit"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

var (
	_ lock.Locker = (*Locker)(nil)
	_ lock.Admin  = (*Locker)(nil)
)

// Locker keeps locks on a quorum of Redis servers. It is safe for concurrent use. Close it
// before its clients.
type Locker struct {
	prefix           string
	timeout          time.Duration
	maxTTL           time.Duration
	minPoll, maxPoll time.Duration
	err              error // of an option; returned by every call

	nodes   []*node
	quorum  int
	scripts *scripts
	lines   *lines
	tenures tenures
	doubts  storekit.Doubts // owners with a vote that may come again
	closed  atomic.Bool
	closing chan struct{} // closed by Close
	closes  sync.Once

	mu    sync.Mutex // guards twice
	twice error      // two nodes are one server; returned by every call
}

// Option sets up a [Locker].
type Option func(*Locker) error

// WithPrefix sets what the names of all keys begin with. Default "redlock:". Lockers with
// the same prefix on the same nodes share their locks.
func WithPrefix(prefix string) Option {
	return func(l *Locker) error {
		l.prefix = prefix
		return nil
	}
}

// WithTimeout sets how long a node's answer is waited for, at least a millisecond. Default
// 250 ms. It matters only when so many nodes do not answer that the others can decide
// nothing: a quorum that answers is waited for no longer than it takes.
func WithTimeout(d time.Duration) Option {
	return func(l *Locker) error {
		if d < time.Millisecond {
			return fmt.Errorf("%w: redlock: timeout %v: must be at least 1ms", lock.ErrInvalid, d)
		}
		l.timeout = d
		return nil
	}
}

// WithMaxTTL sets the longest TTL that is granted, and so for how long a node abstains after a
// restart or a loss of its data: from 1 s to 24 h. Default one minute. Who asks for a longer
// TTL is granted this one, and may renew it. It must be the same in all processes that share
// locks.
func WithMaxTTL(d time.Duration) Option {
	return func(l *Locker) error {
		if d < time.Second || d > 24*time.Hour {
			return fmt.Errorf("%w: redlock: longest TTL %v: must be from 1s to 24h", lock.ErrInvalid, d)
		}
		l.maxTTL = d
		return nil
	}
}

// WithPoll sets how often a process that waits for a lock looks whether it is free: after
// pauses that grow from shortest to longest. Default 5 ms to 100 ms. However many wait for a key in
// one process, one of them looks.
func WithPoll(shortest, longest time.Duration) Option {
	return func(l *Locker) error {
		if shortest <= 0 || shortest > longest {
			return fmt.Errorf("%w: redlock: poll from %v to %v: shortest must be positive and no more than longest", lock.ErrInvalid, shortest, longest)
		}
		l.minPoll, l.maxPoll = shortest, longest
		return nil
	}
}

// New returns a Locker on nodes, doing no I/O. Each node must be a *goredis.Client of one
// server, or a type of your own around one that has a method Unwrap() goredis.UniversalClient,
// all with the same database number; there must be 3 at least, and should be an odd
// number: with 5, two may fail. They must not be replicas of each other, nor fail over.
// Fewer nodes, a nil one or another kind of client, or a bad option are an error that every
// call returns; so is, once they have been asked, that two nodes are one server. The clients
// stay the caller's to close.
func New(nodes []goredis.UniversalClient, opts ...Option) *Locker {
	l := &Locker{
		prefix: "redlock:", timeout: 250 * time.Millisecond, maxTTL: time.Minute,
		minPoll: 5 * time.Millisecond, maxPoll: 100 * time.Millisecond,
		lines: newLines(), tenures: tenures{byOwner: make(map[string]*tenure)}, closing: make(chan struct{}),
	}
	l.err = l.setUp(nodes, opts)
	return l
}

func (l *Locker) setUp(nodes []goredis.UniversalClient, opts []Option) error {
	for _, o := range opts {
		if o == nil {
			return fmt.Errorf("%w: redlock: option is nil", lock.ErrInvalid)
		}
		if err := o(l); err != nil {
			return err
		}
	}
	if len(nodes) < 3 || len(nodes) > maxNodes {
		return fmt.Errorf("%w: redlock: %d nodes: must be from 3 to %d; for one server take package redis", lock.ErrInvalid, len(nodes), maxNodes)
	}
	for i, rdb := range nodes {
		c, err := single(rediskit.Unwrap(rdb))
		if err != nil {
			return fmt.Errorf("%w: redlock: node %d %w", lock.ErrInvalid, i+1, err)
		}
		if i > 0 && c.Options().DB != l.nodes[0].rdb.Options().DB {
			return fmt.Errorf("%w: redlock: node %d has database %d and node 1 has %d: must be the same",
				lock.ErrInvalid, i+1, c.Options().DB, l.nodes[0].rdb.Options().DB)
		}
		l.nodes = append(l.nodes, l.newNode(c))
	}
	l.quorum = len(nodes)/2 + 1
	l.scripts = newScripts(l.prefix, l.nodes[0].rdb.Options().DB)
	for _, n := range l.nodes {
		n.scripts = l.scripts
	}
	return nil
}

// maxNodes is more than anybody should have.
const maxNodes = 15

// single returns the client of a node that is one server.
func single(rdb goredis.UniversalClient) (*goredis.Client, error) {
	c, ok := rdb.(*goredis.Client)
	switch {
	case rdb == nil:
		return nil, errors.New("is nil")
	case !ok:
		return nil, fmt.Errorf("is a %T: must be a *redis.Client of one server, "+
			"or have a method Unwrap() goredis.UniversalClient that returns one", rdb)
	case c.Options().Addr == "FailoverClient":
		return nil, errors.New("fails over, and its successor would not know what it has voted: must be one server without replicas")
	}
	return c, nil
}

func (l *Locker) newNode(c *goredis.Client) *node {
	n := &node{
		name: c.Options().Addr, rdb: c, lane: rediskit.NewLane(c, nil), key: l.prefix + "node",
		abstain: milliseconds(l.maxTTL), closed: &l.closed,
	}
	n.known = func() error { return l.unlikeOthers(n) }
	return n
}

// unlikeOthers returns an error if n is the server of another node: it would have two votes.
func (l *Locker) unlikeOthers(n *node) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	run := n.runID()
	for _, other := range l.nodes {
		if other != n && other.runID() == run {
			l.twice = fmt.Errorf("%w: redlock: nodes %s and %s are one server", lock.ErrInvalid, other.name, n.name)
			return l.twice
		}
	}
	return nil
}

// Capabilities implements [lock.Locker]. What is said of a restart and of a failover is
// meant of a minority of the nodes, with or without their data; tokens survive it of all.
// A TTL above that of [WithMaxTTL] is cut to it.
func (l *Locker) Capabilities() lock.Capabilities {
	return lock.Capabilities{
		Store: "redlock", Shared: true,
		MinTTL: 10 * time.Millisecond,
		// A grant lives to the end of its millisecond on each node.
		ExpirySlack: 2 * time.Millisecond,
		TokenSurvives: lock.SurvivesRelease | lock.SurvivesExpiry | lock.SurvivesRecordLoss |
			lock.SurvivesRestart | lock.SurvivesFailover,
		HoldSurvives: lock.SurvivesRelease | lock.SurvivesExpiry | lock.SurvivesRestart | lock.SurvivesFailover,
	}
}

// Acquire implements [lock.Locker]. TTLs round up to milliseconds; one above that of
// [WithMaxTTL] is granted as that one. An error that is ErrNoQuorum says what was wrong with
// which node.
func (l *Locker) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if err := lock.CheckRequest(req, l.Capabilities()); err != nil {
		return lock.Grant{}, err
	}
	if err := l.ready(ctx); err != nil {
		return lock.Grant{}, err
	}
	req.TTL = min(req.TTL, l.maxTTL)
	a := l.acquisition(req)
	if req.Wait {
		return l.wait(ctx, a)
	}
	g, err := a.try(ctx)
	if err != nil {
		a.undo()
	}
	return g, err
}

// Renew implements [lock.Locker]. The grant must be live on a quorum still. Nodes that have
// lost it get it back then.
func (l *Locker) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	if err := storekit.CheckRenewal(g); err != nil {
		return lock.Grant{}, err
	}
	if err := l.ready(ctx); err != nil {
		return lock.Grant{}, err
	}
	g.TTL = time.Duration(milliseconds(min(g.TTL, l.maxTTL))) * time.Millisecond
	return l.renew(ctx, g)
}

// Release implements [lock.Locker]. It returns when the grant can be live on no quorum any
// more. Nodes that have not answered yet, or cannot be reached, get the release in the
// background, for as long as the grant could live there. When the reply to a first sending
// got lost and a second one finds the grant gone before it can have expired, the first has
// released it: that is no error.
func (l *Locker) Release(ctx context.Context, g lock.Grant) error {
	if err := l.check(ctx, g); err != nil {
		return err
	}
	l.tenures.end(g.Owner)
	doubtful := l.doubts.Take(g.Owner)
	if g.Token != 0 && !g.Shared && !doubtful { // else there are marks to be left
		if p := l.lines.serve(g.Key); p != nil {
			return l.handOver(ctx, g, p)
		}
	}
	err := l.release(ctx, g, nil, doubtful)
	if err != nil && doubtful {
		l.doubts.Add(g.Owner) // it may be called again
	}
	l.lines.hint(g.Key)
	return err
}

// check is what every call but Acquire does first.
func (l *Locker) check(ctx context.Context, g lock.Grant) error {
	if err := lock.CheckGrant(g); err != nil {
		return err
	}
	return l.ready(ctx)
}

func (l *Locker) ready(ctx context.Context) error {
	switch {
	case l == nil || l.closing == nil:
		return fmt.Errorf("%w: redlock: the Locker was not made by New", lock.ErrInvalid)
	case l.err != nil:
		return l.err
	case l.closed.Load():
		return lock.ErrClosed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.twice != nil {
		return l.twice
	}
	return ctx.Err()
}

// Close ends this Locker's waits with ErrClosed, and what it does in the background. It
// leaves the clients and the grants alone: those end with their TTL, unless another Locker
// releases them. It is idempotent and waits for no server.
func (l *Locker) Close() error {
	if l == nil || l.closing == nil {
		return nil
	}
	l.closes.Do(func() {
		l.closed.Store(true)
		close(l.closing)
	})
	return nil
}

// milliseconds rounds up.
func milliseconds(d time.Duration) int64 {
	return int64((d + time.Millisecond - 1) / time.Millisecond)
}
