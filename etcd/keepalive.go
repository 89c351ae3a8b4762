package etcd

import (
	"context"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// opening is how long a stream may take to open before another is tried beside it. The server
// checks a password for each, which is slow on purpose.
const opening = 2 * time.Second

// errSilent ends what waits on a stream that was given up for another.
var errSilent = status.Error(codes.Unavailable, "the keepalive stream has been silent")

// beats send a Locker's keepalives, all on one stream for as long as that is answered.
type beats struct {
	l *Locker

	mu      sync.Mutex // guards streams, and their fields
	streams []*stream  // more than one only while the last has not been answered
}

// stream is one keepalive stream. Answers come in the order of requests.
type stream struct {
	cancel  context.CancelFunc
	begun   time.Time
	rpc     pb.Lease_LeaseKeepAliveClient // nil: it is not open yet
	waiting []*beat
}

// beat is a keepalive that was not answered yet.
type beat struct {
	le   *lease
	done chan error
}

// ask keeps le alive. While it is not answered it sends copies, by other streams, which go to
// other members: whichever is answered, the lease lives from before the first.
func (b *beats) ask(le *lease) error {
	ctx, cancel := context.WithTimeout(b.l.ctx, max(min(le.ttl/4, requestTimeout), minTTL/2))
	defer cancel()
	var mu sync.Mutex // guards last
	var last *stream
	_, _, err := insist(ctx, le.impatience(), func(ctx context.Context) (struct{}, error) {
		x := &beat{le, make(chan error, 1)}
		mu.Lock()
		last = b.send(x, last)
		mu.Unlock()
		select {
		case err := <-x.done:
			return struct{}{}, err
		case <-ctx.Done():
			return struct{}{}, ctx.Err()
		}
	})
	return err
}

// send sends x by the newest stream, unless that is the one that has been silent.
func (b *beats) send(x *beat, silent *stream) (s *stream) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.streams); n > 0 {
		s = b.streams[n-1]
	}
	if s == nil || s == silent && (s.rpc != nil || time.Since(s.begun) > opening) {
		ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(b.l.ctx))
		s = &stream{cancel: cancel, begun: time.Now()}
		b.streams = append(b.streams, s)
		b.l.spawn(func() { b.run(ctx, s) })
	}
	s.waiting = append(s.waiting, x)
	s.send(x)
	return s
}

// send sends x if the stream is open. If that fails, Recv says why.
func (s *stream) send(x *beat) {
	if s.rpc != nil {
		_ = s.rpc.Send(&pb.LeaseKeepAliveRequest{ID: int64(x.le.id)})
	}
}

func (b *beats) run(ctx context.Context, s *stream) {
	defer s.cancel()
	rpc, err := b.l.leaser().LeaseKeepAlive(ctx)
	if err == nil {
		b.mu.Lock()
		s.rpc = rpc
		for _, x := range s.waiting {
			s.send(x)
		}
		b.mu.Unlock()
	}
	for err == nil {
		var resp *pb.LeaseKeepAliveResponse
		if resp, err = rpc.Recv(); err == nil {
			b.answer(s, resp)
		}
	}
	if err = rpctypes.Error(err); codeOf(err) == codes.Canceled {
		err = errSilent
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.streams = slices.DeleteFunc(b.streams, func(x *stream) bool { return x == s })
	for _, x := range s.waiting {
		x.done <- err
	}
}

// answer tells the first who waits on s, and gives up all other streams.
func (b *beats) answer(s *stream, resp *pb.LeaseKeepAliveResponse) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, x := range b.streams {
		if x != s {
			x.cancel()
		}
	}
	if b.streams = []*stream{s}; len(s.waiting) == 0 || int64(s.waiting[0].le.id) != resp.ID {
		return // it answers nothing that was asked
	}
	var err error
	if resp.TTL <= 0 {
		err = rpctypes.ErrLeaseNotFound
	}
	s.waiting[0].done <- err
	s.waiting = s.waiting[1:]
}
