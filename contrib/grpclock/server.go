package grpclock

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/contrib/grpclock/lockv1"
	"github.com/seed-215fdefa/lock/internal/service"
)

// Server serves a [lock.Locker]. Make one with [NewServer]. It is safe for concurrent use.
type Server struct {
	lockv1.UnimplementedLockServiceServer
	server *service.Server
}

var _ lockv1.LockServiceServer = (*Server)(nil)

// Action is what a call asks for: the same type as httplock.Action.
type Action = service.Action

// The actions of a call.
const (
	ActionAcquire = service.ActionAcquire
	ActionRenew   = service.ActionRenew
	ActionRelease = service.ActionRelease
	ActionForce   = service.ActionForce
	ActionInspect = service.ActionInspect // of a key
	ActionWatch   = service.ActionWatch
	ActionList    = service.ActionList // the key is the prefix
)

// Call is a call about locks and its outcome: the same type as httplock.Call.
type Call = service.Call

// ErrUnauthenticated says that nobody knows who calls. Return it, wrapped or not, from the function of
// [WithAuthorization].
var ErrUnauthenticated = service.ErrUnauthenticated

// ServerOption sets up a [Server].
type ServerOption func(*service.Server)

// WithAuthorization makes f decide on each call before the store is asked. If f returns
// ErrUnauthenticated, the status is Unauthenticated; any other error is PermissionDenied. The error's
// text goes to the error log, not to the client. f decides on a watch again every 5 s, and an error ends
// it. f is called concurrently, with the call's context. Default: everybody may do everything.
func WithAuthorization(f func(ctx context.Context, action Action, key string) error) ServerOption {
	return func(s *service.Server) { s.Authorize = f }
}

// WithCaller binds owners to callers, as httplock.WithCaller does: nobody renews, releases or undoes
// another caller's grant. f returns the name of who calls; "" binds nothing. f is called concurrently.
// Default: whoever knows an owner may act for it.
func WithCaller(f func(ctx context.Context) string) ServerOption {
	return func(s *service.Server) { s.Caller = f }
}

// WithErrorLog makes f receive the errors of the store and of WithAuthorization's function, which
// clients do not see. f is called concurrently. Default: they are dropped.
func WithErrorLog(f func(ctx context.Context, err error)) ServerOption {
	return func(s *service.Server) { s.ErrorLog = f }
}

// WithObserver makes f receive each call about a lock or a list at its end, for audits and metrics. f
// is called concurrently, and delays the answer. Default: none.
func WithObserver(f func(ctx context.Context, c Call)) ServerOption {
	return func(s *service.Server) { s.Observer = f }
}

// WithMaxWaiters limits how many waiters may stand in line at this server: in total, and per client,
// which is an address without its port. A waiter above a limit gets ResourceExhausted. 0 is no limit.
// Default: 100,000 in total, and no limit per client, since one proxy may stand for many.
func WithMaxWaiters(total, perClient int) ServerOption {
	return func(s *service.Server) { s.SetMaxWaiters(total, perClient) }
}

// NewServer returns a server of l, to register with a grpc.Server that has the [ServerOptions]. l stays
// the caller's to close, after the server. To stop gracefully, call Close and then the grpc.Server's
// GracefulStop. Every call but Capabilities gets InvalidArgument if an option is nil.
func NewServer(l lock.Locker, opts ...ServerOption) *Server {
	s := &Server{server: service.NewServer(l)}
	s.server.Address = addressOf
	for _, o := range opts {
		if o == nil {
			s.server.Err = fmt.Errorf("%w: grpclock: option is nil", lock.ErrInvalid)
			continue
		}
		o(s.server)
	}
	return s
}

// Close ends all waits and watches, and tells their clients to ask again, at another replica. New calls
// are answered with Unavailable. Grants remain. Close returns when no goroutine of s runs any more.
func (s *Server) Close() { s.server.Close() }

// Waiting returns how many waiters stand in line at s.
func (s *Server) Waiting() int { return s.server.Waiting() }

// addressOf is the address that a call came from, without the port.
func addressOf(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	host, _, err := net.SplitHostPort(p.Addr.String())
	if err != nil {
		return p.Addr.String()
	}
	return host
}

// call has f answer one call, if the caller may do this. What is an error of f's is a status.
func call[A any](ctx context.Context, s *service.Server, action Action, key string, f func(context.Context) (A, error)) (answer A, err error) {
	s.Observe(ctx, func(ctx context.Context) {
		if err = s.Allow(ctx, action, key); err == nil {
			answer, err = f(ctx)
		}
		if err != nil {
			err = toStatus(ctx, s.Fail(ctx, err))
		}
	})
	return answer, err
}

