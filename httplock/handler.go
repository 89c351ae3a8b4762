package httplock

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/seed-215fdefa/lock"
)

const (
	maxBody  = 64 << 10         // bytes: metadata of lock.MaxMetadataLen in which each is escaped, and more
	bodyTime = 10 * time.Second // for a body to arrive
)

// Handler serves a [lock.Locker]. Make one with [NewHandler]. It is safe for concurrent use.
type Handler struct {
	locker    lock.Locker
	authorize func(r *http.Request, action Action, key string) error
	errorLog  func(r *http.Request, err error)
	caller    func(r *http.Request) string
	observer  func(r *http.Request, c Call)
	waits     *waits
}

// Action is what a request asks for.
type Action string

// The actions of a request.
const (
	ActionAcquire Action = "acquire"
	ActionRenew   Action = "renew"
	ActionRelease Action = "release"
	ActionForce   Action = "force"
	ActionInspect Action = "inspect" // of a key
	ActionWatch   Action = "watch"
	ActionList    Action = "list" // the key is the prefix
)

// ErrUnauthenticated says that nobody knows who sent a request. Return it, wrapped or not, from
// the function of [WithAuthorization].
var ErrUnauthenticated = errors.New("httplock: unauthenticated")

// HandlerOption sets up a [Handler].
type HandlerOption func(*Handler)

// WithAuthorization makes f decide on each request before the store is asked. If f returns
// ErrUnauthenticated, the answer is 401; any other error is 403. The error's text goes to the
// error log, not to the client. f is called concurrently. Default: everybody may do everything.
func WithAuthorization(f func(r *http.Request, action Action, key string) error) HandlerOption {
	return func(h *Handler) { h.authorize = f }
}

// WithErrorLog makes f receive the errors of the store and of WithAuthorization's function.
// Clients do not see these, since they may name addresses or accounts. f is called concurrently.
// Default: they are dropped.
func WithErrorLog(f func(r *http.Request, err error)) HandlerOption {
	return func(h *Handler) { h.errorLog = f }
}

// WithMaxWaiters limits how many waiters may stand in line at this handler: in total, and per
// client, which is an address without its port. A waiter above a limit gets 429. 0 is no limit.
// Default: 100,000 in total, and no limit per client, since one proxy may stand for many.
func WithMaxWaiters(total, perClient int) HandlerOption {
	return func(h *Handler) { h.waits.most, h.waits.mostPerClient = total, perClient }
}

// NewHandler returns a handler that serves l under the path /v1. l stays the caller's to close,
// after the handler.
//
// The handler limits what a request may cost. Some limits are the http.Server's: set
// ReadHeaderTimeout (5 s) and IdleTimeout (2 min), leave WriteTimeout at 0, and stop the server
// gracefully:
//
//	server := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute}
//	server.RegisterOnShutdown(h.Close)
func NewHandler(l lock.Locker, opts ...HandlerOption) *Handler {
	h := &Handler{locker: l, waits: newWaits(l)}
	for _, o := range opts {
		o(h)
	}
	return h
}

// Close ends all waits and tells their clients to poll again, at another replica. New requests
// are answered with 503. Grants remain. Close returns when no goroutine of h runs any more.
func (h *Handler) Close() { h.waits.close() }

// ServeHTTP implements [http.Handler].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := r.URL.EscapedPath() // a ServeMux would clean it, and take apart keys
	switch {
	case h.waits.stopped():
		h.observe(w, r, func(w http.ResponseWriter, r *http.Request) { h.fail(w, r, newProblem(kindStopping, "")) })
	case strings.HasPrefix(path, locksPath):
		h.observe(w, r, func(w http.ResponseWriter, r *http.Request) { h.lock(w, r, path[len(locksPath):]) })
	case path == "/v1/locks":
		h.observe(w, r, func(w http.ResponseWriter, r *http.Request) { h.get(w, r, func() { h.list(w, r) }) })
	case path == "/v1/openapi.json":
		h.get(w, r, func() { h.openapi(w, r) })
	case path == "/v1" || path == "/v1/":
		h.get(w, r, func() { h.send(w, r, toService(h.locker.Capabilities())) })
	default:
		h.fail(w, r, newProblem("not-found", ""))
	}
}

// lock serves what is about one key.
func (h *Handler) lock(w http.ResponseWriter, r *http.Request, segment string) {
	escaped, verb := splitVerb(segment)
	post := map[string]func(http.ResponseWriter, *http.Request, string) error{
		"acquire": h.acquire, "renew": h.renew, "release": h.release, "force": h.force,
	}[verb]
	if strings.Contains(segment, "/") || verb != "" && verb != "watch" && post == nil {
		h.fail(w, r, newProblem("not-found", "a slash or a colon of the key must be percent-encoded, and the verbs are acquire, renew, release, force and watch"))
		return
	}
	key, err := unescapeKey(escaped)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	action := Action(verb)
	if verb == "" {
		action = ActionInspect
	}
	switch {
	case post == nil:
		h.get(w, r, func() {
			err := h.allow(r, action, key)
			switch {
			case err != nil:
				h.fail(w, r, err)
			case verb == "watch":
				h.watch(w, r, key)
			default:
				h.inspect(w, r, key)
			}
		})
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		h.fail(w, r, newProblem("method-not-allowed", "it needs POST"))
	default:
		err := h.allow(r, action, key)
		if err == nil {
			err = post(w, r, key)
		}
		if err != nil {
			h.fail(w, r, err)
		}
	}
}

