package agenttest

import (
	"bytes"
	"fmt"
	"net/mail"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Session is one connection of a client. Its methods raise events in the order of SMTP; one that the agent does
// not subscribe to continues.
type Session struct {
	agent    *Agent
	facts    *agentpb.Session
	envelope *agentpb.Envelope
	message  *agentpb.Message
	header   []*agentpb.HeaderField // as the edits of earlier events left it
	body     []byte
	original []*agentpb.HeaderField // as it was received
	messages int
}

// fields that a subscription is shown: as earlier events left them, or as they were received.
func (s *Session) fields(v agentpb.View) []*agentpb.HeaderField {
	if v == agentpb.View_VIEW_ORIGINAL {
		return s.original
	}
	return s.header
}

// From begins a session of a client at an IP address. No event is raised yet.
func (a *Agent) From(ip string) *Session {
	a.t.Helper()
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		a.t.Fatalf("From: %v", err)
	}
	a.sessions++
	s := &Session{agent: a, facts: &agentpb.Session{
		Id: fmt.Sprintf("S%d", a.sessions), Connector: "test", Client: addr.AsSlice(), ClientPort: 4711,
		Local: []byte{198, 51, 100, 1}, LocalPort: 25, Trust: sdk.Anonymous, Traffic: sdk.External,
		StartedUnixNanos: a.now.UnixNano(),
	}}
	s.begin()
	return s
}

// begin a transaction.
func (s *Session) begin() {
	s.messages++
	s.envelope = &agentpb.Envelope{Id: fmt.Sprintf("%s.%d", s.facts.GetId(), s.messages)}
	s.message, s.header, s.body, s.original = nil, nil, nil, nil
	for _, w := range []*world{s.agent.pair, s.agent.single} {
		w.stampsOf(s).endMail()
	}
}

// Authenticated makes the session that of a user, without an event.
func (s *Session) Authenticated(identity string) *Session {
	s.facts.Authentication = &agentpb.Authentication{Mechanism: "PLAIN", Identity: identity}
	s.facts.Trust, s.facts.Traffic = sdk.User, sdk.Outbound
	return s
}

// With changes the facts of the session, for those that no other method sets.
func (s *Session) With(change func(*agentpb.Session)) *Session {
	change(s.facts)
	return s
}

// Trusted makes the session one that the receive connector grants trust, for mail of that class, without an event.
func (s *Session) Trusted(trust sdk.Trust, traffic sdk.Traffic) *Session {
	s.facts.Trust, s.facts.Traffic = trust, traffic
	return s
}

// Stamped leaves a stamp as another agent does ("connfilter.listed", "scl"), for the message.
func (s *Session) Stamped(name, value string) *Session {
	for _, w := range []*world{s.agent.pair, s.agent.single} {
		w.stampsOf(s).set(name, &agentpb.Stamp{Scope: sdk.InMessage, Value: []byte(value)})
	}
	return s
}

// event with the facts of the session so far.
func (s *Session) event(kind sdk.EventKind) *agentpb.Event {
	e := &agentpb.Event{Kind: kind, Session: s.facts}
	if kind >= sdk.OnMail && kind <= sdk.OnEndOfData || kind >= sdk.OnSubmitted && kind != sdk.OnSchedule {
		e.Envelope = s.envelope
	}
	if kind >= sdk.OnEndOfHeaders && kind <= sdk.OnEndOfData || kind >= sdk.OnSubmitted && kind != sdk.OnSchedule {
		e.Message = s.message
	}
	return e
}

// raise an event.
func (s *Session) raise(e *agentpb.Event) *Outcome {
	s.agent.t.Helper()
	return s.agent.raise(s, e)
}

// Connect raises OnConnect.
func (s *Session) Connect() *Outcome {
	s.agent.t.Helper()
	return s.raise(s.event(sdk.OnConnect))
}

// Helo raises OnHelo.
func (s *Session) Helo(name string) *Outcome {
	s.agent.t.Helper()
	return s.hello(sdk.OnHelo, name)
}

// Ehlo raises OnEhlo.
func (s *Session) Ehlo(name string) *Outcome {
	s.agent.t.Helper()
	return s.hello(sdk.OnEhlo, name)
}

func (s *Session) hello(kind sdk.EventKind, name string) *Outcome {
	s.agent.t.Helper()
	e := s.event(kind)
	e.Arguments = &agentpb.Arguments{Event: &agentpb.Arguments_Hello{Hello: &agentpb.HelloArguments{Name: []byte(name)}}}
	out := s.raise(e)
	s.facts.Helo, s.facts.Extended = []byte(name), kind == sdk.OnEhlo
	return out
}

