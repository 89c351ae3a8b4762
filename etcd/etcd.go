// Package etcd keeps locks in etcd 3.6 or newer, a single member or a cluster.
//
//	cli, err := clientv3.New(clientv3.Config{
//		Endpoints:         endpoints,
//		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 3 * time.Second,
//	})
//	…
//	client := lock.New(etcd.New(cli))
//
// # What it survives
//
// A grant is a key under an etcd lease. It is decided by one transaction, which a majority
// of the members has on disk before it is answered: the oldest key of a lock holds it, and
// its create revision is the token. So a live grant stays exclusive, and tokens rise, over
// the loss of any minority of members, the leader included, and over a restart of all.
//
// # What breaks it
//
// A cluster without a majority answers nothing: leases end at their local deadline. Keys
// that are deleted by hand, or go with a lease that is revoked by hand, are grants lost; the
// holder is told at once. Restoring a backup moves revisions back, and with them the tokens:
// restore with etcdutl's --bump-revision and --mark-compacted, by more than was written
// since. Each change of leader starts the TTL of every etcd lease anew, so a dead holder may
// block for up to a TTL longer; Capabilities.ExpirySlack allows for one such change, see
// [WithMaxTTL].
//
// A write of the client library may rarely be sent twice (when a proxy in between cancels
// it): an acquisition is then still one grant, a release may be told as ErrLost.
//
// # Waiting
//
// Waiters stand in line in order of arrival. Each watches the entry in front of it, and
// after every wait a linearizable transaction verifies that its own key is there and first.
// A wake-up that is lost costs a recheck: at least every third of the heartbeat of min(TTL,
// 5 s). When a grant is released whose successor waits in the same process, one transaction
// does both. A wait goes on through errors of the cluster, such as those of an election, for
// 30 s. A place in line, or a grant, whose undo did not arrive is swept by its Locker.
//
// # A member that stops
//
// A member that is frozen, or cut off without a word, keeps its connections open, and what is
// sent to it is not answered. The Locker sends all that it needs for an acquire, a wait or a
// release again after a quarter of the TTL, which is 0.5 s at least and 1.25 s at most for that,
// while ctx lives and for 30 s: the client asks its members in turn, so another gets it. A
// renewal, which is not to be late, sends a copy after a sixteenth of the TTL, 1.25 s at most,
// and takes the first answer. One request in so many as there are members takes that much
// longer, until the client gives the connection up. That it does only if its Config says so:
//
//	DialKeepAliveTime:    10 * time.Second, // after which a silent connection is tried
//	DialKeepAliveTimeout: 3 * time.Second,  // after which it is given up
//
// Set both. gRPC makes 10 s of a shorter DialKeepAliveTime. Until the connection is given up
// watches on that member keep silent too: a forced release is told at the next renewal only, and
// a wake-up costs a recheck.
//
// # Cost
//
// An uncontended acquire is one transaction and a release another. Those of concurrent callers
// travel together, as parts of one. A Locker has one etcd
// lease for each distinct TTL in whole seconds; a TTL for which none is alive costs one
// request more. A renewal is a keepalive, shared by all grants of that TTL, and one
// linearizable read of the own key. Leases are kept alive by renewals, acquisitions and
// waiters, and never on their own: a grant that is not renewed is deleted at its end by its
// own Locker, even if others under the same etcd lease are renewed.
// A watch, on one stream with all others, is opened for each lock that is waited for, or held
// for longer than 20 ms.
//
// With etcd's authentication a role needs read and write permission for all keys that begin
// with the prefix.
package etcd

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
)

var (
	_ lock.Locker = (*Locker)(nil)
	_ lock.Admin  = (*Locker)(nil)
)

// Locker keeps locks in etcd. It is safe for concurrent use. Close it before its client.
type Locker struct {
	cli    *clientv3.Client
	prefix string
	maxTTL time.Duration
	stable bool  // ExpirySlack leaves changes of leader out
	err    error // of an option; returned by every call

	lane    lane
	slots   slots
	leases  leases
	holds   holds
	watches watches
	line    line

	ctx    context.Context // ends with Close, or with the client
	cancel context.CancelFunc
	mu     sync.Mutex // guards closed, and wg.Add against wg.Wait
	closed bool
	wg     sync.WaitGroup // of what spawn started
}

// Option sets up a [Locker].
type Option func(*Locker) error

// WithPrefix sets what the names of all keys begin with. Default "lock/". Lockers with the
// same prefix on the same cluster share their locks. An empty prefix is refused.
func WithPrefix(prefix string) Option {
	return func(l *Locker) error {
		if prefix == "" {
			return fmt.Errorf("%w: etcd: prefix is empty: the whole keyspace is not for locks", lock.ErrInvalid)
		}
		l.prefix = prefix
		return nil
	}
}

