package redis

import (
	"context"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock/internal/rediskit"
)

// quiet is how long a connection may be silent before it is pinged, and then given up.
const quiet = 3 * time.Second

// subscribe is one life of the connection on which this Locker hears of releases and forced
// losses.
func (l *Locker) subscribe(ctx context.Context, subscribed func(), heard func(string)) error {
	ps, err := l.servers.subscribe(ctx, l.channels()+l.process)
	if err != nil {
		return wrap(err)
	}
	defer func() { _ = ps.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = ps.Close() }) // interrupts a blocked read
	defer stop()
	for pinged := false; ; {
		msg, err := ps.ReceiveTimeout(ctx, quiet)
		switch m := msg.(type) {
		case *goredis.Subscription:
			subscribed()
		case *goredis.Message:
			heard(m.Payload)
		}
		switch {
		case err == nil:
			pinged = false
		case ctx.Err() != nil || !rediskit.IsTimeout(err) || pinged:
			return wrap(err)
		default:
			if err := ps.Ping(ctx); err != nil {
				return wrap(err)
			}
			pinged = true
		}
	}
}

// subscribe makes a connection, and asks for a channel on it. Connecting takes no longer than quiet, nor
// does what the client does on a new connection, whatever its own timeouts: it may have none. The
// Cluster's map is loaded by those.
func (s *servers) subscribe(ctx context.Context, channel string) (*goredis.PubSub, error) {
	node, _ := s.rdb.(*goredis.Client)
	if s.cluster != nil {
		var err error
		if node, err = s.cluster.MasterForKey(ctx, channel); err != nil {
			return nil, err
		}
	}
	ps := node.WithTimeout(quiet).Subscribe(ctx)
	ctx, cancel := context.WithTimeout(ctx, quiet)
	defer cancel()
	if err := ps.Subscribe(ctx, channel); err != nil {
		_ = ps.Close()
		return nil, err
	}
	return ps, nil
}

// probe sends this Locker a message the way that scripts wake its waiters: by way of the
// server that decides. A Cluster passes messages on from any server to all.
func (l *Locker) probe(ctx context.Context, payload string) error {
	_, _, err := l.servers.run(ctx, publishScript.With(l.keys("probe").all()[:1], l.channels()+l.process, payload))
	return err
}
