package dynamo_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
)

// hooks stand between the SDK and the server. Each function may be nil.
type hooks struct {
	next http.RoundTripper

	mu     sync.Mutex // guards the rest
	before func(operation string) (*http.Response, error)
	after  func(operation string, resp *http.Response) (*http.Response, error)
	counts map[string]int
	// intercept may keep a request and fail it.
	intercept func(operation string, req *http.Request) error
}

// copyOf is req, to be sent later.
func copyOf(req *http.Request) *http.Request {
	body, _ := io.ReadAll(req.Body)
	again := req.Clone(context.Background())
	again.Body = io.NopCloser(bytes.NewReader(body))
	return again
}

// set makes before see each request, which it may answer itself, and after each reply.
func (h *hooks) set(before func(string) (*http.Response, error), after func(string, *http.Response) (*http.Response, error)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.before, h.after = before, after
}

// sent returns how many requests of an operation came here since the last call.
func (h *hooks) sent() map[string]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := h.counts
	h.counts = nil
	return n
}

func (h *hooks) RoundTrip(req *http.Request) (*http.Response, error) {
	_, operation, _ := strings.Cut(req.Header.Get("X-Amz-Target"), ".")
	h.mu.Lock()
	if h.counts == nil {
		h.counts = make(map[string]int)
	}
	h.counts[operation]++
	before, after, intercept := h.before, h.after, h.intercept
	h.mu.Unlock()
	if intercept != nil {
		if err := intercept(operation, req); err != nil {
			return nil, err
		}
	}
	if before != nil {
		if resp, err := before(operation); resp != nil || err != nil {
			return resp, err
		}
	}
	resp, err := h.next.RoundTrip(req)
	if err != nil || after == nil {
		return resp, err
	}
	return after(operation, resp)
}

// answer is a reply of DynamoDB with an error.
func answer(status int, code string) *http.Response {
	body := `{"__type":"com.amazonaws.dynamodb.v20120810#` + code + `","message":"made by a test"}`
	return &http.Response{
		StatusCode: status, Status: http.StatusText(status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {"application/x-amz-json-1.0"}},
		Body:   io.NopCloser(bytes.NewReader([]byte(body))),
	}
}