// WithMaxTTL sets the longest TTL that is accepted; a longer one is ErrInvalid. At least
// 1 s, default 1 min. It bounds how long a change of leader may keep a dead holder's grant,
// and is part of Capabilities.ExpirySlack for that reason.
func WithMaxTTL(d time.Duration) Option {
	return func(l *Locker) error {
		if d < minTTL {
			return fmt.Errorf("%w: etcd: max TTL %v: must be at least %v", lock.ErrInvalid, d, minTTL)
		}
		l.maxTTL = d
		return nil
	}
}

// New returns a Locker on cli, doing no I/O. A nil client or a bad option is an error that
// every call returns. cli stays the caller's to close. Give it DialKeepAliveTime and
// DialKeepAliveTimeout, 10 s and a few: see "A member that stops" above.
func New(cli *clientv3.Client, opts ...Option) *Locker {
	l := &Locker{cli: cli, prefix: "lock/", maxTTL: time.Minute}
	l.err = l.setUp(opts)
	parent := context.Background()
	if l.err == nil {
		parent = cli.Ctx()
	}
	l.ctx, l.cancel = context.WithCancel(parent)
	l.slots.process = processName()
	l.lane.l, l.leases.l, l.holds.l, l.watches.l = l, l, l, l
	return l
}

func processName() string {
	var b [9]byte
	_, _ = rand.Read(b[:]) // never fails: it would end the program
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func (l *Locker) setUp(opts []Option) error {
	for _, o := range opts {
		if o == nil {
			return fmt.Errorf("%w: etcd: option is nil", lock.ErrInvalid)
		}
		if err := o(l); err != nil {
			return err
		}
	}
	if l.cli == nil || l.cli.ActiveConnection() == nil {
		return fmt.Errorf("%w: etcd: client is nil or has no connection", lock.ErrInvalid)
	}
	return nil
}

const (
	// minTTL is etcd's granularity. A server whose election timeout is above 667 ms
	// grants more: one and a half of them.
	minTTL = time.Second
	// expirySlack is for the leader's look at its leases every 500 ms, and the write that
	// ends one.
	expirySlack = 1500 * time.Millisecond
	// electionSlack is how long a cluster may be without a leader, which then starts all
	// TTLs anew.
	electionSlack = 2 * time.Second
)

// Capabilities implements [lock.Locker].
func (l *Locker) Capabilities() lock.Capabilities {
	c := lock.Capabilities{
		Store: "etcd", Shared: true, FIFO: true, Push: true, EarlyLoss: true,
		MinTTL: minTTL, ExpirySlack: expirySlack,
		TokenSurvives: lock.SurvivesRelease | lock.SurvivesExpiry | lock.SurvivesRestart | lock.SurvivesFailover,
		HoldSurvives:  lock.SurvivesRelease | lock.SurvivesExpiry | lock.SurvivesRestart | lock.SurvivesFailover,
	}
	if !l.stable {
		c.ExpirySlack += l.maxTTL + electionSlack
	}
	return c
}

// Acquire implements [lock.Locker]. TTLs round up to seconds, and to the shortest that the
// server grants; a grant may be told up to a quarter of its TTL shorter, since the etcd
// lease is shared.
func (l *Locker) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if err := lock.CheckRequest(req, l.Capabilities()); err != nil {
		return lock.Grant{}, err
	}
	if l.err == nil && req.TTL > l.maxTTL {
		return lock.Grant{}, fmt.Errorf("%w: TTL %v: above the longest, %v: see etcd.WithMaxTTL", lock.ErrInvalid, req.TTL, l.maxTTL)
	}
	if err := l.ready(ctx); err != nil {
		return lock.Grant{}, err
	}
	a := l.acquisition(req)
	if req.Wait {
		return l.wait(ctx, a)
	}
	g, ok, err := a.enter(ctx)
	if !ok {
		return lock.Grant{}, l.fail(ctx, err)
	}
	return g, nil
}

// Renew implements [lock.Locker]. A grant that another Locker acquired comes under an etcd
// lease of this one.
func (l *Locker) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	if err := l.check(ctx, g); err != nil {
		return lock.Grant{}, err
	}
	if g.TTL <= 0 || g.Token == 0 {
		return lock.Grant{}, fmt.Errorf("%w: TTL %v, token %d: must be positive", lock.ErrInvalid, g.TTL, g.Token)
	}
	name, x, err := l.find(ctx, g)
	if err != nil {
		return lock.Grant{}, l.fail(ctx, err)
	}
	if h := l.holds.renewing(name, g.Token); h != nil {
		g, err = l.extend(ctx, h, g)
		l.holds.renewed(h, g, err)
	} else {
		err = l.again(ctx, g.TTL, func(ctx context.Context, _ int) (err error) {
			g, err = l.adopt(ctx, &hold{slot: x, name: name}, g)
			return err
		})
	}
	if err != nil {
		return lock.Grant{}, l.fail(ctx, err)
	}
	return g, nil
}

