package dynamo_test

import (
	"io"
	"net"
	"net/http"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/internal/storetest"
)

// TestTornReplies: a connection breaks in the middle of a reply. That is no answer, whatever its
// status says. The SDK breaks one itself when a reply overtakes the end of its request: it closes
// the request's body, net/http then fails to read that to its end and closes the connection.
func TestTornReplies(t *testing.T) {
	t.Parallel()
	for name, broken := range map[string]error{
		"closed": &net.OpError{Op: "read", Net: "tcp", Err: net.ErrClosed},
		"reset":  &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET},
		"ended":  io.ErrUnexpectedEOF,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := sharedWorld(t)
			p, other := w.open(t), w.open(t)
			torn := 0
			p.http.set(nil, func(_ string, resp *http.Response) (*http.Response, error) {
				if torn++; torn%2 == 1 { // so that each operation meets it, and passes the second time
					resp.Body = &tornBody{resp.Body, broken}
				}
				return resp, nil
			})
			g := storetest.Acquire(t, p, storetest.Request("k"))
			storetest.Holds(t, p, g)
			storetest.Holds(t, other, g)
			r := storetest.Renew(t, p, g)
			storetest.Release(t, p, r)
			require.Empty(t, storetest.Inspect(t, other, "k").Holders)
			require.Greater(t, torn, 7)
		})
	}
}

// tornBody ends after its first byte.
type tornBody struct {
	io.ReadCloser
	err error
}

func (b *tornBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), 1)])
	if err == nil {
		err = b.err
	}
	return n, err
}
