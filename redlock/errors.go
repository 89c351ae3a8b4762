package redlock

import (
	"errors"
	"fmt"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/rediskit"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// ErrNoQuorum says that too few nodes could vote to decide anything. It wraps what was wrong
// with each of the others: a goredis error, a network error, or that the node abstains after a
// restart.
var ErrNoQuorum = errors.New("lock: redlock: no quorum")

// quorumError is ErrNoQuorum and the nodes' errors.
type quorumError struct {
	fit, nodes, quorum int
	errs               []error
}

func (e *quorumError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v: %d of %d nodes could decide, and %d must", ErrNoQuorum, e.fit, e.nodes, e.quorum)
	sep := ": "
	for _, err := range e.errs {
		b.WriteString(sep + err.Error())
		sep = "; "
	}
	return b.String()
}

// Unwrap has lock.ErrClosed too where so many clients are closed that the other nodes are no quorum.
func (e *quorumError) Unwrap() []error {
	errs := append([]error{ErrNoQuorum}, e.errs...)
	if e.rulesOut(func(err error) bool { return errors.Is(err, goredis.ErrClosed) }) {
		errs = append(errs, lock.ErrClosed)
	}
	return errs
}

// class is that of the errors which leave no quorum.
func (e *quorumError) class() storekit.Class {
	if e.rulesOut(func(err error) bool { return !classify(err).Passing() }) {
		return storekit.Final
	}
	return storekit.Unknown
}

// rulesOut reports whether the nodes with such errors leave no quorum.
func (e *quorumError) rulesOut(such func(error) bool) bool {
	n := 0
	for _, err := range e.errs {
		if such(err) {
			n++
		}
	}
	return n > e.nodes-e.quorum
}

// classify implements the classes of storekit for the errors of a try.
func classify(err error) storekit.Class {
	var q *quorumError
	switch {
	case errors.Is(err, storekit.ErrUndone), errors.Is(err, errForeign), errors.Is(err, lock.ErrClosed), errors.Is(err, lock.ErrInvalid):
		return storekit.Final
	case errors.As(err, &q):
		return q.class()
	}
	return rediskit.Classify(err)
}

// noQuorum says what was wrong with each node in b that could not decide.
func noQuorum(b *ballot) error {
	e := &quorumError{nodes: len(b.nodes), quorum: b.quorum}
	for i, a := range b.answers {
		err := a.err
		if left, _, ok := abstains(a.reply); ok {
			err = fmt.Errorf("%w for %v more: it was restarted or lost its data, or the locks are new", errAbstains, left.Round(time.Millisecond))
		}
		switch {
		case err != nil:
		case b.votes[i] == pending:
			err = b.nodes[i].why(errNotYet)
		case b.votes[i] == unknown:
			err = fmt.Errorf("unexpected reply %.80v", a.reply)
		default:
			e.fit++
			continue
		}
		e.errs = append(e.errs, fmt.Errorf("node %d (%s): %w", i+1, b.nodes[i].name, err))
	}
	return e
}

// abstains reads the reply of a node that does not vote.
func abstains(reply any) (left time.Duration, state nodeState, ok bool) {
	r, _ := reply.([]any)
	if len(r) < 3 || r[0] != "abstains" {
		return 0, nodeState{}, false
	}
	ms, _ := r[1].(int64)
	state, err := parseNodeState(rediskit.Text(r[2]))
	return time.Duration(ms) * time.Millisecond, state, err == nil
}
