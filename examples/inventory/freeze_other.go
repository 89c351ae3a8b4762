//go:build !unix

package main

import (
	"context"
	"errors"
	"os"
)

var errNoFreeze = errors.New("-freeze: this system has no SIGSTOP")

func freeze(context.Context) error { return errNoFreeze }

func thaw(*os.Process) error { return errNoFreeze }
