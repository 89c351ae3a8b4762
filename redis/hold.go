package redis

import (
	"context"
	"runtime"
	"strconv"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/rediskit"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// Renew implements [lock.Locker].
func (l *Locker) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	if err := storekit.CheckRenewal(g); err != nil {
		return lock.Grant{}, err
	}
	if err := l.ready(ctx); err != nil {
		return lock.Grant{}, err
	}
	k, ttl, start := l.keys(g.Key), rediskit.Milliseconds(g.TTL), time.Now()
	var reply any
	var err error
	if g.Shared {
		reply, _, err = l.servers.run(ctx, renewSharedScript.With(k.all(), g.Token.String()+":", ttl, g.Owner))
	} else {
		reply, _, err = l.servers.run(ctx, renewScript.With([]string{k.record()}, identity(g), ttl))
	}
	if err == nil {
		err = lost(reply, g)
	}
	g.TTL, g.Start = time.Duration(ttl)*time.Millisecond, start
	return l.registry.Renewed(g, err)
}

// Release implements [lock.Locker]. If a reply is lost, Release asks again. It returns nil if it
// then finds the grant gone before the grant can have expired: the first request must have
// released it.
func (l *Locker) Release(ctx context.Context, g lock.Grant) error {
	if err := lock.CheckGrant(g); err != nil {
		return err
	}
	if err := l.ready(ctx); err != nil {
		return err
	}
	l.registry.Drop(g.Owner)
	return l.doubts.Release(ctx, g, l.end, l.undo)
}

// end ends a grant, an exclusive one by the short script unless somebody waits.
func (l *Locker) end(ctx context.Context, g lock.Grant) (err error) {
	k := l.keys(g.Key)
	var reply any
	var unsure bool
	if g.Shared {
		reply, unsure, err = l.servers.run(ctx, releaseSharedScript.With(k.all(), g.Token.String()+":", l.channels(), g.Owner))
	} else {
		if !l.contended.Has(g.Key) {
			reply, unsure, err = l.servers.run(ctx, dropScript.With([]string{k.record()}, identity(g)))
		}
		if err == nil && (reply == nil || reply == int64(3)) {
			reply, unsure, err = l.handOver(ctx, g, k)
		}
	}
	if err != nil {
		return err
	}
	if unsure && storekit.Vanished(g) == 0 {
		return nil
	}
	return lost(reply, g)
}

// handOver releases an exclusive grant. When the next in line waits in this process too,
// the same script grants to it, and the reply, for which start was taken before the
// request was sent, is its proof: a hand-over in one round trip. If that reply is lost the
// waiter finds its grant when it looks again, which it is told to do at once.
func (l *Locker) handOver(ctx context.Context, g lock.Grant, k keyset) (reply any, unsure bool, err error) {
	start := time.Now()
	reply, unsure, err = l.servers.run(ctx, releaseScript.With(k.all(),
		identity(g), l.channels(), l.process, l.counterMS))
	if err != nil || unsure {
		l.registry.WakeAll()
	}
	next, ok := reply.([]any)
	if !ok || len(next) != 2 {
		return reply, unsure, err
	}
	l.registry.Deliver(rediskit.Text(next[0]), storekit.Handover{Token: lock.Token(number(next[1])), Start: start})
	runtime.Gosched() // the next holder goes first: those behind it wait for its release
	return int64(1), unsure, nil
}

func (l *Locker) undo(ctx context.Context, g lock.Grant) error {
	reply, _, err := l.servers.run(ctx, undoScript.With(l.keys(g.Key).all(),
		g.Owner, storekit.UndoLife.Milliseconds(), l.channels(), l.counterMS))
	if err == nil && reply != int64(1) {
		return unexpected(reply)
	}
	return err
}

// identity is what the record of an exclusive grant begins with.
func identity(g lock.Grant) string {
	b := strconv.AppendUint(make([]byte, 0, 128), uint64(g.Token), 10)
	b = append(append(append(b, ':'), g.Owner...), ':')
	return string(b)
}

// lost reads the reply of the renew and release scripts.
func lost(reply any, g lock.Grant) error {
	switch reply {
	case int64(1):
		return nil
	case int64(0):
		return &lock.LostError{Reason: storekit.Vanished(g), Token: g.Token}
	case int64(2):
		return &lock.LostError{Reason: lock.ReasonTaken, Token: g.Token}
	}
	return unexpected(reply)
}
