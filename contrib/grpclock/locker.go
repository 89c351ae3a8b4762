package grpclock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/contrib/grpclock/lockv1"
	"github.com/seed-215fdefa/lock/internal/service"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

var (
	_ lock.Locker  = (*Locker)(nil)
	_ lock.Admin   = (*Locker)(nil)
	_ lock.Watcher = (*Locker)(nil)
)

// Locker is a client of the service. Make one with [New]. It is safe for concurrent use. It has the
// methods of [lock.Locker], [lock.Admin] and [lock.Watcher], and Connect and Close, which are those of
// a Locker of package httplock: Connect(ctx) asks what the service's store can do, for Capabilities,
// and should be called before lock.New; Close() ends this Locker's waits, but neither grants nor the
// connection.
type Locker struct{ client }

type client = service.Client

// Option sets up a [Locker].
type Option func(*transport)

// WithBearerToken sends "authorization: Bearer" and token in each call's metadata, also over a
// connection without TLS. Errors do not show it. Default: none.
func WithBearerToken(token string) Option { return func(t *transport) { t.token = token } }

// New returns a Locker on the service at the other end of conn, such as a grpc.ClientConn that has the
// [DialOptions]. It does no I/O. conn stays the caller's to close, after the Locker. Every call returns
// an error if conn or an option is nil.
func New(conn grpc.ClientConnInterface, opts ...Option) *Locker {
	t := &transport{rpc: lockv1.NewLockServiceClient(conn)}
	var err error
	if storekit.IsNil(conn) {
		err = fmt.Errorf("%w: grpclock: the connection is nil", lock.ErrInvalid)
	}
	for _, o := range opts {
		if o == nil {
			err = fmt.Errorf("%w: grpclock: option is nil", lock.ErrInvalid)
			continue
		}
		o(t)
	}
	l := new(Locker)
	service.Setup(&l.client, "grpc", t, err)
	return l
}

// ServiceError is a failed call that says nothing about the lock. It is lock.ErrUnavailable,
// ErrInvalid, ErrUnsupported or ErrClosed if the service said so.
type ServiceError struct {
	Kind   string // of the problem, such as "forbidden"; "" if it was not the service's
	status *status.Status
	cause  error // what it is
}

// Error names the code and says what the service, or gRPC, did.
func (e *ServiceError) Error() string {
	return fmt.Sprintf("lock: grpc: %v: %s", e.status.Code(), e.status.Message())
}

// GRPCStatus returns the status, for [status.FromError] and [status.Code].
func (e *ServiceError) GRPCStatus() *status.Status { return e.status }

// Unwrap returns an error that is the one of package lock that e is, or nil.
func (e *ServiceError) Unwrap() error { return e.cause }

// transport sends requests over gRPC. It implements [service.Transport].
type transport struct {
	rpc   lockv1.LockServiceClient
	token string
}

// outgoing is ctx with the token, and without a deadline.
func (t *transport) outgoing(ctx context.Context) context.Context {
	ctx = undated{ctx}
	if t.token == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+t.token)
}

// undated is a context that does not tell the server when it ends. Else the server might end the call
// first, and that would look like trouble of the service.
type undated struct{ context.Context }

func (undated) Deadline() (deadline time.Time, ok bool) { return time.Time{}, false }

// errorOf is the error that the end of a call is. If ctx is all that ended it, it is just that: no sign
// of trouble.
func errorOf(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	s := status.Convert(err)
	p := problemOf(s)
	switch {
	case p == nil && ctx.Err() != nil && (s.Code() == codes.Canceled || s.Code() == codes.DeadlineExceeded):
		return ctx.Err()
	case p == nil && errors.Is(err, grpc.ErrClientConnClosing): //nolint:staticcheck // it says of nothing else which Canceled this is
		return storekit.ClientClosed("grpc", err)
	case p == nil:
		return &ServiceError{status: s}
	}
	if err := p.Rebuild(); err != nil {
		return err
	}
	return &ServiceError{p.Kind, s, p}
}

