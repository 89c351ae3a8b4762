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
	"net/url"
	"strings"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/service"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// maxReply is more than a record of 32 notes of lock.MaxMetadataLen takes, each byte escaped.
const maxReply = 4 << 20

// ServiceError is an answer of the service that says nothing about the lock. It is
// lock.ErrUnavailable, ErrInvalid, ErrUnsupported or ErrClosed if the service said so.
type ServiceError struct {
	Status int    // of HTTP
	Kind   string // of the problem, such as "forbidden"; "" if it was not the service's
	Detail string
	cause  error // what it is
}

// Error names the status, the kind and the detail.
func (e *ServiceError) Error() string {
	s := fmt.Sprintf("lock: http: status %d", e.Status)
	if e.Kind != "" {
		s += " " + e.Kind
	}
	if e.Detail != "" {
		s += ": " + strings.TrimPrefix(e.Detail, "lock: ")
	}
	return s
}

// Unwrap returns an error that is the one of package lock that e is, or nil.
func (e *ServiceError) Unwrap() error { return e.cause }

// transport sends requests over HTTP. It implements [service.Transport].
type transport struct {
	base   string // without a slash at the end
	client *http.Client
	own    *http.Transport // nil if client is the caller's
	token  string
}

// ask sends one request and reads the reply into out.
func (t *transport) ask(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("%w: httplock: %w", lock.ErrInvalid, err)
		}
		body = bytes.NewReader(b)
	}
	resp, err := t.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	switch {
	case err != nil:
		return fmt.Errorf("lock: http: the reply broke off: %w", err)
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		return errorOf(resp, b)
	case out == nil && resp.StatusCode == http.StatusNoContent:
		return nil
	case out == nil || resp.StatusCode == http.StatusNoContent: // of whoever answers anything
		return fmt.Errorf("lock: http: a reply of status %d is not the service's", resp.StatusCode)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("lock: http: the reply of status %d is not the service's: %w", resp.StatusCode, err)
	}
	return nil
}

func (t *transport) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, t.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("%w: httplock: %w", lock.ErrInvalid, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if t.token != "" {
		req.Header.Set("Authorization", "Bearer "+t.token)
	}
	resp, err := t.client.Do(req)
	if err != nil {
		return nil, transportError(ctx, err)
	}
	return resp, nil
}

// transportError is err without the URL. If ctx is all that ended the request, it is just that: no
// sign of trouble.
func transportError(ctx context.Context, err error) error {
	if u := (*url.Error)(nil); errors.As(err, &u) {
		err = u.Err
	}
	if end := ctx.Err(); end != nil && errors.Is(err, end) {
		return end
	}
	return fmt.Errorf("lock: http: %w", err)
}

// errorOf is the error that a reply is. A proxy's may be a problem too.
func errorOf(resp *http.Response, body []byte) error {
	var p problem
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if media != problemMedia || json.Unmarshal(body, &p) != nil || !strings.HasPrefix(p.Type, problemType) {
		return &ServiceError{Status: resp.StatusCode}
	}
	p.Status = resp.StatusCode
	return p.toError()
}

// toError makes of a problem the error that the handler made it of.
func (b *problem) toError() error {
	p := b.problem()
	if err := p.Rebuild(); err != nil {
		return err
	}
	return &ServiceError{b.Status, p.Kind, p.Detail, p}
}

// Classify implements [service.Transport]. A proxy in front may limit the rate of requests, or end one
// that takes it too long.
func (t *transport) Classify(err error) storekit.Class {
	var e *ServiceError
	var op *net.OpError
	switch {
	case errors.As(err, &e) && e.Status == http.StatusTooManyRequests:
		return storekit.Busy
	case errors.As(err, &e) && (e.Status == http.StatusRequestTimeout || e.Status == http.StatusTooEarly):
		return storekit.Unknown
	case errors.As(err, &e) && e.Status < http.StatusInternalServerError:
		return storekit.Final
	case errors.As(err, &op) && op.Op == "dial":
		return storekit.Unsent
	}
	return storekit.Unknown // a proxy's answer too
}

// Acquire implements [service.Service].
func (t *transport) Acquire(ctx context.Context, req lock.Request) (service.Answer, error) {
	var b acquireReply
	err := t.ask(ctx, http.MethodPost, path(req.Key, "acquire"), toAcquire(req), &b)
	return b.answer(req.Key), err
}

// Renew implements [service.Service].
func (t *transport) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	var b grantBody
	err := t.post(ctx, "renew", g, &b)
	return b.grant(g.Key), err
}

// Release implements [service.Service].
func (t *transport) Release(ctx context.Context, g lock.Grant) error {
	return t.post(ctx, "release", g, nil)
}

// post sends g, whose key is in the path.
func (t *transport) post(ctx context.Context, verb string, g lock.Grant, out any) error {
	to := path(g.Key, verb)
	g.Key = ""
	return t.ask(ctx, http.MethodPost, to, toGrant(g), out)
}

// Inspect implements [service.Service].
func (t *transport) Inspect(ctx context.Context, key string) (lock.Record, error) {
	var b recordBody
	err := t.ask(ctx, http.MethodGet, path(key, ""), nil, &b)
	return b.record(), err
}

// Capabilities implements [service.Service].
func (t *transport) Capabilities(ctx context.Context) (lock.Capabilities, error) {
	var b serviceBody
	err := t.ask(ctx, http.MethodGet, "/v1", nil, &b)
	return b.capabilities(), err
}

func path(key, verb string) string {
	if verb != "" {
		verb = ":" + verb
	}
	return locksPath + escapeKey(key) + verb
}
