package etcd

import (
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// tickEvery is how often a Locker that has anything looks after it. A grant that is younger is
// not watched, so that short holds pay nothing; its watch begins at its revision.
const tickEvery = 200 * time.Millisecond

// hold is what one owner has on the server: nothing yet, a place in line, a grant, or what is to
// be pruned. The Locker's mutex guards it.
//
//	it is      by           next     when
//	acquiring  no Token     held     it is granted, or a release hands it the lock
//	                        spent    its Acquire fails, it is undone, or Renew finds its grant before it does
//	                        gone     its Acquire fails, and has left nothing
//	held       a Token      leaving  Release
//	                        ended    its TTL is over, its key deleted, its etcd lease gone: Lost is told
//	                        spent    a renewal finds that it is lost, or it is undone
//	leaving    leaving      gone     the release is answered
//	                        spent    it is not, it is in doubt, or what ends a grant comes before
//	ended      over, ended  leaving  another Locker has renewed it, and it is released here
//	                        gone     the same, and it is renewed here: a new hold takes its place
//	                        gone     it is pruned
//	spent      over         leaving  Release, once more
//	                        gone     it is pruned, or it is there and renewed here: likewise
//	gone       not in byName
type hold struct {
	g          lock.Grant // without a Token while it is none
	name, base string
	number     int32  // in the name; -1: it is not used again
	attempt    string // process and number of the first name of its Acquire, for a tombstone; "": another Locker's

	waiter *acquisition // nil: it does not stand in line
	lined  bool         // its name may be the tail
	doubt  bool         // a late request may yet create the key

	rev, mod int64     // create revision, and that of this Locker's last put; 0: not known
	gone     int64     // revision of its last deletion that was told; 0: none
	seen     int64     // a renewal without an answer puts the key if it is at that revision yet; 0: none does
	until    time.Time // and not after that
	tried    *lease    // under which
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
// have told its end already. It reports whether it has noted it: not if the owner has been undone, and the key
// with it, nor if g is of a handover whose reply comes when that entry is gone, and h is to line up anew.
func (l *Locker) granted(h *hold, g lock.Grant, mod int64, le *lease) bool {
	tell := func() {}
	l.mu.Lock()
	if !h.over && h.rev == l.revisionOf(g.Token) {
		h.g, h.mod, h.lease = g, mod, le
		l.byOwner[idOf(g)] = h
		if h.waiter, h.lined = nil, false; h.gone > mod {
			tell = h.lose(h.reason())
		}
	}
	granted := h.g.Token == g.Token
	l.mu.Unlock()
	tell()
	return granted
}

// anew prepares a, whose key is gone, to enter once more, unless it has been undone: the tombstone may
// be on its way yet. It may have been granted the lock by a handover of which it has not heard, and which
// is lost: that one is pruned by itself, and its name may be another's by now.
func (l *Locker) anew(a *acquisition) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	a.unplace()
	old := a.h
	if old.over && old.g.Token == 0 {
		return storekit.ErrUndone
	}
	if old.over || old.number < 0 {
		a.h = &hold{g: old.g, lost: old.lost}
		if !old.over { // nobody prunes it: what may come late for it, this one has to refuse
			delete(l.byName, old.name)
			a.h.attempt, a.h.doubt = old.attempt, old.doubt
		}
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
	var calls []func()
	defer func() { // without the mutex
		for _, f := range calls {
			f()
		}
	}()
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
		calls = l.deleted(h.name, rev)
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
	l.mu.Lock()
	token := h.g.Token
	l.mu.Unlock()
	resp, err := l.read(l.ctx, clientv3.OpGet(h.name, clientv3.WithKeysOnly()))
	if err == nil && len(resp.Kvs) == 0 {
		l.mu.Lock()
		tell := func() {}
		if !h.over && token != 0 && h.g.Token == token { // else it has lined up anew
			tell = h.lose(h.reason())
		}
		l.mu.Unlock()
		tell()
	}
}
