package grpclock_test

import (
	"context"
	"crypto/rand"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/contrib/grpclock"
	"github.com/seed-215fdefa/lock/contrib/grpclock/lockv1"
	"github.com/seed-215fdefa/lock/internal/servicetest"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/memory"
)

func serve(tb testing.TB, l lock.Locker, opts ...grpclock.ServerOption) *servicetest.Service {
	tb.Helper()
	return protocol(opts...).Start(tb, func() lock.Locker { return l })
}

// raw is a client without a Locker, as those in other languages are.
func raw(tb testing.TB, addr string) lockv1.LockServiceClient {
	tb.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = conn.Close() })
	return lockv1.NewLockServiceClient(conn)
}

func TestBadInput(t *testing.T) {
	t.Parallel()
	store := memory.New()
	c, ctx := raw(t, serve(t, store).Addr), storetest.Bounded(t)
	acquire := func(r *lockv1.AcquireRequest) func() error {
		return func() error { _, err := c.Acquire(ctx, r); return err }
	}
	ttl := durationpb.New(30 * time.Second)
	for name, bad := range map[string]struct {
		do   func() error
		code codes.Code
		kind string
		says string
	}{
		"no key":     {acquire(&lockv1.AcquireRequest{Owner: "o", Ttl: ttl}), codes.InvalidArgument, "invalid", "key is empty"},
		"a long key": {acquire(&lockv1.AcquireRequest{Key: strings.Repeat("k", 513), Owner: "o", Ttl: ttl}), codes.InvalidArgument, "invalid", "513 bytes"},
		"no owner":   {acquire(&lockv1.AcquireRequest{Key: "k", Ttl: ttl}), codes.InvalidArgument, "invalid", "owner"},
		"no TTL":     {acquire(&lockv1.AcquireRequest{Key: "k", Owner: "o"}), codes.InvalidArgument, "invalid", "ttl is missing"},
		"a huge TTL": {acquire(&lockv1.AcquireRequest{Key: "k", Owner: "o", Ttl: &durationpb.Duration{Seconds: 1 << 60}}), codes.InvalidArgument, "invalid", "at most"},
		"a past TTL": {acquire(&lockv1.AcquireRequest{Key: "k", Owner: "o", Ttl: durationpb.New(-1)}), codes.InvalidArgument, "invalid", "positive"},
		"a head start of a try": {
			acquire(&lockv1.AcquireRequest{Key: "k", Owner: "o", Ttl: ttl, HeadStart: ttl}), codes.InvalidArgument, "invalid", "head start",
		},
		"a large request": {
			acquire(&lockv1.AcquireRequest{Key: "k", Owner: "o", Ttl: ttl, Metadata: map[string]string{"a": strings.Repeat("x", 70_000)}}),
			codes.ResourceExhausted, "", "65536",
		},
		"a renewal without a token": {
			func() error { _, err := c.Renew(ctx, &lockv1.RenewRequest{Key: "k", Owner: "o", Ttl: ttl}); return err },
			codes.InvalidArgument, "invalid", "token",
		},
		"a renewal of nothing": {
			func() error {
				_, err := c.Renew(ctx, &lockv1.RenewRequest{Key: "k", Owner: "o", Token: 7, Ttl: ttl})
				return err
			},
			codes.NotFound, "lost", "",
		},
		"a release of nothing": {
			func() error {
				_, err := c.Release(ctx, &lockv1.ReleaseRequest{Key: "k", Owner: "p", Token: 7})
				return err
			},
			codes.NotFound, "lost", "",
		},
		"an undo of nothing": {
			func() error { _, err := c.Release(ctx, &lockv1.ReleaseRequest{Key: "k", Owner: "p"}); return err },
			codes.OK, "", "",
		},
		"force without a holder": {
			func() error {
				_, err := c.ForceRelease(ctx, &lockv1.ForceReleaseRequest{Key: "k", Owner: "p"})
				return err
			},
			codes.NotFound, "lost", "",
		},
		"no key to inspect": {
			func() error { _, err := c.Inspect(ctx, &lockv1.InspectRequest{}); return err }, codes.InvalidArgument, "invalid", "key is empty",
		},
		"no key to watch": {
			func() error {
				s, err := c.Watch(ctx, &lockv1.WatchRequest{})
				if err == nil {
					_, err = s.Recv()
				}
				return err
			}, codes.InvalidArgument, "invalid", "key is empty",
		},
	} {
		s := status.Convert(bad.do())
		require.Equal(t, bad.code, s.Code(), "%s: %v", name, s)
		require.Contains(t, s.Message(), bad.says, name)
		kind := ""
		for _, d := range s.Details() {
			kind = d.(*lockv1.Problem).GetKind()
		}
		require.Equal(t, bad.kind, kind, name)
	}
	for rec, err := range store.List(t.Context(), "") {
		require.NoError(t, err)
		t.Errorf("held, though nobody asked for it in a way that is valid: %+v", rec)
	}
}

