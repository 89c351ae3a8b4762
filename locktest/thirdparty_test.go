package locktest_test

import (
	"os"
	"testing"
	"time"

	lock "github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/locktest"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
	"github.com/seed-215fdefa/lock/memory"
)

// tcpHarness is all that a store of somebody's own needs to be tested, faults included: a
// server that the test can stop, and a proxy for each Locker.
func tcpHarness(oneWay time.Duration) locktest.Harness {
	proxied := func(l lock.Locker) *faultproxy.Proxy { return l.(*tcpProcess).proxy }
	restart := func(_ testing.TB, l lock.Locker) func() {
		server := l.(*tcpProcess).server
		server.stop()
		return server.start // the same keys, on the same address
	}
	return locktest.Harness{
		New: func(tb testing.TB) func() lock.Locker {
			server := &tcpServer{tb: tb, keys: memory.New()}
			server.start()
			tb.Cleanup(server.stop)
			return func() lock.Locker {
				proxy := faultproxy.New(tb, server.addr)
				proxy.Delay(faultproxy.All(), oneWay)
				store := &tcpStore{addr: proxy.Addr()}
				tb.Cleanup(store.Close)
				return &tcpProcess{tcpStore: store, server: server, proxy: proxy}
			}
		},
		Around: func(t *testing.T, f func(*testing.T)) {
			t.Parallel()
			f(t)
		},
		Faults: map[locktest.Fault]func(testing.TB, lock.Locker) func(){
			locktest.Restart:  restart,
			locktest.Failover: restart,
			locktest.LoseRecord: func(_ testing.TB, l lock.Locker) func() {
				l.(*tcpProcess).server.forget()
				return nil
			},
		},
		Proxy: proxied,
	}
}

type tcpProcess struct {
	*tcpStore
	server *tcpServer
	proxy  *faultproxy.Proxy
}

func (p *tcpProcess) Unwrap() lock.Locker { return p.tcpStore }

// Somebody's own store over TCP, under every fault that there is.
func ExampleRun_faults() {
	TestConformance := func(t *testing.T) { locktest.Run(t, tcpHarness(0)) }
	_ = TestConformance
}

func TestThirdParty(t *testing.T) {
	if testing.Short() {
		t.Skip("on the real clock")
	}
	t.Parallel()
	locktest.Run(t, tcpHarness(0))
}

func TestThirdPartyFarAway(t *testing.T) {
	if os.Getenv("LOCK_TEST_FAR") == "" {
		t.Skip("make far runs it: on a slow network it takes minutes")
	}
	t.Parallel()
	h := tcpHarness(100 * time.Millisecond)
	h.Skips = map[string]string{"KeysAreOpaque": "a hundred keys, each with ten round trips; distance does not change them"}
	locktest.Run(t, h)
}
