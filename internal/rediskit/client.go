package rediskit

import (
	"errors"
	"fmt"
	"net"
	"strings"

	goredis "github.com/redis/go-redis/v9"

	"github.com/seed-215fdefa/lock/internal/storekit"
)

// Unwrap returns the client that rdb's methods Unwrap() goredis.UniversalClient lead to, or
// nil if there is none: what a wrapper embeds says nothing of the kind of server that it
// talks to.
func Unwrap(rdb goredis.UniversalClient) goredis.UniversalClient {
	for !storekit.IsNil(rdb) {
		c, ok := rdb.(interface {
			Unwrap() goredis.UniversalClient
		})
		if !ok {
			return rdb
		}
		rdb = c.Unwrap()
	}
	return nil
}

// busy are the first words of replies that say: not now, or not here. Nothing was executed. That of too
// many clients stands behind "ERR ", which HasErrorPrefix takes away.
var busy = []string{
	"TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "READONLY", "MOVED", "ASK", "BUSY",
	"NOREPLICAS", "MISCONF", "OOM", "max number of clients",
}

// Classify tells the class of an error of go-redis.
func Classify(err error) storekit.Class {
	var op *net.OpError
	var dns *net.DNSError
	switch {
	case errors.Is(err, goredis.ErrClosed):
		return storekit.Final
	case isBusy(err):
		return storekit.Busy
	case IsReply(err):
		return storekit.Final
	case errors.As(err, &dns), errors.As(err, &op) && op.Op == "dial", errors.Is(err, goredis.ErrPoolTimeout):
		return storekit.Unsent
	}
	return storekit.Unknown
}

func isBusy(err error) bool {
	for _, prefix := range busy {
		if goredis.HasErrorPrefix(err, prefix+" ") { // BUSYGROUP is no BUSY
			return true
		}
	}
	return false
}

// isForbidden tells a missing right. Redis 7.0 has words of its own for one within a script.
func isForbidden(err error) bool {
	return goredis.HasErrorPrefix(err, "NOPERM") ||
		strings.Contains(err.Error(), "ACL failure") || strings.Contains(err.Error(), "user executing the script")
}

// Explain adds to an error of a script on key what to do about it, where its own words do
// not help.
func Explain(err error, key string) error {
	switch {
	case err == nil:
		return nil
	case goredis.HasErrorPrefix(err, "WRONGTYPE"): // Redis does not say which key
		return fmt.Errorf("%w: %q or a key beside it holds something else", err, key)
	case isForbidden(err): // nor always the command
		return fmt.Errorf("%w: the scripts for %q need the rights that the package comment lists", err, key)
	}
	return err
}
