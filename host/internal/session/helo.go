package session

import (
	"fmt"
	"strings"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/wire"
	"github.com/posternmail/postern/sdk/agentpb"
)

// helo raises OnHelo.
func (s *Session) helo(c *wire.Command) (wire.Answer, bool) {
	return s.greet(c, agentpb.EventKind_EVENT_KIND_HELO)
}

// ehlo raises OnEhlo.
func (s *Session) ehlo(c *wire.Command) (wire.Answer, bool) {
	return s.greet(c, agentpb.EventKind_EVENT_KIND_EHLO)
}

func (s *Session) greet(c *wire.Command, kind agentpb.EventKind) (wire.Answer, bool) {
	name, _, _ := strings.Cut(c.Arg, " ")
	if name == "" {
		return wire.Answer{Reply: noDomain}, false
	}
	var args *agentpb.Arguments
	if s.conv.Subscribed(kind) {
		args = &agentpb.Arguments{Event: &agentpb.Arguments_Hello{Hello: &agentpb.HelloArguments{Name: []byte(name)}}}
	}
	a, refused := s.ask(kind, args)
	if refused {
		return a, false
	}
	s.env.Helo, s.env.Extended, s.greeted = name, kind == agentpb.EventKind_EVENT_KIND_EHLO, true
	a.Reply = envelope.Reply{Code: 250, Text: s.deps.Config.Host.Name + " Hello [" + s.env.Client.Addr().Unmap().String() + "]"}
	if s.env.Extended {
		a.Lines = s.keywords()
	}
	return a, true
}

// keywords of EHLO. Each stands here because its parameter reaches the next hop, or has the outcome that its RFC asks for
// where the next hop cannot.
func (s *Session) keywords() []string {
	k := []string{
		fmt.Sprintf("SIZE %d", s.limits().MaxMessageSize), // RFC 1870
		"PIPELINING",          // RFC 2920
		"8BITMIME",            // RFC 6152
		"SMTPUTF8",            // RFC 6531
		"CHUNKING",            // RFC 3030
		"DSN",                 // RFC 3461
		"ENHANCEDSTATUSCODES", // RFC 2034
	}
	if s.w.OffersTLS() {
		k = append(k, "STARTTLS") // RFC 3207
	}
	if s.w.TLS() != nil {
		k = append(k, "REQUIRETLS") // RFC 8689 section 2: only over TLS
	}
	if s.offersAuth() && s.env.Auth == nil {
		k = append(k, "AUTH PLAIN LOGIN") // RFC 4954
	}
	return append(k, fmt.Sprintf("LIMITS RCPTMAX=%d", s.limits().MaxRecipients)) // RFC 9422
}
