package locktest

// subtle are flaws that do harm only where several things come together.
type subtle struct {
	unboundedRecords, countsWhatIsShown bool
}

// subtlyBroken are stores that most of the suite takes for sound.
func subtlyBroken() []broken {
	return []broken{
		{what: "records of any length", caught: in("RecordsAreBounded/Holders", "RecordsAreBounded/Waiters/exclusive"), flaws: flaws{subtle: subtle{unboundedRecords: true}}},
		{what: "counts of what is shown", caught: in("RecordsAreBounded/Holders", "RecordsAreBounded/Waiters/exclusive"), flaws: flaws{subtle: subtle{countsWhatIsShown: true}}},
	}
}
