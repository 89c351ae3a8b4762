package zookeeper

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// claim is what one owner has in this process: a place in line, or a grant.
type claim struct {
	key, owner string
	bytes      int // of its node's path in the end of the session
	shared     bool
	data       []byte
	lost       func(lock.LostReason)
	box        *storekit.Mailbox // for hints to look again, and a grant by a release

	// The rest is guarded by registry.mu. From when the claim is held or waiting, node,
	// token and session stay as they are; a claim that stands in line anew has others.
	phase    phase
	node     node
	token    lock.Token
	session  int64
	ttl      time.Duration
	deadline time.Time   // Start + TTL, while it is held
	timer    *time.Timer // has it looked after, while it is held
	front    place       // of whom it waits for
	refused  error       // why that one's node cannot be watched
	undone   bool        // by a Release without a token, before its Acquire has returned
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

type id struct{ key, owner string }

// registry has the claims of one Locker.
type registry struct {
	mu      sync.Mutex         // guards the rest, and the mutable part of each claim; held for no I/O
	claims  map[id]*claim      // all but the ended ones
	bytes   int                // of those
	places  map[place]*claim   // those that have a node
	behind  map[place][]*claim // who waits for whom, be that a claim of ours or not
	heads   map[string]*claim  // who holds a key, exclusively
	watched map[string]struct{}
	watcher *watcher // takes the next watches; nil before the first
}

func (r *registry) prepare() {
	r.claims, r.places = make(map[id]*claim), make(map[place]*claim)
	r.behind, r.watched = make(map[place][]*claim), make(map[string]struct{})
	r.heads = make(map[string]*claim)
}

// ErrFull says that the paths of the Locker's holders and waiters have 768 KiB: see "Limits" in the
// comment of the package. Nothing was sent.
var ErrFull = errors.New("lock: zookeeper: the paths of this session's nodes have 768 KiB, and the server could not bear the end of one " +
	"with many more: release locks, take shorter keys, or use another Locker on a connection of its own")

// maxSession is how many bytes the paths of a session's nodes may have. The end of the session is one
// transaction with all of them. From 2 MiB (jute.maxbuffer and its extrasize) a server writes it but
// neither it nor any other can read it again.
const maxSession = 768 << 10

// enroll makes the claim of an Acquire.
func (l *Locker) enroll(req lock.Request) (*acquisition, error) {
	const number = 4 + 10 // the length of the path, and the sequence number
	c := &claim{
		key: req.Key, owner: req.Owner, bytes: len(l.path(req.Key, prefix(req.Owner, req.Shared, false))) + number,
		shared: req.Shared, lost: req.Lost, data: []byte(storekit.EncodeNote(&req)),
		ttl: min(req.TTL, l.MaxTTL()), box: storekit.NewMailbox(),
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.claims[id{c.key, c.owner}] != nil {
		return nil, fmt.Errorf("%w: owner %q already has a claim on %q: use an owner for one try only", lock.ErrInvalid, c.owner, c.key)
	}
	if l.bytes+c.bytes > maxSession {
		return nil, ErrFull
	}
	l.claims[id{c.key, c.owner}] = c
	l.bytes += c.bytes
	return &acquisition{l: l, c: c, req: req}, nil
}

// placed gives c the node that it has in line.
func (r *registry) placed(c *claim, n node, token lock.Token, session int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.undone || c.phase == ended {
		return storekit.ErrUndone
	}
	c.phase, c.node, c.token, c.session = waiting, n, token, session
	r.places[c.place()] = c
	return nil
}

// displace takes c's node from it, since that is gone, and lets it stand in line anew. It
// reports false if a release has handed over to that node before: then that is a grant, even if it
// has ended since.
func (r *registry) displace(c *claim) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.phase == held || c.phase == ended {
		return false
	}
	r.unplace(c)
	c.phase, c.node, c.session = creating, node{}, 0
	return true
}

// unplace takes c out of the line, and wakes who waits for it. r.mu is held.
func (r *registry) unplace(c *claim) {
	if c.node.name == "" {
		return
	}
	r.unfollow(c)
	if r.heads[c.key] == c {
		delete(r.heads, c.key)
	}
	p := c.place()
	if r.places[p] == c {
		delete(r.places, p)
	}
	r.wakeBehind(p)
}

// headed reports whether this Locker holds key exclusively.
func (r *registry) headed(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.heads[key] != nil
}

// follow makes c wait for front. r.mu is held.
func (r *registry) follow(c *claim, front place) {
	r.unfollow(c)
	c.front, c.refused = front, nil
	r.behind[front] = append(r.behind[front], c)
}

func (r *registry) unfollow(c *claim) {
	if c.front.key == "" {
		return
	}
	list := slices.DeleteFunc(r.behind[c.front], func(b *claim) bool { return b == c })
	if len(list) == 0 {
		delete(r.behind, c.front)
	} else {
		r.behind[c.front] = list
	}
	c.front = place{}
}

// wakeBehind wakes who waits for p. r.mu is held.
func (r *registry) wakeBehind(p place) {
	for _, c := range r.behind[p] {
		c.box.Wake()
	}
}

// end forgets c and wakes who waits for it.
func (r *registry) end(c *claim) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.close(c)
}

// close is end under r.mu.
func (r *registry) close(c *claim) {
	if c.phase == ended {
		return
	}
	c.phase = ended
	r.bytes -= c.bytes
	if c.timer != nil {
		c.timer.Stop()
	}
	if k := (id{c.key, c.owner}); r.claims[k] == c {
		delete(r.claims, k)
	}
	r.unplace(c)
}

// snapshot holds fields of a claim that has a node, copied under mu.
type snapshot struct {
	*claim
	at      place
	path    string
	token   lock.Token
	session int64
}

// holder returns the claim of g, if it is held.
func (l *Locker) holder(g lock.Grant) (snapshot, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.claims[id{g.Key, g.Owner}]
	if c == nil || c.phase != held || c.token != g.Token {
		return snapshot{}, false
	}
	return l.snapshot(c), true
}

func (l *Locker) snapshot(c *claim) snapshot {
	return snapshot{c, c.place(), l.path(c.key, c.node.name), c.token, c.session}
}

// letGo is holder for a release, which may be repeated: again says that one has been tried before.
// The claim is not held any more: what ends it from now on is no loss.
func (l *Locker) letGo(g lock.Grant) (s snapshot, again, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.claims[id{g.Key, g.Owner}]
	if c == nil || c.phase != held && c.phase != releasing || c.token != g.Token {
		return s, false, false
	}
	again = c.phase == releasing
	c.phase = releasing
	return l.snapshot(c), again, true
}
