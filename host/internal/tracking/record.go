// Package tracking writes the ledger: one line per session and one per message or transaction, the verdicts in
// it. Refused mail is in it like accepted mail.
package tracking

import (
	"time"

	"github.com/posternmail/postern/host/internal/envelope"
)

// Event names of ledger lines.
const (
	Session    = "SESSION"    // a session has ended
	Receive    = "RECEIVE"    // a message was accepted (250)
	Reject     = "REJECT"     // a command, recipient or message was refused
	Categorize = "CATEGORIZE" // a message went through the categorizer
	Send       = "SEND"       // a next hop took it
	Defer      = "DEFER"      // a delivery or an agent put it off
	Fail       = "FAIL"       // recipients failed for good
	DSN        = "DSN"        // a notification was made
	Drop       = "DROP"       // discarded by an agent or an operator
	Quarantine = "QUARANTINE" // kept for an operator
	Release    = "RELEASE"    // released by an operator
	Poison     = "POISON"     // parked
	Spawn      = "SPAWN"      // made by an agent
)

// EventNames lists the names of all ledger lines.
func EventNames() []string {
	return []string{Session, Receive, Reject, Categorize, Send, Defer, Fail, DSN, Drop, Quarantine, Release, Poison, Spawn}
}

// Record is one line of the ledger, a JSON object with these names.
type Record struct {
	Time       time.Time   `json:"time"`
	Event      string      `json:"event"`
	Session    string      `json:"session,omitempty"`
	Message    string      `json:"message,omitempty"` // as in replies and Received
	Item       string      `json:"item,omitempty"`    // envelope copy
	Parent     string      `json:"parent,omitempty"`
	Connector  string      `json:"connector,omitempty"` // receive or send connector
	Client     string      `json:"client,omitempty"`
	Helo       string      `json:"helo,omitempty"`
	TLS        string      `json:"tls,omitempty"`
	Identity   string      `json:"identity,omitempty"`
	Trust      string      `json:"trust,omitempty"`
	Traffic    string      `json:"traffic,omitempty"`
	Sender     *string     `json:"sender,omitempty"` // "" is the null sender
	Recipients []Recipient `json:"recipients,omitempty"`
	MessageID  string      `json:"message_id,omitempty"` // the header field
	Subject    string      `json:"subject,omitempty"`
	Size       int64       `json:"size,omitempty"`
	Command    string      `json:"command,omitempty"` // refused: its verb
	Reply      string      `json:"reply,omitempty"`
	Agent      string      `json:"agent,omitempty"` // who decided, "" is the host
	Version    string      `json:"version,omitempty"`
	AgentEvent string      `json:"agent_event,omitempty"` // at which event
	Reason     string      `json:"reason,omitempty"`
	Remote     string      `json:"remote,omitempty"` // next hop
	Attempt    int         `json:"attempt,omitempty"`
	Next       *time.Time  `json:"next,omitempty"`
	Counts     *Counts     `json:"counts,omitempty"` // of a session
	Verdicts   []Verdict   `json:"verdicts,omitempty"`
	DryRun     bool        `json:"dry_run,omitempty"`
}

// Recipient of a Record.
type Recipient struct {
	Address string `json:"address"`
	Status  string `json:"status,omitempty"` // "delivered", "deferred", "failed", "discarded", "quarantined", "rejected", Copied
	Reply   string `json:"reply,omitempty"`
}

// Copied is the status of recipients in the Quarantine record of a copy that an agent had kept beside the delivery: it
// says nothing about what becomes of their mail.
const Copied = "copied"

// Beside reports whether r is about a copy that was kept beside the delivery.
func (r *Record) Beside() bool {
	return r.Event == Quarantine && len(r.Recipients) > 0 && r.Recipients[0].Status == Copied
}

// Counts of a session.
type Counts struct {
	Commands int    `json:"commands"`
	Messages int    `json:"messages"`
	Rejects  int    `json:"rejects"`
	Millis   int64  `json:"millis"`
	End      string `json:"end"` // "quit", "timeout", "client-gone", "too-many-errors", "dropped", "shutdown", "protocol"
}

// Verdict is what one agent said to one event.
type Verdict struct {
	Agent      string   `json:"agent"`
	Version    string   `json:"version"`
	Event      string   `json:"event"`   // "OnRcpt"
	Verdict    string   `json:"verdict"` // "continue", "reject", ... "skipped", "not-needed", "failed"
	Reply      string   `json:"reply,omitempty"`
	Reason     string   `json:"reason,omitempty"`
	Data       string   `json:"data,omitempty"`
	Recipients []string `json:"recipients,omitempty"` // when not for all
	Edits      []string `json:"edits,omitempty"`      // in words: "add header X-A", "put greylist 192.0.2.0|a|b"
	Stamps     []string `json:"stamps,omitempty"`     // "contentfilter.scl=7"
	Micros     int64    `json:"micros"`
	Attempt    int      `json:"attempt,omitempty"` // when not the first
	Failure    string   `json:"failure,omitempty"` // why the attempt or the agent failed
}

// FillSession fills the fields about the session of r.
func (r *Record) FillSession(s *envelope.Session) {
	r.Session = s.ID
	r.Connector = s.Connector
	if s.Client.IsValid() {
		r.Client = s.Client.String()
	}
	r.Helo = s.Helo
	r.Trust = s.Trust.String()
	if s.TLS != nil {
		r.TLS = s.TLS.Version + " " + s.TLS.CipherSuite
	}
	if s.Auth != nil {
		r.Identity = s.Auth.Identity
	}
}

// Ledger takes records. *File implements it; tests use a slice.
type Ledger interface {
	// Write adds r to the ledger. It sets Time when that is zero, never blocks on the disk and never fails the
	// caller: what cannot be written is counted and said in the log.
	Write(r *Record)
	// Full reports whether plain "continue" verdicts are wanted too.
	Full() bool
}
