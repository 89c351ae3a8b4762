package grpclock_test

import "testing"

func TestReleaseWhoseReplyIsLost(t *testing.T) { protocol().LoseReleaseReply(t) }
func TestReleaseOfWhatWasForced(t *testing.T)  { protocol().KeepForcedReason(t) }
