package storekit

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"

	"github.com/seed-215fdefa/lock"
)

// CheckRenewal is what Renew checks before any I/O: lock.CheckGrant, and that the TTL is
// positive and at most lock.MaxTTL. Its errors are lock.ErrInvalid.
func CheckRenewal(g lock.Grant) error {
	switch {
	case g.TTL <= 0:
		return fmt.Errorf("%w: TTL %v: must be positive", lock.ErrInvalid, g.TTL)
	case g.TTL > lock.MaxTTL:
		return fmt.Errorf("%w: TTL %v: must be at most %v", lock.ErrInvalid, g.TTL, lock.MaxTTL)
	}
	return lock.CheckGrant(g)
}

// Bound counts the holders and waiters of a record that has all of them, and leaves the first
// lock.MaxRecord of each. Counts that are higher already stay.
func Bound(r *lock.Record) {
	r.HolderCount = max(r.HolderCount, len(r.Holders))
	r.WaiterCount = max(r.WaiterCount, len(r.Waiters))
	r.Holders = r.Holders[:min(len(r.Holders), lock.MaxRecord)]
	r.Waiters = r.Waiters[:min(len(r.Waiters), lock.MaxRecord)]
}

// EncodeNote is what a request says of itself for others to see: its Metadata and whom it is
// Under. Without Under it is that of EncodeMetadata.
func EncodeNote(req *lock.Request) string {
	m := EncodeMetadata(req.Metadata)
	if len(req.Under) == 0 {
		return m
	}
	return "[" + strings.Join(req.Under, ",") + "]" + m
}

// DecodeNote is the inverse of EncodeNote. It is not ok for what that has not made.
func DecodeNote(s string) (m map[string]string, under []string, ok bool) {
	if rest, found := strings.CutPrefix(s, "["); found {
		owners, metadata, found := strings.Cut(rest, "]")
		under, s = strings.Split(owners, ","), metadata
		if !found || slices.Contains(under, "") {
			return nil, nil, false
		}
	}
	m, ok = DecodeMetadata(s)
	if !ok {
		return nil, nil, false
	}
	return m, under, true
}

// EncodeMetadata is m as a JSON object, or "" if it is empty. It is ASCII, which a store of
// any encoding keeps.
func EncodeMetadata(m map[string]string) string {
	if len(m) == 0 {
		return ""
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic("lock/storekit: a map of strings has no JSON: " + err.Error())
	}
	var ascii strings.Builder
	for _, r := range string(b) {
		switch high, low := utf16.EncodeRune(r); {
		case r < 0x7f:
			ascii.WriteByte(byte(r))
		case r <= 0xffff:
			fmt.Fprintf(&ascii, `\u%04x`, r)
		default:
			fmt.Fprintf(&ascii, `\u%04x\u%04x`, high, low)
		}
	}
	return ascii.String()
}

// DecodeMetadata is the inverse of EncodeMetadata. It is not ok for what is not a JSON object
// of strings: somebody else wrote that.
func DecodeMetadata(s string) (m map[string]string, ok bool) {
	if s == "" {
		return nil, true
	}
	if json.Unmarshal([]byte(s), &m) != nil {
		return nil, false
	}
	return m, m != nil
}
