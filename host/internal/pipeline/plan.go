package pipeline

import (
	"fmt"
	"slices"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Member is one agent of a plan.
type Member struct {
	Caller Caller
	Spec   *config.Agent
}

// Plan says which agents are asked at each event, in which order and which of them at once. It never changes.
type Plan struct {
	members []Member
	stages  [kinds]bool
}

// EventPlan is the plan of one event, for `postern pipeline`.
type EventPlan struct {
	Event  string      `json:"event"`
	Stages []StagePlan `json:"stages"`
}

// StagePlan is a stage: agents that are asked at once.
type StagePlan struct {
	Agents []AgentPlan `json:"agents"`
	Apart  string      `json:"apart,omitempty"` // why it is not one stage with the one before it
}

// AgentPlan is an agent in a stage.
type AgentPlan struct {
	Agent     string   `json:"agent"`
	Version   string   `json:"version"`
	Priority  int      `json:"priority"`
	Reads     []string `json:"reads,omitempty"`
	Changes   []string `json:"changes,omitempty"`
	Waits     bool     `json:"waits,omitempty"`
	OnFailure string   `json:"on_failure,omitempty"`
	Timeout   string   `json:"timeout,omitempty"`
}

// NewPlan sorts members by priority. Equal priorities are an error that names both agents.
func NewPlan(members []Member) (*Plan, error) {
	p := &Plan{members: slices.Clone(members)}
	slices.SortStableFunc(p.members, func(a, b Member) int { return a.Spec.Priority - b.Spec.Priority })
	for i := 1; i < len(p.members); i++ {
		a, b := p.members[i-1].Spec, p.members[i].Spec
		if a.Priority == b.Priority {
			return nil, fmt.Errorf("agents %q and %q both have priority %d", a.Name, b.Name, a.Priority)
		}
	}
	return p, nil
}

// Describe tells the plan event by event. Events without agents are left out.
func (p *Plan) Describe() []EventPlan { return nil }

// Subscribed reports whether any agent wants events of kind.
func (p *Plan) Subscribed(kind agentpb.EventKind) bool { return known(kind) && p.stages[kind] }
