package httplock

import (
	"context"
	"net/http"

	"github.com/seed-215fdefa/lock/internal/service"
)

// Call is a request about locks and its outcome:
//
//	Action   Action         // "" if it was refused before that was known
//	Key      string         // of a list the prefix
//	Owner    string         // as the store has it; "" if there is none
//	Token    lock.Token     // of the grant that was given, renewed or released; 0 if there is none
//	Outcome  string         // OutcomeOK, OutcomeWaiting, OutcomeCanceled, or the kind of a problem, such as "held"
//	Elapsed  time.Duration
type Call = service.Call

// Outcomes of a [Call] besides the kinds of problems that docs/service.md lists.
const (
	OutcomeOK       = service.OutcomeOK
	OutcomeWaiting  = service.OutcomeWaiting  // it stands in line
	OutcomeCanceled = service.OutcomeCanceled // the client went away
)

// WithObserver makes f receive each request about a lock or a list once it has been answered,
// and a watch or an event stream when it has ended, for audits and metrics. r's context has the values that the
// handler was given. f is called concurrently, and delays the next request of its connection.
// Default: none.
func WithObserver(f func(r *http.Request, c Call)) HandlerOption {
	return func(h *Handler) { h.server.Observer = func(ctx context.Context, c Call) { f(requestOf(ctx), c) } }
}

// Waiting returns how many waiters stand in line at h.
func (h *Handler) Waiting() int { return h.server.Waiting() }
