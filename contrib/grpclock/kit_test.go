package grpclock_test

import (
	"bytes"
	"flag"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/contrib/grpclock"
	"github.com/seed-215fdefa/lock/contrib/grpclock/lockv1"
	"github.com/seed-215fdefa/lock/internal/servicetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
)

func TestMain(m *testing.M) {
	flag.Parse()
	parallel := false
	flag.Visit(func(f *flag.Flag) { parallel = parallel || f.Name == "test.parallel" })
	if !parallel { // tests wait more than they work
		_ = flag.Set("test.parallel", "16")
	}
	testserver.VerifyTestMain(m)
}

// protocol is gRPC, with a server of opts.
func protocol(opts ...grpclock.ServerOption) servicetest.Protocol {
	return servicetest.Protocol{
		Serve: func(l lock.Locker, listener net.Listener) func() {
			locks, server := grpclock.NewServer(l, opts...), grpc.NewServer(grpclock.ServerOptions()...)
			lockv1.RegisterLockServiceServer(server, locks)
			served := make(chan struct{})
			go func() {
				defer close(served)
				_ = server.Serve(listener)
			}()
			return func() {
				server.Stop()
				locks.Close()
				<-served
			}
		},
		Dial: func(tb testing.TB, addr string) servicetest.Client { return dial(tb, addr) },
		LoseWakeup: func(p *faultproxy.Proxy) func() {
			// The reply to a poll is the wake-up. What is lost of a connection ends it.
			return p.Lose(faultproxy.Replies().Matching(renews).Nth(1)).Heal
		},
	}
}

// renews reports whether m has a Grant that ends with renew, which is field 6, as true.
func renews(m []byte) bool { return bytes.Contains(m, []byte{6 << 3, 1}) }

// dial returns a Locker that ends with the test, and so does its connection.
func dial(tb testing.TB, addr string, opts ...grpclock.Option) *grpclock.Locker {
	tb.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, append(grpclock.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	require.NoError(tb, err)
	l := grpclock.New(conn, opts...)
	tb.Cleanup(func() {
		_ = l.Close()
		_ = conn.Close()
	})
	return l
}
