package etcd

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
)

// books is a Locker without a server.
func books() *Locker {
	return &Locker{
		prefix: "lock/", ticking: true, byOwner: make(map[id]*hold), byName: make(map[string]*hold),
		behind: make(map[string][]*acquisition),
	}
}

// waiter is an acquisition that stands in line at rev.
func (l *Locker) waiter(owner string, rev int64) *acquisition {
	h := l.add(lock.Request{Key: "k", Owner: owner})
	a := &acquisition{l: l, h: h}
	h.rev, h.mod, h.waiter = rev, rev, a
	return a
}

// TestAnewBesideTheNextOfTheName: a waiter was handed the lock unheard and lost it, that is pruned, and another has
// its name when it finds out. It lines up under a name of its own, and the other stays in the books.
func TestAnewBesideTheNextOfTheName(t *testing.T) {
	l := books()
	w := l.waiter("w", 5)
	old := w.h
	require.True(t, l.granted(old, lock.Grant{Key: "k", Owner: "w", Token: 5}, 6, nil))
	old.lose(lock.ReasonForced)
	l.forget(old, 0)
	next := l.waiter("next", 8)
	require.Equal(t, old.name, next.h.name)
	require.NoError(t, l.anew(w))
	require.Same(t, next.h, l.byName[next.h.name])
	require.Same(t, w.h, l.byName[w.h.name])
	require.NotEqual(t, next.h.name, w.h.name)
	require.NotEqual(t, old.attempt, w.h.attempt)
}

// TestReplyOfAnEarlierGrant: a waiter was handed the lock unheard, finds that its entry is gone, and lines up anew.
// What comes then of the earlier grant, a renewal that was lost or the reply to the handover, does not concern it.
func TestReplyOfAnEarlierGrant(t *testing.T) {
	l := books()
	w := l.waiter("w", 5)
	g := lock.Grant{Key: "k", Owner: "w", Token: 5}
	require.True(t, l.granted(w.h, g, 6, new(lease)))
	h := l.renewing(g)
	require.Same(t, w.h, h)
	require.NoError(t, l.anew(w))
	l.renewed(h, g, &lock.LostError{Token: 5})
	require.False(t, h.over)

	require.False(t, l.granted(h, g, 6, new(lease)), "it has no entry")
	h.rev = 9
	require.False(t, l.granted(h, g, 6, new(lease)), "it has another")
	require.Equal(t, int64(9), h.rev)
	require.Zero(t, h.g.Token)
	g.Token = 9
	require.True(t, l.granted(h, g, 9, new(lease)))
	h.lose(lock.ReasonForced)
	require.True(t, l.granted(h, g, 9, new(lease)), "whose end was told before")
}

// TestAnewLeavesWhatIsPruned: likewise, and that is not pruned yet. It is pruned all the same, in doubt with a
// tombstone of its attempt, which does not refuse the new one.
func TestAnewLeavesWhatIsPruned(t *testing.T) {
	l := books()
	w := l.waiter("w", 5)
	old := w.h
	old.doubt = true
	require.True(t, l.granted(old, lock.Grant{Key: "k", Owner: "w", Token: 5}, 6, nil))
	old.lose(lock.ReasonForced)
	require.NoError(t, l.anew(w))
	require.Same(t, old, l.byName[old.name])
	require.NotEqual(t, old.attempt, w.h.attempt)
	require.False(t, w.h.doubt)
}

// entryAt is an entry called name that was created at rev.
func entryAt(name, owner string, rev int64) entry {
	return entry{owner: owner, kv: &mvccpb.KeyValue{Key: []byte(name), CreateRevision: rev}}
}

// TestReviveOfWhatIsUnderWay: an owner renews its grant before its Acquire has heard of that, which ends then. A
// copy of the request may come later, so its release is to refuse that.
func TestReviveOfWhatIsUnderWay(t *testing.T) {
	l := books()
	under := l.add(lock.Request{Key: "k", Owner: "a"})
	h := l.revive(lock.Grant{Key: "k", Owner: "a", Token: 7}, entryAt(under.name, "a", 7))
	require.NotSame(t, under, h)
	require.True(t, h.doubt)
	require.True(t, under.over)
	require.Same(t, h, l.byName[under.name])
	under.rev = 7
	require.False(t, l.granted(under, lock.Grant{Key: "k", Owner: "a", Token: 7}, 7, nil))
}

// TestReviveOfAnEarlierGrant: what a renewal has found is gone, and its owner has another entry with that name
// when it comes to note it. That stays.
func TestReviveOfAnEarlierGrant(t *testing.T) {
	l := books()
	next := l.waiter("a", 9).h
	require.True(t, l.granted(next, lock.Grant{Key: "k", Owner: "a", Token: 9}, 9, new(lease)))
	h := l.revive(lock.Grant{Key: "k", Owner: "a", Token: 7}, entryAt(next.name, "a", 7))
	require.Same(t, next, l.byName[next.name])
	require.Same(t, next, l.byOwner[idOf(next.g)])
	require.False(t, next.over)
	l.renewed(h, lock.Grant{Key: "k", Owner: "a", Token: 7}, &lock.LostError{Token: 7})
	require.False(t, next.over)
}

// TestForgetTellsTheNext: a deletion that a release has learned of took the entry of who has the name by now. That
// one is told.
func TestForgetTellsTheNext(t *testing.T) {
	l, lost := books(), lock.LostReason(0)
	next := l.waiter("next", 8).h
	next.lost = func(r lock.LostReason) {
		l.mu.Lock() // it is free
		defer l.mu.Unlock()
		lost = r
	}
	require.True(t, l.granted(next, lock.Grant{Key: "k", Owner: "next", Token: 8}, 8, &lease{ttl: time.Minute, confirmed: time.Now()}))
	l.forget(&hold{g: lock.Grant{Key: "k", Owner: "w"}, name: next.name}, 9)
	require.Equal(t, lock.ReasonForced, lost)
}

// TestPruneAfterARestore: a backup was restored, in which the key of a grant that is over is as it was in line.
// What prunes it compares that, and does not keep its etcd lease alive for ever.
func TestPruneAfterARestore(t *testing.T) {
	l := books()
	le := &lease{id: 1, ttl: time.Second}
	l.own = map[clientv3.LeaseID]*lease{le.id: le}
	h := l.waiter("w", 5).h
	require.True(t, l.granted(h, lock.Grant{Key: "k", Owner: "w", Token: 5}, 5, le))
	h.mod, h.over = 9, true
	require.Same(t, le, l.strays(h, &pb.RangeResponse{Kvs: []*mvccpb.KeyValue{{CreateRevision: 5, ModRevision: 5, Lease: 1}}}))
	require.Equal(t, int64(5), h.mod)
}
