package storekit

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

// storeError is an error of a store's client, of the class that it is.
type storeError Class

func (e *storeError) Error() string { return "the store says no" }

func classOf(err error) Class {
	var e *storeError
	if errors.As(err, &e) {
		return Class(*e)
	}
	return Unknown
}

func failing(c Class) error { e := storeError(c); return &e }

var (
	wanted  = lock.Request{Key: "k", Owner: "o", TTL: 3 * time.Second, Wait: true}
	refused = &Refusal{Record: lock.Record{Key: "k", WaiterCount: 1}}
)

// claims is a store whose next answers are scripted; the last one repeats.
type claims struct {
	answers []func(context.Context) (lock.Grant, *Refusal, error)
	at      []time.Duration // when each was asked
	woken   []bool
	began   time.Time
}

func (c *claims) claim(ctx context.Context, woken bool) (lock.Grant, *Refusal, error) {
	n := min(len(c.at), len(c.answers)-1)
	c.at, c.woken = append(c.at, time.Since(c.began)), append(c.woken, woken)
	return c.answers[n](ctx)
}

func grants(context.Context) (lock.Grant, *Refusal, error) { return lock.Grant{Token: 7}, nil, nil }
func refuses(context.Context) (lock.Grant, *Refusal, error) {
	return lock.Grant{}, refused, nil
}

func hangs(ctx context.Context) (lock.Grant, *Refusal, error) {
	<-ctx.Done()
	return lock.Grant{}, nil, ctx.Err()
}

func fails(c Class) func(context.Context) (lock.Grant, *Refusal, error) {
	return func(context.Context) (lock.Grant, *Refusal, error) { return lock.Grant{}, nil, failing(c) }
}

func newWait(c *claims, r *Registry) *Wait {
	c.began = time.Now()
	return &Wait{
		Request: wanted, Closed: context.Background(), Classify: classOf,
		Claim: c.claim, Recheck: r.Recheck,
	}
}

func answers(list ...func(context.Context) (lock.Grant, *Refusal, error)) *claims {
	return &claims{answers: list}
}

func TestWaitRechecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := answers(refuses, refuses, refuses, grants)
		w := newWait(c, NewRegistry())
		told := 0
		w.Request.Waiting = func(r lock.Record) { told++; require.Equal(t, 1, r.WaiterCount) }
		g, err := w.Run(t.Context())
		require.NoError(t, err)
		require.EqualValues(t, 7, g.Token)
		require.Equal(t, []time.Duration{0, time.Second, 2 * time.Second, 3 * time.Second}, c.at, "a third of the heartbeat")
		require.Equal(t, make([]bool, 4), c.woken)
		require.Equal(t, 1, told)
	})
}

func TestWaitLooksWhenWhatIsInTheWayEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := answers(func(context.Context) (lock.Grant, *Refusal, error) {
			return lock.Grant{}, &Refusal{Recheck: 5 * time.Millisecond}, nil
		}, func(context.Context) (lock.Grant, *Refusal, error) {
			return lock.Grant{}, &Refusal{Recheck: time.Hour}, nil
		}, grants)
		_, err := newWait(c, NewRegistry()).Run(t.Context())
		require.NoError(t, err)
		require.Equal(t, []time.Duration{0, 5 * time.Millisecond, time.Second + 5*time.Millisecond}, c.at)
	})
}

func TestWaitIsWoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry()
		c := answers(refuses, grants)
		w := newWait(c, r)
		w.Mailbox = r.Join("o")
		time.AfterFunc(time.Millisecond, func() { r.Heard("wake other"); r.Heard("wake o") })
		_, err := w.Run(t.Context())
		require.NoError(t, err)
		require.Equal(t, []time.Duration{0, time.Millisecond}, c.at)
		require.Equal(t, []bool{false, true}, c.woken)
	})
}

func TestWaitIsGivenAGrant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry()
		w := newWait(answers(refuses), r)
		w.Mailbox = r.Join("o")
		w.Request.Shared = true
		start := time.Now()
		r.Deliver("other", Handover{})
		r.Deliver("o", Handover{9, start})
		r.Deliver("o", Handover{9, start}) // does not block
		g, err := w.Run(t.Context())
		require.NoError(t, err)
		require.Equal(t, lock.Grant{Key: "k", Owner: "o", Token: 9, TTL: wanted.TTL, Start: start, Shared: true}, g)
	})
}

