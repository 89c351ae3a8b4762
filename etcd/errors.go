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

// breaks is how many broken connections one call gets over.
const breaks = 2

// isBroken reports that a connection is, or that the member at its end has no leader.
func isBroken(err error) bool { return codeOf(err) == codes.Unavailable }

// limit is how long the nth sending of a request is waited for that can be sent again. After
// three, of which one should have met a member that answers, it doubles twice, for a cluster
// that is but slow.
func limit(ttl time.Duration, n int) time.Duration {
	return max(min(ttl, requestTimeout)/4, minTTL/2) << min(max(n-2, 0), 2)
}

// again has f send a request, and once more when it is not answered in time: a member that is
// stopped keeps its connections open, and the next sending may go to another. The earlier ones
// may take effect all the same, at any time. Likewise, but not often, when a connection breaks:
// if all have, the caller is to know soon. It gives up after a while, or when l is closed.
func (l *Locker) again(ctx context.Context, ttl time.Duration, f func(ctx context.Context, n int) error) error {
	begun, broken := time.Now(), 0
	for n := 0; ; n++ {
		attempt, cancel := context.WithTimeout(ctx, limit(ttl, n-broken))
		err := f(attempt, n)
		late := err != nil && attempt.Err() != nil
		cancel()
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case !late && isBroken(err) && broken < breaks && l.ctx.Err() == nil:
			broken++
		case !late:
			return err
		case time.Since(begun) > patience, l.ctx.Err() != nil:
			return errUnanswered
		}
	}
}

// insist has f send a request, and a copy of it every time that it has not been answered for a
// while: the client asks its members in turn, so a copy does not meet one that is frozen. None is
// given up before another is answered, so a cluster that is but slow loses nothing. At once, but
// not often, it sends a copy when a connection breaks.
func insist[T any](ctx context.Context, every time.Duration, f func(context.Context) (T, error)) (v T, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		v   T
		err error
	}
	answers, pending := make(chan answer), 0
	send := func() {
		pending++
		go func() {
			v, err := f(ctx)
			select {
			case answers <- answer{v, err}:
			case <-ctx.Done():
			}
		}()
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	send()
	for broken := 0; ; {
		select {
		case a := <-answers:
			pending--
			switch {
			case !isBroken(a.err):
				return a.v, a.err
			case broken < breaks:
				broken++
				send()
			case pending == 0:
				return a.v, a.err
			}
		case <-tick.C:
			send()
		case <-ctx.Done():
			return v, ctx.Err()
		}
	}
}

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
func definite(err error) bool {
	switch codeOf(err) {
	case codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.OutOfRange,
		codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented:
		return true
	}
	return false
}

func codeOf(err error) codes.Code {
	var server rpctypes.EtcdError
	if errors.As(err, &server) {
		return server.Code()
	}
	if s, ok := status.FromError(err); ok {
		return s.Code()
	}
	return codes.Unknown
}

// transient reports whether asking again may help: during an election, a restart, an
// overload, or while there is no connection.
func transient(err error) bool {
	switch codeOf(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.ResourceExhausted, codes.Internal:
		return true
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.Is(err, errUnanswered)
}

// errClientClosed is told before the client is asked, which would try for seconds.
var errClientClosed = errors.New("lock: etcd: the client is closed")

// errNotOurs is told when the name of a new entry is in use, which it cannot be but by a fault.
var errNotOurs = errors.New("an entry of another owner has the name")

// errUnanswered ends a request of the Locker's own. It is no context's error: no deadline of
// the caller's has passed.
var errUnanswered = errors.New("the server has not answered in time")
