//go:build !unix

package main

import "errors"

func (*app) run([]string) (int, error) {
	return exitUsage, errors.New("needs process groups and signals, which this system does not have")
}
