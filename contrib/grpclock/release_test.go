package grpclock_test

import "testing"

func TestReleaseWhoseReplyIsLost(t *testing.T) { protocol().LoseReleaseReply(t) }
func TestReleaseOfWhatWasForced(t *testing.T)  { protocol().KeepForcedReason(t) }
func TestAcquireWhoseReplyIsLost(t *testing.T) { protocol().LoseAcquireReply(t) }
func TestLateTryOfHeldKey(t *testing.T)        { protocol().LateTryOfHeldKey(t) }
func TestDoubtBeforeAWait(t *testing.T)        { protocol().DoubtBeforeAWait(t) }
func TestLoseGrant(t *testing.T)               { protocol().LoseGrant(t) }
