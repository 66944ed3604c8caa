// Package config reads HCL into a Config. Every mistake is found in one run and shown with file, line, columns
// and the line itself. Defaults follow Exchange's Edge Transport where it has them.
package config

import (
	"net/netip"
	"time"

	"github.com/hashicorp/hcl/v2"

	"github.com/posternmail/postern/sdk/agentpb"
)

// Config is the whole configuration, checked and with its defaults filled in.
type Config struct {
	Host              Host
	LogLevel          string // "trace", "debug", "info", "warn", "error"
	LogJSON           bool
	Metrics           Metrics
	Ledger            Ledger
	Quarantine        Quarantine
	Queue             Queue
	DNS               DNS
	TLS               map[string]TLS
	Users             Users
	ReceiveConnectors []ReceiveConnector
	AcceptedDomains   []AcceptedDomain
	RemoteDomains     []RemoteDomain
	Directories       []Directory
	SendConnectors    []SendConnector
	Agents            []Agent // enabled or not, in the order of priority

	tree    *node        // as decoded, for Effective and Review
	sources *Diagnostics // of Load, for the lines that Review shows
}

// Host block.
type Host struct {
	Name                string // FQDN it greets with
	DataDir             string // store, tables, ledger, control socket, state of agents
	User                string // that the host runs as when it is started as root; "": the one who starts it
	InternalSMTPServers []netip.Prefix
	EventBudget         EventBudget
	Postmaster          string        // From of notifications; default postmaster@ the first accepted domain
	MaxHops             int           // Received fields before a message is a loop; 30
	OnPartialReject     string        // "quarantine" or "discard": recipients refused when others are accepted
	ShutdownGrace       time.Duration // how long sessions may finish; 30 s
	RestartGrace        time.Duration // how long sessions go on after a restart has replaced their process; 10 min
	SkippedHeader       bool          // X-Postern-Skipped names the agents that were skipped
}

// EventBudget bounds the whole chain of agents at one event.
type EventBudget struct {
	Connect time.Duration // 10 s
	Command time.Duration // 20 s
	Message time.Duration // 60 s: end of headers and end of data
	Routing time.Duration // 15 min: right of the 250 line
}

// Metrics block.
type Metrics struct {
	Listen string // "" is off
}

// Ledger block.
type Ledger struct {
	Full     bool          // plain "continue" verdicts too
	MaxBytes int64         // of all files together; 1 GB
	MaxAge   time.Duration // 30 d
}

// Quarantine block.
type Quarantine struct {
	ExpireAfter time.Duration // 30 d
}

// Queue block. The intervals are those of Exchange's Edge Transport.
type Queue struct {
	ExpireAfter      time.Duration // 2 d
	DelayNotice      time.Duration // 4 h
	GlitchRetries    int           // 4
	GlitchInterval   time.Duration // 1 min
	TransientRetries int           // 6
	TransientRetry   time.Duration // 10 min
	RetryInterval    time.Duration // 30 min
	MaxConnections   int           // outbound at once, 1000
	MaxPerHop        int           // outbound to one next hop at once, 20
}

// DNS block.
type DNS struct {
	Resolvers []string      // "127.0.0.1:53"; empty: the system's
	Timeout   time.Duration // 5 s
}

// TLS block: one certificate.
type TLS struct {
	Name        string
	Certificate string // path; "" with Key: self-signed at first start, in the data directory
	Key         string
	MinVersion  string // "1.2" or "1.3"
	Range       hcl.Range
}

// Users block: who may authenticate.
type Users struct {
	File string // "name:hash" lines, bcrypt or argon2id; reloaded when it changes
}

// ReceiveConnector block.
type ReceiveConnector struct {
	Name        string
	Listen      []string       // "127.0.0.1:25", "[::1]:25"
	Remote      []netip.Prefix // clients it is for; empty: all
	Permissions []string       // "anonymous", "users", "partners", "own_servers"
	TLS         string         // name of a tls block; "": no STARTTLS
	ImplicitTLS bool
	RequireTLS  bool           // only EHLO, NOOP, QUIT, STARTTLS before TLS
	ProxyFrom   []netip.Prefix // sources that speak PROXY v1 or v2
	Banner      string         // text after "220 "; default "<name> ESMTP Postern"
	ProtocolLog bool
	Limits      Limits
	RequireHelo bool // MAIL needs HELO or EHLO first; true
	Range       hcl.Range
}

// Limits of a receive connector; Exchange's defaults (reference 4.1).
type Limits struct {
	MaxMessageSize       int64         // 36 MB
	MaxHeaderSize        int64         // 256 KB
	MaxRecipients        int           // 200
	MaxConnections       int           // 5000
	MaxPerSource         int           // 20; loopback is free unless set
	MessageRatePerSource int           // 600 a minute; loopback is free unless set
	Timeout              time.Duration // 5 min: whole session, stands still while a body moves
	InactivityTimeout    time.Duration // 1 min
	Tarpit               time.Duration // 5 s before 5xx to anonymous clients; 0 on loopback unless set
	MaxProtocolErrors    int           // 5
	MaxLogonFailures     int           // 3
	BannerDelay          time.Duration // 100 ms before the banner of anonymous clients; 0 on loopback unless set
	PerSourceSet         bool          // max_per_source or message_rate_per_source was set: loopback too
	TarpitSet            bool          // tarpit was set: loopback too
	BannerDelaySet       bool          // banner_delay was set: loopback too
}

