// Package dsn composes delivery status notifications (RFC 3464, internationalized as in RFC 6533). It is pure:
// the same request gives the same item.
package dsn

import (
	"fmt"
	"strings"
	"time"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/sdk/address"
)

// maxOriginal is the size in bytes up to which the original message is returned whole (Exchange's
// ExternalDsnMaxMessageAttachSize). It is never held in memory.
const maxOriginal = 10 << 20

// Kind of notification: the Action field of its recipients (RFC 3464 section 2.3.3).
type Kind string

// Kinds of notification.
const (
	Failure  Kind = "failed"
	Delay    Kind = "delayed"
	Success  Kind = "delivered"
	Relayed  Kind = "relayed"  // taken by a next hop that will not report
	Expanded Kind = "expanded" // a group, to its members
)

// Request says what is to be reported.
type Request struct {
	Item       *queue.Item
	Kind       Kind
	Recipients []*envelope.Recipient // concerned, with Reply and Remote filled in
	Ordinal    int                   // of this notification among those of the same item and attempt
	Host       string                // Reporting-MTA
	Postmaster string                // From
	Now        time.Time
	RetryUntil time.Time // of Delay
	Expires    time.Time // of the notification itself
}

// Owed reports whether the sender is to hear of kind for r: as NOTIFY says, and without it of failures and delays
// (RFC 3461 section 4.1).
func Owed(kind Kind, r *envelope.Recipient) bool {
	n := r.Notify
	if n == 0 {
		n = envelope.NotifyFailure | envelope.NotifyDelay
	}
	switch {
	case n&envelope.NotifyNever != 0:
		return false
	case kind == Failure:
		return n&envelope.NotifyFailure != 0
	case kind == Delay:
		return n&envelope.NotifyDelay != 0
	}
	return n&envelope.NotifySuccess != 0
}

// Compose makes the item that tells the sender. It is nil where nothing is owed: a null sender, which includes
// every notification, or no recipient that is owed this kind.
func Compose(r Request) *queue.Item {
	sender := r.Item.Mail.Sender.Address
	if sender.IsNull() {
		return nil
	}
	var owed []*envelope.Recipient
	for _, rcpt := range r.Recipients {
		if Owed(r.Kind, rcpt) {
			owed = append(owed, rcpt)
		}
	}
	if len(owed) == 0 {
		return nil
	}
	r.Recipients = owed
	id := queue.ChildID(r.Item, r.cause(), r.Ordinal)
	return r.item(id, newReport(r, id))
}

// cause for the id: the attempt, and what is said of whom. So notifications made at different places for one item,
// at acceptance, by the categorizer and at expiry, never have the id of each other.
func (r *Request) cause() string {
	var b strings.Builder
	fmt.Fprintf(&b, "dsn %d %s", r.Item.Attempts, r.Kind)
	for _, rcpt := range r.Recipients {
		fmt.Fprintf(&b, " %d", rcpt.Index)
	}
	return b.String()
}

// item is the notification, ready for the queue.
func (r *Request) item(id string, rep *report) *queue.Item {
	header := rep.headerBlock()
	m := &envelope.Mail{
		ID: id,
		// RFC 3461 section 6.1: the null sender, and no notification but NEVER.
		Sender:         envelope.Sender{SMTPUTF8: rep.unicode},
		Traffic:        backwards(r.Item.Mail.Traffic),
		Header:         header,
		OriginalHeader: header,
		Body:           rep.body(),
	}
	m.OriginalBody = m.Body
	if rep.eightBit() {
		m.Sender.BodyType = "8BITMIME"
	}
	m.AddRecipient(&envelope.Recipient{Address: r.Item.Mail.Sender.Address, Notify: envelope.NotifyNever})
	return &queue.Item{
		ID:       id,
		Message:  id,
		Parent:   r.Item.ID,
		Origin:   queue.OriginDSN,
		Session:  envelope.Session{ID: r.Item.Session.ID, Trust: envelope.OwnServer, Started: r.Now},
		Mail:     m,
		Received: r.Now,
		Next:     r.Now,
		Expires:  r.Expires,
	}
}

// backwards is the class of the answer to a message of class t.
func backwards(t envelope.Traffic) envelope.Traffic {
	switch t {
	case envelope.External:
		return envelope.Outbound
	case envelope.Outbound, envelope.Internal:
		return envelope.Internal
	}
	return envelope.UnknownTraffic
}

// allASCII reports whether the addresses need no internationalized form.
func allASCII(list ...address.Mailbox) bool {
	for _, m := range list {
		if !m.IsASCII() {
			return false
		}
	}
	return true
}
