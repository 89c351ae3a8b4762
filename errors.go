package lock

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Errors to test for with errors.Is.
//
// The error of a [Client] or a [Lease] is exactly one of these, or the error of the ctx
// that the caller gave, with two exceptions: it is ErrHeld and ctx's error when ctx ended a
// wait for a key that was seen held, and ErrHeld and ErrUnavailable when [WithWait] ended
// such a wait while the store was in trouble.
var (
	// ErrHeld says that the store has shown somebody else to hold the key. The error is a
	// *HeldError where the store says who.
	ErrHeld = errors.New("lock: held")
	// ErrLost says that a grant does not exist any more. The error is a *LostError where
	// the grant was a Lease.
	ErrLost = errors.New("lock: lost")
	// ErrStale says that a resource has seen a newer token. The error is a *StaleError.
	ErrStale = errors.New("lock: stale token")
	// ErrUnavailable says that the store failed, or did not answer within the bound of the
	// call. It wraps the store's last error, but is no context's error even if that is. Whether
	// the key is held is not known.
	ErrUnavailable = errors.New("lock: store unavailable")
	// ErrReleased is a lease's Err, and the cause of its context, after Release.
	ErrReleased = errors.New("lock: released")
	// ErrClosed says that the Client or the store is closed.
	ErrClosed = errors.New("lock: closed")
	// ErrDeadlock says that the call would wait for itself: its ctx holds the key, a DoAll would
	// take one out of order, or those who hold it wait for what the call has. In the last case
	// the error is a *DeadlockError.
	ErrDeadlock = errors.New("lock: deadlock")
	// ErrInvalid says that an argument or an option breaks a rule. Nothing was sent, unless
	// only the TTL that the store granted broke it: then the grant is undone.
	ErrInvalid = errors.New("lock: invalid")
	// ErrUnsupported says that the store does not have what the call needs. Nothing was
	// sent.
	ErrUnsupported = errors.New("lock: unsupported")
	// ErrNoDefault says that a package-level function was called before SetDefault.
	ErrNoDefault = errors.New("lock: no default client: call SetDefault first")
)

// Error says which operation failed on which key. Every error that a [Client] or a [Lease]
// returns for a key is one, except that Do, TryDo, DoAll and Lead return their function's error
// as it is.
type Error struct {
	Op  string // do, trydo, doall, lock, trylock, lead, renew, release, inspect, watch, list or force
	Key string // of List the prefix; of DoAll the one that was in the way, or was lost
	Err error
}

// Error is `lock: op "key": why`.
func (e *Error) Error() string {
	return fmt.Sprintf("lock: %s %q: %s", e.Op, e.Key, bare(e.Err))
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Refused reports whether err, as Do, TryDo, DoAll, Lock or TryLock has returned it, says that
// this very call did not get key because somebody else holds it. It tells a refusal from an
// error of Do's function, which may be ErrHeld as well if the function asked for another key:
//
//	err := lock.TryDo(ctx, "report", build)
//	if lock.Refused(err, "report") {
//		return nil // another replica is at it
//	}
//
// An error that was wrapped since, or that is of another key, is no refusal.
func Refused(err error, key string) bool {
	e, ok := err.(*Error) //nolint:errorlint // one that is wrapped is of another call
	return ok && e.Key == key && errors.Is(e.Err, ErrHeld)
}

// HeldError says who holds the key. It is ErrHeld.
type HeldError struct {
	Record     Record // the holders and the line, as far as known
	Err        error  // why the wait ended, such as a context's error; nil if there was none
	SameClient bool   // a lease of the Client that was asked holds the key
}

// Error names up to three holders, with what is known of each.
func (e *HeldError) Error() string {
	var b strings.Builder
	b.WriteString("lock: held")
	for i, h := range e.Record.Holders {
		if i == 3 {
			fmt.Fprintf(&b, " and %d more", max(e.Record.HolderCount, len(e.Record.Holders))-i)
			break
		}
		sep := ", "
		switch {
		case i == 0 && e.SameClient:
			sep = " by this Client: "
		case i == 0:
			sep = " by "
		}
		b.WriteString(sep + h.describe())
	}
	if n := max(e.Record.WaiterCount, len(e.Record.Waiters)); n > 0 {
		fmt.Fprintf(&b, "; %d in line", n)
	}
	if e.Err != nil {
		b.WriteString(": " + bare(e.Err))
	}
	return b.String()
}

// Is reports true for ErrHeld.
func (e *HeldError) Is(target error) bool { return target == ErrHeld }

// Unwrap returns Err.
func (e *HeldError) Unwrap() error { return e.Err }

func (h Holder) describe() string {
	var b strings.Builder
	b.WriteString(h.Owner)
	var facts []string
	if h.Shared {
		facts = append(facts, "shared")
	}
	if h.Token > 0 {
		facts = append(facts, "token "+h.Token.String())
	}
	if h.Held >= 0 {
		facts = append(facts, "for "+h.Held.Round(time.Millisecond).String())
	}
	if h.ExpiresIn >= 0 {
		facts = append(facts, "expires in "+h.ExpiresIn.Round(time.Millisecond).String())
	}
	facts = append(facts, metadataFacts(h.Metadata)...)
	if len(facts) > 0 {
		b.WriteString(" (" + strings.Join(facts, ", ") + ")")
	}
	return b.String()
}

// metadataFacts are name="value", in the order of the names.
func metadataFacts(m map[string]string) (facts []string) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		facts = append(facts, fmt.Sprintf("%s=%q", k, m[k]))
	}
	return facts
}

