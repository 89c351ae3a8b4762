package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// tickEvery is how often a Locker that has anything looks after it. A grant that is younger is
// not watched, so that short holds pay nothing; its watch begins at its revision.
const tickEvery = 200 * time.Millisecond

// hold is what one owner has on the server: nothing yet, a place in line, a grant, or what is to
// be pruned. The Locker's mutex guards it.
type hold struct {
	g          lock.Grant // without a Token while it is none
	name, base string
	number     int32  // in the name; -1: it is not used again
	attempt    string // process and number of the first name of its Acquire, for a tombstone

	waiter *acquisition // nil: it does not stand in line
	lined  bool         // its name may be the tail
	doubt  bool         // a late request may yet create the key

	rev, mod int64     // create revision, and that of this Locker's last put; 0: not known
	gone     int64     // revision of its last deletion that was told; 0: none
	seen     int64     // a renewal without an answer puts the key if it is at that revision yet; 0: none does
	until    time.Time // and not after that
	lease    *lease
	lost     func(lock.LostReason) // nil: nobody is to be told
	watched  bool
	renewals int // under way: the grant does not end meanwhile

	ended   *lock.LostError // its loss has been told; its key may still be there
	over    bool            // it is to be pruned
	leaving bool            // its release is under way, which tells who waits behind it
	pruning bool            // or what a renewal without an answer has done is being looked at
	due     time.Time       // when
}

// add is what an acquisition begins with.
func (l *Locker) add(req lock.Request) *hold {
	h := &hold{g: lock.Grant{Key: req.Key, Owner: req.Owner, Shared: req.Shared}, lost: req.Lost}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.enroll(h)
	return h
}

// enroll gives h a name.
func (l *Locker) enroll(h *hold) {
	base := l.baseOf(h.g.Key)
	h.name, h.number = l.names.take(base, h.g.Shared)
	h.base = h.name[:len(base)]
	if h.attempt == "" {
		h.attempt = h.name[len(base)+len(mark(h.g.Shared)):]
	}
	l.byOwner[idOf(h.g)], l.byName[h.name] = h, h
	l.arm()
}

// id is whose a hold is, and of what.
type id struct{ key, owner string }

func idOf(g lock.Grant) id { return id{g.Key, g.Owner} }

// of returns what g's owner may have of its key, or nil.
func (l *Locker) of(g lock.Grant) *hold {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.byOwner[idOf(g)]
}

// already returns the grant that req asks for if its owner has it: whoever asks again has not heard of
// it, such as the client of a service whose reply was lost. Without a Token there is none.
func (l *Locker) already(req lock.Request) lock.Grant {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.byOwner[id{req.Key, req.Owner}]
	if h == nil || h.over || h.g.Token == 0 || h.g.Shared != req.Shared {
		return lock.Grant{}
	}
	h.lost = req.Lost
	g := h.g
	g.TTL = req.TTL
	return g
}

// granted notes a grant. It is what its owner has, also if that has another try under way. A watch may
// have told its end already. It reports false if the owner has been undone, and the key with it.
func (l *Locker) granted(h *hold, g lock.Grant, mod int64, le *lease) bool {
	tell := func() {}
	l.mu.Lock()
	if !h.over {
		h.g, h.rev, h.mod, h.lease = g, l.revisionOf(g.Token), mod, le
		l.byOwner[idOf(g)] = h
		if h.waiter, h.lined = nil, false; h.gone > mod {
			tell = h.lose(h.reason())
		}
	}
	granted := h.g.Token != 0
	l.mu.Unlock()
	tell()
	return granted
}

// anew prepares a, whose key is gone, to enter once more, unless it has been undone: the tombstone may
// be on its way yet. It may have been granted the lock by a handover of which it has not heard, and which
// is lost.
func (l *Locker) anew(a *acquisition) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	a.unplace()
	old := a.h
	if old.over && old.g.Token == 0 {
		return storekit.ErrUndone
	}
	if old.over || old.number < 0 {
		delete(l.byName, old.name)
		a.h = &hold{g: old.g, attempt: old.attempt, lost: old.lost, doubt: old.doubt}
		l.enroll(a.h)
	}
	a.h.g.Token, a.h.rev, a.h.mod, a.h.waiter, a.h.watched = 0, 0, 0, a, false
	return nil
}

