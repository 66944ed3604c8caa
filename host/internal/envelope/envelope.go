// Package envelope holds the noun that everyone passes on: a message on its way, with its sender, its
// recipients and their state, its stamps, and the facts of the session it came in with.
package envelope

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/posternmail/postern/sdk/address"
)

// Trust that a receive connector grants a session. It decides relay and which agents run.
type Trust uint8

// The values agree with the protocol's.
const (
	Anonymous Trust = iota + 1
	User
	Partner
	OwnServer
)

// Traffic is the class of a message by where it comes from and where it goes.
type Traffic uint8

// The values agree with the protocol's. Unknown: the session is trusted and no recipient has been named yet.
const (
	UnknownTraffic Traffic = iota
	External
	Outbound
	Internal
)

// String names t as configuration and ledger do.
func (t Traffic) String() string {
	return [...]string{"unknown", "external", "outbound", "internal"}[t]
}

// String names t as the ledger does.
func (t Trust) String() string {
	return [...]string{"none", "anonymous", "user", "partner", "own_server"}[t]
}

// Session holds the facts of one connection.
type Session struct {
	ID        string         `json:"id"`
	Connector string         `json:"connector"`
	Client    netip.AddrPort `json:"client"` // the source, behind PROXY where that is trusted
	Peer      netip.AddrPort `json:"peer"`   // the socket's other end
	Local     netip.AddrPort `json:"local"`
	Helo      string         `json:"helo,omitempty"`
	Extended  bool           `json:"extended,omitempty"` // greeted with EHLO
	TLS       *TLS           `json:"tls,omitempty"`
	Auth      *Auth          `json:"auth,omitempty"`
	Trust     Trust          `json:"trust"`
	Started   time.Time      `json:"started"`
	EarlyTalk bool           `json:"early_talk,omitempty"` // sent something before the banner
	Commands  int            `json:"commands,omitempty"`
	Rejects   int            `json:"rejects,omitempty"`
	// Unsynchronized counts commands behind which the client sent more though it had to wait for the reply.
	Unsynchronized int `json:"unsynchronized,omitempty"`
}

// TLS is the state of an encrypted session.
type TLS struct {
	Version        string `json:"version"`
	CipherSuite    string `json:"cipher_suite"`
	ServerName     string `json:"server_name,omitempty"`
	ClientSubject  string `json:"client_subject,omitempty"`
	ClientVerified bool   `json:"client_verified,omitempty"`
}

// Auth is who has authenticated and how.
type Auth struct {
	Mechanism string `json:"mechanism"`
	Identity  string `json:"identity"`
}

// Sender is MAIL FROM with its parameters.
type Sender struct {
	Address    address.Mailbox `json:"address"`
	Size       int64           `json:"size,omitempty"`      // declared, RFC 1870
	BodyType   string          `json:"body_type,omitempty"` // "", "7BIT" or "8BITMIME"
	SMTPUTF8   bool            `json:"smtputf8,omitempty"`
	RequireTLS bool            `json:"require_tls,omitempty"`
	Ret        string          `json:"ret,omitempty"`   // "", "FULL" or "HDRS", RFC 3461
	EnvID      string          `json:"envid,omitempty"` // decoded, RFC 3461
	Auth       string          `json:"auth,omitempty"`  // decoded, RFC 4954
}

// Notify says when the sender wants to hear of a recipient (RFC 3461 section 4.1). Zero: not given.
type Notify uint8

// Bits of Notify. NotifyNever stands alone.
const (
	NotifyNever Notify = 1 << iota
	NotifySuccess
	NotifyFailure
	NotifyDelay
)

