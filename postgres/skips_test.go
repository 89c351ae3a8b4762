package postgres_test

// failsSoFar names the cases that the store does not pass yet, and what is seen there.
var failsSoFar = map[string]string{
	"AReasonIsAFact/AfterRecordLoss/exclusive": "a grant that vanished within its TTL is said to have expired",
	"AReasonIsAFact/AfterRecordLoss/shared":    "a grant that vanished within its TTL is said to have expired",
	"AReasonIsAFact/AfterRelease/exclusive":    "a grant that vanished within its TTL is said to have expired",
	"AReasonIsAFact/AfterRelease/shared":       "a grant that vanished within its TTL is said to have expired",
	"PartialLossIsLoss/OfAHolder/shared":       "a deleted row lets a writer in beside a reader, and both are renewed",
	"PartialLossIsLoss/OfReaders":              "a deleted row lets a writer in beside a reader, and both are renewed",
	"PartialLossIsLoss/WithALine/shared":       "a deleted row lets a writer in beside a reader, and both are renewed",
	"RecordsAreBounded/Few/exclusive":          "a Record shows all and HolderCount and WaiterCount are 0",
	"RecordsAreBounded/Few/shared":             "a Record shows all and HolderCount and WaiterCount are 0",
	"RecordsAreBounded/Holders":                "a Record shows all and HolderCount and WaiterCount are 0",
	"RecordsAreBounded/Waiters/exclusive":      "a Record shows all and HolderCount and WaiterCount are 0",
	"RecordsAreBounded/Waiters/shared":         "a Record shows all and HolderCount and WaiterCount are 0",
	"WakeupsAreHints/LostForGood/exclusive":    "rechecks stay at a third of the heartbeat when no wake-up arrives",
	"WakeupsAreHints/LostForGood/shared":       "rechecks stay at a third of the heartbeat when no wake-up arrives",
}
