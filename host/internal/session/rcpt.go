package session

import (
	"strings"

	"github.com/emersion/go-smtp"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/wire"
	"github.com/posternmail/postern/sdk/agentpb"
)

func (s *Session) rcptCommand(c *wire.Command) (wire.Answer, bool) {
	if s.tx != nil && s.tx.chunking {
		return wire.Answer{Reply: inChunks}, false
	}
	s.path, s.pathErr = c.Path, c.PathErr
	return wire.Answer{}, true
}

// Rcpt implements smtp.Session. The address is the one the wire has parsed.
func (s *Session) Rcpt(_ string, o *smtp.RcptOptions) error {
	if no := s.checkRcpt(); !no.IsZero() {
		return s.answer(s.refuseRcpt(no))
	}
	return s.answer(s.addRecipient(recipientOf(o)))
}

// freeExcess is how many recipients above the limit a session may give at no cost. RFC 5321 section 4.5.3.1.10: a client
// may send all it has, and sends those that were refused with 452 again in another message.
const freeExcess = 1000

// refuseRcpt makes a client that goes on and on above the limit wait as for other refusals, and counts against it.
func (s *Session) refuseRcpt(no envelope.Reply) wire.Answer {
	a := wire.Answer{Reply: no}
	if no != tooManyRcpts {
		return a
	}
	if s.excess++; s.excess > freeExcess {
		if s.env.Trust == envelope.Anonymous {
			a.Tarpit = s.tarpit()
		}
		s.oneMoreError(&a)
	}
	return a
}

// checkRcpt also completes <postmaster>.
func (s *Session) checkRcpt() envelope.Reply {
	switch {
	case s.pathErr != nil, s.path.IsNull():
		return badRecipient
	case !s.tx.mail.Sender.SMTPUTF8 && !s.path.IsASCII():
		return recipientUTF8 // RFC 6531 section 3.5
	case s.tx.accepted >= max(s.limits().MaxRecipients, 1):
		return tooManyRcpts
	}
	if s.path.IsPostmaster() {
		s.path.Domain = s.ownDomain()
	}
	if !s.accepts(s.path.Domain) && !s.trusted() {
		return unableToRelay
	}
	return envelope.Reply{}
}

func recipientOf(o *smtp.RcptOptions) *envelope.Recipient {
	r := &envelope.Recipient{}
	for _, n := range o.Notify {
		switch n {
		case smtp.DSNNotifyNever:
			r.Notify |= envelope.NotifyNever
		case smtp.DSNNotifySuccess:
			r.Notify |= envelope.NotifySuccess
		case smtp.DSNNotifyFailure:
			r.Notify |= envelope.NotifyFailure
		case smtp.DSNNotifyDelayed:
			r.Notify |= envelope.NotifyDelay
		}
	}
	if o.OriginalRecipient != "" {
		r.ORCPT = strings.ToLower(string(o.OriginalRecipientType)) + ";" + o.OriginalRecipient
	}
	return r
}

// addRecipient raises OnRcpt.
func (s *Session) addRecipient(r *envelope.Recipient) wire.Answer {
	m := s.tx.mail
	r.Address, r.Index = s.path, m.NextIndex
	traffic := m.Traffic
	s.direct(r)
	o := s.raiseRcpt(r)
	a, refused := s.judge(o)
	if refused {
		m.Traffic = traffic
		return a
	}
	s.tx.accepted++
	m.AddRecipient(r)
	if o != nil && o.Decision == pipeline.Discard {
		m.Recipients = m.Recipients[:len(m.Recipients)-1]
		s.tx.gone = append(s.tx.gone, lost{r, o.Verdict})
	}
	a.Reply = recipientOK
	return a
}

func (s *Session) raiseRcpt(r *envelope.Recipient) *pipeline.Outcome {
	kind := agentpb.EventKind_EVENT_KIND_RCPT
	if s.tx.discard != nil || !s.conv.Subscribed(kind) {
		return nil
	}
	ev := s.event(kind, nil)
	ev.Recipient = r
	return s.dispatch(ev)
}

// direct classes the message by where it goes: a trusted client's goes out as soon as one recipient is outside.
func (s *Session) direct(r *envelope.Recipient) {
	m := s.tx.mail
	switch {
	case m.Traffic == envelope.External || m.Traffic == envelope.Outbound:
	case s.accepts(r.Address.Domain):
		m.Traffic = envelope.Internal
	default:
		m.Traffic = envelope.Outbound
	}
}
