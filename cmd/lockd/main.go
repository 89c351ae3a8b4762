// Command lockd serves a store of locks over HTTP and gRPC: packages httplock and grpclock, with
// authentication, an audit log, metrics, and a page for people. "lockd --help" has the flags,
// docs/service.md the protocol.
//
// The exit status is 0 after SIGTERM or SIGINT, or:
//
//	64  the command line, or a file that it names, is wrong
//	69  the address cannot be listened on, or not all was answered within the grace
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/seed-215fdefa/lock/cmd/internal/storeurl"
)

// Exit statuses, as in sysexits.h.
const (
	exitUsage       = 64
	exitUnavailable = 69
)

const usage = `usage: lockd --store URL [flags]

Serves the locks of a store over HTTP, for lockctl, httplock and curl, and over gRPC; at / there is a
page for people.

  --store URL            memory: or another one of the list below
  --listen ADDR          host:port (127.0.0.1:8080). Without --tokens only loopback is served, under the
                         name localhost, that of ADDR or an IP address, so that no web page gets in
  --grpc ADDR            also serve over gRPC there, to the same callers
  --no-auth              serve everybody who can connect, also on other addresses and under any name

  --tokens FILE          who may do what: see below
  --tls-cert, --tls-key  PEM files: serve HTTPS
  --client-ca FILE       PEM file: also know callers by certificates that these have signed

  --audit FILE           append the audit log to FILE instead of standard error
  --grace d              how long a stop may take (10s)
  --drain d              how long /readyz fails before a stop begins (0s)
  --max-connections n    more have to wait until one ends (20000)
  --max-waiters n        more are told to try later (100000)

A flag's environment variable is its name in capitals, behind LOCKD_: LOCKD_STORE,
LOCKD_TLS_CERT. A password is better in the environment than in sight of ps.

FILE of --tokens is JSON:

  {"callers": [
    {"name": "web", "tokens": ["sha256:…"],
     "rights": [{"prefix": "web:", "actions": ["lock", "read"]}]},
    {"name": "ops", "certificate": "ops.example.com",
     "rights": [{"prefix": "", "actions": ["read", "force"]}]}
  ]}

A token is what the caller sends as "Authorization: Bearer", over gRPC as metadata, of 16 characters or more, or
better "sha256:" and its SHA-256 in hex; certificate is the common name of its certificate.
Of the keys that begin with prefix ("" is every key), lock is to acquire, renew and release;
read to inspect, list, watch and see events; force to end anybody's grant. What one caller holds no other
can renew or release.

A browser asks for a name, which may be anything, and a password, which is the token.

SIGHUP reads the files anew; if one of them is wrong, all old ones stay. SIGTERM and SIGINT
stop: waits are told to go on at another replica, and what is held stays held. A second one
stops at once.

  GET /                  the page: locks, lines, deadlocks, events, and force releases
  GET /v1                the API: see docs/service.md
  GET /healthz           200 while the process runs
  GET /readyz            200 if the store answers, 503 if it does not, or during a stop
  GET /metrics           for Prometheus

`

// config is the command line.
type config struct {
	store, listen, overGRPC    string
	noAuth                     bool
	tokens                     string
	cert, key, clientCA        string
	audit                      string
	grace, drain               time.Duration
	maxConnections, maxWaiters int
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, out, errOut io.Writer) int {
	c, err := configure(args, os.LookupEnv)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(out, usage, storeurl.Help)
		return 0
	}
	if err == nil {
		err = serve(c, slog.New(slog.NewJSONHandler(errOut, nil)))
	}
	var wrong usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &wrong):
		fmt.Fprintf(errOut, "lockd: %v\n\"lockd --help\" lists the flags.\n", err)
		return exitUsage
	}
	fmt.Fprintf(errOut, "lockd: %v\n", err)
	return exitUnavailable
}

// usageError is a wrong command line, or a wrong file that it names.
type usageError struct{ error }

func misuse(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// configure reads the command line, and the environment for what is not on it.
func configure(args []string, env func(string) (string, bool)) (config, error) {
	var c config
	f := flag.NewFlagSet("lockd", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&c.store, "store", "", "")
	f.StringVar(&c.listen, "listen", "127.0.0.1:8080", "")
	f.StringVar(&c.overGRPC, "grpc", "", "")
	f.BoolVar(&c.noAuth, "no-auth", false, "")
	f.StringVar(&c.tokens, "tokens", "", "")
	f.StringVar(&c.cert, "tls-cert", "", "")
	f.StringVar(&c.key, "tls-key", "", "")
	f.StringVar(&c.clientCA, "client-ca", "", "")
	f.StringVar(&c.audit, "audit", "", "")
	f.DurationVar(&c.grace, "grace", 10*time.Second, "")
	f.DurationVar(&c.drain, "drain", 0, "")
	f.IntVar(&c.maxConnections, "max-connections", 20_000, "")
	f.IntVar(&c.maxWaiters, "max-waiters", 100_000, "")
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		return c, err
	} else if err != nil {
		return c, usageError{err}
	}
	if f.NArg() > 0 {
		return c, misuse("want flags only, got %d arguments behind them", f.NArg())
	}
	if err := fromEnvironment(f, env); err != nil {
		return c, err
	}
	return c, c.check()
}

// fromEnvironment sets the flags that are not on the command line.
func fromEnvironment(f *flag.FlagSet, env func(string) (string, bool)) error {
	given := map[string]bool{}
	f.Visit(func(f *flag.Flag) { given[f.Name] = true })
	var first error
	f.VisitAll(func(one *flag.Flag) {
		name := "LOCKD_" + strings.ToUpper(strings.ReplaceAll(one.Name, "-", "_"))
		v, ok := env(name)
		if !ok || given[one.Name] || first != nil {
			return
		}
		if err := f.Set(one.Name, v); err != nil {
			first = misuse("invalid value %q of %s: %w", v, name, err)
		}
	})
	return first
}

func (c config) check() error {
	switch {
	case c.store == "":
		return misuse("no store: give --store URL or set LOCKD_STORE")
	case (c.cert == "") != (c.key == ""):
		return misuse("--tls-cert and --tls-key go together")
	case c.clientCA != "" && (c.cert == "" || c.tokens == ""):
		return misuse("--client-ca needs --tls-cert, and --tokens, which says what each certificate may do")
	case c.noAuth && c.tokens != "":
		return misuse("--no-auth and --tokens exclude each other")
	case c.grace <= 0 || c.drain < 0 || c.drain >= c.grace:
		return misuse("--grace %v and --drain %v: the grace must be positive, and longer than the drain", c.grace, c.drain)
	case c.maxConnections <= 0 || c.maxWaiters <= 0:
		return misuse("--max-connections %d and --max-waiters %d must be positive", c.maxConnections, c.maxWaiters)
	}
	return nil
}
