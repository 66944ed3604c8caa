package sdk

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Address is an IP address. The zero value is no address.
type Address struct{ netip.Addr }

// In reports whether one of the networks holds the address.
func (a Address) In(networks []netip.Prefix) bool {
	return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a.Addr) })
}

func addressOf(octets string) Address {
	switch len(octets) {
	case 4:
		return Address{netip.AddrFrom4([4]byte([]byte(octets)))}
	case 16:
		return Address{netip.AddrFrom16([16]byte([]byte(octets))).Unmap()}
	}
	return Address{}
}

// Trust that the receive connector grants a session.
type Trust = agentpb.Trust

// Kinds of trust.
const (
	Anonymous = agentpb.Trust_TRUST_ANONYMOUS
	User      = agentpb.Trust_TRUST_USER
	Partner   = agentpb.Trust_TRUST_PARTNER
	OwnServer = agentpb.Trust_TRUST_OWN_SERVER
)

// Traffic class of a message or session so far.
type Traffic = agentpb.Traffic

// Classes of traffic.
const (
	UnknownTraffic = agentpb.Traffic_TRAFFIC_UNSPECIFIED
	External       = agentpb.Traffic_TRAFFIC_EXTERNAL
	Outbound       = agentpb.Traffic_TRAFFIC_OUTBOUND
	Internal       = agentpb.Traffic_TRAFFIC_INTERNAL
)

// Session holds the facts of the connection. On routing events they are those of the session that the message
// came in with.
type Session struct {
	ID         string
	Connector  string  // that accepted the connection
	Client     Address // the source: behind PROXY where that is trusted; none if the message did not come over SMTP
	ClientPort uint16
	Peer       Address // the socket's other end, where it differs from Client
	Local      Address // of the listener
	LocalPort  uint16
	Helo       string // name given with the last HELO or EHLO, as it stands
	Extended   bool   // greeted with EHLO
	TLS        *TLS   // nil without
	Auth       *Auth  // nil without
	Trust      Trust
	Traffic    Traffic
	Started    time.Time // when the client connected
	EarlyTalk  bool      // the client sent something before the banner
	Commands   int       // so far
	Rejects    int       // refusals so far
	// Unsynchronized counts commands so far behind which the client sent more though it had to wait for the reply:
	// HELO, EHLO and DATA (RFC 2920 section 3.1), and all of a client that did not say EHLO.
	Unsynchronized int
}

// TLS state of a session.
type TLS struct {
	Version        string // "TLS 1.3"
	CipherSuite    string // its IANA name
	ServerName     string // asked for (SNI)
	ClientSubject  string // of a client certificate, empty without
	ClientVerified bool
}

// Auth is who authenticated, and how.
type Auth struct {
	Mechanism string // "PLAIN"
	Identity  string
}

// sessionOf reads a Session of the protocol.
func sessionOf(octets []byte) *Session {
	s := &Session{Trust: Anonymous}
	for f := factsOf(octets); f.next(); {
		switch f.number {
		case 1:
			s.ID = f.piece
		case 2:
			s.Connector = f.piece
		case 3:
			s.Client = addressOf(f.piece)
		case 4:
			s.ClientPort = uint16(f.value)
		case 5:
			s.Peer = addressOf(f.piece)
		case 6:
			s.Local = addressOf(f.piece)
		case 7:
			s.LocalPort = uint16(f.value)
		case 8:
			s.Helo = f.piece
		case 9:
			s.Extended = f.value != 0
		case 10:
			s.TLS = tlsOf(f.piece)
		case 11:
			s.Auth = authOf(f.piece)
		default:
			s.more(&f)
		}
	}
	return s
}

func (s *Session) more(f *facts) {
	switch f.number {
	case 12:
		s.Trust = max(Trust(f.value), Anonymous)
	case 13:
		s.Traffic = Traffic(f.value)
	case 14:
		s.Started = timeOf(int64(f.value))
	case 15:
		s.EarlyTalk = f.value != 0
	case 16:
		s.Commands = int(f.value)
	case 17:
		s.Rejects = int(f.value)
	case 18:
		s.Unsynchronized = int(f.value)
	}
}

