// Package locktest is the conformance suite for stores of package lock. It turns each sentence
// of the [lock.Locker] contract into a test, and runs it against any store: one of this module's
// or your own. It imports only the standard library, package lock and package semaphore.
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
// [RunClient] tests what a [lock.Client] promises over the same store.
//
// Some cases need a fault, such as a process that dies or a reply that gets lost. They are
// skipped by name until the harness can cause it. If the store is reached over TCP, a proxy in
// front of each Locker causes most faults, since it can lose or hold each single message:
//
//	return func() lock.Locker {
//		proxy := faultproxy.New(tb, addr)
//		return &process{mystore.New(dial(tb, proxy.Addr()), prefix), proxy}
//	}
//	…
//	Proxy: func(l lock.Locker) *faultproxy.Proxy { return l.(*process).proxy },
//
// Harness.Faults causes the others: a server that restarts, a record that is gone, a wake-up
// that does not come. If the store takes its time from the testing/synctest bubble, set Around:
// synctest.Test, and the suite runs in fake time, in well under a second.
//
// # What a result means
//
// A store that keeps the contract never fails. Each check holds however slow the store, the
// network and the machine are: limits grow with the measured round trip, and times are compared
// only where the contract orders them (the key was granted again before the first holder's Start
// + TTL), or with limits far beyond what a busy machine needs. The reverse does not hold: a pass
// is no proof. A suite cannot turn back a client's wall clock, nor stop a process between any
// two of its instructions.
//
// If a fault did not take effect, because the operation was over before, the case is a skip,
// never a pass. A failure prints the sentence that was broken, as it stands in lock.go, what was
// wanted and what was seen. The end of the log lists what passed, failed and was skipped, and
// why. Read it once: a run without faults is ok too.
//
// # Histories
//
// A case of Run tries what somebody thought of. [Explore] makes up random work for several
// processes, with random TTLs, modes and faults, and checks the whole history, both of owners
// who call the store and of Clients with DoAll and semaphores. Run it for a few seconds with
// every change, and for an hour now and then.
//
// # Names
//
// Cases are subtests. Their names have the sentence, what is tried and the mode of the grant:
// "DeadHoldersPass/KilledHolder/shared". The names do not change, so Harness.Skips can use them;
// the part before a slash names everything below it.
package locktest
