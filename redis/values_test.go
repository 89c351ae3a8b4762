package redis_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/redis"
)

// gated is a client that connects once gate is closed. It sends a word to dials each time that it wants to.
func (w world) gated(t *testing.T) (rdb *goredis.Client, dials chan struct{}, open func()) {
	gate := make(chan struct{})
	dials = make(chan struct{}, 100)
	rdb = goredis.NewClient(&goredis.Options{
		Addr: w.server.Addr(), DialTimeout: patience,
		Dialer: func(_ context.Context, network, addr string) (net.Conn, error) {
			dials <- struct{}{}
			<-gate
			return net.Dial(network, addr)
		},
	})
	open = sync.OnceFunc(func() { close(gate) })
	t.Cleanup(func() { open(); _ = rdb.Close() })
	return rdb, dials, open
}

// TestFenceSetsWhatItWasGiven: Set returns as its ctx ends, and the caller uses its bytes for something
// else, before they are sent.
func TestFenceSetsWhatItWasGiven(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	require.NoError(t, redis.NewFence(w.rdb).Set(bounded(t), w.prefix+"other", 1, "v", 0)) // the server knows the script
	rdb, dials, open := w.gated(t)
	ctx, cancel := context.WithCancel(t.Context())
	buf := []byte("given")
	set := make(chan error, 1)
	go func() { set <- redis.NewFence(rdb).Set(ctx, w.prefix+"v", 1, buf, 0) }()
	storetest.Receive(t, dials)
	cancel()
	require.ErrorIs(t, storetest.Receive(t, set), context.Canceled)
	copy(buf, "other")
	open()
	var got string
	eventually(t, "the value", func() bool {
		var err error
		got, err = w.rdb.Get(bounded(t), w.prefix+"v").Result()
		return err == nil
	})
	require.Equal(t, "given", got)
}

// marshaler is what a value says when it is marshalled.
type marshaler func() ([]byte, error)

func (m marshaler) MarshalBinary() ([]byte, error) { return m() }

// TestFenceMarshalers: one that panics does so in its caller's goroutine, and one that fails keeps
// nobody else's value away.
func TestFenceMarshalers(t *testing.T) {
	t.Parallel()
	const others = 40
	w := sharedWorld(t)
	rdb, dials, open := w.gated(t)
	f, ctx := redis.NewFence(rdb), bounded(t)
	require.PanicsWithValue(t, "no value", func() {
		_ = redis.NewFence(w.rdb).Set(ctx, w.prefix+"v", 1, marshaler(func() ([]byte, error) { panic("no value") }), 0)
	})
	set := make(chan error, 1+others)
	go func() { set <- f.Set(ctx, w.prefix+"v", 1, "v", 0) }()
	storetest.Receive(t, dials) // what comes now shares the next pipelines
	bad, failed := make(chan error, 1), errors.New("no value")
	for n := range others {
		if n == others/2 {
			go func() {
				bad <- f.Set(ctx, w.prefix+"v", 1, marshaler(func() ([]byte, error) { return nil, failed }), 0)
			}()
		}
		go func() { set <- f.Set(ctx, fmt.Sprint(w.prefix, n), 1, "v", 0) }()
	}
	time.AfterFunc(20*time.Millisecond, open)
	for range 1 + others {
		require.NoError(t, storetest.Receive(t, set))
	}
	err := storetest.Receive(t, bad)
	require.ErrorIs(t, err, failed)
	require.ErrorIs(t, err, lock.ErrInvalid)
	_, err = f.Eval(ctx, 1, "return 1", []string{w.prefix + "v"}, "fine", struct{}{})
	require.ErrorContains(t, err, "argument 2: cannot marshal struct {}")
}

// TestFenceArguments: they are what go-redis makes of them.
func TestFenceArguments(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	f, ctx := redis.NewFence(w.rdb), bounded(t)
	args := []any{
		nil, []byte("b"), []byte(nil), net.IPv4(1, 2, 3, 4), lock.Token(7), new(lock.Token),
		marshaler(func() ([]byte, error) { return []byte("m"), nil }),
	}
	for _, v := range []any{
		"s", -1, int8(-1), int16(-1), int32(-1), int64(-1), uint(1), uint8(1), uint16(1), uint32(1), uint64(1),
		float32(.5), 1e21, true, false, time.Now(), time.Second,
	} {
		p := reflect.New(reflect.TypeOf(v))
		p.Elem().Set(reflect.ValueOf(v))
		args = append(args, v, p.Interface(), reflect.Zero(p.Type()).Interface()) // and a nil pointer
	}
	want, err := w.rdb.Eval(ctx, "return ARGV", nil, args...).Result()
	require.NoError(t, err)
	got, err := f.Eval(ctx, 1, "return ARGV", []string{w.prefix + "v"}, args...)
	require.NoError(t, err)
	require.Equal(t, want, got)
}
