// Package otellock reports to OpenTelemetry what happens to locks: metrics, and a span for each
// wait and each hold.
//
//	client := lock.New(store, lock.WithObserver(otellock.New()))
//
// The instruments, with durations in seconds:
//
//	lock.acquire.duration  histogram  from the call to its grant or failure {outcome}
//	lock.hold.duration     histogram  from the grant to the release or the loss {outcome}
//	lock.renew.slack       histogram  what was left of the lease when it was renewed
//	lock.held              gauge      leases that are held
//	lock.waiting           gauge      calls that wait for a key that is held
//	lock.lost              counter    leases that were lost {reason}; 0 from the first grant on
//	lock.renew.failures    counter    renewals that failed and will be tried again
//
// All have the attributes lock.store, such as "redis", and lock.shared. The outcome of an
// acquisition is granted, held, canceled, unavailable or failed. The outcome of a hold is
// released, lost, or unconfirmed, if the store has not answered the release and the TTL ends the
// grant. A reason is expired, taken, forced, unreachable or unknown.
//
// Keys are not attributes, since there may be millions. Use [WithKeyClass] to group them into a
// few classes.
package otellock

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/seed-215fdefa/lock"
)

const scope = "github.com/seed-215fdefa/lock/contrib/otellock"

// Observer is a [lock.Observer] that reports to OpenTelemetry. It is safe for concurrent use,
// even by several Clients.
type Observer struct {
	acquire, hold, slack metric.Float64Histogram
	lost, failures       metric.Int64Counter
	tracer               trace.Tracer // nil: none
	class                func(key string) string

	mu   sync.RWMutex
	sets map[labels]*set   // of which there are few
	open map[string]*lease // by owner: those that are waited for, and those whose hold is traced
}

var _ lock.Observer = (*Observer)(nil)

// lease is what must be known of an owner later.
type lease struct {
	contended bool
	hold      trace.Span // nil if it is not recorded
}

// set is an attribute set in the forms in which instruments take it, and what the gauges show
// of those that have no outcome.
type set struct {
	add           []metric.AddOption
	record        []metric.RecordOption
	held, waiting atomic.Int64
	granted       sync.Once // its first grant
}

// labels are the values of a measurement's attributes.
type labels struct {
	store, class, outcome, reason string
	shared                        bool
}

// Option changes a default.
type Option func(*settings)

type settings struct {
	meters  metric.MeterProvider
	tracers trace.TracerProvider
	class   func(string) string
}

// WithMeterProvider sets where the metrics go. Default: otel.GetMeterProvider.
func WithMeterProvider(p metric.MeterProvider) Option { return func(s *settings) { s.meters = p } }

// WithTracerProvider sets where the spans go. Default: otel.GetTracerProvider.
func WithTracerProvider(p trace.TracerProvider) Option { return func(s *settings) { s.tracers = p } }

// WithKeyClass adds the attribute lock.key_class to everything. class computes it from the key,
// such as the part before the first colon; it must return few different values and be safe for
// concurrent use. Spans have the key itself, too. Default: no such attribute.
func WithKeyClass(class func(key string) string) Option { return func(s *settings) { s.class = class } }

// New returns an Observer, which lives as long as the meter provider: make one for a program, not
// one for a Client. If the provider refuses an instrument, New reports that to otel's
// error handler, and the instrument measures nothing.
func New(opts ...Option) *Observer {
	s := settings{meters: otel.GetMeterProvider(), tracers: otel.GetTracerProvider()}
	for _, o := range opts {
		o(&s)
	}
	m := s.meters.Meter(scope)
	histogram := func(name, what string) metric.Float64Histogram {
		h, err := m.Float64Histogram(name, metric.WithUnit("s"), metric.WithDescription(what),
			metric.WithExplicitBucketBoundaries(.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300))
		return told(h, err)
	}
	gauge := func(name, unit, what string) metric.Int64ObservableUpDownCounter {
		g, err := m.Int64ObservableUpDownCounter(name, metric.WithUnit(unit), metric.WithDescription(what))
		return told(g, err)
	}
	counter := func(name, unit, what string) metric.Int64Counter {
		c, err := m.Int64Counter(name, metric.WithUnit(unit), metric.WithDescription(what))
		return told(c, err)
	}
	o := &Observer{
		acquire:  histogram("lock.acquire.duration", "From the call to its grant or failure."),
		hold:     histogram("lock.hold.duration", "From the grant to the release or the loss."),
		slack:    histogram("lock.renew.slack", "What was left of the lease when it was renewed."),
		lost:     counter("lock.lost", "{lease}", "Leases that were lost."),
		failures: counter("lock.renew.failures", "{renewal}", "Renewals that failed and will be tried again."),
		class:    s.class,
		sets:     map[labels]*set{},
		open:     map[string]*lease{},
	}
	held := gauge("lock.held", "{lease}", "Leases that are held.")
	waiting := gauge("lock.waiting", "{call}", "Calls that wait for a key that is held.")
	told(m.RegisterCallback(func(_ context.Context, see metric.Observer) error {
		o.mu.RLock()
		defer o.mu.RUnlock()
		for l, s := range o.sets {
			if l.outcome == "" && l.reason == "" {
				of := metric.WithAttributeSet(attribute.NewSet(l.attributes()...))
				see.ObserveInt64(held, s.held.Load(), of)
				see.ObserveInt64(waiting, s.waiting.Load(), of)
			}
		}
		return nil
	}, held, waiting))
	if _, none := s.tracers.(noop.TracerProvider); !none {
		o.tracer = s.tracers.Tracer(scope)
	}
	return o
}

func told[T any](instrument T, err error) T {
	if err != nil {
		otel.Handle(err)
	}
	return instrument
}

