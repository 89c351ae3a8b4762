package grpclock

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/contrib/grpclock/lockv1"
	"github.com/seed-215fdefa/lock/internal/service"
)

func toAnswer(a service.Answer) *lockv1.AcquireResponse {
	if a.Grant.Token == 0 {
		line := &lockv1.Line{New: a.New}
		if a.Record.Key != "" {
			line.Record = toRecord(a.Record)
		}
		return &lockv1.AcquireResponse{Answer: &lockv1.AcquireResponse_Line{Line: line}}
	}
	g := toGrant(a.Grant)
	g.Renew = a.Renew
	return &lockv1.AcquireResponse{Answer: &lockv1.AcquireResponse_Grant{Grant: g}}
}

func answerOf(r *lockv1.AcquireResponse) service.Answer {
	return service.Answer{
		Grant: grantOf(r.GetGrant()), Renew: r.GetGrant().GetRenew(),
		New: r.GetLine().GetNew(), Record: recordOf(r.GetLine().GetRecord()),
	}
}

func toGrant(g lock.Grant) *lockv1.Grant {
	return &lockv1.Grant{Key: g.Key, Owner: g.Owner, Token: uint64(g.Token), Ttl: durationpb.New(g.TTL), Shared: g.Shared}
}

func grantOf(g *lockv1.Grant) lock.Grant {
	return lock.Grant{
		Key: g.GetKey(), Owner: g.GetOwner(), Token: lock.Token(g.GetToken()), TTL: g.GetTtl().AsDuration(), Shared: g.GetShared(),
	}
}

func toRecord(r lock.Record) *lockv1.Record {
	m := &lockv1.Record{
		Key: r.Key, Token: uint64(r.Token), HolderCount: int64(r.HolderCount), WaiterCount: int64(r.WaiterCount),
	}
	for _, h := range r.Holders {
		m.Holders = append(m.Holders, &lockv1.Holder{
			Owner: h.Owner, Token: uint64(h.Token), Shared: h.Shared, Metadata: h.Metadata,
			Held: known(h.Held), ExpiresIn: known(h.ExpiresIn),
		})
	}
	for _, w := range r.Waiters {
		m.Waiters = append(m.Waiters, &lockv1.Waiter{
			Owner: w.Owner, Shared: w.Shared, Waited: durationpb.New(w.Waited), Metadata: w.Metadata, Under: w.Under,
		})
	}
	return m
}

func recordOf(m *lockv1.Record) lock.Record {
	r := lock.Record{
		Key: m.GetKey(), Token: lock.Token(m.GetToken()), HolderCount: int(m.GetHolderCount()), WaiterCount: int(m.GetWaiterCount()),
	}
	for _, h := range m.GetHolders() {
		r.Holders = append(r.Holders, lock.Holder{
			Owner: h.GetOwner(), Token: lock.Token(h.GetToken()), Shared: h.GetShared(), Metadata: h.GetMetadata(),
			Held: orUnknown(h.GetHeld()), ExpiresIn: orUnknown(h.GetExpiresIn()),
		})
	}
	for _, w := range m.GetWaiters() {
		r.Waiters = append(r.Waiters, lock.Waiter{
			Owner: w.GetOwner(), Shared: w.GetShared(), Waited: w.GetWaited().AsDuration(), Metadata: w.GetMetadata(), Under: w.GetUnder(),
		})
	}
	return r
}

// known is nil for a negative d, which is not known.
func known(d time.Duration) *durationpb.Duration {
	if d < 0 {
		return nil
	}
	return durationpb.New(d)
}

func orUnknown(d *durationpb.Duration) time.Duration {
	if d == nil {
		return -1
	}
	return d.AsDuration()
}

func toCapabilities(c lock.Capabilities) *lockv1.CapabilitiesResponse {
	return &lockv1.CapabilitiesResponse{
		Store: c.Store, Shared: c.Shared, Fifo: c.FIFO, Priority: c.Priority, Push: c.Push,
		MinTtl: durationpb.New(c.MinTTL), ExpirySlack: durationpb.New(c.ExpirySlack),
		TokenSurvives: uint32(c.TokenSurvives), HoldSurvives: uint32(c.HoldSurvives),
	}
}

func capabilitiesOf(m *lockv1.CapabilitiesResponse) lock.Capabilities {
	return lock.Capabilities{
		Store: m.GetStore(), Shared: m.GetShared(), FIFO: m.GetFifo(), Priority: m.GetPriority(), Push: m.GetPush(),
		MinTTL: m.GetMinTtl().AsDuration(), ExpirySlack: m.GetExpirySlack().AsDuration(),
		TokenSurvives: lock.Survival(m.GetTokenSurvives()), HoldSurvives: lock.Survival(m.GetHoldSurvives()),
	}
}

// statuses has the code of each kind of problem.
var statuses = map[string]codes.Code{
	service.KindHeld:            codes.Aborted,
	service.KindLost:            codes.NotFound,
	service.KindReleased:        codes.FailedPrecondition,
	service.KindInvalid:         codes.InvalidArgument,
	service.KindUnsupported:     codes.Unimplemented,
	service.KindUnavailable:     codes.Unavailable,
	service.KindClosed:          codes.Unavailable,
	service.KindStopping:        codes.Unavailable,
	service.KindCrowded:         codes.ResourceExhausted,
	service.KindUnauthenticated: codes.Unauthenticated,
	service.KindForbidden:       codes.PermissionDenied,
}

// maxDetail is how many bytes of a record a status carries. It goes into a trailer, of which many clients
// take 8 KiB and no more.
const maxDetail = 4 << 10

// shorten leaves out of r what is too much for a status. The counts stay.
func shorten(r *lockv1.Record) *lockv1.Record {
	for _, leaveOut := range []func(){
		func() {
			for _, h := range r.GetHolders() {
				h.Metadata = nil
			}
			for _, w := range r.GetWaiters() {
				w.Metadata = nil
			}
		},
		func() { r.Waiters = nil },
		func() { r.Holders = r.GetHolders()[:min(1, len(r.GetHolders()))] },
	} {
		if proto.Size(r) > maxDetail {
			leaveOut()
		}
	}
	return r
}

// toStatus is the error that a call ends with. A deadline that is the client's own is no problem of the
// service.
func toStatus(ctx context.Context, p *service.Problem) error {
	if err := ctx.Err(); err != nil && p.Kind == service.KindUnavailable {
		return status.FromContextError(err).Err()
	}
	m := &lockv1.Problem{Kind: p.Kind, Detail: p.Detail, Token: uint64(p.Token), Final: p.Final}
	if p.Record != nil {
		m.Record = shorten(toRecord(*p.Record))
	}
	if p.Reason != 0 {
		m.Reason = p.Reason.String()
	}
	s, err := status.New(statuses[p.Kind], "lock: "+p.Error()).WithDetails(m)
	if err != nil {
		panic("grpclock: a problem has no status: " + err.Error())
	}
	return s.Err()
}

// problemOf is what toStatus was given, or nil.
func problemOf(s *status.Status) *service.Problem {
	for _, d := range s.Details() {
		m, ok := d.(*lockv1.Problem)
		if !ok {
			continue
		}
		p := &service.Problem{
			Kind: m.GetKind(), Detail: m.GetDetail(), Reason: service.ReasonOf(m.GetReason()), Token: lock.Token(m.GetToken()), Final: m.GetFinal(),
		}
		if m.GetRecord() != nil {
			rec := recordOf(m.GetRecord())
			p.Record = &rec
		}
		return p
	}
	return nil
}
