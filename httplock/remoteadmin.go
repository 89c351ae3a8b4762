package httplock

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// ForceRelease implements [lock.Admin]. It is ErrUnsupported if the service's store has no Admin.
func (l *Locker) ForceRelease(ctx context.Context, key, owner string) error {
	if err := lock.CheckGrant(lock.Grant{Key: key, Owner: owner}); err != nil {
		return err
	}
	if err := l.ready(ctx); err != nil {
		return err
	}
	return l.repeat(ctx, http.MethodPost, path(key, "force"), forceBody{Owner: owner}, nil)
}

// List implements [lock.Admin]. It is ErrUnsupported if the service's store has no Admin.
func (l *Locker) List(ctx context.Context, prefix string) iter.Seq2[lock.Record, error] {
	return func(yield func(lock.Record, error) bool) {
		if err := l.ready(ctx); err != nil {
			yield(lock.Record{}, err)
			return
		}
		if err := l.list(ctx, prefix, func(rec lock.Record) bool { return yield(rec, nil) }); err != nil {
			yield(lock.Record{}, err)
		}
	}
}

// list calls yield with each record until that returns false, or the list ends with an error.
func (l *Locker) list(ctx context.Context, prefix string, yield func(lock.Record) bool) error {
	resp, err := l.stream(ctx, "/v1/locks?prefix="+url.QueryEscape(prefix))
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	lines := json.NewDecoder(resp.Body)
	for {
		var line listLine
		err := lines.Decode(&line)
		switch {
		case err != nil:
			return storekit.Ended(ctx, fmt.Errorf("lock: http: the list broke off: %w", err), nil)
		case line.End:
			return nil
		case line.Problem != nil:
			return line.Problem.toError(&ServiceError{Status: line.Problem.Status})
		case line.Record == nil || !yield(line.Record.record()):
			return nil
		}
	}
}

// stream asks for what comes in parts. The caller closes the body of the reply.
func (l *Locker) stream(ctx context.Context, path string) (resp *http.Response, err error) {
	_, err = storekit.Repeat(ctx, classify, func(ctx context.Context, _ int) error {
		if resp, err = l.do(ctx, http.MethodGet, path, nil); err != nil {
			return err
		}
		if resp.StatusCode == http.StatusOK {
			return nil
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
		if err != nil {
			return err
		}
		return errorOf(resp, b)
	})
	return resp, err
}

// Watch implements [lock.Watcher]. It is ErrUnsupported if the service's store does not push. It
// treats a stream as broken once three of its heartbeats have not come.
func (l *Locker) Watch(ctx context.Context, key string, changed func()) error {
	if err := lock.CheckKey(key); err != nil {
		return err
	}
	if err := l.ready(ctx); err != nil {
		return err
	}
	alive, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(l.closed, func() { cancel(lock.ErrClosed) })()
	silence := time.AfterFunc(3*pingInterval, func() { cancel(errSilent) })
	defer silence.Stop()
	resp, err := l.stream(alive, path(key, "watch"))
	if err == nil {
		defer func() { _ = resp.Body.Close() }()
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			silence.Reset(3 * pingInterval)
			if strings.HasPrefix(lines.Text(), "event: changed") && alive.Err() == nil {
				changed()
			}
		}
		err = errStream
	}
	switch cause := context.Cause(alive); {
	case ctx.Err() != nil:
		return ctx.Err()
	case cause != nil:
		return cause
	}
	return err
}

var (
	errStream = errors.New("lock: http: the stream of changes has ended")
	errSilent = errors.New("lock: http: the stream of changes is silent")
)
