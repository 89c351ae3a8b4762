package main

import (
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/seed-215fdefa/lock/cmd/internal/storeurl"
)

const runUsage = `usage: lockctl [--store URL] run [flags] KEY -- CMD [ARG…]

Runs CMD while KEY is held, and exits with CMD's status. No shell interprets CMD.

  --ttl d         how long the lock outlives a holder that dies (15s)
  --wait d        how long to wait for KEY (for ever); 0s does not wait
  -n              do not wait: --wait 0s
  --shared        share KEY with other shared holders
  --grace d       how long CMD has between SIGTERM and SIGKILL when the lock is lost
                  (5s, at most a third of the TTL)
  --min-hold d    keep KEY for d after the grant, even if CMD ends sooner: lockctl ends
                  when d is over
  --metadata k=v  shown to others; may be given several times
  -E n            exit status when KEY was not acquired (75)

If the lock is lost, CMD and its process group get SIGTERM, and SIGKILL at the end of the
grace. CMD is dead before the store gives KEY to anybody else, even if lockctl itself was
stopped or killed. lockctl passes signals on to CMD. CMD finds LOCK_KEY, LOCK_TOKEN (the
fencing token) and LOCK_OWNER in its environment.

A store may grant a shorter TTL than --ttl, and the default grace follows it. Without --ttl
the TTL is also at least three times --grace, and at least --min-hold.
`

const holdUsage = `usage: lockctl [--store URL] hold [flags] KEY

Holds KEY until SIGINT, SIGTERM or SIGHUP, and prints its token and owner once it is held.
Exits with 76 as soon as the lock is lost.

  --ttl, --wait, -n, --shared, --metadata, -E   as for run
`

const lsUsage = `usage: lockctl [--store URL] ls [--json] [PREFIX]

Lists the locks that are held or waited for and whose key begins with PREFIX, by key.
--json prints one JSON object a line.
`

const inspectUsage = `usage: lockctl [--store URL] inspect [--json] KEY

Shows who holds KEY and who waits for it.
`

const watchUsage = `usage: lockctl [--store URL] watch [--json] KEY

Shows KEY's lock now and after each change, until a signal. It polls the store only if the
store does not push changes.
`

const deadlocksUsage = `usage: lockctl [--store URL] deadlocks

Lists deadlocks, one a line: holders that wait for each other in a circle. Exits with 1 if
there is any. "lockctl force" on one of the grants ends it.
`

const forceUsage = `usage: lockctl [--store URL] force KEY OWNER

Ends OWNER's grant of KEY; "lockctl inspect KEY" shows the owners. The holder may still be
working when the next one begins: only resources that check the fencing token are safe.
`

const doctorUsage = `usage: lockctl [--store URL] doctor [--prefix P]

Checks the store: the settings of Redis, the rights to lock, list and force, how long a request
takes, and whether a release wakes waiters of another process and a force reaches the holder. It
uses keys that begin with P (lockctl-doctor:). Exits with 69 if anything is wrong.
`

const migrateUsage = `usage: lockctl [--store URL] migrate

Makes the tables and functions that postgres and dynamodb need. It may run repeatedly.
`

func (a *app) help(w io.Writer) {
	fmt.Fprint(w, "usage: lockctl [--store URL] COMMAND …\n\n")
	for _, name := range slices.Sorted(maps.Keys(commands)) {
		fmt.Fprintf(w, "  %-9s %s\n", name, commands[name].about)
	}
	fmt.Fprint(w, "\n\"lockctl help COMMAND\" says more, \"lockctl help stores\" lists the store URLs.\n"+
		"Without --store the URL is LOCKCTL_STORE of the environment.\n")
}

func (a *app) helpOn(args []string) int {
	switch {
	case len(args) == 0:
		a.help(a.out)
	case args[0] == "stores":
		fmt.Fprint(a.out, storeurl.Help)
	case commands[args[0]].usage == "":
		return a.misused(fmt.Errorf("unknown command %q", args[0]), a.help)
	default:
		fmt.Fprint(a.out, commands[args[0]].usage)
	}
	return 0
}
