package etcd

import (
	"context"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// opening is how long a stream may take before another is tried beside it. The server checks a
// password for each, which is slow on purpose.
const opening = 2 * time.Second

// errStream is why a stream has ended that was given up for another: its keepalives are to be sent
// by that.
var errStream = status.Error(codes.Unavailable, "the keepalive stream has been silent")

// beats send a Locker's keepalives, on one stream for as long as that is answered.
type beats struct {
	l *Locker

	mu     sync.Mutex // guards newest, and the fields of streams
	newest *stream
}

// stream is one keepalive stream. Answers come in the order of requests.
type stream struct {
	cancel context.CancelFunc
	begun  time.Time
	ready  chan struct{} // closed when it is open, or could not be opened
	rpc    pb.Lease_LeaseKeepAliveClient
	send   sync.Mutex // guards rpc.Send

	opened  bool
	err     error // why it has ended
	waiting []*beat
}

// beat is a keepalive on its way.
type beat struct {
	le   *lease
	done chan error
	left bool // nobody waits for its answer
}

// ask keeps le alive. While it is not answered it sends copies, by other streams, which go to
// other members: whichever is answered, the lease lives from before the first.
func (b *beats) ask(le *lease) error {
	ctx, cancel := context.WithTimeout(b.l.ctx, max(min(le.ttl/4, requestTimeout), minTTL/2))
	defer cancel()
	var mu sync.Mutex // guards last
	var last *stream
	_, _, err := insist(ctx, le.impatience(), func(ctx context.Context) (struct{}, error) {
		mu.Lock()
		s := b.other(last)
		last = s
		mu.Unlock()
		return struct{}{}, b.once(ctx, s, le)
	})
	return err
}

// other returns a stream that is not the one that has been silent, if it may have one.
func (b *beats) other(silent *stream) *stream {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.newest
	if s != nil && s.err == nil && (s != silent || !s.opened && time.Since(s.begun) < opening) {
		return s
	}
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(b.l.ctx))
	b.newest = &stream{cancel: cancel, begun: time.Now(), ready: make(chan struct{})}
	b.idle(s)
	s = b.newest
	if !b.l.spawn(func() { b.run(ctx, s) }) {
		close(s.ready)
	}
	return s
}

// idle ends s if another has taken its place and nobody waits for an answer.
func (b *beats) idle(s *stream) {
	if s == nil || s == b.newest {
		return
	}
	for _, x := range s.waiting {
		if !x.left {
			return
		}
	}
	s.cancel()
}

func (b *beats) run(ctx context.Context, s *stream) {
	defer s.cancel()
	rpc, err := b.l.leases.client().LeaseKeepAlive(ctx)
	b.mu.Lock()
	s.rpc, s.opened, s.err = rpc, err == nil, rpctypes.Error(err)
	b.mu.Unlock()
	close(s.ready)
	for err == nil {
		var resp *pb.LeaseKeepAliveResponse
		if resp, err = rpc.Recv(); err == nil {
			b.answer(s, resp)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if s.err = rpctypes.Error(err); codeOf(err) == codes.Canceled {
		s.err = errStream
	}
	for _, x := range s.waiting {
		x.done <- s.err
	}
	s.waiting = nil
}

// answer tells the first who waits on s.
func (b *beats) answer(s *stream, resp *pb.LeaseKeepAliveResponse) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(s.waiting) == 0 || int64(s.waiting[0].le.id) != resp.ID {
		return // it answers nothing that was asked
	}
	var err error
	if resp.TTL <= 0 {
		err = rpctypes.ErrLeaseNotFound
	}
	s.waiting[0].done <- err
	s.waiting = s.waiting[1:]
	b.idle(s)
}

// once sends one keepalive on s, and waits for its answer.
func (b *beats) once(ctx context.Context, s *stream, le *lease) error {
	select {
	case <-s.ready:
	case <-ctx.Done():
		return ctx.Err()
	}
	x := &beat{le: le, done: make(chan error, 1)}
	s.send.Lock() // so that they wait in the order in which they are sent
	b.mu.Lock()
	err := s.err
	if err == nil && s.rpc == nil {
		err = b.l.over()
	}
	if err == nil {
		s.waiting = append(s.waiting, x)
	}
	b.mu.Unlock()
	if err == nil {
		_ = s.rpc.Send(&pb.LeaseKeepAliveRequest{ID: int64(le.id)}) // of which Recv says why it failed
	}
	s.send.Unlock()
	if err != nil {
		return err
	}
	select {
	case err = <-x.done:
		return err
	case <-ctx.Done():
		b.mu.Lock()
		defer b.mu.Unlock()
		x.left = true
		b.idle(s)
		return ctx.Err()
	}
}