// failed is the end of an acquisition that has got no grant. What it may have left is pruned
// after a while, also if no undo comes: the etcd lease would not end it, which others keep alive.
// Its owner may ask again, and is not refused for that.
func (l *Locker) failed(h *hold) {
	l.mu.Lock()
	h.waiter, h.g.Token, h.over, h.due = nil, 0, true, time.Now().Add(undoDelay)
	nothing := h.rev == 0 && !h.doubt && !h.lined
	l.mu.Unlock()
	if nothing {
		l.forget(h, 0)
	}
}

// forget drops h, whose key is gone, since revision rev if that is not 0. Its name is used again
// unless a late request may create the key.
func (l *Locker) forget(h *hold, rev int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byOwner[idOf(h.g)] == h {
		delete(l.byOwner, idOf(h.g))
	}
	if l.byName[h.name] == h {
		if delete(l.byName, h.name); h.number >= 0 && !h.doubt {
			l.names.free = append(l.names.free, h.number)
		}
	}
	h.over, h.lost = true, nil
	if rev > 0 {
		l.deleted(h.name, rev)
		return
	}
	for _, a := range l.behind[h.name] { // a watch may have told it before they stood there
		a.box.Wake()
	}
}

// lose ends h and returns what tells it. During its release that is nobody's business, nor known to be a
// loss: the release may have done it.
func (h *hold) lose(why lock.LostReason) (tell func()) {
	lost := h.lost
	h.lost, h.over, h.due = nil, true, time.Now()
	if !h.leaving {
		h.ended = &lock.LostError{Reason: why, Token: h.g.Token}
	}
	if lost == nil {
		return func() {}
	}
	return func() { lost(why) }
}

// reason is why h is lost when its key is not there any more: its lease has expired, or
// somebody deleted the key. It is not known of what was under another Locker's lease.
func (h *hold) reason() lock.LostReason {
	switch le := h.lease; {
	case le == nil:
		return 0
	case elapsed(le.confirmed, time.Now()) >= le.ttl:
		return lock.ReasonExpired
	}
	return lock.ReasonForced
}

// leaseGone has the loss of all grants under le told. Their keys are pruned, if they are there
// after all: a leader that is new to its office may not know of a young lease, and another Locker
// may have taken one into its care.
func (l *Locker) leaseGone(le *lease) {
	var calls []func()
	l.mu.Lock()
	for _, h := range l.byName {
		if h.lease == le && h.g.Token != 0 && !h.over {
			calls = append(calls, h.lose(h.reason()))
		}
	}
	l.mu.Unlock()
	for _, f := range calls {
		f()
	}
}

// arm has the next tick come, if there is anything to look after.
func (l *Locker) arm() {
	if l.ticking || len(l.byName) == 0 && l.watch.stop == nil {
		return
	}
	l.ticking = true
	if l.ticker == nil {
		l.ticker = time.AfterFunc(tickEvery, func() { l.spawn(l.tick) })
	} else {
		l.ticker.Reset(tickEvery)
	}
}

// tick ends grants that are over: an etcd lease may outlive them, since others are renewed under
// it. It has those watched that have been held for some time, and prunes.
func (l *Locker) tick() {
	var prune, look []*hold
	var calls []func()
	l.mu.Lock()
	now := time.Now()
	most := pruneAtOnce
	if l.pruneFailures > 0 {
		if most = 1; now.Before(l.pruneAgain) {
			most = 0
		}
	}
	for _, h := range l.byName {
		if (h.over || h.seen != 0) && !h.pruning && !h.due.After(now) && len(prune) < most {
			h.pruning = true
			prune = append(prune, h)
		}
		switch {
		case h.over:
		case h.waiter != nil:
			l.watch.wanted = now
		case h.g.Token == 0:
		case h.renewals == 0 && elapsed(h.g.Start, now) >= h.g.TTL:
			calls = append(calls, h.lose(lock.ReasonExpired))
		case h.lost != nil:
			if l.watch.wanted = now; !h.watched {
				if h.watched = true; l.cover(h.base, h.mod+1) {
					look = append(look, h)
				}
			}
		}
	}
	l.unwatch()
	l.ticking = false
	l.arm()
	l.mu.Unlock()
	for _, f := range calls {
		f()
	}
	for _, h := range prune {
		l.spawn(func() { l.prune(h) })
	}
	for _, h := range look {
		l.spawn(func() { l.verify(h) })
	}
}

