package locktest

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	lock "github.com/seed-215fdefa/lock"
)

// subtle are flaws that do harm only where several things come together.
type subtle struct {
	unboundedRecords, countsWhatIsShown                            bool
	heartbeatOnce, heartbeatOfFirst, slowHeartbeat                 bool
	placesLiveTogether, grantsLiveTogether                         bool
	expiredReleaseEnds                                             bool
	ttlOfReleaser, ttlOfReleaserInProcess, losesMetadata, wrapsTTL bool
	recordOfFirstTTL, showsDeadWaiters                             bool
	silentForce, silentReaders, silentUndo, wakesOneReader         bool
	handsOverInReply, handsOverBeside                              bool
	triesBargeIn, sharedTriesPass                                  bool
	clientToken, guessesExpired, latePlaces                        bool
	keptInTwo, impatient, restartDropsLine, neverSuspects          bool
	noHeadStart, strictPriority, headStartByClient, headStartOnce  bool
	noHeadStartOfReaders, headStartOfFirstPlace                    bool
	dropsUnder, noticeOfFirstTTL, tornIsFinal, anyToken            bool
	impatientTogether, oneComesBack, deadOneByOne, neverGivesUp    bool
	forcesTwice, longHeartbeat, slowRecheck, partDropsToken        bool
}

// shown is what a record says of what a waiter holds.
func (s *refServer) shown(under []string) []string {
	if s.dropsUnder {
		return nil
	}
	return under
}

// spoil does to a new grant what the flaws say.
func (s *refServer) spoil(k *refKey, h *refHold) {
	waited := k.place(h.req.Owner) >= 0
	if waited && k.last != nil && (s.ttlOfReleaser || s.ttlOfReleaserInProcess && k.last.by == h.by) {
		h.expires = h.since.Add(k.last.req.TTL)
	}
	if waited && s.losesMetadata {
		h.req.Metadata = nil
	}
	if s.wrapsTTL {
		h.expires = h.since.Add(time.Duration(uint32(h.req.TTL.Milliseconds())) * time.Millisecond)
	}
}

// place is where a newcomer stands in line, if there are no flaws: when it came, less its head
// start.
func (s *refServer) place(c *refClient, req lock.Request, now time.Time) time.Time {
	d := req.HeadStart
	switch {
	case s.noHeadStart || s.noHeadStartOfReaders && req.Shared || s.headStartOfFirstPlace && s.lined[req.Owner]:
		d = 0
	case s.strictPriority:
		d *= 90
	case s.headStartByClient && d > 0:
		d += c.tokenSkew
	}
	return now.Add(-d)
}

// passOn wakes the waiter that a release of this process handed the key to, if the reply
// has come that says so.
func (c *refClient) passOn(replied bool) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if !replied {
		c.handed = nil
	}
	if c.handed != nil {
		c.wake(c.handed.req.Owner)
	}
}

// handedTo is the grant that a release handed to owner.
func (c *refClient) handedTo(owner string) (lock.Grant, bool) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	h := c.handed
	if h == nil || h.req.Owner != owner {
		return lock.Grant{}, false
	}
	c.handed = nil
	return lock.Grant{Key: h.req.Key, Owner: owner, Token: h.token, TTL: h.req.TTL, Start: time.Now(), Shared: h.req.Shared}, true
}

// losePart makes the server forget a grant, or a place in line.
func (s *refServer) losePart(key string, n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.key(key, time.Now())
	if s.partDropsToken {
		k.token = 0
	}
	if n < len(k.holders) {
		if s.keptInTwo {
			for i, h := range k.holders { // readers are in one part
				h.unseen = i == n || h.req.Shared
			}
		} else {
			k.holders = slices.Delete(k.holders, n, n+1)
		}
		return true
	}
	n -= len(k.holders)
	if n >= len(k.line) {
		return false
	}
	k.line = slices.Delete(k.line, n, n+1)
	return true
}