// Acquire implements [lockv1.LockServiceServer].
func (s *Server) Acquire(ctx context.Context, r *lockv1.AcquireRequest) (*lockv1.AcquireResponse, error) {
	return call(ctx, s.server, ActionAcquire, r.GetKey(), func(ctx context.Context) (*lockv1.AcquireResponse, error) {
		answer, err := s.server.Acquire(ctx, lock.Request{
			Key: r.GetKey(), Owner: r.GetOwner(), TTL: r.GetTtl().AsDuration(), Shared: r.GetShared(), Wait: r.GetWait(),
			HeadStart: r.GetHeadStart().AsDuration(), Metadata: r.GetMetadata(), Under: r.GetUnder(),
		})
		return toAnswer(answer), err
	})
}

// Renew implements [lockv1.LockServiceServer].
func (s *Server) Renew(ctx context.Context, r *lockv1.RenewRequest) (*lockv1.RenewResponse, error) {
	return call(ctx, s.server, ActionRenew, r.GetKey(), func(ctx context.Context) (*lockv1.RenewResponse, error) {
		g, err := s.server.Renew(ctx, lock.Grant{
			Key: r.GetKey(), Owner: r.GetOwner(), Token: lock.Token(r.GetToken()), TTL: r.GetTtl().AsDuration(), Shared: r.GetShared(),
		})
		return &lockv1.RenewResponse{Grant: toGrant(g)}, err
	})
}

// Release implements [lockv1.LockServiceServer].
func (s *Server) Release(ctx context.Context, r *lockv1.ReleaseRequest) (*lockv1.ReleaseResponse, error) {
	return call(ctx, s.server, ActionRelease, r.GetKey(), func(ctx context.Context) (*lockv1.ReleaseResponse, error) {
		return &lockv1.ReleaseResponse{}, s.server.Release(ctx, lock.Grant{
			Key: r.GetKey(), Owner: r.GetOwner(), Token: lock.Token(r.GetToken()), TTL: r.GetTtl().AsDuration(), Shared: r.GetShared(),
		})
	})
}

// ForceRelease implements [lockv1.LockServiceServer].
func (s *Server) ForceRelease(ctx context.Context, r *lockv1.ForceReleaseRequest) (*lockv1.ForceReleaseResponse, error) {
	return call(ctx, s.server, ActionForce, r.GetKey(), func(ctx context.Context) (*lockv1.ForceReleaseResponse, error) {
		return &lockv1.ForceReleaseResponse{}, s.server.ForceRelease(ctx, r.GetKey(), r.GetOwner())
	})
}

// Inspect implements [lockv1.LockServiceServer].
func (s *Server) Inspect(ctx context.Context, r *lockv1.InspectRequest) (*lockv1.InspectResponse, error) {
	return call(ctx, s.server, ActionInspect, r.GetKey(), func(ctx context.Context) (*lockv1.InspectResponse, error) {
		rec, err := s.server.Inspect(ctx, r.GetKey())
		return &lockv1.InspectResponse{Record: toRecord(rec)}, err
	})
}

// List implements [lockv1.LockServiceServer].
func (s *Server) List(r *lockv1.ListRequest, stream grpc.ServerStreamingServer[lockv1.ListResponse]) error {
	_, err := call(stream.Context(), s.server, ActionList, r.GetPrefix(), func(ctx context.Context) (any, error) {
		for rec, err := range s.server.List(ctx, r.GetPrefix()) {
			if err != nil {
				return nil, err
			}
			if stream.Send(&lockv1.ListResponse{Record: toRecord(rec)}) != nil {
				return nil, context.Canceled // the client has gone
			}
		}
		return nil, nil
	})
	return err
}

// Watch implements [lockv1.LockServiceServer].
func (s *Server) Watch(r *lockv1.WatchRequest, stream grpc.ServerStreamingServer[lockv1.WatchResponse]) error {
	_, err := call(stream.Context(), s.server, ActionWatch, r.GetKey(), func(ctx context.Context) (any, error) {
		return nil, s.server.Watch(ctx, r.GetKey(), func(changed bool) bool {
			return stream.Send(&lockv1.WatchResponse{Changed: changed}) == nil
		})
	})
	return err
}

// Capabilities implements [lockv1.LockServiceServer].
func (s *Server) Capabilities(ctx context.Context, _ *lockv1.CapabilitiesRequest) (*lockv1.CapabilitiesResponse, error) {
	c, err := s.server.Capabilities(ctx)
	return toCapabilities(c), err
}
