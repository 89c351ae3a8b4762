package redlock

import (
	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock/redis"
)

// Fence guards values in a Redis server by tokens, whichever locks these are from: see
// [redis.Fence]. It refuses a step whose token is older than the newest that it has seen,
// in the same atomic script as the step. Read through it as well as write.
//
// The values, and their marks, are on one server, or one Cluster. That may be one of the
// nodes, but a value on one node is as safe as that node: what must outlive it belongs
// elsewhere. Tokens of Redlock are comparable wherever they go, since they rise for a key
// whichever nodes have granted it.
type Fence = redis.Fence

// NewFence returns a Fence for values on the server of rdb, doing no I/O. A bad client is an
// error that every call returns.
func NewFence(rdb goredis.UniversalClient) *Fence { return redis.NewFence(rdb) }
