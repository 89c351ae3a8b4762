//go:build race

package httplock_test

func init() { underRace = true }