// extend renews h. What is not answered for a sixth of the TTL, nor are its copies, is sent anew
// while ctx lives.
func (l *Locker) extend(ctx context.Context, h *hold, g lock.Grant) (lock.Grant, error) {
	for {
		attempt, cancel := context.WithTimeout(ctx, h.lease.ttl/6)
		r, err := l.confirm(attempt, h, g)
		late := err != nil && (attempt.Err() != nil || errors.Is(err, errUnanswered))
		cancel()
		if !late || ctx.Err() != nil || l.ctx.Err() != nil {
			return r, err
		}
	}
}

// confirm keeps the etcd lease of h alive and reads its key, side by side: in whatever order
// they take effect, the key is there for a TTL from now on unless somebody deletes it.
func (l *Locker) confirm(ctx context.Context, h *hold, g lock.Grant) (lock.Grant, error) {
	start := time.Now()
	beat := l.leases.begin(h.lease, start)
	resp, err := insist(ctx, h.lease.impatience(), func(ctx context.Context) (*clientv3.GetResponse, error) {
		return l.cli.Get(ctx, h.name, clientv3.WithKeysOnly())
	})
	if err != nil {
		return g, err
	}
	if len(resp.Kvs) == 0 || resp.Kvs[0].CreateRevision != int64(g.Token) {
		return g, &lock.LostError{Reason: h.reason(time.Now()), Token: g.Token}
	}
	if resp.Kvs[0].ModRevision != h.mod {
		return l.adopt(ctx, l.holds.again(h), g)
	}
	if err := beat.wait(ctx, l.ctx); err != nil {
		if isGone(err) {
			err = &lock.LostError{Reason: lock.ReasonExpired, Token: g.Token, Err: err}
		}
		return g, err
	}
	g.TTL, g.Start = h.lease.ttl, start
	return g, nil
}

// adopt renews a grant that this Locker does not know, or that another has renewed meanwhile,
// by putting its key under a lease of its own. The other will not delete the key then: it
// looks at the mod revision. So does this put, which may take effect late: it must not take
// the key from a newer lease to an older one.
func (l *Locker) adopt(ctx context.Context, h *hold, g lock.Grant) (lock.Grant, error) {
	if g.TTL > l.maxTTL {
		return g, fmt.Errorf("%w: TTL %v: above the longest, %v: see etcd.WithMaxTTL", lock.ErrInvalid, g.TTL, l.maxTTL)
	}
	le, err := l.leases.get(ctx, g.TTL)
	if err != nil {
		return g, err
	}
	for seen := int64(-1); ; { // no key has that one
		start := time.Now()
		beat := l.leases.begin(le, start)
		resp, err := l.cli.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(h.name), "=", seen)).
			Then(clientv3.OpPut(h.name, "", clientv3.WithIgnoreValue(), clientv3.WithLease(le.id))).
			Else(clientv3.OpGet(h.name, clientv3.WithKeysOnly()), l.firstOf(g.Key)).Commit()
		if err != nil {
			l.leases.suspect(err, le)
			return g, err
		}
		if resp.Succeeded {
			if err := beat.wait(ctx, l.ctx); err != nil {
				return g, err
			}
			g.TTL, g.Start = le.ttl, start
			h.g, h.base, h.mod, h.lease = g, l.base(g.Key), resp.Header.Revision, le
			l.holds.add(h)
			return g, nil
		}
		kvs := resp.Responses[0].GetResponseRange().Kvs
		if len(kvs) == 0 || kvs[0].CreateRevision != int64(g.Token) {
			return g, lost(g, resp.Responses[1].GetResponseRange())
		}
		seen = kvs[0].ModRevision
	}
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
	case l.err != nil:
		return l.err
	case l.ctx.Err() != nil:
		return l.over()
	}
	return ctx.Err()
}

// over says why nothing can be sent any more.
func (l *Locker) over() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return lock.ErrClosed
	}
	return errClientClosed
}

// spawn runs f beside the caller, and reports whether the Locker is open. Close waits for f,
// which must end promptly when l.ctx does.
func (l *Locker) spawn(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.wg.Go(f)
	return true
}

// Close ends this Locker's waits with ErrClosed, its watches and its timers. It leaves the
// client and the grants alone: those end with their etcd lease, unless another Locker
// releases or renews them. It is idempotent and waits for no server.
func (l *Locker) Close() error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.cancel()
	l.holds.stop()
	l.wg.Wait()
	return nil
}