// A grant that comes while a claim is under way does not wait for its answer, be it the first claim or a
// later one, and whatever that says. A claim that is answered soon is not cut off.
func TestWaitIsGivenAGrantDuringAClaim(t *testing.T) {
	const soon = lookGrace / 2
	answered := func(ctx context.Context) (lock.Grant, *Refusal, error) {
		if time.Sleep(soon); ctx.Err() != nil {
			return lock.Grant{}, nil, failing(Final)
		}
		return lock.Grant{}, refused, nil
	}
	troubled := func(ctx context.Context) (lock.Grant, *Refusal, error) {
		<-ctx.Done()
		return lock.Grant{}, nil, failing(Unknown)
	}
	for name, c := range map[string]struct {
		store *claims
		ttl   time.Duration
		takes time.Duration // from when the second claim begins
	}{
		"the first":     {answers(hangs), wanted.TTL, time.Millisecond + lookGrace},
		"a later one":   {answers(refuses, hangs), wanted.TTL, time.Millisecond + lookGrace},
		"another error": {answers(refuses, troubled), wanted.TTL, time.Millisecond + lookGrace},
		"a short TTL":   {answers(refuses, hangs), 30 * time.Millisecond, 4 * time.Millisecond},
		"answered soon": {answers(refuses, answered), wanted.TTL, soon},
		"no claim":      {answers(refuses), wanted.TTL, time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := NewRegistry()
				w := newWait(c.store, r)
				w.Mailbox, w.Request.TTL = r.Join("o"), c.ttl
				second := r.Recheck(c.ttl)
				time.AfterFunc(second+time.Millisecond, func() { r.Deliver("o", Handover{9, c.store.began}) })
				g, err := w.Run(t.Context())
				require.NoError(t, err)
				require.EqualValues(t, 9, g.Token)
				require.Equal(t, c.store.began, g.Start)
				require.Equal(t, second+c.takes, time.Since(c.store.began))
			})
		})
	}
}

// A wait that has ended takes no grant: what undoes it finds that.
func TestWaitThatEndedIsGivenNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry()
		w := newWait(answers(refuses, hangs), r)
		w.Mailbox = r.Join("o")
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		context.AfterFunc(ctx, func() { r.Deliver("o", Handover{Token: 9}) })
		_, err := w.Run(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

// The first claim's error is told at once, also one that may pass.
func TestWaitDoesNotBeginInTrouble(t *testing.T) {
	for _, class := range []Class{Final, Busy, Unsent, Unknown} {
		synctest.Test(t, func(t *testing.T) {
			c := answers(fails(class))
			_, err := newWait(c, NewRegistry()).Run(t.Context())
			require.Equal(t, failing(class), err)
			require.Equal(t, []time.Duration{0}, c.at)
		})
	}
}

func TestWaitGivesUpAStoreThatNeverAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := answers(hangs)
		_, err := newWait(c, NewRegistry()).Run(t.Context())
		require.ErrorIs(t, err, lock.ErrUnavailable)
		require.NotErrorIs(t, err, context.DeadlineExceeded, "the caller's has not ended")
		require.NotErrorIs(t, err, lock.ErrHeld)
		require.Equal(t, lock.Patience, time.Since(c.began))

		c = answers(hangs)
		w := newWait(c, NewRegistry())
		w.Begun = time.Now().Add(-lock.Patience / 3)
		_, err = w.Run(t.Context())
		require.ErrorIs(t, err, lock.ErrUnavailable)
		require.Equal(t, lock.Patience-lock.Patience/3, time.Since(c.began), "some of it had passed before")
	})
}

