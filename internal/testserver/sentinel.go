package testserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

const failoverTimeout = 60 * time.Second

// Sentinel is a Redis master with a replica, under the watch of one sentinel. One, with
// a quorum of one, since several would have to elect a leader, which at times takes them
// two tries and ten seconds; clients do not see the difference.
type Sentinel struct {
	MasterName string

	tb       testing.TB
	nodes    [2]*Server
	sentinel *Server
}

// RedisSentinel gives the test a master, a replica that is in step, and a sentinel that
// knows both. It fails over when AwaitFailover is called, and not before: on a busy machine a
// master that is slow would else be taken for dead, and a failover loses what the replica lacks.
//
// LOCK_TEST_REDIS_ADDR has no part in it.
func RedisSentinel(tb testing.TB) *Sentinel {
	tb.Helper()
	NeedServer(tb)
	master := redis(tb)
	host, port := master.hostPort()
	replica := redis(tb, "--replicaof", host+" "+port)
	s := &Sentinel{MasterName: "lock-test", tb: tb, nodes: [2]*Server{master, replica}}
	eventually(tb, failoverTimeout, "replication", func() error { return inStep(master, replica) })
	s.sentinel = launch(tb, redisKind, 1, func(ports []int) []string { return sentinelCommand(ports[0]) })
	// Its own pace is for networks: it would make a replica of the old master after 8 s.
	s.sentinel.call("SENTINEL", "DEBUG", "info-period", "500", "ping-period", "200", "publish-period", "250")
	s.sentinel.call("SENTINEL", "MONITOR", s.MasterName, host, port, "1")
	s.sentinel.call("SENTINEL", "SET", s.MasterName, "failover-timeout", "5000")
	s.patience(busy)
	s.AwaitReplica()
	return s
}

// How long a master may be silent: when all may be slow, and when it is known to be dead.
const busy, dead = 2 * failoverTimeout, 500 * time.Millisecond

func (s *Sentinel) patience(d time.Duration) {
	s.sentinel.call("SENTINEL", "SET", s.MasterName, "down-after-milliseconds", strconv.FormatInt(d.Milliseconds(), 10))
}

// sentinelCommand runs a sentinel, which insists on a configuration file to write to.
func sentinelCommand(port int) []string {
	return []string{
		"sh", "-c", `touch sentinel.conf && exec redis-server sentinel.conf --sentinel "$@"`,
		"redis-server", "--port", strconv.Itoa(port), "--bind", "127.0.0.1",
	}
}

// Addrs has the addresses of the sentinels.
func (s *Sentinel) Addrs() []string { return []string{s.sentinel.addr} }

// Master returns the server that the sentinel takes for the master now.
func (s *Sentinel) Master() *Server {
	s.tb.Helper()
	return s.nodes[s.master()]
}

// Replica returns the other server, running or not.
func (s *Sentinel) Replica() *Server {
	s.tb.Helper()
	return s.nodes[1-s.master()]
}

// Failover makes the replica the master, with both alive, and returns when the old master
// follows it.
func (s *Sentinel) Failover() {
	s.tb.Helper()
	old := s.Master()
	eventually(s.tb, failoverTimeout, "a failover to begin", func() error {
		_, err := respCall(context.Background(), s.sentinel.addr, "SENTINEL", "FAILOVER", s.MasterName)
		return err // such as NOGOODSLAVE right after another failover
	})
	s.AwaitFailover(old)
	s.AwaitReplica()
}

// AwaitFailover has the sentinel look for half a second whether old is alive, and returns when
// another server is the master, and says so itself. It does not wait for old, which may be
// dead or frozen.
func (s *Sentinel) AwaitFailover(old *Server) {
	s.tb.Helper()
	s.patience(dead)
	defer s.patience(busy)
	eventually(s.tb, failoverTimeout, "a failover", func() error {
		master := s.Master()
		if master == old {
			return fmt.Errorf("%s is still the master", old.addr)
		}
		return master.fields(map[string]string{"role": "master"}, "INFO", "replication")
	})
}

// AwaitReplica returns when the sentinel has a replica to fail over to.
func (s *Sentinel) AwaitReplica() {
	s.tb.Helper()
	eventually(s.tb, failoverTimeout, "a sentinel that knows the replica", func() error {
		if err := inStep(s.Master(), s.Replica()); err != nil {
			return err
		}
		replicas, _ := s.sentinel.call("SENTINEL", "REPLICAS", s.MasterName).([]any)
		if len(replicas) != 1 {
			return fmt.Errorf("it knows %d", len(replicas))
		}
		have := make(map[string]string)
		pairs, _ := replicas[0].([]any)
		for i := 0; i+1 < len(pairs); i += 2 {
			have[pairs[i].(string)] = pairs[i+1].(string)
		}
		if have["flags"] != "slave" || have["master-link-status"] != "ok" {
			return fmt.Errorf("flags %q, master link %q", have["flags"], have["master-link-status"])
		}
		masters, _ := s.sentinel.call("SENTINEL", "MASTER", s.MasterName).([]any)
		if flags := fmt.Sprint(masters...); strings.Contains(flags, "failover_in_progress") {
			return errors.New("a failover is under way")
		}
		return nil
	})
}

// master returns the index of the node that is the master.
func (s *Sentinel) master() int {
	s.tb.Helper()
	addr, _ := s.sentinel.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", s.MasterName).([]any)
	if len(addr) == 2 {
		for i, node := range s.nodes {
			if node.addr == net.JoinHostPort(addr[0].(string), addr[1].(string)) {
				return i
			}
		}
	}
	s.tb.Fatalf("testserver: the sentinel takes %v for the master", addr)
	return 0
}