// Classify implements [service.Transport].
func (t *transport) Classify(err error) storekit.Class {
	if errors.Is(err, lock.ErrClosed) {
		return storekit.Final
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.Unknown, codes.DeadlineExceeded, codes.Canceled, codes.Internal, codes.Aborted:
		return storekit.Unknown
	case codes.ResourceExhausted: // a proxy's rate limit: no request or reply of ours is too large
		return storekit.Busy
	}
	return storekit.Final
}

// Acquire implements [service.Service].
func (t *transport) Acquire(ctx context.Context, r lock.Request) (service.Answer, error) {
	m := &lockv1.AcquireRequest{
		Key: r.Key, Owner: r.Owner, Ttl: durationpb.New(r.TTL), Shared: r.Shared, Wait: r.Wait,
		Metadata: r.Metadata, Under: r.Under,
	}
	if r.HeadStart != 0 {
		m.HeadStart = durationpb.New(r.HeadStart)
	}
	answer, err := t.rpc.Acquire(t.outgoing(ctx), m)
	return answerOf(answer), errorOf(ctx, err)
}

// Renew implements [service.Service].
func (t *transport) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	m, err := t.rpc.Renew(t.outgoing(ctx), &lockv1.RenewRequest{
		Key: g.Key, Owner: g.Owner, Token: uint64(g.Token), Ttl: durationpb.New(g.TTL), Shared: g.Shared,
	})
	return grantOf(m.GetGrant()), errorOf(ctx, err)
}

// Release implements [service.Service].
func (t *transport) Release(ctx context.Context, g lock.Grant) error {
	_, err := t.rpc.Release(t.outgoing(ctx), &lockv1.ReleaseRequest{
		Key: g.Key, Owner: g.Owner, Token: uint64(g.Token), Shared: g.Shared, Ttl: durationpb.New(g.TTL),
	})
	return errorOf(ctx, err)
}

// ForceRelease implements [service.Service].
func (t *transport) ForceRelease(ctx context.Context, key, owner string) error {
	_, err := t.rpc.ForceRelease(t.outgoing(ctx), &lockv1.ForceReleaseRequest{Key: key, Owner: owner})
	return errorOf(ctx, err)
}

// Inspect implements [service.Service].
func (t *transport) Inspect(ctx context.Context, key string) (lock.Record, error) {
	m, err := t.rpc.Inspect(t.outgoing(ctx), &lockv1.InspectRequest{Key: key})
	return recordOf(m.GetRecord()), errorOf(ctx, err)
}

// Capabilities implements [service.Service].
func (t *transport) Capabilities(ctx context.Context) (lock.Capabilities, error) {
	m, err := t.rpc.Capabilities(t.outgoing(ctx), &lockv1.CapabilitiesRequest{})
	return capabilitiesOf(m), errorOf(ctx, err)
}

// List implements [service.Service].
func (t *transport) List(ctx context.Context, prefix string) iter.Seq2[lock.Record, error] {
	return func(yield func(lock.Record, error) bool) {
		err := receive(ctx, func(ctx context.Context) (grpc.ServerStreamingClient[lockv1.ListResponse], error) {
			return t.rpc.List(t.outgoing(ctx), &lockv1.ListRequest{Prefix: prefix})
		}, func(m *lockv1.ListResponse) bool { return yield(recordOf(m.GetRecord()), nil) })
		if err != nil {
			yield(lock.Record{}, err)
		}
	}
}

// Watch implements [service.Service].
func (t *transport) Watch(ctx context.Context, key string, event func(changed bool) bool) error {
	return receive(ctx, func(ctx context.Context) (grpc.ServerStreamingClient[lockv1.WatchResponse], error) {
		return t.rpc.Watch(t.outgoing(ctx), &lockv1.WatchRequest{Key: key})
	}, func(m *lockv1.WatchResponse) bool { return event(m.GetChanged()) })
}

// receive calls each with what a stream brings, until that returns false or the stream ends.
func receive[M any](ctx context.Context, open func(context.Context) (grpc.ServerStreamingClient[M], error), each func(*M) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream
	stream, err := open(ctx)
	for err == nil {
		var m *M
		if m, err = stream.Recv(); err == nil && !each(m) {
			return nil
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return errorOf(ctx, err)
}