func tlsOf(text string) *TLS {
	t := new(TLS)
	for f := (facts{text: text}); f.next(); {
		switch f.number {
		case 1:
			t.Version = f.piece
		case 2:
			t.CipherSuite = f.piece
		case 3:
			t.ServerName = f.piece
		case 4:
			t.ClientSubject = f.piece
		case 5:
			t.ClientVerified = f.value != 0
		}
	}
	return t
}

func authOf(text string) *Auth {
	a := new(Auth)
	for f := (facts{text: text}); f.next(); {
		switch f.number {
		case 1:
			a.Mechanism = f.piece
		case 2:
			a.Identity = f.piece
		}
	}
	return a
}

// timeOf answers with the zero time for 0.
func timeOf(unixNanos int64) time.Time {
	if unixNanos == 0 {
		return time.Time{}
	}
	return time.Unix(0, unixNanos)
}

// Envelope of a message as far as it is known at an event.
type Envelope struct {
	// TrackingID of the message: part of every log line about it and of the texts a client reads.
	TrackingID string
	// Sender given with MAIL.
	Sender EnvelopeSender
	// Recipients accepted so far, from OnData on.
	Recipients []EnvelopeRecipient
	// RecipientCount is how many were accepted so far, at OnRcpt too.
	RecipientCount int
}

// EnvelopeSender is MAIL FROM with its parameters.
type EnvelopeSender struct {
	address.Mailbox
	Size       int64  // declared, in bytes (RFC 1870); 0: not
	BodyType   string // "7BIT" or "8BITMIME" (RFC 6152); empty: not given
	SMTPUTF8   bool   // RFC 6531
	RequireTLS bool   // RFC 8689
	Ret        string // "FULL" or "HDRS" (RFC 3461); empty: not given
	EnvID      string // decoded (RFC 3461)
	Auth       string // decoded (RFC 4954)
}

// EnvelopeRecipient is RCPT TO with its parameters.
type EnvelopeRecipient struct {
	address.Mailbox
	Index        int             // names the recipient for the life of the message
	ORCPT        string          // decoded (RFC 3461)
	Notify       []string        // "NEVER", or any of "SUCCESS", "FAILURE", "DELAY" (RFC 3461)
	Original     address.Mailbox // before expansion or rewriting, where it differs
	ExpandedFrom address.Mailbox // the top group that this recipient came from
	NextHop      string          // from OnRouted on
}

// envelopeOf reads an Envelope of the protocol.
func envelopeOf(octets []byte) Envelope {
	var e Envelope
	for f := factsOf(octets); f.next(); {
		switch f.number {
		case 1:
			e.TrackingID = f.piece
		case 2:
			e.Sender = senderOf(f.piece)
		case 3:
			e.Recipients = append(e.Recipients, recipientOf(f.piece))
		case 4:
			e.RecipientCount = int(f.value)
		}
	}
	if len(e.Recipients) > 0 {
		e.RecipientCount = len(e.Recipients)
	}
	return e
}

func senderOf(text string) EnvelopeSender {
	var s EnvelopeSender
	for f := (facts{text: text}); f.next(); {
		switch f.number {
		case 1:
			s.Mailbox = mailboxOf(f.piece)
		case 2:
			s.Size = int64(f.value)
		case 3:
			s.BodyType = f.piece
		case 4:
			s.SMTPUTF8 = f.value != 0
		case 5:
			s.RequireTLS = f.value != 0
		case 6:
			s.Ret = f.piece
		case 7:
			s.EnvID = f.piece
		case 8:
			s.Auth = f.piece
		}
	}
	return s
}

func recipientOf(text string) EnvelopeRecipient {
	var r EnvelopeRecipient
	for f := (facts{text: text}); f.next(); {
		switch f.number {
		case 1:
			r.Index = int(f.value)
		case 2:
			r.Mailbox = mailboxOf(f.piece)
		case 3:
			r.ORCPT = f.piece
		case 4:
			r.Notify = append(r.Notify, f.piece)
		case 5:
			r.Original = mailboxOf(f.piece)
		case 6:
			r.ExpandedFrom = mailboxOf(f.piece)
		case 7:
			r.NextHop = f.piece
		}
	}
	return r
}

