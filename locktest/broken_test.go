package locktest

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"time"

	lock "github.com/seed-215fdefa/lock"
)

// broken is a store with one thing wrong, and the cases that are there to find it.
type broken struct {
	what   string
	caught []string
	flaws  flaws
	wrap   func(*refClient) lock.Locker
}

func in(paths ...string) []string { return paths }

func brokenStores() []broken {
	return append(slices.Concat(subtlyBroken(), brokenWatchers()), []broken{
		{what: "no exclusion", caught: in("Exclusion/AmongProcesses/exclusive"), flaws: flaws{noExclusion: true}},
		{what: "grants to a process what it holds already", caught: in("Exclusion/WithinOneProcess/exclusive"), flaws: flaws{reentrant: true}},
		{what: "readers beside a writer", caught: in("Exclusion/SharedBesideExclusive"), flaws: flaws{sharedBesideExclusive: true}},
		{what: "a writer beside readers", caught: in("Exclusion/AmongProcesses/shared"), flaws: flaws{exclusiveBesideShared: true}},
		{what: "readers one at a time", caught: in("Exclusion/ReadersTogether"), flaws: flaws{readersExclude: true}},
		{what: "a reader hands over beside others", caught: in("Exclusion/WriterWaitsForEveryReader"), flaws: flaws{readerLetsIn: true}},
		{what: "grants gone after a freeze", caught: in("Exclusion/Freeze/exclusive"), flaws: flaws{thawDropsHolds: true}},
		{what: "grants gone after a restart, though declared", caught: in("Exclusion/Restart/exclusive"), flaws: flaws{restartDropsHolds: true}},
		{what: "grants gone after a failover, though declared", caught: in("Exclusion/Failover/shared"), flaws: flaws{failoverDropsHolds: true}},

		{what: "token reset after release", caught: in("TokensRise/AfterRelease/exclusive"), flaws: flaws{resetByRelease: true}},
		{what: "token reset after expiry", caught: in("TokensRise/AfterExpiry/exclusive"), flaws: flaws{resetByExpiry: true}},
		{what: "token reset with the record", caught: in("TokensRise/AfterRecordLoss/exclusive"), flaws: flaws{counterOnly: true}},
		{what: "token reset with a part of the record", caught: in("TokensRise/AfterPartialLoss/exclusive", "TokensRise/AfterPartialLoss/shared"), flaws: flaws{counterOnly: true, subtle: subtle{partDropsToken: true}}},
		{what: "token reset by a restart", caught: in("TokensRise/AfterRestart/exclusive"), flaws: flaws{counterOnly: true, restartDropsTokens: true}},
		{what: "token reset by a failover", caught: in("TokensRise/AfterFailover/shared"), flaws: flaws{counterOnly: true, failoverDropsTokens: true}},
		{what: "a reader's token is the last writer's", caught: in("TokensRise/AfterRelease/shared"), flaws: flaws{sharedTokenRepeats: true}},
		{what: "token taken in a step before the grant", caught: in("TokensRise/Crowd", "TokensRise/LateReply/exclusive"), wrap: alter(tokenFirst)},
		{what: "token taken in a step after the grant", caught: in("TokensRise/LateReply/exclusive"), flaws: flaws{mintsLater: true}},

		{what: "a request sent again makes a second grant", caught: in("OneOwnerOneGrant/LateReply/shared"), flaws: flaws{retryCreates: true}},
		{what: "owners cut to 32 bytes", caught: in("OneOwnerOneGrant/OwnerOfAnyLength/exclusive"), wrap: asking(func(_ *context.Context, r *lock.Request) { r.Owner = r.Owner[:min(len(r.Owner), 32)] })},

		{what: "renew re-creates", caught: in("RenewNeverCreates/OfAnExpiredGrant/exclusive"), flaws: flaws{renewCreates: true}},
		{what: "renew by key only", caught: in("RenewNeverCreates/OfASucceededGrant/exclusive"), flaws: flaws{renewByKey: true}},
		{what: "renew draws a new token", caught: in("RenewNeverCreates/OfALiveGrant/exclusive"), wrap: renewing(func(g *lock.Grant) { g.Token++ })},
		{what: "renew extends nothing", caught: in("RenewNeverCreates/Extends/exclusive"), wrap: alter(func(a *altered, c *refClient) {
			a.renew = func(ctx context.Context, g lock.Grant) (lock.Grant, error) {
				rec, err := c.Inspect(ctx, g.Key)
				if err == nil && holder(rec, g.Owner) == nil {
					err = lock.ErrLost
				}
				g.Start = time.Now()
				return g, err
			}
		})},
		{what: "renew fails after one whose reply was lost", caught: in("RenewNeverCreates/AfterALostReply/exclusive"), flaws: flaws{versioned: true}},

		{what: "release by key only", caught: in("ReleaseIsYoursAlone/OfASucceededGrant/exclusive"), flaws: flaws{releaseByKey: true}},
		{what: "release by process only", caught: in("ReleaseIsYoursAlone/OfASucceededGrantInOneProcess/exclusive"), flaws: flaws{releaseByProcess: true}},
		{what: "a reader's release ends all readers", caught: in("ReleaseIsYoursAlone/OfOneReader"), flaws: flaws{releaseOfReaders: true}},
		{what: "stale release returns nil", caught: in("ReleaseIsYoursAlone/Again/exclusive"), wrap: alter(func(a *altered, c *refClient) {
			a.release = func(ctx context.Context, g lock.Grant) error {
				if err := c.Release(ctx, g); !errors.Is(err, lock.ErrLost) {
					return err
				}
				return nil
			}
		})},
		{what: "undo of nothing is an error", caught: in("ReleaseIsYoursAlone/UndoOfNothing/exclusive"), wrap: alter(func(a *altered, c *refClient) {
			a.release = func(ctx context.Context, g lock.Grant) error {
				if rec, err := c.Inspect(ctx, g.Key); g.Token == 0 && err == nil && len(rec.Holders) == 0 {
					return lock.ErrLost
				}
				return c.Release(ctx, g)
			}
		})},
		{what: "undo ignored: error leaves a grant", caught: in("ReleaseIsYoursAlone/UndoOfAGrant/exclusive", "FailureLeavesNothing/LateReply/exclusive"), flaws: flaws{undoLeavesGrant: true}},
		{what: "undo ignored: a canceled waiter keeps its place", caught: in("ReleaseIsYoursAlone/UndoOfAPlaceInLine/exclusive", "FailureLeavesNothing/CanceledWaiter/exclusive"), flaws: flaws{undoLeavesPlace: true}},
		{what: "undo ends what others of the process hold", caught: in("ReleaseIsYoursAlone/UndoOfOneOwnerOnly/exclusive"), flaws: flaws{undoByProcess: true}},

		{what: "a refused try stands in line", caught: in("FailureLeavesNothing/RefusedTry/exclusive"), flaws: flaws{triesLineUp: true}},
		{what: "a late request makes a grant for ever", caught: in("FailureLeavesNothing/Freeze/exclusive"), flaws: flaws{lateRequests: true}},
		{what: "a late request makes a grant for ever, on a connection that shakes hands", caught: in("FailureLeavesNothing/Freeze/exclusive", "FailureLeavesNothing/FreezeThroughTheUndo/exclusive"), flaws: flaws{lateRequests: true, handshakes: true}},

		{what: "Start taken from the reply", caught: in("StartIsEarly/LateReply/exclusive"), wrap: acquiring(func(_ lock.Request, _ time.Time, g *lock.Grant, err *error) {
			if *err == nil {
				g.Start = time.Now()
			}
		})},
		{what: "Start of a renewal taken from the reply", caught: in("StartIsEarly/LateRenewal/exclusive"), wrap: renewing(func(g *lock.Grant) { g.Start = time.Now() })},
		{what: "Start at the beginning of the wait", caught: in("StartIsEarly/AfterWait/exclusive"), wrap: acquiring(func(_ lock.Request, begun time.Time, g *lock.Grant, err *error) {
			if *err == nil {
				g.Start = begun
			}
		})},
		{what: "TTL at the beginning of the wait", caught: in("StartIsEarly/AfterWait/shared"), flaws: flaws{ttlFromArrival: true}},
		{what: "half the TTL that it says", caught: in("StartIsEarly/Bounds/exclusive"), flaws: flaws{halfTTL: true}},

		{what: "a dead process keeps what it holds", caught: in("DeadHoldersPass/KilledHolder/exclusive"), flaws: flaws{deadProcessKeeps: true}},
		{what: "a try never takes a dead holder's key", caught: in("DeadHoldersPass/FirstTry/exclusive"), flaws: flaws{triesKeepExpired: true}},
		{what: "one reader keeps another's lease alive", caught: in("DeadHoldersPass/BesideALivingReader"), flaws: flaws{readersLiveTogether: true}},
		{what: "a dead process's keys pass one by one", caught: in("DeadHoldersPass/ManyKeys"), flaws: flaws{sweepsOneByOne: true}},
		{what: "dead waiters block the line", caught: in("DeadWaitersAreSkipped/ByTheNext/exclusive"), flaws: flaws{deadWaitersStay: true}},
		{what: "the key is handed to a dead waiter for its whole TTL", caught: in("DeadWaitersAreSkipped/WithALongTTL"), flaws: flaws{handsOver: true}},

		{what: "no wake-up, though Push is declared", caught: in("WakeupsAreHints/Prompt/exclusive"), flaws: flaws{neverWakes: true}},
		{what: "a lost wake-up is lost for good", caught: in("WakeupsAreHints/LostWakeup/exclusive"), flaws: flaws{noRecheck: true}},
		{what: "nobody is woken, nor looks again", caught: in("WakeupsAreHints/EveryWaiter/exclusive"), flaws: flaws{noRecheck: true, neverWakes: true}},
		{what: "one of a process's waiters gets all wake-ups", caught: in("WakeupsAreHints/FromOneProcess/exclusive"), flaws: flaws{noRecheck: true, oneWakeForAll: true}},
		{what: "Waiting is called at each look", caught: in("WakeupsAreHints/WaitingIsCalledOnce/exclusive"), wrap: asking(func(_ *context.Context, r *lock.Request) {
			if waiting := r.Waiting; waiting != nil && r.Wait {
				r.Waiting = func(rec lock.Record) { waiting(rec); waiting(rec) }
			}
		})},
		{what: "Waiting is called for a try", caught: in("WakeupsAreHints/NoWaitingForATry/exclusive"), wrap: asking(func(_ *context.Context, r *lock.Request) {
			if r.Waiting != nil && !r.Wait {
				r.Waiting(lock.Record{Key: r.Key})
			}
		})},

		{what: "cancel ignored", caught: in("CancelIsPrompt/Waiter/exclusive"), wrap: asking(func(ctx *context.Context, _ *lock.Request) { *ctx = context.WithoutCancel(*ctx) })},
		{what: "cancel seen at the next look only", caught: in("CancelIsPrompt/AtOnce/exclusive"), flaws: flaws{slowToCancel: true}},
		{what: "ErrHeld swallowed", caught: in("CancelIsPrompt/Waiter/shared"), wrap: acquiring(func(_ lock.Request, _ time.Time, _ *lock.Grant, err *error) {
			if isContext(*err) && errors.Is(*err, lock.ErrHeld) {
				*err = errors.Unwrap(*err)
			}
		})},
		{what: "the context's error swallowed", caught: in("CancelIsPrompt/Deadline/exclusive"), wrap: acquiring(func(_ lock.Request, _ time.Time, _ *lock.Grant, err *error) {
			if isContext(*err) {
				*err = lock.ErrHeld
			}
		})},
		{what: "nil, nil on timeout", caught: in("CancelIsPrompt/Deadline/shared"), wrap: acquiring(func(_ lock.Request, _ time.Time, _ *lock.Grant, err *error) {
			if isContext(*err) {
				*err = nil
			}
		})},
		{what: "acquires with a context that has ended", caught: in("CancelIsPrompt/BeforeTheCall/exclusive"), wrap: asking(func(ctx *context.Context, _ *lock.Request) {
			if (*ctx).Err() != nil {
				*ctx = context.WithoutCancel(*ctx)
			}
		})},
		{what: "waits for the server, whatever ctx says", caught: in("CancelIsPrompt/Freeze/exclusive"), flaws: flaws{deafToCtx: true}},

		{what: "expiry by the client's clock", caught: in("ExpiryIsTheStores/SeenAlikeByAll/exclusive"), flaws: flaws{clientClock: true}},

		{what: "keys folded to lower case", caught: in("KeysAreOpaque/Independent/exclusive"), wrap: folding(strings.ToLower)},
		{what: "slashes trimmed", caught: in("KeysAreOpaque/Independent/shared"), wrap: folding(func(k string) string { return "/" + strings.Trim(k, "/") })},
		{what: "keys cut at 255 bytes", caught: in("KeysAreOpaque/Independent/exclusive"), wrap: folding(func(k string) string { return k[:min(len(k), 255)] })},
		{what: "the line is under another key's name", caught: in("KeysAreOpaque/InLine/exclusive"), wrap: folding(func(k string) string { return strings.TrimSuffix(k, ":queue") })},

		{what: "capabilities that change", caught: in("Capabilities/Constant"), wrap: alter(func(a *altered, c *refClient) {
			n := 0
			a.caps = func() lock.Capabilities {
				caps := c.Capabilities()
				n++
				caps.ExpirySlack = time.Duration(n)
				return caps
			}
		})},
		{what: "shared not declared, and taken for exclusive", caught: in("Capabilities/SharedIsRefused"), wrap: alter(func(a *altered, c *refClient) {
			a.caps = func() lock.Capabilities {
				caps := c.Capabilities()
				caps.Shared = false
				return caps
			}
			a.acquire = func(ctx context.Context, req lock.Request) (lock.Grant, error) {
				req.Shared = false
				return c.Acquire(ctx, req)
			}
		})},
		{what: "last come, first served", caught: in("Capabilities/FIFO/exclusive"), flaws: flaws{servesLast: true}},
		{what: "readers overtake a waiting writer", caught: in("Capabilities/FIFOOfReadersAndWriters"), flaws: flaws{readersOvertake: true}},
		{what: "Lost never called, though declared", caught: in("Capabilities/EarlyLoss/exclusive"), flaws: flaws{forcesSilently: true}},
		{what: "Lost called twice", caught: in("Capabilities/EarlyLoss/shared"), flaws: flaws{tellsTwice: true}},
		{what: "Lost called after the holder's own release", caught: in("Capabilities/NoLossAfterRelease/exclusive"), flaws: flaws{lostAfterRelease: true}},
		{what: "refuses its own MinTTL", caught: in("Capabilities/MinTTL/exclusive"), wrap: declaring(func(c *lock.Capabilities) { c.MinTTL = time.Microsecond })},

		{what: "Inspect counts no holder", caught: in("Inspect/CanBeBelieved/exclusive"), wrap: inspecting(func(_ *refClient, rec *lock.Record, _ *error) {
			rec.HolderCount = 0
		})},
		{what: "a free key is an error", caught: in("Inspect/FreeKey"), wrap: inspecting(func(_ *refClient, rec *lock.Record, err *error) {
			if len(rec.Holders) == 0 {
				*err = errors.New("no such key")
			}
		})},
		{what: "Inspect has no token", caught: in("Inspect/Holder/exclusive"), wrap: inspecting(func(_ *refClient, rec *lock.Record, _ *error) {
			for i := range rec.Holders {
				rec.Holders[i].Token = 0
			}
		})},
		{what: "Inspect shows one reader", caught: in("Inspect/Readers"), wrap: inspecting(func(_ *refClient, rec *lock.Record, _ *error) {
			rec.Holders = rec.Holders[:min(1, len(rec.Holders))]
		})},
		{what: "Inspect by prefix", caught: in("Inspect/ThisKeyOnly/exclusive"), wrap: inspecting(func(c *refClient, rec *lock.Record, _ *error) {
			c.s.mu.Lock()
			defer c.s.mu.Unlock()
			for more := range c.s.list(rec.Key, time.Now()) {
				if more.Key != rec.Key && len(rec.Holders) == 0 {
					rec.Holders = more.Holders
				}
			}
		})},
		{what: "NUL in metadata lost", caught: in("Inspect/Metadata/exclusive"), wrap: inspecting(func(_ *refClient, rec *lock.Record, _ *error) {
			for i, h := range rec.Holders {
				rec.Holders[i].Metadata = without(h.Metadata, func(k string) bool { return strings.Contains(k, "\x00") })
			}
		})},
		{what: "the line in no order", caught: in("Inspect/Waiters/exclusive"), wrap: inspecting(func(_ *refClient, rec *lock.Record, _ *error) {
			if n := len(rec.Waiters); n > 1 {
				rec.Waiters[0], rec.Waiters[n-1] = rec.Waiters[n-1], rec.Waiters[0]
			}
		})},
		{what: "ExpiresIn is the whole TTL", caught: in("Inspect/ExpiresIn/exclusive"), wrap: inspecting(func(_ *refClient, rec *lock.Record, _ *error) {
			for i, h := range rec.Holders {
				rec.Holders[i].ExpiresIn += 30 * h.Held
			}
		})},
		{what: "ErrHeld names the one who was refused", caught: in("Inspect/HeldError/exclusive"), wrap: acquiring(func(req lock.Request, _ time.Time, _ *lock.Grant, err *error) {
			var held *lock.HeldError
			if errors.As(*err, &held) && len(held.Record.Holders) > 0 {
				held.Record.Holders[0].Owner = req.Owner
			}
		})},
		{what: "ErrHeld counts no holder", caught: in("Inspect/HeldError/exclusive"), wrap: acquiring(func(_ lock.Request, _ time.Time, _ *lock.Grant, err *error) {
			var held *lock.HeldError
			if errors.As(*err, &held) {
				held.Record.HolderCount = 0
			}
		})},

		{what: "List yields a key twice", caught: in("Admin/List/exclusive"), wrap: listing(func(ctx context.Context, c *refClient, prefix string, yield func(lock.Record, error) bool) {
			for rec, err := range c.List(ctx, prefix) {
				for range 2 {
					if !yield(rec, err) {
						return
					}
				}
			}
		})},
		{what: "List takes the prefix for a pattern", caught: in("Admin/ListOfAPrefix"), wrap: listing(glob)},
		{what: "List yields the first only", caught: in("Admin/ListStopped"), wrap: listing(func(ctx context.Context, c *refClient, prefix string, yield func(lock.Record, error) bool) {
			for rec, err := range c.List(ctx, prefix) {
				yield(rec, err)
				return
			}
		})},
		{what: "List goes on though ctx has ended", caught: in("Admin/ListWithAnEndedContext", "CancelIsPrompt/Freeze/exclusive"), wrap: listing(func(ctx context.Context, c *refClient, prefix string, yield func(lock.Record, error) bool) {
			c.List(context.WithoutCancel(ctx), prefix)(yield)
		})},
		{what: "ForceRelease hides the context's error", caught: in("CancelIsPrompt/Freeze/exclusive"), wrap: alter(func(a *altered, c *refClient) {
			a.force = func(ctx context.Context, key, owner string) error {
				err := c.ForceRelease(ctx, key, owner)
				if isContext(err) {
					return errBroken
				}
				return err
			}
		})},
		{what: "a forced grant lives on", caught: in("Admin/ForceRelease/exclusive", "Admin/ForceReleaseForAWaiter/exclusive"), flaws: flaws{forceWarnsOnly: true}},
		{what: "a forced loss has no reason", caught: in("Admin/ForceRelease/exclusive", "Admin/ForceRelease/shared"), wrap: reasonAfter(math.MaxInt)},
		{what: "ForceRelease ends all readers", caught: in("Admin/ForceReleaseOfOneReader", "Admin/ForceReleaseOfNoHolder/exclusive"), flaws: flaws{forcesAll: true}},

		{what: "keys not validated", caught: in("BadInput/Key/exclusive"), flaws: flaws{lax: "key"}},
		{what: "owners not validated", caught: in("BadInput/Owner/exclusive"), flaws: flaws{lax: "owner"}},
		{what: "TTLs not validated", caught: in("BadInput/TTL/exclusive"), flaws: flaws{lax: "TTL"}},
		{what: "Under not validated", caught: in("BadInput/Under/exclusive"), flaws: flaws{lax: "under"}},
		{what: "metadata not validated", caught: in("BadInput/Metadata/exclusive"), flaws: flaws{lax: "metadata"}},
		{what: "validation by the server", caught: in("BadInput/BeforeAnyIO/exclusive"), wrap: alter(func(a *altered, c *refClient) {
			a.acquire = func(ctx context.Context, req lock.Request) (lock.Grant, error) {
				if _, err := c.Inspect(ctx, "ping"); err != nil {
					return lock.Grant{}, err
				}
				return c.Acquire(ctx, req)
			}
		})},
	}...)
}
