package httplock_test

import (
	"bytes"
	"flag"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/httplock"
	"github.com/seed-215fdefa/lock/internal/servicetest"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
)

func TestMain(m *testing.M) {
	flag.Parse()
	parallel := false
	flag.Visit(func(f *flag.Flag) { parallel = parallel || f.Name == "test.parallel" })
	if !parallel { // tests wait more than they work
		_ = flag.Set("test.parallel", "12")
	}
	testserver.VerifyTestMain(m)
}

var (
	onMemory   = servicetest.OnMemory
	onRedis    = servicetest.OnRedis
	onPostgres = servicetest.OnPostgres
)

// protocol is HTTP, with a handler of opts.
func protocol(opts ...httplock.HandlerOption) servicetest.Protocol {
	return servicetest.Protocol{
		Serve: func(l lock.Locker, listener net.Listener) func() {
			h := httplock.NewHandler(l, opts...)
			server := &http.Server{Handler: h, ReadHeaderTimeout: storetest.Patience, IdleTimeout: 2 * time.Minute}
			served := make(chan struct{})
			go func() {
				defer close(served)
				_ = server.Serve(listener)
			}()
			return func() {
				_ = server.Close()
				h.Close()
				<-served
			}
		},
		Dial: func(tb testing.TB, addr string) servicetest.Client {
			l := httplock.New("http://" + addr)
			tb.Cleanup(func() { _ = l.Close() })
			return l
		},
		LoseWakeup: func(p *faultproxy.Proxy) func() {
			// The reply to a poll is the wake-up. The poll after it is answered at once.
			wakeups := faultproxy.Replies().Matching(func(m []byte) bool { return bytes.Contains(m, []byte(`"renew":true`)) })
			return p.Hold(wakeups.Nth(1)).Heal
		},
	}
}

// serve starts a service on what open opens, whose Lockers the caller closes.
func serve(tb testing.TB, open func() lock.Locker, opts ...httplock.HandlerOption) *servicetest.Service {
	tb.Helper()
	return protocol(opts...).Start(tb, open)
}
