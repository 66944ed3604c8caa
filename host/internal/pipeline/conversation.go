package pipeline

import (
	"context"
	"os"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Options of a Pipeline.
type Options struct {
	Tables   tables.Store // nil: agents find no rows, and their writes are dropped
	Host     config.Host
	Accepted []config.AcceptedDomain
	Logger   hclog.Logger               // nil: no log
	NewID    func() string              // ids of events that come without one
	Breach   func(agent, reason string) // told of every breach, with the part of the answer it is in; may be nil
	Failed   func(agent, became string) // told of every event that an agent failed at, with what became of it ("skipped", "defer"...); may be nil
	TempFile func() (*os.File, error)   // an unnamed file for a large new body; nil: in the data directory
	DryRun   bool                       // every event is a dry run; Tables is an overlay that is thrown away
}

// Pipeline dispatches events to the agents of the newest plan. Safe for concurrent use.
type Pipeline struct {
	options  Options
	settings atomic.Pointer[settings]
	plan     atomic.Pointer[Plan]
	queues   sync.Map // agent name -> *factQueue
}

// settings are the options that may change while events are under way.
type settings struct {
	host     config.Host
	accepted []config.AcceptedDomain
}

// New makes a pipeline with an empty plan: every event continues.
func New(o Options) *Pipeline {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.TempFile == nil {
		dir := o.Host.DataDir
		o.TempFile = func() (*os.File, error) { return unnamedFile(dir) }
	}
	p := &Pipeline{options: o}
	p.SetConfig(o.Host, o.Accepted)
	p.plan.Store(&Plan{})
	return p
}

// SetConfig replaces the budgets and the accepted domains, for the events from now on.
func (p *Pipeline) SetConfig(host config.Host, accepted []config.AcceptedDomain) {
	p.settings.Store(&settings{host, accepted})
}

func (p *Pipeline) budget() config.EventBudget { return p.settings.Load().host.EventBudget }

// SetPlan makes plan the one that new sessions and transactions get.
func (p *Pipeline) SetPlan(plan *Plan) { p.plan.Store(plan) }

// Plan is the newest plan, never nil.
func (p *Pipeline) Plan() *Plan { return p.plan.Load() }

// Open starts the events of one session (or of one item right of the 250 line, with the stamps stored with it). The
// session s is read at every event, in the goroutine that raises it; nil where there is none (OnSchedule). The plan
// stays the same until BeginMail.
func (p *Pipeline) Open(s *envelope.Session, stamps envelope.Stamps) *Conversation {
	c := &Conversation{pipeline: p, session: s, stamps: stamps.Clone()}
	c.plan = c.choose(p.pin())
	return c
}

// pin is the newest plan, held until its unpin.
func (p *Pipeline) pin() *Plan {
	plan := p.Plan()
	plan.pins.Add(1)
	return plan
}

// Pinned reports whether a conversation goes on under the plan. A plan that was replaced may be pinned once more by
// one that is being opened at that moment.
func (p *Plan) Pinned() bool { return p.pins.Load() > 0 }

// Conversation is the events of one session. Its methods are called from one goroutine.
type Conversation struct {
	pipeline  *Pipeline
	plan      *Plan
	session   *envelope.Session
	stamps    envelope.Stamps
	atConnect envelope.Stamps // stamps as OnConnect left them, for StartTLS
	wire      sessionWire
	waiting   []waitingCopy // copies that edits at OnEndOfHeaders made, until OnEndOfData
	decided   []decided     // recipients that OnEndOfHeaders has decided about
	facts     factLanes
	copies    copyLanes
}

// Subscribed reports whether any agent wants events of kind, so that a caller need not build one for nothing.
func (c *Conversation) Subscribed(kind agentpb.EventKind) bool {
	return c.plan.Subscribed(kind) || kind == agentpb.EventKind_EVENT_KIND_END_OF_DATA && len(c.waiting) > 0
}

// BeginMail takes the newest plan. Call it before OnMail.
func (c *Conversation) BeginMail() {
	if newest := c.pipeline.Plan(); newest != c.plan.top() {
		c.plan.top().pins.Add(-1)
		c.plan = c.choose(c.pipeline.pin())
	}
	c.EndMail()
}

// EndMail drops what agents said for the length of a message. What is in the stamps of the mail goes with it.
func (c *Conversation) EndMail() { c.waiting, c.decided = nil, nil }

// StartTLS drops the session stamps of all events but OnConnect, and with them what agents said for the session:
// RFC 3207 section 4.2 wants what was learned in the clear forgotten.
func (c *Conversation) StartTLS() {
	c.takeFacts()
	c.stamps = c.atConnect.Clone()
}

// Disconnecting reports whether the answer to a fact asked to disconnect.
func (c *Conversation) Disconnecting() bool { return c.facts.disconnect.Load() != nil }

// Disconnected is the verdict behind Disconnecting, for the ledger; its Decision is Continue when there is none.
func (c *Conversation) Disconnected() Verdict {
	if v := c.facts.disconnect.Load(); v != nil {
		return *v
	}
	return Verdict{}
}

// SessionStamps are the session's stamps, to be stored with an item. The caller must not change them.
func (c *Conversation) SessionStamps() envelope.Stamps {
	c.takeFacts()
	return c.stamps.Clone()
}

// setSession writes a session stamp. Maps that were handed out are never changed.
func (c *Conversation) setSession(kind agentpb.EventKind, name string, value []byte) {
	if c.stamps == nil {
		c.stamps = envelope.Stamps{}
	}
	c.stamps[name] = value
	if kind != agentpb.EventKind_EVENT_KIND_CONNECT {
		return
	}
	if c.atConnect == nil {
		c.atConnect = envelope.Stamps{}
	}
	c.atConnect[name] = value
}

// Raise asks the agents about ev, applies their edits to its mail, and answers with what it comes to. It never
// answers nil.
func (c *Conversation) Raise(ctx context.Context, ev *Event) *Outcome {
	o := &Outcome{}
	if ev.Mail != nil {
		o.Mails = []*envelope.Mail{ev.Mail}
	}
	if !c.Subscribed(ev.Kind) {
		return o
	}
	c.takeFacts()
	r := newRun(ctx, c, ev, o)
	r.all(c.plan.events[ev.Kind])
	r.close()
	return o
}
