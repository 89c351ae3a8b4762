package faultproxy

import (
	"bytes"
	"context"
	"net"
	"sync"
	"time"
)

// backlog is how many messages of one direction may be under way before the proxy stops
// to read, as a network of limited buffers does.
const backlog = 256

// link is one connection through the proxy.
type link struct {
	client net.Conn
	server net.Conn        // nil until it is dialed; until then the proxy's mu guards it
	ctx    context.Context // ends when the link breaks
	cancel context.CancelFunc
}

// message is data on its way.
type message struct {
	data []byte
	due  time.Time // when it may be delivered
}

// serve passes messages until the link breaks, or neither side can be sent anything more.
func (l *link) serve(p *Proxy) {
	var readers, writers sync.WaitGroup
	for d, ends := range [2][2]net.Conn{toServer: {l.client, l.server}, toClient: {l.server, l.client}} {
		queue := make(chan message, backlog)
		readers.Go(func() { l.read(p, direction(d), ends[0], queue) })
		writers.Go(func() { l.deliver(p, direction(d), ends[1], queue) })
	}
	writers.Wait()
	l.close()
	readers.Wait()
}

// read puts what comes from src into queue, and closes it at the end.
func (l *link) read(p *Proxy, d direction, src net.Conn, queue chan<- message) {
	defer close(queue)
	buf := make([]byte, 64<<10)
	var rest []byte // the beginning of a message
	for {
		n, err := src.Read(buf)
		rest = append(rest, buf[:n]...)
		for len(rest) > 0 {
			size := len(rest)
			if split := p.framing[d]; split != nil && err == nil {
				advance, _, bad := split(rest, false)
				if bad != nil {
					l.close()
					return
				}
				if size = advance; size <= 0 {
					break
				}
			}
			data := bytes.Clone(rest[:size])
			rest = rest[size:]
			select {
			case queue <- message{data, time.Now().Add(p.delay(d, data))}:
			case <-l.ctx.Done():
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// deliver writes what is in queue to dst, except what a fault takes. At the end of queue it tells
// dst that no more will come, and the other direction goes on. So it does when dst has hung up.
func (l *link) deliver(p *Proxy, d direction, dst net.Conn, queue <-chan message) {
	for m := range queue {
		if wait := time.Until(m.due); wait > 0 && !l.sleep(wait) || l.ctx.Err() != nil {
			return
		}
		switch l.fate(p, d, m.data) {
		case lose:
			l.close()
			return
		case tear:
			_, _ = dst.Write(m.data[:len(m.data)-1])
			l.close()
			return
		case drop:
			continue
		}
		if _, err := dst.Write(m.data); err != nil {
			return
		}
	}
	if half, ok := dst.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}

// fate takes data past the faults, and returns when it has been held for as long as they
// say: lose, tear, drop, or pass.
func (l *link) fate(p *Proxy, d direction, data []byte) action {
	for seq := 0; ; {
		f := p.next(d, data, seq)
		switch {
		case f == nil:
			return pass
		case f.act != hold:
			return f.act
		}
		seq = f.seq
		select {
		case <-f.healed:
		case <-l.ctx.Done():
			return lose
		}
	}
}

// sleep reports whether the link lived through d.
func (l *link) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-l.ctx.Done():
		return false
	}
}

// close breaks the link. It may be called more than once.
func (l *link) close() {
	l.cancel()
	_ = l.client.Close()
	if l.server != nil {
		_ = l.server.Close()
	}
}
