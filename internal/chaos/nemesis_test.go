//go:build linux

package chaos

import (
	"context"
	"math"
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
)

// step is one fault of a schedule.
type step struct {
	At     time.Duration // since the campaign began
	Length time.Duration
	Fault  int    // index
	Seed   uint64 // of the fault's own choices
}

// Faults come in storms. In the peace between them the order in line is checked.
const stormLength, cycleLength = 22 * time.Second, 32 * time.Second

// schedule makes the steps of a lane for a time d. It depends on its arguments only.
func schedule(seed, lane uint64, faults []fault, longest time.Duration, pause [2]time.Duration, d time.Duration) (steps []step) {
	total := 0
	for _, f := range faults {
		total += f.weight
	}
	if total == 0 {
		return nil
	}
	rng := rand.New(rand.NewPCG(seed, lane))
	for at := between(rng, pause[0], pause[1]); at < d; at += between(rng, pause[0], pause[1]) {
		if rest := cycleLength - at%cycleLength; rest <= cycleLength-stormLength {
			at += rest
			continue
		}
		s := step{At: at, Seed: rng.Uint64()}
		for n := rng.IntN(total); n >= faults[s.Fault].weight; s.Fault++ {
			n -= faults[s.Fault].weight
		}
		lo, hi := math.Log(float64(30*time.Millisecond)), math.Log(float64(longest))
		s.Length = time.Duration(math.Exp(lo + rng.Float64()*(hi-lo))) // many short, some longer than a TTL
		steps = append(steps, s)
		at += s.Length
	}
	return steps
}

// nemesis does the steps of a lane, each at its time. One that the step before it has
// overrun by far is left out, or the storm would blow into the peace.
func (r *campaign) nemesis(lane uint64, faults []fault, pause [2]time.Duration) {
	for _, s := range schedule(r.seed, lane, faults, r.world.spec.TTL[1]*3/2, pause, r.length) {
		time.Sleep(s.At - time.Since(r.began))
		if time.Since(r.began) > s.At+time.Second {
			continue
		}
		f := faults[s.Fault]
		e := event{Kind: kFault, At: now(), Text: f.name, Survives: f.survives, Takes: f.takes}
		f.do(s.Length, rand.New(rand.NewPCG(s.Seed, 0)))
		r.journal.add(e)
	}
}

// wireFaults break the ways of one process, or of all, to one server, or to all.
func (r *campaign) wireFaults() []fault {
	wire := func(name string, weight int, do func(*faultproxy.Proxy, *rand.Rand) (heal func())) fault {
		return fault{name: "wire: " + name, weight: weight, do: func(d time.Duration, rng *rand.Rand) {
			for _, p := range r.targets(rng) {
				broken := p.ways
				if rng.IntN(2) == 0 {
					broken = broken[rng.IntN(len(broken)):][:1]
				}
				for _, way := range broken {
					defer do(way, rng)()
				}
			}
			time.Sleep(d)
		}}
	}
	few := func(m faultproxy.Messages, rng *rand.Rand) faultproxy.Messages { return m.From(1 + rng.IntN(3)) }
	return []fault{
		wire("sever", 2, func(p *faultproxy.Proxy, _ *rand.Rand) func() { p.Break(); return func() {} }),
		wire("cut", 1, func(p *faultproxy.Proxy, _ *rand.Rand) func() { return p.Cut() }),
		wire("freeze", 1, func(p *faultproxy.Proxy, rng *rand.Rand) func() { return p.Hold(few(faultproxy.All(), rng)).Heal }),
		wire("hold requests", 1, func(p *faultproxy.Proxy, rng *rand.Rand) func() { return p.Hold(few(faultproxy.Requests(), rng)).Heal }),
		wire("hold replies", 1, func(p *faultproxy.Proxy, rng *rand.Rand) func() { return p.Hold(few(faultproxy.Replies(), rng)).Heal }),
		wire("lose replies", 1, func(p *faultproxy.Proxy, rng *rand.Rand) func() { return p.Lose(few(faultproxy.Replies(), rng)).Heal }),
		wire("delay", 1, func(p *faultproxy.Proxy, rng *rand.Rand) func() {
			return p.Delay(faultproxy.All(), between(rng, time.Millisecond, 100*time.Millisecond)).Heal
		}),
	}
}

// targets are one process, or at times all.
func (r *campaign) targets(rng *rand.Rand) []*process {
	if rng.IntN(6) == 0 {
		return r.processes
	}
	return r.processes[rng.IntN(len(r.processes)):][:1]
}

// processFaults come in the same lane as those of the wire: no two meet.
func (r *campaign) processFaults() []fault {
	return []fault{
		{name: "process: SIGSTOP", weight: 2, do: func(d time.Duration, rng *rand.Rand) {
			for _, p := range r.targets(rng) {
				e := event{Kind: kStop, At: now(), Value: int64(p.number)}
				_ = p.cmd.Process.Signal(syscall.SIGSTOP)
				defer func() {
					_ = p.cmd.Process.Signal(syscall.SIGCONT)
					r.journal.add(e)
				}()
			}
			time.Sleep(d)
		}},
		{name: "process: SIGKILL", weight: 1, do: func(d time.Duration, rng *rand.Rand) {
			p := r.processes[rng.IntN(len(r.processes))]
			r.journal.add(event{Kind: kKill, Value: int64(p.number)})
			p.kill()
			time.Sleep(d / 4)
			r.start(p)
		}},
	}
}

// forces end grants.
func (r *campaign) forces() []fault {
	admin, ok := lock.As[lock.Admin](r.direct.locker)
	if !ok {
		return nil
	}
	return []fault{{name: "force release", weight: 1, do: func(_ time.Duration, rng *rand.Rand) {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		key := keyName(rng.IntN(shortKeys + longKeys))
		rec, err := r.direct.locker.Inspect(ctx, key)
		if err != nil || len(rec.Holders) == 0 {
			return
		}
		h := rec.Holders[rng.IntN(len(rec.Holders))]
		e := event{Kind: kForce, At: now(), Key: key, Owner: h.Owner, Token: h.Token}
		err = admin.ForceRelease(ctx, key, h.Owner)
		e.Err, e.Text = classOf(err), text(err)
		r.journal.add(e)
	}}}
}
