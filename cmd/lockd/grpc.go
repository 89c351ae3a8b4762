package main

import (
	"context"
	"net/http"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/contrib/grpclock"
	"github.com/seed-215fdefa/lock/contrib/grpclock/lockv1"
)

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
		grpc.UnaryInterceptor(func(ctx context.Context, in any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			return next(s.identified(ctx), in)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			return next(srv, identifiedStream{stream, s.identified(stream.Context())})
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

type requestKey struct{}

// identified is ctx with the call as an HTTP request, which is what callers are known by.
func (s *service) identified(ctx context.Context) context.Context {
	md, _ := metadata.FromIncomingContext(ctx)
	r := (&http.Request{Header: http.Header{"Authorization": md.Get("authorization")}}).WithContext(ctx)
	if p, ok := peer.FromContext(ctx); ok {
		r.RemoteAddr = p.Addr.String()
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			r.TLS = &info.State
		}
	}
	if f := s.files.Load(); f.access != nil {
		r = withCaller(r, f.identify(r))
	}
	return context.WithValue(ctx, requestKey{}, r)
}

// asRequest is what identified has made of a call.
func asRequest(ctx context.Context) *http.Request {
	return ctx.Value(requestKey{}).(*http.Request)
}

// identifiedStream is a stream whose context is what identified returned.
type identifiedStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements [grpc.ServerStream].
func (s identifiedStream) Context() context.Context { return s.ctx }