// restart is over at once, and clients find a new connection by themselves.
func (c *refClient) restart() func() {
	if c.s.restartDropsLine || c.s.oneComesBack {
		c.s.mu.Lock()
		defer c.s.mu.Unlock()
		for _, k := range c.s.keys {
			k.line = nil
		}
		return nil
	}
	return c.forget(c.s.restartDropsHolds, c.s.restartDropsTokens)
}

// refresh is a waiter's heartbeat that is nothing else.
func (s *refServer) refresh(k *refKey, c *refClient, req lock.Request, now time.Time) {
	if k.place(req.Owner) < 0 {
		if s.restartDropsLine || s.oneComesBack && c.back != "" {
			return
		}
		c.back = req.Owner
	}
	s.join(k, c, req, now)
}

// bounded is ctx for one question to the server: nobody waits for ever for the first answer, and
// a waiter may be impatient.
func (c *refClient) bounded(ctx context.Context, inLine bool) (context.Context, context.CancelFunc) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if inLine && (c.s.impatient || c.s.impatientTogether && len(c.wakes) > 1) {
		return context.WithTimeout(ctx, 2*resend)
	}
	if !inLine && !c.s.neverGivesUp {
		return context.WithTimeout(ctx, lock.Patience)
	}
	return ctx, func() {}
}

// bury takes dead waiters out of k's line.
func (s *refServer) bury(k *refKey, now time.Time) {
	one := false
	k.line = slices.DeleteFunc(k.line, func(p *refPlace) bool {
		switch {
		case p.dies.After(now):
			return false
		case one && s.deadOneByOne:
			p.dies = now.Add(min(p.req.TTL, 5*time.Second))
			return false
		}
		one = true
		return true
	})
}

// judge notes whether wake-ups arrive.
func (c *refClient) judge(woken, granted bool) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.suspect = !woken && (c.suspect || granted)
}

// pause is how long a waiter sleeps that nobody wakes.
func (c *refClient) pause(beat time.Duration) time.Duration {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	s := c.s
	if s.slowRecheck {
		return 25 * time.Second
	}
	if c.suspect && !s.neverSuspects && !s.neverWakes && !s.silentForce && !s.silentReaders && !s.silentUndo && !s.wakesOneReader {
		return beat / 10
	}
	return beat / 3
}

// decoding takes keys that are an escaped form for what they stand for.
func decoding(decode func(string) (string, error)) func(string) string {
	return func(key string) string {
		if d, err := decode(key); err == nil && d != "" && utf8.ValidString(d) {
			return d
		}
		return key
	}
}

func fromHex(s string) (string, error) {
	b, err := hex.DecodeString(s)
	return string(b), err
}

func from64(s string) (string, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	return string(b), err
}

