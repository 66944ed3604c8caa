package sdk

import (
	"time"

	"github.com/posternmail/postern/sdk/agentpb"
)

// Option says what an event needs or what its answer may hold.
type Option interface {
	apply(s *agentpb.Subscription, r *Registrar)
}

// optionFunc is an Option.
type optionFunc func(s *agentpb.Subscription, r *Registrar)

func (f optionFunc) apply(s *agentpb.Subscription, r *Registrar) { f(s, r) }

// BodySize is how much of a body to send.
type BodySize int64

// Whole body.
const Whole BodySize = -1

// Prefix is the first n octets of a body, up to 1 MiB.
func Prefix(n Size) BodySize { return BodySize(n) }

// View of a message. As an Option it asks for that view of the headers.
type View agentpb.View

// Views.
const (
	Current  = View(agentpb.View_VIEW_CURRENT)  // as earlier agents left it
	Original = View(agentpb.View_VIEW_ORIGINAL) // the octets as received; what sender authentication wants
)

func (v View) apply(s *agentpb.Subscription, _ *Registrar) { s.View = agentpb.View(v) }

// Body asks for the body: Whole or Prefix(n), Current or Original. With it come the header fields that say how
// the body is built (Content-Type and its like). Only at OnEndOfData, the routing events, OnReleased and
// OnFeedback.
func Body(size BodySize, view View) Option {
	return optionFunc(func(s *agentpb.Subscription, _ *Registrar) {
		need := bodyNeed(s)
		need.Mode, need.PrefixBytes = agentpb.BodyMode_BODY_MODE_WHOLE, 0
		if size != Whole {
			need.Mode, need.PrefixBytes = agentpb.BodyMode_BODY_MODE_PREFIX, uint64(size)
		}
		s.View = agentpb.View(view)
		if !s.GetHeaders().GetAll() {
			headerNeed(s).Names = append(headerNeed(s).Names, contentFields...)
		}
	})
}

// contentFields describe the body (RFC 2045).
var contentFields = []string{"MIME-Version", "Content-Type", "Content-Transfer-Encoding", "Content-Disposition"}

// SkipOver does not want bodies larger than this; Body.Skipped tells.
func SkipOver(size Size) Option {
	return optionFunc(func(s *agentpb.Subscription, _ *Registrar) { bodyNeed(s).SkipOver = uint64(size) })
}

func bodyNeed(s *agentpb.Subscription) *agentpb.BodyNeed {
	if s.Body == nil {
		s.Body = new(agentpb.BodyNeed)
	}
	return s.Body
}

func headerNeed(s *agentpb.Subscription) *agentpb.HeaderNeed {
	if s.Headers == nil {
		s.Headers = new(agentpb.HeaderNeed)
	}
	return s.Headers
}

// ReadsHeaders asks for header fields by name, for all of them without a name.
func ReadsHeaders(names ...string) Option {
	return optionFunc(func(s *agentpb.Subscription, _ *Registrar) {
		need := headerNeed(s)
		if len(names) == 0 {
			need.All, need.Names = true, nil
			return
		}
		need.Names = append(need.Names, names...)
	})
}

// ReadsStamps asks for stamps of others: "agent.key", "agent.*", or a shared name such as "scl".
func ReadsStamps(names ...string) Option {
	return optionFunc(func(s *agentpb.Subscription, _ *Registrar) { s.ReadsStamps = append(s.ReadsStamps, names...) })
}

// ReadsOwnStamps asks for stamps that this agent left at earlier events.
func ReadsOwnStamps(keys ...string) Option {
	return optionFunc(func(s *agentpb.Subscription, r *Registrar) {
		for _, key := range keys {
			s.ReadsStamps = append(s.ReadsStamps, r.instance+"."+key)
		}
	})
}

// Every is the interval of OnSchedule, which needs one.
func Every(d time.Duration) Option {
	return optionFunc(func(s *agentpb.Subscription, _ *Registrar) { s.Every = d.String() })
}

// flag is an Option without a value.
type flag uint8

// Options without a value.
const (
	// Waits: the handler waits for something outside (DNS, network, an engine). Agents that wait are asked at
	// the same time where their order does not matter.
	Waits flag = iota
	// MayKeepCopy: answers may keep copies in quarantine.
	MayKeepCopy
	// MaySpawn: answers may hold new messages.
	MaySpawn
	// MayBypass: answers may be Bypass.
	MayBypass
)

func (f flag) apply(s *agentpb.Subscription, _ *Registrar) {
	switch f {
	case Waits:
		s.Waits = true
	case MayKeepCopy:
		s.MayChange.KeepCopy = true
	case MaySpawn:
		s.MayChange.Spawn = true
	case MayBypass:
		s.MayChange.Bypass = true
	}
}

// Change is something that MayChange allows.
type Change interface{ allow(c *agentpb.Changes) }

// part of a message that an answer may change.
type part uint8

// What an answer may change.
const (
	Verdicts  part = iota // verdicts other than Continue, Done, Tarpit and Undetermined
	Headers               // header fields
	BodyParts             // the body
	Addresses             // sender and recipients, fork, expand
	Routes                // routing overrides
)

func (p part) allow(c *agentpb.Changes) {
	switch p {
	case Verdicts:
		c.Verdict = true
	case Headers:
		c.Headers = true
	case BodyParts:
		c.Body = true
	case Addresses:
		c.Envelope = true
	case Routes:
		c.Route = true
	}
}

// stampChange allows stamps.
type stampChange []string

func (names stampChange) allow(c *agentpb.Changes) { c.Stamps = append(c.Stamps, names...) }

// Stamps that an answer may write: own keys, or shared names that Info.SharedStamps lists.
func Stamps(names ...string) Change { return stampChange(names) }

// MayChange says what an answer may hold beside Continue; without this option it may hold any verdict and
// writes to the tables in use. MayChange() allows nothing: the agent only looks. More than is allowed here is a
// breach, and the less is allowed, the more agents run at the same time.
func MayChange(changes ...Change) Option {
	return optionFunc(func(s *agentpb.Subscription, r *Registrar) {
		if !r.narrowed[s.Event] { // a second MayChange adds to the first
			s.MayChange.Verdict, r.narrowed[s.Event] = false, true
		}
		for _, c := range changes {
			c.allow(s.MayChange)
		}
	})
}
