// Package queue keeps accepted mail until it is delivered: the store and the schedule. It is the 250 line:
// what Commit has returned for is synced to disk.
package queue

import (
	"errors"
	"io"
	"time"

	"github.com/posternmail/postern/host/internal/envelope"
)

// State of an item.
type State uint8

// States of an item. Done ones leave the store.
const (
	// Ready items are due at Next.
	Ready State = iota
	// Waiting items wait for the agent in WaitingFor, outside the retry schedule, until Expires.
	Waiting
	// Quarantined items wait for an operator.
	Quarantined
	// Parked items cannot be processed (poison, an unreadable part); an operator looks at them.
	Parked
	// Suspended items were stopped by an operator.
	Suspended
	// Done items need nothing more.
	Done
)

// String names s as listings do.
func (s State) String() string {
	return [...]string{"ready", "waiting", "quarantined", "parked", "suspended", "done"}[s]
}

// Origin of an item.
const (
	OriginSMTP    = "smtp"
	OriginDSN     = "dsn"
	OriginSpawn   = "spawn"
	OriginRelease = "release"
	OriginRefused = "refused" // durable, refused or expired: agents may send it elsewhere before it is parked
)

// Item is one envelope copy of a message.
type Item struct {
	ID      string // unique; a child's comes from ChildID
	Message string // id of the message as its client was told
	Parent  string // item it came from, empty for a received message
	Origin  string

	Session envelope.Session // facts of the session it came in with
	Stamps  envelope.Stamps  // of that session
	Depth   int              // how many agents' spawns lie between it and a received message; the loop guard counts it
	Mail    *envelope.Mail   // envelope, header, body; originals where an agent may still want them
	Prefix  []byte           // the host's own header fields, in front of Mail.Header when it is delivered
	Durable bool             // never expires silently: expiry parks it

	State      State
	Routed     bool   // categorized: Hop is valid
	Hop        string // name of the send connector, "/" and next-hop domain or host
	Attempts   int    // delivery attempts so far
	Received   time.Time
	Next       time.Time // when it is due
	Expires    time.Time
	WaitingFor string   // agent, in state Waiting
	Missed     []string // agents that did not see it at the end of data, and must before it goes on
	DoneAgents []string // "agent event" pairs that have answered on the right of the line
	Agent      string   // who quarantined or parked it
	Reason     string   // why
	Evidence   string   // of a parked item: input, stderr, exit state
	LastError  string

	stored *stored // set by the store: what it has of the item's content
}

// Entry is what the schedule and listings know of an item without loading it.
type Entry struct {
	ID         string    `json:"id"`
	Message    string    `json:"message"`
	State      State     `json:"-"`
	Hop        string    `json:"hop,omitempty"`
	Routed     bool      `json:"routed"`
	Attempts   int       `json:"attempts"`
	Received   time.Time `json:"received"`
	Next       time.Time `json:"next"`
	Expires    time.Time `json:"expires"`
	WaitingFor string    `json:"waiting_for,omitempty"`
	Sender     string    `json:"sender"`
	Recipients int       `json:"recipients"`
	Size       int64     `json:"size"`
	Agent      string    `json:"agent,omitempty"`
	Reason     string    `json:"reason,omitempty"`
	LastError  string    `json:"last_error,omitempty"`
}

// ErrNotFound is returned for an id that is not in the store.
var ErrNotFound = errors.New("no such item")

// Store keeps items and their content. Every change is one atomic, synced record. All methods are safe for
// concurrent use; concurrent changes share a sync.
type Store interface {
	// NewBody starts the body of a message that is being received. Small ones stay in memory.
	NewBody() (BodyWriter, error)
	// Commit stores new items with their content. An id that exists is left as it is: a no-op, not an error.
	Commit(items ...*Item) error
	// Replace stores children and removes parent in one record. A parent that is gone already is a no-op.
	Replace(parent *Item, children ...*Item) error
	// Record stores the new state of item (removes it when Done) and adds children, in one record.
	Record(item *Item, children ...*Item) error
	// Load reads an item with its content.
	Load(id string) (*Item, error)
	// Scan calls fn for every item in the order of Next. An unreadable record is parked, reported, and not an error.
	Scan(fn func(Entry) error) error
	// Close ends the store.
	Close() error
}

// BodyWriter takes the body of a message as it arrives.
type BodyWriter interface {
	io.Writer
	// Finish ends the body. Nothing is synced yet: Commit does that.
	Finish() (*envelope.Body, error)
	// Abort throws it away. After Finish it does nothing.
	Abort()
}
