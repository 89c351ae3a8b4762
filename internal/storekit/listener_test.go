package storekit

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

var errRefused = errors.New("refused")

// channel is a server's, to which a Listener can subscribe.
type channel struct {
	mu       sync.Mutex // guards the rest
	refuse   bool       // no connection is accepted
	forbid   bool       // nothing may be sent
	demoted  bool       // the connection that is open hears nothing any more
	swallow  bool       // nor does any other
	snap     bool       // a connection breaks of what it should deliver
	sessions int
	probes   int
	open     chan string // of the connection that is heard
	cut      context.CancelFunc
	told     []error
}

func (c *channel) session(ctx context.Context, subscribed func(), heard func(string)) error {
	c.mu.Lock()
	c.sessions++
	if c.refuse {
		c.mu.Unlock()
		return errRefused
	}
	ctx, c.cut = context.WithCancel(ctx)
	own := make(chan string, 8)
	c.open, c.demoted = own, c.swallow
	c.mu.Unlock()
	subscribed()
	for {
		select {
		case p := <-own:
			heard(p)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *channel) send(_ context.Context, payload string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if payload == probePayload {
		c.probes++
	}
	switch {
	case c.forbid:
		return errRefused
	case c.snap:
		c.cut()
	case !c.demoted && c.open != nil:
		c.open <- payload
	}
	return nil
}

func (c *channel) set(f func(*channel)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(c)
}

// with listens to c until the test ends, with one waiter that has done so.
func (c *channel) with(t *testing.T) (*Registry, *Mailbox) {
	ctx, cancel := context.WithCancel(context.Background())
	r := NewRegistry()
	box := r.Join("o")
	l := &Listener{
		Registry: r, Closed: ctx, Session: c.session, Probe: c.send,
		Tell: func(err error) { c.set(func(c *channel) { c.told = append(c.told, err) }) },
	}
	t.Cleanup(func() { cancel(); l.Wait(); synctest.Wait() })
	require.NoError(t, l.Await(t.Context()))
	synctest.Wait()
	return r, box
}

func woken(m *Mailbox) bool {
	select {
	case <-m.wakeups:
		return true
	default:
		return false
	}
}

func TestListenerHears(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := new(channel)
		r, box := c.with(t)
		require.True(t, woken(box), "it may have missed something before")
		require.NoError(t, c.send(t.Context(), "wake o"))
		synctest.Wait()
		require.True(t, woken(box))

		var lost lock.LostReason
		r.Hold("h", func(reason lock.LostReason) { lost = reason })
		require.NoError(t, c.send(t.Context(), "forced h"))
		synctest.Wait()
		require.Equal(t, lock.ReasonForced, lost)

		rest(time.Minute)
		require.Equal(t, 1, c.sessions)
		require.Empty(t, c.told)
		require.Equal(t, time.Second, r.Recheck(3*time.Second))

		r.Leave("o", box)
		for _, owner := range []string{"a", "b"} { // whose grants are left to expire
			r.Hold(owner, func(lock.LostReason) {})
			r.Keep(lock.Grant{Owner: owner, Start: time.Now(), TTL: time.Second})
		}
		rest(probeEvery)
		before := c.probes
		rest(time.Minute)
		require.Equal(t, before, c.probes, "nobody waits for anything")
	})
}

// A connection that lives, to a server that does not speak for the lock any more.
func TestListenerLeavesADeadChannel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := new(channel)
		r, box := c.with(t)
		woken(box)
		c.set(func(c *channel) { c.demoted = true })
		rest(maxHeartbeat + 20*time.Millisecond)
		require.Equal(t, 2, c.sessions, "within a heartbeat")
		require.Equal(t, []error{errUnheard, nil}, c.told)
		require.True(t, woken(box))
		require.Equal(t, time.Second, r.Recheck(3*time.Second))
	})
}

// No right to send, or a proxy that passes nothing on: it is known, it is not hammered, and
// the way back is found.
func TestListenerWithoutAChannel(t *testing.T) {
	for name, trouble := range map[string]func(*channel, bool){
		"forbidden": func(c *channel, on bool) { c.forbid = on },
		"refused": func(c *channel, on bool) {
			if c.refuse = on; on {
				c.cut()
			}
		},
		"swallowed": func(c *channel, on bool) { c.swallow, c.demoted = on, on },
		"snapping":  func(c *channel, on bool) { c.snap = on },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := new(channel)
				r, box := c.with(t)
				c.set(func(c *channel) { trouble(c, true) })
				rest(maxHeartbeat + time.Second)
				require.Len(t, c.told, 1)
				require.Error(t, c.told[0])
				require.Equal(t, 300*time.Millisecond, r.Recheck(3*time.Second), "a tenth")
				require.True(t, woken(box))

				rest(time.Hour)
				require.Len(t, c.told, 1, "told once")
				most := map[string]int{"forbidden": 1, "refused": 1600, "swallowed": 900, "snapping": 1600}
				require.LessOrEqual(t, c.sessions, most[name], "it is not hammered")

				c.set(func(c *channel) { trouble(c, false) })
				rest(3 * maxHeartbeat)
				require.Len(t, c.told, 2)
				require.NoError(t, c.told[1])
				require.Equal(t, time.Second, r.Recheck(3*time.Second))
			})
		})
	}
}

// A connection that an idle timeout cuts, hours after it was made, is made anew at once.
func TestListenerIsCutNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := new(channel)
		r, box := c.with(t)
		r.Leave("o", box)
		for n := range 20 {
			rest(time.Hour)
			require.Equal(t, n+1, c.sessions)
			c.set(func(c *channel) { c.cut() })
			rest(redials.Min)
			require.Equal(t, n+2, c.sessions)
		}
		require.Empty(t, c.told)
	})
}

func TestListenerEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		block := make(chan struct{})
		l := &Listener{Registry: NewRegistry(), Closed: ctx, Session: func(context.Context, func(), func(string)) error {
			<-block // as a client that cannot be interrupted
			return errRefused
		}}
		l.Wait() // nothing has begun
		short, end := context.WithTimeout(t.Context(), time.Second)
		defer end()
		require.Equal(t, context.DeadlineExceeded, l.Await(short))
		time.AfterFunc(time.Second, cancel)
		require.Equal(t, lock.ErrClosed, l.Await(t.Context()))
		began := time.Now()
		l.Wait()
		require.Equal(t, closeWait, time.Since(began))
		close(block)
		l.Wait()

		l = &Listener{Registry: NewRegistry(), Closed: ctx}
		require.Equal(t, lock.ErrClosed, l.Await(t.Context()), "it does not begin any more")
	})
}

// rest sleeps, and then waits for what has begun meanwhile.
func rest(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// TestListenerPatience: a connection that neither subscribes nor fails holds up nobody for ever.
func TestListenerPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		closed, cancel := context.WithCancel(t.Context())
		l := &Listener{Registry: NewRegistry(), Closed: closed, Session: func(ctx context.Context, _ func(), _ func(string)) error {
			<-ctx.Done()
			return ctx.Err()
		}}
		begun := time.Now()
		err := l.Await(t.Context())
		require.ErrorIs(t, err, lock.ErrUnavailable)
		require.NotErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, lock.Patience, time.Since(begun))
		cancel()
		l.Wait()
		require.ErrorIs(t, l.Await(t.Context()), lock.ErrClosed)
	})
}