// verify reads h's key, about which the watch cannot tell. If that fails, the next renewal
// will tell.
func (l *Locker) verify(h *hold) {
	resp, err := l.read(l.ctx, clientv3.OpGet(h.name, clientv3.WithKeysOnly()))
	if err == nil && len(resp.Kvs) == 0 {
		l.mu.Lock()
		tell := func() {}
		if !h.over {
			tell = h.lose(h.reason())
		}
		l.mu.Unlock()
		tell()
	}
}

// Renew implements [lock.Locker]. If another Locker acquired the grant, or for a shorter TTL, Renew
// moves it to another etcd lease, of this one.
func (l *Locker) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	if err := l.ready(ctx, storekit.CheckRenewal(g)); err != nil {
		return lock.Grant{}, err
	}
	if g.Token == 0 {
		return lock.Grant{}, fmt.Errorf("%w: token 0: must be positive", lock.ErrInvalid)
	}
	err := l.within(ctx, func(ctx context.Context) (err error) {
		if err = l.endOf(ctx, g); err != nil {
			return err
		}
		h, renew := l.renewing(g), l.confirm
		if h == nil {
			e, err := l.find(ctx, g)
			if err != nil {
				return err
			}
			h, renew = l.revive(g, e), l.adopt
		}
		g, err = renew(ctx, h, g)
		l.renewed(h, g, err)
		return err
	})
	if err != nil {
		return lock.Grant{}, l.fail(ctx, err)
	}
	return g, nil
}

// endOf is what has been told of the end of g, nil if nothing: nobody may renew or release it
// then, although its key may be there until it is pruned. But if it has ended by its TTL, and another
// Locker has renewed it meanwhile, under an etcd lease of its own, it lives.
func (l *Locker) endOf(ctx context.Context, g lock.Grant) error {
	l.mu.Lock()
	h := l.byOwner[idOf(g)]
	if h == nil || h.ended == nil || h.ended.Token != g.Token {
		l.mu.Unlock()
		return nil
	}
	x := *h
	l.mu.Unlock()
	if x.ended.Reason != lock.ReasonExpired {
		return x.ended
	}
	resp, err := l.read(ctx, clientv3.OpGet(x.name, clientv3.WithKeysOnly()))
	if err != nil {
		return err
	}
	for _, kv := range resp.Kvs {
		if kv.CreateRevision == x.rev && kv.ModRevision != x.mod && !l.owns(kv) {
			return nil
		}
	}
	return x.ended
}

// owns reports whether the key is under an etcd lease of this Locker.
func (l *Locker) owns(kv *mvccpb.KeyValue) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.own[clientv3.LeaseID(kv.Lease)] != nil
}

// renewing returns the grant and keeps it from ending until renewed.
func (l *Locker) renewing(g lock.Grant) *hold {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.byOwner[idOf(g)]
	if h == nil || h.over || h.lease == nil || h.g.Token != g.Token {
		return nil
	}
	h.renewals++
	return h
}

// revive does so with a grant of which e is the entry, and that does not live in the books: another Locker
// has acquired it, or renewed it when it had ended here. What it was here makes room, and a prune of that
// which is under way has no effect once the key is put anew. Its doubt stays.
func (l *Locker) revive(g lock.Grant, e entry) *hold {
	l.mu.Lock()
	defer l.mu.Unlock()
	known := l.holdOf(g, e)
	old := l.byName[known.name]
	if old == known && !known.over && known.g.Token == g.Token { // another try of its owner was later
		known.renewals++
		l.byOwner[idOf(g)] = known
		return known
	}
	g.Shared, g.Start, g.TTL = e.shared, time.Now(), min(g.TTL, l.maxTTL)
	h := &hold{
		g: g, name: known.name, base: known.base, number: known.number, attempt: known.attempt,
		lined: true, doubt: known.doubt, rev: e.kv.CreateRevision, mod: known.mod, seen: known.seen, until: known.until,
		renewals: 1,
	}
	switch {
	case old == nil:
	case old == known, old.attempt == "": // an acquire of that name which is under way is refused
		old.over, old.lost = true, nil
		if l.byOwner[idOf(old.g)] == old {
			delete(l.byOwner, idOf(old.g))
		}
	default: // the entry has gone since it was read, and its name is in use again
		return h
	}
	l.byOwner[idOf(g)], l.byName[h.name] = h, h
	l.arm()
	return h
}

