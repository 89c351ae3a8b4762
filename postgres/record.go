package postgres

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/seed-215fdefa/lock"
)

// holderJSON is what the function holders says of a grant; times in µs.
type holderJSON struct {
	O string
	T lock.Token
	S bool
	L int64 // left of the TTL
	H int64 // held, by the token, which is the time of the grant unless the clock was set back
	M *string
}

// waiterJSON is what the function line says of a place.
type waiterJSON struct {
	O string
	S bool
	W int64 // waited, µs
	M *string
}

func holders(list []holderJSON) []lock.Holder {
	var all []lock.Holder
	for _, h := range list {
		all = append(all, lock.Holder{
			Owner: h.O, Token: h.T, Shared: h.S, Held: micros(h.H), ExpiresIn: micros(h.L), Metadata: decodeMetadata(h.M),
		})
	}
	return all
}

func waiters(list []waiterJSON) []lock.Waiter {
	var all []lock.Waiter
	for _, w := range list {
		all = append(all, lock.Waiter{Owner: w.O, Shared: w.S, Waited: micros(w.W), Metadata: decodeMetadata(w.M)})
	}
	return all
}

// micros is never negative: a server's clock may be set back.
func micros(n int64) time.Duration { return time.Duration(max(n, 0)) * time.Microsecond }

// encodeMetadata makes JSON of ASCII only, which a database of any encoding can keep.
func encodeMetadata(m map[string]string) any {
	if len(m) == 0 {
		return nil
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic("lock/postgres: a map of strings has no JSON: " + err.Error())
	}
	var ascii strings.Builder
	for _, r := range string(b) {
		switch r1, r2 := utf16.EncodeRune(r); {
		case r < 0x7f:
			ascii.WriteRune(r)
		case r <= 0xffff:
			fmt.Fprintf(&ascii, `\u%04x`, r)
		default:
			fmt.Fprintf(&ascii, `\u%04x\u%04x`, r1, r2)
		}
	}
	return ascii.String()
}

// decodeMetadata ignores what is not JSON: somebody else has written it.
func decodeMetadata(s *string) map[string]string {
	if s == nil {
		return nil
	}
	var m map[string]string
	if json.Unmarshal([]byte(*s), &m) != nil {
		return nil
	}
	return m
}
