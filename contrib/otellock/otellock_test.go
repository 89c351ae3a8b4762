package otellock

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// world is a Client under observation.
type world struct {
	t      *testing.T
	store  *memory.Faulty
	client *lock.Client
	reader *metric.ManualReader
	spans  *tracetest.SpanRecorder
}

func newWorld(t *testing.T) world {
	t.Helper()
	w := world{t: t, store: memory.NewFaulty(), reader: metric.NewManualReader(), spans: tracetest.NewSpanRecorder()}
	w.client = lock.New(w.store, lock.WithObserver(New(
		WithMeterProvider(metric.NewMeterProvider(metric.WithReader(w.reader))),
		WithTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(w.spans))),
		WithKeyClass(func(key string) string { class, _, _ := strings.Cut(key, ":"); return class }),
	)))
	t.Cleanup(func() {
		assert.NoError(t, w.client.Close(context.Background()))
		assert.NoError(t, w.store.Close())
	})
	return w
}

// count is how often name was measured with all of attrs: a histogram's count, a sum's value.
func (w world) count(name string, attrs ...attribute.KeyValue) int {
	w.t.Helper()
	var all metricdata.ResourceMetrics
	require.NoError(w.t, w.reader.Collect(context.Background(), &all))
	n := 0
	for _, s := range all.ScopeMetrics {
		for _, m := range s.Metrics {
			if m.Name != name {
				continue
			}
			switch d := m.Data.(type) {
			case metricdata.Histogram[float64]:
				for _, p := range d.DataPoints {
					if has(p.Attributes, attrs) {
						n += int(p.Count)
					}
				}
			case metricdata.Sum[int64]:
				for _, p := range d.DataPoints {
					if has(p.Attributes, attrs) {
						n += int(p.Value)
					}
				}
			}
		}
	}
	return n
}

func has(s attribute.Set, attrs []attribute.KeyValue) bool {
	for _, a := range attrs {
		if v, ok := s.Value(a.Key); !ok || v != a.Value {
			return false
		}
	}
	return true
}

func outcomeIs(s string) attribute.KeyValue { return attribute.String("lock.outcome", s) }

func TestHold(t *testing.T) {
	w := newWorld(t)
	store := attribute.String("lock.store", "memory")
	class := attribute.String("lock.key_class", "order")
	require.NoError(t, w.client.Do(t.Context(), "order:1", func(_ context.Context, l *lock.Lease) error {
		assert.Equal(t, 1, w.count("lock.held", store, class))
		require.NoError(t, l.Renew(t.Context()))
		return nil
	}))
	assert.Equal(t, 1, w.count("lock.acquire.duration", store, class, outcomeIs("granted"), attribute.Bool("lock.shared", false)))
	assert.Equal(t, 1, w.count("lock.hold.duration", outcomeIs("released")))
	assert.Equal(t, 1, w.count("lock.renew.slack"))
	assert.Zero(t, w.count("lock.held"))

	spans := w.spans.Ended()
	require.Len(t, spans, 2)
	assert.Equal(t, "lock.acquire", spans[0].Name())
	assert.Equal(t, "lock.hold", spans[1].Name())
	assert.Contains(t, spans[1].Attributes(), attribute.String("lock.key", "order:1"))
}

func TestWait(t *testing.T) {
	w := newWorld(t)
	l, err := w.client.Lock(t.Context(), "order:1")
	require.NoError(t, err)
	_, err = w.client.TryLock(t.Context(), "order:1")
	require.ErrorIs(t, err, lock.ErrHeld)
	assert.Equal(t, 1, w.count("lock.acquire.duration", outcomeIs("held")))

	ctx, cancel := context.WithCancel(t.Context())
	canceled := make(chan error)
	go func() { _, err := w.client.Lock(ctx, "order:1"); canceled <- err }()
	require.Eventually(t, func() bool { return w.count("lock.waiting") == 1 }, time.Minute, time.Millisecond)
	cancel()
	require.ErrorIs(t, <-canceled, context.Canceled)
	require.Eventually(t, func() bool { // another goroutine may be telling it
		return w.count("lock.waiting") == 0 && w.count("lock.acquire.duration", outcomeIs("canceled")) == 1
	}, time.Minute, time.Millisecond)
	require.NoError(t, l.Release(t.Context()))
}

