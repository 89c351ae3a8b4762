package httplock_test

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/httplock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
	"github.com/seed-215fdefa/lock/memory"
)

// TestDeadHTTP2Connection has all packets of a connection vanish. A renewal finds another one in time.
func TestDeadHTTP2Connection(t *testing.T) {
	t.Parallel()
	store := memory.New()
	defer store.Close()
	h := httplock.NewHandler(store)
	defer h.Close()
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	proxy := faultproxy.New(t, s.Listener.Addr().String())
	l := httplock.New("https://" + proxy.Addr())
	defer l.Close()
	httplock.Transport(l).TLSClientConfig = s.Client().Transport.(*http.Transport).TLSClientConfig.Clone()

	g := storetest.Acquire(t, l, storetest.Request("k"))
	defer proxy.Hold(faultproxy.Requests().Nth(1)).Heal()
	g, err := l.Renew(storetest.Bounded(t), g)
	require.NoError(t, err)
	storetest.Release(t, l, g)
}
