//go:build linux

package chaos

import (
	"context"
	"errors"
	"fmt"
	"net/rpc"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// memoryServer serves a memory store to one process. Its waiters have no heartbeat: their
// connection stands for it, so those of a frozen process are granted the key, for a TTL.
type memoryServer struct {
	ctx   context.Context // ends with the connection
	store *memory.Locker

	mu    sync.Mutex                    // guards waits
	waits map[string]context.CancelFunc // by owner
}

// Answer is what a call returns. Held and Lost stand for the errors of these types.
type Answer struct {
	Grant  lock.Grant
	Record lock.Record
	Held   *lock.HeldError
	Lost   *lock.LostError
	Err    string
}

func (a *Answer) fail(err error) {
	switch {
	case errors.As(err, &a.Held):
		a.Held.Err = nil
	case errors.As(err, &a.Lost):
		a.Lost.Err = nil
	case err != nil:
		a.Err = err.Error()
	}
}

func (a *Answer) err() error {
	switch {
	case a.Held != nil:
		return a.Held
	case a.Lost != nil:
		return a.Lost
	case a.Err != "":
		return errors.New(a.Err)
	}
	return nil
}

func (m *memoryServer) Acquire(req lock.Request, a *Answer) (err error) {
	ctx, cancel := context.WithCancel(m.ctx)
	defer cancel()
	m.mu.Lock()
	m.waits[req.Owner] = cancel
	m.mu.Unlock()
	a.Grant, err = m.store.Acquire(ctx, req)
	a.fail(err)
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.waits, req.Owner)
	return nil
}

func (m *memoryServer) Cancel(owner string, _ *Answer) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if cancel := m.waits[owner]; cancel != nil {
		cancel()
	}
	return nil
}

func (m *memoryServer) Renew(g lock.Grant, a *Answer) (err error) {
	a.Grant, err = m.store.Renew(m.ctx, g)
	a.fail(err)
	return nil
}

func (m *memoryServer) Release(g lock.Grant, a *Answer) error {
	a.fail(m.store.Release(m.ctx, g))
	return nil
}

func (m *memoryServer) Inspect(key string, a *Answer) (err error) {
	a.Record, err = m.store.Inspect(m.ctx, key)
	a.fail(err)
	return nil
}

// memoryClient is a Locker of a memoryServer. It does not pass on Request.Waiting or Lost.
type memoryClient struct {
	dial dialFunc
	addr string

	mu  sync.Mutex // guards rpc
	rpc *rpc.Client
}

func (m *memoryClient) Capabilities() lock.Capabilities {
	caps := memory.New().Capabilities()
	caps.EarlyLoss = false
	return caps
}

func (m *memoryClient) connect(ctx context.Context) (*rpc.Client, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rpc == nil {
		conn, err := m.dial(ctx, "tcp", m.addr)
		if err != nil {
			return nil, err
		}
		m.rpc = rpc.NewClient(conn)
	}
	return m.rpc, nil
}

// call returns when ctx ends: then the outcome is unknown.
func (m *memoryClient) call(ctx context.Context, method string, arg any) (*Answer, error) {
	c, err := m.connect(ctx)
	if err != nil {
		return nil, err
	}
	call := c.Go("Memory."+method, arg, new(Answer), make(chan *rpc.Call, 1))
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-call.Done:
	}
	if call.Error != nil {
		m.close(c)
		return nil, fmt.Errorf("memory server: %w", call.Error)
	}
	a := call.Reply.(*Answer)
	return a, a.err()
}

// close ends c, if it is still the one in use.
func (m *memoryClient) close(c *rpc.Client) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.rpc == c && c != nil {
		m.rpc = nil
		_ = c.Close()
	}
}

func (m *memoryClient) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	sent := time.Now()
	req.Waiting, req.Lost = nil, nil
	a, err := m.call(ctx, "Acquire", req)
	if ctx.Err() != nil && a == nil {
		if c, err := m.connect(context.WithoutCancel(ctx)); err == nil {
			c.Go("Memory.Cancel", req.Owner, new(Answer), nil)
		}
	}
	if err != nil {
		return lock.Grant{}, err
	}
	a.Grant.Start = sent
	if req.Wait { // it may have been granted at any time since
		return m.Renew(ctx, a.Grant)
	}
	return a.Grant, nil
}

func (m *memoryClient) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	sent := time.Now()
	a, err := m.call(ctx, "Renew", g)
	if err != nil {
		return lock.Grant{}, err
	}
	a.Grant.Start = sent
	return a.Grant, nil
}

func (m *memoryClient) Release(ctx context.Context, g lock.Grant) error {
	_, err := m.call(ctx, "Release", g)
	return err
}

func (m *memoryClient) Inspect(ctx context.Context, key string) (lock.Record, error) {
	a, err := m.call(ctx, "Inspect", key)
	if err != nil {
		return lock.Record{}, err
	}
	return a.Record, nil
}
