package locktest_test

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"net"
	"sync"
	"testing"
	"time"

	lock "github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// tcpServer is the server of a store that somebody wrote: it keeps keys, and answers
// requests in JSON. It knows no line: its clients poll.
type tcpServer struct {
	tb       testing.TB
	addr     string // once it has been started
	listener net.Listener
	serving  sync.WaitGroup

	mu    sync.Mutex // guards the rest
	keys  *memory.Locker
	conns map[net.Conn]bool
}

// tcpCall is a request: Op with what it needs.
type tcpCall struct {
	Op, Key, Owner string // Key is the prefix of a list
	TTL            time.Duration
	Shared         bool
	Metadata       map[string]string
	Grant          lock.Grant
}

// tcpAnswer is the reply to it.
type tcpAnswer struct {
	Grant   lock.Grant
	Records []lock.Record
	Failure string // held, lost, or what is wrong
	Reason  lock.LostReason
}

func (s *tcpServer) start() {
	addr := s.addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		s.tb.Errorf("tcp server: %v", err)
		return
	}
	s.listener, s.addr, s.conns = listener, listener.Addr().String(), map[net.Conn]bool{}
	s.serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns[conn] = true
			s.mu.Unlock()
			s.serving.Go(func() { s.serve(conn) })
		}
	})
}

// stop ends the server as a kill would. What it keeps outlives it.
func (s *tcpServer) stop() {
	_ = s.listener.Close()
	s.mu.Lock()
	for conn := range s.conns {
		_ = conn.Close()
	}
	s.mu.Unlock()
	s.serving.Wait()
}

// forget loses all keys.
func (s *tcpServer) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = memory.New()
}

func (s *tcpServer) serve(conn net.Conn) {
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, conn)
		_ = conn.Close()
	}()
	for calls, answers := json.NewDecoder(conn), json.NewEncoder(conn); ; {
		var c tcpCall
		if calls.Decode(&c) != nil || answers.Encode(s.answer(c)) != nil {
			return
		}
	}
}

// answer does one call at a time.
func (s *tcpServer) answer(c tcpCall) (a tcpAnswer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	ctx := context.Background()
	switch c.Op {
	case "acquire":
		a.Grant, err = s.acquire(ctx, c)
	case "renew":
		a.Grant, err = s.keys.Renew(ctx, c.Grant)
	case "release":
		err = s.keys.Release(ctx, c.Grant)
	case "force":
		err = s.keys.ForceRelease(ctx, c.Key, c.Owner)
	case "list":
		for rec, failed := range s.keys.List(ctx, c.Key) {
			if err = failed; err != nil {
				break
			}
			a.Records = append(a.Records, rec)
		}
	case "inspect":
		var rec lock.Record
		rec, err = s.keys.Inspect(ctx, c.Key)
		a.Records = []lock.Record{rec}
	}
	var held *lock.HeldError
	var lost *lock.LostError
	switch {
	case errors.As(err, &held):
		a.Failure, a.Records = "held", []lock.Record{held.Record}
	case errors.As(err, &lost):
		a.Failure, a.Reason = "lost", lost.Reason
	case errors.Is(err, lock.ErrLost):
		a.Failure = "lost"
	case err != nil:
		a.Failure = err.Error()
	}
	return a
}

// acquire grants, or finds what a request that was sent before has granted. s.mu is held.
func (s *tcpServer) acquire(ctx context.Context, c tcpCall) (lock.Grant, error) {
	rec, err := s.keys.Inspect(ctx, c.Key)
	if err != nil {
		return lock.Grant{}, err
	}
	for _, h := range rec.Holders {
		if h.Owner == c.Owner {
			return s.keys.Renew(ctx, lock.Grant{Key: c.Key, Owner: c.Owner, Token: h.Token, TTL: c.TTL, Shared: h.Shared})
		}
	}
	return s.keys.Acquire(ctx, lock.Request{Key: c.Key, Owner: c.Owner, TTL: c.TTL, Shared: c.Shared, Metadata: c.Metadata})
}

// tcpStore is a Locker at such a server.
type tcpStore struct {
	addr string

	mu   sync.Mutex // guards idle
	idle []net.Conn
}

var (
	_ lock.Locker = (*tcpStore)(nil)
	_ lock.Admin  = (*tcpStore)(nil)
)

