package httplock

import "net/http"

// UnescapeKey is unescapeKey.
var UnescapeKey = unescapeKey

// Transport is the one of l that New has made.
func Transport(l *Locker) *http.Transport { return l.transport.own }
