package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/seed-215fdefa/lock"
)

// requestTimeout bounds what the Locker sends on its own account.
const requestTimeout = 5 * time.Second

// fail is err as a method returns it: with that of ctx in it once ctx has ended.
func (l *Locker) fail(ctx context.Context, err error) error {
	switch {
	case err == nil, errors.Is(err, lock.ErrInvalid), errors.Is(err, lock.ErrLost):
		return err
	case ctx.Err() != nil:
		if errors.Is(err, ctx.Err()) {
			return err
		}
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	case errors.Is(err, lock.ErrHeld):
		return err
	case l.ctx.Err() != nil:
		return l.over()
	}
	return fmt.Errorf("lock: etcd: %w", err)
}

// isGone reports that a lease is not there any more.
func isGone(err error) bool { return errors.Is(err, rpctypes.ErrLeaseNotFound) }

// definite reports that the server has refused a request, which had no effect.
func definite(err error) bool { return !transient(err) && !errors.Is(err, errUnanswered) }

// transient reports whether asking again may help: during an election, a restart, an
// overload, or while there is no connection.
func transient(err error) bool {
	code := codes.Unknown
	var server rpctypes.EtcdError
	if errors.As(err, &server) {
		code = server.Code()
	} else if s, ok := status.FromError(err); ok {
		code = s.Code()
	}
	switch code {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.ResourceExhausted, codes.Internal:
		return true
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.Is(err, errUnanswered)
}

// errClientClosed is told before the client is asked, which would try for seconds.
var errClientClosed = errors.New("lock: etcd: the client is closed")

// errUnanswered ends a request of the Locker's own. It is no context's error: no deadline of
// the caller's has passed.
var errUnanswered = errors.New("the server has not answered in time")
