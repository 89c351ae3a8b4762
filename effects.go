package lock

import (
	"context"
	"time"
)

// effects are what is to be done once the engine's mutex is free: contexts to cancel,
// calls in flight to cancel, observers to call. Most calls have one, so the first costs
// no allocation.
type effects struct {
	n    int
	one  effect
	more []effect
}

// effect is one of: an end of l's contexts, a cancel of a call, an event of l.
type effect struct {
	cause   error
	ends    [2]context.CancelCauseFunc // called with cause; nil ones are not
	cancel  context.CancelFunc
	event   Event // of cfg's observers, if Kind is not 0
	ctx     context.Context
	sources []Observer
}

func (fx *effects) add(x effect) {
	if fx.n == 0 {
		fx.one = x
	} else {
		fx.more = append(fx.more, x)
	}
	fx.n++
}

// end has l's contexts canceled with cause.
func (fx *effects) end(l *Lease, cause error) {
	if l.endFn != nil || l.endCtx != nil {
		fx.add(effect{cause: cause, ends: [2]context.CancelCauseFunc{l.endFn, l.endCtx}})
	}
}

// cancel has o's context canceled.
func (fx *effects) cancel(o *op) {
	if o.cancel != nil {
		fx.add(effect{cancel: o.cancel})
	}
}

// tell has l's observers called.
func (fx *effects) tell(ctx context.Context, l *Lease, kind EventKind, elapsed time.Duration, err error) {
	if len(l.cfg.observers) == 0 {
		return
	}
	fx.add(effect{ctx: ctx, sources: l.cfg.observers, event: Event{
		Kind: kind, Key: l.grant.Key, Owner: l.grant.Owner, Token: l.grant.Token,
		Shared: l.grant.Shared, Store: l.e.name, Err: err,
	}.measured(elapsed)})
}

// run carries them out: all contexts before the first observer, which may be slow.
func (fx *effects) run() {
	if fx.n == 0 {
		return
	}
	fx.one.stop()
	for i := range fx.more {
		fx.more[i].stop()
	}
	fx.one.tell()
	for i := range fx.more {
		fx.more[i].tell()
	}
}

func (x *effect) stop() {
	for _, end := range x.ends {
		if end != nil {
			end(x.cause)
		}
	}
	if x.cancel != nil {
		x.cancel()
	}
}

func (x *effect) tell() {
	for _, o := range x.sources {
		o.Observe(x.ctx, x.event)
	}
}
