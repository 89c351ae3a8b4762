// Package redlock keeps locks on several independent Redis servers, version 7 or newer, or
// Valkey. A majority of them decides, so five servers may lose two.
//
//	var nodes []goredis.UniversalClient
//	for _, addr := range addrs { // five servers, none the replica of another
//		nodes = append(nodes, goredis.NewClient(&goredis.Options{Addr: addr}))
//	}
//	client := lock.New(redlock.New(nodes))
//
// It follows Redis' description of Redlock
// (https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/) and answers the two
// objections of https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html: it
// has fencing tokens, and a node that restarted does not vote from a memory that it may have
// lost. The reply of Redlock's author to that article is http://antirez.com/news/101.
//
// # What it survives
//
// A minority of the nodes may be down, frozen or cut off. They may restart without their data,
// or lose it while they run. A node that restarted or lost its data abstains from votes and
// tokens for the longest TTL ([WithMaxTTL]). By then every grant that it has forgotten has
// expired. A renewal writes its grant to such nodes again. So a long lease outlives the restart
// of each node in turn, if MaxTTL lies between the restarts. If all nodes have lost everything,
// they vote at once, like new ones: the grants are forgotten, but tokens still rise.
//
// The quorum's counters make tokens rise, whatever the clocks say. A quorum records a grant's
// token before the grant is known, and any later grant has votes from at least one of these
// nodes. If all of them have lost their data, tokens rise by the nodes' clocks, which must
// agree:
//
//   - within MaxTTL less a quarter of a second, as a rule
//   - within three quarters of a second, if no node remembers anything, so that none abstained
//   - within half the time between two such losses, if they are less than a second and a half
//     apart
//
// # What breaks it
//
// Exclusion depends on time, as it does with any Redlock. It assumes:
//
//   - The clocks of the nodes and of this process run at about the same rate and do not jump. A
//     node whose clock jumps forward by a TTL forgets a grant, and a majority of such nodes
//     gives the lock to another.
//   - No majority loses its data within MaxTTL.
//   - No node drops keys on its own: maxmemory-policy must be noeviction.
//   - No replica takes over from a node whose last writes it lacks.
//   - All Lockers of the same locks have the same nodes and the same MaxTTL.
//
// A paused holder does not know that its time is over; no lock can prevent that. So write to
// fenced resources, with the token ([Fence], or anything else that keeps the newest). Then a
// grant that came too early, for any of these reasons, costs the older holder's work, but no
// data. With a fence Redlock is fit for more than saving double work.
//
// Choose etcd instead if exclusion must not depend on clocks, or if you run etcd already. Choose
// a single Redis, package redis, if its restart may lose a lock: it is faster, since it asks one
// server, and its waiters stand in a fair line and are woken. Choose Redlock if you have Redis,
// want no lock to depend on one server, and can fence.
//
// # Waiting
//
// A quorum cannot keep a line, nor wake anybody in another process. Processes poll, with jitter
// ([WithPoll]). Within a process waiters stand in line: the first of them polls, and a release
// lets it try at once. When several processes ask at once, it may be that none gets a majority.
// Then all give back what they got, and try again after random pauses.
//
// # Cost
//
// An acquire, a renewal and a release each take one round trip to all nodes at once, and return
// when a majority has answered. An acquire takes a second round trip for its token when the key
// is contested, when the nodes' clocks differ by more than a tenth of a second, and in the first
// two seconds after all nodes were new. Concurrent calls share round trips. Only the first call
// that needs an unresponsive node waits for it. Each lock leaves a counter of some 20 bytes on
// each node, for a day.
//
// # What it needs
//
// On each node the Locker needs rights to the keys of its prefix and to the commands that its
// scripts use, INFO and TIME among them; for [Locker.List] also SCAN and MGET. With the default
// prefix, in the syntax of Redis 7:
//
//	ACL SETUSER app ~redlock:* +@read +@write +@scripting +@connection +info +time
//
// A [Fence] needs the rights that package redis lists, on its own server.
//
// # What an operator may delete
//
// The keys of a lock, on all nodes. Their names are the prefix, one of
// s:, r:, i: and m:, and the lock's name. A holder whose lock is gone learns of it at its next
// renewal. Each node also has a key named "redlock:node": a node that has lost it abstains, as
// after a loss of all its data. [Locker.ForceRelease] is better: it ends one grant, and only
// then can somebody else get the lock.
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
	ahead   atomic.Int64 // how far the nodes' clocks are ahead of this one, in µs, as far as it matters
	lines   lines
	doubts  storekit.Doubts // owners of whom a request may come late: see release
	closed  context.Context // ends with Close
	close   context.CancelFunc

	mu    sync.Mutex // guards twice
	twice error      // two nodes are one server; returned by every call
}