// get calls serve if the method is GET.
func (h *Handler) get(w http.ResponseWriter, r *http.Request, serve func()) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		h.fail(w, r, newProblem("method-not-allowed", "it needs GET"))
		return
	}
	serve()
}

// allow returns an error unless the caller may do this.
func (h *Handler) allow(r *http.Request, action Action, key string) error {
	c := callOf(r)
	c.Action, c.Key = action, key
	if h.authorize == nil {
		return nil
	}
	err := h.authorize(r, action, key)
	switch {
	case err == nil:
		return nil
	case h.errorLog != nil:
		h.errorLog(r, err)
	}
	if errors.Is(err, ErrUnauthenticated) {
		return newProblem("unauthenticated", "")
	}
	return newProblem("forbidden", "")
}

func (h *Handler) renew(w http.ResponseWriter, r *http.Request, key string) error {
	var b grantBody
	if err := read(w, r, &b); err != nil {
		return err
	}
	if b.Token == 0 {
		return newProblem(kindInvalid, "token is missing or 0: a renewal needs that of the grant")
	}
	g, err := h.grant(r, key, b)
	if err == nil {
		err = checkRenewal(g)
	}
	if err != nil {
		return err
	}
	p := place{key, g.Owner}
	h.waits.forget(key, g.Owner)
	g, err = h.locker.Renew(r.Context(), g)
	if err != nil {
		return h.waits.explain(p, err)
	}
	h.sendGrant(w, r, g, false)
	return nil
}

// grant is what b speaks of, begun now.
func (h *Handler) grant(r *http.Request, key string, b grantBody) (lock.Grant, error) {
	s := h.scope(r)
	g := lock.Grant{
		Key: key, Owner: s.add(b.Owner), Token: b.Token, TTL: time.Duration(b.TTL), Shared: b.Shared,
		Start: time.Now(),
	}
	c := callOf(r)
	c.Owner, c.Token = g.Owner, g.Token
	return g, s.check(b.Owner)
}

// checkRenewal is what stores check too, but some only after they have looked for the grant.
func checkRenewal(g lock.Grant) error {
	if g.TTL <= 0 || g.TTL > lock.MaxTTL {
		return fmt.Errorf("%w: TTL %v: must be positive, and at most %v", lock.ErrInvalid, g.TTL, lock.MaxTTL)
	}
	return lock.CheckGrant(g)
}

// release ends a grant, or without a token undoes what its owner may have. The store is told a TTL
// that cannot be over: when it began only the client knows.
func (h *Handler) release(w http.ResponseWriter, r *http.Request, key string) error {
	var b grantBody
	if err := read(w, r, &b); err != nil {
		return err
	}
	g, err := h.grant(r, key, b)
	g.TTL = lock.MaxTTL
	if err == nil {
		err = lock.CheckGrant(g)
	}
	if err != nil {
		return err
	}
	if g.Token == 0 {
		h.waits.undo(place{key, g.Owner})
	} else {
		h.waits.forget(key, g.Owner)
	}
	if err := h.locker.Release(r.Context(), g); err != nil {
		return h.waits.explain(place{key, g.Owner}, err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h *Handler) inspect(w http.ResponseWriter, r *http.Request, key string) {
	rec, err := h.locker.Inspect(r.Context(), key)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	h.send(w, r, h.scope(r).view(toRecord(rec)))
}

// send answers with 200 and v.
func (h *Handler) send(w http.ResponseWriter, r *http.Request, v any) {
	h.sendStatus(w, r, http.StatusOK, v)
}

func (h *Handler) sendStatus(w http.ResponseWriter, r *http.Request, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // what no store may return, such as a key that is not UTF-8
		h.fail(w, r, err)
		return
	}
	reply(w, status, "application/json", append(b, '\n'))
}

// read decodes the body of a request, which must be one JSON object of known fields.
func read(w http.ResponseWriter, r *http.Request, into any) error {
	if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
		return newProblem("media-type", "")
	}
	body, err := readAll(w, r)
	if err != nil {
		return err
	}
	if !utf8.Valid(body) {
		return newProblem(kindInvalid, "the body is not valid UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return newProblem(kindInvalid, "the body is not the JSON object that is asked for: "+err.Error())
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return newProblem(kindInvalid, "the body has something behind its JSON object")
	}
	return nil
}

// readAll reads the body, which must arrive in time. The deadline ends with it: it would end the
// request too.
func readAll(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Now().Add(bodyTime)) // not all writers have it
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, newProblem("too-large", fmt.Sprintf("the body has more than %d bytes", maxBody))
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, newProblem("timeout", fmt.Sprintf("the body did not arrive within %v", bodyTime))
	case err != nil && r.Context().Err() == nil:
		return nil, newProblem(kindInvalid, "the body could not be read")
	case err != nil:
		return nil, context.Cause(r.Context())
	}
	_ = c.SetReadDeadline(time.Time{})
	return body, nil
}
