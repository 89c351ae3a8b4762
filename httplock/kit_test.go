package httplock_test

import (
	"context"
	"flag"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/httplock"
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
	goleak.VerifyTestMain(testserver.Main{M: m})
}

// service is a lock service that can be killed, and started again at the same address. Each life
// of it has a Locker of its own on the store.
type service struct {
	tb   testing.TB
	open func() lock.Locker
	opts []httplock.HandlerOption
	addr string

	mu      sync.Mutex // guards the rest
	server  *http.Server
	handler *httplock.Handler
	served  chan struct{} // closed when the server has ended
}

// serve starts a service on what open opens, whose Lockers the caller closes.
func serve(tb testing.TB, open func() lock.Locker, opts ...httplock.HandlerOption) *service {
	tb.Helper()
	s := &service{tb: tb, open: open, opts: opts, addr: "127.0.0.1:0"}
	s.start()
	tb.Cleanup(s.kill)
	return s
}

func (s *service) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	var listener net.Listener
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		var err error
		if listener, err = net.Listen("tcp", s.addr); err == nil {
			break
		}
		if time.Since(begun) > storetest.Patience {
			s.tb.Fatal(err)
		}
	}
	s.addr = listener.Addr().String()
	s.handler = httplock.NewHandler(s.open(), s.opts...)
	s.server = &http.Server{Handler: s.handler, ReadHeaderTimeout: storetest.Patience, IdleTimeout: 2 * time.Minute}
	s.served = make(chan struct{})
	server, served := s.server, s.served
	go func() {
		defer close(served)
		_ = server.Serve(listener)
	}()
}

// kill breaks all connections. The waits of the handler end as those of a process that dies: nothing
// is undone.
func (s *service) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.server.Close()
	s.handler.Close()
	<-s.served
}

func (s *service) restart() {
	s.kill()
	s.start()
}

// process is a client of a service, behind a proxy of its own.
type process struct {
	*httplock.Locker
	proxy    *faultproxy.Proxy
	store    *store
	services []*service // those that a Restart concerns
}

// connect starts a client of the service at addr.
func connect(tb testing.TB, addr string, st *store, services []*service) *process {
	tb.Helper()
	proxy := faultproxy.New(tb, addr)
	l := httplock.New("http://" + proxy.Addr())
	tb.Cleanup(func() { _ = l.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), storetest.Patience)
	defer cancel()
	require.NoError(tb, l.Connect(ctx))
	return &process{l, proxy, st, services}
}
