package agent

import (
	"time"

	"github.com/posternmail/postern/sdk/agentpb"
)

// State of an instance.
type State string

// States of an instance.
const (
	Starting State = "starting" // its process is being started, configured and probed
	Up       State = "up"       // it takes events
	Draining State = "draining" // it finishes what it has and takes no more
	Hanging  State = "hung"     // it gave no sign of life and is being killed
	Waiting  State = "backoff"  // it failed and waits for its next start
	Failed   State = "failed"   // it failed so often in a row that it is started now and then only, or by order
	Stopped  State = "down"     // it was closed
)

// Status of an agent, for listings.
type Status struct {
	Name        string
	Version     string // of the newest running process
	SDK         string
	Protocol    int // of its handshake, 0 when attached
	Priority    int
	Command     []string
	Attach      string
	Instances   []InstanceStatus
	InFlight    int // events the agent works on
	Queued      int // events waiting for a place
	Suspects    int // events waiting to be retried alone
	Leaked      int // places taken by no event, and events long past their time: always 0, or there is a mistake in the host
	Breakers    []BreakerStatus
	Answered    uint64
	Failures    map[FailureKind]uint64 // of calls, by kind
	Breaches    map[string]uint64      // reported by CountBreach, by reason
	DeadLetters DeadLetters
	Latency     Latency
	Degraded    []Degradation // what it has to work without, by its own word
}

// InstanceStatus of one instance.
type InstanceStatus struct {
	Number   int
	PID      int // 0: no process, or attached
	State    State
	Version  string
	Since    time.Time // of State
	Restarts int
	InFlight int
	Next     time.Time // of its next start, in backoff or failed; zero: only by order
	LastExit string    // how its last process ended, "" if none has
	Limits   string    // in force for its process, in words
	Stderr   []string  // last lines, oldest first, of the process that ended last and of the one that runs
}

// BreakerStatus of an open breaker: events of its kind are kept from the agent.
type BreakerStatus struct {
	Kind     agentpb.EventKind
	Failures int       // in a row
	Since    time.Time // it is open
	Next     time.Time // when an event is let through
	Last     string    // failure
}

// DeadLetters counts messages of the agent that no event waited for.
type DeadLetters struct {
	Late    uint64 // answers to events given up before
	Second  uint64 // answers to events answered before, or never sent
	Tickets uint64 // uploads nobody asked for
}

// Latency of the answers.
type Latency struct {
	Mean time.Duration // since the start
	Last time.Duration // moving average of the last few hundred answers
	Max  time.Duration // of the last minute or two
}
