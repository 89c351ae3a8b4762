// Package semaphore lets at most n callers, in any number of processes, do a thing at once: use
// an API that allows four calls, or a license for eight seats.
//
//	sem := semaphore.New(client, "api", 4)
//	err := sem.Do(ctx, 1, func(ctx context.Context, _ []semaphore.Permit) error {
//		return api.Call(ctx)
//	})
//
// # How it works
//
// A semaphore is made of plain locks, so it works on every store: one lock for each of its n
// slots, and one for the line. A permit is a lock on a slot. A process that waits for permits
// first takes the line, then slots, so only one process takes at a time. Light callers do not
// starve a heavy one, since nobody behind it in line can take what it waits for. The slots alone
// ensure that at most n permits are out. The line only sets the order, so losing it costs no
// more than a place.
//
// The callers of one Semaphore share a place in line, and are served in the order in which they
// came. A turn ends when it has given n permits, to let other processes have theirs. The line
// between processes is as fair as the store: in the order of arrival where it declares FIFO.
//
// Each permit expires alone, a TTL after its process has died. The process whose turn it is
// waits for all slots of other processes at once, and takes whichever is free first. It undoes
// the waits that it does not need any more.
//
// # Keys
//
// The locks of semaphore K are named K#semaphore/line and K#semaphore/slot/0 to
// K#semaphore/slot/n-1. Do not use such names for other locks. Since they begin with K, package
// tiers sends them to K's store. On a Redis Cluster they need no common hash slot.
//
// All processes must give a key the same n. Every permit has it in its metadata, under the name
// "semaphore". A process that meets a permit of another n returns ErrInvalid, and takes nothing.
// Processes try slots from the lowest on, so those with different n meet soon; until then, the
// larger n counts. To change n, change the key, or stop the old processes first.
//
// # Tokens
//
// The token of a permit belongs to its slot: it is above those of the slot's earlier permits,
// and says nothing about other slots. Together with [Permit].Slot it can fence what each slot
// has for itself, such as one of n connections or directories. It cannot fence what all permits
// share: a semaphore limits how many work, not in which order.
package semaphore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
)

// Limits of a semaphore, the same on every store.
const (
	MaxPermits = 1024                // n
	MaxKeyLen  = lock.MaxKeyLen - 20 // bytes of a key, which the names of slots begin with
)

// metadataName is the metadata that says what n a permit belongs to.
const metadataName = "semaphore"

// releaseBound is how long the release of the line is waited for. The Client goes on with it.
const releaseBound = 5 * time.Second

// Permit is one of the n permits, while a caller holds it.
type Permit struct {
	Slot  int // from 0 to n-1: no other permit has it meanwhile
	Lease *lock.Lease
}

// Semaphore gives permits. Make one with [New] for each key and process, and keep it. It is safe
// for concurrent use. It needs no closing: while nobody waits and no permit is held, it has no
// goroutine. Closing the Client ends waits with ErrClosed, and lets functions that have permits
// keep them until they return.
//
// Every error is a [lock.Error] with the semaphore's key, except that Do and TryDo return their
// function's error as it is. It wraps what the errors of a [lock.Client] wrap.
type Semaphore struct {
	client *lock.Client
	key    string
	n      int
	err    error // what is wrong with New's arguments
	wait   time.Duration
	try    []lock.Option // of a lock that is not waited for
	stand  []lock.Option // of one that is
	line   []lock.Option // of that of the line

	mu      sync.Mutex         // guards the rest
	callers []*caller          // who wait, in the order in which they came
	taking  bool               // a goroutine takes permits for them
	stop    context.CancelFunc // ends their turn
	held    bool               // no permit was free when one was last asked for
	entered int                // how many callers have come, ever
	known   int                // as many of them came before the store last answered
	trouble trouble
	slots   []*holding          // what this Semaphore asks for, has, or is giving back; else nil
	foreign map[int]lock.Holder // who refused a slot last
	wake    chan struct{}       // tells the taker that any of it has changed
}

// New returns a semaphore of n permits. opts are for its locks, and override client's own.
// [lock.WithWait] bounds how long Do waits. [lock.WithHeadStart] is for this process's place in
// line. WithShared is ErrInvalid here; WithReentrant and WithMinHold are ignored. Err and every
// call report an argument that is not valid.
//
// An Observer sees the locks of slots and line, under their own keys. A slot that is tried and
// not free is an EventFailed. The Observer's ctx is a background one, except in TryDo.
func New(client *lock.Client, key string, n int, opts ...lock.Option) *Semaphore {
	s := &Semaphore{client: client, key: key, n: n, stop: func() {}, wake: make(chan struct{}, 1)}
	if s.err = s.setUp(opts); s.err == nil {
		s.slots, s.foreign = make([]*holding, n), make(map[int]lock.Holder)
	}
	return s
}

