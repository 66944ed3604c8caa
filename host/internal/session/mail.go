package session

import (
	"errors"

	"github.com/emersion/go-smtp"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/wire"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/agentpb"
)

// mailCommand refuses MAIL where go-smtp would not (RFC 5321 section 4.1.4: no nested transaction).
func (s *Session) mailCommand(c *wire.Command) (wire.Answer, bool) {
	if s.tx != nil {
		return wire.Answer{Reply: senderGiven}, false
	}
	s.path, s.pathErr = c.Path, c.PathErr
	return wire.Answer{}, true
}

// Mail implements smtp.Session. The address is the one the wire has parsed.
func (s *Session) Mail(_ string, o *smtp.MailOptions) error {
	sender := senderOf(s.path, o)
	if no := s.checkMail(sender); !no.IsZero() {
		return s.answer(wire.Answer{Reply: no})
	}
	if no := s.checkRoom(o.Size); !no.IsZero() {
		return s.answer(wire.Answer{Reply: no})
	}
	if s.start.Admit != nil && !s.start.Admit() {
		return s.answer(wire.Answer{Reply: tooManyMessages, Close: true})
	}
	return s.answer(s.beginMail(sender))
}

func (s *Session) checkMail(sender envelope.Sender) envelope.Reply {
	limit := s.limits().MaxMessageSize
	switch {
	case !s.permits():
		return notPermitted
	case s.pathErr != nil, s.path.IsPostmaster():
		return badSender
	case !sender.SMTPUTF8 && !s.path.IsASCII():
		return senderUTF8 // RFC 6531 section 3.5
	case sender.RequireTLS && s.w.TLS() == nil:
		return requireTLS // RFC 8689 section 2: not offered without TLS
	case limit > 0 && sender.Size > limit:
		return tooLarge // RFC 1870 section 6.1
	}
	return envelope.Reply{}
}

// checkRoom refuses what could not be kept, before it has come (RFC 1870 section 6.1). What else may be wrong with the
// store shows when there is something to store.
func (s *Session) checkRoom(size int64) envelope.Reply {
	if err := s.deps.Store.RoomFor(size); errors.Is(err, queue.ErrFull) {
		return noResources
	}
	return envelope.Reply{}
}

func senderOf(path address.Mailbox, o *smtp.MailOptions) envelope.Sender {
	sender := envelope.Sender{
		Address: path, Size: o.Size, BodyType: string(o.Body), SMTPUTF8: o.UTF8,
		RequireTLS: o.RequireTLS, Ret: string(o.Return), EnvID: o.EnvelopeID,
	}
	if o.Auth != nil {
		sender.Auth = *o.Auth
		if sender.Auth == "" {
			sender.Auth = "<>"
		}
	}
	return sender
}

// beginMail begins the transaction and raises OnMail.
func (s *Session) beginMail(sender envelope.Sender) wire.Answer {
	if s.deps.Newest != nil {
		s.deps = s.deps.Newest()
	}
	s.conv.BeginMail()
	s.count++
	s.tx = &transaction{s: s, mail: &envelope.Mail{ID: queue.MessageID(s.env.ID, s.count), Sender: sender}}
	if s.env.Trust == envelope.Anonymous {
		s.tx.mail.Traffic = envelope.External
	}
	o := s.raise(agentpb.EventKind_EVENT_KIND_MAIL, nil)
	a, refused := s.judge(o)
	if refused {
		// The refusal still belongs to the transaction, which its id names.
		s.tx.unborn = true
		return a
	}
	if o != nil && o.Decision == pipeline.Discard {
		s.tx.discard = &o.Verdict
	}
	a.Reply = senderOK
	return a
}
