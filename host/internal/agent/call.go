package agent

import (
	"fmt"
	"time"

	"github.com/posternmail/postern/host/internal/envelope"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Call is one event for one agent. The event on the stream is the concatenation of Facts, Own and a head that
// the agent's client adds for each attempt (id, attempt, timeout, body): protobuf merges concatenated messages.
type Call struct {
	Kind    agentpb.EventKind
	Event   string // name of Kind, for log lines
	EventID string // the same for every attempt
	Session string // for log lines
	Message string
	Facts   []byte         // marshalled Event with the fields from 20 on; shared between agents, not to be changed
	Own     []byte         // marshalled Event with headers, stamps and rows
	Body    *envelope.Body // nil: none
	Prefix  int64          // with Body: send only that many bytes; 0: the whole
	Timeout time.Duration  // for all attempts together
	Extend  time.Duration  // how far Progress may move Timeout, from the start
	Fact    bool           // not retried
	Before  int            // attempts at it by generations that were replaced
}

// Result of a Call.
type Result struct {
	Answer   *agentpb.Answer // of the last attempt; nil with an error
	Version  string          // of the process that answered or failed last
	Attempts []Attempt       // in order; the last one is the one that answered, if any did

	uploads *bodies // of the process that answered
}

// Attempt at a Call.
type Attempt struct {
	Instance string // "contentfilter/2 pid 4711"
	Version  string
	Took     time.Duration
	Failure  *Failure // nil: answered
}

// FailureKind says how an agent failed.
type FailureKind string

// Kinds of failure. An agent that says no has not failed.
const (
	Died   FailureKind = "died"   // its process ended with the event in flight
	Hung   FailureKind = "hung"   // neither ping nor answer came
	Late   FailureKind = "late"   // no answer within the timeout
	Down   FailureKind = "down"   // no instance is running
	Busy   FailureKind = "busy"   // its queue is full
	Broken FailureKind = "broken" // its breaker is open: such events failed again and again
	Faulty FailureKind = "fault"  // its handler failed and it said so
	Poison FailureKind = "poison" // the event killed two instances, alone in each
)

// Failure of an agent at an event. It is no verdict.
type Failure struct {
	Agent    string
	Kind     FailureKind
	Detail   string
	Evidence string // of Poison: exit states and stderr of the processes it killed
}

// Error implements error.
func (f *Failure) Error() string {
	if f.Detail == "" {
		return fmt.Sprintf("agent %s: %s", f.Agent, f.Kind)
	}
	return fmt.Sprintf("agent %s: %s: %s", f.Agent, f.Kind, f.Detail)
}