// LostReason says how a grant was lost.
type LostReason uint8

// The reasons of a loss. The zero LostReason is unknown.
const (
	ReasonExpired     LostReason = iota + 1 // its TTL ran out
	ReasonTaken                             // somebody else has the key
	ReasonForced                            // ForceRelease ended it
	ReasonUnreachable                       // the store did not answer until the local deadline
)

// String names the reason.
func (r LostReason) String() string {
	switch r {
	case ReasonExpired:
		return "expired"
	case ReasonTaken:
		return "taken"
	case ReasonForced:
		return "forced"
	case ReasonUnreachable:
		return "unreachable"
	}
	return "unknown"
}

// LostError says how a grant was lost. It is ErrLost.
type LostError struct {
	Reason LostReason
	Token  Token // of the lost grant; 0 = unknown
	Err    error // the store's last error; nil if it had none
}

// Error names the reason, the token and the store's error, as far as known.
func (e *LostError) Error() string {
	s := "lock: lost"
	if e.Reason != 0 {
		s += ": " + e.Reason.String()
	}
	if e.Token != 0 {
		s += fmt.Sprintf(" (token %d)", e.Token)
	}
	if e.Err != nil {
		s += ": " + bare(e.Err)
	}
	return s
}

// Is reports true for ErrLost.
func (e *LostError) Is(target error) bool { return target == ErrLost }

// Unwrap returns Err.
func (e *LostError) Unwrap() error { return e.Err }

// StaleError says which token was refused, and which is newer. It is ErrStale.
type StaleError struct {
	Key           string
	Token, Newest Token
}

// Error names the key and both tokens.
func (e *StaleError) Error() string {
	return fmt.Sprintf("lock: stale token %d for %q: %d has been seen", e.Token, e.Key, e.Newest)
}

// Is reports true for ErrStale.
func (e *StaleError) Is(target error) bool { return target == ErrStale }

// storeError is an error of the store as the Client returns it: ErrUnavailable, unless it
// says something about the lock, or that ctx has ended.
func storeError(ctx context.Context, err error) error { return callerOf(ctx).storeError(err) }

// storeError is the function of that name, also for a section.
func (c caller) storeError(err error) error {
	if err == nil || c.ended != nil && errors.Is(err, c.ended) {
		return err
	}
	err = ownError(err)
	for _, known := range []error{ErrHeld, ErrLost, ErrUnavailable, ErrClosed, ErrInvalid, ErrUnsupported} {
		if errors.Is(err, known) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// ownError is an error of the store that does not pass for the end of the caller's ctx, which
// goes on: a timeout of the network, or a bound of the Client's.
func ownError(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return &notOfCaller{err}
	}
	return err
}

// notOfCaller hides of err that it is a context's, and nothing else.
type notOfCaller struct{ err error }

func (e *notOfCaller) Error() string      { return e.err.Error() }
func (e *notOfCaller) As(target any) bool { return errors.As(e.err, target) }
func (e *notOfCaller) Is(target error) bool {
	return target != context.Canceled && target != context.DeadlineExceeded && errors.Is(e.err, target)
}

// final reports whether no other try can help.
func final(err error) bool {
	for _, known := range []error{ErrInvalid, ErrUnsupported, ErrDeadlock, ErrClosed} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// bare is err's message without the prefix that the message around it has already.
func bare(err error) string { return strings.TrimPrefix(err.Error(), "lock: ") }
