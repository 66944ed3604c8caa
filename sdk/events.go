package sdk

import (
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/sdk/agentpb"
)

// Event is what all events have.
type Event struct {
	// ID is the same for every attempt at the event, in this process or another: an idempotency key.
	ID string
	// Kind of the event.
	Kind EventKind
	// Attempt counts from 1; 2 and more follow a failure of another process.
	Attempt int
	// Time of the host. Use it instead of time.Now: replays and tests have their own.
	Time time.Time
	// DryRun: nothing this event leads to will have an effect (replay, shadow). Leave the world outside alone.
	DryRun bool
	// Needed: the event comes again, with the rows that Needs asked for.
	Needed bool
	// Session that the event belongs to; empty at OnSchedule.
	Session *Session

	context *eventContext
}

// Subject is any event: what a function takes that serves several handlers.
type Subject interface{ Common() *Event }

// Common part of the event.
func (e *Event) Common() *Event { return e }

// fill the common part and let the context know it.
func (e *Event) fill(c *eventContext) {
	w := &c.event
	e.ID, e.Kind, e.Attempt = string(w.eventID), w.kind, max(1, int(w.attempt))
	e.Time = timeOf(w.time)
	e.DryRun, e.Needed = w.dryRun, w.needed
	e.Session = sessionOf(w.session)
	e.context = c
	c.common = e
}

// Logger writes lines that name agent, version, session, message and event.
func (e *Event) Logger() hclog.Logger { return e.context.Logger() }

// Progress tells the host that the handler needs d more from now, up to the maximum of the operator. It moves
// the deadline of the handler's context.
func (e *Event) Progress(d time.Duration) { e.context.extend(d) }

// Stamp that this or another agent left, as asked for with ReadsStamps; "" if there is none.
func (e *Event) Stamp(name string) string {
	value, _ := e.LookupStamp(name)
	return value
}

// LookupStamp tells an empty stamp from none.
func (e *Event) LookupStamp(name string) (value string, ok bool) {
	for _, s := range e.stamps() {
		if s.GetName() == name && s.GetScope() != agentpb.Scope_SCOPE_RECIPIENT {
			return string(s.GetValue()), true
		}
	}
	return "", false
}

func (e *Event) stamps() []*agentpb.Stamp {
	if e.context == nil {
		return nil
	}
	return e.context.own().GetStamps()
}

// OwnStamp that this agent left, as asked for with ReadsOwnStamps; "" if there is none.
func (e *Event) OwnStamp(key string) string {
	return e.Stamp(e.context.generation.instance + "." + key)
}

// RecipientStamp that was left for one recipient; "" if there is none.
func (e *Event) RecipientStamp(r EnvelopeRecipient, name string) string {
	for _, s := range e.stamps() {
		if s.GetName() == name && s.GetScope() == agentpb.Scope_SCOPE_RECIPIENT && int(s.GetRecipient()) == r.Index {
			return string(s.GetValue())
		}
	}
	return ""
}

// ConnectEvent of OnConnect.
type ConnectEvent struct{ Event }

func newConnectEvent(c *eventContext) *ConnectEvent {
	e := new(ConnectEvent)
	e.fill(c)
	return e
}

// HelloEvent of OnHelo and OnEhlo.
type HelloEvent struct {
	Event
	Name string // given now; Session.Helo is the one before
}

func newHelloEvent(c *eventContext) *HelloEvent {
	e := &HelloEvent{Name: helloName(c.event.arguments)}
	e.fill(c)
	return e
}

// StartTLSEvent of OnStartTls.
type StartTLSEvent struct{ Event }

func newStartTLSEvent(c *eventContext) *StartTLSEvent {
	e := new(StartTLSEvent)
	e.fill(c)
	return e
}

// AuthEvent of OnAuth and OnEndOfAuthentication.
type AuthEvent struct {
	Event
	Mechanism string // asked for, upper case
	Identity  string // claimed, at OnEndOfAuthentication
	Succeeded bool   // the credentials were right, at OnEndOfAuthentication
}

func newAuthEvent(c *eventContext) *AuthEvent {
	a := c.arguments().GetAuth()
	e := &AuthEvent{Mechanism: a.GetMechanism(), Identity: a.GetIdentity(), Succeeded: a.GetSucceeded()}
	e.fill(c)
	return e
}

// MailEvent of OnMail. Sender is the one asked for.
type MailEvent struct {
	Event
	Envelope
}

func newMailEvent(c *eventContext) *MailEvent {
	e := &MailEvent{Envelope: envelopeOf(c.event.envelope)}
	e.fill(c)
	return e
}

