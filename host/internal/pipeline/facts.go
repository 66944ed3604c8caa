package pipeline

import (
	"bytes"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Facts builds the part of an event that is the same for all agents: the fields of Event from 20 on. s may be nil
// (OnSchedule). The message facts are those of the mail as it is now.
func Facts(ev *Event, s *envelope.Session, traffic envelope.Traffic, now time.Time) *agentpb.Event {
	e := headFacts(ev, s, traffic, now)
	e.Arguments = arguments(ev)
	if s != nil {
		proto.Merge(e, &agentpb.Event{Session: sessionFacts(s)})
	}
	if ev.Mail != nil {
		e.Envelope = envelopeFacts(ev.Kind, ev.Mail, ev.Mail.Recipients)
		e.Message = messageFacts(ev.Kind, ev.Mail, nil)
	}
	return e
}

// headFacts is what changes from event to event, without the arguments; of the session its counters and class of
// traffic.
func headFacts(ev *Event, s *envelope.Session, traffic envelope.Traffic, now time.Time) *agentpb.Event {
	e := &agentpb.Event{
		EventId: ev.ID, Kind: ev.Kind, TimeUnixNanos: now.UnixNano(), DryRun: ev.DryRun,
	}
	if s != nil {
		e.Session = &agentpb.Session{
			Traffic: agentpb.Traffic(traffic), Commands: uint32(s.Commands), Rejects: uint32(s.Rejects),
		}
	}
	return e
}

// arguments are those of the event; at OnRcpt they follow the recipient, which an agent before may have rewritten.
func arguments(ev *Event) *agentpb.Arguments {
	if ev.Recipient == nil || ev.Kind != agentpb.EventKind_EVENT_KIND_RCPT {
		return ev.Arguments
	}
	return &agentpb.Arguments{Event: &agentpb.Arguments_Rcpt{Rcpt: &agentpb.RcptArguments{Recipient: recipientFacts(ev.Recipient)}}}
}

// sessionFacts are the facts that stay while a session lasts, or change with HELO, STARTTLS and AUTH.
func sessionFacts(s *envelope.Session) *agentpb.Session {
	f := &agentpb.Session{
		Id: s.ID, Connector: s.Connector,
		Client: addressBytes(s.Client.Addr()), ClientPort: uint32(s.Client.Port()),
		Local: addressBytes(s.Local.Addr()), LocalPort: uint32(s.Local.Port()),
		Helo: []byte(s.Helo), Extended: s.Extended, Trust: agentpb.Trust(s.Trust), EarlyTalk: s.EarlyTalk,
		Unsynchronized: uint32(s.Unsynchronized),
	}
	if s.Peer.Addr() != s.Client.Addr() {
		f.Peer = addressBytes(s.Peer.Addr())
	}
	if !s.Started.IsZero() {
		f.StartedUnixNanos = s.Started.UnixNano()
	}
	if t := s.TLS; t != nil {
		f.Tls = &agentpb.Tls{
			Version: t.Version, CipherSuite: t.CipherSuite, ServerName: valid(t.ServerName),
			ClientSubject: valid(t.ClientSubject), ClientVerified: t.ClientVerified,
		}
	}
	if a := s.Auth; a != nil {
		f.Authentication = &agentpb.Authentication{Mechanism: valid(a.Mechanism), Identity: valid(a.Identity)}
	}
	return f
}

// valid makes a string of the client's fit for protobuf, which takes UTF-8 only.
func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func addressBytes(a netip.Addr) []byte {
	if !a.IsValid() {
		return nil
	}
	return a.Unmap().AsSlice()
}

// listsRecipients reports whether agents get the list at kind: from OnData on. Before, they get the number.
func listsRecipients(kind agentpb.EventKind) bool {
	return kind != agentpb.EventKind_EVENT_KIND_MAIL && kind != agentpb.EventKind_EVENT_KIND_RCPT
}

func envelopeFacts(kind agentpb.EventKind, m *envelope.Mail, recipients []*envelope.Recipient) *agentpb.Envelope {
	f := &agentpb.Envelope{Id: m.ID, Sender: senderFacts(&m.Sender)}
	if !listsRecipients(kind) {
		f.RecipientCount = uint32(len(recipients))
		return f
	}
	f.Recipients = make([]*agentpb.Recipient, len(recipients))
	for i, r := range recipients {
		f.Recipients[i] = recipientFacts(r)
	}
	return f
}

func senderFacts(s *envelope.Sender) *agentpb.Sender {
	return &agentpb.Sender{
		Address: []byte(s.Address.String()), Size: uint64(max(s.Size, 0)), BodyType: s.BodyType, Smtputf8: s.SMTPUTF8,
		RequireTls: s.RequireTLS, Ret: s.Ret, Envid: []byte(s.EnvID), Auth: []byte(s.Auth),
	}
}

func recipientFacts(r *envelope.Recipient) *agentpb.Recipient {
	return &agentpb.Recipient{
		Index: uint32(r.Index), Address: []byte(r.Address.String()), Orcpt: []byte(r.ORCPT), Notify: notifyWords(r.Notify),
		Original: []byte(r.Original), ExpandedFrom: []byte(r.ExpandedFrom), NextHop: r.NextHop,
	}
}

// notifyWords writes the NOTIFY parameter as a list.
func notifyWords(n envelope.Notify) (words []string) {
	for _, w := range notifyNames {
		if n&w.bit != 0 {
			words = append(words, w.name)
		}
	}
	return words
}

var notifyNames = [...]struct {
	bit  envelope.Notify
	name string
}{
	{envelope.NotifyNever, "NEVER"}, {envelope.NotifySuccess, "SUCCESS"},
	{envelope.NotifyFailure, "FAILURE"}, {envelope.NotifyDelay, "DELAY"},
}

// parseNotify reads such a list. NEVER stands alone (RFC 3461 section 4.1). An empty list is NEVER, as the
// protocol has it for recipients that agents add.
func parseNotify(words []string) (n envelope.Notify, ok bool) {
	if len(words) == 0 {
		return envelope.NotifyNever, true
	}
	for _, word := range words {
		known := false
		for _, w := range notifyNames {
			if word == w.name {
				n, known = n|w.bit, true
			}
		}
		if !known {
			return 0, false
		}
	}
	return n, n == envelope.NotifyNever || n&envelope.NotifyNever == 0
}

// hasMessage reports whether the header block is there at kind.
func hasMessage(kind agentpb.EventKind, m *envelope.Mail) bool {
	switch kind {
	case agentpb.EventKind_EVENT_KIND_MAIL, agentpb.EventKind_EVENT_KIND_RCPT, agentpb.EventKind_EVENT_KIND_DATA:
		return false
	}
	return len(m.Header) > 0 || m.Body != nil
}

// messageFacts are about the message as it was when the event began, so that all agents of an event see the same.
func messageFacts(kind agentpb.EventKind, m *envelope.Mail, b *block) *agentpb.Message {
	if !hasMessage(kind, m) {
		return nil
	}
	if b == nil {
		b = parseBlock(m.Header)
	}
	f := &agentpb.Message{HeaderBytes: uint64(len(m.Header)) + 2}
	if m.Body != nil {
		f.BodyBytes = uint64(m.Body.Size())
	}
	if from := b.headerFrom(); !from.IsNull() {
		f.HeaderFrom = []byte(from.String())
	}
	f.MessageId = bytes.Clone(b.text("Message-ID"))
	f.Subject = bytes.Clone(b.text("Subject"))
	f.ReceivedCount = uint32(b.count("Received"))
	return f
}

// sessionWire is the session's part of an event, kept while nothing in it changes.
type sessionWire struct {
	seen envelope.Session
	wire []byte
}

func (w *sessionWire) append(dst []byte, s *envelope.Session) ([]byte, error) {
	now := *s
	now.Commands, now.Rejects = 0, 0
	if w.wire == nil || now != w.seen {
		wire, err := proto.Marshal(&agentpb.Event{Session: sessionFacts(s)})
		if err != nil {
			return dst, err
		}
		w.seen, w.wire = now, wire
	}
	return append(dst, w.wire...), nil
}
