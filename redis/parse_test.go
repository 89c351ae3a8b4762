package redis

import (
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storekit"
)

// slotOf is what a Cluster hashes of a key's name.
func slotOf(name string) string {
	if _, rest, ok := strings.Cut(name, "{"); ok {
		if tag, _, ok := strings.Cut(rest, "}"); ok && tag != "" {
			return tag
		}
	}
	return name
}

// FuzzKeyEncoding: encode is injective, all keys of a lock have one hash tag, and lockOf
// finds the way back, of the lock's own prefix only.
func FuzzKeyEncoding(f *testing.F) {
	for _, key := range []string{"a", "{}", "}{", "%7B", "%", "%%", "%2", "{a}b", "\x00", "ключ", "a:r", "a}:q", "*[]?\\"} {
		f.Add(key, "a")
		f.Add(key, key+"x")
	}
	l, stranger := New(nil, WithPrefix("p:")), New(nil, WithPrefix("q:"))
	f.Fuzz(func(t *testing.T, one, other string) {
		if lock.CheckKey(one) != nil || lock.CheckKey(other) != nil {
			return
		}
		if (escaping.Encode(one) == escaping.Encode(other)) != (one == other) {
			t.Fatalf("%q and %q become %q and %q", one, other, escaping.Encode(one), escaping.Encode(other))
		}
		back, ok := escaping.Decode(escaping.Encode(one))
		if !ok || back != one {
			t.Fatalf("%q becomes %q", one, back)
		}
		for _, name := range l.keys(one).all() {
			if slotOf(name) != escaping.Encode(one) {
				t.Fatalf("%q: %q is in the slot of %q", one, name, slotOf(name))
			}
		}
		for _, name := range []string{l.keys(one).record(), l.keys(one).record() + ":q"} {
			if key, ok := l.lockOf(name); !ok || key != one {
				t.Fatalf("lockOf(%q) is %q, %t", name, key, ok)
			}
			if key, ok := stranger.lockOf(name); ok {
				t.Fatalf("another prefix: %q", key)
			}
		}
		if key, ok := escaping.Decode(other); ok && escaping.Encode(key) != other {
			t.Fatalf("decode takes %q, which encode does not make", other)
		}
	})
}

const testProcess = "0123456789abcdefghij-_"

// FuzzParseRecord: never a panic, and what the scripts write comes back.
func FuzzParseRecord(f *testing.F) {
	f.Add("1790000000000000:owner:1790000000000000:"+testProcess, int64(1790000000000001), int64(5))
	f.Add("1:o:2:"+testProcess+`{"a":"b"}*`, int64(1), int64(-1))
	f.Add("+", int64(0), int64(0))
	f.Add(":::", int64(-1), int64(-2))
	f.Fuzz(func(t *testing.T, s string, now, pttl int64) {
		h, ok := parseRecord(s, now, pttl%1e12)
		if !ok {
			return
		}
		if h.Owner == "" || h.Token == 0 || h.Token > lock.MaxToken || h.Held < 0 || h.Shared {
			t.Fatalf("%q is %+v", s, h)
		}
		wrote := h.Token.String() + ":" + h.Owner + ":"
		if !strings.HasPrefix(s, wrote) {
			t.Fatalf("%q is %+v", s, h)
		}
		checkMetadata(t, s, h.Metadata)
	})
}

// FuzzParseReader is FuzzParseRecord for a reader's info.
func FuzzParseReader(f *testing.F) {
	f.Add("1790000000000"+"1790000000000000:1790000000000000:"+testProcess, int64(1780000000000001))
	f.Add("0000000000001"+"1:2:"+testProcess+`{"a":"b"}`, int64(1))
	f.Add("9999999999999"+"1:2:"+testProcess, int64(-1<<63))
	f.Add("", int64(0))
	f.Fuzz(func(t *testing.T, s string, now int64) {
		h, ok := parseReader("o", s, now)
		if !ok {
			return
		}
		if h.Owner != "o" || h.Token == 0 || h.Token > lock.MaxToken || h.Held < 0 || !h.Shared || h.ExpiresIn < 0 {
			t.Fatalf("%q is %+v", s, h)
		}
		checkMetadata(t, s, h.Metadata)
	})
}

