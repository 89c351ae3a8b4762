package redis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/rediskit"
)

// runner executes scripts, each on the master that has its keys.
type runner struct {
	single  *rediskit.Lane
	cluster *goredis.ClusterClient // nil unless it is one
	known   atomic.Bool            // the Cluster's map has been loaded

	mu     sync.RWMutex // guards byNode
	byNode map[*goredis.Client]*rediskit.Lane
}

func newRunner(rdb goredis.UniversalClient) (*runner, error) {
	r := new(runner)
	var node *goredis.Client
	absent := rdb == nil
	switch c := rdb.(type) {
	case *goredis.Client:
		node, absent = c, c == nil
	case *goredis.ClusterClient:
		absent = c == nil
		r.cluster, r.byNode = c, make(map[*goredis.Client]*rediskit.Lane)
	case *goredis.Ring:
		return nil, fmt.Errorf("%w: redis: a Ring moves keys when a shard is down, so two could hold a lock: use a Cluster", lock.ErrInvalid)
	}
	if absent {
		return nil, fmt.Errorf("%w: redis: client is nil", lock.ErrInvalid)
	}
	r.single = rediskit.NewLane(rdb, node)
	return r, nil
}

// laneOf is the way to the server that has key. Until the Cluster's map is loaded, by the
// first call that comes back, all calls share one lane, since loading it may block.
func (r *runner) laneOf(key string) *rediskit.Lane {
	if r.cluster == nil || !r.known.Load() {
		return r.single
	}
	node, err := r.cluster.MasterForKey(context.Background(), key)
	if err != nil {
		return r.single // the call itself will tell
	}
	r.mu.RLock()
	way := r.byNode[node]
	r.mu.RUnlock()
	if way != nil {
		return way
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if way = r.byNode[node]; way == nil {
		way = rediskit.NewLane(r.cluster, node)
		r.byNode[node] = way
	}
	return way
}

// How often, and after which pauses, a call is sent again.
const (
	maxSends   = 4  // after an error of the connection: it may have been executed
	maxRefused = 10 // after a reply that says "not now": it was not executed
	minPause   = 8 * time.Millisecond
	maxPause   = 512 * time.Millisecond
)

// run executes s on the server that has keys[0] and returns its reply. Its scripts may be
// sent again after an unknown outcome; sent says how often it was. Pauses grow
// exponentially with full jitter. It returns promptly when ctx ends, with ctx.Err().
func (r *runner) run(ctx context.Context, s *script, keys []string, args ...any) (reply any, sent int, err error) {
	return r.repeat(ctx, maxSends, s, keys, args)
}

// repeat is run with a limit: 1 for a script that must not be executed twice.
func (r *runner) repeat(ctx context.Context, sends int, s *script, keys []string, args []any) (reply any, sent int, err error) {
	bySource := false
	for refused := 0; ; {
		again := sends > 1 && sent == 0 && refused == 0 // by a short cut, that is
		reply, err = r.laneOf(keys[0]).Do(ctx, s.Args(bySource, keys, args), again)
		switch {
		case err == nil:
			r.known.Store(true)
			return reply, sent + 1, nil
		case ctx.Err() != nil:
			return nil, sent + 1, ctx.Err()
		case goredis.HasErrorPrefix(err, "NOSCRIPT") && !bySource:
			bySource = true // the server was started anew or has taken over: it learns it
			continue
		case notNow(err):
			refused++
		case goredis.HasErrorPrefix(err, "WRONGTYPE"):
			// Redis does not say which key.
			return nil, sent, fmt.Errorf("%w: %q or a key beside it holds something else", wrap(err), keys[0])
		case rediskit.IsReply(err), errors.Is(err, goredis.ErrClosed):
			return nil, sent, wrap(err)
		default:
			if sent++; sends > 1 && sends < maxSends+rediskit.MaxStale && rediskit.IsStale(err) {
				sends++
			}
		}
		if sent == sends || refused == maxRefused {
			return nil, sent, wrap(err)
		}
		if err := pause(ctx, refused+sent); err != nil {
			return nil, sent, err
		}
	}
}

// notNow tells whether a server has answered that it will execute the command later, or
// that another server would: during a start, a failover, a resharding.
func notNow(err error) bool {
	for _, prefix := range []string{"TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY", "MOVED", "ASK", "BUSY"} {
		if goredis.HasErrorPrefix(err, prefix) {
			return true
		}
	}
	return false
}

func pause(ctx context.Context, n int) error {
	t := time.NewTimer(1 + rand.N(min(minPause<<min(n, 16), maxPause)))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wrap says where an error of the client or the server comes from.
func wrap(err error) error {
	if errors.Is(err, goredis.ErrClosed) {
		return fmt.Errorf("lock: redis: the client is closed: %w", err)
	}
	return fmt.Errorf("lock: redis: %w", err)
}
