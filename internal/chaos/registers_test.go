//go:build linux

package chaos

import (
	"context"
	"errors"
	"net"
	"net/rpc"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

// serve answers calls of net/rpc until the test ends, and returns where. service makes the
// receiver for a connection; its ctx ends when the client has hung up.
func serve(tb testing.TB, name string, service func(ctx context.Context) any) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				ctx, hangUp := context.WithCancel(ctx)
				defer hangUp()
				defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
				server := rpc.NewServer()
				_ = server.RegisterName(name, service(ctx))
				server.ServeConn(&peer{conn, hangUp})
			})
		}
	})
	tb.Cleanup(func() {
		_ = l.Close()
		cancel()
		wg.Wait()
	})
	return l.Addr().String()
}

// peer tells when nothing can be read any more: net/rpc itself waits for the calls that
// are under way.
type peer struct {
	net.Conn
	hangUp func()
}

func (p *peer) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	if err != nil {
		p.hangUp()
	}
	return n, err
}

// registers has two values for each key, in the test's process: one behind a [lock.Guard],
// and one that nothing protects but the lock. A value is the number of the round that wrote
// it. Its methods write down what they did, in the order in which they did it.
type registers struct {
	journal *journal
	guard   lock.Guard

	mu     sync.Mutex // guards the rest; never held while guard's is taken
	values map[string]int64
}

// Access is what a worker asks of registers.
type Access struct {
	Kind  kind // kGuardRead, kGuardWrite, kBareWrite, or "" to read the bare value
	Key   string
	Token lock.Token
	Round int64
	Prev  int64 // what the worker had read
}

// Do returns the value that was there, or -1 for a stale token.
func (r *registers) Do(a Access, value *int64) error {
	if a.Kind != kGuardRead && a.Kind != kGuardWrite {
		*value = r.step(a, "bare "+a.Key)
		return nil
	}
	err := r.guard.Do(context.Background(), a.Key, a.Token, func(context.Context) error {
		*value = r.step(a, a.Key)
		return nil
	})
	if errors.Is(err, lock.ErrStale) {
		*value = -1
		r.journal.add(event{Kind: a.Kind, Key: a.Key, Token: a.Token, Op: a.Round, Err: "stale"})
		return nil
	}
	return err
}

func (r *registers) step(a Access, name string) (was int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	was = r.values[name]
	if a.Kind == kGuardWrite || a.Kind == kBareWrite {
		r.values[name] = a.Round
	}
	if a.Kind != "" {
		r.journal.add(event{Kind: a.Kind, Key: a.Key, Token: a.Token, Op: a.Round, Value: was, Prev: a.Prev})
	}
	return was
}
