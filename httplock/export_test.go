package httplock

import "net/http"

// Transport is the one of l that New has made.
func Transport(l *Locker) *http.Transport { return l.transport.own }
