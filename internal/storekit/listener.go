package storekit

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
)

const (
	probeEvery = maxHeartbeat / 2       // so that a dead channel is known within a heartbeat
	closeWait  = 100 * time.Millisecond // for a session to end

	probePayload = "probe"
)

// redials are the pauses between two sessions.
var redials = Backoff{Min: 10 * time.Millisecond, Max: maxHeartbeat}

// errUnheard is why a channel counts as dead whose probe was sent, and did not come.
var errUnheard = errors.New("lock: notifications do not arrive, although they are sent and the connection for them is open")

// Listener keeps the one connection on which a Locker hears of releases and forced losses. It
// connects when first needed, and again after each break.
//
// A living connection is no living channel: the server may have been demoted, a proxy may not
// pass notifications on, a right to send them may be missing. So while anybody waits for them
// the Listener sends one to itself, every half heartbeat, the way that wake-ups go. If it does
// not come the connection is made anew, and until one does come the Registry's Recheck is that
// of waiters whom nobody wakes.
type Listener struct {
	Registry *Registry
	Closed   context.Context // ends with the Locker

	// Session is the life of one connection: it subscribes to the Locker's own channel, calls
	// subscribed, and heard with each payload, until ctx ends or the connection breaks. It
	// returns why it ended.
	Session func(ctx context.Context, subscribed func(), heard func(payload string)) error
	// Probe sends payload to the Locker's own channel.
	Probe func(ctx context.Context, payload string) error
	// Tell, if not nil, is called when notifications do not arrive any more, with the reason,
	// and with nil when they do again. Calls do not overlap.
	Tell func(error)

	mu    sync.Mutex    // guards the rest
	tried chan struct{} // closed when the first session has subscribed, or could not
	ended chan struct{} // closed when listen has returned; both are nil until it has begun
}

// Await has the first connection made, and waits until it has subscribed, so that what is sent
// to this Locker from then on is heard, or could not: then it is not, and nobody waits again.
// It returns the error of ctx, lock.ErrClosed, or lock.ErrUnavailable after [lock.Patience].
func (l *Listener) Await(ctx context.Context) error {
	l.mu.Lock()
	if l.tried == nil && l.Closed.Err() == nil {
		l.tried, l.ended = make(chan struct{}), make(chan struct{})
		go l.listen()
	}
	tried := l.tried
	l.mu.Unlock()
	select {
	case <-tried:
		return nil
	default: // ctx.Done costs an allocation
	}
	return WithinPatience(ctx, func(ctx context.Context) error {
		select {
		case <-tried:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-l.Closed.Done():
			return lock.ErrClosed
		}
	})
}

// Wait waits, after the end of Closed, until the connection is closed, but no longer than
// 100 ms: some clients cannot be interrupted while they connect to a server that is silent.
func (l *Listener) Wait() {
	l.mu.Lock()
	ended := l.ended
	l.mu.Unlock()
	if ended == nil {
		return
	}
	t := time.NewTimer(closeWait)
	defer t.Stop()
	select {
	case <-ended:
	case <-t.C:
	}
}

// listen goes from session to session until the Locker ends.
func (l *Listener) listen() {
	defer close(l.ended)
	tried := sync.OnceFunc(func() { close(l.tried) })
	for n := 0; ; n++ {
		begun := time.Now()
		heard, delivered, err := l.session(tried)
		if l.Closed.Err() != nil {
			return
		}
		if delivered || heard && time.Since(begun) > maxHeartbeat {
			n = 0
		}
		if !heard {
			l.tell(err)
		}
		tried()
		if redials.Sleep(l.Closed, n) != nil {
			return
		}
	}
}

// session is the life of one connection, which ends when it breaks or does not deliver. heard is
// false if it has not subscribed, or broke before the first probe came.
func (l *Listener) session(tried func()) (heard, delivered bool, err error) {
	ctx, end := context.WithCancel(l.Closed)
	var prober sync.WaitGroup
	probes := make(chan struct{}, 1)
	subscribed, cut := false, false
	err = l.Session(ctx, func() {
		if subscribed {
			return
		}
		subscribed = true
		tried()
		l.Registry.WakeAll() // something may have been missed
		prober.Go(func() {
			defer end()
			delivered, cut = l.probe(ctx, probes)
		})
	}, func(payload string) {
		if payload != probePayload {
			l.Registry.Heard(payload)
			return
		}
		select {
		case probes <- struct{}{}:
		default:
		}
	})
	end()
	prober.Wait()
	return subscribed && !cut, delivered, err
}

// probe finds out again and again whether notifications arrive. It returns when they are sent
// and do not, or ctx ends; whether any have, and whether ctx cut off the first that was sent.
func (l *Listener) probe(ctx context.Context, probes <-chan struct{}) (delivered, cut bool) {
	for {
		if !l.Registry.idle() || l.Registry.deaf.Load() {
			sent, err := l.hears(ctx, probes)
			delivered = delivered || err == nil
			if ctx.Err() != nil {
				return delivered, !delivered
			}
			l.tell(err)
			if sent && err != nil {
				return delivered, false
			}
		}
		if Sleep(ctx, probeEvery) != nil {
			return delivered, false
		}
	}
}

// hears sends one notification and waits for it. sent is false if it could not be sent: then
// another connection to listen on would not help.
func (l *Listener) hears(ctx context.Context, probes <-chan struct{}) (sent bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeEvery)
	defer cancel()
	select {
	case <-probes: // an older one that was late
	default:
	}
	if err := l.Probe(ctx, probePayload); err != nil {
		return false, err
	}
	select {
	case <-probes:
		return true, nil
	case <-ctx.Done():
		return true, errUnheard
	}
}

// tell notes that notifications arrive, or why not, and tells it if that is new. It is called
// by one goroutine at a time: listen does not go on before probe has returned.
func (l *Listener) tell(err error) {
	if l.Registry.setDeaf(err != nil) && l.Tell != nil {
		l.Tell(err)
	}
}
