// Package dsn composes delivery status notifications (RFC 3464, internationalized as in RFC 6533). It is pure:
// the same request gives the same item.
package dsn

import (
	"time"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/host/internal/queue"
)

// Kind of notification: the Action field of its recipients (RFC 3464 section 2.3.3).
type Kind string

// Kinds of notification.
const (
	Failure  Kind = "failed"
	Delay    Kind = "delayed"
	Success  Kind = "delivered"
	Relayed  Kind = "relayed"
	Expanded Kind = "expanded"
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

// Compose makes the item that tells the sender. It is nil where nothing is owed: a null sender, or no recipient
// whose NOTIFY asks for this kind (RFC 3461 section 4.1; without NOTIFY: failures and delays).
func Compose(r Request) *queue.Item {
	return nil
}
