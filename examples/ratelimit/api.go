package main

import (
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// api is the one that others run: it allows so many calls at once, and no more.
type api struct {
	takes time.Duration

	mu                sync.Mutex // guards the rest
	now, most         int        // calls at once
	answered, refused int
}

// start serves on a free port until stop is called.
func (a *api) start() (url string, stop func(), err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	s := &http.Server{Handler: a, ReadHeaderTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(ln) // until it is closed
	}()
	return "http://" + ln.Addr().String(), func() {
		_ = s.Close()
		<-done
	}, nil
}

// ServeHTTP is a call.
func (a *api) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	if !a.enter() {
		http.Error(w, "too many calls at once", http.StatusTooManyRequests)
		return
	}
	time.Sleep(a.takes) // what it is called for
	a.leave()
	fmt.Fprintln(w, "done")
}

func (a *api) enter() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.now == allowed {
		a.refused++
		return false
	}
	a.now++
	a.most = max(a.most, a.now)
	return true
}

// leave is called before the caller gets its answer: it may call again then.
func (a *api) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.now--
	a.answered++
}

func (a *api) report() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return fmt.Sprintf("the API has answered %d calls, at most %d at once, and refused %d", a.answered, a.most, a.refused)
}
