package httplock

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"

	"github.com/seed-215fdefa/lock"
)

const locksPath = "/v1/locks/"

// escapeKey writes key as one segment of a path. Bytes that proxies change or refuse even when they
// are percent-encoded (a slash, a dot segment, a control) make it "=" and the key in URL-safe
// base64 without padding.
func escapeKey(key string) string {
	if strings.Trim(key, ".") == "" || strings.ContainsFunc(key, func(r rune) bool {
		return r < ' ' || r == 0x7f || r == '/' || r == '\\' || r == '%'
	}) {
		return "=" + base64.RawURLEncoding.EncodeToString([]byte(key))
	}
	// In a query nothing but letters, digits and "-_.~" stands for itself. The colon that precedes
	// a verb must be the only one.
	return strings.ReplaceAll(url.QueryEscape(key), "+", "%20")
}

// unescapeKey reads what escapeKey, or anybody else's percent-encoding, has written.
func unescapeKey(segment string) (string, error) {
	if encoded, ok := strings.CutPrefix(segment, "="); ok {
		key, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
		if err != nil {
			return "", fmt.Errorf("%w: key %.80q: what follows \"=\" must be URL-safe base64 without padding", lock.ErrInvalid, segment)
		}
		return string(key), lock.CheckKey(string(key))
	}
	key, err := url.PathUnescape(segment)
	if err != nil {
		return "", fmt.Errorf("%w: key %.80q is not percent-encoded", lock.ErrInvalid, segment)
	}
	return strings.Clone(key), lock.CheckKey(key) // else it keeps the whole line of the request
}

// splitVerb splits what follows /v1/locks/ at its last colon. Only an escaped colon belongs to
// the key if a verb may follow it.
func splitVerb(segment string) (key, verb string) {
	if i := strings.LastIndexByte(segment, ':'); i >= 0 {
		return segment[:i], segment[i+1:]
	}
	return segment, ""
}