func TestLoss(t *testing.T) {
	w := newWorld(t)
	l, err := w.client.Lock(t.Context(), "order:1")
	require.NoError(t, err)
	require.NoError(t, w.client.ForceRelease(t.Context(), "order:1", l.Owner()))
	<-l.Context().Done()
	require.ErrorIs(t, l.Release(t.Context()), lock.ErrLost)
	require.Eventually(t, func() bool { return w.count("lock.lost") == 1 }, time.Minute, time.Millisecond)
	assert.Equal(t, 1, w.count("lock.lost", attribute.String("lock.reason", "forced")))
	assert.Equal(t, 1, w.count("lock.hold.duration", outcomeIs("lost")))
	assert.Zero(t, w.count("lock.held"))
	spans := w.spans.Ended()
	assert.Equal(t, codes.Error, spans[len(spans)-1].Status().Code)
}

// TestLossesBeginWithZero: the counter of each reason is there before its first loss.
func TestLossesBeginWithZero(t *testing.T) {
	w := newWorld(t)
	for range 2 {
		require.NoError(t, w.client.Do(t.Context(), "order:1", func(context.Context, *lock.Lease) error { return nil }))
	}
	var all metricdata.ResourceMetrics
	require.NoError(t, w.reader.Collect(t.Context(), &all))
	reasons := map[string]int64{}
	for _, m := range all.ScopeMetrics[0].Metrics {
		if m.Name == "lock.lost" {
			for _, p := range m.Data.(metricdata.Sum[int64]).DataPoints {
				reason, _ := p.Attributes.Value("lock.reason")
				reasons[reason.AsString()] = p.Value
			}
		}
	}
	assert.Equal(t, map[string]int64{"expired": 0, "taken": 0, "forced": 0, "unreachable": 0, "unknown": 0}, reasons)
}

func TestOutcome(t *testing.T) {
	for err, want := range map[error]string{
		lock.ErrUnavailable: "unavailable", lock.ErrClosed: "failed",
		errors.Join(lock.ErrHeld, context.Canceled): "canceled", context.DeadlineExceeded: "canceled",
		errors.Join(lock.ErrUnavailable, context.DeadlineExceeded): "unavailable",
		errors.Join(lock.ErrHeld, lock.ErrUnavailable):             "unavailable",
	} {
		assert.Equal(t, want, outcome(err), err)
	}
}

// TestHangingStore: that the store does not answer is not the caller's doing.
func TestHangingStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.store.Freeze()
		_, err := w.client.TryLock(t.Context(), "order:1")
		require.ErrorIs(t, err, lock.ErrUnavailable)
		_, err = w.client.Lock(t.Context(), "order:1", lock.WithWait(time.Second))
		require.ErrorIs(t, err, lock.ErrUnavailable)
		assert.Equal(t, 2, w.count("lock.acquire.duration", outcomeIs("unavailable")))
		w.store.Heal()
	})
}

// BenchmarkDo shows what the Observer costs, with the SDK's metrics and without spans.
func BenchmarkDo(b *testing.B) {
	nothing := func(context.Context, *lock.Lease) error { return nil }
	for name, opts := range map[string][]lock.Option{
		"bare": nil,
		"observed": {lock.WithObserver(New(
			WithMeterProvider(metric.NewMeterProvider(metric.WithReader(metric.NewManualReader()))),
			WithTracerProvider(tracenoop.NewTracerProvider())))},
	} {
		b.Run(name, func(b *testing.B) {
			client := lock.New(memory.New(), opts...)
			defer client.Close(context.Background())
			b.ReportAllocs()
			for b.Loop() {
				if err := client.Do(b.Context(), "order:1", nothing); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
