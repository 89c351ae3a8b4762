package etcd

import (
	"context"
	"fmt"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
)

// Fence guards keys in etcd: it refuses a step whose token is older than the newest seen for the
// resource. One transaction checks the token and runs the step.
//
// A read-modify-write must read through the Fence too. Otherwise a holder that froze between its
// read and its write overwrites its successor's update. Reading raises the mark, so once a
// successor has read, the predecessor's write is refused.
//
// A resource is whatever one lock protects: one key, or many that change together. Its name is
// the caller's choice. Its mark is a key under a prefix of its own, whose name has the newest
// token. The mark never expires, because a stale holder may wake at any time. Tokens of shared
// leases do not order their holders.
//
// If ctx ends during a step, the step may or may not have happened. Inside Do, ctx ends with the
// lease. If you must know the outcome, run the step with context.WithoutCancel and a timeout:
// the token protects the resource, not ctx.
//
// A Fence is safe for concurrent use and needs no closing. To fence transactions of your own,
// use [Fence.Fresh] and [Fence.Raise].
type Fence struct {
	kv     clientv3.KV
	prefix string
}

// NewFence returns a Fence for keys in kv, such as a *clientv3.Client. It does no I/O. The names
// of marks begin with "fence/". If kv is nil, every call returns an error.
func NewFence(kv clientv3.KV) *Fence {
	if c, ok := kv.(*clientv3.Client); ok && c == nil {
		kv = nil
	}
	return &Fence{kv: kv, prefix: "fence/"}
}

// marks is what the names of the marks of resource begin with.
func (f *Fence) marks(resource string) string { return f.prefix + escaping.Encode(resource) + "/" }

// mark has the token in digits that sort as the token does.
func (f *Fence) mark(resource string, token lock.Token) string {
	return fmt.Sprintf("%s%016d", f.marks(resource), uint64(token))
}

// newer is the range of the marks that refuse token.
func (f *Fence) newer(resource string, token lock.Token) (from, end string) {
	return f.mark(resource, token) + "\x00", rangeEnd(f.marks(resource))
}

// Fresh returns a comparison for a transaction of your own. It holds unless a token newer than
// token has been seen for resource. Use it together with [Fence.Raise]. It never holds for a
// token out of range.
//
//	resp, err := cli.Txn(ctx).
//		If(fence.Fresh("order:123", token), …).
//		Then(append(fence.Raise("order:123", token), …)...).
//		Commit()
func (f *Fence) Fresh(resource string, token lock.Token) clientv3.Cmp {
	if checkToken(token) != nil {
		return clientv3.Compare(clientv3.CreateRevision(f.marks(resource)), "<", 0)
	}
	from, end := f.newer(resource, token)
	return clientv3.Compare(clientv3.CreateRevision(from), "=", 0).WithRange(end)
}

// Raise returns the operations that raise the mark of resource to token. Put them into Then of
// every transaction that has [Fence.Fresh], even of one that only reads.
func (f *Fence) Raise(resource string, token lock.Token) []clientv3.Op {
	mark := f.mark(resource, token)
	return []clientv3.Op{
		clientv3.OpPut(mark, ""),
		clientv3.OpDelete(f.marks(resource), clientv3.WithRange(mark)),
	}
}

// Do runs ops and raises the mark of resource, in one transaction. It returns the Responses of
// ops. If token is stale, Do returns a *lock.StaleError and runs nothing. ops are what a
// transaction's Then takes; with clientv3.OpTxn they may have conditions of their own.
func (f *Fence) Do(ctx context.Context, resource string, token lock.Token, ops ...clientv3.Op) (*clientv3.TxnResponse, error) {
	if f.kv == nil {
		return nil, fmt.Errorf("%w: etcd: fence: client is nil", lock.ErrInvalid)
	}
	if err := checkToken(token); err != nil {
		return nil, err
	}
	if resource == "" {
		return nil, fmt.Errorf("%w: etcd: fence: resource is empty", lock.ErrInvalid)
	}
	from, end := f.newer(resource, token)
	raise := f.Raise(resource, token)
	resp, err := f.kv.Txn(ctx).
		If(f.Fresh(resource, token)).
		Then(append(raise, ops...)...).
		Else(clientv3.OpGet(from, clientv3.WithRange(end), clientv3.WithKeysOnly(), clientv3.WithLimit(1),
			clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend))).
		Commit()
	if err != nil {
		return nil, fmt.Errorf("lock: etcd: fence: %w", err)
	}
	if !resp.Succeeded {
		stale := &lock.StaleError{Key: resource, Token: token}
		if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
			digits := strings.TrimPrefix(string(kvs[0].Key), f.marks(resource))
			stale.Newest, _ = lock.ParseToken(strings.TrimLeft(digits, "0"))
		}
		return nil, stale
	}
	resp.Responses = resp.Responses[len(raise):]
	return resp, nil
}

// Get reads the value of key; the resource is key itself. It returns "" and false if there is no
// value, and a *lock.StaleError if token is stale.
func (f *Fence) Get(ctx context.Context, key string, token lock.Token) (value string, found bool, err error) {
	resp, err := f.Do(ctx, key, token, clientv3.OpGet(key))
	if err != nil {
		return "", false, err
	}
	kvs := resp.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return "", false, nil
	}
	return string(kvs[0].Value), true, nil
}

// Put writes the value of key; the resource is key itself. If token is stale, Put returns a
// *lock.StaleError and writes nothing.
func (f *Fence) Put(ctx context.Context, key string, token lock.Token, value string) error {
	_, err := f.Do(ctx, key, token, clientv3.OpPut(key, value))
	return err
}

func checkToken(token lock.Token) error {
	if token == 0 || token > lock.MaxToken {
		return fmt.Errorf("%w: token %d: must be from 1 to %d", lock.ErrInvalid, token, lock.MaxToken)
	}
	return nil
}
