package main

import (
	"context"
	"net/http"
	"sync"
	"time"
)

const (
	probeKey  = "lockd:ready" // which nobody takes, nor would it matter
	probeTime = 2 * time.Second
	probeAge  = time.Second // how long an answer is good for
)

// readiness is whether the store answers.
type readiness struct {
	mu    sync.Mutex // guards the rest; held while the store is asked, so that many probes ask once
	asked time.Time  // zero: never
	err   error
}

func (s *service) readyz(w http.ResponseWriter, r *http.Request) {
	switch {
	case s.stopping.Load():
		plain(w, http.StatusServiceUnavailable, "stopping")
	case s.checkStore(r.Context()) != nil:
		plain(w, http.StatusServiceUnavailable, "the store does not answer")
	default:
		plain(w, http.StatusOK, "ready")
	}
}

// checkStore asks the store, and logs when its answer has changed. The end of ctx, which is that of
// one of several probes, does not end it.
func (s *service) checkStore(ctx context.Context) error {
	s.ready.mu.Lock()
	defer s.ready.mu.Unlock()
	first := s.ready.asked.IsZero()
	if !first && time.Since(s.ready.asked) < probeAge {
		return s.ready.err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTime)
	defer cancel()
	_, err := s.store.Inspect(ctx, probeKey)
	switch {
	case s.stopping.Load():
	case err != nil && (first || s.ready.err == nil):
		s.log.Error("not ready: the store does not answer", "error", err.Error())
	case err == nil && (first || s.ready.err != nil):
		s.log.Info("ready")
	}
	s.ready.asked, s.ready.err = time.Now(), err
	return err
}
