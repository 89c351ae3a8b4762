package redis

import (
	"encoding"
	"fmt"
	"net"
	"reflect"
	"time"

	"github.com/seed-215fdefa/lock"
)

// immutable returns args as go-redis would send them, but so that nobody can change them any more: a
// call may be sent when it has returned already, since its ctx has ended. Nor can a marshaler's error or
// panic befall the calls that are sent beside it.
func immutable(args []any) ([]any, error) {
	all := make([]any, len(args))
	for i, arg := range args {
		v, err := value(arg)
		if err != nil {
			return nil, fmt.Errorf("%w: redis: fence: argument %d: %w", lock.ErrInvalid, i+1, err)
		}
		all[i] = v
	}
	return all, nil
}

// value has the cases of go-redis' WriteArg, in their order. It leaves nil pointers to that.
func value(arg any) (any, error) {
	switch v := arg.(type) {
	case nil, string, int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64,
		float32, float64, bool, time.Time, time.Duration:
		return v, nil
	case []byte:
		return string(v), nil
	case *string, *int, *int8, *int16, *int32, *int64, *uint, *uint8, *uint16, *uint32, *uint64,
		*float32, *float64, *bool, *time.Time, *time.Duration:
		if p := reflect.ValueOf(v); !p.IsNil() {
			return p.Elem().Interface(), nil
		}
		return v, nil
	case encoding.BinaryMarshaler:
		b, err := v.MarshalBinary()
		return string(b), err
	case net.IP:
		return string(v), nil
	}
	return nil, fmt.Errorf("cannot marshal %T: implement encoding.BinaryMarshaler", arg)
}
