// Quickstart: two tills book into one account. One of them freezes while it holds the
// lock, loses it, and wakes up with an old balance in its hand. It needs no server:
//
//	go run ./examples/quickstart
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

const (
	account = "account:42"
	ttl     = time.Second
)

func main() {
	if err := run(context.Background(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run tells the story to out.
func run(ctx context.Context, out io.Writer) error {
	b := &bank{
		story:  &story{out: out, begin: time.Now()},
		client: lock.New(memory.New()),
		// The balance checks tokens: it refuses one that is older than the newest that
		// has read or written it.
		balance: memory.NewValue(account, 100),
	}
	b.say("story", "the account has 100; Ann books 50 and Bob 10, at the same time")

	var wg sync.WaitGroup
	errs := make([]error, 2)
	wg.Go(func() { errs[0] = b.deposit(ctx, "Ann", 50) })
	wg.Go(func() { errs[1] = b.deposit(ctx, "Bob", 10) })
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return b.client.Do(ctx, account, func(_ context.Context, l *lock.Lease) error {
		n, err := b.balance.Load(l.Token())
		b.say("story", "the account has %d: both are booked, once each", n)
		return err
	})
}

// bank is what the two tills share.
type bank struct {
	*story
	client  *lock.Client
	balance *memory.Value[int]
	frozen  atomic.Bool // one till has frozen, and one is enough
}

// deposit books, and tries again if the lock was lost before it has booked. After that a loss
// changes nothing: the balance has taken the booking, whose token was still the newest.
func (b *bank) deposit(ctx context.Context, who string, amount int) error {
	for {
		booked := false
		err := b.client.Do(ctx, account, func(ctx context.Context, l *lock.Lease) error {
			err := b.book(ctx, l, who, amount)
			booked = err == nil
			return err
		},
			lock.WithTTL(ttl),
			lock.WithObserver(till{b.story, who}),
			// A process that is frozen does not renew its locks. These are goroutines
			// of one process, so they do without renewal altogether.
			lock.WithRenewal(false),
		)
		switch {
		case booked:
			return nil
		case !errors.Is(err, lock.ErrStale) && !errors.Is(err, lock.ErrLost):
			return err
		}
		b.say(who, "tries again")
	}
}

// book is the critical section: a read, then a write that depends on it.
func (b *bank) book(ctx context.Context, l *lock.Lease, who string, amount int) error {
	n, err := b.balance.Load(l.Token())
	if err != nil {
		return err
	}
	b.say(who, "reads %d", n)

	if b.frozen.CompareAndSwap(false, true) {
		b.say(who, "freezes, with %d in hand (a long GC pause, a suspended machine)", n)
		time.Sleep(2 * ttl)
		b.say(who, "wakes up, knows nothing of it, and writes %d", n+amount)
	} else if ctx.Err() != nil {
		return context.Cause(ctx) // what everybody else does: look, and stop
	}

	if err := b.balance.Store(l.Token(), n+amount); err != nil {
		b.say(who, "is refused: %v", err)
		b.say("story", "without the token, %d would have wiped out the other booking", n+amount)
		return err
	}
	b.say(who, "writes %d", n+amount)
	return nil
}

// till is a [lock.Observer]: what a program's log would say.
type till struct {
	*story
	who string
}

func (t till) Observe(_ context.Context, e lock.Event) {
	switch e.Kind {
	case lock.EventContended:
		t.say(t.who, "waits: somebody else has the lock")
	case lock.EventGranted:
		t.say(t.who, "has the lock, token %d", e.Token)
	case lock.EventLost:
		t.say(t.who, "has lost the lock, and its context has ended: %v", e.Err)
	case lock.EventReleased:
		t.say(t.who, "releases the lock")
	}
}

// story prints what happens, with the seconds since the beginning.
type story struct {
	mu    sync.Mutex // guards out
	out   io.Writer
	begin time.Time
}

func (s *story) say(who, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(s.out, "%4.2fs  %-5s  %s\n", time.Since(s.begin).Seconds(), who, fmt.Sprintf(format, args...))
}
