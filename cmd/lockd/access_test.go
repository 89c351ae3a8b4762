package main

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/httplock"
)

const (
	webToken = "web-geheim-0123456789"
	opsToken = "ops-geheim-0123456789"
)

func sha(token string) string {
	h := sha256.Sum256([]byte(token))
	return "sha256:" + hex.EncodeToString(h[:])
}

func tokensFile() string { return callersFile("", "") }

func certificatesFile() string {
	return callersFile(`"certificate": "web.example",`, `, {"name": "nobody", "certificate": "nobody.example"}`)
}

func callersFile(ofWeb, more string) string {
	return `{"callers": [
		{"name": "web", "tokens": ["` + sha(webToken) + `"], ` + ofWeb + `
		 "rights": [{"prefix": "web:", "actions": ["lock", "read"]}, {"prefix": "shared:", "actions": ["read"]}]},
		{"name": "ops", "tokens": ["` + opsToken + `", "ops-another-0123456789"],
		 "rights": [{"prefix": "", "actions": ["read", "force"]}]}
	` + more + `]}`
}

func TestRights(t *testing.T) {
	a, err := parseAccess([]byte(certificatesFile()))
	require.NoError(t, err)
	for _, c := range []struct {
		token, action, key string
		may                bool
	}{
		{webToken, "acquire", "web:a", true},
		{webToken, "renew", "web:a", true},
		{webToken, "release", "web:", true},
		{webToken, "inspect", "web:a", true},
		{webToken, "watch", "web:a", true},
		{webToken, "list", "web:a", true},
		{webToken, "events", "web:a", true},
		{webToken, "events", "web", false},
		{webToken, "list", "web", false}, // that is more than web:
		{webToken, "list", "", false},
		{webToken, "force", "web:a", false},
		{webToken, "acquire", "we", false},
		{webToken, "acquire", "WEB:a", false},
		{webToken, "acquire", "shared:a", false},
		{webToken, "inspect", "shared:a", true},
		{webToken, "", "web:a", false},
		{opsToken, "force", "web:a", true},
		{"ops-another-0123456789", "list", "", true},
		{opsToken, "acquire", "web:a", false},
		{opsToken, "release", "web:a", false},
	} {
		who := a.byToken(c.token)
		require.NotNil(t, who, c.token)
		assert.Equal(t, c.may, who.may(httplock.Action(c.action), c.key), "%+v", c)
	}
}

// identifier is files of certificatesFile and an authority.
func identifier(t *testing.T, a *authority) *files {
	t.Helper()
	cert, key := a.issue(t, "localhost").files(t)
	f, err := config{tokens: write(t, "tokens", certificatesFile()), cert: cert, key: key, clientCA: write(t, "ca", a.pem())}.load()
	require.NoError(t, err)
	return f
}

// asked is a request with a certificate, and others that it sent.
func asked(t *testing.T, pairs ...tls.Certificate) *http.Request {
	t.Helper()
	r := httptest.NewRequest("GET", "/v1/locks/web:a", nil)
	r.TLS = new(tls.ConnectionState)
	for _, pair := range pairs {
		cert, err := x509.ParseCertificate(pair.Certificate[0])
		require.NoError(t, err)
		r.TLS.PeerCertificates = append(r.TLS.PeerCertificates, cert)
	}
	return r
}

func TestIdentify(t *testing.T) {
	authority := newAuthority(t)
	f := identifier(t, authority)
	for _, c := range []struct{ header, certificate, want string }{
		{"", "", ""},
		{"Bearer " + webToken, "", "web"},
		{"bearer  " + opsToken, "", "ops"},
		{"Bearer " + sha(webToken), "", ""}, // what the file shows is no token
		{"Bearer " + webToken[1:], "", ""},
		{"Bearer", "", ""},
		{"Bearer ", "", ""},
		{"Basic " + webToken, "", ""},
		{webToken, "", ""},
		{"", "web.example", "web"},
		{"", "nobody.example", "nobody"},
		{"", "other.example", ""},
		{"", "ops", ""}, // the name is not the certificate's
		{"Bearer " + opsToken, "web.example", "ops"},
		{"Bearer wrong", "web.example", ""},
	} {
		r := asked(t)
		if c.certificate != "" {
			r = asked(t, authority.issue(t, c.certificate).pair)
		}
		r.Header.Set("Authorization", c.header)
		assert.Equal(t, c.want, nameOf(withCaller(r, f.identify(r))), "%+v", c)
	}
	assert.Nil(t, f.identify(asked(t, authority.issue(t, "").pair)), "it has no common name")
	assert.Nil(t, f.identify(httptest.NewRequest("GET", "/v1/locks/web:a", nil)), "it came without TLS")
}

