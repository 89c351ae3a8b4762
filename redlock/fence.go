package redlock

import (
	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock/redis"
)

// Fence guards values in one Redis server, or one Cluster, with tokens of any store: see
// [redis.Fence]. It refuses a step whose token is older than the newest seen. One atomic script
// checks the token and runs the step. Read through it as well as write.
//
// The server may be one of the nodes, but the value is then only as safe as that node. Tokens of
// Redlock rise for a key whichever nodes have granted it, so any Fence can compare them.
type Fence = redis.Fence

// NewFence returns a Fence for values on the server of rdb. It does no I/O. If rdb is a client
// that [redis.New] would refuse, every call returns an error.
func NewFence(rdb goredis.UniversalClient) *Fence { return redis.NewFence(rdb) }
