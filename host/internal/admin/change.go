package admin

import (
	"context"
	"fmt"
	"net/http"

	"github.com/posternmail/postern/host/internal/config"
)

// This file is what changes a running host: its configuration and the generations of its agents.

// OperatorControl changes the running host. An order that fails has changed nothing.
type OperatorControl interface {
	// Reload reads the configuration again and applies what differs; with dryRun it only says what that would be.
	Reload(ctx context.Context, dryRun bool) (Reload, error)
	// Order does what o says to an agent.
	Order(ctx context.Context, name string, o Order) (Ordered, error)
	// Compare tells how the candidate of an agent is doing, or did last.
	Compare(name string) (Comparison, error)
}

// Kinds of an Order.
const (
	OrderUpgrade  = "upgrade"  // a new generation, of the program or version named
	OrderRollback = "rollback" // the generation before
	OrderEnable   = "enable"
	OrderDisable  = "disable"
	OrderReset    = "reset"   // what the configuration says
	OrderPromote  = "promote" // the candidate takes over
)

// Order is something to be done to an agent that the configuration does not say.
type Order struct {
	Kind    string   `json:"kind"`
	Version string   `json:"version,omitempty"` // of an upgrade, from the catalog
	Command []string `json:"command,omitempty"` // of an upgrade: the program, absolute, with its arguments
	Trial   *Trial   `json:"trial,omitempty"`   // of an upgrade: it is tried first
}

// Trial says how a new generation is tried beside the one that runs.
type Trial struct {
	Kind     string  `json:"kind"`               // "canary" or "shadow"
	Share    float64 `json:"share"`              // of the sessions, above 0 up to 1
	Duration string  `json:"duration,omitempty"` // "1h": then it takes over; "": when it is told to
}

// Ordered is what an order came to.
type Ordered struct {
	Agent Agent    `json:"agent"`
	Did   []string `json:"did"` // in sentences
}

// Reload is what a new configuration comes to.
type Reload struct {
	Applied     bool                `json:"applied"`
	Changes     []Change            `json:"changes"`
	Diagnostics []config.Diagnostic `json:"diagnostics"`
	Findings    string              `json:"findings,omitempty"` // the diagnostics with their source lines, as a person reads them
}

// Change of one block of the configuration.
type Change struct {
	Block   string   `json:"block"`          // `agent "antivirus"`
	Change  string   `json:"change"`         // "added", "removed" or "changed"
	What    []string `json:"what,omitempty"` // arguments
	How     string   `json:"how"`            // what is done to apply it
	Restart bool     `json:"restart"`        // only a restart of the host applies it
	Source  string   `json:"source,omitempty"`
}

// Comparison of a candidate with the generation that it is to follow.
type Comparison struct {
	Agent     string             `json:"agent"`
	Kind      string             `json:"kind"`  // "canary" or "shadow"
	State     string             `json:"state"` // "running", "promoted", "taken back"
	Why       string             `json:"why,omitempty"`
	Current   string             `json:"current"`   // version
	Candidate string             `json:"candidate"` // version
	Share     float64            `json:"share"`
	Since     string             `json:"since"`           // RFC 3339
	Until     string             `json:"until,omitempty"` // when it takes over
	Sessions  uint64             `json:"sessions"`        // that the candidate was given
	Compared  uint64             `json:"compared"`        // events that both were asked about
	Missed    uint64             `json:"missed"`          // events that could not be compared: too many were waiting
	Events    []EventComparison  `json:"events"`
	Latency   map[string]float64 `json:"mean_micros"` // of "current" and "candidate"
	Examples  []Disagreement     `json:"disagreements"`
}

// EventComparison is the comparison at one event.
type EventComparison struct {
	Event    string `json:"event"`
	Compared uint64 `json:"compared"`
	Verdict  uint64 `json:"verdict"` // different verdicts
	Edits    uint64 `json:"edits"`   // the same verdict with different edits, stamps or other effects
	Failed   uint64 `json:"failed"`  // the candidate failed or answered against the protocol, the other did not
	Mended   uint64 `json:"mended"`  // the other failed, the candidate did not
}

// Disagreement of one event, newest last.
type Disagreement struct {
	Time      string `json:"time"`
	Kind      string `json:"kind"` // "verdict", "edits", "failed", "mended"
	Event     string `json:"event"`
	Session   string `json:"session,omitempty"`
	Message   string `json:"message,omitempty"`
	Current   string `json:"current"`   // what it answered
	Candidate string `json:"candidate"` // what it answered
}

// Refuse is the error of an order that cannot be done as things are.
func Refuse(hint, format string, args ...any) error {
	return &failure{http.StatusConflict, Problem{Error: fmt.Sprintf(format, args...), Hint: hint}}
}

// RefuseFindings is the error of an order that the configuration stands against, with its findings as a person reads
// them.
func RefuseFindings(findings, format string, args ...any) error {
	return &failure{http.StatusConflict, Problem{Error: fmt.Sprintf(format, args...), Findings: findings}}
}

// NotConfigured is the error of an order to an agent that there is not.
func NotConfigured(name string) error { return notFound("no agent %q is configured", name) }

func (a *api) reload(r *http.Request) (any, error) {
	var request struct {
		DryRun bool `json:"dry_run"`
	}
	if err := readJSON(r, &request); err != nil {
		return nil, err
	}
	return a.Operator.Reload(r.Context(), request.DryRun)
}

func (a *api) orderAgent(r *http.Request) (any, error) {
	var o Order
	if err := readJSON(r, &o); err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	done, err := a.Operator.Order(r.Context(), name, o)
	if err != nil {
		return nil, err
	}
	for _, one := range a.listAgents() {
		if one.Name == name {
			done.Agent = one
		}
	}
	return done, nil
}

func (a *api) compareAgent(r *http.Request) (any, error) {
	return a.Operator.Compare(r.PathValue("name"))
}
