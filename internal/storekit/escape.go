package storekit

// Escaping writes keys where only some bytes are allowed: each other byte, and "%" itself,
// becomes %XX. It is injective and keeps prefixes: Encode(a) begins with Encode(b) if, and
// only if, a begins with b.
type Escaping struct{ plain [256]bool }

// NewEscaping returns the Escaping under which the bytes for which plain is true stand for
// themselves. "%" never does.
func NewEscaping(plain func(byte) bool) *Escaping {
	e := new(Escaping)
	for b := range 256 {
		e.plain[b] = b != '%' && plain(byte(b))
	}
	return e
}

const hexDigits = "0123456789ABCDEF"

// Encode escapes key.
func (e *Escaping) Encode(key string) string {
	n := 0
	for n < len(key) && e.plain[key[n]] {
		n++
	}
	if n == len(key) {
		return key
	}
	b := append(make([]byte, 0, len(key)+16), key[:n]...)
	for _, c := range []byte(key[n:]) {
		if e.plain[c] {
			b = append(b, c)
		} else {
			b = append(b, '%', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return string(b)
}

// Decode is the inverse of Encode. It is not ok for what Encode never makes of a key: somebody
// else wrote that.
func (e *Escaping) Decode(s string) (key string, ok bool) {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '%' {
			if i+2 >= len(s) {
				return "", false
			}
			high, low := digit(s[i+1]), digit(s[i+2])
			if c, i = high<<4|low, i+2; high > 15 || low > 15 || e.plain[c] {
				return "", false
			}
		} else if !e.plain[c] {
			return "", false
		}
		b = append(b, c)
	}
	return string(b), len(b) > 0
}

// digit is above 15 for what is no digit.
func digit(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}