// TestTrust asks once more what the handshake has asked.
func TestTrust(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		authority, another := newAuthority(t), newAuthority(t)
		f := identifier(t, authority)
		assert.Nil(t, f.identify(asked(t, another.issue(t, "web.example").pair)), "nobody has signed it")
		assert.Nil(t, f.identify(asked(t, authority.sign(t, &x509.Certificate{
			Subject: pkix.Name{CommonName: "web.example"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		}))), "it is for servers")

		below, pair := authority.below(t)
		leaf := below.issue(t, "web.example").pair
		assert.Nil(t, f.identify(asked(t, leaf)), "who has signed it is unknown")
		assert.NotNil(t, f.identify(asked(t, leaf, pair)))
		f.tls.ClientCAs = nil
		assert.Nil(t, f.identify(asked(t, leaf, pair)), "nobody may sign")

		f, leaf = identifier(t, authority), authority.issue(t, "web.example").pair
		for range 2 {
			assert.NotNil(t, f.identify(asked(t, leaf)))
		}
		time.Sleep(2 * time.Hour)
		assert.Nil(t, f.identify(asked(t, leaf)), "its time is over")

		authority = newAuthority(t)
		f = identifier(t, authority)
		for i := range maxTrusted {
			f.trusted[[sha256.Size]byte{byte(i), byte(i >> 8)}] = time.Now()
		}
		assert.NotNil(t, f.identify(asked(t, authority.issue(t, "web.example").pair)))
		assert.Len(t, f.trusted, 1, "it would grow for ever")
	})
}

func TestBadTokensFiles(t *testing.T) {
	one := func(fields string) string { return `{"callers": [{"name": "a", ` + fields + `}]}` }
	for file, says := range map[string]string{
		"":                                     "EOF",
		"geheim":                               "invalid character",
		`{}`:                                   "no callers",
		`{"callers": []}`:                      "no callers",
		`{"callers": [{"tokens": ["x"]}]}`:     "no name",
		`{"callers": [{"name": "a"}]}`:         `caller 1 ("a"): it has neither tokens nor a certificate`,
		one(`"tokens": ["geheim"]`):            "token 1: it has 6 characters",
		one(`"tokens": ["sha256:geheim"]`):     "64 hex digits",
		one(`"tokens": ["sha256:0123456789"]`): "64 hex digits",
		one(`"tokens": ["` + sha("") + `"]`):   "token 1: it is the hash of nothing",
		one(`"tokens": ["geheim geheim geheim"]`):                                                                          "without spaces",
		one(`"tokens": "geheim"`):                                                                                          "cannot unmarshal",
		one(`"certificate": "c", "rights": [{"actions": ["lock"]}]`):                                                       "right 1 has no prefix",
		one(`"certificate": "c", "rights": [{"prefix": "", "actions": ["acquire"]}]`):                                      `unknown action "acquire"`,
		one(`"certificate": "c", "right": []`):                                                                             `unknown field "right"`,
		one(`"certificate": "c"`) + "{}":                                                                                   "something behind",
		`{"callers": [{"name": "a", "certificate": "c"}, {"name": "a", "certificate": "d"}]}`:                              `caller 2 ("a")`,
		`{"callers": [{"name": "a", "certificate": "c"}, {"name": "b", "certificate": "c"}]}`:                              `of "a"`,
		`{"callers": [{"name": "a", "tokens": ["` + webToken + `"]}, {"name": "b", "tokens": ["` + sha(webToken) + `"]}]}`: `of "a"`,
	} {
		_, err := parseAccess([]byte(file))
		if assert.ErrorContains(t, err, says, file) {
			assert.NotContains(t, err.Error(), "geheim", file)
		}
	}
}