func (s *Semaphore) setUp(opts []lock.Option) error {
	if err := lock.CheckKey(s.key); err != nil {
		return err
	}
	if len(s.key) > MaxKeyLen {
		return fmt.Errorf("%w: key %.32q… has %d bytes: a semaphore's has 1 to %d", lock.ErrInvalid, s.key, len(s.key), MaxKeyLen)
	}
	if s.n < 1 || s.n > MaxPermits {
		return fmt.Errorf("%w: n %d: a semaphore has 1 to %d permits", lock.ErrInvalid, s.n, MaxPermits)
	}
	set, err := s.client.Settings(opts...)
	if err != nil {
		return err
	}
	if set.Shared {
		return fmt.Errorf("%w: WithShared given to semaphore.New: a slot has one holder", lock.ErrInvalid)
	}
	m := map[string]string{}
	maps.Copy(m, set.Metadata)
	m[metadataName] = strconv.Itoa(s.n)
	opts = append(slices.Clip(opts), lock.WithMetadata(m), lock.WithReentrant(false), lock.WithMinHold(0))
	s.wait = set.Wait
	s.try = append(slices.Clip(opts), lock.WithWait(0), lock.WithHeadStart(0))
	s.stand = append(slices.Clip(opts), lock.WithWait(lock.MaxTTL+1)) // no bound: callers have theirs
	s.line = append(slices.Clip(s.stand), lock.WithObserver(contended{s}))
	_, err = s.client.Settings(opts...)
	return err
}

// Err returns what is wrong with New's arguments, or nil.
func (s *Semaphore) Err() error { return s.err }

func (s *Semaphore) lineKey() string         { return s.key + "#semaphore/line" }
func (s *Semaphore) slotKey(slot int) string { return s.key + "#semaphore/slot/" + strconv.Itoa(slot) }

// Do waits for weight permits as long as [lock.WithWait] and ctx allow, runs fn while it holds
// them, and gives them back: also if fn panics or calls runtime.Goexit, and also if ctx has
// ended. A weight that is not from 1 to n is ErrInvalid.
//
// fn's ctx ends when ctx ends or the first of its permits is lost. Do always waits for fn, and
// returns fn's error as it is. If a permit was lost before fn returned, the error is a
// [lock.Error] that wraps the LostError and fn's error. If the wait ends without permits, the
// error is ErrHeld if they were seen taken, else ErrUnavailable or ctx's alone.
//
// A wait outlives the store's trouble, as that of [lock.Client.Do] does: only [lock.Patience]
// without an answer ends it, with ErrUnavailable. Who comes while the store fails is told so.
//
// If ctx comes from the fn of a Do on the same key and Client that still holds permits, Do would
// wait for itself: it returns ErrDeadlock at once.
func (s *Semaphore) Do(ctx context.Context, weight int, fn func(context.Context, []Permit) error) error {
	return s.do(ctx, "do", weight, fn)
}

// TryDo is Do without waiting: it returns ErrHeld if fewer than weight permits are free, or if
// callers of this Semaphore wait for permits. It does not stand in line. A call that wants more
// than one permit, or finds at least eight slots taken, may take some in vain: tries at the same
// time may all be refused.
func (s *Semaphore) TryDo(ctx context.Context, weight int, fn func(context.Context, []Permit) error) error {
	return s.do(ctx, "trydo", weight, fn)
}

func (s *Semaphore) do(ctx context.Context, op string, weight int, fn func(context.Context, []Permit) error) error {
	if err := s.check(ctx, weight, fn == nil); err != nil {
		return s.fail(op, err)
	}
	get := s.await
	if op == "trydo" || s.wait == 0 {
		get = s.gatherNow
	}
	holds, err := get(ctx, weight)
	if err != nil {
		return s.fail(op, err)
	}
	return s.run(ctx, op, holds, fn)
}

// check returns what is wrong with the arguments of Do or TryDo.
func (s *Semaphore) check(ctx context.Context, weight int, noFn bool) error {
	switch {
	case s.err != nil:
		return s.err
	case ctx == nil:
		return fmt.Errorf("%w: ctx is nil", lock.ErrInvalid)
	case noFn:
		return fmt.Errorf("%w: fn is nil", lock.ErrInvalid)
	case weight < 1 || weight > s.n:
		return fmt.Errorf("%w: weight %d: must be from 1 to the %d permits of the semaphore", lock.ErrInvalid, weight, s.n)
	case ctx.Err() != nil:
		return withCause(ctx)
	}
	if outer, ok := ctx.Value(s.inside()).([]*holding); ok && slices.ContainsFunc(outer, (*holding).live) {
		return fmt.Errorf("%w: ctx holds permits already", lock.ErrDeadlock)
	}
	return nil
}

// insideKey is where a function's ctx has the permits that it runs under.
type insideKey struct {
	client *lock.Client
	key    string
}

func (s *Semaphore) inside() insideKey { return insideKey{s.client, s.key} }

// run runs fn and gives back, also if fn panics or ends its goroutine.
func (s *Semaphore) run(ctx context.Context, op string, holds []*holding, fn func(context.Context, []Permit) error) (err error) {
	defer func() { err = s.join(op, err, giveBack(holds)) }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	permits := make([]Permit, len(holds))
	for i, h := range holds {
		permits[i] = Permit{h.slot, h.lease}
		own := h.lease.Context()
		defer context.AfterFunc(own, func() { cancel(context.Cause(own)) })()
	}
	return fn(context.WithValue(ctx, s.inside(), holds), permits)
}

func (s *Semaphore) fail(op string, err error) error {
	return &lock.Error{Op: op, Key: s.key, Err: err}
}
