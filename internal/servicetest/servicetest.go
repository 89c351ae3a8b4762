// Package servicetest has what the tests of a lock service share, whatever its transport: stores for
// it, a service that can be killed, clients behind proxies, and the harness of the suite.
package servicetest

import (
	"context"
	"net"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/locktest"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
)

// Protocol is how a service is reached.
type Protocol struct {
	// Serve serves l at listener until stop, which breaks all connections. The waits then end as those
	// of a process that dies: nothing is undone.
	Serve func(l lock.Locker, listener net.Listener) (stop func())
	// Dial returns a client of the service at addr, which ends with the test.
	Dial func(tb testing.TB, addr string) Client
	// LoseWakeup loses the next reply that ends a wait.
	LoseWakeup func(*faultproxy.Proxy) (heal func())
}

// Client is the Locker of a service.
type Client interface {
	lock.Locker
	lock.Admin
	lock.Watcher
	Connect(context.Context) error
	Close() error
}

// Service is a lock service that can be killed, and started again at the same address. Each life of it
// has a Locker of its own on the store.
type Service struct {
	Addr string

	tb    testing.TB
	open  func() lock.Locker
	serve func(lock.Locker, net.Listener) func()
	mu    sync.Mutex // guards stop
	stop  func()
}

// Start starts a service on what open opens, whose Lockers the caller closes. It ends with the test.
func (p Protocol) Start(tb testing.TB, open func() lock.Locker) *Service {
	tb.Helper()
	s := &Service{tb: tb, Addr: "127.0.0.1:0", open: open, serve: p.Serve}
	s.start()
	tb.Cleanup(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.stop()
	})
	return s
}

// start is called by one at a time.
func (s *Service) start() {
	var listener net.Listener
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		var err error
		if listener, err = net.Listen("tcp", s.Addr); err == nil {
			break
		}
		if time.Since(begun) > storetest.Patience {
			s.tb.Fatal(err)
		}
	}
	if s.stop == nil {
		s.Addr = listener.Addr().String() // for all lives
	}
	s.stop = s.serve(s.open(), listener)
}

// Restart kills the service, and starts it again.
func (s *Service) Restart() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop()
	s.start()
}

// Process is a client of a service, behind a proxy of its own.
type Process struct {
	Client
	proxy    *faultproxy.Proxy
	store    *Store
	services []*Service // those that a Restart concerns
}

// Connect starts a client of the service at addr. restarted are the services that a Restart concerns.
func (p Protocol) Connect(tb testing.TB, addr string, st *Store, restarted ...*Service) *Process {
	tb.Helper()
	proxy := faultproxy.New(tb, addr)
	c := p.Dial(tb, proxy.Addr())
	require.NoError(tb, c.Connect(storetest.Bounded(tb)))
	return &Process{c, proxy, st, restarted}
}

var crowded = regexp.MustCompile("Crowd|Hundreds|TriesDuringAHandOver")

// Harness is that of clients of one service, which is another process than its store.
func (p Protocol) Harness(on func(tb testing.TB) *Store) locktest.Harness {
	return locktest.Harness{
		New: func(tb testing.TB) func() lock.Locker {
			st := on(tb)
			s := p.Start(tb, st.Open)
			return func() lock.Locker { return p.Connect(tb, s.Addr, st, s) }
		},
		Around: func(t *testing.T, f func(*testing.T)) {
			if !crowded.MatchString(t.Name()) { // those are enough for the machine by themselves
				t.Parallel()
			}
			f(t)
		},
		Proxy:  func(l lock.Locker) *faultproxy.Proxy { return l.(*Process).proxy },
		Faults: p.faults(),
		LosePart: func(_ testing.TB, l lock.Locker, key string, k int) bool {
			lose := l.(*Process).store.LosePart
			return lose != nil && lose(key, k)
		},
	}
}

func (p Protocol) faults() map[locktest.Fault]func(testing.TB, lock.Locker) func() {
	restart := func(_ testing.TB, l lock.Locker) func() {
		for _, s := range l.(*Process).services {
			s.Restart()
		}
		return nil
	}
	return map[locktest.Fault]func(testing.TB, lock.Locker) func(){
		locktest.LoseWakeup: func(_ testing.TB, l lock.Locker) func() { return p.LoseWakeup(l.(*Process).proxy) },
		locktest.LoseRecord: func(tb testing.TB, l lock.Locker) func() {
			if l.(*Process).store.Forget == nil {
				tb.Skip("the store cannot forget")
			}
			l.(*Process).store.Forget()
			return nil
		},
		locktest.Restart:  restart,
		locktest.Failover: restart, // the life that takes over has a Locker of its own
	}
}
