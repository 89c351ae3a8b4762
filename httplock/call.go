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
	err    error // what it is
	final  bool
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

// Unwrap returns the error of package lock that e is, or nil.
func (e *ServiceError) Unwrap() error { return e.err }

// repeat is send, for what may be repeated without a doubt.
func (l *Locker) repeat(ctx context.Context, method, path string, in, out any) error {
	_, err := l.send(ctx, method, path, in, out)
	return err
}

// send asks the service, again if that may help, for no longer than lock.Patience. unsure reports
// that a copy may still be on its way.
func (l *Locker) send(ctx context.Context, method, path string, in, out any) (unsure bool, err error) {
	err = storekit.WithinPatience(ctx, func(ctx context.Context) (err error) {
		unsure, err = storekit.Repeat(ctx, classify, func(ctx context.Context, _ int) error {
			_, err := l.ask(ctx, method, path, in, out)
			return err
		})
		return err
	})
	return unsure, err
}

// ask sends one request and reads the reply into out.
func (l *Locker) ask(ctx context.Context, method, path string, in, out any) (status int, err error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return 0, fmt.Errorf("%w: httplock: %w", lock.ErrInvalid, err)
		}
		body = bytes.NewReader(b)
	}
	resp, err := l.do(ctx, method, path, body)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	switch {
	case err != nil:
		return 0, fmt.Errorf("lock: http: the reply broke off: %w", err)
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		return resp.StatusCode, errorOf(resp, b)
	case out == nil || resp.StatusCode == http.StatusNoContent:
		return resp.StatusCode, nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return 0, fmt.Errorf("lock: http: the reply of status %d is not the service's: %w", resp.StatusCode, err)
	}
	return resp.StatusCode, nil
}

func (l *Locker) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, l.base+path, body)
	if err != nil {
		return nil, fmt.Errorf("%w: httplock: %w", lock.ErrInvalid, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if l.token != "" {
		req.Header.Set("Authorization", "Bearer "+l.token)
	}
	resp, err := l.client.Do(req)
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

// errorOf is the error that a reply is.
func errorOf(resp *http.Response, body []byte) error {
	e := &ServiceError{Status: resp.StatusCode}
	var p problem
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if media != problemMedia || json.Unmarshal(body, &p) != nil {
		return e
	}
	return p.toError(e)
}

// toError makes of a problem the error that the handler made it of.
func (p *problem) toError(e *ServiceError) error {
	e.Kind, e.Detail, e.final = strings.TrimPrefix(p.Type, problemType), p.Detail, p.Final
	e.err = kinds[e.Kind].err
	switch e.Kind {
	case kindHeld:
		if p.Record == nil {
			return &lock.HeldError{}
		}
		return &lock.HeldError{Record: p.Record.record()}
	case kindLost:
		lost := &lock.LostError{Token: p.Token}
		for _, r := range []lock.LostReason{lock.ReasonExpired, lock.ReasonTaken, lock.ReasonForced, lock.ReasonUnreachable} {
			if r.String() == p.Reason {
				lost.Reason = r
			}
		}
		return lost
	}
	return e
}

// classify says what an error means for one who may send the request again.
func classify(err error) storekit.Class {
	var e *ServiceError
	var op *net.OpError
	switch {
	case errors.Is(err, lock.ErrHeld), errors.Is(err, lock.ErrLost):
		return storekit.Final
	case errors.As(err, &e):
		return e.class()
	case errors.Is(err, lock.ErrInvalid):
		return storekit.Final
	case errors.As(err, &op) && op.Op == "dial":
		return storekit.Unsent
	}
	return storekit.Unknown
}

// class is that of an answer. The store behind the service has been asked again already.
func (e *ServiceError) class() storekit.Class {
	switch {
	case e.Kind == kindStopping || e.Kind == kindCrowded:
		return storekit.Busy
	case e.Kind == "" && e.Status >= http.StatusInternalServerError: // a proxy's
		return storekit.Unknown
	}
	return storekit.Final
}

// classifyWait is classify for one who stands in line, which may outlive the store's trouble,
// unless the service has waited that out already.
func classifyWait(err error) storekit.Class {
	var e *ServiceError
	if errors.As(err, &e) && !e.final && (e.Kind == kindUnavailable || e.Kind == kindClosed) {
		return storekit.Busy
	}
	return classify(err)
}
