package testserver

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"
	"time"
)

const (
	clusterMasters = 3
	clusterSlots   = 16384
	clusterTimeout = 30 * time.Second
)

// Cluster is a Redis Cluster on loopback.
type Cluster struct {
	// Nodes has the three masters, then their replicas in the same order, if any: as
	// they were when the cluster began.
	Nodes []*Server

	tb  testing.TB
	ids map[*Server]string // the nodes' own names for themselves
}

// ClusterOption changes what [RedisCluster] builds.
type ClusterOption func(*clusterOptions)

type clusterOptions struct {
	replicas    bool
	nodeTimeout time.Duration
}

// WithReplicas gives each master a replica, which takes over some seconds after the
// master's death. Without it there are none.
func WithReplicas() ClusterOption {
	return func(o *clusterOptions) { o.replicas, o.nodeTimeout = true, 2*time.Second }
}

// RedisCluster gives the test a cluster of three masters that agree on its state. It
// takes about three seconds, so tests that can should share one.
//
// LOCK_TEST_REDIS_ADDR has no part in it.
func RedisCluster(tb testing.TB, opts ...ClusterOption) *Cluster {
	tb.Helper()
	NeedServer(tb)
	o := clusterOptions{nodeTimeout: 5 * time.Second}
	for _, opt := range opts {
		opt(&o)
	}
	n := clusterMasters
	if o.replicas {
		n *= 2
	}
	c := &Cluster{tb: tb, ids: make(map[*Server]string)}
	for range n {
		node := launch(tb, redisKind, 2, func(ports []int) []string {
			return redisCommand(ports[0],
				"--cluster-enabled", "yes",
				"--cluster-port", strconv.Itoa(ports[1]), // 10000 higher by default: the kernel's range
				"--cluster-node-timeout", strconv.FormatInt(o.nodeTimeout.Milliseconds(), 10))
		})
		id, _ := node.call("CLUSTER", "MYID").(string)
		c.Nodes, c.ids[node] = append(c.Nodes, node), id
	}
	c.join()
	if o.replicas {
		c.attachReplicas()
	}
	c.AwaitOK()
	return c
}

// Addrs has the addresses of all nodes, as a client wants them to begin with.
func (c *Cluster) Addrs() []string {
	var addrs []string
	for _, node := range c.Nodes {
		addrs = append(addrs, node.Addr())
	}
	return addrs
}

// Slot returns the slot of a key.
func (c *Cluster) Slot(key string) int {
	c.tb.Helper()
	slot, _ := c.running().call("CLUSTER", "KEYSLOT", key).(int64)
	return int(slot)
}

// Owner returns the master that serves a slot, as far as the others know.
func (c *Cluster) Owner(slot int) *Server {
	c.tb.Helper()
	ranges, _ := c.running().call("CLUSTER", "SLOTS").([]any)
	for _, r := range ranges {
		// First slot, last slot, master, replicas; a node is host, port, id, …
		r, _ := r.([]any)
		first, _ := r[0].(int64)
		last, _ := r[1].(int64)
		master, _ := r[2].([]any)
		if int64(slot) < first || int64(slot) > last {
			continue
		}
		for node, id := range c.ids {
			if id == master[2] {
				return node
			}
		}
	}
	c.tb.Fatalf("testserver: nobody owns slot %d", slot)
	return nil
}

