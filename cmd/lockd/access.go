package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/seed-215fdefa/lock/httplock"
)

// minToken is the least length of a token that the file has in the clear: whoever chose it may have
// chosen a password, and there is no other bound on guesses.
const minToken = 16

// groups are the words for actions in the file.
var groups = map[string][]httplock.Action{
	"lock":  {httplock.ActionAcquire, httplock.ActionRenew, httplock.ActionRelease},
	"read":  {httplock.ActionInspect, httplock.ActionList, httplock.ActionWatch, httplock.ActionEvents},
	"force": {httplock.ActionForce},
}

// access is what the file of --tokens says. It does not change.
type access struct{ callers []*caller }

// caller is somebody whom the file names.
type caller struct {
	name        string
	hashes      [][sha256.Size]byte // of its tokens
	certificate string              // its common name; "" = none
	rights      []right
}

type right struct {
	prefix  string
	actions map[httplock.Action]bool
}

var errForbidden = errors.New("lockd: the caller has no right to this")

func loadAccess(file string) (*access, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	a, err := parseAccess(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return a, nil
}

// callerEntry is a caller in the file.
type callerEntry struct {
	Name        string
	Tokens      []string
	Certificate string
	Rights      []struct {
		Prefix  *string
		Actions []string
	}
}

// parseAccess reads the file. Its errors show no token.
func parseAccess(b []byte) (*access, error) {
	var file struct{ Callers []callerEntry }
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&file); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is something behind the JSON object")
	}
	if len(file.Callers) == 0 {
		return nil, errors.New("it has no callers")
	}
	a, names, credentials := new(access), map[string]bool{}, map[string]string{}
	for i, e := range file.Callers {
		c, err := e.caller()
		switch {
		case err != nil:
			return nil, fmt.Errorf("caller %d (%q): %w", i+1, e.Name, err)
		case names[c.name]:
			return nil, fmt.Errorf("caller %d (%q): there is another one of that name: give one both tokens", i+1, e.Name)
		}
		names[c.name] = true
		for _, id := range c.credentials() {
			if other := credentials[id]; other != "" {
				return nil, fmt.Errorf("caller %d (%q) has a token or certificate of %q", i+1, e.Name, other)
			}
			credentials[id] = c.name
		}
		a.callers = append(a.callers, c)
	}
	return a, nil
}

func (e callerEntry) caller() (*caller, error) {
	c := &caller{name: e.Name, certificate: e.Certificate}
	if e.Name == "" {
		return nil, errors.New("it has no name")
	}
	if len(e.Tokens) == 0 && e.Certificate == "" {
		return nil, errors.New("it has neither tokens nor a certificate")
	}
	for i, t := range e.Tokens {
		h, err := hashOf(t)
		if err != nil {
			return nil, fmt.Errorf("token %d: %w", i+1, err)
		}
		c.hashes = append(c.hashes, h)
	}
	for i, r := range e.Rights {
		if r.Prefix == nil {
			return nil, fmt.Errorf(`right %d has no prefix: "" is every key`, i+1)
		}
		own := right{*r.Prefix, map[httplock.Action]bool{}}
		for _, name := range r.Actions {
			if groups[name] == nil {
				return nil, fmt.Errorf("right %d: unknown action %q: want lock, read or force", i+1, name)
			}
			for _, action := range groups[name] {
				own.actions[action] = true
			}
		}
		c.rights = append(c.rights, own)
	}
	return c, nil
}

// credentials are what nobody else may have.
func (c *caller) credentials() []string {
	var ids []string
	for _, h := range c.hashes {
		ids = append(ids, "token "+string(h[:]))
	}
	if c.certificate != "" {
		ids = append(ids, "certificate "+c.certificate)
	}
	return ids
}

func hashOf(token string) (h [sha256.Size]byte, err error) {
	encoded, hashed := strings.CutPrefix(token, "sha256:")
	switch {
	case hashed:
		b, err := hex.DecodeString(encoded)
		if err != nil || len(b) != len(h) {
			return h, fmt.Errorf("what follows sha256: must be %d hex digits", 2*len(h))
		}
		if [sha256.Size]byte(b) == sha256.Sum256(nil) { // which is a password that everybody has
			return h, errors.New("it is the hash of nothing: the token was empty when it was hashed")
		}
		return [sha256.Size]byte(b), nil
	case len(token) < minToken:
		return h, fmt.Errorf("it has %d characters: at least %d, drawn at random", len(token), minToken)
	case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }):
		return h, errors.New("a header cannot carry it: want visible ASCII without spaces")
	}
	return sha256.Sum256([]byte(token)), nil
}

// identify returns who sends r, or nil. A wrong token is not made good by a certificate.
func (f *files) identify(r *http.Request) *caller {
	a := f.access
	if auth := r.Header.Get("Authorization"); auth != "" {
		if _, password, ok := r.BasicAuth(); ok { // of a browser, or of a URL: the name does not matter
			return a.byToken(password)
		}
		scheme, token, _ := strings.Cut(auth, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return nil
		}
		return a.byToken(strings.TrimSpace(token))
	}
	if r.TLS == nil || !f.trusts(r.TLS.PeerCertificates) {
		return nil
	}
	name := r.TLS.PeerCertificates[0].Subject.CommonName
	for _, c := range a.callers {
		if c.certificate != "" && c.certificate == name {
			return c
		}
	}
	return nil
}

// byToken compares with each token, so that the time it takes tells nothing of them.
func (a *access) byToken(token string) (found *caller) {
	h := sha256.Sum256([]byte(token))
	for _, c := range a.callers {
		for i := range c.hashes {
			if subtle.ConstantTimeCompare(h[:], c.hashes[i][:]) == 1 {
				found = c
			}
		}
	}
	return found
}

// may reports whether c has the right. A list needs it for all that begins with key.
func (c *caller) may(action httplock.Action, key string) bool {
	for _, r := range c.rights {
		if r.actions[action] && strings.HasPrefix(key, r.prefix) {
			return true
		}
	}
	return false
}

type callerKey struct{}

// withCaller is r with who sends it, which stays so although the file may be read anew meanwhile; but see
// authorize.
func withCaller(r *http.Request, c *caller) *http.Request {
	return r.WithContext(context.WithValue(r.Context(), callerKey{}, c))
}

// callerOf is who sends r, or nil.
func callerOf(r *http.Request) *caller {
	c, _ := r.Context().Value(callerKey{}).(*caller)
	return c
}

// nameOf is the name of who sends r, or "".
func nameOf(r *http.Request) string {
	if c := callerOf(r); c != nil {
		return c.name
	}
	return ""
}

// authorize is what the handler asks, about a stream again and again: that outlives the file.
func (s *service) authorize(r *http.Request, action httplock.Action, key string) error {
	c := callerOf(r)
	if action == httplock.ActionWatch || action == httplock.ActionEvents {
		c = s.files.Load().identify(r)
	}
	switch {
	case c == nil:
		return httplock.ErrUnauthenticated
	case !c.may(action, key):
		return errForbidden
	}
	return nil
}
