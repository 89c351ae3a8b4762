package redis

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/rediskit"
)

// Fence guards values in Redis: it refuses a step whose token is older than the newest seen for
// the key. One atomic script checks the token and runs the step.
//
// A read-modify-write must read through the Fence too. Otherwise a holder that froze between its
// read and its write overwrites its successor's update. Reading raises the mark, so once a
// successor has read, the predecessor's write is refused.
//
// The mark of a key lives beside it, under a name of its own. It never expires, because a stale
// holder may wake at any time. Tokens of shared leases do not order their holders.
//
// If ctx ends during a write, the write may or may not have happened. Inside Do, ctx ends with
// the lease. If you must know the outcome, send the write with context.WithoutCancel and a
// timeout: the token protects the value, not ctx.
//
// A Fence is safe for concurrent use and needs no closing. Make one with [NewFence].
type Fence struct {
	prefix  string
	servers *servers
	err     error
}

// NewFence returns a Fence for values on the servers of rdb. It does no I/O. The names of marks
// begin with "fence:". If rdb is one that [New] would refuse, every call returns an error.
func NewFence(rdb goredis.UniversalClient) *Fence {
	s, err := newServers(rdb)
	return &Fence{prefix: "fence:", servers: s, err: err}
}

// Get reads a string value. It returns goredis.Nil if there is none, and a *lock.StaleError if
// token is stale.
func (f *Fence) Get(ctx context.Context, key string, token lock.Token) (string, error) {
	reply, err := f.run(ctx, true, token, stepGet, []string{key})
	if err != nil {
		return "", err
	}
	return rediskit.Text(reply), nil
}

// Set writes a string value, which expires after ttl if ttl is positive. value is what go-redis can
// send; one that cannot be marshalled is ErrInvalid. If token is stale, Set returns a *lock.StaleError
// and writes nothing. After a connection error the value may have been written, or may yet be. Set
// does not retry: the late first request has the same token, so it would pass and overwrite what
// the holder has written since.
func (f *Fence) Set(ctx context.Context, key string, token lock.Token, value any, ttl time.Duration) error {
	_, err := f.run(ctx, false, token, stepSet, []string{key}, value, rediskit.Milliseconds(max(ttl, 0)))
	return err
}

// Eval runs a step of the caller's own: the body of a Lua function that uses KEYS and ARGV as
// any script does. It returns what the step returns, or goredis.Nil for nothing. The mark is
// that of keys[0]. In a Cluster all keys must share its hash tag. After a *lock.StaleError the
// step did not run. After a connection error it may have run: Eval does not retry. Nor does it when the
// step fails, since Redis does not roll back what a script has written before.
func (f *Fence) Eval(ctx context.Context, token lock.Token, step string, keys []string, args ...any) (any, error) {
	return f.run(ctx, false, token, composed(step), keys, args...)
}

var (
	stepGet = composed(`return redis.call('GET', KEYS[1])`)
	stepSet = composed(`if ARGV[2] == '0' then return redis.call('SET', KEYS[1], ARGV[1]) end
return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])`)
)

func (f *Fence) run(ctx context.Context, again bool,
	token lock.Token, step *script, keys []string, args ...any,
) (any, error) {
	switch {
	case f == nil || f.servers == nil && f.err == nil:
		return nil, fmt.Errorf("%w: redis: the Fence was not made by NewFence", lock.ErrInvalid)
	case f.err != nil:
		return nil, f.err
	}
	if token == 0 || token > lock.MaxToken {
		return nil, fmt.Errorf("%w: token %d: must be from 1 to %d", lock.ErrInvalid, token, lock.MaxToken)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%w: fence: no keys: the mark is that of the first key", lock.ErrInvalid)
	}
	mark, err := f.mark(keys[0])
	if err != nil {
		return nil, err
	}
	values, err := immutable(args)
	if err != nil {
		return nil, err
	}
	e := step.With(append([]string{mark}, keys...), append([]any{token.String()}, values...)...)
	var reply any
	if again {
		reply, _, err = f.servers.run(ctx, e)
	} else {
		reply, err = f.servers.once(ctx, e, step == stepSet)
	}
	if err != nil {
		return nil, err
	}
	list, _ := reply.([]any)
	switch {
	case len(list) == 2 && list[0] == "stale":
		newest, _ := lock.ParseToken(rediskit.Text(list[1]))
		return nil, &lock.StaleError{Key: keys[0], Token: token, Newest: newest}
	case len(list) == 1 && list[0] == "done", len(list) == 2 && list[1] == nil:
		return nil, goredis.Nil
	case len(list) == 2 && list[0] == "done":
		if err, ok := list[1].(error); ok {
			return nil, wrap(err)
		}
		return list[1], nil
	}
	return nil, errors.New("lock: redis: unexpected reply of a fenced step")
}

// composed is the guard and the step in one script.
func composed(step string) *script {
	return rediskit.NewScript(fenceGuard + "local function step()\n" + step + "\nend\nreturn {'done', (step())}\n")
}

// mark names the mark of key, with key's hash tag, so that a Cluster keeps both on one node.
func (f *Fence) mark(key string) (string, error) {
	if key == "" {
		return "", fmt.Errorf("%w: fence: key is empty", lock.ErrInvalid)
	}
	if _, rest, ok := strings.Cut(key, "{"); ok {
		if inner, _, ok := strings.Cut(rest, "}"); ok && inner != "" {
			return f.prefix + "{" + inner + "}" + key, nil
		}
	}
	if strings.Contains(key, "}") {
		return "", fmt.Errorf("%w: fence: key %q has a brace but no hash tag, so a Cluster could not keep its mark beside it", lock.ErrInvalid, key)
	}
	return f.prefix + "{" + key + "}", nil
}
