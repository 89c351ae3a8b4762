// Package storekit has what the stores share. Each store supplies its protocol; what is the
// same around it, and easy to get wrong seven times, is here once.
//
// # Waiting
//
// A store that keeps a line makes a [Wait] for each Acquire that stands in it. It supplies a
// claim, which lines up or looks again, and the [Class] of each error of its client:
//
//	func (l *Locker) wait(ctx context.Context, req lock.Request) (lock.Grant, error) {
//		box := l.registry.Join(req.Owner)
//		defer l.registry.Leave(req.Owner, box)
//		a := l.acquisition(req)
//		w := storekit.Wait{
//			Request: req, Mailbox: box, Closed: l.closing,
//			Claim: a.claim, Classify: classify, Recheck: l.registry.Recheck,
//		}
//		return w.Run(ctx)
//	}
//
//	// claim is one round trip: a grant, why there is none yet, or an error of the store.
//	func (a *acquisition) claim(ctx context.Context, woken bool) (lock.Grant, *storekit.Refusal, error)
//
// Calls that do not stand in line are bounded by [WithinPatience], and sent again by [Repeat]
// as far as their errors allow. The error of a try that was sent again goes through [Tried].
//
// # Being told
//
// A [Registry] has the mailboxes of those who wait and the callbacks of those who hold. Its
// Heard takes the payload of a notification, "wake OWNER" or "forced OWNER". Where those come
// on a connection of their own, a [Listener] keeps that connection, and finds out whether it
// delivers:
//
//	l.listener = &storekit.Listener{
//		Registry: l.registry, Closed: l.closing,
//		Session:  l.subscribe, // one life of the connection
//		Probe:    l.publish,   // sends a payload to this Locker itself, the way that wake-ups go
//		Tell:     l.onPush,    // the user's callback
//	}
//
// While it does not, Recheck is a tenth of the heartbeat instead of a third.
package storekit
