package main

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/seed-215fdefa/lock/httplock"
)

// telemetry is what the service tells of its calls: the audit log and metrics.
type telemetry struct {
	audit *slog.Logger

	registry    *prometheus.Registry
	requests    *prometheus.CounterVec
	durations   *prometheus.HistogramVec
	storeErrors prometheus.Counter
	auditErrors prometheus.Counter
}

// newTelemetry returns one whose audit log goes to w.
func newTelemetry(w io.Writer) *telemetry {
	t := &telemetry{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lockd_requests_total", Help: "Requests, by action and outcome.",
		}, []string{"action", "outcome"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "lockd_request_duration_seconds", Help: "How long requests took, watches and event streams left out. A poll of a waiter is a request.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"action"}),
		storeErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lockd_store_errors_total", Help: "Requests that the store did not answer, or with a failure.",
		}),
		auditErrors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "lockd_audit_errors_total", Help: "Lines of the audit log that could not be written.",
		}),
	}
	t.registry.MustRegister(t.requests, t.durations, t.storeErrors, t.auditErrors,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	t.audit = slog.New(slog.NewJSONHandler(counted{w, t.auditErrors}, nil))
	return t
}

// waiting adds the gauge of how many wait.
func (t *telemetry) waiting(n func() int) {
	t.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "lockd_waiting", Help: "How many stand in line at this replica.",
	}, func() float64 { return float64(n()) }))
}

// observe is the handler's observer.
func (t *telemetry) observe(r *http.Request, c httplock.Call) {
	action := string(c.Action)
	if action == "" {
		action = "unknown"
	}
	t.requests.WithLabelValues(action, c.Outcome).Inc()
	if c.Action != httplock.ActionWatch && c.Action != httplock.ActionEvents {
		t.durations.WithLabelValues(action).Observe(c.Elapsed.Seconds())
	}
	if !audited(c) {
		return
	}
	t.audit.LogAttrs(context.Background(), slog.LevelInfo, "audit",
		slog.String("caller", nameOf(r)), slog.String("remote", r.RemoteAddr), slog.String("action", action),
		slog.String("key", c.Key), slog.String("owner", c.Owner), slog.Uint64("token", uint64(c.Token)),
		slog.String("outcome", c.Outcome))
}

// audited reports whether c belongs into the audit log: what has changed, or may have, who holds a
// lock, what was refused, and how a hold was lost.
func audited(c httplock.Call) bool {
	switch c.Action {
	case httplock.ActionAcquire, httplock.ActionRelease, httplock.ActionForce:
		return c.Outcome != httplock.OutcomeWaiting
	case httplock.ActionRenew:
		return c.Outcome != httplock.OutcomeOK
	}
	return c.Outcome == "unauthenticated" || c.Outcome == "forbidden" || c.Outcome == kindMisdirected
}

// counted counts what could not be written.
type counted struct {
	io.Writer
	failures prometheus.Counter
}

func (c counted) Write(b []byte) (int, error) {
	n, err := c.Writer.Write(b)
	if err != nil {
		c.failures.Inc()
	}
	return n, err
}

// seldom lets one call in a second through.
type seldom struct {
	mu   sync.Mutex // guards last
	last time.Time
}

func (s *seldom) ok() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.last) < time.Second {
		return false
	}
	s.last = time.Now()
	return true
}
