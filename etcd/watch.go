package etcd

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/connectivity"

	"github.com/seed-215fdefa/lock"
)

// errDisconnected ends a Watch: there is no connection on which changes would be told.
var errDisconnected = fmt.Errorf("%w: the client has no connection", errUnanswered)

// Watch implements [lock.Watcher], with an etcd watch on the entries of key. It returns when the
// client has no connection left: the etcd watch will resume, but nobody knows until then what
// has changed.
func (l *Locker) Watch(ctx context.Context, key string, changed func()) error {
	if err := l.ready(ctx, lock.CheckKey(key)); err != nil {
		return err
	}
	err := l.follows(ctx, key, changed)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case l.ctx.Err() != nil:
		return l.over()
	}
	return l.fail(ctx, err)
}

// follows calls changed for each event until the watch breaks. It requires a leader: a member
// that is cut off from the others would keep silent.
func (l *Locker) follows(ctx context.Context, key string, changed func()) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	unanswered := time.AfterFunc(requestTimeout, cancel)
	defer unanswered.Stop()
	from, end := rivals(l.baseOf(key), false)
	for resp := range l.cli.Watch(ctx, from, clientv3.WithRange(end), clientv3.WithCreatedNotify()) {
		if err := resp.Err(); err != nil {
			return err
		}
		if resp.Created && unanswered.Stop() {
			conn := l.cli.ActiveConnection()
			l.spawn(func() {
				if conn.WaitForStateChange(ctx, connectivity.Ready) {
					cancel()
				}
			})
		}
		changed()
	}
	return errDisconnected
}
