package lock

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func TestCheckRequest(t *testing.T) {
	caps := Capabilities{Store: "test", MinTTL: time.Millisecond}
	good := Request{Key: "k", Owner: "owner-_09AZ", TTL: time.Second}
	require.NoError(t, CheckRequest(good, caps))
	for name, c := range map[string]struct {
		change func(*Request)
		is     error
		says   string
	}{
		"no key":       {func(r *Request) { r.Key = "" }, ErrInvalid, "key is empty"},
		"long key":     {func(r *Request) { r.Key = strings.Repeat("k", 513) }, ErrInvalid, "has 513 bytes"},
		"bad key":      {func(r *Request) { r.Key = "a\xff" }, ErrInvalid, `"a\xff" is not valid UTF-8`},
		"no owner":     {func(r *Request) { r.Owner = "" }, ErrInvalid, "owner"},
		"long owner":   {func(r *Request) { r.Owner = strings.Repeat("o", 65) }, ErrInvalid, "65 bytes"},
		"bad owner":    {func(r *Request) { r.Owner = "a:b" }, ErrInvalid, "':' at 1"},
		"owner of ü":   {func(r *Request) { r.Owner = "ü" }, ErrInvalid, "at 0"},
		"no TTL":       {func(r *Request) { r.TTL = 0 }, ErrInvalid, "must be positive"},
		"negative TTL": {func(r *Request) { r.TTL = -time.Second }, ErrInvalid, "TTL -1s"},
		"short TTL":    {func(r *Request) { r.TTL = time.Microsecond }, ErrInvalid, "store test needs at least 1ms"},
		"head start":   {func(r *Request) { r.Wait, r.HeadStart = true, 1 }, ErrUnsupported, "store test does not have head starts"},
		"past":         {func(r *Request) { r.Wait, r.HeadStart = true, -1 }, ErrInvalid, "head start -1ns: must be from 0"},
		"before all":   {func(r *Request) { r.Wait, r.HeadStart = true, MaxTTL+1 }, ErrInvalid, "to 8784h0m0s"},
		"shared":       {func(r *Request) { r.Shared = true }, ErrUnsupported, "store test"},
		"much metadata": {
			func(r *Request) { r.Metadata = map[string]string{"a": strings.Repeat("x", 4095), "b": ""} },
			ErrInvalid, "4097 bytes",
		},
		"metadata name": {func(r *Request) { r.Metadata = map[string]string{"\xff": ""} }, ErrInvalid, "UTF-8"},
	} {
		t.Run(name, func(t *testing.T) {
			r := good
			c.change(&r)
			err := CheckRequest(r, caps)
			require.ErrorIs(t, err, c.is)
			require.ErrorContains(t, err, c.says)
		})
	}
	caps.Priority = true
	good.HeadStart = MaxTTL
	require.ErrorIs(t, CheckRequest(good, caps), ErrInvalid)
	require.ErrorContains(t, CheckRequest(good, caps), "without Wait")
	good.Wait = true
	require.NoError(t, CheckRequest(good, caps))
	for _, key := range []string{"/", "{}", "}", "..", "\x00", "\n", "ü", strings.Repeat("k", MaxKeyLen)} {
		require.NoError(t, CheckKey(key))
	}
	require.NoError(t, checkMetadata(map[string]string{"k": strings.Repeat("x", MaxMetadataLen-1)}))
	require.NoError(t, checkOwner(strings.Repeat("o", MaxOwnerLen)))
}

func TestCheckGrant(t *testing.T) {
	require.NoError(t, CheckGrant(Grant{Key: "k", Owner: "o"}))
	for says, g := range map[string]Grant{
		"key is empty": {Owner: "o"},
		"owner":        {Key: "k"},
		"':' at 1":     {Key: "k", Owner: "a:b"},
	} {
		err := CheckGrant(g)
		require.ErrorIs(t, err, ErrInvalid, says)
		require.ErrorContains(t, err, says)
	}
}

func FuzzCheckKey(f *testing.F) {
	for _, s := range []string{"", "k", "\xff", "a\x00b", strings.Repeat("k", 513)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, key string) {
		ok := key != "" && len(key) <= MaxKeyLen && utf8.ValidString(key)
		err := CheckKey(key)
		require.Equal(t, ok, err == nil)
		if err != nil {
			require.ErrorIs(t, err, ErrInvalid)
			require.True(t, utf8.ValidString(err.Error()), "fit for a log")
		}
	})
}
