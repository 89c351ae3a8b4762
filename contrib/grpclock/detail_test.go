package grpclock_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/seed-215fdefa/lock/contrib/grpclock/lockv1"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/memory"
)

// TestHeldFitsATrailer has a client that takes trailers of 8 KiB, as those in other languages do.
func TestHeldFitsATrailer(t *testing.T) {
	t.Parallel()
	store := memory.New()
	defer store.Close()
	conn, err := grpc.NewClient("passthrough:///"+serve(t, store).Addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithMaxHeaderListSize(8192))
	require.NoError(t, err)
	defer conn.Close()
	req := storetest.Request("k")
	req.Metadata = map[string]string{"why": strings.Repeat("x", 1000)}
	g := storetest.Acquire(t, store, req)
	for i := range 16 {
		req.Owner = fmt.Sprint("waiter-", i)
		w := storetest.Begin(t, store, req)
		defer func() { w.Cancel(); <-w.Done }()
	}
	storetest.Eventually(t, "the line", func() bool { return storetest.Inspect(t, store, "k").WaiterCount == 16 })
	_, err = lockv1.NewLockServiceClient(conn).Acquire(storetest.Bounded(t),
		&lockv1.AcquireRequest{Key: "k", Owner: "o", Ttl: durationpb.New(req.TTL)})
	s := status.Convert(err)
	require.Equal(t, codes.Aborted, s.Code(), "%v", err)
	require.Len(t, s.Details(), 1)
	rec := s.Details()[0].(*lockv1.Problem).GetRecord()
	require.Equal(t, g.Owner, rec.GetHolders()[0].GetOwner())
	require.EqualValues(t, 16, rec.GetWaiterCount())
}
