package locktest

import (
	"slices"

	lock "github.com/seed-215fdefa/lock"
)

// group has the cases of one contract sentence, or of one part of the interface.
type group struct {
	name string
	rows []row
}

// row is one thing to try.
type row struct {
	name     string
	sentence string // of the contract, as a failure prints it
	mode     mode
	needs    []need
	check    func(e *env)
}

// mode says in which modes a row's grants are tried.
type mode uint8

const (
	plain  mode = iota // exclusive, or of no account
	both               // once exclusive, once shared
	shared             // shared
)

// need is what a case needs of harness and store; it returns why that is not there.
type need func(e *env) (missing string)

// testCase is a row in one mode.
type testCase struct {
	row
	path   string // group/row or group/row/mode
	shared bool
}

func groups() []group {
	return merged(slices.Concat([]group{
		inspect(), exclusion(), tokens(), oneOwner(), renewal(), release(), failure(), start(),
		deadHolders(), deadWaiters(), wakeups(), cancels(), expiry(), keys(),
		capabilities(), admin(), badInput(), records(),
		heartbeats(), abandoned(), promptWakeups(), inspectInTime(), waitingWriter(),
		durations(), reasons(), partialLoss(), watcher(), headStarts(),
	}, besideReaders(), handovers(), steps(), outlasting(), crowds())...)
}

// merged joins the groups that have one name: a sentence may have its cases in several
// files.
func merged(parts ...group) []group {
	var all []group
	for _, g := range parts {
		i := slices.IndexFunc(all, func(o group) bool { return o.name == g.name })
		if i < 0 {
			all = append(all, g)
			continue
		}
		all[i].rows = append(all[i].rows, g.rows...)
	}
	return all
}

func (g group) cases() []testCase {
	var cs []testCase
	for _, r := range g.rows {
		path := g.name + "/" + r.name
		switch r.mode {
		case plain:
			cs = append(cs, testCase{r, path, false})
		case shared:
			cs = append(cs, testCase{r, path, true})
		case both:
			cs = append(cs, testCase{r, path + "/exclusive", false}, testCase{r, path + "/shared", true})
		}
	}
	return cs
}

// names are what Harness.Skips may name, sorted.
func names() []string {
	var all []string
	for _, g := range append(groups(), clientGroups()...) {
		all = append(all, g.name)
		for _, r := range g.rows {
			all = append(all, g.name+"/"+r.name)
		}
		for _, c := range g.cases() {
			all = append(all, c.path)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func needs(ns ...need) []need { return ns }

// can is the need of a fault.
func can(f Fault) need {
	return func(e *env) string {
		if e.h.fault(f) == nil {
			return "Harness.Faults has no " + f.String()
		}
		return ""
	}
}

// canWithhold is the need of replies that can be held back.
func canWithhold(e *env) string {
	if e.h.striker() != nil {
		return ""
	}
	return can(LoseReply)(e)
}

// canStrike is the need of [Strike]s.
func canStrike(e *env) string {
	if e.h.striker() == nil {
		return "Harness has no Strike and no Proxy"
	}
	return ""
}

// declares is the need of a capability that the store may not have.
func declares(name string, has func(lock.Capabilities) bool) need {
	return func(e *env) string {
		if !has(e.caps) {
			return "store " + e.caps.Store + " does not declare " + name
		}
		return ""
	}
}

// lacks is the need of a capability's absence.
func lacks(name string, has func(lock.Capabilities) bool) need {
	return func(e *env) string {
		if has(e.caps) {
			return "store " + e.caps.Store + " declares " + name
		}
		return ""
	}
}

func hasShared(c lock.Capabilities) bool    { return c.Shared }
func hasFIFO(c lock.Capabilities) bool      { return c.FIFO }
func hasPush(c lock.Capabilities) bool      { return c.Push }
func hasEarlyLoss(c lock.Capabilities) bool { return c.EarlyLoss }

// tokensSurvive is the need of tokens that rise beyond what s names.
func tokensSurvive(s lock.Survival) need {
	return declares("TokenSurvives "+s.String(), func(c lock.Capabilities) bool { return c.TokenSurvives.Has(s) })
}

// isAdmin is the need of a [lock.Admin].
func isAdmin(e *env) string {
	if _, ok := lock.As[lock.Admin](e.first); !ok {
		return "store " + e.caps.Store + " has no lock.Admin"
	}
	return ""
}
