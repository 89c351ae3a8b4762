package redis_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
	"github.com/seed-215fdefa/lock/redis"
)

// TestFrozenServer and what follows use a server that is really frozen.
func TestFrozenServer(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	storetest.FrozenServer(t, w.open(t), w.open(t), 2*time.Second, w.server.Pause, w.server.Resume)
}

// TestFrozenServerCancel: every method returns when its ctx ends, and no sooner, since a
// frozen server answers nothing; go-redis' own timeouts would come later.
func TestFrozenServerCancel(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	p := w.open(t)
	fence := redis.NewFence(p.rdb)
	g, reader := acquire(t, p, request("held")), acquire(t, p, shared(request("read")))
	require.NoError(t, fence.Set(bounded(t), w.prefix+"value", 1, "v", 0))
	waiting := waits(t, p, request("held"))
	w.server.Pause()

	methods := storetest.EveryCall(p, g, map[string]func(context.Context) error{
		"Acquire held":   func(ctx context.Context) error { _, err := p.Acquire(ctx, request("held")); return err },
		"Renew reader":   func(ctx context.Context) error { _, err := p.Renew(ctx, reader); return err },
		"Release reader": func(ctx context.Context) error { return p.Release(ctx, reader) },
		"Preflight":      p.Preflight,
		"Fence.Get":      func(ctx context.Context) error { _, err := fence.Get(ctx, w.prefix+"value", 2); return err },
		"Fence.Set":      func(ctx context.Context) error { return fence.Set(ctx, w.prefix+"value", 2, "v", 0) },
		"Fence.Eval": func(ctx context.Context) error {
			_, err := fence.Eval(ctx, 2, "return 1", []string{w.prefix + "value"})
			return err
		},
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	results := make(chan error, len(methods))
	for name, call := range methods {
		go func() {
			err := call(ctx)
			if ctx.Err() == nil || !errors.Is(err, context.DeadlineExceeded) {
				results <- errors.New(name + ": " + errText(err))
				return
			}
			results <- nil
		}()
	}
	timeout := time.After(patience)
	for range methods {
		select {
		case err := <-results:
			require.NoError(t, err)
		case <-timeout:
			require.FailNow(t, "a method hangs past its ctx")
		}
	}
	waiting.cancel()
	waiting.end()
	require.ErrorIs(t, waiting.err, context.Canceled)
	require.ErrorIs(t, waiting.err, lock.ErrHeld)
}

func errText(err error) string {
	if err == nil {
		return "no error"
	}
	return err.Error()
}

// TestTryHasPatience: a try ends in time, whatever the client's own timeouts.
func TestTryHasPatience(t *testing.T) {
	for name, dialer := range map[string]func(context.Context, string, string) (net.Conn, error){
		"silent": func(context.Context, string, string) (net.Conn, error) {
			here, there := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, there) }()
			return here, nil
		},
		"out of reach": func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, &net.OpError{Op: "dial", Err: ctx.Err()}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rdb := goredis.NewClient(&goredis.Options{Addr: "127.0.0.1:1", Dialer: dialer, ReadTimeout: -1, WriteTimeout: -1})
				defer func() {
					require.NoError(t, rdb.Close())
					time.Sleep(lock.Patience) // the last dial ends
				}()
				begun := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 10*lock.Patience)
				defer cancel()
				_, err := redis.New(rdb).Acquire(ctx, request("k"))
				require.ErrorIs(t, err, lock.ErrUnavailable)
				require.Equal(t, lock.Patience, time.Since(begun))
			})
		})
	}
}

// TestFrozenServerClose: Close waits for no server, also when the subscriber is about to
// connect to one that does not answer.
func TestFrozenServerClose(t *testing.T) {
	t.Parallel()
	for name, reconnecting := range map[string]bool{"subscribed": false, "reconnecting": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := ownWorld(t)
			p := w.open(t)
			p.patient()
			acquire(t, p, request("k"))
			waiting := waits(t, p, request("k"))
			eventually(t, "the subscriber", func() bool { return subscribers(t, w) == 1 })
			w.server.Pause()
			if reconnecting {
				p.net.drop()
				eventually(t, "the subscriber to dial again", func() bool { return p.net.dialled() > 0 })
			}
			closed := make(chan struct{})
			go func() { defer close(closed); _ = p.Close() }()
			select {
			case <-closed:
			case <-time.After(patience):
				w.server.Resume()
				require.FailNow(t, "Close waits for the frozen server")
			}
			_, err := p.Acquire(bounded(t), request("k"))
			require.ErrorIs(t, err, lock.ErrClosed)
			waiting.cancel()
			waiting.end()
		})
	}
}

// TestFrozenServerSubscriber: the client never gives up by itself, and nobody answers while the subscriber
// connects, first or again. It gives that up, says why it hears nothing, and finds its way back.
func TestFrozenServerSubscriber(t *testing.T) {
	t.Parallel()
	endless := func(t *testing.T, w world) (*redis.Locker, *faultproxy.Proxy, <-chan error) {
		proxy, told := faultproxy.New(t, w.server.Addr()), make(chan error, 16)
		l := dial(t, &goredis.Options{Addr: proxy.Addr(), ReadTimeout: -1, WriteTimeout: -1},
			redis.WithPrefix(w.prefix), redis.WithPushObserver(func(err error) { told <- err }))
		return l, proxy, told
	}
	t.Run("first", func(t *testing.T) {
		t.Parallel()
		w := ownWorld(t)
		l, _, told := endless(t, w)
		w.server.Pause()
		waiting := asks(t, l, request("k"))
		require.Error(t, storetest.Receive(t, told))
		w.server.Resume()
		require.NoError(t, storetest.Receive(t, told))
		waiting.granted()
	})
	t.Run("again", func(t *testing.T) {
		t.Parallel()
		w := ownWorld(t)
		l, proxy, _ := endless(t, w)
		acquire(t, l, request("k"))
		waits(t, l, request("k"))
		dropped := proxy.Drop(faultproxy.Requests().Matching(func(m []byte) bool { return bytes.Contains(m, []byte("hello")) }).Nth(1))
		require.NoError(t, w.rdb.Do(bounded(t), "CLIENT", "KILL", "TYPE", "pubsub").Err())
		storetest.Receive(t, dropped.Hit())
		eventually(t, "the subscriber", func() bool { return subscribers(t, w) == 1 })
	})
}

// subscribers counts the subscriber connections of a world's processes.
func subscribers(tb testing.TB, w world) int {
	tb.Helper()
	list, err := w.rdb.Do(bounded(tb), "CLIENT", "LIST", "TYPE", "pubsub").Text()
	require.NoError(tb, err)
	return strings.Count(list, "\n")
}
