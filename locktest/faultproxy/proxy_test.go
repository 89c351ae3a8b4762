package faultproxy_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/seed-215fdefa/lock/locktest/faultproxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	forever = time.Minute            // for what must come
	moment  = 100 * time.Millisecond // for what must not
)

// server answers each line with "re:" before it, and keeps what it was asked.
type server struct {
	addr string
	mu   sync.Mutex // guards seen
	seen []string
}

func newServer(tb testing.TB) *server {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	s := &server{addr: listener.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { s.serve(conn) })
		}
	})
	tb.Cleanup(func() {
		_ = listener.Close()
		wg.Wait()
	})
	return s
}

func (s *server) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		s.mu.Lock()
		s.seen = append(s.seen, lines.Text())
		s.mu.Unlock()
		if _, err := fmt.Fprintf(conn, "re:%s\n", lines.Text()); err != nil {
			return
		}
	}
}

func (s *server) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string{}, s.seen...)
}

// client is a connection that is asked by lines.
type client struct {
	tb testing.TB
	net.Conn
	replies *bufio.Reader
}

func dial(tb testing.TB, p *faultproxy.Proxy) *client {
	conn, err := net.Dial("tcp", p.Addr())
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = conn.Close() })
	return &client{tb, conn, bufio.NewReader(conn)}
}

func (c *client) send(line string) {
	_, err := c.Write([]byte(line + "\n"))
	require.NoError(c.tb, err)
}

// reply is the next one within limit: "late" if none comes, "gone" if the connection broke.
func (c *client) reply(limit time.Duration) string {
	require.NoError(c.tb, c.SetReadDeadline(time.Now().Add(limit)))
	line, err := c.replies.ReadString('\n')
	var timeout net.Error
	switch {
	case err == nil:
		return line[:len(line)-1]
	case errors.As(err, &timeout) && timeout.Timeout():
		return "late"
	}
	return "gone"
}

func (c *client) ask(line string) string {
	c.send(line)
	return c.reply(forever)
}

func TestPasses(t *testing.T) {
	c := dial(t, faultproxy.New(t, newServer(t).addr))
	assert.Equal(t, "re:1", c.ask("1"))
	assert.Equal(t, "re:2", c.ask("2"))
}

func TestCut(t *testing.T) {
	s := newServer(t)
	p := faultproxy.New(t, s.addr)
	c := dial(t, p)
	require.Equal(t, "re:before", c.ask("before"))
	heal := p.Cut()
	assert.Equal(t, "gone", c.reply(forever))
	assert.Equal(t, "gone", dial(t, p).reply(forever))
	heal()
	assert.Equal(t, "re:after", dial(t, p).ask("after"))
	assert.Equal(t, []string{"before", "after"}, s.asked())
}

func TestCutsAddUp(t *testing.T) {
	p := faultproxy.New(t, newServer(t).addr)
	first, second := p.Cut(), p.Cut()
	first()
	first() // again
	assert.Equal(t, "gone", dial(t, p).reply(forever))
	second()
	assert.Equal(t, "re:after", dial(t, p).ask("after"))
}

// TestCutOfAConnectionThatIsBeingMade: it does not come to life when the server does, nor when the
// fault has ended.
func TestCutOfAConnectionThatIsBeingMade(t *testing.T) {
	target, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, target.Close())
	p := faultproxy.New(t, target.Addr().String(), faultproxy.WithPatience(forever))
	c := dial(t, p)
	heal := p.Cut()
	assert.Equal(t, "gone", c.reply(forever/2))
	assert.Equal(t, "gone", dial(t, p).reply(forever/2))
	heal()
}

// TestHalfClose: a client that has said all still gets the reply.
func TestHalfClose(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = listener.Close() }()
	c := dial(t, faultproxy.New(t, listener.Addr().String()))
	conn, err := listener.Accept()
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	c.send("all")
	require.NoError(t, c.Conn.(*net.TCPConn).CloseWrite())
	got, err := io.ReadAll(conn)
	require.NoError(t, err)
	_, err = conn.Write(append([]byte("re:"), got...))
	require.NoError(t, err)
	assert.Equal(t, "re:all", c.reply(forever))
}

