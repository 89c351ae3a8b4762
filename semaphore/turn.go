package semaphore

import (
	"context"
	"errors"
	"time"

	"github.com/seed-215fdefa/lock"
)

// turn takes the line, gives at most n permits, or those of one heavy caller more, and gives
// the line back.
//
// It also ends when the line is lost, and gives back what is not enough for a caller: two
// takers that each kept a part would wait for each other for ever.
func (s *Semaphore) turn(ctx context.Context) {
	sent := time.Now()
	line, err := s.client.Lock(ctx, s.lineKey(), s.line...)
	if err != nil {
		if ctx.Err() == nil && s.endures(sent, err) {
			select {
			case <-s.pause():
			case <-ctx.Done():
			}
		}
		return
	}
	s.answered()
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), releaseBound)
		defer cancel()
		_ = line.Release(ctx) // the Client goes on with what the store has not confirmed
	}()
	g := s.gather(ctx)
	defer g.end()
	for quota := s.n; quota > 0; {
		given, more := g.serve(quota)
		if quota -= given; !more || quota <= 0 {
			return
		}
		select {
		case h := <-g.results:
			err := g.answer(h)
			if err == nil || errors.Is(err, lock.ErrLost) || ctx.Err() != nil {
				continue // the end of ctx says that nobody waits, which is no error
			}
			if !s.endures(h.sent, err) {
				return
			}
			if g.pause == nil {
				g.pause = s.pause()
			}
		case <-g.pause:
			g.pause = nil
		case <-s.wake:
		case <-line.Context().Done():
			return
		case <-ctx.Done():
			return
		}
	}
}

// serve gives up to quota permits to the callers at the front, and asks for what the next ones
// want. It returns how many it has given, and whether anybody is left.
//
// No wake-up is lost: each slot that could become free is held by this process, which
// notifies when it gives it back or loses it, or is tried, or was refused and is stood in
// line for.
func (g *gathering) serve(quota int) (given int, more bool) {
	s := g.s
	g.dropLost()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.callers) > 0 && s.callers[0].weight <= len(g.have) && given < quota {
		c := s.callers[0]
		s.callers = s.callers[1:]
		c.holds = g.take(c.weight)
		given += c.weight
		close(c.done)
	}
	want := 0 // what this turn has yet to give
	for _, c := range s.callers {
		if given+want >= quota {
			break
		}
		want += c.weight
	}
	if want = min(want, s.n) - len(g.have); want > 0 && g.pause == nil {
		g.tryMore(want)
		if g.tries == 0 {
			s.held = true
			if s.trouble.err == nil {
				s.known = s.entered
			}
			g.waitMore()
		}
	}
	return given, len(s.callers) > 0
}

// contended learns that another process has the line.
type contended struct{ s *Semaphore }

// Observe implements [lock.Observer].
func (c contended) Observe(_ context.Context, e lock.Event) {
	if e.Kind == lock.EventContended {
		c.s.mu.Lock()
		c.s.held = c.s.taking
		c.s.mu.Unlock()
		c.s.answered()
	}
}