// Option sets up a [Locker].
type Option func(*Locker) error

// WithPrefix sets what the names of all keys begin with. Lockers with the same prefix on the
// same nodes share their locks. Default "redlock:".
func WithPrefix(prefix string) Option {
	return func(l *Locker) error {
		l.prefix = prefix
		return nil
	}
}

// WithTimeout sets how long a call waits for a node's answer: at least 1 ms. It matters only
// when too few nodes answer; as soon as a quorum has answered, no call waits longer. Default
// 250 ms.
func WithTimeout(d time.Duration) Option {
	return func(l *Locker) error {
		if d < time.Millisecond {
			return fmt.Errorf("%w: redlock: timeout %v: must be at least 1ms", lock.ErrInvalid, d)
		}
		l.timeout = d
		return nil
	}
}

// WithMaxTTL sets the longest TTL that is granted, from 1 s to 24 h. A request for a longer one
// is granted this one, and may be renewed. A node abstains for as long after a restart or a loss
// of its data. All processes that share locks must set the same. Default 1 min.
func WithMaxTTL(d time.Duration) Option {
	return func(l *Locker) error {
		if d < time.Second || d > 24*time.Hour {
			return fmt.Errorf("%w: redlock: longest TTL %v: must be from 1s to 24h", lock.ErrInvalid, d)
		}
		l.maxTTL = d
		return nil
	}
}

// WithPoll sets the pauses between polls, which grow from shortest to longest. One waiter of a
// process polls for all that wait there for the same key. Default 5 ms to 100 ms.
func WithPoll(shortest, longest time.Duration) Option {
	return func(l *Locker) error {
		if shortest <= 0 || shortest > longest {
			return fmt.Errorf("%w: redlock: poll from %v to %v: shortest must be positive and no more than longest", lock.ErrInvalid, shortest, longest)
		}
		l.minPoll, l.maxPoll = shortest, longest
		return nil
	}
}

// New returns a Locker on nodes. It does no I/O. The clients stay the caller's to close.
//
// There must be from 3 to 15 nodes, and there should be an odd number: of 5, two may fail. Each
// must be a *goredis.Client of one server, or a type of your own around one with a method
// Unwrap() goredis.UniversalClient. All must use the same database number. They must not be
// replicas of each other, nor fail over. Every call returns an error if a node or an option is
// not valid and, once the nodes have been asked, if two of them are the same server.
func New(nodes []goredis.UniversalClient, opts ...Option) *Locker {
	l := &Locker{
		prefix: "redlock:", timeout: 250 * time.Millisecond, maxTTL: time.Minute,
		minPoll: 5 * time.Millisecond, maxPoll: 100 * time.Millisecond,
		lines: lines{byKey: make(map[string]*line)},
	}
	l.closed, l.close = context.WithCancel(context.Background())
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
		return fmt.Errorf("%w: redlock: %d nodes: must be from 3 to %d; for one server use package redis", lock.ErrInvalid, len(nodes), maxNodes)
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
		return nil, errors.New("fails over, and its successor would not know its votes: must be one server without replicas")
	}
	return c, nil
}

func (l *Locker) newNode(c *goredis.Client) *node {
	n := &node{
		name: c.Options().Addr, rdb: c, lane: rediskit.NewLane(c, nil), key: l.prefix + "node",
		abstain: rediskit.Milliseconds(l.maxTTL), closed: l.closed,
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

// Capabilities implements [lock.Locker]. Grants survive a restart or a failover of a minority of
// the nodes, with or without their data. Tokens survive one of all nodes.
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

// check is what Release and ForceRelease do first.
func (l *Locker) check(ctx context.Context, g lock.Grant) error {
	if err := lock.CheckGrant(g); err != nil {
		return err
	}
	return l.ready(ctx)
}

func (l *Locker) ready(ctx context.Context) error {
	switch {
	case l == nil || l.closed == nil:
		return fmt.Errorf("%w: redlock: the Locker was not made by New", lock.ErrInvalid)
	case l.err != nil:
		return l.err
	case l.closed.Err() != nil:
		return lock.ErrClosed
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.twice != nil {
		return l.twice
	}
	return ctx.Err()
}

// Close ends this Locker's waits with ErrClosed, and stops its work in the background. It does
// not close the clients. Grants remain until their TTL expires, unless another Locker releases
// them. Close is idempotent and waits for no server.
func (l *Locker) Close() error {
	if l != nil && l.close != nil {
		l.close()
	}
	return nil
}