func (s *tcpStore) Capabilities() lock.Capabilities {
	const kept = lock.SurvivesRestart | lock.SurvivesFailover
	return lock.Capabilities{
		Store: "tcp", Shared: true, MinTTL: time.Millisecond,
		TokenSurvives: kept | lock.SurvivesRelease | lock.SurvivesExpiry, HoldSurvives: kept,
	}
}

// Close closes the connections that no call uses.
func (s *tcpStore) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, conn := range s.idle {
		_ = conn.Close()
	}
	s.idle = nil
}

// connect returns a connection that was used before, or a new one.
func (s *tcpStore) connect(ctx context.Context) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.idle); n > 0 {
		conn := s.idle[n-1]
		s.idle = s.idle[:n-1]
		return conn, nil
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", s.addr)
}

// call has c answered. Its error may come after c took effect.
func (s *tcpStore) call(ctx context.Context, c tcpCall) (a tcpAnswer, err error) {
	if err := ctx.Err(); err != nil {
		return a, err
	}
	conn, err := s.connect(ctx)
	if err != nil {
		return a, errors.Join(ctx.Err(), err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(lock.Patience))
	if err = json.NewEncoder(conn).Encode(c); err == nil {
		err = json.NewDecoder(conn).Decode(&a)
	}
	if !stop() || err != nil {
		_ = conn.Close()
		return a, errors.Join(ctx.Err(), err)
	}
	s.mu.Lock()
	s.idle = append(s.idle, conn)
	s.mu.Unlock()
	switch a.Failure {
	case "":
		return a, nil
	case "held":
		return a, &lock.HeldError{Record: a.Records[0]}
	case "lost":
		return a, &lock.LostError{Token: c.Grant.Token, Reason: a.Reason}
	}
	return a, errors.New("tcp store: " + a.Failure)
}

func (s *tcpStore) Acquire(ctx context.Context, req lock.Request) (lock.Grant, error) {
	if err := lock.CheckRequest(req, s.Capabilities()); err != nil {
		return lock.Grant{}, err
	}
	c := tcpCall{Op: "acquire", Key: req.Key, Owner: req.Owner, TTL: req.TTL, Shared: req.Shared, Metadata: req.Metadata}
	var held *lock.HeldError // once the wait has begun
	var answered time.Time
	return lock.Poll(ctx, req, 10*time.Millisecond, 500*time.Millisecond, func(ctx context.Context) (lock.Grant, error) {
		sent := time.Now()
		a, err := s.call(ctx, c)
		switch {
		case err == nil:
			a.Grant.Start = sent
			return a.Grant, nil
		case errors.As(err, &held):
			answered = time.Now()
		case held != nil && ctx.Err() == nil && time.Since(answered) < lock.Patience:
			return lock.Grant{}, held // what is wrong may pass
		}
		return lock.Grant{}, err
	})
}

func (s *tcpStore) Renew(ctx context.Context, g lock.Grant) (lock.Grant, error) {
	sent := time.Now()
	a, err := s.call(ctx, tcpCall{Op: "renew", Key: g.Key, Grant: g})
	if err != nil {
		return lock.Grant{}, err
	}
	a.Grant.Start = sent
	return a.Grant, nil
}

func (s *tcpStore) Release(ctx context.Context, g lock.Grant) error {
	_, err := s.call(ctx, tcpCall{Op: "release", Key: g.Key, Grant: g})
	return err
}

func (s *tcpStore) Inspect(ctx context.Context, key string) (lock.Record, error) {
	if err := lock.CheckKey(key); err != nil {
		return lock.Record{}, err
	}
	a, err := s.call(ctx, tcpCall{Op: "inspect", Key: key})
	if err != nil {
		return lock.Record{}, err
	}
	return a.Records[0], nil
}

func (s *tcpStore) List(ctx context.Context, prefix string) iter.Seq2[lock.Record, error] {
	return func(yield func(lock.Record, error) bool) {
		a, err := s.call(ctx, tcpCall{Op: "list", Key: prefix})
		if err != nil {
			yield(lock.Record{}, err)
			return
		}
		for _, rec := range a.Records {
			if !yield(rec, nil) {
				return
			}
		}
	}
}

func (s *tcpStore) ForceRelease(ctx context.Context, key, owner string) error {
	if err := lock.CheckKey(key); err != nil {
		return err
	}
	_, err := s.call(ctx, tcpCall{Op: "force", Key: key, Owner: owner})
	return err
}
