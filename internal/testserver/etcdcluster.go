package testserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// EtcdCluster is an etcd cluster of the test's own.
type EtcdCluster struct {
	Members []*Server
	tb      testing.TB
}

// NewEtcdCluster gives the test an etcd cluster of three members, in step and with a
// leader. It takes no server from the environment. Its members are more patient with each
// other than a single one needs to be, lest a busy machine makes for elections: the shortest
// TTL of a lease is 2 s.
func NewEtcdCluster(tb testing.TB, args ...string) *EtcdCluster {
	tb.Helper()
	NeedServer(tb)
	const members = 3
	peers, err := reservePorts(members)
	if err != nil {
		tb.Fatalf("testserver: %v", err)
	}
	names, urls := make([]string, members), make([]string, members)
	for i, port := range peers {
		names[i] = fmt.Sprintf("m%d", i)
		urls[i] = names[i] + "=" + loopbackURL(port)
	}
	insts, errs := make([]*instance, members), make([]error, members)
	var wg sync.WaitGroup
	for i := range members { // side by side: none is ready before there is a quorum
		wg.Go(func() {
			insts[i], errs[i] = newInstance(etcdKind, 1, func(ports []int) []string {
				return etcdMember(names[i], ports[0], peers[i], strings.Join(urls, ","),
					append([]string{"--heartbeat-interval", "100", "--election-timeout", "1000"}, args...)...)
			})
		})
	}
	wg.Wait()
	c := &EtcdCluster{tb: tb}
	for _, inst := range insts {
		if inst != nil {
			c.Members = append(c.Members, inst.endsWith(tb))
		}
	}
	if err := errors.Join(errs...); err != nil {
		tb.Fatalf("testserver: %v", err)
	}
	return c
}

// Addrs are the members' client addresses.
func (c *EtcdCluster) Addrs() []string {
	var addrs []string
	for _, m := range c.Members {
		addrs = append(addrs, m.Addr())
	}
	return addrs
}

// Leader returns the member that leads by its own account, and waits for there to be one.
func (c *EtcdCluster) Leader() *Server {
	c.tb.Helper()
	var leader *Server
	eventually(c.tb, startTimeout, "a leader", func() error {
		for _, m := range c.Members {
			if !m.inst.isAlive() {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			member, leading, err := etcdStatus(ctx, m.addr)
			cancel()
			if err == nil && member == leading {
				leader = m
				return nil
			}
		}
		return errors.New("no member leads")
	})
	return leader
}

// Followers are those that do not lead, dead ones included.
func (c *EtcdCluster) Followers() []*Server {
	c.tb.Helper()
	leader := c.Leader()
	var followers []*Server
	for _, m := range c.Members {
		if m != leader {
			followers = append(followers, m)
		}
	}
	return followers
}

// etcdStatus returns the ids of a member and of the leader that it follows.
func etcdStatus(ctx context.Context, addr string) (member, leader string, err error) {
	var status struct {
		Header struct {
			Member string `json:"member_id"`
		} `json:"header"`
		Leader string `json:"leader"`
	}
	err = etcdCall(ctx, addr, http.MethodPost, "/v3/maintenance/status", &status)
	if err == nil && status.Leader == "" {
		err = errors.New("it knows no leader")
	}
	return status.Header.Member, status.Leader, err
}