func TestErrorsAreRebuilt(t *testing.T) {
	t.Parallel()
	l := dial(t, serve(t, memory.New()).Addr)
	req := storetest.Request("k")
	req.Metadata = map[string]string{"why": "über\x00 <&>"}
	g := storetest.Acquire(t, l, req)
	_, err := l.Acquire(t.Context(), storetest.Request("k"))
	var held *lock.HeldError
	require.ErrorAs(t, err, &held)
	require.Equal(t, g.Owner, held.Record.Holders[0].Owner)
	require.Equal(t, req.Metadata, held.Record.Holders[0].Metadata)
	require.Equal(t, g.Token, held.Record.Holders[0].Token)
	require.NoError(t, l.ForceRelease(t.Context(), "k", g.Owner))
	_, err = l.Renew(t.Context(), g)
	var lost *lock.LostError
	require.ErrorAs(t, err, &lost)
	require.Equal(t, lock.ReasonForced, lost.Reason)
	require.Equal(t, g.Token, lost.Token)
	for _, err := range l.List(t.Context(), "\xff") {
		require.ErrorIs(t, err, lock.ErrInvalid)
	}
	require.NoError(t, l.Close())
	_, err = l.Acquire(t.Context(), req)
	require.ErrorIs(t, err, lock.ErrClosed)
}