// TestHoldOutlivesTheClient: what it sent is delivered, also if a reply to it cannot be any more.
func TestHoldOutlivesTheClient(t *testing.T) {
	s := newServer(t)
	p := faultproxy.New(t, s.addr)
	for i := range 30 {
		c := dial(t, p)
		replies := p.Hold(faultproxy.Replies())
		c.send("first")
		<-replies.Hit()
		requests := p.Hold(faultproxy.Requests())
		c.send("second")
		<-requests.Hit()
		require.NoError(t, c.Conn.(*net.TCPConn).SetLinger(0))
		require.NoError(t, c.Close())
		replies.Heal()
		requests.Heal()
		require.Eventually(t, func() bool { return len(s.asked()) == 2*i+2 }, forever, time.Millisecond)
	}
}

// TestFreeze: what was sent meanwhile arrives after the thaw, also when nobody waits for
// the answer any more.
func TestFreeze(t *testing.T) {
	s := newServer(t)
	p := faultproxy.New(t, s.addr)
	c := dial(t, p)
	heal := p.Freeze()
	c.send("1")
	require.Equal(t, "late", c.reply(moment))
	require.NoError(t, c.Close())
	require.Empty(t, s.asked())
	heal()
	require.Eventually(t, func() bool { return len(s.asked()) == 1 }, forever, time.Millisecond)
}

func TestHoldReplies(t *testing.T) {
	s := newServer(t)
	p := faultproxy.New(t, s.addr)
	c := dial(t, p)
	fault := p.Hold(faultproxy.Replies())
	c.send("1")
	<-fault.Hit()
	require.Equal(t, []string{"1"}, s.asked())
	require.Equal(t, "late", c.reply(moment))
	fault.Heal()
	fault.Heal() // again
	require.Equal(t, "re:1", c.reply(forever))
}

// TestHoldNth: the second reply stalls, what is behind it on its connection too, another
// connection does not.
func TestHoldNth(t *testing.T) {
	p := faultproxy.New(t, newServer(t).addr)
	c, other := dial(t, p), dial(t, p)
	fault := p.Hold(faultproxy.Replies().Nth(2))
	require.Equal(t, "re:1", c.ask("1"))
	c.send("2")
	<-fault.Hit()
	c.send("3")
	require.Equal(t, "late", c.reply(moment))
	require.Equal(t, "re:4", other.ask("4"))
	require.Equal(t, 1, fault.Hits())
	fault.Heal()
	require.Equal(t, "re:2", c.reply(forever))
	require.Equal(t, "re:3", c.reply(forever))
}

func TestLoseNthRequest(t *testing.T) {
	s := newServer(t)
	p := faultproxy.New(t, s.addr)
	c := dial(t, p)
	fault := p.Lose(faultproxy.Requests().Nth(2))
	require.Equal(t, "re:1", c.ask("1"))
	require.Equal(t, "gone", c.ask("2"))
	require.Equal(t, "re:3", dial(t, p).ask("3"))
	require.Equal(t, 1, fault.Hits())
	require.Equal(t, []string{"1", "3"}, s.asked())
}

func TestLoseReplies(t *testing.T) {
	s := newServer(t)
	p := faultproxy.New(t, s.addr)
	fault := p.Lose(faultproxy.Replies().From(2))
	c := dial(t, p)
	require.Equal(t, "re:1", c.ask("1"))
	require.Equal(t, "gone", c.ask("2"))
	require.Equal(t, "gone", dial(t, p).ask("3"))
	fault.Heal()
	require.Equal(t, "re:4", dial(t, p).ask("4"))
	require.Equal(t, []string{"1", "2", "3", "4"}, s.asked(), "requests pass")
}

// TestTear: the message arrives without its last byte, and nothing arrives after it.
func TestTear(t *testing.T) {
	s := newServer(t)
	p := faultproxy.New(t, s.addr)
	c := dial(t, p)
	fault := p.Tear(faultproxy.Replies().Nth(2))
	require.Equal(t, "re:1", c.ask("1"))
	c.send("second")
	require.NoError(t, c.SetReadDeadline(time.Now().Add(forever)))
	torn, _ := io.ReadAll(c.replies)
	assert.Equal(t, "re:second", string(torn), "without its newline")
	assert.Equal(t, 1, fault.Hits())
	assert.Equal(t, "re:3", dial(t, p).ask("3"))
	assert.Equal(t, []string{"1", "second", "3"}, s.asked())
}

func TestDropMatching(t *testing.T) {
	p := faultproxy.New(t, newServer(t).addr)
	c := dial(t, p)
	fault := p.Drop(faultproxy.Replies().Matching(func(m []byte) bool { return bytes.HasPrefix(m, []byte("re:drop")) }))
	require.Equal(t, "re:1", c.ask("1"))
	c.send("drop")
	<-fault.Hit()
	require.Equal(t, "re:2", c.ask("2"))
	fault.Heal()
	require.Equal(t, "re:drop", c.ask("drop"))
}