// Observe implements [lock.Observer].
func (o *Observer) Observe(ctx context.Context, e lock.Event) {
	switch e.Kind {
	case lock.EventContended:
		o.remember(e.Owner, &lease{contended: true})
		o.set(o.labels(e)).waiting.Add(1)
	case lock.EventGranted:
		o.acquired(ctx, e, "granted")
		l := o.labels(e)
		s := o.set(l)
		s.held.Add(1)
		s.granted.Do(func() { o.noLoss(ctx, l) })
		o.begin(ctx, e)
	case lock.EventFailed:
		o.acquired(ctx, e, outcome(e.Err))
	case lock.EventRenewed:
		o.slack.Record(ctx, e.Slack.Seconds(), o.set(o.labels(e)).record...)
	case lock.EventRenewFailed:
		o.failures.Add(ctx, 1, o.set(o.labels(e)).add...)
	case lock.EventReleased:
		how := "released"
		if e.Err != nil {
			how = "unconfirmed"
		}
		o.ended(ctx, e, how)
	case lock.EventLost, lock.EventReleasedLost:
		o.ended(ctx, e, "lost")
		l := o.labels(e)
		l.reason = reason(e.Err)
		o.lost.Add(ctx, 1, o.set(l).add...)
	}
}

// noLoss has the counters of losses begin with 0: of one that is not there until its first loss,
// nobody can tell that it has risen.
func (o *Observer) noLoss(ctx context.Context, l labels) {
	for r := lock.LostReason(0); r <= lock.ReasonUnreachable; r++ {
		l.reason = r.String()
		o.lost.Add(ctx, 0, o.set(l).add...)
	}
}

// acquired tells how a call went, and that it does not wait any more.
func (o *Observer) acquired(ctx context.Context, e lock.Event, how string) {
	l := o.labels(e)
	if known := o.forget(e.Owner); known != nil && known.contended {
		o.set(l).waiting.Add(-1)
	}
	l.outcome = how
	o.acquire.Record(ctx, e.Waited.Seconds(), o.set(l).record...)

	if o.tracer == nil {
		return
	}
	now := time.Now()
	_, span := o.tracer.Start(ctx, "lock.acquire", trace.WithTimestamp(now.Add(-e.Waited)))
	if span.IsRecording() {
		span.SetAttributes(append(o.describe(e), attribute.String("lock.outcome", how))...)
		fail(span, e.Err)
	}
	span.End(trace.WithTimestamp(now))
}

// begin starts the span of a hold.
func (o *Observer) begin(ctx context.Context, e lock.Event) {
	if o.tracer == nil {
		return
	}
	_, span := o.tracer.Start(ctx, "lock.hold")
	if span.IsRecording() {
		span.SetAttributes(o.describe(e)...)
		o.remember(e.Owner, &lease{hold: span})
	}
}

// ended tells of the end of a hold.
func (o *Observer) ended(ctx context.Context, e lock.Event, how string) {
	l := o.labels(e)
	o.set(l).held.Add(-1)
	l.outcome = how
	o.hold.Record(ctx, e.Held.Seconds(), o.set(l).record...)
	if known := o.forget(e.Owner); known != nil && known.hold != nil {
		span := known.hold
		span.SetAttributes(attribute.String("lock.outcome", how))
		fail(span, e.Err)
		span.End()
	}
}

func fail(span trace.Span, err error) {
	if err != nil {
		span.RecordError(err)
		span.SetStatus(codes.Error, err.Error())
	}
}

// describe are a span's attributes: there the key and the owner have their place.
func (o *Observer) describe(e lock.Event) []attribute.KeyValue {
	return append(o.labels(e).attributes(),
		attribute.String("lock.key", e.Key), attribute.String("lock.owner", e.Owner), attribute.String("lock.token", e.Token.String()))
}

func (o *Observer) labels(e lock.Event) labels {
	l := labels{store: e.Store, shared: e.Shared}
	if o.class != nil {
		l.class = o.class(e.Key)
	}
	return l
}

func (l labels) attributes() []attribute.KeyValue {
	kvs := []attribute.KeyValue{attribute.String("lock.store", l.store), attribute.Bool("lock.shared", l.shared)}
	for _, kv := range []struct{ name, value string }{
		{"lock.key_class", l.class}, {"lock.outcome", l.outcome}, {"lock.reason", l.reason},
	} {
		if kv.value != "" {
			kvs = append(kvs, attribute.String(kv.name, kv.value))
		}
	}
	return kvs
}

func (o *Observer) remember(owner string, l *lease) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open[owner] = l
}

// forget returns what was remembered of owner, or nil.
func (o *Observer) forget(owner string) *lease {
	o.mu.RLock()
	l := o.open[owner]
	o.mu.RUnlock()
	if l != nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.open, owner)
	}
	return l
}

// set is the attribute set of l, made once.
func (o *Observer) set(l labels) *set {
	o.mu.RLock()
	s := o.sets[l]
	o.mu.RUnlock()
	if s != nil {
		return s
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if s = o.sets[l]; s == nil { // else another has just made it, and counts with it
		of := metric.WithAttributeSet(attribute.NewSet(l.attributes()...))
		s = &set{add: []metric.AddOption{of}, record: []metric.RecordOption{of}}
		o.sets[l] = s
	}
	return s
}

// outcome classifies the error of a call.
func outcome(err error) string {
	switch {
	case errors.Is(err, lock.ErrUnavailable): // whatever else it is
		return "unavailable"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return "canceled"
	case errors.Is(err, lock.ErrHeld):
		return "held"
	}
	return "failed"
}

func reason(err error) string {
	var lost *lock.LostError
	if errors.As(err, &lost) && lost.Reason != 0 {
		return fmt.Sprint(lost.Reason)
	}
	return "unknown"
}
