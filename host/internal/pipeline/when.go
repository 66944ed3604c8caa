package pipeline

import (
	"slices"
	"strings"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/sdk/address"
)

// classes of traffic that a message may still turn out to be, as bits.
type classes uint8

func classOf(t envelope.Traffic) classes { return 1 << t }

// trafficOf is the class of the event's message, and all classes it may still be while its recipients are not
// known. Strangers and partners are external; the mail of users and own servers is by its recipients, outbound when
// any of them is somebody else's.
func (p *Pipeline) trafficOf(s *envelope.Session, ev *Event) (envelope.Traffic, classes) {
	if s != nil && (s.Trust == envelope.Anonymous || s.Trust == envelope.Partner) {
		return envelope.External, classOf(envelope.External)
	}
	if ev.Mail != nil && ev.Mail.Traffic == envelope.External {
		return envelope.External, classOf(envelope.External)
	}
	var found classes
	if ev.Mail != nil {
		for _, r := range ev.Mail.Recipients {
			found |= p.class(r)
		}
	}
	if ev.Recipient != nil {
		found |= p.class(ev.Recipient)
	}
	switch {
	case found&classOf(envelope.Outbound) != 0:
		return envelope.Outbound, found
	case found != 0:
		return envelope.Internal, found
	case ev.Mail != nil && ev.Mail.Traffic != envelope.UnknownTraffic:
		return ev.Mail.Traffic, classOf(ev.Mail.Traffic)
	}
	return envelope.UnknownTraffic, classOf(envelope.Outbound) | classOf(envelope.Internal)
}

func (p *Pipeline) class(r *envelope.Recipient) classes {
	if p.accepts(r.Address) {
		return classOf(envelope.Internal)
	}
	return classOf(envelope.Outbound)
}

// accepts reports whether mail for m is for an accepted domain. Postmaster without a domain is the host's.
func (p *Pipeline) accepts(m address.Mailbox) bool {
	if m.Domain == "" {
		return true
	}
	domain := address.ASCIIDomain(m.Domain)
	accepted := p.settings.Load().accepted
	for i := range accepted {
		name := address.ASCIIDomain(accepted[i].Name)
		if below, ok := strings.CutPrefix(name, "*"); domain == name || ok && strings.HasSuffix(domain, below) {
			return true
		}
	}
	return false
}

// wants judges the agent's `when` block: the cheapest call is the one not made.
func (r *run) wants(a *ask, m *envelope.Mail) bool {
	when, s := &a.spec.When, r.conv.session
	if s != nil {
		if len(when.Connectors) > 0 && !slices.Contains(when.Connectors, s.Connector) {
			return false
		}
		if when.Authenticated != nil && *when.Authenticated != (s.Auth != nil) {
			return false
		}
		if !r.classes.wanted(when.Traffic) {
			return false
		}
	}
	return when.MaxSize <= 0 || m == nil || sizeSoFar(m) <= when.MaxSize
}

// wanted reports whether any of the names is a class that the message may be.
func (c classes) wanted(names []string) bool {
	if len(names) == 0 {
		return true
	}
	for t := envelope.External; t <= envelope.Internal; t++ {
		if c&classOf(t) != 0 && slices.Contains(names, t.String()) {
			return true
		}
	}
	return false
}

// sizeSoFar is the size of a message, declared while its body is not there.
func sizeSoFar(m *envelope.Mail) int64 {
	if m.Body == nil {
		return m.Sender.Size
	}
	return m.Size()
}
