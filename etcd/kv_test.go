package etcd_test

import (
	"context"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// faultyKV is a client's KV whose transactions are lost, answered in vain, or sent late.
type faultyKV struct {
	clientv3.KV
	mu   sync.Mutex // guards the rest
	rule func(txn) fate
	late []func()
}

// txn is what a rule knows of a transaction: which kinds of operations it has, at any depth, and
// the keys that it puts or deletes.
type txn struct {
	puts, deletes []string
	gets          int
}

// fate is what becomes of a transaction.
type fate struct {
	late   bool            // it is sent by deliver, though the caller has its error
	mute   bool            // it is sent, and its reply is lost
	silent bool            // the error of both comes when ctx ends, and not at once
	err    error           // this is the reply; it is sent only if mute
	gate   <-chan struct{} // it is sent when this is closed
	back   <-chan struct{} // its reply arrives when this is closed
	heard  func()          // is called when its reply has arrived
}

var errCut = status.Error(codes.Unavailable, "cut by the test")

// set has rule decide what becomes of transactions; nil lets all pass.
func (kv *faultyKV) set(rule func(txn) fate) {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	kv.rule = rule
}

// once has f befall the first transaction that is like, and returns what is closed then.
func (kv *faultyKV) once(f fate, like func(txn) bool) (hit <-chan struct{}) {
	c := make(chan struct{})
	over := false
	kv.set(func(t txn) fate { // under the mutex
		if over || !like(t) {
			return fate{}
		}
		over = true
		close(c)
		return f
	})
	return c
}

// every has f befall all transactions that are like, and returns what is closed at the first:
// for what is sent again if it is not answered.
func (kv *faultyKV) every(f fate, like func(txn) bool) (hit <-chan struct{}) {
	c := make(chan struct{})
	tell := sync.OnceFunc(func() { close(c) })
	kv.set(func(t txn) fate {
		if !like(t) {
			return fate{}
		}
		tell()
		return f
	})
	return c
}

// deliver sends what is late.
func (kv *faultyKV) deliver(tb testing.TB) {
	tb.Helper()
	if kv.some() == 0 {
		tb.Fatal("nothing is late")
	}
}

// some sends what is late, if anything is, and returns how much.
func (kv *faultyKV) some() int {
	kv.mu.Lock()
	late := kv.late
	kv.late = nil
	kv.mu.Unlock()
	for _, send := range late {
		send()
	}
	return len(late)
}

func (kv *faultyKV) decide(t txn) fate {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	if kv.rule == nil {
		return fate{}
	}
	return kv.rule(t)
}

// Txn begins a transaction.
func (kv *faultyKV) Txn(ctx context.Context) clientv3.Txn { return &faultyTxn{kv: kv, ctx: ctx} }

// wait waits for gate, if there is one, or for the end of ctx.
func wait(ctx context.Context, gate <-chan struct{}) {
	if gate == nil {
		return
	}
	select {
	case <-gate:
	case <-ctx.Done():
	}
}

// Get is a transaction as well.
func (kv *faultyKV) Get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	resp, err := kv.Txn(ctx).Then(clientv3.OpGet(key, opts...)).Commit()
	if err != nil {
		return nil, err
	}
	get := resp.Responses[0].GetResponseRange()
	get.Header = resp.Header
	return (*clientv3.GetResponse)(get), nil
}

// Delete is a transaction as well.
func (kv *faultyKV) Delete(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.DeleteResponse, error) {
	resp, err := kv.Txn(ctx).Then(clientv3.OpDelete(key, opts...)).Commit()
	if err != nil {
		return nil, err
	}
	del := resp.Responses[0].GetResponseDeleteRange()
	del.Header = resp.Header
	return (*clientv3.DeleteResponse)(del), nil
}

type faultyTxn struct {
	kv     *faultyKV
	ctx    context.Context
	cmps   []clientv3.Cmp
	then   []clientv3.Op
	orElse []clientv3.Op
}

func (t *faultyTxn) If(cs ...clientv3.Cmp) clientv3.Txn   { t.cmps = cs; return t }
func (t *faultyTxn) Then(ops ...clientv3.Op) clientv3.Txn { t.then = ops; return t }
func (t *faultyTxn) Else(ops ...clientv3.Op) clientv3.Txn { t.orElse = ops; return t }

func (t *faultyTxn) send(ctx context.Context) (*clientv3.TxnResponse, error) {
	return t.kv.KV.Txn(ctx).If(t.cmps...).Then(t.then...).Else(t.orElse...).Commit()
}

// Commit lets the transaction's fate befall it.
func (t *faultyTxn) Commit() (*clientv3.TxnResponse, error) {
	var what txn
	what.read(t.then)
	what.read(t.orElse)
	f := t.kv.decide(what)
	if wait(t.ctx, f.gate); t.ctx.Err() != nil {
		return nil, t.ctx.Err()
	}
	switch {
	case f.late:
		t.kv.mu.Lock()
		t.kv.late = append(t.kv.late, func() { _, _ = t.send(context.Background()) })
		t.kv.mu.Unlock()
	case f.mute:
		if _, err := t.send(t.ctx); err != nil {
			return nil, err
		}
	case f.err != nil:
	default:
		resp, err := t.send(t.ctx)
		wait(t.ctx, f.back)
		if f.heard != nil && err == nil {
			f.heard()
		}
		return resp, err
	}
	if f.silent {
		<-t.ctx.Done()
		return nil, t.ctx.Err()
	}
	if f.err != nil {
		return nil, f.err
	}
	return nil, errCut
}

func (t *txn) read(ops []clientv3.Op) {
	for _, op := range ops {
		switch {
		case op.IsPut():
			t.puts = append(t.puts, string(op.KeyBytes()))
		case op.IsDelete():
			t.deletes = append(t.deletes, string(op.KeyBytes()))
		case op.IsGet():
			t.gets++
		case op.IsTxn():
			_, then, orElse := op.Txn()
			t.read(then)
			t.read(orElse)
		}
	}
}

func puts(t txn) bool    { return len(t.puts) > 0 }
func deletes(t txn) bool { return len(t.deletes) > 0 }
func reads(t txn) bool   { return !puts(t) && !deletes(t) }
