package httplock

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strings"

	"github.com/seed-215fdefa/lock"
)

// ForceRelease implements [service.Service].
func (t *transport) ForceRelease(ctx context.Context, key, owner string) error {
	return t.ask(ctx, http.MethodPost, path(key, "force"), forceBody{Owner: owner}, nil)
}

// List implements [service.Service].
func (t *transport) List(ctx context.Context, prefix string) iter.Seq2[lock.Record, error] {
	return func(yield func(lock.Record, error) bool) {
		resp, err := t.stream(ctx, "/v1/locks?prefix="+url.QueryEscape(prefix))
		if err != nil {
			yield(lock.Record{}, err)
			return
		}
		defer func() { _ = resp.Body.Close() }()
		lines := json.NewDecoder(resp.Body)
		for {
			var line listLine
			err := lines.Decode(&line)
			switch {
			case err != nil:
				yield(lock.Record{}, fmt.Errorf("lock: http: the list broke off: %w", err))
				return
			case line.Problem != nil:
				yield(lock.Record{}, line.Problem.toError())
				return
			case line.Record == nil || !yield(line.Record.record(), nil): // without a record it is the end
				return
			}
		}
	}
}

// stream asks for what comes in parts. The caller closes the body of the reply.
func (t *transport) stream(ctx context.Context, path string) (*http.Response, error) {
	resp, err := t.do(ctx, http.MethodGet, path, nil)
	if err != nil || resp.StatusCode == http.StatusOK {
		return resp, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return nil, err
	}
	return nil, errorOf(resp, b)
}

// Watch implements [service.Service].
func (t *transport) Watch(ctx context.Context, key string, event func(changed bool) bool) error {
	resp, err := t.stream(ctx, path(key, "watch"))
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if !event(strings.HasPrefix(lines.Text(), "event: changed")) {
			return nil
		}
	}
	return lines.Err()
}