// RcptEvent of OnRcpt. Recipient is the one asked for; RecipientCount counts those accepted before it, whose
// list comes from OnData on.
type RcptEvent struct {
	Event
	Envelope
	Recipient EnvelopeRecipient
}

func newRcptEvent(c *eventContext) *RcptEvent {
	e := &RcptEvent{
		Envelope:  envelopeOf(c.event.envelope),
		Recipient: rcptOf(c.event.arguments),
	}
	e.fill(c)
	return e
}

// DataCommandEvent of OnData: the command, not the message. See DataEvent.
type DataCommandEvent struct {
	Event
	Envelope
	Chunking bool // BDAT was used
}

func newDataCommandEvent(c *eventContext) *DataCommandEvent {
	e := &DataCommandEvent{
		Envelope: envelopeOf(c.event.envelope), Chunking: c.arguments().GetData().GetChunking(),
	}
	e.fill(c)
	return e
}

// HeadersEvent of OnEndOfHeaders.
type HeadersEvent struct {
	Event
	Envelope
	Message Message
	Headers Header // as asked for with ReadsHeaders
}

func newHeadersEvent(c *eventContext) *HeadersEvent {
	e := &HeadersEvent{
		Envelope: envelopeOf(c.event.envelope), Message: messageOf(c.event.message),
		Headers: Header{c.own().GetHeaders()},
	}
	e.fill(c)
	return e
}

// DataEvent of OnEndOfData: the whole message.
type DataEvent struct {
	Event
	Envelope
	Message Message
	Headers Header // as asked for with ReadsHeaders
}

func newDataEvent(c *eventContext) *DataEvent {
	e := &DataEvent{
		Envelope: envelopeOf(c.event.envelope), Message: messageOf(c.event.message),
		Headers: Header{c.own().GetHeaders()},
	}
	e.fill(c)
	return e
}

// Body as asked for with the option Body, until the handler returns.
func (e *DataEvent) Body() *BodyReader { return e.context.openBody() }

// Patch begins a change of the body.
func (e *DataEvent) Patch() *Patch { return newPatch(e.Body(), e.Headers) }

// TextEvent of OnNoop and OnHelp.
type TextEvent struct {
	Event
	Text string // after the verb
}

func newTextEvent(c *eventContext) *TextEvent {
	e := &TextEvent{Text: string(c.arguments().GetText().GetText())}
	e.fill(c)
	return e
}

// RsetEvent of OnRset.
type RsetEvent struct {
	Event
	Envelope
}

func newRsetEvent(c *eventContext) *RsetEvent {
	e := &RsetEvent{Envelope: envelopeOf(c.event.envelope)}
	e.fill(c)
	return e
}

// RejectEvent of OnReject.
type RejectEvent struct {
	Event
	Envelope
	Command      string    // its verb, upper case; "CONNECT" or "MESSAGE" where no command was
	Line         string    // as received, without line end; empty where it could hold a secret
	Reply        Reply     // that was written
	Agent        string    // that refused; empty: the host itself
	AgentVersion string    // of that agent
	At           EventKind // at which it was refused; 0: by the host's own checks
	Reason       string    // for the ledger
}

func newRejectEvent(c *eventContext) *RejectEvent {
	a := c.arguments().GetReject()
	e := &RejectEvent{
		Envelope: envelopeOf(c.event.envelope), Command: a.GetCommand(), Line: string(a.GetLine()),
		Reply: replyOf(a.GetReply()), Agent: a.GetAgent(), AgentVersion: a.GetAgentVersion(), At: a.GetEvent(),
		Reason: a.GetReason(),
	}
	e.fill(c)
	return e
}

// DisconnectEvent of OnDisconnect.
type DisconnectEvent struct {
	Event
	Reason   string // "quit", "timeout", "client-gone", "too-many-errors", "dropped", "shutdown" or "protocol"
	Messages int    // accepted in the session
}

func newDisconnectEvent(c *eventContext) *DisconnectEvent {
	a := c.arguments().GetDisconnect()
	e := &DisconnectEvent{Reason: a.GetReason(), Messages: int(a.GetMessages())}
	e.fill(c)
	return e
}

// RoutingEvent of OnSubmitted, OnResolved, OnRouted and OnCategorized.
type RoutingEvent struct {
	Event
	Envelope
	Message   Message
	Headers   Header // as asked for with ReadsHeaders
	Copy      int    // number of this copy of the message, from 1
	Copies    int    // of the message in all
	Processed int    // how often the message was processed, from 1
	Origin    string // "smtp", "dsn", "spawn", "release", "replay", or "refused" at OnRouted: durable, and parked if no agent sends it elsewhere
	Item      string // id in the queue
}