// renewed notes what came of a renewal. The grant lives for as long as any has promised.
func (l *Locker) renewed(h *hold, g lock.Grant, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h.renewals--
	switch {
	case errors.Is(err, lock.ErrLost):
		h.lost, h.over, h.due = nil, true, time.Now()
	case err == nil && g.Start.Add(g.TTL).After(h.g.Start.Add(h.g.TTL)):
		h.g.Start, h.g.TTL = g.Start, g.TTL
	}
}

// confirm keeps the etcd lease of h alive and reads its key, side by side: in whatever order
// they take effect, the key is there for a TTL from now on unless somebody deletes it.
func (l *Locker) confirm(ctx context.Context, h *hold, g lock.Grant) (lock.Grant, error) {
	l.mu.Lock()
	le, mod := h.lease, h.mod
	l.mu.Unlock()
	start := time.Now()
	beat := l.freshen(le, start)
	out, err := l.reads.send(ctx, part{
		ops: []clientv3.Op{clientv3.OpGet(h.name, clientv3.WithKeysOnly())}, every: le.impatience(),
	})
	if err != nil {
		return g, err
	}
	kvs := out.ops[0].GetResponseRange().Kvs
	there := len(kvs) > 0 && kvs[0].CreateRevision == l.revisionOf(g.Token)
	if there && (kvs[0].ModRevision != mod || le.ttl < min(g.TTL, l.maxTTL)) {
		return l.adopt(ctx, h, g)
	}
	if there {
		err = beat.wait(ctx, l)
	}
	if !there || isGone(err) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return g, &lock.LostError{Reason: h.reason(), Token: g.Token, Err: err}
	}
	g.TTL, g.Start = le.ttl, start
	return g, err
}

// adopt renews a grant that this Locker did not know, that another has renewed meanwhile, or whose
// lease is too short, by putting its key under a lease of its own. The other will not delete the key then: it
// looks at the mod revision. So does this put, which may take effect late: it must not take
// the key from a newer lease to an older one.
func (l *Locker) adopt(ctx context.Context, h *hold, g lock.Grant) (lock.Grant, error) {
	le, err := l.leaseFor(ctx, min(g.TTL, l.maxTTL))
	if err != nil {
		return g, err
	}
	for seen := int64(-1); ; { // no key has that one
		start := time.Now()
		beat := l.freshen(le, start)
		out, err := l.writes.send(ctx, part{every: le.impatience(), ops: transaction(
			[]clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(h.name), "=", seen)},
			[]clientv3.Op{clientv3.OpPut(h.name, "", clientv3.WithIgnoreValue(), clientv3.WithLease(le.id))},
			[]clientv3.Op{clientv3.OpGet(h.name, clientv3.WithKeysOnly()), everyone(h.base, 1)},
		)})
		if err != nil {
			l.suspect(err, le)
			if (out.doubt || out.full) && seen >= 0 {
				l.attempted(h, seen)
			}
			return g, err
		}
		ok, ops := did(out.ops)
		if ok {
			g.TTL, g.Start = le.ttl, start
			l.moved(h, le, out.rev)
			return g, beat.wait(ctx, l)
		}
		kvs := ops[0].GetResponseRange().Kvs
		if len(kvs) == 0 || kvs[0].CreateRevision != l.revisionOf(g.Token) {
			return g, lostTo(g, ops[1].GetResponseRange())
		}
		seen = kvs[0].ModRevision
	}
}

// moved notes that h's key is under le since revision mod. A later renewal may have been answered before.
func (l *Locker) moved(h *hold, le *lease, mod int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if mod > h.mod {
		h.mod, h.lease = mod, le
	}
	if mod > h.seen {
		h.seen = 0
	}
}

// attempted notes that the answer to an adoption was not waited for. It may have taken effect, or may do so as
// long as the key is at revision seen.
func (l *Locker) attempted(h *hold, seen int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	h.seen, h.until = max(h.seen, seen), time.Now().Add(storekit.UndoLife)
}
