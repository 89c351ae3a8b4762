package etcd_test

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

func fenced(t *testing.T) (*etcd.Fence, *clientv3.Client, string) {
	t.Helper()
	cli := plain(t, testserver.SharedEtcd(t).Addr())
	return etcd.NewFence(cli), cli, testserver.Prefix()
}

func stale(t *testing.T, err error, token, newest lock.Token) {
	t.Helper()
	require.ErrorIs(t, err, lock.ErrStale)
	var s *lock.StaleError
	require.ErrorAs(t, err, &s)
	require.Equal(t, []lock.Token{token, newest}, []lock.Token{s.Token, s.Newest})
}

// TestFrozenHolder: a holder freezes between its read and its write, for longer than its TTL.
// It does not know, but its write is refused.
func TestFrozenHolder(t *testing.T) {
	t.Parallel()
	server, prefix := testserver.SharedEtcd(t), testserver.Prefix()
	frozen, next := open(t, server, prefix), open(t, server, prefix)
	fence := etcd.NewFence(plain(t, server.Addr()))
	ctx, stock := storetest.Bounded(t), prefix+"stock"

	g := storetest.Acquire(t, frozen, storetest.Lasting(storetest.Request("k"), time.Second))
	require.NoError(t, fence.Put(ctx, stock, g.Token, "10"))
	v, _, err := fence.Get(ctx, stock, g.Token)
	require.NoError(t, err)
	heal := frozen.proxy.Freeze() // it neither renews nor hears of its end

	g2 := storetest.Await(t, next, storetest.Request("k"))
	v2, found, err := fence.Get(ctx, stock, g2.Token)
	require.NoError(t, err)
	require.True(t, found)

	n, err := strconv.Atoi(v)
	require.NoError(t, err)
	stale(t, fence.Put(ctx, stock, g.Token, strconv.Itoa(n-1)), g.Token, g2.Token)

	n, err = strconv.Atoi(v2)
	require.NoError(t, err)
	require.NoError(t, fence.Put(ctx, stock, g2.Token, strconv.Itoa(n-3)))
	v, _, err = fence.Get(ctx, stock, g2.Token)
	require.NoError(t, err)
	require.Equal(t, "7", v)
	heal()
}

// TestFenceInOwnTransaction: several keys change together, and the caller's condition counts
// beside the token.
func TestFenceInOwnTransaction(t *testing.T) {
	t.Parallel()
	fence, cli, p := fenced(t)
	ctx := storetest.Bounded(t)
	from, to, res := p+"from", p+"to", p+"accounts"
	book := func(token lock.Token, want string) *clientv3.TxnResponse {
		resp, err := cli.Txn(ctx).
			If(fence.Fresh(res, token), clientv3.Compare(clientv3.Value(from), "=", want)).
			Then(append(fence.Raise(res, token), clientv3.OpPut(from, "1"), clientv3.OpPut(to, "2"))...).
			Commit()
		require.NoError(t, err)
		return resp
	}
	require.NoError(t, fence.Put(ctx, from, 5, "3"))
	require.False(t, book(7, "4").Succeeded)
	require.True(t, book(7, "3").Succeeded)
	require.False(t, book(6, "1").Succeeded)
	require.True(t, book(7, "1").Succeeded)
	require.True(t, book(8, "1").Succeeded)
	require.False(t, book(0, "1").Succeeded)
	require.False(t, book(lock.MaxToken+1, "1").Succeeded)
	_, err := fence.Do(ctx, res, 7)
	stale(t, err, 7, 8)
}

// TestFenceMarks: the newest mark counts, reads raise it, one key is left, and resources do
// not get in each other's way.
func TestFenceMarks(t *testing.T) {
	t.Parallel()
	fence, cli, p := fenced(t)
	ctx := storetest.Bounded(t)
	for _, token := range []lock.Token{1, 9, 10, 99, 1000, lock.MaxToken} {
		require.NoError(t, fence.Put(ctx, p+"a", token, token.String()))
		_, found, err := fence.Get(ctx, p+"b", token)
		require.NoError(t, err)
		require.False(t, found)
		if token > 1 {
			stale(t, fence.Put(ctx, p+"a", token-1, ""), token-1, token)
			stale(t, fence.Put(ctx, p+"b", token-1, ""), token-1, token)
		}
	}
	require.NoError(t, fence.Put(ctx, p+"a/", 1, ""))
	require.NoError(t, fence.Put(ctx, p, 1, ""))
	require.NoError(t, fence.Put(ctx, p+"%2F", 1, ""))
	resp, err := cli.Get(ctx, "fence/"+p+"a/", clientv3.WithPrefix())
	require.NoError(t, err)
	require.Len(t, resp.Kvs, 1)
	out, err := fence.Do(ctx, p+"c", 3, clientv3.OpPut(p+"c", "v"), clientv3.OpGet(p+"c"))
	require.NoError(t, err)
	require.Len(t, out.Responses, 2)
	require.Equal(t, "v", string(out.Responses[1].GetResponseRange().Kvs[0].Value))
}

// TestFenceBadInput: nothing is sent.
func TestFenceBadInput(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	var none *clientv3.Client
	for _, kv := range []clientv3.KV{nil, none} {
		_, _, err := etcd.NewFence(kv).Get(ctx, "k", 1)
		require.ErrorIs(t, err, lock.ErrInvalid)
	}
	fence := etcd.NewFence(nowhere(t))
	for _, token := range []lock.Token{0, lock.MaxToken + 1} {
		require.ErrorIs(t, fence.Put(ctx, "k", token, ""), lock.ErrInvalid)
	}
	_, err := fence.Do(ctx, "", 1)
	require.ErrorIs(t, err, lock.ErrInvalid)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	err = fence.Put(ended, "k", 1, "")
	require.True(t, errors.Is(err, context.Canceled), "%v", err)
}
