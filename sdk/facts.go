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

func addressOf(octets []byte) Address {
	a, _ := netip.AddrFromSlice(octets)
	return Address{a.Unmap()}
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

func sessionOf(p *agentpb.Session) *Session {
	if p == nil {
		return &Session{Trust: Anonymous}
	}
	s := &Session{
		ID: p.Id, Connector: p.Connector, Helo: string(p.Helo), Extended: p.Extended,
		Client: addressOf(p.Client), ClientPort: uint16(p.ClientPort), Peer: addressOf(p.Peer),
		Local: addressOf(p.Local), LocalPort: uint16(p.LocalPort),
		Trust: max(p.Trust, Anonymous), Traffic: p.Traffic, Started: timeOf(p.StartedUnixNanos),
		EarlyTalk: p.EarlyTalk, Commands: int(p.Commands), Rejects: int(p.Rejects),
	}
	if t := p.Tls; t != nil {
		s.TLS = &TLS{t.Version, t.CipherSuite, t.ServerName, t.ClientSubject, t.ClientVerified}
	}
	if a := p.Authentication; a != nil {
		s.Auth = &Auth{a.Mechanism, a.Identity}
	}
	return s
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

func envelopeOf(p *agentpb.Envelope) Envelope {
	e := Envelope{
		TrackingID: p.GetId(), Sender: senderOf(p.GetSender()), RecipientCount: int(p.GetRecipientCount()),
	}
	if list := p.GetRecipients(); len(list) > 0 {
		e.RecipientCount = len(list)
		e.Recipients = make([]EnvelopeRecipient, len(list))
		for i, r := range list {
			e.Recipients[i] = recipientOf(r)
		}
	}
	return e
}

func senderOf(p *agentpb.Sender) EnvelopeSender {
	if p == nil {
		return EnvelopeSender{}
	}
	return EnvelopeSender{
		Mailbox: mailboxOf(p.Address), Size: int64(p.Size), BodyType: p.BodyType, SMTPUTF8: p.Smtputf8,
		RequireTLS: p.RequireTls, Ret: p.Ret, EnvID: string(p.Envid), Auth: string(p.Auth),
	}
}

func recipientOf(p *agentpb.Recipient) EnvelopeRecipient {
	return EnvelopeRecipient{
		Mailbox: mailboxOf(p.GetAddress()), Index: int(p.GetIndex()), ORCPT: string(p.GetOrcpt()), Notify: p.GetNotify(),
		Original: mailboxOf(p.GetOriginal()), ExpandedFrom: mailboxOf(p.GetExpandedFrom()), NextHop: p.GetNextHop(),
	}
}

// mailboxOf reads an address that the host has checked. One that a rewriting agent left and that does not
// parse is split at its last @, so that it is at least seen.
func mailboxOf(octets []byte) address.Mailbox {
	if len(octets) == 0 {
		return address.Mailbox{}
	}
	m, err := address.Parse(string(octets))
	if err == nil {
		return m
	}
	s := string(octets)
	if at := strings.LastIndexByte(s, '@'); at >= 0 {
		return address.Mailbox{Local: s[:at], Domain: strings.ToLower(s[at+1:])}
	}
	return address.Mailbox{Local: s}
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

func messageOf(p *agentpb.Message) Message {
	if p == nil {
		return Message{}
	}
	return Message{
		HeaderBytes: int64(p.HeaderBytes), BodyBytes: int64(p.BodyBytes), From: mailboxOf(p.HeaderFrom),
		MessageID: string(p.MessageId), Subject: decodeText(p.Subject), ReceivedCount: int(p.ReceivedCount),
	}
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
	Name string // lower case; "*.x" covers the subdomains of x
	Type string // "authoritative", "internal_relay" or "external_relay"
}

// Accepts reports whether mail for domain (in lower case) is taken.
func (h *Host) Accepts(domain string) bool {
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
		h.AcceptedDomains = append(h.AcceptedDomains, AcceptedDomain{d.GetName(), d.GetType()})
	}
	for _, text := range p.GetInternalSmtpServers() {
		if prefix, err := parsePrefix(text); err == nil {
			h.InternalSMTPServers = append(h.InternalSMTPServers, prefix)
		}
	}
	return h
}