// What is wrong with a Locker is said by each call.
func TestBadLocker(t *testing.T) {
	conn, err := grpc.NewClient("passthrough:///127.0.0.1:1", grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	for says, l := range map[string]*grpclock.Locker{
		"connection is nil": grpclock.New((*grpc.ClientConn)(nil)),
		"option is nil":     grpclock.New(conn, nil),
		"not made by New":   new(grpclock.Locker),
	} {
		_, err := l.Acquire(t.Context(), storetest.Request("k"))
		require.ErrorIs(t, err, lock.ErrInvalid)
		require.ErrorContains(t, err, says)
	}
	l := grpclock.New(conn)
	_, err = l.Acquire(t.Context(), storetest.Request("k"))
	require.Equal(t, codes.Unavailable, status.Code(err), "nobody listens there: %v", err)
	require.NoError(t, conn.Close())
	for _, wait := range []bool{false, true} {
		req := storetest.Request("k")
		req.Wait = wait
		_, err = l.Acquire(t.Context(), req)
		require.ErrorIs(t, err, lock.ErrClosed)
	}
}

// A caller, known by its token, has rights, owners of its own, and an observer; nobody is told of what
// the store says.
func TestCallers(t *testing.T) {
	t.Parallel()
	const secret = "password-of-the-store"
	name := func(ctx context.Context) string {
		md, _ := metadata.FromIncomingContext(ctx)
		return strings.Join(md.Get("authorization"), "")
	}
	var mu sync.Mutex
	var logged []string
	calls := make(chan grpclock.Call, 100)
	store := memory.NewFaulty()
	addr := serve(t, store, grpclock.WithCaller(name),
		grpclock.WithAuthorization(func(ctx context.Context, action grpclock.Action, key string) error {
			switch {
			case name(ctx) != "Bearer a" && name(ctx) != "Bearer b":
				return grpclock.ErrUnauthenticated
			case action == grpclock.ActionForce, !strings.HasPrefix(key, "ours:"):
				return errors.New(secret)
			}
			return nil
		}),
		grpclock.WithErrorLog(func(_ context.Context, err error) {
			mu.Lock()
			defer mu.Unlock()
			logged = append(logged, err.Error())
		}),
		grpclock.WithObserver(func(_ context.Context, c grpclock.Call) { calls <- c })).Addr
	as := func(token string) *grpclock.Locker { return dial(t, addr, grpclock.WithBearerToken(token)) }
	a, b, nobody := as("a"), as("b"), dial(t, addr)

	g := storetest.Acquire(t, a, lock.Request{Key: "ours:1", Owner: "alice", TTL: time.Minute})
	require.Equal(t, "alice", g.Owner)
	c := <-calls
	require.Positive(t, c.Elapsed)
	require.Regexp(t, `^alice-`, c.Owner)
	require.Equal(t, grpclock.Call{Action: "acquire", Key: "ours:1", Owner: c.Owner, Token: g.Token, Outcome: "ok", Elapsed: c.Elapsed}, c)
	_, err := b.Renew(t.Context(), g)
	require.ErrorIs(t, err, lock.ErrLost)
	require.Equal(t, "lost", (<-calls).Outcome)
	require.Equal(t, "alice", storetest.Inspect(t, a, "ours:1").Holders[0].Owner)
	require.Equal(t, c.Owner, storetest.Inspect(t, b, "ours:1").Holders[0].Owner)

	for _, err := range a.List(t.Context(), "") {
		require.Equal(t, codes.PermissionDenied, status.Code(err))
		require.NotContains(t, err.Error(), secret)
	}
	require.Equal(t, codes.PermissionDenied, status.Code(a.ForceRelease(t.Context(), "ours:1", "alice")))
	require.Equal(t, codes.PermissionDenied, status.Code(a.Watch(t.Context(), "k", func() {})))
	require.Equal(t, codes.Unauthenticated, status.Code(nobody.Release(t.Context(), g)))

	store.Fail(errors.New(secret))
	_, err = a.Acquire(t.Context(), lock.Request{Key: "ours:2", Owner: "alice", TTL: time.Minute})
	require.ErrorIs(t, err, lock.ErrUnavailable)
	require.NotContains(t, err.Error(), secret)
	var e *grpclock.ServiceError
	require.ErrorAs(t, err, &e)
	require.Equal(t, "unavailable", e.Kind)
	mu.Lock()
	require.Equal(t, secret, logged[len(logged)-1])
	mu.Unlock()
	store.Heal()
	storetest.Release(t, a, g)
}

func TestTooManyWait(t *testing.T) {
	t.Parallel()
	store := memory.New()
	c, ctx := raw(t, serve(t, store, grpclock.WithMaxWaiters(3, 1)).Addr), storetest.Bounded(t)
	g := storetest.Acquire(t, store, storetest.Request("k"))
	wait := func(owner string) (*lockv1.AcquireResponse, error) {
		return c.Acquire(ctx, &lockv1.AcquireRequest{Key: "k", Owner: owner, Ttl: durationpb.New(time.Minute), Wait: true})
	}
	var err error
	storetest.Eventually(t, "a refusal", func() bool { // whom nobody polls is given up soon
		var r *lockv1.AcquireResponse
		if r, err = wait(rand.Text()); err == nil {
			require.True(t, r.GetLine().GetNew())
			for _, h := range r.GetLine().GetRecord().GetHolders() { // a late answer has none
				require.Equal(t, g.Owner, h.GetOwner())
			}
		}
		return err != nil
	})
	require.Equal(t, codes.ResourceExhausted, status.Code(err))
	require.ErrorContains(t, err, "1 of this client")
}

// A server with a nil option, which may have been to keep somebody out, lets nobody in.
func TestNilOption(t *testing.T) {
	t.Parallel()
	l := dial(t, serve(t, memory.New(), nil).Addr)
	_, err := l.Acquire(t.Context(), storetest.Request("k"))
	require.ErrorIs(t, err, lock.ErrInvalid)
	require.ErrorContains(t, err, "option is nil")
}

// bare has neither Admin nor Watcher, nor anything else that need not be.
type bare struct{ lock.Locker }

func (bare) Capabilities() lock.Capabilities { return lock.Capabilities{Store: "bare"} }

func TestUnsupported(t *testing.T) {
	t.Parallel()
	l := dial(t, serve(t, bare{memory.New()}).Addr) // not connected: the service decides
	req := storetest.Request("k")
	req.Shared = true
	_, err := l.Acquire(t.Context(), req)
	require.ErrorIs(t, err, lock.ErrUnsupported)
	require.ErrorIs(t, l.Watch(t.Context(), "k", func() {}), lock.ErrUnsupported)
	require.ErrorIs(t, l.ForceRelease(t.Context(), "k", "o"), lock.ErrUnsupported)
	for _, err := range l.List(t.Context(), "") {
		require.ErrorIs(t, err, lock.ErrUnsupported)
	}
}

// The server is not told when a caller's context ends: if it ended the call first, that would look like
// trouble of the service.
func TestServerKnowsNoDeadline(t *testing.T) {
	t.Parallel()
	dated := make(chan bool, 1)
	l := dial(t, serve(t, memory.New(), grpclock.WithAuthorization(func(ctx context.Context, _ grpclock.Action, _ string) error {
		_, ok := ctx.Deadline()
		dated <- ok
		return nil
	})).Addr)
	_, err := l.Inspect(storetest.Bounded(t), "k")
	require.NoError(t, err)
	require.False(t, <-dated)
}