// AwaitOK returns when every node that runs takes the whole cluster for sound.
func (c *Cluster) AwaitOK() {
	c.tb.Helper()
	eventually(c.tb, clusterTimeout, "a sound cluster", func() error {
		for _, node := range c.Nodes {
			if node.inst.isAlive() {
				if err := node.fields(map[string]string{
					"cluster_state":       "ok",
					"cluster_slots_ok":    strconv.Itoa(clusterSlots),
					"cluster_known_nodes": strconv.Itoa(len(c.Nodes)),
				}, "CLUSTER", "INFO"); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// join gives each master its third of the slots and introduces all nodes to the first.
func (c *Cluster) join() {
	c.tb.Helper()
	for i, node := range c.Nodes {
		node.call("CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1))
		if i < clusterMasters {
			first, end := i*clusterSlots/clusterMasters, (i+1)*clusterSlots/clusterMasters
			node.call("CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(first), strconv.Itoa(end-1))
		}
	}
	for _, node := range c.Nodes[1:] {
		host, port := node.hostPort()
		bus := node.call("CONFIG", "GET", "cluster-port").([]any)[1].(string)
		c.Nodes[0].call("CLUSTER", "MEET", host, port, bus)
	}
}

func (c *Cluster) attachReplicas() {
	c.tb.Helper()
	for i, replica := range c.Nodes[clusterMasters:] {
		master := c.Nodes[i]
		eventually(c.tb, clusterTimeout, "a replica that knows its master", func() error {
			_, err := respCall(context.Background(), replica.addr, "CLUSTER", "REPLICATE", c.ids[master])
			return err
		})
	}
	for i, replica := range c.Nodes[clusterMasters:] {
		eventually(c.tb, clusterTimeout, "replication", func() error {
			if err := c.knowsReplicas(c.Nodes[i]); err != nil {
				return err
			}
			return inStep(c.Nodes[i], replica)
		})
	}
}

// knowsReplicas checks that each master has its replica in the eyes of node.
func (c *Cluster) knowsReplicas(node *Server) error {
	for _, master := range c.Nodes[:clusterMasters] {
		reply, err := respCall(context.Background(), node.addr, "CLUSTER", "REPLICAS", c.ids[master])
		if err != nil {
			return err
		}
		if replicas, _ := reply.([]any); len(replicas) != 1 {
			return fmt.Errorf("%d replicas of %s known to %s", len(replicas), master.addr, node.addr)
		}
	}
	return nil
}

// running returns a node that answers.
func (c *Cluster) running() *Server {
	c.tb.Helper()
	err := errors.New("no nodes")
	for _, node := range c.Nodes {
		if err = redisReady(context.Background(), node.addr); err == nil {
			return node
		}
	}
	c.tb.Fatalf("testserver: no node of the cluster answers: %v", err)
	return nil
}

// Migration is a slot on its way from one master to another. Between [Cluster.BeginMigrate]
// and Finish the source redirects by ASK for keys that it has not (any more), and says
// TRYAGAIN to commands of several keys of which only some have moved.
type Migration struct {
	c        *Cluster
	slot     string
	from, to *Server
}

// BeginMigrate opens the slot on both sides. No key has moved yet.
func (c *Cluster) BeginMigrate(slot int, from, to *Server) *Migration {
	c.tb.Helper()
	m := &Migration{c: c, slot: strconv.Itoa(slot), from: from, to: to}
	to.call("CLUSTER", "SETSLOT", m.slot, "IMPORTING", c.ids[from])
	from.call("CLUSTER", "SETSLOT", m.slot, "MIGRATING", c.ids[to])
	return m
}

// MoveKeys moves these keys, or without an argument all that the slot still has at the
// source. A key that is not there is passed over.
func (m *Migration) MoveKeys(keys ...string) {
	m.c.tb.Helper()
	if len(keys) == 0 {
		reply, _ := m.from.call("CLUSTER", "GETKEYSINSLOT", m.slot, "100000").([]any)
		for _, key := range reply {
			keys = append(keys, key.(string))
		}
	}
	host, port := m.to.hostPort()
	for _, key := range keys {
		m.from.call("MIGRATE", host, port, key, "0", "5000")
	}
}

// Finish moves what is left and tells all masters of the slot's new owner.
func (m *Migration) Finish() {
	m.c.tb.Helper()
	m.MoveKeys()
	id := m.c.ids[m.to]
	m.to.call("CLUSTER", "SETSLOT", m.slot, "NODE", id) // first, so that the slot always has an owner
	m.from.call("CLUSTER", "SETSLOT", m.slot, "NODE", id)
	for _, node := range m.c.Nodes[:clusterMasters] {
		if node != m.to && node != m.from && node.inst.isAlive() {
			node.call("CLUSTER", "SETSLOT", m.slot, "NODE", id)
		}
	}
}
