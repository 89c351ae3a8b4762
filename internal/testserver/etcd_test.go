package testserver

import (
	"context"
	"net/http"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEtcd(t *testing.T) {
	s := Etcd(t)
	ctx := context.Background()
	require.NoError(t, etcdReady(ctx, s.Addr()))
	var version struct{ Etcdserver string }
	require.NoError(t, etcdCall(ctx, s.Addr(), http.MethodGet, "/version", &version))
	require.Regexp(t, `^3\.([6-9]|\d\d)\.`, version.Etcdserver)
	if s.Controlled() {
		s.Kill()
		require.Error(t, etcdReady(ctx, s.Addr()))
		s.Start()
		require.NoError(t, etcdReady(ctx, s.Addr()))
	}
}

func TestSharedEtcd(t *testing.T) {
	require.Equal(t, SharedEtcd(t).Addr(), SharedEtcd(t).Addr())
}

func TestEtcdCluster(t *testing.T) {
	c := NewEtcdCluster(t)
	require.Len(t, c.Addrs(), 3)
	require.Len(t, c.Followers(), 2)
	first := c.Leader()
	first.Kill()
	second := c.Leader()
	require.NotEqual(t, first.Addr(), second.Addr())
	require.True(t, slices.Contains(c.Members, second))
	first.Start()
	require.NoError(t, etcdReady(context.Background(), first.Addr()))
}
