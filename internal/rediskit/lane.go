package rediskit

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock/internal/storekit"
)

// A Lane lets concurrent calls to one server share round trips. A call that finds the
// lane idle is sent at once, by itself; those that come while it is under way are sent
// together when it is back. So a lone caller waits for nobody, and the more callers there
// are the fewer round trips, system calls and wake-ups each costs.
//
// A flight that does not come back, since its server or connection hangs, holds up the
// others for no longer than slowFlight: then what has gathered leaves on another
// connection, up to maxFlights of them.
//
// A flight has a goroutine of its own, since go-redis does not stop reading when a ctx
// ends, and the caller must. The two switches of goroutines are most of what a lane costs
// a lone caller. So where a server is known to answer fast, and as long as there are no
// more than maxDirects callers, each makes its call itself, on a copy of the client whose
// timeouts are short: ctx may be overstayed by shortTimeout then. Should that run out, the
// call is sent again in a flight, as all scripts allow, and no call is made so until the
// server has proved itself again.
type Lane struct {
	rdb   goredis.UniversalClient
	short *goredis.Client // rdb, or what it would send to, with shortTimeout; may be nil
	speed atomic.Int64    // how many flights have been fast of late; negative after a timeout

	mu      sync.Mutex // guards the rest; held for no I/O
	queue   []*call
	flights int         // under way
	directs int         // calls that their callers make
	batch   int         // size of the last flight
	relief  *time.Timer // starts another flight when those under way are slow
}

const (
	shortTimeout = 50 * time.Millisecond
	fastFlight   = shortTimeout / 5
	fastFlights  = 8    // so many in a row make a server fast
	penalty      = 1000 // and so many more after a timeout

	maxDirects = 4 // above, sharing round trips pays

	// The server works on one flight while we handle another: a second starts when pair calls wait for
	// the first, and up to crowdFlights when crowd wait for each.
	pair, crowd, crowdFlights = 8, 64, 4

	slowFlight = 5 * time.Millisecond
	maxFlights = 16
	maxBatch   = 512
)

// call is one command and the way its reply comes back. It is the ctx of its command, too: the
// caller's without its end, for the client's hooks.
type call struct {
	context.Context
	cmd  Command
	done chan struct{}              // closed with the reply; nil if
	then func(reply any, err error) // is called with it
}

func (*call) Done() <-chan struct{}            { return nil }
func (*call) Err() error                       { return nil }
func (*call) Deadline() (t time.Time, ok bool) { return }

// Command is a command that go-redis does not send again by itself: the Locker does so
// where that is safe, and then knows that the outcome of the first was unknown.
type Command struct{ *goredis.Cmd }

// NewCommand returns a Command that sends args.
func NewCommand(ctx context.Context, args ...any) Command {
	return Command{goredis.NewCmd(ctx, args...)}
}

// NoRetry is asked by go-redis before it repeats a command.
func (Command) NoRetry() bool { return true }

// NewLane returns a lane to the server of rdb. node is rdb, or what it would send to, for
// calls that their callers make; nil for a lane that only has flights.
func NewLane(rdb goredis.UniversalClient, node *goredis.Client) *Lane {
	l := &Lane{rdb: rdb}
	if node != nil {
		timeout := shortTimeout
		if t := node.Options().ReadTimeout; t > 0 {
			timeout = min(timeout, t)
		}
		l.short = node.WithTimeout(timeout)
	}
	return l
}

// Do sends args and waits for the reply or for ctx, whichever comes first. A call given
// up before it was sent is not sent. again says that it may be sent more than once.
func (l *Lane) Do(ctx context.Context, args []any, again bool) (any, error) {
	if again && l.fast() && l.alone() {
		return l.direct(ctx, args)
	}
	c := &call{Context: ctx, done: make(chan struct{})}
	l.submit(c, args)
	select {
	case <-c.done:
		return c.cmd.Result()
	case <-ctx.Done():
		l.withdraw(c)
		return nil, ctx.Err()
	}
}

// errSlow is the outcome of Quick on a lane to a server that is not known to answer fast, or does
// not.
var errSlow = errors.New("the server does not answer within " + shortTimeout.String())

// Quick is Do for no longer than shortTimeout, so that ctx need not be bounded for it, which costs
// more than all else here. A connection that the pool must make, or wait for, is not in that time: that
// ends with ctx, or when go-redis gives up. sent is false if nothing was sent.
func (l *Lane) Quick(ctx context.Context, args []any) (reply any, sent bool, err error) {
	if !l.fast() {
		return nil, false, errSlow
	}
	if l.alone() {
		reply, err = l.direct(ctx, args)
		return reply, wasSent(err), err
	}
	t := timers.Get().(*time.Timer)
	t.Reset(shortTimeout)
	defer func() {
		t.Stop()
		timers.Put(t)
	}()
	c := &call{Context: ctx, done: make(chan struct{})}
	l.submit(c, args)
	select {
	case <-c.done:
		reply, err = c.cmd.Result()
		return reply, wasSent(err), err
	case <-t.C:
		l.speed.Store(-penalty)
		err = errSlow
	case <-ctx.Done():
		err = ctx.Err()
	}
	return nil, !l.withdraw(c), err
}

// wasSent tells whether a call with that outcome may have been sent.
func wasSent(err error) bool { return err == nil || Classify(err) != storekit.Unsent }

// timers are those of Quick, stopped.
var timers = sync.Pool{New: func() any {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}}

// Hasten has the server known to answer fast, until it does not: for tests.
func (l *Lane) Hasten() { l.speed.Store(fastFlights) }

func (l *Lane) fast() bool { return l.short != nil && l.speed.Load() >= fastFlights }

