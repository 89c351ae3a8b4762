package httplock

import (
	"encoding/json"
	"net/http"
	"strings"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/service"
)

// problem is a service.Problem, as RFC 9457 has it. The type is "urn:httplock:" and the kind.
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

	kindNotFound = "not-found"
	kindMethod   = "method-not-allowed"
	kindMedia    = "media-type"
)

// kinds has the status and the title of each kind.
var kinds = map[string]struct {
	status int
	title  string
}{
	service.KindHeld:        {http.StatusConflict, "somebody else holds the lock"},
	service.KindLost:        {http.StatusGone, "the grant does not exist any more"},
	service.KindReleased:    {http.StatusGone, "the owner was released while it waited"},
	service.KindInvalid:     {http.StatusBadRequest, "the request breaks a rule"},
	service.KindUnsupported: {http.StatusNotImplemented, "the store does not have this"},
	service.KindUnavailable: {http.StatusServiceUnavailable, "the store does not answer, or failed"},
	service.KindClosed:      {http.StatusServiceUnavailable, "the service's store is closed"},
	service.KindStopping:    {http.StatusServiceUnavailable, "the service is stopping: ask another replica"},
	service.KindCrowded:     {http.StatusTooManyRequests, "too many wait"},

	service.KindUnauthenticated: {http.StatusUnauthorized, "the service does not know who asks"},
	service.KindForbidden:       {http.StatusForbidden, "the caller may not do this"},
	service.KindTooLarge:        {http.StatusRequestEntityTooLarge, "the body is too large"},
	kindNotFound:                {http.StatusNotFound, "there is no such path"},
	kindMethod:                  {http.StatusMethodNotAllowed, "the path does not have this method"},
	kindMedia:                   {http.StatusUnsupportedMediaType, "the body must be application/json"},
	service.KindTimeout:         {http.StatusRequestTimeout, "the body did not arrive in time"},
}

func newProblem(kind, detail string) error { return &service.Problem{Kind: kind, Detail: detail} }

func toProblem(p *service.Problem) *problem {
	k := kinds[p.Kind]
	b := &problem{
		Type: problemType + p.Kind, Title: k.title, Status: k.status, Detail: p.Detail, Token: p.Token, Final: p.Final,
	}
	if p.Record != nil {
		b.Record = toRecord(*p.Record)
	}
	if p.Reason != 0 {
		b.Reason = p.Reason.String()
	}
	return b
}

// problem is what toProblem was given.
func (b *problem) problem() *service.Problem {
	p := &service.Problem{
		Kind: strings.TrimPrefix(b.Type, problemType), Detail: b.Detail,
		Reason: service.ReasonOf(b.Reason), Token: b.Token, Final: b.Final,
	}
	if b.Record != nil {
		rec := b.Record.record()
		p.Record = &rec
	}
	return p
}

// fail answers with err, and logs what the client is not told.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	h.refuse(w, h.server.Fail(r.Context(), err))
}

// refuse answers with p.
func (h *Handler) refuse(w http.ResponseWriter, p *service.Problem) {
	body := toProblem(p)
	if body.Status == http.StatusTooManyRequests || body.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	b, err := json.Marshal(body)
	if err != nil {
		panic("httplock: a problem has no JSON: " + err.Error())
	}
	reply(w, body.Status, problemMedia, b)
}

func reply(w http.ResponseWriter, status int, media string, body []byte) {
	header := w.Header()
	header.Set("Content-Type", media)
	header.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(body) // who went away meanwhile does not read an error either
}