func newRoutingEvent(c *eventContext) *RoutingEvent {
	a := c.arguments().GetRouting()
	e := &RoutingEvent{
		Envelope: envelopeOf(c.event.envelope), Message: messageOf(c.event.message),
		Headers: Header{c.own().GetHeaders()}, Copy: int(a.GetCopy()), Copies: int(a.GetCopies()),
		Processed: int(a.GetAttempt()), Origin: a.GetOrigin(), Item: a.GetItem(),
	}
	e.fill(c)
	return e
}

// Body as asked for with the option Body, until the handler returns.
func (e *RoutingEvent) Body() *BodyReader { return e.context.openBody() }

// Patch begins a change of the body.
func (e *RoutingEvent) Patch() *Patch { return newPatch(e.Body(), e.Headers) }

// DeliveryEvent of OnDelivered, OnDeferred, OnFailed and OnReported.
type DeliveryEvent struct {
	Event
	Envelope
	Results   []DeliveryResult
	Connector string // used
	Remote    string // "mx.example [192.0.2.1]:25"; a path for a drop directory
	TLS       string // version, empty without
	ReportID  string // of the notification, at OnReported
}

// DeliveryResult for one recipient.
type DeliveryResult struct {
	Recipient EnvelopeRecipient
	Reply     Reply // of the next hop, or of the host on its behalf
}

func newDeliveryEvent(c *eventContext) *DeliveryEvent {
	a := c.arguments().GetDelivery()
	e := &DeliveryEvent{
		Envelope: envelopeOf(c.event.envelope), Connector: a.GetConnector(), Remote: a.GetRemote(),
		TLS: a.GetTls(), ReportID: a.GetReportId(),
	}
	for _, r := range a.GetResults() {
		recipient, _ := e.byIndex(int(r.GetIndex()))
		e.Results = append(e.Results, DeliveryResult{Recipient: recipient, Reply: replyOf(r.GetReply())})
	}
	e.fill(c)
	return e
}

// byIndex finds a recipient.
func (e *Envelope) byIndex(index int) (EnvelopeRecipient, bool) {
	for _, r := range e.Recipients {
		if r.Index == index {
			return r, true
		}
	}
	return EnvelopeRecipient{Index: index}, false
}

// ScheduleEvent of OnSchedule. Rows of the tables in use come in pages, an event each.
type ScheduleEvent struct {
	Event
	Last time.Time // when the schedule last ran to its end; zero: never
	Page int       // from 0
	More bool      // pages follow
}

func newScheduleEvent(c *eventContext) *ScheduleEvent {
	a := c.arguments().GetSchedule()
	e := &ScheduleEvent{Last: timeOf(a.GetLastUnixNanos()), Page: int(a.GetPage()), More: a.GetMore()}
	e.fill(c)
	return e
}

// ReleasedEvent of OnReleased and OnFeedback.
type ReleasedEvent struct {
	Event
	Envelope
	Message Message
	Headers Header // as asked for with ReadsHeaders
	Agent   string // that had quarantined the message
	Reason  string // it gave
	By      string // by whom it was released
	Wanted  bool   // the message is wanted mail; always so at OnReleased
}

func newReleasedEvent(c *eventContext) *ReleasedEvent {
	a := c.arguments().GetReleased()
	e := &ReleasedEvent{
		Envelope: envelopeOf(c.event.envelope), Message: messageOf(c.event.message),
		Headers: Header{c.own().GetHeaders()}, Agent: a.GetAgent(), Reason: a.GetReason(), By: a.GetBy(),
		Wanted: a.GetVerdict() == "wanted",
	}
	e.fill(c)
	return e
}

// Body as asked for with the option Body, until the handler returns.
func (e *ReleasedEvent) Body() *BodyReader { return e.context.openBody() }

// arguments of the kinds of events that are not the most frequent.
func (ec *eventContext) arguments() *agentpb.Arguments {
	a := new(agentpb.Arguments)
	_ = proto.Unmarshal(ec.event.arguments, a) // see unmarshalled
	return a
}

// helloName reads the arguments of OnHelo and OnEhlo.
func helloName(octets []byte) string { return argument(octets, 1, 1) }

// rcptOf reads the arguments of OnRcpt.
func rcptOf(octets []byte) EnvelopeRecipient { return recipientOf(argument(octets, 3, 1)) }

// argument finds one field of the arguments of one kind.
func argument(octets []byte, kind, number int) (piece string) {
	for f := factsOf(octets); f.next(); {
		if f.number != kind {
			continue
		}
		for inner := (facts{text: f.piece}); inner.next(); {
			if inner.number == number {
				piece = inner.piece
			}
		}
	}
	return piece
}
