package testserver

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestZooKeeper(t *testing.T) {
	s := ZooKeeper(t)
	ctx := context.Background()
	mode, err := zookeeperMode(ctx, s.Addr())
	require.NoError(t, err)
	if s.Controlled() {
		require.Equal(t, "standalone", mode)
		s.Kill()
		_, err = zookeeperMode(ctx, s.Addr())
		require.Error(t, err)
		s.Start()
		s.Pause()
		_, err = zookeeperMode(ctx, s.Addr())
		require.Error(t, err)
		s.Resume()
		require.Eventually(t, func() bool { _, err = zookeeperMode(ctx, s.Addr()); return err == nil }, time.Minute, time.Millisecond)
	}
}

func TestSharedZooKeeper(t *testing.T) {
	require.Equal(t, SharedZooKeeper(t).Addr(), SharedZooKeeper(t).Addr())
}

func TestZooKeeperEnsemble(t *testing.T) {
	e := NewZooKeeperEnsemble(t)
	ctx := context.Background()
	require.Len(t, e.Addrs(), 3)
	require.Len(t, e.Followers(), 2)
	first := e.Leader()
	first.Kill()
	second := e.Leader()
	require.NotEqual(t, first.Addr(), second.Addr())
	require.True(t, slices.Contains(e.Members, second))
	first.Start()
	e.AwaitQuorum()

	heal := e.CutOff(e.Followers()[0])
	_, err := zookeeperMode(ctx, e.Followers()[0].Addr())
	require.NoError(t, err, "it does not know it yet")
	heal()
	e.AwaitQuorum()
}
