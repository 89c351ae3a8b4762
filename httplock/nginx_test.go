package httplock_test

import (
	"testing"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest"
)

// TestSuiteBehindNginx runs the suite, with its odd keys, through a reverse proxy.
func TestSuiteBehindNginx(t *testing.T) {
	alone(t)
	testserver.NeedServer(t)
	t.Parallel()
	p := protocol()
	h := p.Harness(onMemory)
	h.New = func(tb testing.TB) func() lock.Locker {
		st := onMemory(tb)
		s := serve(tb, st.Open)
		nginx := testserver.Nginx(tb, s.Addr)
		return func() lock.Locker { return p.Connect(tb, nginx.Addr(), st, s) }
	}
	locktest.Run(t, h)
}
