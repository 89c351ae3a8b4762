// Package httplock is a lock service over HTTP: a handler that serves any [lock.Locker], and a
// Locker that talks to one. It imports the standard library and package lock only.
//
//	http.Handle("/v1/", httplock.NewHandler(redis.New(rdb))) // the service
//
//	client := lock.New(httplock.New("https://locks.example.com")) // a program that uses it
//
// docs/service.md has the protocol for programs that are not written in Go.
//
// # What it promises
//
// The service promises what its store promises, except early notice of a loss: a holder learns
// of it at its next renewal. The service keeps no state of a lock except who waits. So any
// number of replicas may serve one store, and each request may go to any of them, if the store
// finds an owner's place and grant again for another process: redis and postgres do. On etcd,
// zookeeper, dynamo and redlock run one replica, or send each client to the same one. The store's
// clock counts a grant's TTL. The client takes Start by its own clock before it asks. No clock
// is compared with another.
//
// # Waiting
//
// A waiter polls. The service answers the first poll once the waiter has a place in line. It
// answers each later poll with the grant, or tells the waiter after a quarter of the heartbeat,
// min(TTL, 5 s), to poll again. The replica that was polled stands in line for the client, with
// a TTL of 0.45 of the heartbeat. It gives up if no poll has come for 0.3 of the heartbeat. What
// it leaves in the store, a place or a grant that nobody fetched, ends by itself. So a dead
// waiter blocks the line for no longer than its heartbeat, plus the difference if the store's
// shortest TTL is longer than 0.45 of it. The replica undoes nothing, because the client may
// have reached the same place or grant through another replica. A round trip must be shorter
// than 0.3 of the heartbeat.
//
// A grant from a poll is short, so the Locker renews it to its full TTL before it returns it.
// That renewal is the verification that the contract of lock.Locker demands, and Start is from
// before it was sent.
//
// A poll may reach another replica, or the same one after a restart. That replica asks the store
// again for the same owner, and the wait goes on if the store finds the owner's place or grant
// for another process too. memory, redis and postgres do. On stores where a place belongs to a
// session, such as etcd and zookeeper, the waiter arrives anew.
//
// If a try is not answered, the Locker asks again. dynamo and zookeeper refuse an owner that has the
// lock already: then the Locker undoes the grant, or returns an error after which lock.Client does.
//
// # Events
//
// GET /v1/events streams what becomes of the locks of a prefix, as server-sent events; see [Event].
// What this handler is asked for is told at once. Expiries, and what other replicas and programs do,
// are found by a look at the store, every second while somebody reads.
//
// # Limits
//
// The handler limits the size of a request's body, how long the body may take to arrive, and the
// number of waiters. Set the other limits on the http.Server: ReadHeaderTimeout and IdleTimeout,
// and no WriteTimeout below 5 s. See [NewHandler].
//
// The handler does not know who calls. [WithAuthorization] decides what a caller may do.
// [WithCaller] keeps callers from each other's grants: without it, whoever may release may release
// any grant whose owner it knows, and records show owners. [WithObserver] is for audits and metrics.
package httplock
