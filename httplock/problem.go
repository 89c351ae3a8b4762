package httplock

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/seed-215fdefa/lock"
)

// problem is what went wrong, as RFC 9457 has it. The type is "urn:httplock:" and the kind.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`

	Record *recordBody `json:"record,omitempty"` // of held
	Reason string      `json:"reason,omitempty"` // of lost: expired, taken, forced, unreachable
	Token  lock.Token  `json:"token,omitempty"`  // of lost
	// Final says of unavailable that a waiter is out of line: asking again would begin anew.
	Final bool `json:"final,omitempty"`
}

const (
	problemType  = "urn:httplock:"
	problemMedia = "application/problem+json"

	kindHeld        = "held"
	kindLost        = "lost"
	kindReleased    = "released"
	kindInvalid     = "invalid"
	kindUnsupported = "unsupported"
	kindUnavailable = "unavailable"
	kindClosed      = "closed"
	kindStopping    = "stopping"
	kindCrowded     = "crowded"
)

// kinds has the status and the title of each kind, and the error that a client makes of it.
var kinds = map[string]struct {
	status int
	title  string
	err    error
}{
	kindHeld:        {http.StatusConflict, "somebody else holds the lock", lock.ErrHeld},
	kindLost:        {http.StatusGone, "the grant does not exist any more", lock.ErrLost},
	kindReleased:    {http.StatusGone, "the owner was released while it waited", lock.ErrReleased},
	kindInvalid:     {http.StatusBadRequest, "the request breaks a rule", lock.ErrInvalid},
	kindUnsupported: {http.StatusNotImplemented, "the store does not have this", lock.ErrUnsupported},
	kindUnavailable: {http.StatusServiceUnavailable, "the store does not answer, or failed", lock.ErrUnavailable},
	kindClosed:      {http.StatusServiceUnavailable, "the service's store is closed", lock.ErrClosed},
	kindStopping:    {http.StatusServiceUnavailable, "the service is stopping: ask another replica", lock.ErrUnavailable},
	kindCrowded:     {http.StatusTooManyRequests, "too many wait", lock.ErrUnavailable},

	"unauthenticated":    {http.StatusUnauthorized, "the service does not know who asks", nil},
	"forbidden":          {http.StatusForbidden, "the caller may not do this", nil},
	"not-found":          {http.StatusNotFound, "there is no such path", nil},
	"method-not-allowed": {http.StatusMethodNotAllowed, "the path does not have this method", nil},
	"too-large":          {http.StatusRequestEntityTooLarge, "the body is too large", lock.ErrInvalid},
	"media-type":         {http.StatusUnsupportedMediaType, "the body must be application/json", nil},
	"timeout":            {http.StatusRequestTimeout, "the body did not arrive in time", nil},
}

func newProblem(kind, detail string) *problem {
	k := kinds[kind]
	return &problem{Type: problemType + kind, Title: k.title, Status: k.status, Detail: detail}
}

func (p *problem) kind() string { return strings.TrimPrefix(p.Type, problemType) }

// Error implements error, for the handler's own use.
func (p *problem) Error() string { return p.Title + ": " + p.Detail }

// problemOf tells a client of err. What a store says of itself, such as its address, is not for
// clients: it goes to the error log.
func problemOf(err error) *problem {
	var p *problem
	var held *lock.HeldError
	var lost *lock.LostError
	switch {
	case errors.As(err, &p):
		return p
	case errors.As(err, &held):
		p = newProblem(kindHeld, "")
		p.Record = toRecord(held.Record)
		return p
	case errors.Is(err, lock.ErrHeld):
		return newProblem(kindHeld, "")
	case errors.As(err, &lost):
		p = newProblem(kindLost, "")
		p.Token = lost.Token
		if lost.Reason != 0 {
			p.Reason = lost.Reason.String()
		}
		return p
	case errors.Is(err, lock.ErrLost):
		return newProblem(kindLost, "")
	case errors.Is(err, lock.ErrReleased):
		return newProblem(kindReleased, "")
	case errors.Is(err, lock.ErrInvalid):
		return newProblem(kindInvalid, err.Error())
	case errors.Is(err, lock.ErrUnsupported):
		return newProblem(kindUnsupported, err.Error())
	case errors.Is(err, lock.ErrClosed):
		return newProblem(kindClosed, "")
	}
	return newProblem(kindUnavailable, "")
}

// fail answers with err, and logs what the client is not told.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := problemOf(err)
	callOf(r).failed(r, p)
	h.scope(r).view(p.Record)
	if h.errorLog != nil && p.Status == http.StatusServiceUnavailable && !errors.Is(err, context.Canceled) {
		h.errorLog(r, err)
	}
	if p.Status == http.StatusTooManyRequests || p.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	b, err := json.Marshal(p)
	if err != nil {
		panic("httplock: a problem has no JSON: " + err.Error())
	}
	reply(w, p.Status, problemMedia, b)
}

func reply(w http.ResponseWriter, status int, media string, body []byte) {
	header := w.Header()
	header.Set("Content-Type", media)
	header.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(body) // who went away meanwhile does not read an error either
}