// Recipient is RCPT TO with its parameters and what has become of it.
type Recipient struct {
	Index        int             `json:"index"` // names it for agents, for the life of the message
	Address      address.Mailbox `json:"address"`
	ORCPT        string          `json:"orcpt,omitempty"` // decoded, with its type: "rfc822;a@b.example"
	Notify       Notify          `json:"notify,omitempty"`
	Original     string          `json:"original,omitempty"`      // address before expansion or rewriting, where it differs
	ExpandedFrom string          `json:"expanded_from,omitempty"` // top group it came from
	Route        string          `json:"route,omitempty"`         // domain to route by instead of its own
	NextHop      string          `json:"next_hop,omitempty"`      // send connector and its host, from OnRouted on
	Stamps       Stamps          `json:"stamps,omitempty"`

	// Right of the 250 line.
	State    RecipientState `json:"state,omitempty"`
	Reply    Reply          `json:"reply,omitzero"` // the last one about it
	Remote   string         `json:"remote,omitempty"`
	Reported bool           `json:"reported,omitempty"` // a failure or success notification was made
	Delayed  bool           `json:"delayed,omitempty"`  // a delay notification was made
}

// RecipientState is what has become of a recipient.
type RecipientState uint8

// States of a recipient. Pending ones are still to be delivered.
const (
	Pending RecipientState = iota
	Delivered
	Relayed // taken by a next hop that does not offer DSN
	Failed
	Discarded
)

// Reply is an SMTP reply of one line. The zero value is no reply.
type Reply struct {
	Code     int    `json:"code"`
	Enhanced string `json:"enhanced,omitempty"` // "5.7.1", RFC 3463
	Text     string `json:"text"`
}

// String writes r as on the wire, without its line end.
func (r Reply) String() string {
	if r.Enhanced == "" {
		return fmt.Sprintf("%d %s", r.Code, r.Text)
	}
	return fmt.Sprintf("%d %s %s", r.Code, r.Enhanced, r.Text)
}

// IsZero reports whether there is no reply.
func (r Reply) IsZero() bool { return r.Code == 0 }

// Temporary reports whether a retry may succeed.
func (r Reply) Temporary() bool { return r.Code/100 == 4 }

// Permanent reports whether a retry is in vain.
func (r Reply) Permanent() bool { return r.Code/100 == 5 }

// Stamps are facts that agents left, by full name: "agent.key" or a shared one. At most 4 KiB each.
type Stamps map[string][]byte

// StampSkipped is the stamp of the host's own that names the agents which failed at a session or a message and were
// skipped, joined by commas.
const StampSkipped = "skipped"

// Mail is one message with one envelope, as the session and the categorizer hand it to agents. Agents' edits
// change Sender, Recipients, Header, Body and Stamps; the Original fields never change.
type Mail struct {
	ID         string
	Sender     Sender
	Recipients []*Recipient
	NextIndex  int // index of the next recipient to be added
	Stamps     Stamps
	Traffic    Traffic

	Header         []byte // header block without the empty line, each line ended by CRLF
	OriginalHeader []byte
	Body           *Body // nil while it is still coming
	OriginalBody   *Body
}

// AddRecipient appends r and gives it its index.
func (m *Mail) AddRecipient(r *Recipient) {
	r.Index = m.NextIndex
	m.NextIndex++
	m.Recipients = append(m.Recipients, r)
}

// Recipient finds a recipient by index; nil when it is not there.
func (m *Mail) Recipient(index int) *Recipient {
	for _, r := range m.Recipients {
		if r.Index == index {
			return r
		}
	}
	return nil
}

// Size of the message as it is now, in bytes.
func (m *Mail) Size() int64 {
	n := int64(len(m.Header)) + 2
	if m.Body != nil {
		n += m.Body.Size()
	}
	return n
}

// Split makes a copy of m for recipients, which leave m. Header and body are shared, stamps are copied.
func (m *Mail) Split(recipients []*Recipient) *Mail {
	leaving := make(map[*Recipient]bool, len(recipients))
	for _, r := range recipients {
		leaving[r] = true
	}
	clone := *m
	clone.Recipients = recipients
	clone.Stamps = m.Stamps.Clone()
	var staying []*Recipient
	for _, r := range m.Recipients {
		if !leaving[r] {
			staying = append(staying, r)
		}
	}
	m.Recipients = staying
	return &clone
}

// Clone copies s.
func (s Stamps) Clone() Stamps {
	if s == nil {
		return nil
	}
	c := make(Stamps, len(s))
	for k, v := range s {
		c[k] = v
	}
	return c
}
