package httplock

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/service"
)

const (
	maxBody  = 64 << 10         // bytes: metadata of lock.MaxMetadataLen in which each is escaped, and more
	bodyTime = 10 * time.Second // for a body to arrive
)

// Handler serves a [lock.Locker]. Make one with [NewHandler]. It is safe for concurrent use.
type Handler struct{ server *service.Server }

// Action is what a request asks for.
type Action = service.Action

// The actions of a request.
const (
	ActionAcquire = service.ActionAcquire
	ActionRenew   = service.ActionRenew
	ActionRelease = service.ActionRelease
	ActionForce   = service.ActionForce
	ActionInspect = service.ActionInspect // of a key
	ActionWatch   = service.ActionWatch
	ActionList    = service.ActionList   // the key is the prefix
	ActionEvents  = service.ActionEvents // the key is the prefix
)

// ErrUnauthenticated says that nobody knows who sent a request. Return it, wrapped or not, from
// the function of [WithAuthorization].
var ErrUnauthenticated = service.ErrUnauthenticated

// HandlerOption sets up a [Handler].
type HandlerOption func(*Handler)

// WithAuthorization makes f decide on each request before the store is asked. If f returns
// ErrUnauthenticated, the answer is 401; any other error is 403. The error's text goes to the
// error log, not to the client. f decides on a watch and an event stream again every 5 s, and an
// error ends it. f is called concurrently. Default: everybody may do everything.
func WithAuthorization(f func(r *http.Request, action Action, key string) error) HandlerOption {
	return func(h *Handler) {
		h.server.Authorize = func(ctx context.Context, action Action, key string) error { return f(requestOf(ctx), action, key) }
	}
}

// WithCaller binds owners to callers: nobody renews, releases or undoes another caller's grant,
// even if a record shows its owner. f returns the name of a request's caller; "" binds nothing.
// f is called concurrently. Default: whoever knows an owner may act for it.
//
// In the store, the handler appends ten characters to each owner. They depend only on the
// caller's name. So a caller's owner has at most 54 characters, replicas need not agree on
// anything, and a renamed caller loses its grants. Records show a caller its own owners as it
// sent them, and others' as the store has them.
func WithCaller(f func(*http.Request) string) HandlerOption {
	return func(h *Handler) { h.server.Caller = func(ctx context.Context) string { return f(requestOf(ctx)) } }
}

// WithErrorLog makes f receive the errors of the store and of WithAuthorization's function.
// Clients do not see these, since they may name addresses or accounts. f is called concurrently.
// Default: they are dropped.
func WithErrorLog(f func(r *http.Request, err error)) HandlerOption {
	return func(h *Handler) { h.server.ErrorLog = func(ctx context.Context, err error) { f(requestOf(ctx), err) } }
}

// WithMaxWaiters limits how many waiters may stand in line at this handler: in total, and per
// client, which is an address without its port. A waiter above a limit gets 429. 0 is no limit.
// Default: 100,000 in total, and no limit per client, since one proxy may stand for many.
func WithMaxWaiters(total, perClient int) HandlerOption {
	return func(h *Handler) { h.server.SetMaxWaiters(total, perClient) }
}

// NewHandler returns a handler that serves l under the path /v1. l stays the caller's to close,
// after the handler. Every request about a lock or a list is answered with 400 if an option is nil.
//
// The handler limits what a request may cost. Some limits are the http.Server's: set
// ReadHeaderTimeout (5 s) and IdleTimeout (2 min), leave WriteTimeout at 0, and stop the server
// gracefully:
//
//	server := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: 2 * time.Minute}
//	server.RegisterOnShutdown(h.Close)
func NewHandler(l lock.Locker, opts ...HandlerOption) *Handler {
	h := &Handler{service.NewServer(l)}
	h.server.Address = func(ctx context.Context) string { return addressOf(requestOf(ctx)) }
	for _, o := range opts {
		if o == nil {
			h.server.Err = fmt.Errorf("%w: httplock: option is nil", lock.ErrInvalid)
			continue
		}
		o(h)
	}
	return h
}

// Close ends all waits and tells their clients to poll again, at another replica. New requests
// are answered with 503. Grants remain. Close returns when no goroutine of h runs any more.
func (h *Handler) Close() { h.server.Close() }

// ServeHTTP implements [http.Handler].
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 { // net/http waits for what of it nobody reads
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime)) // not all writers have it
	}
	path := r.URL.EscapedPath() // a ServeMux would clean it, and take apart keys
	switch {
	case strings.HasPrefix(path, locksPath):
		h.observe(r, func(r *http.Request) { h.lock(w, r, path[len(locksPath):]) })
	case path == "/v1/locks":
		h.observe(r, func(r *http.Request) { h.get(w, r, func() { h.list(w, r) }) })
	case path == "/v1/events":
		h.observe(r, func(r *http.Request) { h.get(w, r, func() { h.events(w, r) }) })
	case path == "/v1/openapi.json":
		h.get(w, r, func() { h.openapi(w, r) })
	case path == "/v1" || path == "/v1/":
		h.get(w, r, func() {
			c, _ := h.server.Capabilities(r.Context()) // which does no I/O
			h.send(w, r, toService(c))
		})
	default:
		h.fail(w, r, newProblem(kindNotFound, ""))
	}
}

