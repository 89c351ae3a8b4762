package postgres

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/seed-215fdefa/lock"
)

const (
	quiet     = 5 * time.Second        // after which a silent connection is tried, and how long that may take
	closeWait = 100 * time.Millisecond // for listen to end
	maxRedial = 2 * time.Second        // between two connections
)

// listener is the one connection on which a Locker hears of releases and forced losses. It
// is not the pool's: it connects for itself, when it is first needed. While it is broken
// nothing is heard; when it is back all waiters look again, since something may have been
// missed.
type listener struct {
	registry *registry
	channel  string
	config   func(context.Context) (*pgx.ConnConfig, error)
	ended    chan struct{} // closed when listen has returned
	tried    chan struct{} // closed when the first connection listens, or could not

	mu      sync.Mutex // guards started
	started bool
}

func newListener(r *registry, channel string, config func(context.Context) (*pgx.ConnConfig, error)) *listener {
	return &listener{
		registry: r, channel: channel, config: config,
		ended: make(chan struct{}), tried: make(chan struct{}),
	}
}

// await has the first connection made, and waits until it listens, so that what is sent to
// this process from then on is heard, or could not: then it is not, and nobody waits again.
func (n *listener) await(ctx context.Context) error {
	n.mu.Lock()
	if !n.started && n.registry.ctx.Err() == nil {
		n.started = true
		go n.listen()
	}
	n.mu.Unlock()
	select {
	case <-n.tried:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-n.registry.ctx.Done():
		return lock.ErrClosed
	}
}

// close waits for listen, whose context has ended, but for no server.
func (n *listener) close() {
	n.mu.Lock() // so that a start has come before, or does not come
	started := n.started
	n.mu.Unlock()
	if !started {
		return
	}
	t := time.NewTimer(closeWait)
	defer t.Stop()
	select {
	case <-n.ended:
	case <-t.C:
	}
}

// listen goes on until close. Errors are retried for ever, after growing pauses.
func (n *listener) listen() {
	defer close(n.ended)
	ctx := n.registry.ctx
	tried := sync.OnceFunc(func() { close(n.tried) })
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, maxRedial) {
		if n.session(ctx, tried) {
			wait = 10 * time.Millisecond
		}
		tried()
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// session is the life of one connection. It calls listening when it is, and reports whether
// it ever was.
func (n *listener) session(ctx context.Context, listening func()) (healthy bool) {
	conn, err := n.dial(ctx)
	if err != nil {
		return false
	}
	defer func() {
		bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWait/2)
		defer cancel()
		_ = conn.Close(bye)
	}()
	if within(ctx, func(ctx context.Context) error {
		_, err := conn.Exec(ctx, "LISTEN "+pgx.Identifier{n.channel}.Sanitize())
		return err
	}) != nil {
		return false
	}
	n.registry.wakeAll()
	listening()
	for {
		heard := false
		err := within(ctx, func(ctx context.Context) error {
			note, err := conn.WaitForNotification(ctx)
			if err == nil {
				heard = true
				n.registry.heard(note.Payload)
			}
			return err
		})
		if heard {
			continue
		}
		if ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) || within(ctx, conn.Ping) != nil {
			return true
		}
	}
}

func (n *listener) dial(ctx context.Context) (conn *pgx.Conn, err error) {
	err = within(ctx, func(ctx context.Context) error {
		config, err := n.config(ctx)
		if err != nil {
			return err
		}
		config.OnNotification = nil // it would take them from WaitForNotification
		conn, err = pgx.ConnectConfig(ctx, config)
		return err
	})
	return conn, err
}

// within bounds one step of a session, and with it how long a dead server is listened to.
func within(ctx context.Context, step func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, quiet)
	defer cancel()
	return step(ctx)
}
