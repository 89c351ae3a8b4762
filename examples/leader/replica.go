package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
	"github.com/seed-215fdefa/lock/examples/internal/pause"
)

// replica is this process: a candidate, and a follower of whoever leads.
type replica struct {
	config
	client  *lock.Client
	fence   *etcd.Fence
	out     io.Writer
	address string

	mu     sync.Mutex // guards the rest
	term   lock.Token // of its last term; 0: it has never led
	writes int
}

// lead is what only one process may do. The token is the number of its term. Lead calls it
// again in the next term, so it returns when this one is over.
func (r *replica) lead(ctx context.Context, l *lock.Lease) error {
	r.say("leads, term %d", l.Token())
	for ctx.Err() == nil {
		n := r.begin(l.Token())
		if n == r.freeze {
			r.say("freezes")
			if err := pause.Self(); err != nil {
				return err
			}
			r.say("goes on, and writes %d", n)
		}
		switch err := r.write(ctx, l.Token(), n); {
		case errors.Is(err, lock.ErrStale):
			r.say("is refused, for it leads no more")
			return err
		case err != nil:
			return err
		}
		r.say("has written %d", n)
		select {
		case <-time.After(r.every):
		case <-ctx.Done():
		}
	}
	return context.Cause(ctx)
}

// begin counts one more write of that term.
func (r *replica) begin(term lock.Token) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.term = term
	r.writes++
	return r.writes
}

// write is one transaction, refused if a later term has begun to write. Whether it comes in
// time is for the fence to say, so it is not given up when ctx ends meanwhile.
func (r *replica) write(ctx context.Context, term lock.Token, n int) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return r.fence.Put(ctx, "example/"+r.election, term, fmt.Sprintf("%s's plan number %d", r.name, n))
}

// follow asks each new leader, wherever it is.
func (r *replica) follow(ctx context.Context) error {
	for rec, err := range r.client.Watch(ctx, r.election) {
		if err != nil {
			return err // the store has been away for lock.Patience
		}
		if len(rec.Holders) == 0 {
			continue // nobody leads for the moment
		}
		leader := rec.Holders[0]
		if leader.Metadata["address"] == r.address {
			continue
		}
		answer, err := ask(ctx, leader.Metadata["address"])
		if err != nil {
			answer = "nothing: " + err.Error() // it may be dead: then there is another one soon
		}
		r.say("follows %s, term %d, who says %s", leader.Metadata["name"], leader.Token, answer)
	}
	return nil
}

// ask asks the leader at address.
func ask(ctx context.Context, address string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address, nil)
	if err != nil {
		return "", err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	defer http.DefaultClient.CloseIdleConnections()
	answer, err := io.ReadAll(resp.Body)
	return string(answer), err
}

// ServeHTTP answers followers. They know the leader by the term: what a zombie says is of an
// old one.
func (r *replica) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(w, "%d plans up to term %d", r.writes, r.term)
}

// say writes one line with one call, as files and pipes like it.
func (r *replica) say(format string, args ...any) {
	fmt.Fprintf(r.out, "%s %s\n", r.name, fmt.Sprintf(format, args...))
}