func TestWaitOutlivesTrouble(t *testing.T) {
	for _, class := range []Class{Busy, Unsent, Unknown} {
		synctest.Test(t, func(t *testing.T) {
			var c *claims
			trouble := func(ctx context.Context) (lock.Grant, *Refusal, error) {
				if since := time.Since(c.began); since > 20*time.Second && since < 21*time.Second {
					return refuses(ctx) // an answer: patience begins anew
				}
				return fails(class)(ctx)
			}
			c = answers(refuses, trouble)
			_, err := newWait(c, NewRegistry()).Run(t.Context())
			require.ErrorIs(t, err, lock.ErrUnavailable)
			var of *storeError
			require.ErrorAs(t, err, &of, "it wraps the store's own")
			require.NotErrorIs(t, err, lock.ErrHeld)
			spent := time.Since(c.began)
			require.Greater(t, spent, 20*time.Second+lock.Patience)
			require.Less(t, spent, 23*time.Second+lock.Patience)
		})
	}
}

func TestWaitGivesUpHangingClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := answers(refuses, fails(Unknown), hangs)
		_, err := newWait(c, NewRegistry()).Run(t.Context())
		require.ErrorIs(t, err, lock.ErrUnavailable)
		var of *storeError
		require.ErrorAs(t, err, &of, "the store's last error, not that of our own bound")
		require.NotErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, time.Second+lock.Patience, time.Since(c.began))
	})
}

func TestWaitEndsOnWhatCannotPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := answers(refuses, fails(Final))
		_, err := newWait(c, NewRegistry()).Run(t.Context())
		require.Equal(t, failing(Final), err)
		require.Equal(t, time.Second, time.Since(c.began))
	})
}

func TestWaitEndsWithItsContext(t *testing.T) {
	for name, c := range map[string]*claims{
		"between claims": answers(refuses, fails(Unsent)), "in a claim": answers(refuses, fails(Unsent), hangs),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				_, err := newWait(c, NewRegistry()).Run(ctx)
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.ErrorIs(t, err, lock.ErrHeld)
				var held *lock.HeldError
				require.ErrorAs(t, err, &held)
				require.Equal(t, refused.Record, held.Record)
				var of *storeError
				require.ErrorAs(t, err, &of, "what the store was in trouble with")
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err := newWait(answers(hangs), NewRegistry()).Run(ctx)
		require.Equal(t, context.Canceled, err, "nothing else is known")
	})
}

func TestWaitEndsWithItsLocker(t *testing.T) {
	for _, c := range []*claims{answers(refuses), answers(hangs), answers(refuses, hangs)} {
		synctest.Test(t, func(t *testing.T) {
			closed, shut := context.WithCancel(t.Context())
			w := newWait(c, NewRegistry())
			w.Closed = closed
			time.AfterFunc(1500*time.Millisecond, shut)
			_, err := w.Run(t.Context())
			require.Equal(t, lock.ErrClosed, err)
		})
	}
}

// What it is told beside the end of its own bound is the store's last error.
func TestWaitGivesUpWithTheNews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := answers(refuses, fails(Busy), func(ctx context.Context) (lock.Grant, *Refusal, error) {
			<-ctx.Done()
			return lock.Grant{}, nil, fmt.Errorf("%w: %w", ctx.Err(), errRefused)
		})
		_, err := newWait(c, NewRegistry()).Run(t.Context())
		require.ErrorIs(t, err, lock.ErrUnavailable)
		require.ErrorIs(t, err, errRefused)
		require.NotErrorIs(t, err, context.DeadlineExceeded)
	})
}

// Who is not asked for since others of this process are has patience: from when it is asked for.
func TestWaitInAQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		queued := func(ctx context.Context) (lock.Grant, *Refusal, error) {
			<-ctx.Done()
			return lock.Grant{}, nil, fmt.Errorf("%w: %w", ErrQueued, ctx.Err())
		}
		c := answers(queued, queued, refuses, queued, grants)
		g, err := newWait(c, NewRegistry()).Run(t.Context())
		require.NoError(t, err)
		require.EqualValues(t, 7, g.Token)
		require.Greater(t, time.Since(c.began), 3*lock.Patience)

		c = answers(queued, hangs)
		_, err = newWait(c, NewRegistry()).Run(t.Context())
		require.ErrorIs(t, err, lock.ErrUnavailable)
		require.Less(t, time.Since(c.began), 2*lock.Patience+time.Second)

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = newWait(answers(queued), NewRegistry()).Run(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}
