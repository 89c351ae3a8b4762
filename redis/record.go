package redis

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/rediskit"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// processLen is the length of a process' name, which stands at fixed places in records.
const processLen = 22

// sharedRecord is the value of the record while readers hold the lock.
const sharedRecord = "+"

// recordOf reads what shown.lua says: now µs, record or "", its PTTL, readers, their infos,
// how many there are, waiters, their entries, how many there are.
func recordOf(key string, k keyset, r []any) (lock.Record, error) {
	now := number(rediskit.Text(r[0]))
	rec := lock.Record{Key: key, HolderCount: int(number(r[5])), WaiterCount: int(number(r[8]))}
	if s := rediskit.Text(r[1]); s != "" && s != sharedRecord {
		h, ok := parseRecord(s, now, number(r[2]))
		if !ok {
			return lock.Record{}, foreign(k.record(), s)
		}
		rec.Holders = append(rec.Holders, h)
		rec.HolderCount++
	}
	infos, entries := rediskit.Texts(r[4]), rediskit.Texts(r[7])
	for i, owner := range rediskit.Texts(r[3])[:len(infos)] {
		if h, ok := parseReader(owner, infos[i], now); ok {
			rec.Holders = append(rec.Holders, h)
		}
	}
	for i, owner := range rediskit.Texts(r[6])[:len(entries)] {
		if w, ok := parseWaiter(owner, entries[i], now); ok {
			rec.Waiters = append(rec.Waiters, w)
		}
	}
	storekit.Bound(&rec)
	return rec, nil
}

// parseTail reads what follows the fixed part of every entry: who the process is, and a note.
func parseTail(s string) (metadata map[string]string, under []string, ok bool) {
	if len(s) < processLen {
		return nil, nil, false
	}
	return storekit.DecodeNote(s[processLen:])
}

// parseRecord reads token:owner:granted µs:tail, the value of an exclusive grant, with a
// "*" at its end if anybody waits. now is the server's time in µs.
func parseRecord(s string, now int64, pttl int64) (lock.Holder, bool) {
	parts := strings.SplitN(strings.TrimSuffix(s, "*"), ":", 4)
	if len(parts) != 4 || parts[1] == "" {
		return lock.Holder{}, false
	}
	token, err := lock.ParseToken(parts[0])
	granted, ok := parseMicros(parts[2])
	metadata, _, fine := parseTail(parts[3])
	return lock.Holder{
		Owner: parts[1], Token: token, Held: since(granted, now),
		ExpiresIn: time.Duration(max(pttl, -1)) * time.Millisecond, Metadata: metadata,
	}, err == nil && ok && fine
}

// parseReader reads 13 digits expiry ms, token:granted µs:tail, a reader's info.
func parseReader(owner, s string, now int64) (lock.Holder, bool) {
	if len(s) < 13 {
		return lock.Holder{}, false
	}
	expiry, ok := parseMicros(s[:13])
	parts := strings.SplitN(s[13:], ":", 3)
	if !ok || len(parts) != 3 {
		return lock.Holder{}, false
	}
	token, err := lock.ParseToken(parts[0])
	granted, ok := parseMicros(parts[1])
	metadata, _, fine := parseTail(parts[2])
	left := time.Duration(expiry-now/1000) * time.Millisecond
	return lock.Holder{
		Owner: owner, Token: token, Shared: true, Held: since(granted, now),
		ExpiresIn: left, Metadata: metadata,
	}, err == nil && ok && fine && left >= 0
}

// parseWaiter reads 13 digits deadline ms, x or s, 16 digits arrival µs, 13 digits TTL ms,
// tail. It is not ok for a waiter whose heartbeat is over.
func parseWaiter(owner, s string, now int64) (lock.Waiter, bool) {
	if len(s) < 43 || (s[13] != 'x' && s[13] != 's') {
		return lock.Waiter{}, false
	}
	deadline, ok := parseMicros(s[:13])
	arrived, ok2 := parseMicros(s[14:30])
	metadata, under, fine := parseTail(s[43:])
	return lock.Waiter{
		Owner: owner, Shared: s[13] == 's', Waited: since(arrived, now), Metadata: metadata, Under: under,
	}, ok && ok2 && fine && deadline > now/1000
}

func parseMicros(s string) (int64, bool) {
	n, err := strconv.ParseUint(s, 10, 63)
	return int64(n), err == nil && n < 1<<53
}

// since is never negative: a server's clock may be set back.
func since(then, now int64) time.Duration {
	return time.Duration(max(now-then, 0)) * time.Microsecond
}

// errForeign is the error for a key that holds what this package did not write.
var errForeign = errors.New("lock: redis: a key of this lock holds something else: choose another key prefix")

func foreign(name, value string) error {
	return fmt.Errorf("%w: %q is %.40q", errForeign, name, value)
}

// number reads a reply that is a number, or a string of one.
func number(v any) int64 {
	if s, ok := v.(string); ok {
		n, _ := parseMicros(s)
		return n
	}
	n, _ := v.(int64)
	return n
}
