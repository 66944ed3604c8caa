// Package categorizer decides where accepted mail goes: it resolves recipients, routes them to send connectors,
// splits the message into one copy a hop, and raises the routing events on the way.
package categorizer

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Options of a Categorizer.
type Options struct {
	Pipeline *pipeline.Pipeline
	Config   *config.Config
	Tables   tables.Store // as directory.Tables gives it
	Ledger   tracking.Ledger
	Logger   hclog.Logger
	Now      func() time.Time // nil: time.Now
}

// Result says what to store. With Item it is Record(Item, Children...), without Replace(item, Children...).
type Result struct {
	// Item is the given item with a new state, the same id and the same content: routed and due (it may be
	// delivered at once, without being recorded first: categorizing it again gives the same), or put off, waiting
	// for an agent, or parked. Nil when children take its place.
	Item *queue.Item
	// Children are routed copies, what agents spawned or kept, quarantined copies, notifications, and copies for
	// recipients that are to be categorized again later.
	Children []*queue.Item
	Steps    []tracking.Verdict
	Wait     string         // agent that Item waits for
	Defer    time.Time      // when Item is to be categorized again; zero: it is not put off
	Poison   *agent.Failure // why Item is parked
}

// Categorizer is safe for concurrent use.
type Categorizer struct {
	config   *config.Config
	tables   tables.Store
	ledger   tracking.Ledger
	log      hclog.Logger
	now      func() time.Time
	open     func(*envelope.Session, envelope.Stamps) conversation
	accepted acceptedDomains
	router   router
}

// conversation is what the categorizer uses of a pipeline.Conversation; its tests play one.
type conversation interface {
	Subscribed(agentpb.EventKind) bool
	Raise(context.Context, *pipeline.Event) *pipeline.Outcome
	Close(context.Context)
}

// New makes a Categorizer for one configuration.
func New(o Options) *Categorizer {
	c := &Categorizer{
		config:   o.Config,
		tables:   o.Tables,
		ledger:   o.Ledger,
		log:      o.Logger,
		now:      o.Now,
		accepted: newAcceptedDomains(o.Config.AcceptedDomains),
		router:   newRouter(o.Config.SendConnectors),
	}
	if c.now == nil {
		c.now = time.Now
	}
	c.open = func(s *envelope.Session, stamps envelope.Stamps) conversation { return o.Pipeline.Open(s, stamps) }
	return c
}

// Process takes item from OnSubmitted to OnCategorized. The item itself is not changed, and a Result that is
// thrown away has done nothing but write to the ledger: processing it again gives children with the same ids and
// events with the same ids. The error is ctx's.
func (c *Categorizer) Process(ctx context.Context, item *queue.Item) (Result, error) {
	session := item.Session
	conv := c.open(&session, item.Stamps)
	defer conv.Close(ctx)
	p := &pass{Categorizer: c, ctx: ctx, item: item, conv: conv, started: c.now()}
	p.run()
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	p.record()
	return p.result, nil
}
