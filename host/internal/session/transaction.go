package session

import (
	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/tracking"
)

// transaction is what lies between MAIL and the end of its message.
type transaction struct {
	s        *Session
	mail     *envelope.Mail
	accepted int  // recipients that were answered 250
	unborn   bool // MAIL was refused
	chunking bool // BDAT has begun
	received bool // the end of the data was reached: what is refused now is the message
	draft    *draft

	discard *pipeline.Verdict // of the whole transaction, at OnMail
	gone    []lost            // recipients discarded at OnRcpt
	steps   []tracking.Verdict
}

// lost is a recipient that is not delivered to, and why.
type lost struct {
	recipient *envelope.Recipient
	verdict   pipeline.Verdict
}

// abandon throws away what was received.
func (t *transaction) abandon() {
	if t.draft != nil {
		t.draft.abort()
		t.draft = nil
	}
}

// describe fills the envelope into a ledger record.
func (t *transaction) describe(r *tracking.Record) {
	sender := t.mail.Sender.Address.String()
	r.Message, r.Sender, r.Traffic = t.mail.ID, &sender, t.mail.Traffic.String()
	for _, rcpt := range t.mail.Recipients {
		r.Recipients = append(r.Recipients, tracking.Recipient{Address: rcpt.Address.String()})
	}
	if t.mail.OriginalHeader != nil {
		r.MessageID = field(t.mail.OriginalHeader, "Message-ID")
		r.Subject = field(t.mail.OriginalHeader, "Subject")
	}
	if t.draft != nil {
		r.Size = t.draft.size
	}
}
