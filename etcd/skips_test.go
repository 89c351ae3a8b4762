package etcd_test

// failsSoFar names the cases that the store does not pass yet, and what is seen there.
var failsSoFar = map[string]string{
	"DurationsAreBounded/Longest/exclusive":             "a TTL of lock.MaxTTL is ErrInvalid: the longest is 1 min by default",
	"DurationsAreBounded/Longest/shared":                "a TTL of lock.MaxTTL is ErrInvalid: the longest is 1 min by default",
	"DurationsAreBounded/LongestAfterAWait/exclusive":   "a TTL of lock.MaxTTL is ErrInvalid: the longest is 1 min by default",
	"DurationsAreBounded/LongestAfterAWait/shared":      "a TTL of lock.MaxTTL is ErrInvalid: the longest is 1 min by default",
	"FailureLeavesNothing/AbandonedAtTheHead/exclusive": "what was abandoned without an undo lives on while its process does",
	"FailureLeavesNothing/AbandonedAtTheHead/shared":    "what was abandoned without an undo lives on while its process does",
	"FailureLeavesNothing/AbandonedGrant/exclusive":     "what was abandoned without an undo lives on while its process does",
	"FailureLeavesNothing/AbandonedGrant/shared":        "what was abandoned without an undo lives on while its process does",
	"FailureLeavesNothing/AbandonedWaiter/exclusive":    "what was abandoned without an undo lives on while its process does",
	"FailureLeavesNothing/AbandonedWaiter/shared":       "what was abandoned without an undo lives on while its process does",
	"WakeupsAreHints/LostForGood/exclusive":             "rechecks stay at a third of the heartbeat when no wake-up arrives",
	"WakeupsAreHints/LostForGood/shared":                "rechecks stay at a third of the heartbeat when no wake-up arrives",
}