// StartTLS raises OnStartTls.
func (s *Session) StartTLS() *Outcome {
	s.agent.t.Helper()
	out := s.raise(s.event(sdk.OnStartTls))
	s.facts.Tls = &agentpb.Tls{Version: "TLS 1.3", CipherSuite: "TLS_AES_128_GCM_SHA256"}
	return out
}

// Auth raises OnAuth, and OnEndOfAuthentication unless that is refused.
func (s *Session) Auth(identity string, succeeded bool) *Outcome {
	s.agent.t.Helper()
	arguments := func(a *agentpb.AuthArguments) *agentpb.Arguments {
		return &agentpb.Arguments{Event: &agentpb.Arguments_Auth{Auth: a}}
	}
	e := s.event(sdk.OnAuth)
	e.Arguments = arguments(&agentpb.AuthArguments{Mechanism: "PLAIN"})
	if out := s.raise(e); out.refused() {
		return out
	}
	e = s.event(sdk.OnEndOfAuthentication)
	e.Arguments = arguments(&agentpb.AuthArguments{Mechanism: "PLAIN", Identity: identity, Succeeded: succeeded})
	out := s.raise(e)
	if succeeded {
		s.Authenticated(identity)
	}
	return out
}

// Mail begins a message and raises OnMail. "" is the null sender.
func (s *Session) Mail(sender string) *Outcome {
	s.agent.t.Helper()
	s.begin()
	s.envelope.Sender = &agentpb.Sender{Address: []byte(s.mailbox(sender))}
	return s.raise(s.event(sdk.OnMail))
}

// Rcpt raises OnRcpt for a recipient of a message of the sender, without OnMail.
func (s *Session) Rcpt(sender, recipient string) *Outcome {
	s.agent.t.Helper()
	s.envelope.Sender = &agentpb.Sender{Address: []byte(s.mailbox(sender))}
	return s.To(recipient)
}

// To raises OnRcpt. Unless it is refused the message has one more recipient.
func (s *Session) To(recipient string) *Outcome {
	s.agent.t.Helper()
	r := &agentpb.Recipient{Index: uint32(len(s.envelope.Recipients)), Address: []byte(s.mailbox(recipient))}
	e := s.event(sdk.OnRcpt)
	e.Envelope = &agentpb.Envelope{
		Id: s.envelope.Id, Sender: s.envelope.Sender, RecipientCount: uint32(len(s.envelope.Recipients)),
	}
	e.Arguments = &agentpb.Arguments{Event: &agentpb.Arguments_Rcpt{Rcpt: &agentpb.RcptArguments{Recipient: r}}}
	out := s.raise(e)
	if !out.refused() {
		s.envelope.Recipients = append(s.envelope.Recipients, r)
	}
	return out
}

func (s *Session) mailbox(text string) string {
	s.agent.t.Helper()
	m, err := address.Parse(text)
	if err != nil {
		s.agent.t.Fatalf("%q: %v", text, err)
	}
	return m.String()
}

// Data raises OnData, OnEndOfHeaders and OnEndOfData for a message: header block, empty line, body. Line ends may be LF.
// It stops at the first refusal.
func (s *Session) Data(message string) *Outcome {
	s.agent.t.Helper()
	e := s.event(sdk.OnData)
	e.Arguments = &agentpb.Arguments{Event: &agentpb.Arguments_Data{Data: &agentpb.DataArguments{}}}
	if out := s.raise(e); out.refused() {
		return out
	}
	s.store(message)
	size := s.message.BodyBytes
	s.message.BodyBytes = 0 // not known yet
	out := s.raise(s.event(sdk.OnEndOfHeaders))
	s.message.BodyBytes = size
	if out.refused() {
		return out
	}
	if out.header != nil {
		s.header = renumbered(out.header)
	}
	e = s.event(sdk.OnEndOfData)
	e.Envelope = proto.CloneOf(s.envelope)
	e.Envelope.Recipients = slices.DeleteFunc(e.Envelope.Recipients, out.settled)
	if len(s.envelope.Recipients) > 0 && len(e.Envelope.Recipients) == 0 {
		return out // nobody is left to ask about
	}
	return s.raise(e).after(out)
}

// renumbered fields, as the next event shows them.
func renumbered(fields []*agentpb.HeaderField) []*agentpb.HeaderField {
	out := make([]*agentpb.HeaderField, len(fields))
	for i, f := range fields {
		out[i] = &agentpb.HeaderField{Name: f.GetName(), Value: f.GetValue(), Index: uint32(i)}
	}
	return out
}

