// Package admin is the control socket of a running host: an HTTP/JSON interface on a unix socket that only the
// host's own user and root may use, its client, and the metrics.
package admin

import (
	"time"

	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/host/internal/tracking"
)

// The types of this file are what goes over the socket and what `--json` prints. Names are added, never changed.

// VersionHeader of every answer holds the version of the running host.
const VersionHeader = "Postern-Version"

// Version of a running host.
type Version struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
}

// Status is the host on one screen.
type Status struct {
	Version
	Name        string     `json:"name"`
	Config      string     `json:"config"` // file or folder it was started with
	DataDir     string     `json:"data_dir"`
	Degraded    []string   `json:"degraded"` // what is wrong, a sentence each
	Drift       []string   `json:"drift"`    // how the host differs from its configuration
	Listeners   []Listener `json:"listeners"`
	Queue       Queue      `json:"queue"`
	Quarantined int        `json:"quarantined"`
	Agents      []Agent    `json:"agents"`
	Totals      Totals     `json:"totals"` // since it was started
	Rates       Rates      `json:"rates"`
	Ledger      LedgerInfo `json:"ledger"`
}

// Listener is one address of a receive connector.
type Listener struct {
	Connector   string   `json:"connector"`
	Address     string   `json:"address"`
	Permissions []string `json:"permissions"`
	TLS         string   `json:"tls"` // "none", "starttls", "required" or "implicit"
	Connections int      `json:"connections"`
	Accepted    uint64   `json:"accepted"` // connections since the start
	Refused     uint64   `json:"refused"`
}

// Queue in sums.
type Queue struct {
	States map[string]int `json:"states"` // by name of the state
	Hops   []Hop          `json:"hops"`
	Oldest *time.Time     `json:"oldest,omitempty"` // when the oldest item not quarantined or parked was received
}

// Hop is one next hop with what waits for it.
type Hop struct {
	Hop       string     `json:"hop"`
	Ready     int        `json:"ready"`
	Waiting   int        `json:"waiting"`
	Suspended int        `json:"suspended"`
	Oldest    *time.Time `json:"oldest,omitempty"`
	Next      *time.Time `json:"next,omitempty"`
	LastError string     `json:"last_error,omitempty"`
}

// Agent that is configured.
type Agent struct {
	Name       string            `json:"name"`
	Plugin     string            `json:"plugin"`
	Version    string            `json:"version,omitempty"`
	Category   string            `json:"category,omitempty"`
	Summary    string            `json:"summary,omitempty"`
	SDK        string            `json:"sdk,omitempty"`
	Priority   int               `json:"priority"`
	Enabled    bool              `json:"enabled"`
	Ready      bool              `json:"ready"`
	State      string            `json:"state"` // the best of its instances, or "disabled"
	Command    []string          `json:"command,omitempty"`
	Instances  []Instance        `json:"instances"`
	Events     []Event           `json:"events"`
	Restarts   int               `json:"restarts"`
	Dead       uint64            `json:"dead_letters"` // answers that came late or twice
	Breaches   uint64            `json:"breaches"`     // answers against the protocol
	Faults     []string          `json:"breach_reasons,omitempty"`
	Counters   map[string]uint64 `json:"counters,omitempty"`   // that the agent keeps itself
	Drift      string            `json:"drift,omitempty"`      // how it differs from the configuration, by an order
	Candidate  string            `json:"candidate,omitempty"`  // a generation that is being tried beside it
	Protocol   int               `json:"protocol,omitempty"`   // that it speaks
	Source     string            `json:"source,omitempty"`     // of its program: "catalog", "bundled", "command" or "attach"
	Constraint string            `json:"constraint,omitempty"` // on its version, in the configuration
	SHA256     map[string]string `json:"sha256,omitempty"`     // of the files that it must consist of, by path
	Installed  []Installed       `json:"installed,omitempty"`  // versions of its plugin in the catalog, newest first
	Failures   map[string]uint64 `json:"failures,omitempty"`   // events that it failed at, by what became of them: skipped, defer...
	Breakers   []Breaker         `json:"breakers,omitempty"`   // that are open
	Queued     int               `json:"queued,omitempty"`     // events that wait for a place
	Leaked     int               `json:"leaked,omitempty"`     // places that nobody gives back: a mistake in the host
}

// Installed is a version in the catalog.
type Installed struct {
	Version  string `json:"version"`
	Protocol int    `json:"protocol"`
	SHA256   string `json:"sha256"`
	Runs     bool   `json:"runs"`    // as the agent that it is listed with
	Allowed  bool   `json:"allowed"` // the agent's constraint admits it
}

// Breaker of one kind of event that the agent failed at again and again: such events are kept from it.
type Breaker struct {
	Event    string    `json:"event"`
	Failures int       `json:"failures"` // one after the other
	Since    time.Time `json:"since"`
	Next     time.Time `json:"next"` // when an event is let through
	Last     string    `json:"last"` // failure
}

// Instance is one process of an agent.
type Instance struct {
	Number   int        `json:"number"`
	PID      int        `json:"pid,omitempty"`
	State    string     `json:"state"` // starting, up, draining, down, hung, backoff, failed
	Version  string     `json:"version,omitempty"`
	Since    time.Time  `json:"since"` // of the state
	Restarts int        `json:"restarts"`
	InFlight int        `json:"in_flight"`
	Next     *time.Time `json:"next,omitempty"`      // of its next start, in backoff or failed
	Reason   string     `json:"last_exit,omitempty"` // how its last process ended
	Limits   string     `json:"limits,omitempty"`    // in force for its process, and by what
	Stderr   []string   `json:"stderr,omitempty"`    // its last lines
}

