package redis_test

// failsSoFar names the cases that the store does not pass yet, and what is seen there.
var failsSoFar = map[string]string{
	"AReasonIsAFact/AfterForceRelease/exclusive": "a grant that vanished within its TTL is said to have expired",
	"AReasonIsAFact/AfterForceRelease/shared":    "a grant that vanished within its TTL is said to have expired",
	"AReasonIsAFact/AfterRecordLoss/exclusive":   "a grant that vanished within its TTL is said to have expired",
	"AReasonIsAFact/AfterRecordLoss/shared":      "a grant that vanished within its TTL is said to have expired",
	"AReasonIsAFact/AfterRelease/exclusive":      "a grant that vanished within its TTL is said to have expired",
	"AReasonIsAFact/AfterRelease/shared":         "a grant that vanished within its TTL is said to have expired",
	"WakeupsAreHints/LostForGood/exclusive":      "rechecks stay at a third of the heartbeat when no wake-up arrives",
	"WakeupsAreHints/LostForGood/shared":         "rechecks stay at a third of the heartbeat when no wake-up arrives",
}