// Submitted raises OnSubmitted for the message of Data, as the first event right of its acceptance.
func (s *Session) Submitted() *Outcome {
	s.agent.t.Helper()
	return s.Routing(sdk.OnSubmitted)
}

// Routing raises one of OnSubmitted, OnResolved, OnRouted and OnCategorized for the message of Data.
func (s *Session) Routing(kind sdk.EventKind) *Outcome {
	s.agent.t.Helper()
	e := s.event(kind)
	e.Arguments = &agentpb.Arguments{Event: &agentpb.Arguments_Routing{Routing: &agentpb.RoutingArguments{
		Copy: 1, Copies: 1, Attempt: 1, Origin: "smtp", Item: s.envelope.GetId(),
	}}}
	return s.raise(e)
}

// Raise any event, with arguments of its own: what the other methods do not cover.
func (s *Session) Raise(kind sdk.EventKind, arguments *agentpb.Arguments) *Outcome {
	s.agent.t.Helper()
	e := s.event(kind)
	e.Arguments = arguments
	return s.raise(e)
}

// Disconnect raises OnDisconnect.
func (s *Session) Disconnect(reason string) *Outcome {
	s.agent.t.Helper()
	return s.Raise(sdk.OnDisconnect, &agentpb.Arguments{Event: &agentpb.Arguments_Disconnect{
		Disconnect: &agentpb.DisconnectArguments{Reason: reason, Messages: uint32(s.messages - 1)},
	}})
}

// store the message of the session.
func (s *Session) store(message string) {
	message = strings.ReplaceAll(strings.ReplaceAll(message, "\r\n", "\n"), "\n", "\r\n")
	block, body, _ := strings.Cut(message, "\r\n\r\n")
	s.header, s.body = parseHeader(block), []byte(body)
	s.original = s.header
	s.message = &agentpb.Message{
		HeaderBytes: uint64(len(block) + 4), BodyBytes: uint64(len(body)),
		HeaderFrom: firstAddress(s.header), MessageId: first(s.header, "Message-ID"), Subject: first(s.header, "Subject"),
		ReceivedCount: uint32(count(s.header, "Received")),
	}
}

// parseHeader splits a block into fields; values keep their leading space and folds.
func parseHeader(block string) []*agentpb.HeaderField {
	var fields []*agentpb.HeaderField
	for line := range strings.SplitSeq(block, "\r\n") {
		if len(fields) > 0 && (strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t")) {
			last := fields[len(fields)-1]
			last.Value = append(last.Value, "\r\n"+line...)
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if ok {
			fields = append(fields, &agentpb.HeaderField{
				Name: []byte(name), Value: []byte(value), Index: uint32(len(fields)),
			})
		}
	}
	return fields
}

func first(fields []*agentpb.HeaderField, name string) []byte {
	for _, f := range fields {
		if sameField(f, name) {
			return bytes.TrimSpace(f.GetValue())
		}
	}
	return nil
}

func count(fields []*agentpb.HeaderField, name string) int {
	n := 0
	for _, f := range fields {
		if sameField(f, name) {
			n++
		}
	}
	return n
}

func firstAddress(fields []*agentpb.HeaderField) []byte {
	list, err := mail.ParseAddressList(string(first(fields, "From")))
	if err != nil || len(list) == 0 {
		return nil
	}
	local, domain, _ := strings.Cut(list[0].Address, "@")
	return []byte(local + "@" + strings.ToLower(domain))
}

// Schedule raises OnSchedule, with the rows of the tables that the agent uses, in one page. It last ran at the call before.
func (a *Agent) Schedule() *Outcome {
	a.t.Helper()
	s := &Session{agent: a}
	arguments := &agentpb.ScheduleArguments{}
	for i, use := range a.subscriptions[sdk.OnSchedule].GetTables() {
		for _, row := range a.Rows(use.GetTable()) {
			arguments.Rows = append(arguments.Rows, a.pair.row(use, uint32(i), row.Key, 0))
		}
	}
	if !a.scheduled.IsZero() {
		arguments.LastUnixNanos = a.scheduled.UnixNano()
	}
	a.scheduled = a.now
	e := &agentpb.Event{Kind: sdk.OnSchedule}
	e.Arguments = &agentpb.Arguments{Event: &agentpb.Arguments_Schedule{Schedule: arguments}}
	return a.raise(s, e)
}
