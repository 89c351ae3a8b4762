// Package locktest is the conformance suite for stores of package lock: it turns each
// sentence of the [lock.Locker] contract into a test, and runs it against any store, its
// own or one that you wrote. It imports the standard library and package lock only.
//
// A test of a store is ten lines:
//
//	func TestConformance(t *testing.T) {
//		locktest.Run(t, locktest.Harness{
//			New: func(tb testing.TB) func() lock.Locker {
//				prefix := rand.Text() // a clean keyspace
//				return func() lock.Locker {
//					return mystore.New(dial(tb), prefix) // one more process on it
//				}
//			},
//		})
//	}
//
// [RunClient] tries what a [lock.Client] promises over the same store.
//
// What needs a fault, such as a process that dies or a reply that gets lost, is skipped
// by name until the harness can do it. A store that is reached over TCP gets most of that
// from a proxy in front of each Locker, which can lose or hold each single message:
//
//	return func() lock.Locker {
//		proxy := faultproxy.New(tb, addr)
//		return &process{mystore.New(dial(tb, proxy.Addr()), prefix), proxy}
//	}
//	…
//	Proxy: func(l lock.Locker) *faultproxy.Proxy { return l.(*process).proxy },
//
// Harness.Faults does what is left: a server that starts again, a record that is gone, a
// wake-up that does not come. A store whose time is that of the testing/synctest bubble
// runs in fake time, in well under a second, with Around: synctest.Test.
//
// # What a result means
//
// A store that keeps the contract never fails: each check is one that holds however
// slow the store, the network or the machine that runs the test. Limits grow with the
// measured round trip. Times are compared only where the contract orders them (the key
// was granted again before the first holder's Start + TTL), or against limits far beyond
// what a busy machine needs. The reverse does not hold. A pass is no proof: a suite cannot
// turn back a client's wall clock, nor stop a process between any two of its instructions.
//
// A case whose fault did not bite, since the operation was over before, is a skip, never
// a pass. A failure prints the sentence that was broken, as it stands in lock.go, what was
// wanted and what was seen. The end of the log has what passed, failed and was skipped,
// and why: read it once, for a run without faults is ok too.
//
// # Histories
//
// A case of Run tries what somebody thought of. [Explore] draws what several processes do,
// with which TTLs, modes and faults, and checks the whole history. Run it for a few seconds
// with every change, and for an hour now and then.
//
// # Names
//
// Cases are subtests named after the sentence, then what is tried, then the mode of the
// grant: "DeadHoldersPass/KilledHolder/shared". These names do not change, so that
// Harness.Skips can name them; the part before a slash names all below it.
package locktest
