package service

import (
	"context"
	"errors"
	"time"

	"github.com/seed-215fdefa/lock"
)

// Action is what a request asks for.
type Action string

// The actions of a request.
const (
	ActionAcquire Action = "acquire"
	ActionRenew   Action = "renew"
	ActionRelease Action = "release"
	ActionForce   Action = "force"
	ActionInspect Action = "inspect"
	ActionWatch   Action = "watch"
	ActionList    Action = "list"
	ActionEvents  Action = "events"
)

// Call is a request about locks and its outcome.
type Call struct {
	Action  Action     // "" if it was refused before that was known
	Key     string     // of a list the prefix
	Owner   string     // as the store has it; "" if there is none
	Token   lock.Token // of the grant that was given, renewed or released; 0 if there is none
	Outcome string     // OutcomeOK, OutcomeWaiting, OutcomeCanceled, or the kind of a problem, such as "held"
	Elapsed time.Duration
}

// Outcomes of a [Call] besides the kinds of problems.
const (
	OutcomeOK       = "ok"
	OutcomeWaiting  = "waiting"  // it stands in line
	OutcomeCanceled = "canceled" // the client went away
)

type callKey struct{}

// Observe has serve note what it learns of a call, and tells the observer.
func (s *Server) Observe(ctx context.Context, serve func(context.Context)) {
	if s.Observer == nil {
		serve(ctx)
		return
	}
	c, start := &Call{Outcome: OutcomeOK}, time.Now()
	serve(context.WithValue(ctx, callKey{}, c))
	c.Elapsed = time.Since(start)
	s.Observer(ctx, *c)
}

// callOf is where to note what is learned of a call.
func callOf(ctx context.Context) *Call {
	if c, ok := ctx.Value(callKey{}).(*Call); ok {
		return c
	}
	return new(Call) // nobody looks at it
}

// failed notes how a call failed.
func (c *Call) failed(ctx context.Context, p *Problem, err error) {
	c.Outcome = p.Kind
	if p.Kind == KindUnavailable && (ctx.Err() != nil || errors.Is(err, context.Canceled)) {
		c.Outcome = OutcomeCanceled
	}
}
