//go:build !unix

package main

import "errors"

func (*app) run([]string) (int, error) {
	return exitUsage, errors.New("needs process groups and signals, which this system does not have")
}

const guardCommand = "__guard"

func guard([]string) int { return exitUsage }
