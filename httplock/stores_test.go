package httplock_test

import (
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"testing"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/servicetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/locktest"
)

func TestSuiteOverRedis(t *testing.T)    { over(t, onRedis, locktest.Run) }
func TestSuiteOverPostgres(t *testing.T) { over(t, onPostgres, locktest.Run) }

func TestClientSuiteOverRedis(t *testing.T) {
	many(t)
	over(t, onRedis, locktest.RunClient)
}

func TestClientSuiteOverPostgres(t *testing.T) {
	many(t)
	over(t, onPostgres, locktest.RunClient)
}

func over(t *testing.T, on func(testing.TB) *servicetest.Store, run func(*testing.T, locktest.Harness)) {
	t.Helper()
	alone(t)
	testserver.NeedServer(t)
	t.Parallel()
	run(t, protocol().Harness(on))
}

// many skips what takes minutes and adds little to the suites of other stores and replicas.
func many(t *testing.T) {
	t.Helper()
	if os.Getenv("LOCK_TEST_MANY") == "" {
		t.Skip("LOCK_TEST_MANY=1 runs it: it takes minutes")
	}
}

// TestSuiteOfTwoReplicas sends each request to either of two services on one store, at random.
func TestSuiteOfTwoReplicas(t *testing.T) {
	many(t)
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		locktest.Run(t, replicated(onMemory))
	})
	t.Run("redis", func(t *testing.T) {
		testserver.NeedServer(t)
		t.Parallel()
		h := replicated(onRedis)
		h.Skips = map[string]string{
			"Admin/ForceRelease":                  "only the replica that granted hears of it, and the renewal may reach the other: the reason is unknown",
			"WakeupsAreHints/PromptForAllReaders": thrownAbout,
			"WakeupsAreHints/Prompt":              thrownAbout,
			"WakeupsAreHints/PromptAfterAnUndo":   thrownAbout,
		}
		locktest.Run(t, h)
	})
	t.Run("postgres", func(t *testing.T) {
		testserver.NeedServer(t)
		t.Parallel()
		locktest.Run(t, replicated(onPostgres))
	})
}

// thrownAbout is why some things take a recheck more. The clients of other tests keep to one replica
// while that is there.
const thrownAbout = "of the two replicas that stand in line for an owner the store wakes one, which may not be the one that is being polled"

// replicated is a harness whose clients reach two replicas, at random, through a reverse proxy.
func replicated(on func(testing.TB) *servicetest.Store) locktest.Harness {
	h := protocol().Harness(on)
	h.New = func(tb testing.TB) func() lock.Locker {
		st := on(tb)
		replicas := []*servicetest.Service{serve(tb, st.Open), serve(tb, st.Open)}
		front := httptest.NewServer(&httputil.ReverseProxy{
			Rewrite: func(r *httputil.ProxyRequest) {
				r.Out.URL.Scheme, r.Out.URL.Host = "http", replicas[rand.N(2)].Addr
			},
			ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
		})
		tb.Cleanup(front.Close)
		return func() lock.Locker { return protocol().Connect(tb, front.Listener.Addr().String(), st, replicas[0]) }
	}
	return h
}
