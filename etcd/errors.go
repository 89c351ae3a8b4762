package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// requestTimeout bounds what the Locker sends on its own account.
const requestTimeout = 5 * time.Second

// breaks is how many broken connections one request gets over.
const breaks = 2

var (
	// errClientClosed is returned without asking the client, which would try for seconds.
	errClientClosed = storekit.ClientClosed("etcd", nil)
	// errUnanswered ends a request of the Locker's own. It is no context's error: no deadline
	// of the caller's has passed.
	errUnanswered = errors.New("the server has not answered in time")
	// errNotNew is returned by every method of a Locker that New has not made.
	errNotNew = fmt.Errorf("%w: etcd: the Locker was not made by New", lock.ErrInvalid)
)

// within calls f for no longer than lock.Patience.
func (l *Locker) within(ctx context.Context, f func(context.Context) error) error {
	return storekit.WithinPatience(ctx, f)
}

// fail is err as a method returns it: with that of ctx in it once ctx has ended.
func (l *Locker) fail(ctx context.Context, err error) error {
	switch {
	case err == nil, errors.Is(err, lock.ErrInvalid), errors.Is(err, lock.ErrLost):
		return err
	case errors.Is(err, lock.ErrHeld):
		return err
	case ctx.Err() != nil:
		return storekit.Ended(ctx, err, nil)
	case l.ctx.Err() != nil:
		return l.over()
	}
	return fmt.Errorf("lock: etcd: %w%s", err, l.advice(err))
}

// because adds to err, that of a request for which time is over, why no member can be reached. The
// client does not tell: its requests wait for a connection. One that does not wait fails at once.
func (l *Locker) because(err error) error {
	conn := l.cli.ActiveConnection()
	if conn.GetState() != connectivity.TransientFailure {
		return err
	}
	ctx, cancel := context.WithTimeout(l.ctx, requestTimeout/50)
	defer cancel()
	_, cause := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte(l.prefix)})
	if status.Code(cause) != codes.Unavailable {
		return err
	}
	return fmt.Errorf("%w: %w", err, cause)
}

// advice is what to do about an error of which users will not know.
func (l *Locker) advice(err error) string {
	switch {
	case errors.Is(err, rpctypes.ErrUserEmpty):
		return ": the server wants to know who asks: set Username and Password, or a certificate, in clientv3.Config"
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		return fmt.Sprintf(": a role needs read and write permission for all keys that begin with %q", l.prefix)
	case errors.Is(err, rpctypes.ErrNoSpace):
		return ": compact and defragment it, then disarm its alarm"
	}
	return ""
}

// classify is the storekit.Class of an error.
func classify(err error) storekit.Class {
	if errors.Is(err, errUnanswered) || isGone(err) { // another etcd lease may do
		return storekit.Unknown
	}
	switch codeOf(err) {
	case codes.ResourceExhausted:
		return storekit.Busy
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Internal,
		codes.Unknown: // etcd has no other for a proposal that is dropped while the leader changes
		return storekit.Unknown
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return storekit.Unknown
	}
	return storekit.Final
}

// definite reports that the server has refused a request, which will have no effect. See isFull for
// one that may have had it.
func definite(err error) bool {
	switch codeOf(err) {
	case codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.OutOfRange,
		codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented, codes.ResourceExhausted:
		return true
	}
	return false
}

// isBroken reports that a connection is, or that the member at its end has no leader, or has
// forgotten who asks.
func isBroken(err error) bool {
	return codeOf(err) == codes.Unavailable || errors.Is(err, rpctypes.ErrInvalidAuthToken)
}

// isGone reports that a lease is not there any more.
func isGone(err error) bool { return errors.Is(err, rpctypes.ErrLeaseNotFound) }

// isBusy reports that the server has too much to do.
func isBusy(err error) bool { return errors.Is(err, rpctypes.ErrTooManyRequests) }

// isFull reports that the server takes no more writes, except deletions. If it has become full only
// since it let the request in, it has done what it refuses.
func isFull(err error) bool { return errors.Is(err, rpctypes.ErrNoSpace) }

func codeOf(err error) codes.Code {
	var server rpctypes.EtcdError
	if errors.As(err, &server) {
		return server.Code()
	}
	if s, ok := status.FromError(err); ok {
		return s.Code()
	}
	return codes.OK // it is no server's
}
