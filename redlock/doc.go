// Package redlock keeps locks on several independent Redis servers, version 7 or newer, or
// Valkey, of which a majority decides. Five may lose two.
//
//	var nodes []goredis.UniversalClient
//	for _, addr := range addrs { // five servers, none the replica of another
//		nodes = append(nodes, goredis.NewClient(&goredis.Options{Addr: addr}))
//	}
//	client := lock.New(redlock.New(nodes))
//
// It follows Redis' description of Redlock
// (https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/) and answers the
// two objections of https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html:
// it has fencing tokens, and a node that was restarted does not vote with a memory that it
// may have lost. (http://antirez.com/news/101 is the reply of Redlock's author.)
//
// # What it survives
//
// A minority of the nodes may be down, frozen or cut off, may restart without their data or
// lose it while they run. A node that was restarted, or whose data is gone, abstains from
// votes and tokens for as long as the longest TTL ([WithMaxTTL]): until then whatever it
// has forgotten is over. A grant that is renewed is given back to such nodes, so that a long
// lease outlives the restart of each node in turn, if there is MaxTTL between them. If all
// nodes have lost everything they are as good as new, and vote at once: then the grants are
// forgotten, but not the order of tokens.
//
// Tokens rise by the quorum's counters, whatever the clocks say: a grant's token is on a
// quorum of the nodes before the grant is known, and any later one has votes from one of
// these. Where all of those have lost their data the tokens rise by the nodes' clocks, as
// long as these agree within MaxTTL, less a quarter of a second; or within three quarters of a
// second where no node is left that remembers anything, so that none abstained.
//
// # What breaks it
//
// Exclusion, as with Redlock anywhere, is a matter of time. It assumes that the clocks of
// the nodes and of this process run at about the same rate, and do not jump: a node whose
// clock jumps forward by a TTL forgets a grant, and a majority of such nodes gives the lock
// to another. It assumes that no majority loses its data within MaxTTL, that no node drops
// keys on its own (maxmemory-policy must be noeviction), and that there is no replica which
// takes over from a node and has not its last writes. Two Lockers of the same locks must not
// differ in their nodes, nor in MaxTTL.
//
// A holder that is paused does not know that its time is over; that no lock can prevent. So
// write to fenced resources, with the token ([Fence], or any other that keeps the newest):
// then a grant that came too early, for any of these reasons, costs the work of the older
// holder, and no data. That makes it fit for more than saving double work.
//
// Take etcd instead where exclusion must not depend on clocks, or if you run one already.
// Take a single Redis, package redis, if its restart may lose a lock: it is faster by the
// nodes that it does not ask, and its waiters stand in a fair line and are woken. Redlock is
// for those who have Redis, want no lock to hang on one server, and can fence.
//
// # Waiting
//
// A quorum cannot count, so there is no line and no wake-up among processes: they poll, with
// jitter ([WithPoll]). Within a process waiters stand in line, the first of them polls, and a
// release lets it try at once. When several processes ask at once nobody may get a
// majority: then all give back what they got and come again after random pauses.
//
// # What it costs
//
// One round trip to all nodes at once for an acquire, a renewal and a release, which return
// when a majority has answered. When the clocks of the nodes differ by more than a tenth of
// a second, or a key is contested, an acquire takes a second round trip for its token; and so
// it does in the first two seconds after all nodes were new. Concurrent calls share round
// trips. A node that does not answer is not waited for by any but the first call that needs
// it. Each lock leaves a counter of some 20 bytes on each node, for a day.
//
// # What it needs
//
// On each node the rights to the keys of the prefix and to the commands that the scripts use,
// INFO and TIME among them; SCAN and MGET for [Locker.List]. With the default prefix, as Redis 7
// writes it:
//
//	ACL SETUSER app ~redlock:* +@read +@write +@scripting +@connection +info +time
//
// An operator may delete the keys of a lock, on all nodes: they are the prefix, one of s:, r:,
// i: and m:, and the lock's name. Holders whose lock is gone are told at their next renewal.
// A node whose key node is deleted abstains, like one that has lost its data.
// [Locker.ForceRelease] is better: it ends one grant, and nobody is granted the lock before.
package redlock
