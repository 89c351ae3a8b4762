package testserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/seed-215fdefa/lock/locktest/faultproxy"
)

// zookeeperMemberKind is a member of an ensemble: ready when its process is, since it
// serves only when there is a quorum.
var zookeeperMemberKind = func() *kind {
	k := zookeeperKind.anew()
	k.ready = func(ctx context.Context, addr string) error {
		_, err := zookeeperWord(ctx, addr, "ruok")
		return err
	}
	return k
}()

// ZooKeeperEnsemble is three servers of the test's own, of which one leads.
type ZooKeeperEnsemble struct {
	Members []*Server

	tb    testing.TB
	links map[[2]int]*faultproxy.Proxy // the way of a follower, first, to a leader
}

// leaderPatience is how long a follower's connection waits for its new leader to listen,
// which is often a moment late. A follower that is refused tries again, but one whose
// connection breaks leaves for another election, of which its leader hears nothing for
// initLimit ticks.
const leaderPatience = 5 * time.Second

// NewZooKeeperEnsemble gives the test an ensemble of three that has a leader. args are as
// those of [ZooKeeper]. LOCK_TEST_ZOOKEEPER_ADDR has no part in it.
func NewZooKeeperEnsemble(tb testing.TB, args ...string) *ZooKeeperEnsemble {
	tb.Helper()
	NeedServer(tb)
	const members = 3
	ports, err := reservePorts(2 * members)
	if err != nil {
		tb.Fatalf("testserver: %v", err)
	}
	quorum, election := ports[:members], ports[members:]
	e := &ZooKeeperEnsemble{tb: tb, links: make(map[[2]int]*faultproxy.Proxy)}
	for i := range members {
		// A member finds the others by its own list, so its way to each may be its own.
		servers := slices.Clone(args)
		for j := range members {
			addr := fmt.Sprintf("127.0.0.1:%d", quorum[j])
			if i != j {
				link := faultproxy.New(tb, addr, faultproxy.WithPatience(leaderPatience))
				e.links[[2]int{i, j}], addr = link, link.Addr()
			}
			servers = append(servers, fmt.Sprintf("server.%d=%s:%d", j+1, addr, election[j]))
		}
		e.Members = append(e.Members, launch(tb, zookeeperMemberKind, 1, func(ports []int) []string {
			return zookeeperCommand(i+1, ports[0], servers...)
		}))
	}
	e.AwaitQuorum()
	return e
}

// Addrs are the members' client addresses.
func (e *ZooKeeperEnsemble) Addrs() []string {
	var addrs []string
	for _, m := range e.Members {
		addrs = append(addrs, m.Addr())
	}
	return addrs
}

// AwaitQuorum returns when every member that runs serves clients.
func (e *ZooKeeperEnsemble) AwaitQuorum() {
	e.tb.Helper()
	eventually(e.tb, startTimeout, "a quorum", func() error {
		leaders := 0
		for _, m := range e.Members {
			if !m.inst.isAlive() {
				continue
			}
			mode, err := zookeeperMode(context.Background(), m.addr)
			if err != nil {
				return err
			}
			if mode == "leader" {
				leaders++
			}
		}
		if leaders != 1 {
			return fmt.Errorf("%d leaders", leaders)
		}
		return nil
	})
}

// Leader returns the member that leads, and waits for there to be one.
func (e *ZooKeeperEnsemble) Leader() *Server {
	e.tb.Helper()
	var leader *Server
	eventually(e.tb, startTimeout, "a leader", func() error {
		for _, m := range e.Members {
			if mode, err := zookeeperMode(context.Background(), m.addr); err == nil && mode == "leader" {
				leader = m
				return nil
			}
		}
		return errors.New("no member leads")
	})
	return leader
}

// Followers are those that do not lead, dead ones included.
func (e *ZooKeeperEnsemble) Followers() []*Server {
	e.tb.Helper()
	leader := e.Leader()
	var followers []*Server
	for _, m := range e.Members {
		if m != leader {
			followers = append(followers, m)
		}
	}
	return followers
}

// CutOff holds back all that a follower and the others tell each other, until heal. The
// follower goes on answering its clients' pings and reads until it gives its leader up,
// syncLimit ticks later.
func (e *ZooKeeperEnsemble) CutOff(follower *Server) (heal func()) {
	e.tb.Helper()
	var heals []func()
	for i, m := range e.Members {
		if m != follower {
			continue
		}
		for j := range e.Members {
			if i != j {
				heals = append(heals, e.links[[2]int{i, j}].Freeze())
			}
		}
	}
	if len(heals) == 0 {
		e.tb.Fatalf("testserver: %s is no member", follower.addr)
	}
	return func() {
		for _, heal := range heals {
			heal()
		}
	}
}
