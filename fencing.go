package lock

import (
	"fmt"
	"strconv"
	"sync"
)

// Token is a fencing token: a number that rises with every exclusive grant of a key, so
// that a resource can refuse a holder that has been succeeded. 0 is none.
//
// It fits exactly into a float64, hence into JSON numbers and Lua, and into SQL's
// bigint. Where a store has no consensus counter of its own the token is max(previous +
// 1, server time in µs), which survives the loss of the counter as long as the servers'
// clocks agree within the time that the loss takes.
type Token uint64

// MaxToken is the largest Token, 2^53 - 1.
const MaxToken Token = 1<<53 - 1

// String is the decimal form that ParseToken reads.
func (t Token) String() string { return strconv.FormatUint(uint64(t), 10) }

// MarshalBinary is String in bytes, so that go-redis takes a Token as an argument.
func (t Token) MarshalBinary() ([]byte, error) {
	return strconv.AppendUint(nil, uint64(t), 10), nil
}

// UnmarshalBinary reads what MarshalBinary wrote; 0 is allowed.
func (t *Token) UnmarshalBinary(b []byte) error {
	if string(b) == "0" {
		*t = 0
		return nil
	}
	v, err := ParseToken(string(b))
	if err == nil {
		*t = v
	}
	return err
}

// ParseToken reads a decimal token of 1 to MaxToken, without sign, space or leading
// zero. Any other string is ErrInvalid.
func ParseToken(s string) (Token, error) {
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil || v == 0 || Token(v) > MaxToken || s[0] == '0' {
		return 0, fmt.Errorf("%w: token %.40q: must be a decimal number from 1 to %d", ErrInvalid, s, MaxToken)
	}
	return Token(v), nil
}

// Guard is the resource's side of fencing, for a resource in this process: it admits a
// token that is not older than the newest it has seen for the key, and holds the key
// while the protected step runs. The zero Guard is ready. It keeps one entry for each
// key it has seen, for as long as it lives, since a stale holder may wake at any time.
//
// A read-modify-write must go through Do when it reads as well: else a holder that
// froze between its read and its write loses its successor's update.
//
//	var n int
//	err := g.Do(key, token, func() error { n = read(); return nil })
//	…
//	err = g.Do(key, token, func() error { return write(n + 1) })
//
// Guards order writers. Tokens of shared leases do not order their holders among
// themselves. A Guard is safe for concurrent use and must not be copied.
type Guard struct {
	mu    sync.Mutex // guards marks; never held while a mark.mu is waited for
	marks map[string]*mark
}

type mark struct {
	mu     sync.Mutex // held while a step runs; guards newest
	newest Token
}

// Do runs write if t is not older than the newest token seen for key, which becomes t,
// and returns write's error. No other step of the same key runs meanwhile; other keys
// are not delayed. A stale t is a *StaleError, and write is not called. A token out of
// range or a nil write is ErrInvalid. The mark stays raised when write fails or panics.
func (g *Guard) Do(key string, t Token, write func() error) error {
	if t == 0 || t > MaxToken {
		return fmt.Errorf("%w: token %d: must be from 1 to %d", ErrInvalid, t, MaxToken)
	}
	if write == nil {
		return fmt.Errorf("%w: write is nil: it must be a function", ErrInvalid)
	}
	m := g.mark(key)
	m.mu.Lock()
	defer m.mu.Unlock()
	if t < m.newest {
		return &StaleError{Key: key, Token: t, Newest: m.newest}
	}
	m.newest = t
	return write()
}

func (g *Guard) mark(key string) *mark {
	g.mu.Lock()
	defer g.mu.Unlock()
	m := g.marks[key]
	if m == nil {
		if g.marks == nil {
			g.marks = make(map[string]*mark)
		}
		m = new(mark)
		g.marks[key] = m
	}
	return m
}
