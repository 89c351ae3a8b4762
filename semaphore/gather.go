package semaphore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/seed-215fdefa/lock"
)

// gathering is one attempt to get permits, slot by slot. It is one goroutine's.
type gathering struct {
	s       *Semaphore
	ctx     context.Context // of what it asks for
	cancel  context.CancelFunc
	results chan *holding
	tries   int              // asked for, without a result yet
	waits   int              // stood in line for, without a result yet
	refused map[int]bool     // slots that another process had when they were tried
	pause   <-chan time.Time // until its end nothing is asked for; nil if there is none
	have    []*holding
}

func (s *Semaphore) gather(ctx context.Context) *gathering {
	g := &gathering{s: s, results: make(chan *holding, s.n), refused: make(map[int]bool)}
	g.ctx, g.cancel = context.WithCancel(ctx)
	return g
}

// refusals is how many slots must be refused for each one that is tried beyond those wanted.
const refusals = 8

// tryMore tries slots, from the lowest on, of which nothing is known. Where many are taken it
// tries ever more at once, so that it need not make a round trip for each. What they bring too
// much is given back, and refused to others meanwhile. s.mu is held.
func (g *gathering) tryMore(want int) {
	for slot := 0; slot < g.s.n && want > 0 && g.tries < want+len(g.refused)/refusals; slot++ {
		if !g.refused[slot] && g.s.askable(slot) {
			g.tries++
			g.s.ask(g.ctx, slot, false, g.results)
		}
	}
}

// waitMore stands in line for all slots that were refused, since nobody knows which will be
// free first. s.mu is held.
func (g *gathering) waitMore() {
	for slot := range g.refused {
		if g.s.askable(slot) {
			g.waits++
			g.s.ask(g.ctx, slot, true, g.results)
		}
	}
}

// askable reports whether this process neither asks for a slot nor has it. s.mu is held.
func (s *Semaphore) askable(slot int) bool {
	h := s.slots[slot]
	return h == nil || h.lost.Load()
}

// answer takes what came of a request. The error is nil for a refusal, unless that shows a
// semaphore of another n.
func (g *gathering) answer(h *holding) error {
	if h.waits {
		g.waits--
	} else {
		g.tries--
	}
	if h.lease != nil {
		g.have = append(g.have, h)
		delete(g.refused, h.slot)
		g.s.answered()
		if !h.waits { // there was a free one
			g.s.mu.Lock()
			g.s.held = false
			g.s.mu.Unlock()
		}
		return nil
	}
	g.s.forget(h)
	if !errors.Is(h.err, lock.ErrUnavailable) {
		g.refused[h.slot] = true
	}
	if !errors.Is(h.err, lock.ErrHeld) {
		return h.err
	}
	if g.ctx.Err() == nil { // else it may say only that the wait for the slot was canceled
		g.s.answered()
	}
	var held *lock.HeldError
	if errors.As(h.err, &held) && len(held.Record.Holders) > 0 {
		return g.s.refusedBy(h.slot, held.Record.Holders[0])
	}
	return nil
}

// refusedBy notes who has a slot, and returns an error if that one's n is another.
func (s *Semaphore) refusedBy(slot int, by lock.Holder) error {
	s.mu.Lock()
	s.foreign[slot] = by
	s.mu.Unlock()
	if n := by.Metadata[metadataName]; n != "" && n != strconv.Itoa(s.n) {
		return fmt.Errorf("%w: n %d: slot %d is held by %s, whose semaphore has n %s: all processes must give a key the same n",
			lock.ErrInvalid, s.n, slot, by.Owner, n)
	}
	return nil
}

// end withdraws what g has asked for, and gives back what it has.
func (g *gathering) end() {
	g.cancel()
	for g.tries+g.waits > 0 {
		_ = g.answer(<-g.results) // nobody wants it any more
	}
	_ = giveBack(g.have)
}

// dropLost gives back what g has lost since it got it.
func (g *gathering) dropLost() {
	g.have = slices.DeleteFunc(g.have, func(h *holding) bool {
		if h.lost.Load() {
			close(h.leave)
			return true
		}
		return false
	})
}

// take returns weight of what g has, by slot.
func (g *gathering) take(weight int) []*holding {
	taken := slices.Clone(g.have[:weight])
	g.have = slices.Delete(g.have, 0, weight)
	slices.SortFunc(taken, func(a, b *holding) int { return a.slot - b.slot })
	return taken
}

// gatherNow gets permits for TryDo.
func (s *Semaphore) gatherNow(ctx context.Context, weight int) ([]*holding, error) {
	g := s.gather(ctx)
	free, err := g.now(weight)
	var holds []*holding
	if free && ctx.Err() == nil {
		holds = g.take(weight)
	}
	g.end()
	switch {
	case holds != nil:
		return holds, nil
	case ctx.Err() != nil:
		return nil, withCause(ctx)
	case err != nil:
		return nil, err
	}
	return nil, s.heldError(nil)
}

// now gathers until it has weight permits, or knows of no other slot that may be free. None
// are taken where callers wait for permits: they would be passed.
func (g *gathering) now(weight int) (enough bool, err error) {
	s := g.s
	for len(g.have) < weight {
		s.mu.Lock()
		if len(s.callers) == 0 || !s.held {
			g.tryMore(weight - len(g.have))
		}
		s.mu.Unlock()
		if g.tries == 0 {
			return false, nil
		}
		if err := g.answer(<-g.results); err != nil {
			return false, err
		}
		g.dropLost()
	}
	return true, nil
}
