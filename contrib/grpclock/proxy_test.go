package grpclock_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/seed-215fdefa/lock/contrib/grpclock"
	"github.com/seed-215fdefa/lock/contrib/grpclock/lockv1"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/memory"
)

// TestRateLimitRefusesAPoll refuses a waiter's third poll as a proxy does: the wait goes on.
func TestRateLimitRefusesAPoll(t *testing.T) {
	t.Parallel()
	for _, code := range []codes.Code{codes.ResourceExhausted, codes.Unavailable, codes.DeadlineExceeded} {
		t.Run(code.String(), func(t *testing.T) {
			t.Parallel()
			store := memory.New()
			defer store.Close()
			var polls atomic.Int32
			limit := func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
				if r, ok := req.(*lockv1.AcquireRequest); ok && r.GetWait() && polls.Add(1) == 3 {
					return status.Error(code, "a proxy says no")
				}
				return invoke(ctx, method, req, reply, cc, opts...)
			}
			conn, err := grpc.NewClient("passthrough:///"+serve(t, store).Addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUnaryInterceptor(limit))
			require.NoError(t, err)
			defer conn.Close()
			l := grpclock.New(conn)
			defer l.Close()

			g := storetest.Acquire(t, store, storetest.Request("k"))
			w := storetest.Begin(t, l, storetest.Request("k"))
			storetest.Eventually(t, "a poll after the refused one, or the end of the wait", func() bool {
				select {
				case <-w.Done:
					return true
				default:
					return polls.Load() > 3
				}
			})
			storetest.Release(t, store, g)
			<-w.Done
			require.NoError(t, w.Err)
			storetest.Holds(t, store, w.Grant)
		})
	}
}