// mailboxOf reads an address that the host has checked. One that a rewriting agent left and that does not
// parse is split at its last @, so that it is at least seen.
func mailboxOf(s string) address.Mailbox {
	at := strings.LastIndexByte(s, '@')
	if at > 0 && isPlain(s[:at], true) && isPlain(s[at+1:], false) {
		return address.Mailbox{Local: s[:at], Domain: s[at+1:]} // what nearly all addresses look like
	}
	if m, err := address.Parse(s); err == nil {
		return m
	}
	if at >= 0 {
		return address.Mailbox{Local: s[:at], Domain: strings.ToLower(s[at+1:])}
	}
	return address.Mailbox{Local: s}
}

// isPlain: nothing but letters, digits, dots and hyphens, the letters in lower case unless capitals are allowed.
func isPlain(s string, capitals bool) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '.', c == '-', capitals && c >= 'A' && c <= 'Z':
		default:
			return false
		}
	}
	return true
}

// Message facts, from OnEndOfHeaders on.
type Message struct {
	HeaderBytes   int64           // with the empty line
	BodyBytes     int64           // 0 at OnEndOfHeaders: not known yet
	From          address.Mailbox // first address in From; null if none parses
	MessageID     string          // field as it stands, with brackets
	Subject       string          // decoded
	ReceivedCount int             // number of Received fields
}

// messageOf reads a Message of the protocol.
func messageOf(octets []byte) Message {
	var m Message
	for f := factsOf(octets); f.next(); {
		switch f.number {
		case 1:
			m.HeaderBytes = int64(f.value)
		case 2:
			m.BodyBytes = int64(f.value)
		case 3:
			m.From = mailboxOf(f.piece)
		case 4:
			m.MessageID = f.piece
		case 5:
			m.Subject = decodeText([]byte(f.piece))
		case 6:
			m.ReceivedCount = int(f.value)
		}
	}
	return m
}

// Reply is an SMTP reply.
type Reply struct {
	Code     int
	Enhanced string // "5.7.1" (RFC 3463)
	Text     string
}

func replyOf(p *agentpb.Reply) Reply {
	return Reply{Code: int(p.GetCode()), Enhanced: p.GetEnhanced(), Text: p.GetText()}
}

// Host facts are the same for every event of a configuration.
type Host struct {
	Name                string // it greets with
	Version             string
	AcceptedDomains     []AcceptedDomain
	InternalSMTPServers []netip.Prefix // whose Received fields are believed
	Resolvers           []string       // "127.0.0.1:53"; empty: the system's
}

// AcceptedDomain is a domain that mail is taken for.
type AcceptedDomain struct {
	Name string // in lower case with A-labels (address.ASCIIDomain); "*.x" covers the subdomains of x
	Type string // "authoritative", "internal_relay" or "external_relay"
}

// Accepts reports whether mail for domain, in any spelling, is taken.
func (h *Host) Accepts(domain string) bool {
	domain = address.ASCIIDomain(domain)
	return slices.ContainsFunc(h.AcceptedDomains, func(d AcceptedDomain) bool {
		if parent, ok := strings.CutPrefix(d.Name, "*"); ok {
			return strings.HasSuffix(domain, parent) && len(domain) > len(parent)
		}
		return domain == d.Name
	})
}

func hostOf(p *agentpb.HostFacts) *Host {
	h := &Host{Name: p.GetName(), Version: p.GetVersion(), Resolvers: p.GetResolvers()}
	for _, d := range p.GetAcceptedDomains() {
		h.AcceptedDomains = append(h.AcceptedDomains, AcceptedDomain{address.ASCIIDomain(d.GetName()), d.GetType()})
	}
	for _, text := range p.GetInternalSmtpServers() {
		if prefix, err := parsePrefix(text); err == nil {
			h.InternalSMTPServers = append(h.InternalSMTPServers, prefix)
		}
	}
	return h
}
