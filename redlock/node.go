package redlock

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"

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
	closed  context.Context // of the Locker
	known   func() error    // called after each join

	met      atomic.Bool           // it has joined, ever
	trouble  atomic.Pointer[error] // why it did not answer last; nil if it did
	silent   atomic.Bool           // it did not when it was last waited for
	inFlight atomic.Int32

	mu      sync.Mutex   // guards the rest
	joining func() error // nil: nobody joins
	server  string       // its run id, once known
}

const (
	maxJoins  = 4  // of a sending, each but the first after a restart or a loss of data
	maxSilent = 64 // calls under way to a silent node; for releases above that the TTL does it
)

// debts are the pauses of a release that a node must still get.
var debts = storekit.Backoff{Min: 32 * time.Millisecond, Max: time.Second}

var (
	errSilent    = errors.New("no answer lately")
	errNoAnswer  = errors.New("no answer in time")
	errNotYet    = errors.New("it had not answered when the others had decided")
	errAbstains  = errors.New("abstains")
	errForeign   = errors.New("the node key holds something else: choose another key prefix")
	errRestarted = errors.New("it keeps losing its scripts or its data")
)

// question is one script to be run on some nodes.
type question struct {
	args  []any     // the whole command: the same for all nodes
	key   string    // a name that the errors of the lock give
	until time.Time // until when it is asked again while the node is in trouble; zero: it is not
	again func()    // if not nil, called before it is sent once more
}

// answer is what became of a question.
type answer struct {
	reply any
	err   error
	again bool // it was sent more than once: an earlier one may have been executed
}

// ask sends q to the node and returns at once. done is called once, on another goroutine that may
// have other work too.
func (n *node) ask(q question, done func(answer)) {
	if n.silent.Load() && n.inFlight.Load() >= maxSilent {
		go done(answer{err: n.why(errSilent)})
		return
	}
	n.inFlight.Add(1)
	end := func(a answer) {
		n.inFlight.Add(-1)
		done(a)
	}
	n.lane.Go(q.args, func(reply any, err error) {
		if err == nil && reply != "lost" && n.met.Load() {
			n.heard(nil)
			end(answer{reply: reply})
		} else {
			go func() { end(n.run(q, reply, err)) }()
		}
	})
}

// run goes on after a first sending that had this outcome, until there is an answer or no more asking.
// A release must not be forgotten while the node is out of reach. All scripts may run twice.
func (n *node) run(q question, reply any, err error) (a answer) {
	first := true
	for k := 0; ; k++ {
		again, err := rediskit.Repeat(n.closed, n.rdb, broken, func(ctx context.Context, _ int) error {
			if !first {
				if q.again != nil {
					q.again()
				}
				reply, err = n.lane.Do(ctx, q.args, false)
			}
			first = false
			a.reply, err = n.taught(ctx, q.args, reply, err)
			return err
		})
		a.again = a.again || again
		if err == nil || !classify(err).Passing() || time.Now().After(q.until) ||
			n.inFlight.Load() > maxSilent || n.closed.Err() != nil {
			a.err = rediskit.Explain(err, q.key)
			return a
		}
		a.again = a.again || rediskit.Classify(err) == storekit.Unknown
		n.silent.Store(true) // nobody waits for it
		_ = debts.Sleep(n.closed, k)
	}
}

// broken is the class of an error for who may send again at once: after one of the connection. What
// timed out is not sent again, since its time is over, nor what could not be connected for, which
// go-redis has tried again.
func broken(err error) storekit.Class {
	if class := classify(err); class == storekit.Unknown && !rediskit.IsTimeout(err) {
		return class
	}
	return storekit.Final
}

// taught is what comes of a sending that had this outcome: a node that lacks the scripts, or has
// lost its data, joins and is asked again. It joins before its first answer counts, so that it is
// known which server it is.
func (n *node) taught(ctx context.Context, args []any, reply any, err error) (any, error) {
	for range maxJoins {
		lacks := reply == "lost" || goredis.HasErrorPrefix(err, "NOSCRIPT")
		if !lacks && (err != nil || n.met.Load()) {
			n.heard(err)
			return reply, err
		}
		if err := n.join(); err != nil {
			n.heard(err)
			return nil, err
		}
		if lacks {
			reply, err = n.lane.Do(ctx, args, false)
		}
	}
	return nil, errRestarted
}

// heard notes what became of a sending.
func (n *node) heard(err error) {
	timeout := rediskit.IsTimeout(err)
	if err == nil || rediskit.IsReply(err) || timeout {
		n.silent.Store(timeout)
	}
	n.trouble.Store(nil)
	if err != nil && rediskit.Classify(err).Passing() {
		n.trouble.Store(&err)
	}
}

// why is err, with what is known of the connection: a timeout may be short of what go-redis
// takes to give up.
func (n *node) why(err error) error {
	if trouble := n.trouble.Load(); trouble != nil {
		return fmt.Errorf("%w: %w", err, *trouble)
	}
	return err
}

// join sends the join script and then the others. Calls that come while that is under way share
// it.
func (n *node) join() error {
	n.mu.Lock()
	if n.joining == nil {
		n.joining = sync.OnceValue(n.joinNow)
	}
	join := n.joining
	n.mu.Unlock()
	return join()
}

func (n *node) joinNow() error {
	state, err := n.teach()
	n.mu.Lock()
	n.joining = nil
	if err == nil {
		n.server = state.run
	}
	n.mu.Unlock()
	if err == nil {
		err = n.known()
		n.met.Store(err == nil)
		n.silent.Store(false)
	}
	return err
}

// teach has join run, and only then loads the scripts, by the same connection: should the server be
// restarted in between, that breaks, and no script is loaded of which join has not run. Where join
// fails, since a right is missing say, loading does not. go-redis does not repeat a pipeline, so that
// its error is told soon.
func (n *node) teach() (nodeState, error) {
	ctx := context.Background()
	conn := n.rdb.Conn()
	defer func() { _ = conn.Close() }()
	joined := rediskit.NewCommand(ctx, n.scripts.join.With([]string{n.key}, n.abstain).BySource()...)
	pipe := conn.Pipeline()
	_ = pipe.Process(ctx, joined)
	if _, err := pipe.Exec(ctx); err != nil {
		return nodeState{}, err
	}
	for _, s := range n.scripts.byName() {
		pipe.ScriptLoad(ctx, s.Source)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nodeState{}, err
	}
	return parseNodeState(rediskit.Text(joined.Val()))
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
	return n.server
}
