//go:build race

package locktest

func init() { underRace = true }