type requestKey struct{}

// requestOf is the request that h.observe was given.
func requestOf(ctx context.Context) *http.Request {
	r, _ := ctx.Value(requestKey{}).(*http.Request)
	return r
}

// observe has serve handle r as a call that the observer is told of.
func (h *Handler) observe(r *http.Request, serve func(*http.Request)) {
	h.server.Observe(context.WithValue(r.Context(), requestKey{}, r), func(ctx context.Context) { serve(r.WithContext(ctx)) })
}

// lock serves what is about one key.
func (h *Handler) lock(w http.ResponseWriter, r *http.Request, segment string) {
	escaped, verb := splitVerb(segment)
	post := map[string]func(http.ResponseWriter, *http.Request, string) error{
		"acquire": h.acquire, "renew": h.renew, "release": h.release, "force": h.force,
	}[verb]
	if strings.Contains(segment, "/") || verb != "" && verb != "watch" && post == nil {
		h.fail(w, r, newProblem(kindNotFound, "a slash or a colon of the key must be percent-encoded, and the verbs are acquire, renew, release, force and watch"))
		return
	}
	key, err := unescapeKey(escaped)
	if err == nil {
		_, err = readQuery(r)
	}
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
			err := h.server.Allow(r.Context(), action, key)
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
		h.fail(w, r, newProblem(kindMethod, "it needs POST"))
	default:
		err := h.server.Allow(r.Context(), action, key)
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
		h.fail(w, r, newProblem(kindMethod, "it needs GET"))
		return
	}
	serve()
}

// acquire grants, refuses, or lets the client stand in line.
func (h *Handler) acquire(w http.ResponseWriter, r *http.Request, key string) error {
	var b acquireBody
	if err := read(w, r, &b); err != nil {
		return err
	}
	answer, err := h.server.Acquire(r.Context(), b.request(key))
	if err != nil {
		return err
	}
	if answer.Grant.Token == 0 {
		h.sendStatus(w, r, http.StatusAccepted, toLine(answer))
		return nil
	}
	g := toGrant(answer.Grant)
	g.Renew = answer.Renew
	h.send(w, r, g)
	return nil
}

func (h *Handler) renew(w http.ResponseWriter, r *http.Request, key string) error {
	var b grantBody
	if err := read(w, r, &b); err != nil {
		return err
	}
	g, err := h.server.Renew(r.Context(), b.grant(key))
	if err != nil {
		return err
	}
	h.send(w, r, toGrant(g))
	return nil
}

// release ends a grant, or without a token undoes what its owner may have.
func (h *Handler) release(w http.ResponseWriter, r *http.Request, key string) error {
	var b grantBody
	if err := read(w, r, &b); err != nil {
		return err
	}
	if err := h.server.Release(r.Context(), b.grant(key)); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// force ends a grant by force.
func (h *Handler) force(w http.ResponseWriter, r *http.Request, key string) error {
	var b forceBody
	if err := read(w, r, &b); err != nil {
		return err
	}
	if err := h.server.ForceRelease(r.Context(), key, b.Owner); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (h *Handler) inspect(w http.ResponseWriter, r *http.Request, key string) {
	rec, err := h.server.Inspect(r.Context(), key)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	h.send(w, r, toRecord(rec))
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
		return newProblem(kindMedia, "")
	}
	body, err := readAll(w, r)
	if err != nil {
		return err
	}
	if !utf8.Valid(body) {
		return newProblem(service.KindInvalid, "the body is not valid UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return newProblem(service.KindInvalid, "the body is not the JSON object that is asked for: "+err.Error())
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return newProblem(service.KindInvalid, "the body has something behind its JSON object")
	}
	return nil
}

// readAll reads the body, which must arrive by the deadline that ServeHTTP has set. That ends with it:
// it would end the request too.
func readAll(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, newProblem(service.KindTooLarge, fmt.Sprintf("the body has more than %d bytes", maxBody))
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, newProblem(service.KindTimeout, fmt.Sprintf("the body did not arrive within %v", bodyTime))
	case err != nil && r.Context().Err() == nil:
		return nil, newProblem(service.KindInvalid, "the body could not be read")
	case err != nil:
		return nil, context.Cause(r.Context())
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	return body, nil
}

// addressOf is the address that a request came from, without the port.
func addressOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}
