package locktest

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	lock "github.com/seed-215fdefa/lock"
)

func keys() group {
	const opaque = "Keys are opaque. Any non-empty UTF-8 string of up to [MaxKeyLen] bytes is a key of its own: \"/\", \"{}\", a leading \"}\", \"..\", NUL, controls, case. Stores must encode injectively."
	return group{"KeysAreOpaque", []row{
		{"Independent", opaque, both, nil, keysAreIndependent},
		{"InLine", opaque, both, nil, keysAreIndependentInLine},
	}}
}

// hostile are keys that some encoding mixes up.
func hostile() []string {
	ks := []string{
		"/", "//", "a/b", "a//b", "/a/b", "a/b/", "a", "a/", "/a", "./a", "a/..", ".", "..", "...",
		"{}", "{", "}", "}{", "}a{", "{a}", "{a}b", "a{b}", "{}a", "}a",
		"A", "á", "a\u0301", "ａ", "ß", "ss", "ı", "I", "i", "\u200b", "a\u200b", "\ufeff", "\ufffd", "😀",
		"\x00", "\x00\x00", "a\x00", "\x00a", "a\x00b", "\x01", "\n", "\r\n", "\t", "\x1b", "\x7f", "a\n", "\u2028",
		" ", "  ", " a", "a ", "+", "%", "%00", "a%2Fb", "a%2fb", "&", "?", "#", "*", "[a]", "[^a]", "a*", "a?",
		"\\", "\\x00", "\\\\", "'", "''", "\"", "`", ";", "--", "$1", "a,b", "a;b", "a=b", "a|b", "_", "a_b", "a-b",
		"a:b", "a:", ":a", ":", "::", "0", "00", "1", "01", "-1", "1e3", "1000", "true", "null", "nil",
	}
	for _, suffix := range []string{
		"t", "token", "fence", "counter", "q", "queue", "w", "waiters", "line", "readers", "holders", "lock", "owner", "undo",
	} {
		ks = append(ks, "a:"+suffix, suffix+":a")
	}
	ks = append(ks, escaped()...)
	long := strings.Repeat("k", lock.MaxKeyLen-1)
	ks = append(ks, long, long+"1", long+"2", long[:255], long[:256], strings.Repeat("é", lock.MaxKeyLen/2),
		strings.Repeat("/", lock.MaxKeyLen), strings.Repeat("\x00", lock.MaxKeyLen))
	slices.Sort(ks)
	return slices.Compact(ks)
}

// escaped are the forms that encodings give to keys of hostile.
func escaped() []string {
	seen := map[string]bool{}
	var ks []string
	for _, key := range []string{"/", "a/b", "\x00", "a\x00b", "é", "{a}", "a:b", "%", "a b", "..", "\n", "\\"} {
		for _, form := range []string{
			url.PathEscape(key), url.QueryEscape(key), strings.ToLower(url.QueryEscape(key)), percent(key),
			base64.StdEncoding.EncodeToString([]byte(key)), base64.RawURLEncoding.EncodeToString([]byte(key)),
			hex.EncodeToString([]byte(key)), strings.ToUpper(hex.EncodeToString([]byte(key))), fmt.Sprintf("\\x%x", key),
			strings.Trim(strconv.QuoteToASCII(key), `"`), strings.ReplaceAll(key, "/", "__"), "{" + key + "}", key + "=",
		} {
			if form != key && !seen[form] {
				seen[form] = true
				ks = append(ks, form)
			}
		}
	}
	return ks
}

// percent escapes each byte.
func percent(key string) string {
	var b strings.Builder
	for i := range len(key) {
		fmt.Fprintf(&b, "%%%02X", key[i])
	}
	return b.String()
}

// keysAreIndependent holds all keys at once, then checks that each is held by the one
// who holds it, and that it can be released, and is free then, whatever other was.
func keysAreIndependent(e *env) {
	a, b := e.open(), e.open()
	var hs []held
	for _, key := range hostile() {
		h, err := e.tryAcquire(a, e.request(key))
		if err != nil {
			e.fail(fmt.Sprintf("key %.40q to be free, whatever other key is held", key), "%v", err)
		}
		e.outlast(h)
		hs = append(hs, h)
	}
	for _, h := range hs {
		e.mustBeHeld(b, e.rival(h.g.Key))
		if rec := e.mustInspect(b, h.g.Key); len(rec.Holders) != 1 || rec.Holders[0].Owner != h.g.Owner {
			e.fail(fmt.Sprintf("%s to be the only holder of %.40q", h.g.Owner, h.g.Key), "%+v", rec.Holders)
		}
	}
	for len(hs) > 0 {
		h := hs[0]
		hs = hs[1:]
		e.mustRelease(h)
		e.free(b, h.g.Key)
	}
}

// keysAreIndependentInLine has one wait for a key whose line, or whose counter, may be
// stored under the name of another key.
func keysAreIndependentInLine(e *env) {
	a, b := e.open(), e.open()
	blocker := e.lasting(a, e.rival("a"))
	w := e.wait(b, e.request("a"))
	for _, key := range hostile() {
		if key == "a" {
			continue
		}
		if rec := e.mustInspect(b, key); len(rec.Holders)+len(rec.Waiters) > 0 {
			e.fail(fmt.Sprintf("nobody at key %.40q", key), "%+v", rec)
		}
		e.mustRelease(e.mustAcquire(b, e.request(key)))
	}
	w.still()
	e.only(b, blocker)
	e.mustRelease(blocker)
	e.mustRelease(w.granted())
	e.vacant(a, "a")
}
