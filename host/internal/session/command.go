package session

import (
	"slices"
	"strings"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/wire"
	"github.com/posternmail/postern/sdk/agentpb"
)

// verb is what the session has to say about a command before go-smtp sees it.
type verb struct {
	handle    func(*Session, *wire.Command) (wire.Answer, bool)
	ungreeted bool // permitted before a greeting
	plain     bool // permitted without TLS where that is required
}

// verbs that are known.
var verbs = map[string]verb{
	"HELO":     {(*Session).helo, true, true},
	"EHLO":     {(*Session).ehlo, true, true},
	"STARTTLS": {(*Session).startTLS, true, true},
	"AUTH":     {(*Session).authCommand, false, false},
	"MAIL":     {(*Session).mailCommand, false, false},
	"RCPT":     {(*Session).rcptCommand, false, false},
	"DATA":     {(*Session).dataCommand, false, false},
	"BDAT":     {(*Session).bdatCommand, false, false},
	"RSET":     {(*Session).rset, true, false},
	"NOOP":     {(*Session).noop, true, true},
	"HELP":     {(*Session).help, false, false},
	"VRFY":     {(*Session).vrfy, false, false},
	"EXPN":     {(*Session).expn, false, false},
	"QUIT":     {(*Session).quit, true, true},
}

// Command implements wire.Judge.
func (s *Session) Command(c *wire.Command) (a wire.Answer, pass bool) {
	s.joinDraft()
	s.env.Commands++
	s.blame, s.blameSteps = nil, nil
	v, known := verbs[c.Verb]
	switch {
	case !known && foreign(c):
		s.log().Info("connection ended: the client does not speak SMTP", "client", s.env.Client, "line", excerpt(c.Line))
		return wire.Answer{Reply: notSMTP, Close: true, End: wire.EndProtocol}, false
	case s.turnedAway && c.Verb == "QUIT":
		return wire.Answer{Reply: goodbye, Close: true, End: wire.EndQuit}, false
	case s.turnedAway:
		return wire.Answer{Reply: needQuit}, false
	case s.conv.Disconnecting():
		return s.disconnect(), false
	case c.Fault != "":
		return wire.Answer{Reply: syntax(c.Fault)}, false
	case !known:
		return wire.Answer{Reply: unrecognized}, false
	case s.start.Connector.RequireTLS && s.w.TLS() == nil && !v.plain:
		return wire.Answer{Reply: tlsRequired}, false
	case !s.greeted && !v.ungreeted && !s.greetByItself(c.Verb):
		return wire.Answer{Reply: helloFirst}, false
	}
	a, pass = v.handle(s, c)
	s.countUnsynchronized(c)
	return a, pass
}

// foreignVerbs begin a request of HTTP or of a proxy for it.
var foreignVerbs = []string{"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}

// foreign tells that a line is of another protocol: a web browser can be made to send a request here whose body has the
// commands of an attacker. So is a line like a field of a header, "Host: example.org", which SMTP never has as a command.
func foreign(c *wire.Command) bool {
	field := len(c.Verb) > 1 && strings.IndexByte(c.Verb, ':') == len(c.Verb)-1
	return field || slices.Contains(foreignVerbs, c.Verb)
}

// excerpt is as much of a line as a log wants.
func excerpt(line string) string { return line[:min(len(line), 100)] }

// joinDraft waits for the agents that look at a header still: between chunks of BDAT commands come in meanwhile, and
// agents are asked of one thing after another, about a session that does not change under them.
func (s *Session) joinDraft() {
	if s.tx == nil || s.tx.draft == nil || s.tx.draft.judging == nil {
		return
	}
	over := s.w.Waiting()
	s.tx.draft.join()
	over()
}

// disconnect is what an agent asked for that was only told something.
func (s *Session) disconnect() wire.Answer {
	v := s.conv.Disconnected()
	s.blame = &v
	if v.Reply.IsZero() {
		v.Reply = dropped
	}
	return wire.Answer{Reply: v.Reply, Close: true}
}

// greetByItself greets go-smtp for a client that does not, where the connector takes mail without.
func (s *Session) greetByItself(verb string) bool {
	if s.start.Connector.RequireHelo || verb != "MAIL" {
		return false
	}
	s.w.Feed("HELO unknown")
	s.greeted = true
	return true
}

// rset raises OnRset. RSET itself is always 250.
func (s *Session) rset(c *wire.Command) (wire.Answer, bool) {
	if c.Arg != "" {
		return wire.Answer{Reply: noArguments}, false
	}
	a, refused := s.ask(agentpb.EventKind_EVENT_KIND_RSET, nil)
	if !refused {
		a.Reply = resetOK
	}
	return a, !refused
}

// noop raises OnNoop.
func (s *Session) noop(c *wire.Command) (wire.Answer, bool) {
	a, refused := s.ask(agentpb.EventKind_EVENT_KIND_NOOP, s.text(agentpb.EventKind_EVENT_KIND_NOOP, c))
	if !refused {
		a.Reply = noopOK
	}
	return a, !refused
}

// help raises OnHelp and answers, which go-smtp does not.
func (s *Session) help(c *wire.Command) (wire.Answer, bool) {
	a, refused := s.ask(agentpb.EventKind_EVENT_KIND_HELP, s.text(agentpb.EventKind_EVENT_KIND_HELP, c))
	if !refused {
		a.Reply = helpText
	}
	return a, false
}

func (s *Session) text(kind agentpb.EventKind, c *wire.Command) *agentpb.Arguments {
	if !s.conv.Subscribed(kind) {
		return nil
	}
	return &agentpb.Arguments{Event: &agentpb.Arguments_Text{Text: &agentpb.TextArguments{Text: []byte(c.Arg)}}}
}

// vrfy tells nothing (RFC 5321 section 7.3) and counts, so that nobody asks on.
func (s *Session) vrfy(*wire.Command) (wire.Answer, bool) {
	a := wire.Answer{Reply: cannotVrfy}
	s.oneMoreError(&a)
	return a, false
}

func (s *Session) expn(*wire.Command) (wire.Answer, bool) { return wire.Answer{Reply: noExpn}, false }

// quit ends the session through go-smtp.
func (s *Session) quit(*wire.Command) (wire.Answer, bool) {
	return wire.Answer{Reply: goodbye, Close: true, End: wire.EndQuit}, false
}

// startTLS raises OnStartTls (RFC 3207); the wire does the rest.
func (s *Session) startTLS(c *wire.Command) (wire.Answer, bool) {
	var no envelope.Reply
	switch {
	case s.w.TLS() != nil:
		no = tlsActive
	case !s.w.OffersTLS():
		no = tlsMissing
	case c.Arg != "":
		no = noArguments
	case s.tx != nil:
		no = inTransaction
	default:
		a, refused := s.ask(agentpb.EventKind_EVENT_KIND_START_TLS, nil)
		return a, !refused
	}
	return wire.Answer{Reply: no}, false
}
