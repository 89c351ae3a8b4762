package etcd_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
)

var quiet = zap.NewNop()

// connect returns a client of the members at addrs that says nothing about the faults that
// the tests make.
func connect(addrs ...string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: addrs, DialTimeout: 5 * time.Second, Logger: quiet,
		DialKeepAliveTime: time.Second, DialKeepAliveTimeout: time.Second,
	})
}

// plain is a client beside all Lockers.
func plain(tb testing.TB, addrs ...string) *clientv3.Client {
	tb.Helper()
	cli, err := connect(addrs...)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = cli.Close() })
	return cli
}

// process is a Locker with a client of its own, whose way to its server can be broken.
type process struct {
	*etcd.Locker
	cli    *clientv3.Client
	proxy  *faultproxy.Proxy // nil: it has several servers
	server *testserver.Server
	prefix string
	deaf   *deafWatcher
	kv     *faultyKV
	way    atomic.Pointer[clientv3.Client] // by which etcd leases are asked for; nil: its own

	cluster *testserver.EtcdCluster // nil: it has one server
}

func (p *process) Unwrap() lock.Locker { return p.Locker }

// open returns one more process on the server.
func open(tb testing.TB, server *testserver.Server, prefix string, opts ...etcd.Option) *process {
	tb.Helper()
	proxy := faultproxy.New(tb, server.Addr())
	p := openOn(tb, prefix, []string{proxy.Addr()}, opts...)
	p.proxy, p.server = proxy, server
	return p
}

// openOn returns one more process on a cluster.
func openOn(tb testing.TB, prefix string, addrs []string, opts ...etcd.Option) *process {
	tb.Helper()
	cli, err := connect(addrs...)
	require.NoError(tb, err)
	p := &process{
		cli: cli, prefix: prefix,
		deaf: &deafWatcher{Watcher: cli.Watcher}, kv: &faultyKV{KV: cli.KV},
	}
	cli.Watcher, cli.KV = p.deaf, p.kv
	p.Locker = etcd.New(cli, append([]etcd.Option{etcd.WithPrefix(prefix)}, opts...)...)
	p.GrantBy(p.way.Load)
	tb.Cleanup(func() {
		require.NoError(tb, p.Close())
		_ = cli.Close()
	})
	return p
}

// grantBy has cli ask for etcd leases.
func (p *process) grantBy(cli *clientv3.Client) { p.way.Store(cli) }

// deafWatcher is a client's watcher that can be made to miss all events, or to be behind.
type deafWatcher struct {
	clientv3.Watcher
	mu     sync.Mutex // guards the rest
	deaf   bool
	behind chan struct{} // if not nil, events wait until it is closed
	cut    chan struct{} // if not nil, it is closed when one watch has told the first of several events, and tells no more
}

// delay has events wait until heal.
func (w *deafWatcher) delay() (heal func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.behind = make(chan struct{})
	return sync.OnceFunc(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		close(w.behind)
		w.behind = nil
	})
}

// late waits until events are not behind.
func (w *deafWatcher) late(ctx context.Context) {
	w.mu.Lock()
	behind := w.behind
	w.mu.Unlock()
	if behind == nil {
		return
	}
	select {
	case <-behind:
	case <-ctx.Done():
	}
}

func (w *deafWatcher) set(deaf bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deaf = deaf
}

func (w *deafWatcher) isDeaf() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.deaf
}

// catchUp has the next watch with several events to tell tell one, and no more: a server that catches up
// tells no more than 1,000 revisions at once, all as of the present. It returns what is closed then.
func (w *deafWatcher) catchUp() (told <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = make(chan struct{})
	return w.cut
}

func (w *deafWatcher) isCut(resp clientv3.WatchResponse) (cut chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(resp.Events) > 1 {
		cut, w.cut = w.cut, nil
	}
	return cut
}

// Watch passes on what it hears.
func (w *deafWatcher) Watch(ctx context.Context, key string, opts ...clientv3.OpOption) clientv3.WatchChan {
	in, out := w.Watcher.Watch(ctx, key, opts...), make(chan clientv3.WatchResponse)
	go func() {
		defer close(out)
		for resp := range in {
			if w.isDeaf() {
				continue
			}
			w.late(ctx)
			cut := w.isCut(resp)
			if cut != nil {
				resp.Events = resp.Events[:1]
			}
			select {
			case out <- resp:
			case <-ctx.Done():
			}
			if cut != nil {
				close(cut)
				<-ctx.Done()
			}
		}
	}()
	return out
}
