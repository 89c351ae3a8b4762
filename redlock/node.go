package redlock

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/rediskit"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// node is one of the servers, as this Locker sees it.
type node struct {
	name    string
	rdb     *goredis.Client
	lane    *rediskit.Lane
	key     string // of the node key: see lua/join.lua
	abstain int64  // ms
	scripts *scripts
	closed  *atomic.Bool // of the Locker
	known   func() error // called after each join
	clock   clock

	met      atomic.Bool           // it has joined, ever
	trouble  atomic.Pointer[error] // why it did not answer last; nil if it did
	silent   atomic.Bool           // it did not when it was last waited for
	inFlight atomic.Int32
	owed     atomic.Int32 // releases that it must still get

	mu      sync.Mutex // guards the rest
	joining []func(error)
	run     string // the run id of its server, once known
}

const (
	maxTries  = 3   // of a call, after errors of the connection
	maxJoins  = 3   // of a call, each after a restart or a loss of data
	maxSilent = 64  // calls under way to a silent node; more fail at once
	maxOwed   = 512 // releases that a node out of reach will still get; for the rest the TTL does it

	minPause = 4 * time.Millisecond
	maxPause = time.Second
)

var (
	errSilent    = errors.New("no answer of late")
	errNoAnswer  = errors.New("no answer in time")
	errNotYet    = errors.New("it had not answered when the others had decided")
	errAbstains  = errors.New("abstains")
	errForeign   = errors.New("the node key holds something else: choose another key prefix")
	errRestarted = errors.New("it loses its scripts or its data again and again")
)

// question is one script to be run on some nodes.
type question struct {
	args    []any  // the whole command: the same for all nodes
	key     string // a name that the errors of the lock give
	patient bool   // errors of the connection do not end it before releaseTimeout
}

// call is a question under way to one node.
type call struct {
	question
	done  func(answer)
	begin time.Time
	tries int
	stale int // tries that met a stale connection
	sent  int // tries that may have been executed
	joins int
}

// answer is what became of a call.
type answer struct {
	reply any
	err   error
	again bool // it was sent more than once: an earlier one may have been executed
}

// late tells whether it may yet be executed, so far as is known. What was answered was not.
func (a answer) late() bool {
	return a.again || a.err != nil && !rediskit.IsReply(a.err)
}

// ask sends q to the node and returns at once. done is called once, on another goroutine that
// has other work too.
func (n *node) ask(q question, done func(answer)) {
	if n.silent.Load() && n.inFlight.Load() >= maxSilent {
		go done(answer{err: n.why(errSilent)})
		return
	}
	n.inFlight.Add(1)
	n.dispatch(&call{question: q, done: done, begin: time.Now()})
}

// joinFor sends c when the node has joined, which it does before its first answer, so that
// it is known which server it is.
func (n *node) joinFor(c *call) {
	n.join(func(err error) {
		if err != nil {
			c.tries++
			n.conclude(c, nil, err)
			return
		}
		n.send(c)
	})
}

func (n *node) send(c *call) {
	c.tries++
	c.sent++
	n.lane.Go(context.Background(), c.args, func(cmd *goredis.Cmd) {
		reply, err := cmd.Result()
		if rediskit.IsStale(err) {
			c.stale++
		}
		if err != nil && rediskit.Classify(err) == storekit.Unsent {
			c.sent--
		}
		n.answered(c, reply, err)
	})
}

// answered sees to it that a node which lacks the scripts learns them.
func (n *node) answered(c *call, reply any, err error) {
	if reply != "lost" && !goredis.HasErrorPrefix(err, "NOSCRIPT") {
		n.conclude(c, reply, err)
		return
	}
	c.sent--
	if c.joins++; c.joins > maxJoins {
		n.end(c, nil, errRestarted)
		return
	}
	n.joinFor(c)
}

// why is err, with what is known of the connection: a timeout may be short of what go-redis
// takes to give up.
func (n *node) why(err error) error {
	if trouble := n.trouble.Load(); trouble != nil {
		return fmt.Errorf("%w: %w", err, *trouble)
	}
	return err
}

