package testserver

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestClusterMigration(t *testing.T) {
	c := RedisCluster(t)
	require.Len(t, c.Addrs(), 3)
	slot := c.Slot("{x}1")
	from := c.Owner(slot)
	to := c.Nodes[0]
	if to == from {
		to = c.Nodes[1]
	}
	from.call("MSET", "{x}1", "a", "{x}2", "b")

	m := c.BeginMigrate(slot, from, to)
	m.MoveKeys("{x}1", "{x}absent")
	assert.ErrorContains(t, refused(from, "GET", "{x}1"), "ASK ")
	assert.ErrorContains(t, refused(from, "MGET", "{x}1", "{x}2"), "TRYAGAIN")
	assert.ErrorContains(t, refused(to, "GET", "{x}1"), "MOVED ")
	assert.Equal(t, "b", from.call("GET", "{x}2"))

	m.Finish()
	assert.Same(t, to, c.Owner(slot))
	assert.ErrorContains(t, refused(from, "GET", "{x}1"), "MOVED ")
	assert.Equal(t, []any{"a", "b"}, to.call("MGET", "{x}1", "{x}2"))
	c.AwaitOK()
}

func TestClusterReplicaTakesOver(t *testing.T) {
	c := RedisCluster(t, WithReplicas())
	require.Len(t, c.Nodes, 6)
	slot := c.Slot("x")
	old := c.Owner(slot)
	old.Kill()
	eventually(t, clusterTimeout, "the replica's promotion", func() error {
		if c.Owner(slot) == old {
			return assert.AnError
		}
		return nil
	})
	c.AwaitOK()
	c.Owner(slot).call("SET", "x", "1")
}

func TestSentinelFailover(t *testing.T) {
	s := RedisSentinel(t)
	master, replica := s.Master(), s.Replica()
	assert.Error(t, refused(replica, "SET", "k", "v"), "a replica is read-only")
	master.call("SET", "k", "v")
	eventually(t, failoverTimeout, "the write on the replica", func() error {
		if replica.call("GET", "k") != "v" {
			return assert.AnError
		}
		return nil
	})

	s.Failover()
	assert.Same(t, replica, s.Master())
	assert.Equal(t, "v", s.Master().call("GET", "k"))

	replica.Kill()
	s.AwaitFailover(replica)
	assert.Same(t, master, s.Master())
	master.call("SET", "k", "w")
}

func refused(s *Server, args ...string) error {
	_, err := respCall(context.Background(), s.addr, args...)
	return err
}
