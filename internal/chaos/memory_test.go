//go:build linux

package chaos

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// memoryStore is a memory store and its fenced registers, in the test's process. Waiters
// have no heartbeat: their connection stands for it, so those of a frozen process are
// granted the key, for a TTL.
type memoryStore struct {
	locks  *memory.Locker
	guard  lock.Guard
	values sync.Map // by key
}

// memorySession serves one connection, with which ctx ends.
type memorySession struct {
	*memoryStore
	ctx context.Context
}

// Call is a call of a Locker, or of a register's get or set. Functions in Request stay behind.
type Call struct {
	Method     string
	Request    lock.Request
	Grant      lock.Grant
	Key, Value string
}

// Answer is what a Call returns. Held, Lost and Stale stand for the errors of these types.
type Answer struct {
	Grant  lock.Grant
	Record lock.Record
	Value  string
	Held   *lock.HeldError
	Lost   *lock.LostError
	Stale  *lock.StaleError
	Err    string
}

// serve answers calls until the test ends, and returns where.
func (m *memoryStore) serve(tb testing.TB) string {
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
				_ = server.RegisterName("Memory", &memorySession{m, ctx})
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

// Do is the only method of the server.
func (m *memorySession) Do(c Call, a *Answer) (err error) {
	switch c.Method {
	case "acquire":
		a.Grant, err = m.locks.Acquire(m.ctx, c.Request)
	case "renew":
		a.Grant, err = m.locks.Renew(m.ctx, c.Grant)
	case "release":
		err = m.locks.Release(m.ctx, c.Grant)
	case "inspect":
		a.Record, err = m.locks.Inspect(m.ctx, c.Key)
	default:
		err = m.guard.Do(m.ctx, c.Key, c.Grant.Token, func(context.Context) error {
			if c.Method == "set" {
				m.values.Store(c.Key, c.Value)
			}
			v, _ := m.values.LoadOrStore(c.Key, "")
			a.Value = v.(string)
			return nil
		})
	}
	switch {
	case errors.As(err, &a.Held):
		a.Held.Err = nil
	case errors.As(err, &a.Lost):
		a.Lost.Err = nil
	case errors.As(err, &a.Stale):
	case err != nil:
		a.Err = err.Error()
	}
	return nil
}

// memoryClient is a Locker of a memoryStore elsewhere. A wait that is canceled is ended there by the
// undo that follows.
type memoryClient struct {
	dial dialFunc
	addr string

	mu     sync.Mutex // guards client
	client *rpc.Client
}

func (m *memoryClient) Capabilities() lock.Capabilities {
	caps := memory.New().Capabilities()
	caps.EarlyLoss = false
	return caps
}

func (m *memoryClient) connect(ctx context.Context) (*rpc.Client, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.client == nil {
		conn, err := m.dial(ctx, "tcp", m.addr)
		if err != nil {
			return nil, err
		}
		m.client = rpc.NewClient(conn)
	}
	return m.client, nil
}

// Close ends the connection. The next call makes another.
func (m *memoryClient) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.client != nil {
		_ = m.client.Close()
		m.client = nil
	}
	return nil
}

// do returns when ctx ends: then the outcome is unknown. A Grant has the time of the call
// for its Start.
func (m *memoryClient) do(ctx context.Context, c Call) (Answer, error) {
	sent := time.Now()
	client, err := m.connect(ctx)
	if err != nil {
		return Answer{}, err
	}
	var a Answer
	call := client.Go("Memory.Do", c, &a, make(chan *rpc.Call, 1))
	select {
	case <-ctx.Done():
		return Answer{}, ctx.Err()
	case <-call.Done:
	}
	a.Grant.Start = sent
	switch {
	case call.Error != nil:
		_ = m.Close()
		return Answer{}, fmt.Errorf("memory server: %w", call.Error)
	case a.Held != nil:
		return a, a.Held
	case a.Lost != nil:
		return a, a.Lost
	case a.Stale != nil:
		return a, a.Stale
	case a.Err != "":
		return a, errors.New(a.Err)
	}
	return a, nil
}

func (m *memoryClient) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	a, err := m.do(ctx, Call{Method: "acquire", Request: req})
	if err == nil && req.Wait { // it may have been granted at any time since
		return m.Renew(ctx, a.Grant)
	}
	return a.Grant, err
}

func (m *memoryClient) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	a, err := m.do(ctx, Call{Method: "renew", Grant: g})
	return a.Grant, err
}

func (m *memoryClient) Release(ctx context.Context, g lock.Grant) error {
	_, err := m.do(ctx, Call{Method: "release", Grant: g})
	return err
}

func (m *memoryClient) Inspect(ctx context.Context, key string) (lock.Record, error) {
	a, err := m.do(ctx, Call{Method: "inspect", Key: key})
	return a.Record, err
}

func (m *memoryClient) get(ctx context.Context, key string, token lock.Token) (string, error) {
	a, err := m.do(ctx, Call{Method: "get", Key: key, Grant: lock.Grant{Token: token}})
	return a.Value, err
}

func (m *memoryClient) set(ctx context.Context, key string, token lock.Token, value string) error {
	_, err := m.do(ctx, Call{Method: "set", Key: key, Value: value, Grant: lock.Grant{Token: token}})
	return err
}
