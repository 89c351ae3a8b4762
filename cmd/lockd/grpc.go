package main

import (
	"context"
	"math"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/contrib/grpclock"
	"github.com/seed-215fdefa/lock/contrib/grpclock/lockv1"
	lockservice "github.com/seed-215fdefa/lock/internal/service"
)

// A Go client has one connection for all its waiters, watches and renewals, and lets none of them wait for
// another one's end. So the limit on a connection's calls is that on waiters, and besideWaits.
const besideWaits = 10_000

// maxUnknown is how many calls of unknown callers, if there are tokens, may wait for their messages. They are
// refused once these have arrived; more are ended soon.
const maxUnknown = 1000

// openGRPC makes the service over gRPC of a store that is shared with that over HTTP, for the same
// callers, with the same rights, audits and metrics.
func (s *service) openGRPC(shared lock.Locker) {
	opts := []grpclock.ServerOption{
		grpclock.WithErrorLog(func(ctx context.Context, err error) { s.storeError(asRequest(ctx), err) }),
		grpclock.WithObserver(func(ctx context.Context, c grpclock.Call) { s.telemetry.observe(asRequest(ctx), c) }),
	}
	if s.tokens != "" {
		opts = append(opts,
			grpclock.WithAuthorization(func(ctx context.Context, action grpclock.Action, key string) error {
				return s.authorize(asRequest(ctx), action, key)
			}),
			grpclock.WithCaller(func(ctx context.Context) string { return nameOf(asRequest(ctx)) }))
	}
	s.locks = grpclock.NewServer(shared, opts...)
	server := append(grpclock.ServerOptions(),
		grpc.ConnectionTimeout(s.server.ReadHeaderTimeout), grpc.MaxHeaderListSize(uint32(s.server.MaxHeaderBytes)),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: s.server.IdleTimeout, Time: s.server.IdleTimeout}),
		grpc.MaxConcurrentStreams(uint32(min(s.maxWaiters, math.MaxInt32)+besideWaits)),
		grpc.InTapHandle(s.admit),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			return next(srv, incomingStream{stream, s.bodyTime})
		}))
	if s.cert != "" {
		server = append(server, grpc.Creds(credentials.NewTLS(s.tlsConfig())))
	}
	s.grpc = grpc.NewServer(server...)
	lockv1.RegisterLockServiceServer(s.grpc, s.locks)
}

// stopGRPC ends waits and watches, lets other calls be answered, and breaks what is left when ctx ends.
func (s *service) stopGRPC(ctx context.Context) error {
	if s.grpc == nil {
		return nil
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.locks.Close()
		s.grpc.GracefulStop()
	}()
	select {
	case <-stopped:
		return nil
	case <-ctx.Done():
		s.grpc.Stop()
		return ctx.Err()
	}
}

type callKey struct{}

// call is a call whose headers have arrived.
type call struct {
	*http.Request             // which callers are known by
	late          *time.Timer // ends the call if its message does not arrive, or what it is sent is not taken
}

// callOf is what admit has made of a call.
func callOf(ctx context.Context) *call { return ctx.Value(callKey{}).(*call) }

// asRequest is a call as an HTTP request.
func asRequest(ctx context.Context) *http.Request { return callOf(ctx).Request }

// admit is asked before a call gets a goroutine, and that waits for the message before anything else is
// asked. So admit bounds for how long, and how many such calls callers may have that are not known.
func (s *service) admit(ctx context.Context, _ *tap.Info) (context.Context, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	r := (&http.Request{Header: http.Header{"Authorization": md.Get("authorization")}}).WithContext(ctx)
	if p, ok := peer.FromContext(ctx); ok {
		r.RemoteAddr = p.Addr.String()
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			r.TLS = &info.State
		}
	}
	within, end := s.bodyTime, func() {}
	if f := s.files.Load(); f.access != nil {
		if r = withCaller(r, f.identify(r)); callerOf(r) == nil {
			end = func() { s.unknown.Add(-1) }
			if s.unknown.Add(1) > maxUnknown {
				// No error, and not yet: for a call that ends here gRPC keeps a timer until its client's deadline.
				within = 10 * time.Millisecond
			}
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(within, cancel)
	if callerOf(r) == nil { // a goroutine, which is saved for the others: what is left of their calls is small, and soon gone
		context.AfterFunc(ctx, func() { late.Stop(); end() })
	}
	return context.WithValue(ctx, callKey{}, &call{r, late}), nil
}

// unary serves a call whose message has arrived. It refuses what the service tells everybody to callers that
// are not known: unlike a refusal, an answer waits until its client takes it, and keeps the connection.
func (s *service) unary(ctx context.Context, in any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	callOf(ctx).late.Stop()
	r := asRequest(ctx)
	if s.tokens == "" || callerOf(r) != nil || info.FullMethod != lockv1.LockService_Capabilities_FullMethodName {
		return next(ctx, in)
	}
	s.telemetry.observe(r, grpclock.Call{Outcome: lockservice.KindUnauthenticated})
	refusal, err := status.New(codes.Unauthenticated, "lock: "+lockservice.KindUnauthenticated).
		WithDetails(&lockv1.Problem{Kind: lockservice.KindUnauthenticated})
	if err != nil {
		return nil, err
	}
	return nil, refusal.Err()
}

// incomingStream is a stream of the server's, which has one message of the client's, and ends if its client
// does not take what is sent.
type incomingStream struct {
	grpc.ServerStream
	within time.Duration
}

// SendMsg implements [grpc.ServerStream].
func (s incomingStream) SendMsg(m any) error {
	late := callOf(s.Context()).late
	late.Reset(s.within)
	defer late.Stop()
	return s.ServerStream.SendMsg(m)
}

// RecvMsg implements [grpc.ServerStream].
func (s incomingStream) RecvMsg(m any) error {
	err := s.ServerStream.RecvMsg(m)
	if err == nil {
		callOf(s.Context()).late.Stop()
	}
	return err
}
