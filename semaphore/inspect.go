package semaphore

import (
	"context"
	"sync"

	"github.com/seed-215fdefa/lock"
)

// Record is what the store knows of a semaphore, slot by slot.
type Record struct {
	Key         string
	Permits     []Holder      // those that are taken, in the order of slots
	Waiters     []lock.Waiter // the processes that wait, the one whose turn it is first
	WaiterCount int           // of all such processes; Waiters are at most MaxRecord+1
}

// Holder is one permit that is taken: by a caller, or by a process that waits for more.
type Holder struct {
	Slot int
	lock.Holder
}

// inspecting is how many requests an Inspect has under way.
const inspecting = 16

// Inspect returns who has permits and who waits. It reads each slot and the line on its own, so
// the Record may mix several moments. It is for people, not for decisions.
func (s *Semaphore) Inspect(ctx context.Context) (Record, error) {
	if s.err != nil {
		return Record{}, s.fail("inspect", s.err)
	}
	slots := make([]lock.Record, s.n)
	errs := make([]error, s.n)
	next := make(chan int)
	var all sync.WaitGroup
	for range min(s.n, inspecting) {
		all.Go(func() {
			for slot := range next {
				slots[slot], errs[slot] = s.client.Inspect(ctx, s.slotKey(slot))
			}
		})
	}
	for slot := range s.n {
		next <- slot
	}
	close(next)
	line, err := s.client.Inspect(ctx, s.lineKey())
	all.Wait()
	for _, e := range append(errs, err) {
		if e != nil {
			return Record{}, s.fail("inspect", e)
		}
	}
	return s.record(line, slots), nil
}

func (s *Semaphore) record(line lock.Record, slots []lock.Record) Record {
	r := Record{Key: s.key, WaiterCount: line.HolderCount + line.WaiterCount}
	for slot, of := range slots {
		for _, h := range of.Holders {
			r.Permits = append(r.Permits, Holder{slot, h})
		}
	}
	for _, h := range line.Holders {
		r.Waiters = append(r.Waiters, lock.Waiter{Owner: h.Owner, Waited: h.Held, Metadata: h.Metadata})
	}
	r.Waiters = append(r.Waiters, line.Waiters...)
	return r
}
