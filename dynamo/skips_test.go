package dynamo_test

// failsSoFar names the cases that the store does not pass yet, and what is seen there.
var failsSoFar = map[string]string{
	"AReasonIsAFact/AfterRecordLoss/exclusive": "a grant that vanished within its TTL is said to have expired",
	"AReasonIsAFact/AfterRecordLoss/shared":    "a grant that vanished within its TTL is said to have expired",
	"RecordsAreBounded/Holders":                "a Record shows all and HolderCount and WaiterCount are 0",
}
