package lock

import (
	"fmt"
	"time"
	"unicode/utf8"
)

// Limits of a [Request] and a [Record], the same on every store.
const (
	MaxKeyLen      = 512                  // bytes of a key
	MaxOwnerLen    = 64                   // bytes of an owner
	MaxMetadataLen = 4096                 // bytes of all metadata names and values together
	MaxTTL         = 366 * 24 * time.Hour // of a grant
	MaxRecord      = 16                   // holders that a Record shows, and waiters
)

// Patience is how long Acquire waits for an answer from a store that is in trouble, before it
// returns the store's error. It is the same on every store.
const Patience = 30 * time.Second

// CheckRequest validates req for a store that declares c. Every Acquire must call it before any
// I/O. Its error names the value and the rule; it is ErrUnsupported for a capability that c
// does not declare, else ErrInvalid.
func CheckRequest(req Request, c Capabilities) error {
	if err := CheckKey(req.Key); err != nil {
		return err
	}
	if err := checkOwner(req.Owner); err != nil {
		return err
	}
	if err := checkUnder(req.Under); err != nil {
		return err
	}
	if err := checkTTL(req.TTL, c); err != nil {
		return err
	}
	if err := checkMetadata(req.Metadata); err != nil {
		return err
	}
	if req.Shared && !c.Shared {
		return unsupported("shared mode", c)
	}
	switch d := req.HeadStart; {
	case d < 0 || d > MaxTTL:
		return fmt.Errorf("%w: head start %v: must be from 0 to %v", ErrInvalid, d, MaxTTL)
	case d > 0 && !c.Priority:
		return unsupported("head starts", c)
	case d > 0 && !req.Wait:
		return fmt.Errorf("%w: head start %v without Wait: a try does not stand in line", ErrInvalid, d)
	}
	return nil
}

func unsupported(what string, c Capabilities) error {
	return fmt.Errorf("%w: store %s does not have %s", ErrUnsupported, c.Store, what)
}

// CheckKey returns an error that is ErrInvalid unless key is non-empty UTF-8 of at most
// MaxKeyLen bytes. Stores call it in Inspect.
func CheckKey(key string) error {
	switch {
	case key == "":
		return fmt.Errorf("%w: key is empty: a key has 1 to %d bytes", ErrInvalid, MaxKeyLen)
	case len(key) > MaxKeyLen:
		return fmt.Errorf("%w: key %.32q… has %d bytes: a key has 1 to %d", ErrInvalid, key, len(key), MaxKeyLen)
	case !utf8.ValidString(key):
		return fmt.Errorf("%w: key %q is not valid UTF-8", ErrInvalid, key)
	}
	return nil
}

// CheckGrant returns an error that is ErrInvalid unless g's key and owner are valid. Stores
// call it in Renew, Release and ForceRelease. Token may be 0, as in an undo. Start and TTL may be 0:
// a Release needs them only to know whether a grant that has gone may have expired.
func CheckGrant(g Grant) error {
	if err := CheckKey(g.Key); err != nil {
		return err
	}
	return checkOwner(g.Owner)
}

func checkUnder(owners []string) error {
	if len(owners) > MaxRecord {
		return fmt.Errorf("%w: under %d owners: at most %d", ErrInvalid, len(owners), MaxRecord)
	}
	for _, owner := range owners {
		if err := checkOwner(owner); err != nil {
			return fmt.Errorf("%w: in Under", err)
		}
	}
	return nil
}

func checkOwner(owner string) error {
	if owner == "" || len(owner) > MaxOwnerLen {
		return fmt.Errorf("%w: owner %.80q has %d bytes: an owner has 1 to %d", ErrInvalid, owner, len(owner), MaxOwnerLen)
	}
	for i := range len(owner) {
		switch b := owner[i]; {
		case 'a' <= b && b <= 'z', 'A' <= b && b <= 'Z', '0' <= b && b <= '9', b == '-', b == '_':
		default:
			return fmt.Errorf("%w: owner %q: byte %q at %d is not of [A-Za-z0-9_-]", ErrInvalid, owner, b, i)
		}
	}
	return nil
}

func checkTTL(ttl time.Duration, c Capabilities) error {
	if ttl <= 0 {
		return fmt.Errorf("%w: TTL %v: must be positive", ErrInvalid, ttl)
	}
	if ttl > MaxTTL {
		return fmt.Errorf("%w: TTL %v: must be at most %v", ErrInvalid, ttl, MaxTTL)
	}
	if ttl < c.MinTTL {
		return fmt.Errorf("%w: TTL %v: store %s needs at least %v", ErrInvalid, ttl, c.Store, c.MinTTL)
	}
	return nil
}

func checkMetadata(m map[string]string) error {
	size := 0
	for k, v := range m {
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return fmt.Errorf("%w: metadata %q=%q is not valid UTF-8", ErrInvalid, k, v)
		}
		size += len(k) + len(v)
	}
	if size > MaxMetadataLen {
		return fmt.Errorf("%w: metadata has %d bytes: at most %d", ErrInvalid, size, MaxMetadataLen)
	}
	return nil
}
