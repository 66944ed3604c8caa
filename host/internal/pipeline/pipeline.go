// Package pipeline holds the plan (event -> stages of agents) and dispatches one event through it: which agents
// are asked, in which order, what they are shown, and what their answers may do.
package pipeline

import (
	"context"
	"time"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/tables"
	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/sdk/address"
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
//
// At OnRcpt the recipient asked for is Recipient, with its Index set (Mail.NextIndex, or as Mail.AddRecipient
// gave it); whether it is in Mail.Recipients already makes no difference. Agents' edits and stamps go to it.
// Arguments may be left nil there. At OnEndOfHeaders edits for some recipients are kept until OnEndOfData, where
// they split the mail: Outcome.Mails of OnEndOfHeaders is the event's mail alone.
type Event struct {
	Kind      agentpb.EventKind
	ID        string              // stable over attempts and restarts: message or session id, event, ordinal
	Mail      *envelope.Mail      // nil before MAIL and where no message is concerned
	Recipient *envelope.Recipient // at OnRcpt
	Arguments *agentpb.Arguments  // nil where the kind has none
	Only      string              // the one agent to ask: OnSchedule, and who missed a message at the end of data
	DryRun    bool
	// HoldWrites leaves the table writes to the caller, in Outcome.Writes: what they depend on is stored first.
	HoldWrites bool
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
//
// Left of the 250 line the pipeline combines verdicts for some recipients: any defer is a defer of the whole
// message, and when all recipients got the same decision it stands in Verdict. So Recipients is set only where
// some go on, or their decisions differ; the reply is 250 then. Right of the line Verdict is set when one copy got one
// verdict, and Recipients otherwise. Whenever Verdict is not Continue, Mails is the event's mail with all recipients.
//
// When an agent has failed and its on_failure is "defer", "reject" or "hold", Verdict, Hold or WaitFor say so. A
// message that kills instances sets Poison at OnEndOfData and on routing events, beside a Verdict that defers it
// for a caller that cannot park; at earlier events it only defers the transaction.
type Outcome struct {
	Verdict                     // for the command or the whole message
	Tarpit     time.Duration    // the longest delay that any agent asked for, inside the event's budget
	Recipients map[int]Verdict  // by index, of recipients that are not to continue; only where Verdict is Continue
	Mails      []*envelope.Mail // the copies: the event's mail first, then those split off
	Spawns     []Spawn
	Copies     []Copy
	Hold       []string              // agents that failed with on_failure "hold": they must see the message later
	WaitFor    string                // routing events: the message waits for this agent
	Poison     *agent.Failure        // the event kills instances: park the message
	Routes     map[int]string        // at OnResolved: domain to route by, by recipient index
	Fails      []*envelope.Recipient // routing events: recipients removed with a report; Reply holds it
	Steps      []tracking.Verdict    // for the ledger
	Writes     []tables.Write        // with Event.HoldWrites: still to be done
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

// Mail is the message that s makes; nil when nobody is to have it. accepts tells the domains that mail is taken for.
func (s *Spawn) Mail(accepts func(domain string) bool) *envelope.Mail {
	sender, err := address.Parse(s.Sender)
	if err != nil {
		return nil
	}
	m := &envelope.Mail{
		Sender: envelope.Sender{Address: sender}, Traffic: envelope.Internal,
		Header: s.Header, OriginalHeader: s.Header, Body: s.Body, OriginalBody: s.Body,
	}
	for _, text := range s.Recipients {
		rcpt, err := address.Parse(text)
		if err != nil || rcpt.IsNull() {
			continue
		}
		m.AddRecipient(&envelope.Recipient{Address: rcpt})
		if !accepts(rcpt.Domain) {
			m.Traffic = envelope.Outbound
		}
	}
	if len(m.Recipients) == 0 {
		return nil
	}
	return m
}

// Copy of a message to be kept in quarantine beside its delivery.
type Copy struct {
	Mail     *envelope.Mail // as it was before the agent's edits, or as received; not shared with the mail that goes on
	Agent    string
	Ordinal  int
	Reason   string
	Original bool
}
