package redlock_test

// failsSoFar names the cases that the store does not pass yet, and what is seen there.
var failsSoFar = map[string]string{
	"AReasonIsAFact/AfterForceRelease/exclusive":      "a grant that vanished within its TTL is said to have expired",
	"AReasonIsAFact/AfterForceRelease/shared":         "a grant that vanished within its TTL is said to have expired",
	"AReasonIsAFact/AfterRecordLoss/exclusive":        "a grant that vanished within its TTL is said to have expired",
	"AReasonIsAFact/AfterRecordLoss/shared":           "a grant that vanished within its TTL is said to have expired",
	"AReasonIsAFact/AfterRelease/exclusive":           "a grant that vanished within its TTL is said to have expired",
	"AReasonIsAFact/AfterRelease/shared":              "a grant that vanished within its TTL is said to have expired",
	"DurationsAreBounded/Longest/exclusive":           "a TTL of lock.MaxTTL is ErrInvalid: the longest is 1 min by default",
	"DurationsAreBounded/Longest/shared":              "a TTL of lock.MaxTTL is ErrInvalid: the longest is 1 min by default",
	"DurationsAreBounded/LongestAfterAWait/exclusive": "a TTL of lock.MaxTTL is ErrInvalid: the longest is 1 min by default",
	"DurationsAreBounded/LongestAfterAWait/shared":    "a TTL of lock.MaxTTL is ErrInvalid: the longest is 1 min by default",
	"RecordsAreBounded/Holders":                       "a Record shows all and HolderCount and WaiterCount are 0",
}
