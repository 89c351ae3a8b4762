package locktest

import (
	"slices"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func exclusion() group {
	const (
		one    = "Exclusion. By the store's own clock at most one exclusive grant of a key is live; shared grants live only beside shared grants."
		stands = "This holds while the store keeps what it acknowledged, its clock does not jump forward, and nobody forces the lock: Capabilities.HoldSurvives says which faults it stands. Otherwise the loss is told at the next renewal, and the token is the guard."
	)
	return group{"Exclusion", []row{
		{"AmongProcesses", one, both, nil, amongProcesses},
		{"WithinOneProcess", one, both, nil, withinOneProcess},
		{"SharedBesideExclusive", one, plain, needs(declares("Shared", hasShared)), sharedBesideExclusive},
		{"ReadersTogether", one, shared, nil, readersTogether},
		{"WaitingReadersTogether", one, shared, nil, waitingReadersTogether},
		{"WriterWaitsForEveryReader", one, shared, nil, writerWaitsForEveryReader},
		{"Crowd", one, plain, nil, func(e *env) { e.compete(e.crowd, nobody) }},
		{"CrowdOfReadersAndWriters", one, shared, nil, func(e *env) { e.compete(e.crowd, mostly) }},
		{"Freeze", stands, both, needs(can(Freeze)), holdSurvives(Freeze, 0)},
		{"RecordLoss", stands, both, needs(can(LoseRecord)), holdSurvives(LoseRecord, lock.SurvivesRecordLoss)},
		{"Restart", stands, both, needs(can(Restart)), holdSurvives(Restart, lock.SurvivesRestart)},
		{"Failover", stands, both, needs(can(Failover)), holdSurvives(Failover, lock.SurvivesFailover)},
	}}
}

func nobody(int) bool   { return false }
func mostly(i int) bool { return i%4 != 0 }

func amongProcesses(e *env) { excludes(e, e.open(), e.open()) }

func withinOneProcess(e *env) {
	l := e.open()
	excludes(e, l, l)
}

// excludes checks that b cannot have what a holds, and can when a has released it.
func excludes(e *env, a, b lock.Locker) {
	key := e.key()
	for range 3 {
		h := e.hold(a, key)
		e.mustBeHeld(b, e.rival(key))
		e.mustRenew(h)
		e.mustBeHeld(b, e.rival(key))
		e.mustRelease(h)
		e.free(b, key)
		a, b = b, a
	}
}

func sharedBesideExclusive(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	h := e.hold(a, key)
	reader := e.request(key)
	reader.Shared = true
	e.mustBeHeld(a, reader)
	e.mustBeHeld(b, anew(reader))
	e.mustRelease(h)
	e.mustRelease(e.mustAcquire(b, anew(reader)))
}

func readersTogether(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	readers := []held{e.hold(a, key), e.hold(b, key), e.hold(a, key)}
	for _, h := range readers {
		e.mustBeHeld(b, e.rival(key))
		e.mustRenew(h)
		e.mustRelease(h)
	}
	e.free(b, key)
}

// waitingReadersTogether: those that wait for a writer must all come in, none of them
// going out first.
func waitingReadersTogether(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	writer := e.lasting(a, e.rival(key))
	waiters := []*waiter{e.wait(a, e.request(key)), e.wait(b, e.request(key)), e.wait(b, e.request(key))}
	e.mustRelease(writer)
	for _, w := range waiters {
		w.granted()
	}
	for _, w := range waiters {
		e.mustBeHeld(a, e.rival(key))
		e.mustRelease(w.h)
	}
	e.free(a, key)
}

// writerWaitsForEveryReader: whichever reader goes first, and whether or not the writer waits
// in that reader's process, it must not be let in before the last has gone.
func writerWaitsForEveryReader(e *env) {
	a, b := e.open(), e.open()
	for _, l := range []lock.Locker{a, b} {
		for _, newestFirst := range []bool{false, true} {
			key := e.key()
			readers := []held{e.hold(a, key), e.hold(b, key), e.hold(a, key)}
			if newestFirst {
				slices.Reverse(readers)
			}
			writer := e.wait(l, e.rival(key))
			for i, h := range readers {
				if i > 0 {
					time.Sleep(e.ttl / 20) // for a grant that should not come
					writer.still()
					e.mustRenew(h)
				}
				e.mustRelease(h)
			}
			e.mustRelease(writer.granted())
		}
	}
}
