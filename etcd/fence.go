package etcd

import (
	"context"
	"fmt"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
)

// Fence guards keys in etcd: it refuses a step whose token is older than the newest that was
// seen for the resource, in the same transaction as the step.
//
// Reads are guarded as well as writes, and a read-modify-write must read through the Fence:
// else a holder that froze between its read and its write loses its successor's update.
// Reading raises the mark, so once a successor has read, the predecessor's write is refused.
//
// A resource is whatever one lock protects, named as the caller likes: one key, or many that
// change together. Its mark is a key whose name has the newest token, under a prefix of its
// own, and stays as long as nobody deletes it: a stale holder may wake at any time. Tokens of
// shared leases do not order their holders.
//
// A step that is given up when ctx ends may have been done or not. Inside Do, whose ctx ends
// with the lease, a step that must be told apart may be sent with context.WithoutCancel and a
// timeout: the token decides about it, not ctx.
//
// A Fence is safe for concurrent use and needs no closing. For transactions of the caller's
// own there are [Fence.Fresh] and [Fence.Raise].
type Fence struct {
	kv     clientv3.KV
	prefix string
}

// NewFence returns a Fence for keys behind kv, which may be a *clientv3.Client, doing no I/O.
// The names of marks begin with "fence/". A nil kv is an error that every call returns.
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

// Fresh is a comparison for a transaction of the caller's own: it holds unless a token newer
// than token has been seen for resource. It must stand beside [Fence.Raise]. It never holds
// for a token out of range.
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

// Raise is the operations that raise the mark of resource to token: for Then beside Fresh,
// reads included.
func (f *Fence) Raise(resource string, token lock.Token) []clientv3.Op {
	mark := f.mark(resource, token)
	return []clientv3.Op{
		clientv3.OpPut(mark, ""),
		clientv3.OpDelete(f.marks(resource), clientv3.WithRange(mark)),
	}
}

// Do does ops in one transaction that raises the mark of resource. The Responses of what it
// returns are those of ops. It returns a *lock.StaleError, and does nothing, when token is stale. ops are as
// in Then of a transaction; with clientv3.OpTxn they may have conditions of their own.
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

// Get reads the value of key, which is the resource as well. It returns "" and false when
// there is none, and a *lock.StaleError when token is stale.
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

// Put writes the value of key, which is the resource as well. It returns a *lock.StaleError,
// and writes nothing, when token is stale.
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