// subtlyBroken are stores that most of the suite takes for sound.
func subtlyBroken() []broken {
	with := func(what string, s subtle, caught ...string) broken {
		return broken{what: what, caught: caught, flaws: flaws{subtle: s}}
	}
	return []broken{
		with("records of any length", subtle{unboundedRecords: true}, "RecordsAreBounded/Holders", "RecordsAreBounded/Waiters/exclusive"),
		with("counts of what is shown", subtle{countsWhatIsShown: true}, "RecordsAreBounded/Holders", "RecordsAreBounded/Waiters/shared"),

		with("a waiter's heartbeat is never renewed", subtle{heartbeatOnce: true}, "DeadWaitersAreSkipped/NotALivingOne/exclusive"),
		with("only the first in line has its heartbeat renewed", subtle{heartbeatOfFirst: true}, "DeadWaitersAreSkipped/NotALivingOne/exclusive", "DeadWaitersAreSkipped/NotALivingOneWithALongTTL"),
		with("a waiter's heartbeat comes every third of its TTL", subtle{slowHeartbeat: true}, "DeadWaitersAreSkipped/NotALivingOneWithALongTTL"),
		with("one waiter keeps the places of its process", subtle{placesLiveTogether: true}, "FailureLeavesNothing/AbandonedWaiter/exclusive", "FailureLeavesNothing/AbandonedAtTheHead/exclusive"),
		with("one renewal keeps all that a process holds", subtle{grantsLiveTogether: true}, "FailureLeavesNothing/AbandonedGrant/exclusive", "FailureLeavesNothing/AbandonedGrant/shared"),

		with("renewals and releases by the owner, whatever the token", subtle{anyToken: true}, "RenewNeverCreates/OfAnOlderToken/exclusive", "ReleaseIsYoursAlone/OfAnOlderToken/shared"),
		{what: "an expired reader's renewal shortens the record", caught: in("RenewNeverCreates/OfAnExpiredReader"), flaws: flaws{lateRenewalShortens: true}},
		with("an expired reader's release ends another's", subtle{expiredReleaseEnds: true}, "ReleaseIsYoursAlone/OfAnExpiredReader"),

		with("a hand-over has the releaser's TTL", subtle{ttlOfReleaser: true}, "ExpiryIsTheStores/AfterALongerTTL/exclusive", "ExpiryIsTheStores/AfterAShorterTTL/exclusive"),
		with("a hand-over in one process has the releaser's TTL", subtle{ttlOfReleaserInProcess: true}, "ExpiryIsTheStores/AfterALongerTTLInOneProcess/shared", "ExpiryIsTheStores/AfterAShorterTTLInOneProcess/exclusive"),
		with("a waiter's metadata is lost with its place", subtle{losesMetadata: true}, "Inspect/MetadataAfterAWait/exclusive"),
		with("a renewed grant is shown for its first TTL", subtle{recordOfFirstTTL: true}, "Inspect/RenewedHolder/exclusive"),
		with("what a waiter holds is not shown", subtle{dropsUnder: true}, "Inspect/Under/exclusive", "Inspect/Under/shared"),
		with("a holder can be told for its first TTL", subtle{noticeOfFirstTTL: true}, "Capabilities/EarlyLossOfARenewedGrant/exclusive", "Capabilities/EarlyLossOfARenewedGrant/shared"),
		with("dead waiters are shown", subtle{showsDeadWaiters: true}, "Inspect/DeadWaiter/exclusive"),

		with("ForceRelease wakes nobody", subtle{silentForce: true}, "WakeupsAreHints/PromptAfterForceRelease/exclusive", "WakeupsAreHints/PromptAfterForceReleaseOfReaders"),
		with("a ForceRelease that is sent twice finds no grant", subtle{forcesTwice: true}, "Admin/EachMessageOfAForceRelease/exclusive", "Admin/EachMessageOfAForceRelease/shared"),
		with("readers wake nobody", subtle{silentReaders: true}, "WakeupsAreHints/PromptAfterTheLastReader"),
		with("one reader of several is woken", subtle{wakesOneReader: true}, "WakeupsAreHints/PromptForAllReaders"),
		with("an undo wakes nobody", subtle{silentUndo: true}, "WakeupsAreHints/PromptAfterAnUndo/exclusive", "WakeupsAreHints/PromptAfterAnUndoAtTheHead"),

		{what: "the reply to a release starts the next grant", caught: in("StartIsEarly/LateReplyToTheReleaser/exclusive"), flaws: flaws{noRecheck: true, subtle: subtle{handsOverInReply: true}}},
		{what: "the grant of a waiter is in the reply to a release only", caught: in("OneOwnerOneGrant/ReleaseBeforeAWaiterOfItsOwn/exclusive"), flaws: flaws{noRecheck: true, retryCreates: true, subtle: subtle{handsOverInReply: true}}},
		with("tries come in during a hand-over", subtle{triesBargeIn: true}, "Capabilities/TriesDuringAHandOver/exclusive"),
		with("shared tries pass a waiting writer", subtle{sharedTriesPass: true}, "NobodyPassesAWaitingWriter/Tries", "NobodyPassesAWaitingWriter/DuringAHandOver"),
		{what: "shared tries stay behind a dead writer", caught: in("NobodyPassesAWaitingWriter/OnlyALivingOne"), flaws: flaws{deadWaitersStay: true}},

		with("tokens from the client's clock", subtle{clientToken: true}, "TokensRise/AfterRelease/exclusive"),
		{what: "a token drawn before the request for the grant is sent", caught: in("TokensRise/BetweenSteps/exclusive"), wrap: alter(tokenFirst)},
		{what: "a request that comes after its undo is granted for ever", caught: in("FailureLeavesNothing/FreezeThroughTheUndo/exclusive"), flaws: flaws{lateRequests: true}},
		with("head starts are ignored", subtle{noHeadStart: true}, "AHeadStartIsAPlaceInLine/InOrder/exclusive", "AHeadStartIsAPlaceInLine/InOrder/shared", "AHeadStartIsAPlaceInLine/Hundreds/exclusive"),
		with("head starts of readers are ignored", subtle{noHeadStartOfReaders: true}, "AHeadStartIsAPlaceInLine/ReaderInFrontOfAWriter", "AHeadStartIsAPlaceInLine/Hundreds/shared"),
		with("any head start passes everybody without", subtle{strictPriority: true}, "AHeadStartIsAPlaceInLine/Hundreds/exclusive", "AHeadStartIsAPlaceInLine/Hundreds/shared"),
		with("who has a head start comes by its client's clock", subtle{headStartByClient: true}, "AHeadStartIsAPlaceInLine/Hundreds/exclusive"),
		with("a request that is sent again has no head start", subtle{headStartOnce: true}, "AHeadStartIsAPlaceInLine/SentAgain/exclusive", "AHeadStartIsAPlaceInLine/SentAgain/shared"),
		with("who lines up anew has no head start", subtle{headStartOfFirstPlace: true}, "AHeadStartIsAPlaceInLine/LostPlace/exclusive", "AHeadStartIsAPlaceInLine/LostPlace/shared"),
		{what: "head starts not validated", caught: in("BadInput/HeadStart/exclusive", "BadInput/HeadStart/shared"), flaws: flaws{lax: "head start"}},
		{what: "head starts not declared, and ignored", caught: in("Capabilities/PriorityIsRefused/exclusive", "Capabilities/PriorityIsRefused/shared"), wrap: alter(func(a *altered, c *refClient) {
			a.caps = func() lock.Capabilities {
				caps := c.Capabilities()
				caps.Priority = false
				return caps
			}
			a.acquire = func(ctx context.Context, req lock.Request) (lock.Grant, error) {
				req.HeadStart = 0
				return c.Acquire(ctx, req)
			}
		})},
		with("a request that comes after its undo stands in line for ever", subtle{latePlaces: true}, "FailureLeavesNothing/FreezeOfAWaiter/exclusive"),
		{what: "a late request stands in line for ever, on a connection that shakes hands", caught: in("FailureLeavesNothing/FreezeOfAWaiter/exclusive"), flaws: flaws{handshakes: true, subtle: subtle{latePlaces: true}}},
		with("every loss is an expiry", subtle{guessesExpired: true}, "AReasonIsAFact/AfterRelease/exclusive", "AReasonIsAFact/AfterRecordLoss/exclusive"),
		{what: "a forced grant is said to have expired", caught: in("AReasonIsAFact/AfterForceRelease/exclusive"), flaws: flaws{forcesSilently: true}, wrap: alter(func(a *altered, c *refClient) {
			a.renew = func(ctx context.Context, g lock.Grant) (lock.Grant, error) {
				g, err := c.Renew(ctx, g)
				var lost *lock.LostError
				if errors.As(err, &lost) {
					lost.Reason = lock.ReasonExpired
				}
				return g, err
			}
		})},
		with("what stands in the way of others is kept apart from the grant", subtle{keptInTwo: true}, "PartialLossIsLoss/OfAHolder/exclusive", "PartialLossIsLoss/OfReaders", "PartialLossIsLoss/WithALine/exclusive"),
		{what: "who waits behind another of its process is told that the key is held", caught: in("CancelIsPrompt/SeveralDuringAFreeze/exclusive", "CancelIsPrompt/SeveralDuringAFreeze/shared"), wrap: alter(func(a *altered, c *refClient) {
			var asking atomic.Int32
			a.acquire = func(ctx context.Context, req lock.Request) (lock.Grant, error) {
				behind := asking.Add(1) > 1
				defer asking.Add(-1)
				g, err := c.Acquire(ctx, req)
				if behind && req.Wait && err != nil && !errors.Is(err, lock.ErrHeld) {
					err = &lock.HeldError{Err: err}
				}
				return g, err
			}
		})},
		with("a wait ends when the server is slow to answer", subtle{impatient: true}, "AWaitOutlivesTheStoresTrouble/Freeze/exclusive"),
		with("a first request waits for its answer for ever", subtle{neverGivesUp: true}, "AWaitOutlivesTheStoresTrouble/FreezeFromTheStart", "AWaitOutlivesTheStoresTrouble/FreezeBeforeTheWait"),
		with("a reply that breaks off ends the wait", subtle{tornIsFinal: true}, "WakeupsAreHints/EachMessageOfAWait/exclusive", "WakeupsAreHints/EachMessageOfAWait/shared"),
		with("a wait ends when the server is slow to answer several", subtle{impatientTogether: true}, "AWaitOutlivesTheStoresTrouble/LineDuringAFreeze"),
		{what: "one waiter of each process comes back after a restart", caught: in("AWaitOutlivesTheStoresTrouble/LineDuringARestart"), flaws: flaws{noRecheck: true, subtle: subtle{oneComesBack: true}}},
		with("a dead reader is let in beside a living one, for its whole TTL", subtle{handsOverBeside: true}, "DeadWaitersAreSkipped/BehindALivingReader"),
		with("a dead waiter's place lives for 20 s", subtle{longHeartbeat: true}, "DeadWaitersAreSkipped/ByTheNext/exclusive", "DeadWaitersAreSkipped/WithALongTTL", "NobodyPassesAWaitingWriter/OnlyALivingOne"),
		with("a waiter looks again every 25 s", subtle{slowRecheck: true}, "WakeupsAreHints/LostWakeup/exclusive"),
		with("each dead waiter costs a heartbeat", subtle{deadOneByOne: true}, "DeadWaitersAreSkipped/ManyOfThem"),
		{what: "a line that a restart dissolves", caught: in("AWaitOutlivesTheStoresTrouble/Restart/exclusive"), flaws: flaws{noRecheck: true, subtle: subtle{restartDropsLine: true}}},
		with("lost wake-ups are not noticed", subtle{neverSuspects: true}, "WakeupsAreHints/LostForGood/exclusive"),
		with("milliseconds in 32 bits", subtle{wrapsTTL: true}, "DurationsAreBounded/Longest/exclusive", "DurationsAreBounded/LongestAfterAWait/exclusive"),
		{what: "any TTL", caught: in("DurationsAreBounded/Above/exclusive"), flaws: flaws{lax: "TTL"}},

		{what: "percent-encoded keys are decoded", caught: in("KeysAreOpaque/Independent/exclusive"), wrap: folding(decoding(url.PathUnescape))},
		{what: "form-encoded keys are decoded", caught: in("KeysAreOpaque/Independent/exclusive"), wrap: folding(decoding(url.QueryUnescape))},
		{what: "hexadecimal keys are decoded", caught: in("KeysAreOpaque/Independent/exclusive"), wrap: folding(decoding(fromHex))},
		{what: "base64 keys are decoded", caught: in("KeysAreOpaque/Independent/exclusive"), wrap: folding(decoding(from64))},
		{what: "quoted keys are decoded", caught: in("KeysAreOpaque/Independent/exclusive"), wrap: folding(decoding(func(s string) (string, error) { return strconv.Unquote(`"` + s + `"`) }))},
		{what: "padding is trimmed", caught: in("KeysAreOpaque/Independent/exclusive"), wrap: folding(func(k string) string { return strings.TrimRight(k, "=") })},
		{what: "a key's hash tag is the key", caught: in("KeysAreOpaque/Independent/exclusive"), wrap: folding(func(k string) string {
			if _, tag, ok := strings.Cut(k, "{"); ok {
				if tag, _, ok = strings.Cut(tag, "}"); ok && tag != "" {
					return tag
				}
			}
			return k
		})},
	}
}
