package etcd

import (
	"context"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
)

// WatchDelay is how old a grant is when its key begins to be watched.
const WatchDelay = watchDelay

// Breaks is how many broken connections one call gets over.
const Breaks = breaks

// Stable leaves changes of leader out of ExpirySlack, where there are none: the suite holds
// the store to what is left.
func Stable(l *Locker) error {
	l.stable = true
	return nil
}

// ForgetLeases has a new etcd lease asked for when one is needed, as if the last had not been
// confirmed for long.
func (l *Locker) ForgetLeases() {
	l.leases.mu.Lock()
	defer l.leases.mu.Unlock()
	clear(l.leases.current)
}

// AppearLate lets the key appear that an Acquire of req asked for, as if its request had been
// under way all the time. The first call must come before req is undone.
func (l *Locker) AppearLate(tb testing.TB, req lock.Request) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	le, err := l.leases.get(ctx, req.TTL)
	if err != nil {
		tb.Fatal(err)
	}
	name := l.base(req.Key) + exclusiveMark + l.slots.process + ".0"
	v := value{Owner: req.Owner}.String()
	if _, err = l.cli.Put(ctx, name, v, clientv3.WithLease(le.id)); err != nil {
		tb.Fatal(err)
	}
}

// Gathered is how many transactions wait to be sent together.
func (l *Locker) Gathered() int {
	l.lane.mu.Lock()
	defer l.lane.mu.Unlock()
	return len(l.lane.queue)
}