// FuzzParseWaiter is FuzzParseRecord for a place in line.
func FuzzParseWaiter(f *testing.F) {
	f.Add("1790000000000x17900000000000000000000060000"+testProcess, int64(1780000000000001))
	f.Add("1790000000000s17900000000000000000000060000"+testProcess+`{"a":"b"}`, int64(1780000000000001))
	f.Add("", int64(0))
	f.Fuzz(func(t *testing.T, s string, now int64) {
		w, ok := parseWaiter("o", s, now)
		if !ok {
			return
		}
		if w.Owner != "o" || w.Waited < 0 || w.Shared != (s[13] == 's') {
			t.Fatalf("%q is %+v", s, w)
		}
		checkMetadata(t, s, w.Metadata)
	})
}

// checkMetadata: what was read would be written, and read, the same.
func checkMetadata(t *testing.T, s string, m map[string]string) {
	t.Helper()
	again, _, ok := parseTail(testProcess + storekit.EncodeMetadata(m))
	if !ok || len(again) != len(m) {
		t.Fatalf("%q has metadata %q, which becomes %q", s, m, again)
	}
	for k, v := range m {
		if utf8.ValidString(k) && utf8.ValidString(v) && again[k] != v {
			t.Fatalf("%q has metadata %q, which becomes %q", s, m, again)
		}
	}
}

// TestParseWhatScriptsWrite composes entries as the Lua files describe them.
func TestParseWhatScriptsWrite(t *testing.T) {
	const now = int64(1790000005000000) // µs
	m := map[string]string{"host": "a:b*", "why": `"}*`, "": ""}
	for _, mark := range []string{"", "*"} {
		h, ok := parseRecord("1790000000000000:me:1790000002000000:"+testProcess+storekit.EncodeMetadata(m)+mark, now, 1500)
		require.True(t, ok)
		require.Equal(t, lock.Holder{
			Owner: "me", Token: 1790000000000000, Held: 3 * time.Second, ExpiresIn: 1500 * time.Millisecond, Metadata: m,
		}, h)
		h, ok = parseRecord("1:me:1790000002000000:"+testProcess+mark, now, -1)
		require.True(t, ok)
		require.Nil(t, h.Metadata)
		require.Negative(t, h.ExpiresIn)
	}
	h, ok := parseReader("me", "1790000007500"+"7:1790000002000000:"+testProcess+storekit.EncodeMetadata(m), now)
	require.True(t, ok)
	require.Equal(t, lock.Holder{
		Owner: "me", Token: 7, Shared: true, Held: 3 * time.Second, ExpiresIn: 2500 * time.Millisecond, Metadata: m,
	}, h)
	_, ok = parseReader("me", "1790000005000"+"7:1790000002000000:"+testProcess, now)
	require.True(t, ok, "its last millisecond")
	_, ok = parseReader("me", "1790000004999"+"7:1790000002000000:"+testProcess, now)
	require.False(t, ok, "its time is over")
	for mode, shared := range map[string]bool{"x": false, "s": true} {
		under := []string{"another", "and-another"}
		note := storekit.EncodeNote(&lock.Request{Metadata: m, Under: under})
		w, ok := parseWaiter("me", "1790000007500"+mode+"1790000002000000"+"0000000060000"+testProcess+note, now)
		require.True(t, ok)
		require.Equal(t, lock.Waiter{Owner: "me", Shared: shared, Waited: 3 * time.Second, Metadata: m, Under: under}, w)
		_, ok = parseWaiter("me", "1790000005000"+mode+"1790000002000000"+"0000000060000"+testProcess, now)
		require.False(t, ok, "its heartbeat is over")
	}
	for _, s := range []string{
		"", "+", "1", "1:me", "1:me:2", "0:me:2:" + testProcess, "01:me:2:" + testProcess, "1::2:" + testProcess,
		"1:me:x:" + testProcess, "1:me:2:short", "1:me:2:" + testProcess + "{", "1:me:2:" + testProcess + "null",
		strconv.Itoa(1<<53) + ":me:2:" + testProcess,
	} {
		_, ok := parseRecord(s, now, 1)
		require.False(t, ok, s)
	}
}
