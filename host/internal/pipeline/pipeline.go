// Package pipeline holds the plan (event -> stages of agents) and dispatches one event through it: which agents
// are asked, in which order, what they are shown, and what their answers may do.
package pipeline

import (
	"context"
	"time"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Caller is one configured agent as the pipeline uses it. *agent.Agent implements it.
type Caller interface {
	// Name is the label of the agent block.
	Name() string
	// Manifest of the running version.
	Manifest() *agentpb.DescribeResponse
	// Subscriptions of the effective configuration.
	Subscriptions() []*agentpb.Subscription
	// Call asks the agent. The error, if any, is an *agent.Failure.
	Call(ctx context.Context, c *agent.Call) (agent.Result, error)
}

// Event is one event on its way through the plan.
type Event struct {
	Kind      agentpb.EventKind
	ID        string             // stable over attempts and restarts: message or session id, event, ordinal
	Mail      *envelope.Mail     // nil before MAIL and where no message is concerned
	Arguments *agentpb.Arguments // nil where the kind has none
	DryRun    bool
}

// Decision is what an event comes to for a command, a message or a recipient, strongest last.
type Decision uint8

// Decisions.
const (
	Continue Decision = iota
	Quarantine
	Discard
	Defer
	Reject
	Disconnect
)

// String names d as the ledger does.
func (d Decision) String() string {
	return [...]string{"continue", "quarantine", "discard", "defer", "reject", "disconnect"}[d]
}

// Verdict is a Decision with who made it and why.
type Verdict struct {
	Decision Decision
	Reply    envelope.Reply // of Defer, Reject and Disconnect; complete, with the host's defaults filled in
	Agent    string
	Version  string
	Event    agentpb.EventKind
	Reason   string
	Data     string
	Delay    time.Duration // of Defer on routing events
	Silent   bool          // of Reject on routing events: no notification is owed (RemoveRecipient without report)
}

// Outcome of an event. Edits have been applied to the mail when it returns.
type Outcome struct {
	Verdict    // for the command or the whole message
	Tarpit     time.Duration
	Recipients map[int]Verdict  // by index, of recipients that are not to continue; only where Verdict is Continue
	Mails      []*envelope.Mail // the copies that go on: the event's mail first, then those split off
	Spawns     []Spawn
	Copies     []Copy
	Hold       []string              // agents that failed with on_failure "hold": they must see the message later
	WaitFor    string                // routing events: the message waits for this agent
	Poison     *agent.Failure        // the event kills instances: park the message
	Routes     map[int]string        // at OnResolved: domain to route by, by recipient index
	Fails      []*envelope.Recipient // routing events: recipients removed with a report; Reply holds it
	Steps      []tracking.Verdict    // for the ledger
}

// Spawn is a new message made by an agent.
type Spawn struct {
	Agent      string
	Cause      string // for queue.ChildID: "agent event"
	Ordinal    int
	Sender     string
	Recipients []string
	Header     []byte         // header block without the empty line
	Body       *envelope.Body // what follows it
	Durable    bool
}

// Copy of a message to be kept in quarantine beside its delivery.
type Copy struct {
	Agent    string
	Ordinal  int
	Reason   string
	Original bool
}