// Go sends args and returns at once. then is called on a goroutine that carries the replies of
// others too: it must not block.
func (l *Lane) Go(args []any, then func(reply any, err error)) {
	l.submit(&call{Context: context.Background(), then: then}, args)
}

// alone reports, and notes, that the lane has room for a call by its caller.
func (l *Lane) alone() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.flights > 0 || l.directs >= maxDirects || l.batch > maxDirects {
		return false
	}
	l.directs++
	return true
}

// direct makes a call on the caller's own goroutine, which has the lane to itself.
func (l *Lane) direct(ctx context.Context, args []any) (any, error) {
	cmd := NewCommand(ctx, args...)
	err := l.short.Process(ctx, cmd)
	if err != nil && IsTimeout(err) && ctx.Err() == nil {
		l.speed.Store(-penalty)
	}
	l.mu.Lock()
	l.directs--
	l.mu.Unlock()
	return cmd.Val(), err
}

func (l *Lane) submit(c *call, args []any) {
	c.cmd = NewCommand(c, args...)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = append(l.queue, c)
	switch {
	case l.flights == 0, l.flights == 1 && len(l.queue) >= pair,
		l.flights < crowdFlights && len(l.queue) >= crowd*l.flights:
		l.flights++
		go l.fly()
	case len(l.queue) == 1 && l.flights < maxFlights:
		l.armRelief()
	}
}

func (l *Lane) armRelief() {
	if l.relief == nil {
		l.relief = time.AfterFunc(slowFlight, l.relieve)
		return
	}
	l.relief.Reset(slowFlight)
}

// relieve starts one more flight if calls still wait for a slow one.
func (l *Lane) relieve() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 || l.flights >= maxFlights {
		return
	}
	l.flights++
	go l.fly()
}

// withdraw takes c out of the queue, unless it has left.
func (l *Lane) withdraw(c *call) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, q := range l.queue {
		if q == c {
			l.queue = append(l.queue[:i], l.queue[i+1:]...)
			return true
		}
	}
	return false
}

// fly sends what has gathered until nothing has.
func (l *Lane) fly() {
	for batch := l.take(nil); len(batch) > 0; batch = l.take(batch) {
		start := time.Now()
		send(l.rdb, batch)
		took, err := time.Since(start), batch[0].cmd.Err()
		switch {
		case took > fastFlight:
			l.speed.Store(min(l.speed.Load(), 0))
		case err == nil || IsReply(err): // else nobody was fast
			l.speed.Add(1)
		}
		for _, c := range batch {
			if c.done != nil {
				close(c.done)
			} else {
				c.then(c.cmd.Result())
			}
		}
		if len(batch) > 1 {
			// Let the callers run first: most of them come back with their next call,
			// which then shares the next flight instead of trailing behind it.
			runtime.Gosched()
		}
	}
}

// take returns the next batch; when there is none the flight has ended.
func (l *Lane) take(last []*call) []*call {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := min(len(l.queue), maxBatch)
	if n == 0 {
		l.flights--
		return nil
	}
	l.batch = n
	batch := append(last[:0], l.queue[:n]...)
	rest := copy(l.queue, l.queue[n:])
	clear(l.queue[rest:])
	l.queue = l.queue[:rest]
	if rest > 0 && l.flights < maxFlights {
		l.armRelief()
	}
	return batch
}

// send gives every call of the batch its reply or its error.
func send(rdb goredis.UniversalClient, batch []*call) {
	if len(batch) == 1 {
		c := batch[0]
		if err := rdb.Process(c, c.cmd); err != nil {
			c.cmd.SetErr(err)
		}
		return
	}
	ctx := context.Background()
	pipe := rdb.Pipeline()
	for _, c := range batch {
		if err := pipe.Process(ctx, c.cmd); err != nil {
			c.cmd.SetErr(err)
		}
	}
	if _, err := pipe.Exec(ctx); err != nil {
		// Some errors are not told to each command: of an exhausted pool, of a login that the server refuses.
		for _, c := range batch {
			if c.cmd.Err() == nil && c.cmd.Val() == nil {
				c.cmd.SetErr(err)
			}
		}
	}
}

// IsReply tells whether err is an answer of the server, so that the outcome is known.
func IsReply(err error) bool {
	var reply goredis.Error
	return errors.As(err, &reply)
}

// IsTimeout tells whether err is that of a connection on which no answer came in time.
func IsTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// fewStale is how many stale connections a call meets without using up its tries, if the pool has
// no more: a server that comes back may break new ones, too.
const fewStale = 8

// Repeat is [storekit.Repeat], which does not count connections that a restart of the server has
// broken: rdb's pool hands them out one by one, all that it has.
func Repeat(ctx context.Context, rdb goredis.UniversalClient, classify func(error) storekit.Class, send func(ctx context.Context, n int) error) (unsure bool, err error) {
	stale, most := 0, -1
	unsure, err = storekit.Repeat(ctx, classify, func(ctx context.Context, n int) error {
		for {
			err := send(ctx, n+stale)
			if ctx.Err() != nil || !isStale(err) {
				return err
			}
			if most < 0 {
				most = max(fewStale, int(rdb.PoolStats().TotalConns))
			}
			if stale >= most {
				return err
			}
			stale++
		}
	})
	return unsure || stale > 0, err
}

// isStale tells whether err is of a connection that was there and is no more. After a restart
// a pool hands out one like it after another, and those of TLS it does not look at before.
func isStale(err error) bool {
	for _, of := range []error{io.EOF, net.ErrClosed, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, of) {
			return true
		}
	}
	return false
}
