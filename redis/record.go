package redis

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/seed-215fdefa/lock"
)

// processLen is the length of a process' name, which stands at fixed places in records.
const processLen = 22

// tail is what follows the fixed part of every entry: who the process is, and why.
func tail(process string, metadata map[string]string) string {
	if len(metadata) == 0 {
		return process
	}
	b, err := json.Marshal(metadata)
	if err != nil {
		panic("lock/redis: a map of strings has no JSON: " + err.Error())
	}
	return process + string(b)
}

func parseTail(s string) (metadata map[string]string, ok bool) {
	if len(s) < processLen {
		return nil, false
	}
	if s = s[processLen:]; s == "" {
		return nil, true
	}
	return metadata, json.Unmarshal([]byte(s), &metadata) == nil && metadata != nil
}

// sharedRecord is the value of the record while readers hold the lock.
const sharedRecord = "+"

// parseRecord reads token:owner:granted µs:tail, the value of an exclusive grant, with a
// "*" at its end if anybody waits. now is the server's time in µs.
func parseRecord(s string, now int64, pttl int64) (lock.Holder, bool) {
	parts := strings.SplitN(strings.TrimSuffix(s, "*"), ":", 4)
	if len(parts) != 4 || parts[1] == "" {
		return lock.Holder{}, false
	}
	token, err := lock.ParseToken(parts[0])
	granted, ok := parseMicros(parts[2])
	metadata, fine := parseTail(parts[3])
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
	metadata, fine := parseTail(parts[2])
	left := time.Duration(expiry-now/1000) * time.Millisecond
	return lock.Holder{
		Owner: owner, Token: token, Shared: true, Held: since(granted, now),
		ExpiresIn: left, Metadata: metadata,
	}, err == nil && ok && fine && left >= 0
}

// parseWaiter reads 13 digits deadline ms, x or s, 13 digits arrival ms, 13 digits TTL ms,
// tail. It is not
// ok for a waiter whose heartbeat is over.
func parseWaiter(owner, s string, now int64) (lock.Waiter, bool) {
	if len(s) < 40 || (s[13] != 'x' && s[13] != 's') {
		return lock.Waiter{}, false
	}
	deadline, ok := parseMicros(s[:13])
	arrived, ok2 := parseMicros(s[14:27])
	metadata, fine := parseTail(s[40:])
	return lock.Waiter{
		Owner: owner, Shared: s[13] == 's', Waited: since(arrived*1000, now), Metadata: metadata,
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
