package zookeeper

import (
	"fmt"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// claim is what one owner has in this process: a place in line, or a grant.
type claim struct {
	key, owner string
	shared     bool
	data       []byte
	lost       func(lock.LostReason)
	wake       chan struct{}  // a hint to look again
	handed     chan time.Time // a release has granted the lock: before that was sent

	// The rest is guarded by registry.mu. From when the claim is held or waiting, node,
	// token and session stay as they are; a claim that stands in line anew has others.
	phase    phase
	node     node
	token    lock.Token
	session  int64
	ttl      time.Duration
	deadline time.Time // Start + TTL, while it is held
	front    place     // of whom it waits for
	doubtful bool      // a request for it was sent whose outcome is unknown
	undone   bool      // by a Release without a token, before its Acquire has returned
}

// phase is how far a claim has come.
type phase uint8

const (
	creating phase = iota
	waiting
	held
	releasing
	ended // it is not in the registry any more
)

// place is a node's place in line, while its container lives.
type place struct {
	key string
	seq int32
}

func (c *claim) place() place { return place{c.key, c.node.seq} }

// nudge makes who waits at c look again.
func (c *claim) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

type id struct{ key, owner string }

// registry has the claims of one Locker.
type registry struct {
	mu      sync.Mutex         // guards the rest, and the mutable part of each claim; held for no I/O
	claims  map[id]*claim      // all but the ended ones
	places  map[place]*claim   // those that have a node
	behind  map[place][]*claim // who waits for whom, be that a claim of ours or not
	lengths map[string]int     // how many of places are of a key
	heads   map[string]*claim  // who holds a key, exclusively
	watched map[string]struct{}
	watcher *watcher // takes the next watches; nil before the first
}

func (r *registry) prepare() {
	r.claims, r.places = make(map[id]*claim), make(map[place]*claim)
	r.behind, r.watched = make(map[place][]*claim), make(map[string]struct{})
	r.lengths, r.heads = make(map[string]int), make(map[string]*claim)
}

// enroll makes the claim of an Acquire.
func (l *Locker) enroll(req lock.Request) (*acquisition, error) {
	c := &claim{
		key: req.Key, owner: req.Owner, shared: req.Shared, lost: req.Lost, data: []byte(storekit.EncodeMetadata(req.Metadata)),
		ttl: min(req.TTL, l.MaxTTL()), wake: make(chan struct{}, 1), handed: make(chan time.Time, 1),
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.claims[id{c.key, c.owner}] != nil {
		return nil, fmt.Errorf("%w: owner %q has a claim on %q already: an owner is for one try", lock.ErrInvalid, c.owner, c.key)
	}
	l.claims[id{c.key, c.owner}] = c
	return &acquisition{l: l, c: c, req: req}, nil
}

// placed gives c the node that it has in line.
func (r *registry) placed(c *claim, n node, token lock.Token, session int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.undone || c.phase == ended {
		return errUndone
	}
	c.phase, c.node, c.token, c.session, c.doubtful = waiting, n, token, session, false
	if r.places[c.place()] == nil {
		r.lengths[c.key]++
	}
	r.places[c.place()] = c
	return nil
}

// displaced takes c's node from it, since that is gone, and lets it stand in line anew.
func (r *registry) displaced(c *claim) {
	r.mu.Lock()
	wake := r.unplace(c)
	if c.phase != ended {
		c.phase, c.node, c.session = creating, node{}, 0
	}
	select {
	case <-c.handed: // what was handed over went with the node
	default:
	}
	r.mu.Unlock()
	nudgeAll(wake)
}

// unplace takes c out of the line, and returns who waited for it. r.mu is held.
func (r *registry) unplace(c *claim) (wake []*claim) {
	if c.node.name == "" {
		return nil
	}
	r.unfollow(c)
	if r.heads[c.key] == c {
		delete(r.heads, c.key)
	}
	p := c.place()
	if r.places[p] == c {
		delete(r.places, p)
		if r.lengths[c.key]--; r.lengths[c.key] == 0 {
			delete(r.lengths, c.key)
		}
	}
	return append(wake, r.behind[p]...)
}

// crowded reports whether others of this Locker hold key or wait for it.
func (r *registry) crowded(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lengths[key] > 0
}

// follow makes c wait for front. r.mu is held.
func (r *registry) follow(c *claim, front place) {
	r.unfollow(c)
	c.front = front
	r.behind[front] = append(r.behind[front], c)
}

func (r *registry) unfollow(c *claim) {
	if c.front.key == "" {
		return
	}
	list := r.behind[c.front]
	for i, b := range list {
		if b == c {
			list[i] = list[len(list)-1]
			list[len(list)-1] = nil
			list = list[:len(list)-1]
			break
		}
	}
	if len(list) == 0 {
		delete(r.behind, c.front)
	} else {
		r.behind[c.front] = list
	}
	c.front = place{}
}

// followers is who waits for p.
func (r *registry) followers(p place) []*claim {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*claim(nil), r.behind[p]...)
}

func nudgeAll(claims []*claim) {
	for _, c := range claims {
		c.nudge()
	}
}

// end forgets c and wakes who waits for it. It reports whether c had not ended before.
func (r *registry) end(c *claim) bool {
	r.mu.Lock()
	was := c.phase
	wake := r.close(c)
	r.mu.Unlock()
	nudgeAll(wake)
	return was != ended
}

// close is end under r.mu; whom it returns is to be woken.
func (r *registry) close(c *claim) (wake []*claim) {
	if c.phase == ended {
		return nil
	}
	c.phase = ended
	if k := (id{c.key, c.owner}); r.claims[k] == c {
		delete(r.claims, k)
	}
	return r.unplace(c)
}

// lose ends a held claim and tells its holder, unless that has released it.
func (r *registry) lose(c *claim, why lock.LostReason) {
	r.mu.Lock()
	if c.phase != held {
		r.mu.Unlock()
		return
	}
	wake := r.close(c)
	r.mu.Unlock()
	nudgeAll(wake)
	if c.lost != nil {
		c.lost(why)
	}
}

// grip is a claim that is held, and what its calls need of it.
type grip struct {
	*claim
	at      place
	path    string
	session int64
}

// holder returns the claim of g, if it is held.
func (l *Locker) holder(g lock.Grant) (grip, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.claims[id{g.Key, g.Owner}]
	if c == nil || c.phase != held || c.token != g.Token {
		return grip{}, false
	}
	return l.grip(c), true
}

func (l *Locker) grip(c *claim) grip {
	return grip{c, c.place(), l.path(c.key, c.node.name), c.session}
}

// letGo is holder for a release, which may be repeated. The claim is not held any more: what
// ends it from now on is no loss.
func (l *Locker) letGo(g lock.Grant) (grip, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.claims[id{g.Key, g.Owner}]
	if c == nil || c.phase != held && c.phase != releasing || c.token != g.Token {
		return grip{}, false
	}
	c.phase = releasing
	return l.grip(c), true
}

// hold makes c held since start, and reports false if it has ended, or been undone, before.
func (l *Locker) hold(c *claim, start time.Time) (lock.Grant, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case c.undone || c.phase != waiting && c.phase != held:
		return lock.Grant{}, false
	case c.phase == waiting:
		l.holds(c, start)
	default: // a release has handed it over, while it was being verified
		if d := start.Add(c.ttl); d.After(c.deadline) {
			c.deadline = d
		}
	}
	return lock.Grant{
		Key: c.key, Owner: c.owner, Token: c.token, TTL: c.ttl, Start: start, Shared: c.shared,
	}, true
}

// holds is hold under l.mu.
func (l *Locker) holds(c *claim, start time.Time) {
	l.unfollow(c)
	c.ttl = min(c.ttl, l.MaxTTL()) // by now the server has said what the session lives
	c.phase, c.deadline = held, start.Add(c.ttl)
	if !c.shared {
		l.heads[c.key] = c
	}
	l.keeper.keep(c, min(c.ttl, watchAfter))
}

// prolong takes a renewal. It reports false if the claim has ended meanwhile.
func (l *Locker) prolong(c *claim, g lock.Grant) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.phase != held && c.phase != releasing {
		return false
	}
	c.ttl = g.TTL
	if d := g.Start.Add(g.TTL); d.After(c.deadline) {
		c.deadline = d
	}
	return true
}