// Accepted domain types.
const (
	Authoritative = "authoritative"
	InternalRelay = "internal_relay"
	ExternalRelay = "external_relay"
)

// AcceptedDomain block.
type AcceptedDomain struct {
	Name  string // lower case; "*.x" is every subdomain of x
	Type  string
	Range hcl.Range
}

// RemoteDomain block.
type RemoteDomain struct {
	Name               string // "*" is the default
	NondeliveryReports bool
	DeliveryReports    bool
	Range              hcl.Range
}

// Directory block: fills the tables recipients, groups and safelist.
type Directory struct {
	Name   string
	File   string // CSV or JSON
	Hashed bool
	Range  hcl.Range
}

// SendConnector block. Exactly one of SmartHosts, DNS, LMTP and DropDirectory is set.
type SendConnector struct {
	Name           string
	AddressSpaces  []AddressSpace
	SmartHosts     []string // "host", "host:port", "[ip]:port"
	DNS            bool
	LMTP           string // "unix:/path" or "host:port"
	DropDirectory  string
	Port           int // 25
	ForceHELO      bool
	RequireTLS     bool
	IgnoreSTARTTLS bool
	TLSAuth        string // "none" (opportunistic), "encryption", "certificate", "domain"
	TLSDomain      string
	TLSCAFile      string
	Username       string
	Password       string
	MaxMessageSize int64         // 0: no limit
	Inactivity     time.Duration // 10 min
	MaxPerConn     int           // messages a connection, 20
	SourceIP       netip.Addr
	Fqdn           string // EHLO name; default the host's
	Range          hcl.Range
}

// AddressSpace of a send connector: "*", "x.example", "*.x.example", with ";cost" from 1 to 100.
type AddressSpace struct {
	Pattern string
	Cost    int
}

// Agent block with agent_defaults merged in.
type Agent struct {
	Name         string // label
	Plugin       string // default the label
	Enabled      bool
	Priority     int
	Command      []string          // absolute; default bin/agents/PLUGIN beside the host's binary
	Version      string            // constraint on the installed versions, "" where Command is none of them
	Bundled      bool              // Command came with the host
	SHA256       map[string]string // of the files that Command runs, by path: with other content they are not started. nil: whatever is there
	Attach       string            // "unix:/path" of an agent that runs already
	Env          map[string]string
	Sensitive    map[string]bool // names in Env whose values are never shown
	When         When
	Timeout      Timeouts
	OnFailure    map[agentpb.EventKind]string // of decisions: "defer", "skip", "reject", "hold" (OnEndOfData only). A kind without one: "skip" if the subscription declares no verdict there, else "defer"
	Instances    int
	Grants       []string // nil: all but bypass of antivirus and journaling
	MaxInFlight  int      // events at once, all instances; 256
	StartTimeout time.Duration
	Restart      Restart
	Sandbox      Sandbox
	Config       []byte // the config block as JSON, decoded with the agent's schema
	ConfigBody   hcl.Body
	Trial        *Trial // how a new generation is tried before it takes over; nil: not
	Drift        string // how it differs from its block by an order, "" when it does not
	Range        hcl.Range
}

// Kinds of a Trial.
const (
	Canary = "canary" // it judges a share of the sessions
	Shadow = "shadow" // it is shown copies of the events of a share of the sessions, without effect
)

// Trial is a canary or shadow block: a new generation runs beside the one that it is to follow, which is compared with
// it. Over the limits it is taken back.
type Trial struct {
	Kind             string
	Share            float64       // of the sessions, above 0 up to 1
	Duration         time.Duration // then it takes over; 0: when it is told to
	MaxDisagreements float64       // share of the events answered differently; 0.05
	MaxFailures      float64       // share of the events not answered; 0.01
	MaxLatency       float64       // times the mean latency of the other; 3
	MinEvents        int           // compared before a limit counts; 20
}

// DefaultTrial is a trial with the limits that hold where none are given. Share and Duration are left open.
func DefaultTrial(kind string) Trial {
	return Trial{Kind: kind, MaxDisagreements: 0.05, MaxFailures: 0.01, MaxLatency: 3, MinEvents: 20}
}

// Restart of an agent whose processes end again and again.
type Restart struct {
	Attempts    int           // that may fail in a row; 10. 0 is the default of both
	RetryFailed time.Duration // pause before each further one; 5 min. 0: only by order
}

// When says which mail an agent is for. Judged by the host.
type When struct {
	Connectors    []string
	Traffic       []string // "external", "outbound", "internal"
	Authenticated *bool
	MaxSize       int64 // 0: any
}

// Timeouts of one agent by event group.
type Timeouts struct {
	Connect   time.Duration
	Command   time.Duration
	Message   time.Duration
	Submitted time.Duration // routing events
	Max       time.Duration // how far progress may extend; 0: not
}