// Event is what an agent has done at one event since the host was started.
type Event struct {
	Event    string            `json:"event"`
	Reads    []string          `json:"reads,omitempty"`
	Changes  []string          `json:"changes,omitempty"`
	Waits    bool              `json:"waits,omitempty"`
	Calls    uint64            `json:"calls"`
	Median   int64             `json:"median_micros"`
	P99      int64             `json:"p99_micros"`
	Verdicts map[string]uint64 `json:"verdicts"`
}

// Totals since the host was started.
type Totals struct {
	Sessions    uint64 `json:"sessions"`
	Received    uint64 `json:"received"`
	Refused     uint64 `json:"refused"`
	Delivered   uint64 `json:"delivered"`
	Deferred    uint64 `json:"deferred"`
	Failed      uint64 `json:"failed"`
	Quarantined uint64 `json:"quarantined"`
	Discarded   uint64 `json:"discarded"`
	Reports     uint64 `json:"reports"`
}

// Rates of the last minute, messages a second.
type Rates struct {
	Received  float64 `json:"received"`
	Refused   float64 `json:"refused"`
	Delivered float64 `json:"delivered"`
}

// LedgerInfo tells how the ledger is doing.
type LedgerInfo struct {
	Written uint64 `json:"written"`
	Dropped uint64 `json:"dropped"`
}

// Pipeline is the plan in force, event by event.
type Pipeline struct {
	Events []pipeline.EventPlan `json:"events"`
}

// Entry is an item in a listing.
type Entry struct {
	queue.Entry
	State string `json:"state"`
}

// Entries is a listing of items, oldest first.
type Entries struct {
	Items []Entry `json:"items"`
	Total int     `json:"total"` // items that match, listed or not
}

// Item is one item in full.
type Item struct {
	Entry
	Parent     string            `json:"parent,omitempty"`
	Origin     string            `json:"origin"`
	Session    string            `json:"session"`
	Connector  string            `json:"connector,omitempty"`
	Client     string            `json:"client,omitempty"`
	Helo       string            `json:"helo,omitempty"`
	Trust      string            `json:"trust,omitempty"`
	Traffic    string            `json:"traffic,omitempty"`
	Envelope   []Recipient       `json:"envelope"`
	Subject    string            `json:"subject,omitempty"`
	MessageID  string            `json:"message_id,omitempty"`
	Stamps     map[string]string `json:"stamps,omitempty"`
	Missed     []string          `json:"missed,omitempty"`      // agents that must still see it
	DoneAgents []string          `json:"done_agents,omitempty"` // "agent event" that have answered
	Evidence   string            `json:"evidence,omitempty"`    // of a parked item
}

// Recipient of an Item.
type Recipient struct {
	Address      string            `json:"address"`
	State        string            `json:"state"` // pending, delivered, relayed, failed, discarded
	Reply        string            `json:"reply,omitempty"`
	Remote       string            `json:"remote,omitempty"`
	Original     string            `json:"original,omitempty"`
	ExpandedFrom string            `json:"expanded_from,omitempty"`
	Stamps       map[string]string `json:"stamps,omitempty"`
}

// Changed names the items that an operation was done to, and those it could not be done to.
type Changed struct {
	Done   []string          `json:"done"`
	Failed map[string]string `json:"failed,omitempty"` // id -> why
}

// Selection says which items an operation is for: those named, or those of a state and hop.
type Selection struct {
	IDs   []string `json:"ids,omitempty"`
	Hop   string   `json:"hop,omitempty"`
	State string   `json:"state,omitempty"`
	All   bool     `json:"all,omitempty"`
}

// Table in a listing.
type Table struct {
	Name string `json:"name"`
	Rows int    `json:"rows"`
}

// Row of a table.
type Row struct {
	Key     string     `json:"key"`
	Value   string     `json:"value"` // JSON
	Created time.Time  `json:"created"`
	Expires *time.Time `json:"expires,omitempty"`
}

// Rows are a page of a table.
type Rows struct {
	Table string `json:"table"`
	Rows  []Row  `json:"rows"`
	More  bool   `json:"more"` // go on with after = the last key
}

// RowWrite puts a row.
type RowWrite struct {
	Key   string `json:"key"`
	Value string `json:"value"`         // JSON object; "" is {}
	TTL   string `json:"ttl,omitempty"` // "30d"; "" is for ever
}

// Track is a part of the ledger.
type Track struct {
	Records []tracking.Record `json:"records"`
	More    bool              `json:"more"` // the limit left older ones out
}

// VerifyRequest asks the host to send itself a message.
type VerifyRequest struct {
	To        string `json:"to"`
	From      string `json:"from,omitempty"`      // default: the postmaster
	Subject   string `json:"subject,omitempty"`   // default: "Postern verification"
	Connector string `json:"connector,omitempty"` // default: the first that takes it
	Wait      string `json:"wait,omitempty"`      // how long to wait for the delivery, "30s"
}

// VerifyStep is one step of a verification, in the order in which they happen.
type VerifyStep struct {
	Time   time.Time `json:"time"`
	Step   string    `json:"step"` // "listeners", "mx", "connect", "reply", "verdict", "route", "delivery", "done"
	OK     bool      `json:"ok"`
	Text   string    `json:"text"`
	Millis int64     `json:"millis"` // since the start
}

// Problem is the answer to a request that failed.
type Problem struct {
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"` // what to do about it

	Findings string `json:"findings,omitempty"` // in the configuration, with their source lines
}
