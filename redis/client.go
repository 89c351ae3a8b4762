package redis

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/rediskit"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// servers executes scripts, each on the master that has its keys.
type servers struct {
	rdb     goredis.UniversalClient
	single  *rediskit.Lane
	cluster *goredis.ClusterClient // nil unless it is one
	known   atomic.Bool            // the Cluster's map has been loaded

	mu     sync.RWMutex // guards byNode
	byNode map[*goredis.Client]way
}

// way is a lane to a node of a Cluster.
type way struct {
	lane *rediskit.Lane
	key  string // one that was the node's when the lane was made
}

func newServers(rdb goredis.UniversalClient) (*servers, error) {
	s := new(servers)
	switch c := rediskit.Unwrap(rdb).(type) {
	case nil:
		return nil, errNoClient
	case *goredis.Client:
		s.rdb, s.single = c, rediskit.NewLane(c, c)
	case *goredis.ClusterClient:
		s.rdb, s.single = c, rediskit.NewLane(c, nil)
		s.cluster, s.byNode = c, make(map[*goredis.Client]way)
	case *goredis.Ring:
		return nil, fmt.Errorf("%w: redis: a Ring moves keys when a shard is down, so two could hold a lock: use a Cluster", lock.ErrInvalid)
	default:
		return nil, fmt.Errorf("%w: redis: client of type %T: give it a method Unwrap() goredis.UniversalClient, "+
			"which tells a single server from a Cluster and a Ring", lock.ErrInvalid, c)
	}
	return s, nil
}

var errNoClient = fmt.Errorf("%w: redis: client is nil", lock.ErrInvalid)

// laneOf is the way to the server that has key. Until the Cluster's map is loaded, by the
// first call that comes back, all calls share one lane, since loading it may block.
func (s *servers) laneOf(key string) *rediskit.Lane {
	if s.cluster == nil || !s.known.Load() {
		return s.single
	}
	node, err := s.cluster.MasterForKey(context.Background(), key)
	if err != nil {
		return s.single // the call itself will tell
	}
	s.mu.RLock()
	to := s.byNode[node]
	s.mu.RUnlock()
	if to.lane != nil {
		return to.lane
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if to = s.byNode[node]; to.lane == nil {
		s.forget()
		to = way{rediskit.NewLane(s.cluster, node), key}
		s.byNode[node] = to
	}
	return to.lane
}

// forget drops the lanes to nodes that have left the Cluster, and to those that have given their key
// away: these are made anew. s.mu is held.
func (s *servers) forget() {
	maps.DeleteFunc(s.byNode, func(node *goredis.Client, to way) bool {
		now, err := s.cluster.MasterForKey(context.Background(), to.key)
		return err == nil && now != node
	})
}

// run executes a script on the server that has its first key and returns its reply. The script
// may be sent again after an unknown outcome; unsure says that an earlier sending may still be
// executed. It returns promptly when ctx ends, with ctx.Err().
func (s *servers) run(ctx context.Context, e rediskit.Eval) (reply any, unsure bool, err error) {
	reply, err = s.send(ctx, e, true)
	if err == nil {
		return reply, false, nil
	}
	return s.rerun(ctx, e, err)
}

// rerun goes on with a run whose first sending failed with err.
func (s *servers) rerun(ctx context.Context, e rediskit.Eval, err error) (reply any, unsure bool, _ error) {
	unsure, err = rediskit.Repeat(ctx, s.rdb, classify, func(ctx context.Context, n int) error {
		if n > 0 {
			reply, err = s.send(ctx, e, false)
		}
		return err
	})
	return reply, unsure, err
}

// quick executes a script if its server is known to answer fast, and only once. sent is false if it
// was not sent. Else it may, after an error, have been executed, or be executed yet.
func (s *servers) quick(ctx context.Context, e rediskit.Eval) (reply any, sent bool, err error) {
	return s.laneOf(e.Key()).Quick(ctx, e.ByName)
}

// once is run for a script that must not be executed twice. own says that it has no step of a caller's:
// the server refuses its first write, or none.
func (s *servers) once(ctx context.Context, e rediskit.Eval, own bool) (reply any, err error) {
	classify := func(err error) storekit.Class {
		if class := classify(err); class != storekit.Unknown && (own || !e.Raised(err)) {
			return class
		}
		return storekit.Final
	}
	_, err = storekit.Repeat(ctx, classify, func(ctx context.Context, _ int) (err error) {
		reply, err = s.send(ctx, e, false)
		return err
	})
	return reply, err
}

// send asks the server, which it teaches the script if need be. short allows the lane's short
// cut, after which a call is sent again.
func (s *servers) send(ctx context.Context, e rediskit.Eval, short bool) (reply any, err error) {
	reply, err = s.laneOf(e.Key()).Do(ctx, e.ByName, short)
	if err != nil && goredis.HasErrorPrefix(err, "NOSCRIPT ") && !e.Raised(err) { // it was started anew, or has taken over
		reply, err = s.laneOf(e.Key()).Do(ctx, e.BySource(), short)
	}
	switch {
	case err == nil:
		s.known.Store(true)
		return reply, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	return nil, wrap(rediskit.Explain(err, e.Key()))
}

// classify implements the classes of storekit for the errors of send.
func classify(err error) storekit.Class {
	if errors.Is(err, storekit.ErrUndone) || errors.Is(err, errForeign) {
		return storekit.Final
	}
	return rediskit.Classify(err)
}

// wrap says where an error of the client or the server comes from.
func wrap(err error) error {
	if errors.Is(err, goredis.ErrClosed) {
		return storekit.ClientClosed("redis", err)
	}
	return fmt.Errorf("lock: redis: %w", err)
}