// TestDelay: a delay is one of latency, not of throughput.
func TestDelay(t *testing.T) {
	p := faultproxy.New(t, newServer(t).addr)
	c := dial(t, p)
	const way = 100 * time.Millisecond
	fault := p.Delay(faultproxy.All(), way)
	begin := time.Now()
	require.Equal(t, "re:1", c.ask("1"))
	require.GreaterOrEqual(t, time.Since(begin), 2*way)
	begin = time.Now()
	const n = 500
	for i := range n {
		c.send(fmt.Sprint(i))
		time.Sleep(10 * time.Microsecond)
	}
	for i := range n {
		require.Equal(t, fmt.Sprint("re:", i), c.reply(forever), "in order")
	}
	require.Less(t, time.Since(begin), n*way/2, "one after the other it would be twice that")
	fault.Heal()
	require.Equal(t, "re:2", c.ask("2"))
}

// TestFaultsAddUp: what is held when another fault begins meets that one too.
func TestFaultsAddUp(t *testing.T) {
	p := faultproxy.New(t, newServer(t).addr)
	c := dial(t, p)
	held := p.Hold(faultproxy.Replies())
	c.send("1")
	<-held.Hit()
	dropped := p.Drop(faultproxy.Replies().Nth(1))
	held.Heal()
	<-dropped.Hit()
	require.Equal(t, "re:2", c.ask("2"))
	require.Equal(t, 1, dropped.Hits())
}

func TestFraming(t *testing.T) {
	s := newServer(t)
	p := faultproxy.New(t, s.addr, faultproxy.WithFraming(bufio.ScanLines, bufio.ScanLines))
	c := dial(t, p)
	fault := p.Drop(faultproxy.Requests().Nth(2))
	for _, part := range []string{"a", "b\nc\n", "d\n"} { // "c" is the second, and alone
		_, err := c.Write([]byte(part))
		require.NoError(t, err)
	}
	require.Equal(t, "re:ab", c.reply(forever))
	require.Equal(t, "re:d", c.reply(forever))
	require.Equal(t, 1, fault.Hits())
	broken := faultproxy.WithFraming(func([]byte, bool) (int, []byte, error) { return 0, nil, io.ErrNoProgress }, nil)
	require.Equal(t, "gone", dial(t, faultproxy.New(t, s.addr, broken)).ask("1"))
}

// TestPatience: a connection that comes before its target listens stays open until then,
// and one to a target that never listens is closed.
func TestPatience(t *testing.T) {
	target, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := target.Addr().String()
	require.NoError(t, target.Close())
	early := dial(t, faultproxy.New(t, addr, faultproxy.WithPatience(forever)))
	require.Equal(t, "gone", dial(t, faultproxy.New(t, addr)).reply(forever))
	require.Equal(t, "late", early.reply(moment), "it is closed, as if the target had hung up")
	target, err = net.Listen("tcp", addr)
	require.NoError(t, err)
	defer func() { _ = target.Close() }()
	conn, err := target.Accept()
	require.NoError(t, err)
	defer func() { _ = conn.Close() }()
	_, err = conn.Write([]byte("x\n"))
	require.NoError(t, err)
	require.Equal(t, "x", early.reply(forever))
}

// TestCloseWithFaults: nothing waits for a fault that nobody heals. TestMain looks for
// what is left.
func TestCloseWithFaults(t *testing.T) {
	s := newServer(t)
	p, err := faultproxy.Start(s.addr, faultproxy.WithPatience(forever))
	require.NoError(t, err)
	held, delayed := p.Hold(faultproxy.Replies()), p.Delay(faultproxy.Requests().From(2), forever)
	a, b := dial(t, p), dial(t, p)
	a.send("1")
	<-held.Hit()
	b.send("2")
	<-delayed.Hit()
	p.Close()
	require.Equal(t, "gone", a.reply(forever))
	require.Equal(t, "gone", b.reply(forever))
	held.Heal()
}

func TestMessagesAreCountedFromOne(t *testing.T) {
	assert.PanicsWithValue(t, "faultproxy: message 0: they are counted from 1", func() { faultproxy.Replies().Nth(0) })
	assert.Panics(t, func() { faultproxy.Requests().From(-1) })
}
