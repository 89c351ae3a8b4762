package httplock

import (
	"context"
	"net/http"
	"time"

	"github.com/seed-215fdefa/lock"
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

// Outcomes of a [Call] besides the kinds of problems that docs/service.md lists.
const (
	OutcomeOK       = "ok"
	OutcomeWaiting  = "waiting"  // it stands in line
	OutcomeCanceled = "canceled" // the client went away
)

// WithObserver makes f receive each request about a lock or a list once it has been answered,
// and a watch when it has ended, for audits and metrics. r's context has the values that the
// handler was given. f is called concurrently, and delays the next request of its connection.
// Default: none.
func WithObserver(f func(r *http.Request, c Call)) HandlerOption {
	return func(h *Handler) { h.observer = f }
}

// Waiting returns how many waiters stand in line at h.
func (h *Handler) Waiting() int {
	h.waits.mu.Lock()
	defer h.waits.mu.Unlock()
	return len(h.waits.all)
}

type callKey struct{}

// observe has serve note what it learns of the call, and tells the observer.
func (h *Handler) observe(w http.ResponseWriter, r *http.Request, serve func(http.ResponseWriter, *http.Request)) {
	if h.observer == nil {
		serve(w, r)
		return
	}
	c, start := &Call{Outcome: OutcomeOK}, time.Now()
	r = r.WithContext(context.WithValue(r.Context(), callKey{}, c))
	serve(w, r)
	c.Elapsed = time.Since(start)
	h.observer(r, *c)
}

// callOf is where to note what is learned of a call.
func callOf(r *http.Request) *Call {
	if c, ok := r.Context().Value(callKey{}).(*Call); ok {
		return c
	}
	return new(Call) // nobody looks at it
}

// failed notes how a call failed.
func (c *Call) failed(r *http.Request, p *problem) {
	c.Outcome = p.kind()
	if c.Outcome == kindUnavailable && r.Context().Err() != nil {
		c.Outcome = OutcomeCanceled
	}
}
