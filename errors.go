package lock

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Errors to test for with errors.Is. Those of a context are never swallowed.
var (
	// ErrHeld says that somebody else has the key. Often a *HeldError.
	ErrHeld = errors.New("lock: held")
	// ErrLost says that a grant is not there any more. Often a *LostError.
	ErrLost = errors.New("lock: lost")
	// ErrStale says that a newer token has been seen. Always a *StaleError.
	ErrStale = errors.New("lock: stale token")
	// ErrUnavailable says that the store failed, or did not answer, within the bound of
	// the call. It wraps the store's last error. Whether the key is held is not known.
	ErrUnavailable = errors.New("lock: store unavailable")
	// ErrReleased is a lease's Err, and the cause of its context, after Release.
	ErrReleased = errors.New("lock: released")
	// ErrClosed says that the Client or the store is closed.
	ErrClosed = errors.New("lock: closed")
	// ErrDeadlock says that the call's ctx holds the key already, and would wait for
	// itself.
	ErrDeadlock = errors.New("lock: deadlock")
	// ErrInvalid says that an argument or an option breaks a rule; nothing was sent.
	ErrInvalid = errors.New("lock: invalid")
	// ErrUnsupported says that the store does not have what was asked; nothing was sent.
	ErrUnsupported = errors.New("lock: unsupported")
	// ErrNoDefault says that a package-level function was called without SetDefault.
	ErrNoDefault = errors.New("lock: no default client: call SetDefault first")
)

// Error says which operation on which key failed. Every error of a [Client] for a key is
// one, but for what Do's function returns.
type Error struct {
	Op  string // lock, trylock, do, trydo, renew, release or inspect
	Key string
	Err error
}

// Error is `lock: op "key": why`.
func (e *Error) Error() string {
	return fmt.Sprintf("lock: %s %q: %s", e.Op, e.Key, bare(e.Err))
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// HeldError says who has the key. It is ErrHeld.
type HeldError struct {
	Record Record // what was known of holders and line; may be empty
	Err    error  // why waiting ended, such as a context's error; may be nil
}

// Error says who holds the key, since when and with which metadata, as far as known.
func (e *HeldError) Error() string {
	var b strings.Builder
	b.WriteString("lock: held")
	for i, h := range e.Record.Holders {
		if i == 3 {
			fmt.Fprintf(&b, " and %d more", max(e.Record.HolderCount, len(e.Record.Holders))-i)
			break
		}
		sep := " by "
		if i > 0 {
			sep = ", "
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
	names := make([]string, 0, len(h.Metadata))
	for k := range h.Metadata {
		names = append(names, k)
	}
	slices.Sort(names)
	for _, k := range names {
		facts = append(facts, fmt.Sprintf("%s=%q", k, h.Metadata[k]))
	}
	if len(facts) > 0 {
		b.WriteString(" (" + strings.Join(facts, ", ") + ")")
	}
	return b.String()
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

// LostError says that a grant was lost, and how. It is ErrLost.
type LostError struct {
	Reason LostReason
	Token  Token // of the lost grant; 0 = unknown
	Err    error // the last error of the store, if that is why; may be nil
}

// Error names the reason, the token and the store's error as far as known.
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

// StaleError says that a resource has seen a newer token. It is ErrStale.
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

// bare is err's message without the prefix that the message around it has already.
func bare(err error) string { return strings.TrimPrefix(err.Error(), "lock: ") }
