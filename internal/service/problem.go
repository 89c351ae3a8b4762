package service

import (
	"context"
	"errors"
	"strings"

	"github.com/seed-215fdefa/lock"
)

// Problem is why the service did not do what it was asked for, as clients are told.
type Problem struct {
	Kind   string
	Detail string

	Record *lock.Record    // of held; nil: not known
	Reason lock.LostReason // of lost
	Token  lock.Token      // of lost
	// Final says of unavailable that a waiter is out of line: asking again would begin anew.
	Final bool
}

// The kinds of a Problem that a transport has besides its own.
const (
	KindHeld            = "held"
	KindLost            = "lost"
	KindReleased        = "released"
	KindInvalid         = "invalid"
	KindUnsupported     = "unsupported"
	KindUnavailable     = "unavailable"
	KindClosed          = "closed"
	KindStopping        = "stopping"
	KindCrowded         = "crowded"
	KindUnauthenticated = "unauthenticated"
	KindForbidden       = "forbidden"
	KindTooLarge        = "too-large"
	KindTimeout         = "timeout"
)

// meanings has the error of package lock that a kind is to a client.
var meanings = map[string]error{
	KindHeld:        lock.ErrHeld,
	KindLost:        lock.ErrLost,
	KindReleased:    lock.ErrReleased,
	KindInvalid:     lock.ErrInvalid,
	KindUnsupported: lock.ErrUnsupported,
	KindUnavailable: lock.ErrUnavailable,
	KindClosed:      lock.ErrClosed,
	KindStopping:    lock.ErrUnavailable,
	KindCrowded:     lock.ErrUnavailable,
	KindTooLarge:    lock.ErrInvalid,
	KindTimeout:     lock.ErrUnavailable,
}

// Error implements error.
func (p *Problem) Error() string {
	if p.Detail == "" {
		return p.Kind
	}
	return p.Kind + ": " + strings.TrimPrefix(p.Detail, "lock: ")
}

// Unwrap returns the error of package lock that p is, or nil.
func (p *Problem) Unwrap() error { return meanings[p.Kind] }

// Rebuild returns the error of package lock that the server has made p of, if it said something
// about the lock; else nil.
func (p *Problem) Rebuild() error {
	switch {
	case p.Kind == KindHeld && p.Record == nil:
		return &lock.HeldError{}
	case p.Kind == KindHeld:
		return &lock.HeldError{Record: *p.Record}
	case p.Kind == KindLost:
		return &lock.LostError{Reason: p.Reason, Token: p.Token}
	}
	return nil
}

// ReasonOf is the reason whose String is name, or 0.
func ReasonOf(name string) lock.LostReason {
	for _, r := range []lock.LostReason{lock.ReasonExpired, lock.ReasonTaken, lock.ReasonForced, lock.ReasonUnreachable} {
		if r.String() == name {
			return r
		}
	}
	return 0
}

// outOfLine is the error of a wait that is over.
type outOfLine struct{ error }

func (e outOfLine) Unwrap() error { return e.error }

// Fail returns the problem that err is to the caller of ctx. It notes it for the observer, and logs
// what the caller is not told.
func (s *Server) Fail(ctx context.Context, err error) *Problem {
	p := problemOf(err)
	callOf(ctx).failed(ctx, p, err)
	if p.Record != nil {
		rec := s.scope(ctx).view(*p.Record)
		p.Record = &rec
	}
	switch p.Kind {
	case KindUnavailable, KindClosed, KindStopping:
		if s.ErrorLog != nil && !errors.Is(err, context.Canceled) {
			s.ErrorLog(ctx, err)
		}
	}
	return p
}

// problemOf tells a client of err. What a store says of itself, such as its address, is not for
// clients. A Problem that is wrapped is one that another service told this one's store.
func problemOf(err error) *Problem {
	var over outOfLine
	var held *lock.HeldError
	var lost *lock.LostError
	switch p, own := err.(*Problem); { //nolint:errorlint // see above
	case own:
		return p
	case errors.As(err, &over):
		p := problemOf(over.error)
		p.Final = true
		return p
	case errors.As(err, &held):
		return &Problem{Kind: KindHeld, Record: &held.Record}
	case errors.As(err, &lost):
		return &Problem{Kind: KindLost, Reason: lost.Reason, Token: lost.Token}
	case errors.Is(err, lock.ErrInvalid), errors.Is(err, lock.ErrUnsupported):
		return &Problem{Kind: kindOf(err), Detail: err.Error()}
	}
	return &Problem{Kind: kindOf(err)}
}

// kindOf is that of an error of package lock.
func kindOf(err error) string {
	for _, kind := range []string{KindHeld, KindLost, KindReleased, KindInvalid, KindUnsupported, KindClosed} {
		if errors.Is(err, meanings[kind]) {
			return kind
		}
	}
	return KindUnavailable
}
