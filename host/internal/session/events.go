package session

import (
	"strconv"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/tracking"
	"github.com/posternmail/postern/host/internal/wire"
	"github.com/posternmail/postern/sdk/agentpb"
)

// event makes an event of the session or its transaction.
func (s *Session) event(kind agentpb.EventKind, args *agentpb.Arguments) *pipeline.Event {
	ev := &pipeline.Event{Kind: kind, Arguments: args}
	id := s.env.ID
	if s.tx != nil {
		ev.Mail, id = s.tx.mail, s.tx.mail.ID
	}
	s.events++
	ev.ID = id + "/" + pipeline.EventName(kind) + "/" + strconv.Itoa(s.events)
	return ev
}

// raise asks the agents, if any wants to be asked. nil: none.
func (s *Session) raise(kind agentpb.EventKind, args *agentpb.Arguments) *pipeline.Outcome {
	if !s.conv.Subscribed(kind) {
		return nil
	}
	return s.dispatch(s.event(kind, args))
}

func (s *Session) dispatch(ev *pipeline.Event) *pipeline.Outcome {
	defer s.w.Waiting()()
	o := s.conv.Raise(s.context(), ev)
	s.remember(o)
	return o
}

// maxSteps is how many answers of agents the ledger has of a transaction, and of a session outside of its transactions:
// a client may have them asked as often as it likes.
const maxSteps = 5000

// remember keeps what the agents said for the ledger.
func (s *Session) remember(o *pipeline.Outcome) {
	steps := &s.steps
	if s.tx != nil {
		steps = &s.tx.steps
	}
	if len(*steps) <= maxSteps {
		*steps = append(*steps, s.worth(o.Steps)...)
	}
	if len(*steps) > maxSteps {
		last := &(*steps)[maxSteps]
		*last = tracking.Verdict{Agent: last.Agent, Version: last.Version, Event: last.Event, Verdict: "more", Reason: "the rest is left out"}
		*steps = (*steps)[:maxSteps+1]
	}
}

// ask raises an event that can only be refused or not. Without a refusal the answer has the tarpit alone.
func (s *Session) ask(kind agentpb.EventKind, args *agentpb.Arguments) (a wire.Answer, refused bool) {
	return s.judge(s.raise(kind, args))
}

// judge turns an outcome into an answer.
func (s *Session) judge(o *pipeline.Outcome) (a wire.Answer, refused bool) {
	if o == nil {
		return a, false
	}
	a.Tarpit = o.Tarpit
	if o.Decision < pipeline.Defer {
		return a, false
	}
	s.blame, s.blameSteps = &o.Verdict, o.Steps
	a.Reply, a.Close = o.Reply, o.Decision == pipeline.Disconnect
	if a.Reply.IsZero() {
		a.Reply = dropped
	}
	// RFC 5321 section 4.2.2: 421 says that the channel is closing.
	a.Close = a.Close || a.Reply.Code == 421
	return a, true
}

// tell hands a fact to the agents that want it.
func (s *Session) tell(kind agentpb.EventKind, args *agentpb.Arguments) {
	if s.conv.Subscribed(kind) {
		s.conv.Tell(s.event(kind, args))
	}
}

// Refuse implements wire.Judge: every refusal passes here, whoever decided it, on its way out.
func (s *Session) Refuse(c *wire.Command, a *wire.Answer) {
	if s.tx != nil && s.tx.draft != nil {
		s.tx.draft.join() // the agents hear of one thing after another
	}
	blame, steps := s.blame, s.blameSteps
	s.blame, s.blameSteps = nil, nil
	if blame == nil {
		s.countError(a)
		blame = &pipeline.Verdict{}
	}
	if a.Reply.Code >= 500 && s.env.Trust == envelope.Anonymous {
		a.Tarpit = max(a.Tarpit, s.tarpit())
	}
	s.env.Rejects++
	a.Reply.Text += " [" + s.id() + "]"
	command := s.refusedCommand(c)
	s.recordReject(c, a.Reply, blame, steps)
	s.tellReject(command, c, a.Reply, blame)
	if s.tx != nil && s.tx.unborn {
		s.Reset()
	}
}

// tellReject raises OnReject.
func (s *Session) tellReject(command string, c *wire.Command, reply envelope.Reply, blame *pipeline.Verdict) {
	if !s.conv.Subscribed(agentpb.EventKind_EVENT_KIND_REJECT) {
		return
	}
	args := &agentpb.RejectArguments{
		Command: command, Reply: replyFacts(reply),
		Agent: blame.Agent, AgentVersion: blame.Version, Event: blame.Event, Reason: blame.Reason,
	}
	if c.Verb != "AUTH" {
		args.Line = []byte(c.Line)
	}
	s.tell(agentpb.EventKind_EVENT_KIND_REJECT, &agentpb.Arguments{Event: &agentpb.Arguments_Reject{Reject: args}})
}

// countError counts a protocol error.
func (s *Session) countError(a *wire.Answer) {
	if isProtocolError(a.Reply.Code) {
		s.oneMoreError(a)
	}
}

// oneMoreError makes the one error too many the last.
func (s *Session) oneMoreError(a *wire.Answer) {
	s.errors++
	if limit := s.limits().MaxProtocolErrors; limit > 0 && s.errors > limit {
		a.Reply, a.Close, a.End = tooManyErrors, true, wire.EndErrors
	}
}

// id that a refusal ends with, for `postern why`.
func (s *Session) id() string {
	if s.tx != nil {
		return s.tx.mail.ID
	}
	return s.env.ID
}

// refusedCommand names what was refused.
func (s *Session) refusedCommand(c *wire.Command) string {
	switch {
	case s.tx != nil && s.tx.received:
		return "MESSAGE"
	case s.env.Commands == 0 && c.Verb == "":
		return "CONNECT"
	}
	return c.Verb
}

func (s *Session) recordReject(c *wire.Command, reply envelope.Reply, by *pipeline.Verdict, steps []tracking.Verdict) {
	r := &tracking.Record{
		Event: tracking.Reject, Command: s.refusedCommand(c), Reply: reply.String(),
		Agent: by.Agent, Version: by.Version, Reason: by.Reason, Verdicts: s.worth(steps),
	}
	if by.Agent != "" {
		r.AgentEvent = pipeline.EventName(by.Event)
	}
	if s.tx != nil {
		s.tx.describe(r)
		if s.tx.received {
			r.Verdicts = s.tx.steps
		}
	}
	if c.Verb == "RCPT" && !c.Path.IsNull() { // whom it was about, not those who were accepted before
		r.Recipients = []tracking.Recipient{{Address: c.Path.String(), Status: "rejected"}}
	}
	r.FillSession(&s.env)
	s.deps.Ledger.Write(r)
}

// worth leaves plain "continue" verdicts out of the ledger, unless it wants them.
func (s *Session) worth(steps []tracking.Verdict) []tracking.Verdict {
	if s.deps.Ledger.Full() {
		return steps
	}
	var kept []tracking.Verdict
	for _, v := range steps {
		if v.Verdict != "continue" || v.Reason != "" || v.Failure != "" || len(v.Edits) > 0 || len(v.Stamps) > 0 {
			kept = append(kept, v)
		}
	}
	return kept
}

func replyFacts(r envelope.Reply) *agentpb.Reply {
	return &agentpb.Reply{Code: uint32(r.Code), Enhanced: r.Enhanced, Text: r.Text}
}
