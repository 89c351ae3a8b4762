// Package grpclock is the lock service over gRPC: a server for any [lock.Locker], and a Locker that
// talks to one. The protocol is lock.v1.LockService, in lockv1/lock.proto.
//
//	server := grpc.NewServer(grpclock.ServerOptions()...)
//	locks := grpclock.NewServer(redis.New(rdb))
//	lockv1.RegisterLockServiceServer(server, locks) // the service
//
//	conn, err := grpc.NewClient("locks.example.com:443", append(grpclock.DialOptions(), credentials)...)
//	client := lock.New(grpclock.New(conn)) // a program that uses it
//
// It is the service of package httplock, whose comment says what it promises, how waiting works, and
// how replicas share a store. A poll is a call, and a watch a stream.
//
// # Connections
//
// All calls of a [Locker] share a connection. While it is broken, they fail until gRPC has made
// another one, for which it pauses up to two minutes by default: a waiter would lose its place, and a
// holder its lock. If it is silent, as behind a cable that was pulled, they hang until gRPC notices. So
// connections need the [DialOptions], or stricter ones, and servers the [ServerOptions].
//
// # Limits
//
// The server does not know who calls. [WithAuthorization] decides what a caller may do, and
// [WithCaller] keeps callers from each other's grants. Both find in the context what gRPC knows: the
// metadata, and the peer with its certificate. [WithObserver] is for audits and metrics.
//
// A refusal travels in a trailer, which many clients limit to 8 KiB. So the Record of a
// [lock.HeldError] has no metadata if it were larger than 4 KiB, and if need be no waiters and one
// holder. Inspect returns all of it.
package grpclock

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
)

// maxRequest is in bytes: metadata of lock.MaxMetadataLen, 16 owners, and much more.
const maxRequest = 64 << 10

// DialOptions are what a connection of a [Locker] needs: it tries again within a second when it is
// broken, and notices after 13 s that it is silent while a call is under way.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second}),
	}
}

// ServerOptions are what a server of the service needs: it stands the pings of DialOptions, and
// refuses requests of more than 64 KiB.
//
// They limit neither connections nor calls. Whoever can connect may keep idle connections, and calls
// whose request never arrives, before [WithAuthorization] is asked. It is not asked about Capabilities,
// whose answer keeps its connection until the client takes it. Against strangers a server needs
// grpc.KeepaliveParams with MaxConnectionIdle and Time, grpc.MaxConcurrentStreams, a bound on the
// time until a request arrives, and an interceptor that refuses Capabilities, as command lockd has them.
// A [Locker] has one connection for all it does: below the number of its waiters, MaxConcurrentStreams
// makes its renewals wait for theirs.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second}),
		grpc.MaxRecvMsgSize(maxRequest),
	}
}
