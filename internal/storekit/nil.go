package storekit

import "reflect"

// IsNil reports whether v is nil, or a nil pointer, map, function or channel in an interface,
// whose methods would panic.
func IsNil(v any) bool {
	if v == nil {
		return true
	}
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.Pointer, reflect.Map, reflect.Func, reflect.Chan:
		return r.IsNil()
	}
	return false
}
