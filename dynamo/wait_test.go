package dynamo

import (
	"context"
	"net"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

// TestLine: releases wake the first, and who is next becomes it.
func TestLine(t *testing.T) {
	var ls lines
	p, second := ls.enter("k"), ls.enter("k")
	at := func(p *place) [2]bool {
		first, hint := ls.first("k", p)
		return [2]bool{first, hint}
	}
	ls.released("other")
	require.Equal(t, [2]bool{true, false}, at(p))
	for range 2 {
		ls.released("k")
		ls.released("k")
		require.Equal(t, [2]bool{true, true}, at(p))
		require.Equal(t, [2]bool{true, false}, at(p), "one hint is enough")
	}
	require.Equal(t, [2]bool{false, false}, at(second))
	ls.leave("k", p, true)
	require.Equal(t, [2]bool{true, false}, at(second))
	ls.leave("k", second, true)
	require.Empty(t, ls.of)
}

// TestLateGrantIsTold: of those behind the first, one whom the table shows to hold the lock is woken to look,
// if a write of its may have come late.
func TestLateGrantIsTold(t *testing.T) {
	var ls lines
	first, sure, unsure := ls.enter("k"), ls.enter("k"), ls.enter("k")
	hinted := func(p *place) bool {
		_, hint := ls.first("k", p)
		return hint
	}
	ls.inDoubt(unsure, "unsure")
	ls.wakeHolders("k", []lock.Holder{{Owner: "first"}, {Owner: "sure"}, {Owner: "another"}})
	require.False(t, hinted(unsure))
	ls.wakeHolders("k", []lock.Holder{{Owner: "another"}, {Owner: "unsure"}})
	require.True(t, hinted(unsure))
	require.False(t, hinted(unsure), "one look is enough")
	require.False(t, hinted(first))
	require.False(t, hinted(sure))
}

// TestPassedOver: a line knows that the lock was handed on past it, but not if it had the
// lock itself meanwhile; and how long it has waited since.
func TestPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ls lines
		p := ls.enter("k")
		ls.enter("k")
		saw := func(token lock.Token) bool {
			passed, _ := ls.saw("k", lock.Record{Key: "k", Token: token})
			return passed
		}
		require.False(t, saw(1))
		require.False(t, saw(1))
		require.True(t, saw(2))
		require.False(t, saw(2))
		time.Sleep(time.Second)
		_, waited := ls.saw("k", lock.Record{Key: "k", Token: 2})
		require.Equal(t, time.Second, waited)
		ls.leave("k", p, true)
		require.False(t, saw(4))
		_, waited = ls.saw("k", lock.Record{Key: "k", Token: 4})
		require.Zero(t, waited)
	})
}

// TestPauseOfAnIntent: a writer that keeps readers out looks often enough to keep its intent up, as long
// as it waits for readers.
func TestPauseOfAnIntent(t *testing.T) {
	l := New(new(broken), "locks", WithPoll(time.Minute, time.Hour))
	for ttl, most := range map[time.Duration]time.Duration{time.Second: 250 * time.Millisecond, time.Hour: 1250 * time.Millisecond} {
		a := l.acquisition(lock.Request{TTL: ttl})
		a.frees, a.last.Holders = lock.MaxTTL, []lock.Holder{{Shared: true}}
		require.GreaterOrEqual(t, a.pause(9), time.Minute)
		a.announced = true
		require.Equal(t, most, a.pause(9))
		a.frees = most - 2*time.Millisecond // the first reader's end comes before the next look
		for range 20 {
			require.LessOrEqual(t, a.pause(9), most)
		}
		a.frees = lock.MaxTTL
		a.last.Holders[0].Shared = false
		require.GreaterOrEqual(t, a.pause(9), time.Minute)
	}
}

// TestPauseAtTheEndOfALease: a waiter looks after the end, and no later than it would look anyway.
func TestPauseAtTheEndOfALease(t *testing.T) {
	l := New(new(broken), "locks", WithPoll(time.Second, time.Second))
	a := l.acquisition(lock.Request{TTL: time.Minute})
	a.frees, a.last.Holders = 990*time.Millisecond, []lock.Holder{{}}
	for range 20 {
		pause := a.pause(0)
		require.Greater(t, pause, a.frees)
		require.LessOrEqual(t, pause, time.Second)
	}
}

// broken is a DynamoDB that cannot be reached, or, if held, one whose keys are all held.
type broken struct {
	API
	held atomic.Bool
}

var errRefused = &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}

func (b *broken) PutItem(context.Context, *dynamodb.PutItemInput, ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	if !b.held.Load() {
		return nil, errRefused
	}
	return nil, &types.ConditionalCheckFailedException{Item: map[string]types.AttributeValue{
		attrHolder: str("7:another"), attrExpiry: num(time.Now().Add(time.Hour).UnixMicro()), attrInfo: str(info{}.String()),
	}}
}

func (b *broken) GetItem(context.Context, *dynamodb.GetItemInput, ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	return nil, errRefused
}

// open returns a Locker that knows the time.
func (b *broken) open() *Locker {
	l := New(b, "locks")
	l.fitness.sure.Store(true)
	now := time.Now()
	l.clock.learn(now, now, now, 0)
	return l
}

// TestTroubleOfALine: when the table cannot be reached, the wait of each in line ends after
// Patience, and not that of one after the other.
func TestTroubleOfALine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := new(broken)
		b.held.Store(true)
		l := b.open()
		const n = 4
		errs := make(chan error, n)
		for i := range n {
			go func() {
				_, err := l.Acquire(context.Background(), lock.Request{Key: "k", Owner: string(rune('a' + i)), TTL: time.Minute, Wait: true})
				errs <- err
			}()
			synctest.Wait()
		}
		b.held.Store(false)
		begin := time.Now()
		for range n {
			err := <-errs
			require.ErrorIs(t, err, lock.ErrUnavailable)
			require.ErrorIs(t, err, syscall.ECONNREFUSED)
		}
		require.Less(t, time.Since(begin), lock.Patience*3/2)
	})
}

// TestNewcomersInTrouble: the failure of a first request is told at once, whoever else waits.
func TestNewcomersInTrouble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(broken).open()
		const n = 4
		errs := make(chan error, n)
		begin := time.Now()
		for i := range n {
			go func() {
				_, err := l.Acquire(context.Background(), lock.Request{Key: "k", Owner: string(rune('a' + i)), TTL: time.Minute, Wait: true})
				errs <- err
			}()
		}
		for range n {
			err := <-errs
			require.ErrorIs(t, err, syscall.ECONNREFUSED)
			require.NotErrorIs(t, err, lock.ErrHeld)
		}
		require.Less(t, time.Since(begin), lock.Patience/2)
	})
}

// TestShortWaitWhileResting: this Locker leaves the lock to others for longer than a newcomer can
// wait. That one asks nevertheless.
func TestShortWaitWhileResting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(broken).open()
		l.lines.yield("k", true, time.Minute)
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		_, err := l.Acquire(ctx, lock.Request{Key: "k", Owner: "a", TTL: time.Minute, Wait: true})
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		require.NotErrorIs(t, err, lock.ErrHeld)
	})
}
