package locktest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

func badInput() group {
	const invalid = "Other errors are ErrInvalid before any I/O, ErrUnsupported for a capability that is not declared, ctx's own, or the store's; after the last two the outcome is unknown and the caller must undo it with Release(Grant{Key, Owner})."
	return group{"BadInput", []row{
		{"Key", invalid, both, nil, badKeys},
		{"Owner", invalid, both, nil, badOwners},
		{"TTL", invalid, both, nil, badTTLs},
		{"Metadata", invalid, both, nil, badMetadata},
		{"Under", invalid, both, nil, badUnder},
		{"HeadStart", invalid, both, nil, badHeadStarts},
		{"BeforeAnyIO", invalid, both, needs(can(Sever)), badInputBeforeIO},
	}}
}

// invalid checks that Acquire refuses req, as a try and as a wait, and names value.
func (e *env) invalid(l lock.Locker, req lock.Request, value string) {
	e.Helper()
	for _, req.Wait = range []bool{false, true} {
		err := e.call("Acquire", func(ctx context.Context) error {
			_, err := l.Acquire(ctx, req)
			return err
		})
		e.names("Acquire", err, value)
	}
}

// names checks that err is ErrInvalid and names value.
func (e *env) names(method string, err error, value string) {
	e.Helper()
	if !errors.Is(err, lock.ErrInvalid) || !strings.Contains(err.Error(), value) {
		e.fail(fmt.Sprintf("%s to return ErrInvalid with %s in its text", method, value), "%v", err)
	}
}

func badKeys(e *env) {
	l := e.open()
	for key, value := range map[string]string{
		"":                                    "empty",
		strings.Repeat("k", lock.MaxKeyLen+1): "kkkkkkkk",
		strings.Repeat("é", lock.MaxKeyLen/2) + "a": "éé",
		"a\xff":        `\xff`,
		"\xc3":         `\xc3`,
		"\xed\xa0\x80": `\xed`, // a surrogate
	} {
		e.invalid(l, e.request(key), value)
		if e.distrust() == "" {
			e.names("Inspect", e.call("Inspect", func(ctx context.Context) error {
				_, err := l.Inspect(ctx, key)
				return err
			}), value)
		}
		if isAdmin(e) == "" {
			e.names("ForceRelease", e.forces(l, key, "owner"), value)
		}
	}
}

func badOwners(e *env) {
	a, key := e.open(), e.key()
	for owner, value := range map[string]string{
		"":                                      "owner",
		strings.Repeat("o", lock.MaxOwnerLen+1): "oooo",
		"a b":                                   "a b", "a/b": "a/b", "a:b": "a:b", "a.b": "a.b", "é": "owner", "a\x00": "owner", "a\n": "owner",
	} {
		req := e.request(key)
		req.Owner = owner
		e.invalid(a, req, value)
	}
	e.vacant(a, key)
}

func badUnder(e *env) {
	a, key := e.open(), e.key()
	for value, under := range map[string][]string{
		"17":   slices.Repeat([]string{"another"}, lock.MaxRecord+1),
		"a/b":  {"another", "a/b"},
		"oooo": {strings.Repeat("o", lock.MaxOwnerLen+1)},
		"1 to": {""},
	} {
		req := e.request(key)
		req.Under = under
		e.invalid(a, req, value)
	}
	e.vacant(a, key)
}

func badTTLs(e *env) {
	a, key := e.open(), e.key()
	for _, ttl := range []time.Duration{0, -1, -time.Hour, e.caps.MinTTL - 1} {
		req := e.request(key)
		req.TTL = ttl
		e.invalid(a, req, ttl.String())
	}
	e.vacant(a, key)
}

func badMetadata(e *env) {
	a, key := e.open(), e.key()
	req := e.request(key)
	for _, m := range []map[string]string{
		{"k": strings.Repeat("v", lock.MaxMetadataLen)},
		{strings.Repeat("k", lock.MaxMetadataLen+1): ""},
		{"a\xff": "v"},
		{"k": "a\xff"},
	} {
		req.Metadata = m
		e.invalid(a, req, "metadata")
	}
	e.vacant(a, key)
}

func badHeadStarts(e *env) {
	a, key := e.open(), e.key()
	for _, d := range []time.Duration{-1, -time.Hour, math.MinInt64, lock.MaxTTL + 1, math.MaxInt64} {
		e.invalid(a, e.ahead(key, d), d.String())
	}
	if e.caps.Priority {
		req := e.ahead(key, time.Second)
		e.names("Acquire without Wait", e.call("Acquire", func(ctx context.Context) error {
			_, err := a.Acquire(ctx, req)
			return err
		}), "1s")
	}
	e.vacant(a, key)
}

// badInputBeforeIO asks a Locker that cannot reach the store any more.
func badInputBeforeIO(e *env) {
	a, b, key := e.open(), e.open(), e.key()
	e.fault(Sever, a)
	req := e.request(key)
	req.TTL = 0
	e.invalid(a, req, "0s")
	e.invalid(a, e.request(""), "empty")
	e.vacant(b, key)
}
