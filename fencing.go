package lock

import (
	"context"
	"fmt"
	"strconv"
	"sync"
)

// Token is a fencing token: a number that rises with every exclusive grant of a key, so
// that a resource can refuse a holder that has been succeeded. 0 is no token.
//
// A Token fits exactly into a float64, and so into JSON numbers and Lua, and into a SQL
// bigint. A store without a consensus counter grants max(previous + 1, server time in µs).
// That survives the loss of the counter if the servers' clocks differ by less than the loss
// takes.
type Token uint64

// MaxToken is the largest Token, 2^53 - 1.
const MaxToken Token = 1<<53 - 1

// String returns the decimal form that ParseToken reads.
func (t Token) String() string { return strconv.FormatUint(uint64(t), 10) }

// MarshalBinary returns String as bytes. It makes a Token an argument that go-redis takes.
func (t Token) MarshalBinary() ([]byte, error) {
	return strconv.AppendUint(nil, uint64(t), 10), nil
}

// UnmarshalBinary reads what MarshalBinary wrote. Unlike ParseToken it takes 0.
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

// ParseToken reads a decimal token from 1 to MaxToken. Any other string is ErrInvalid, also
// one with a sign, a space or a leading zero.
func ParseToken(s string) (Token, error) {
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil || v == 0 || Token(v) > MaxToken || s[0] == '0' {
		return 0, fmt.Errorf("%w: token %.40q: must be a decimal number from 1 to %d", ErrInvalid, s, MaxToken)
	}
	return Token(v), nil
}

// Guard is the resource's side of fencing, for a resource in this process. For each key it
// admits a token that is not older than the newest it has seen, and runs one protected step
// at a time. The zero Guard is ready to use. It keeps an entry for each key that it has
// seen, for as long as it lives, since a stale holder may wake at any time.
//
// A read-modify-write must go through Do when it reads, too. Otherwise a holder that froze
// between its read and its write undoes its successor's write:
//
//	var n int
//	err := g.Do(ctx, key, token, func(context.Context) error { n = read(); return nil })
//	…
//	err = g.Do(ctx, key, token, func(context.Context) error { return write(n + 1) })
//
// A Guard orders writers. It does not order the holders of shared leases among themselves.
// It is safe for concurrent use and must not be copied.
type Guard struct {
	mu    sync.Mutex // guards marks
	marks map[string]*guarded
}

// guarded is the newest token of a key.
type guarded struct {
	step   chan struct{} // has room for the one step that runs, which may use newest
	newest Token
}

// stepContext is the ctx of a protected step, by which a nested one is recognized.
type stepContext struct {
	context.Context
	of *guarded
}

// Value returns the key's state if it is asked for its own step.
func (s *stepContext) Value(key any) any {
	if key == any(s.of) {
		return s.of
	}
	return s.Context.Value(key)
}

// Do runs write if t is not older than the newest token seen for key, and returns write's
// error. t is then the newest; it stays so if write fails or panics. Steps of the same key
// run one at a time; other keys are not delayed.
//
// Without running write, Do returns a *StaleError if t is too old, ErrInvalid if t is out of
// range or write is nil, ctx's error if it ends before write begins, and ErrDeadlock if ctx
// comes from a step of the same key, which Do would wait for.
func (g *Guard) Do(ctx context.Context, key string, t Token, write func(context.Context) error) error {
	switch {
	case ctx == nil:
		return fmt.Errorf("%w: ctx is nil", ErrInvalid)
	case t == 0 || t > MaxToken:
		return fmt.Errorf("%w: token %d: must be from 1 to %d", ErrInvalid, t, MaxToken)
	case write == nil:
		return fmt.Errorf("%w: write is nil: it must be a function", ErrInvalid)
	}
	m := g.mark(key)
	if ctx.Value(m) != nil {
		return fmt.Errorf("%w: ctx comes from a step of %q", ErrDeadlock, key)
	}
	select {
	case m.step <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-m.step }()
	if err := ctx.Err(); err != nil {
		return err
	}
	if t < m.newest {
		return &StaleError{Key: key, Token: t, Newest: m.newest}
	}
	m.newest = t
	return write(&stepContext{ctx, m})
}

func (g *Guard) mark(key string) *guarded {
	g.mu.Lock()
	defer g.mu.Unlock()
	m := g.marks[key]
	if m == nil {
		if g.marks == nil {
			g.marks = make(map[string]*guarded)
		}
		m = &guarded{step: make(chan struct{}, 1)}
		g.marks[key] = m
	}
	return m
}