// conclude ends a call, or sends it again after an error of the connection, since all
// scripts may run twice. What timed out is not sent again: its time is over. Nor is what could
// not be connected for, which go-redis has tried again: unless it is patient.
func (n *node) conclude(c *call, reply any, err error) {
	heard, timeout := err == nil || rediskit.IsReply(err), rediskit.IsTimeout(err)
	if heard || timeout {
		n.silent.Store(timeout)
	}
	n.trouble.Store(nil)
	if err != nil && rediskit.Classify(err).Passing() {
		n.trouble.Store(&err)
	}
	switch {
	case !heard && !c.patient && rediskit.Classify(err) == storekit.Unsent:
	case heard, timeout, errors.Is(err, goredis.ErrClosed), errors.Is(err, lock.ErrInvalid), n.closed.Load():
	case !c.patient && c.tries >= maxTries+min(c.stale, rediskit.MaxStale), time.Since(c.begin) > releaseTimeout:
	default:
		time.AfterFunc(1+rand.N(minPause<<min(c.tries-1, 6)), func() { n.dispatch(c) })
		return
	}
	n.end(c, reply, err)
}

func (n *node) dispatch(c *call) {
	if n.met.Load() {
		n.send(c)
	} else {
		n.joinFor(c)
	}
}

func (n *node) end(c *call, reply any, err error) {
	n.inFlight.Add(-1)
	c.done(answer{reply, rediskit.Explain(err, c.key), c.sent > 1})
}

// join sends the join script and then the others, and calls done. Calls that come while it
// is under way share it.
func (n *node) join(done func(error)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.joining = append(n.joining, done)
	if len(n.joining) == 1 {
		go n.joinNow()
	}
}

func (n *node) joinNow() {
	state, err := n.teach()
	if err == nil {
		n.mu.Lock()
		n.run = state.run
		n.mu.Unlock()
		err = n.known()
		n.met.Store(err == nil)
		n.silent.Store(false)
	}
	n.mu.Lock()
	waiting := n.joining
	n.joining = nil
	n.mu.Unlock()
	for _, done := range waiting {
		done(err)
	}
}

// teach is one pipeline, on one connection: should the server be restarted in its midst,
// the rest of it is lost with the connection, and no script is loaded in front of which
// join has not run. go-redis does not repeat it, so that its error is told soon.
func (n *node) teach() (nodeState, error) {
	ctx := context.Background()
	pipe := n.rdb.Pipeline()
	joined := rediskit.NewCommand(ctx, n.scripts.join.Args(true, []string{n.key}, []any{n.abstain})...)
	_ = pipe.Process(ctx, joined)
	for _, s := range n.scripts.byName() {
		pipe.ScriptLoad(ctx, s.Source)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nodeState{}, err
	}
	reply, _ := joined.Val().([]any)
	if len(reply) != 2 {
		return nodeState{}, fmt.Errorf("unexpected reply %v", reply)
	}
	micros, _ := strconv.ParseInt(text(reply[1]), 10, 64)
	n.clock.saw(micros)
	return parseNodeState(text(reply[0]))
}

// nodeState is the value of a node key: see lua/join.lua.
type nodeState struct {
	value string
	kind  string // n: it was new or has lost its data; r: it was restarted; a: it votes
	run   string
}

func parseNodeState(s string) (nodeState, error) {
	parts := strings.Split(s, ":")
	if len(parts) != 3 {
		return nodeState{}, fmt.Errorf("%w: %.40q", errForeign, s)
	}
	return nodeState{s, parts[1], parts[2]}, nil
}

// runID is the run id of the node's server, if it has been seen.
func (n *node) runID() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.run
}

// owe asks until the node does it, or until is past: for releases that must not be forgotten
// while a node is out of reach or in trouble. It gives up at once when too much is owed
// already. over is called when the node has done it or never will, or there is no more
// asking; late says that some sending may yet be executed.
func (n *node) owe(q question, until time.Time, over func(late bool)) {
	if n.owed.Add(1) > maxOwed {
		n.owed.Add(-1)
		over(false)
		return
	}
	n.pay(&debt{q, until, over, false}, 8*minPause)
}

// debt is a question that a node must still get.
type debt struct {
	question
	until time.Time
	over  func(late bool)
	late  bool
}

func (n *node) pay(d *debt, pause time.Duration) {
	end := func() {
		n.owed.Add(-1)
		d.over(d.late)
	}
	time.AfterFunc(pause/2+rand.N(pause), func() {
		if n.closed.Load() || time.Now().After(d.until) {
			end()
			return
		}
		n.ask(d.question, func(a answer) {
			d.late = d.late || a.late()
			if a.err == nil || !rediskit.Classify(a.err).Passing() {
				end()
				return
			}
			n.pay(d, min(2*pause, maxPause))
		})
	})
}
