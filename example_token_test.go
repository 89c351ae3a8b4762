package lock_test

import (
	"fmt"

	"github.com/seed-215fdefa/lock"
)

// Tokens travel as decimal text, in a header for instance.
func ExampleParseToken() {
	t, err := lock.ParseToken("1790000000000042")
	fmt.Println(t, err)
	_, err = lock.ParseToken("9007199254740992")
	fmt.Println(err)
	// Output:
	// 1790000000000042 <nil>
	// lock: invalid: token "9007199254740992": must be a decimal number from 1 to 9007199254740991
}
