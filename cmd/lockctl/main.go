// Command lockctl takes and shows locks from a shell.
//
//	lockctl [--store URL] run [flags] KEY -- CMD [ARG…]   run CMD while KEY is held
//	lockctl [--store URL] hold [flags] KEY                hold KEY until a signal
//	lockctl [--store URL] ls [--json] [PREFIX]            list what is held or waited for
//	lockctl [--store URL] inspect [--json] KEY            show one lock
//	lockctl [--store URL] watch [--json] KEY              show one lock whenever it changes
//	lockctl [--store URL] deadlocks                       who waits for each other in a circle
//	lockctl [--store URL] force KEY OWNER                 end somebody's grant
//	lockctl [--store URL] doctor                          try the store out
//	lockctl [--store URL] migrate                         make the tables that the store needs
//
// URL is as "lockctl help stores" says. Without --store it is that in the environment variable
// LOCKCTL_STORE.
//
// The exit status is 0, or:
//
//	 1  deadlocks has found some
//	64  the command line is wrong, or the store cannot do what it asks for
//	69  the store did not answer, or failed
//	75  the lock was not acquired; run's and hold's -E gives another number
//	76  the lock was lost while it was held, whatever CMD returned; OWNER does not hold KEY
//
// and of run otherwise that of CMD: 126 if CMD cannot be executed, 127 if it is not found, and
// 128+n after signal n. The last is also that of run and hold if a signal has ended the wait for
// KEY, and of run if one has ended the guard.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/cmd/internal/guard"
	"github.com/seed-215fdefa/lock/cmd/internal/storeurl"
)

// Exit statuses, those of sysexits.h where it has one.
const (
	exitFound       = 1 // deadlocks: there are some
	exitUsage       = 64
	exitUnavailable = 69
	exitHeld        = 75
	exitLost        = 76
)

// app is one invocation.
type app struct {
	store       string
	out, errOut io.Writer
	wrap        func(lock.Locker) lock.Locker // put around the store; may be nil
}

// command is a subcommand. run gets its arguments and returns the exit status; a usageError is
// told with the command's usage.
type command struct {
	usage string
	about string
	run   func(*app, []string) (int, error)
}

var commands map[string]command

func init() {
	commands = map[string]command{
		"run":       {runUsage, "run a program while a lock is held", (*app).run},
		"hold":      {holdUsage, "hold a lock until a signal", (*app).hold},
		"ls":        {lsUsage, "list what is held or waited for", (*app).ls},
		"inspect":   {inspectUsage, "show one lock", (*app).inspect},
		"watch":     {watchUsage, "show one lock whenever it changes", (*app).watch},
		"deadlocks": {deadlocksUsage, "list who waits for each other in a circle", (*app).deadlocks},
		"force":     {forceUsage, "end somebody's grant", (*app).force},
		"doctor":    {doctorUsage, "try the store out", (*app).doctor},
		"migrate":   {migrateUsage, "make the tables that the store needs", (*app).migrate},
	}
}

func main() {
	a := &app{store: os.Getenv("LOCKCTL_STORE"), out: os.Stdout, errOut: os.Stderr}
	os.Exit(a.main(os.Args[1:]))
}

func (a *app) main(args []string) int {
	flags := a.flags("lockctl")
	flags.StringVar(&a.store, "store", a.store, "")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) || flags.NArg() == 0 && err == nil {
		a.help(a.out)
		return 0
	} else if err != nil {
		return a.misused(err, a.help)
	}
	name, rest := flags.Arg(0), flags.Args()[1:]
	if name == "help" {
		return a.helpOn(rest)
	}
	c, ok := commands[name]
	if !ok {
		return a.misused(fmt.Errorf("unknown command %q", name), a.help)
	}
	status, err := c.run(a, rest)
	var usage usageError
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(a.out, c.usage)
		return 0
	case errors.As(err, &usage):
		return a.misused(err, func(w io.Writer) { fmt.Fprint(w, c.usage) })
	case err != nil:
		fmt.Fprintf(a.errOut, "lockctl %s: %v\n", name, err)
	}
	return status
}

// usageError is a wrong command line.
type usageError struct{ error }

func misuse(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func (a *app) misused(err error, usage func(io.Writer)) int {
	fmt.Fprintf(a.errOut, "lockctl: %v\n\n", err)
	usage(a.errOut)
	return exitUsage
}

// flags returns a FlagSet that prints nothing by itself.
func (a *app) flags(name string) *flag.FlagSet {
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	return f
}

// parse parses args with f, and wants as many operands as names has.
func parse(f *flag.FlagSet, args []string, operands ...string) error {
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return usageError{err}
	}
	least := len(operands)
	for _, o := range operands {
		if strings.HasPrefix(o, "[") {
			least--
		}
	}
	if n := f.NArg(); n < least || n > len(operands) {
		return misuse("want %s, got %d arguments", strings.Join(operands, " "), n)
	}
	return nil
}

// open opens the store.
func (a *app) open(ctx context.Context) (*storeurl.Store, error) {
	if a.store == "" {
		return nil, misuse("no store: give --store URL or set LOCKCTL_STORE")
	}
	s, err := storeurl.Open(ctx, a.store)
	if err == nil && a.wrap != nil {
		s.Locker = a.wrap(s.Locker)
	}
	return s, err
}

// openStatus is the exit status of a command whose store could not be opened.
func openStatus(err error) int {
	if errors.Is(err, lock.ErrUnavailable) {
		return exitUnavailable
	}
	return exitUsage
}

// status is the exit status that goes with the error of a Client's call.
func status(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, lock.ErrHeld):
		return exitHeld
	case errors.Is(err, lock.ErrLost):
		return exitLost
	case errors.Is(err, lock.ErrInvalid), errors.Is(err, lock.ErrUnsupported):
		return exitUsage
	}
	return exitUnavailable
}

// interrupted returns a context that ends with the first of the signals that end programs, and
// a function that returns that signal, 0 as long as there was none. After stop none is missing.
func interrupted() (ctx context.Context, stop func(), which func() syscall.Signal) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals, taken := make(chan os.Signal, 1), make(chan struct{})
	guard.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		defer close(taken)
		for s := range signals {
			cancel(signaled{s.(syscall.Signal)})
		}
	}()
	stop = sync.OnceFunc(func() {
		signal.Stop(signals)
		close(signals)
		<-taken
		cancel(nil)
	})
	which = func() syscall.Signal {
		var s signaled
		errors.As(context.Cause(ctx), &s)
		return s.Signal
	}
	return ctx, stop, which
}

// signaled is the cause of a context that a signal has ended.
type signaled struct{ syscall.Signal }

func (s signaled) Error() string { return s.String() }
