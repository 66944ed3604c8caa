package admin

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Process is a running agent as listings see it. *agent.Agent implements it.
type Process interface {
	Manifest() *agentpb.DescribeResponse
	Subscriptions() []*agentpb.Subscription
	Status() agent.Status
	Ready() bool
	Restart(ctx context.Context) error
}

// Running is a configured agent with its processes.
type Running struct {
	Spec    config.Agent
	Process Process // nil: disabled, or it could not be started

	Candidate string // "canary 1.1.0, 10 % of the sessions"; "": none

	Source    string      // of its program: "catalog", "bundled", "command" or "attach"
	Installed []Installed // versions of its plugin
}

// Agents makes an AgentControl of what list answers at the moment.
func Agents(list func() []Running) AgentControl { return running(list) }

type running func() []Running

// List implements AgentControl.
func (r running) List() []Agent {
	agents := []Agent{}
	for _, one := range r() {
		agents = append(agents, describe(one))
	}
	slices.SortStableFunc(agents, func(a, b Agent) int { return a.Priority - b.Priority })
	return agents
}

// Restart implements AgentControl.
func (r running) Restart(ctx context.Context, name string) error {
	for _, one := range r() {
		if one.Spec.Name != name {
			continue
		}
		if one.Process == nil {
			return &failure{http.StatusConflict, Problem{Error: fmt.Sprintf("agent %q is not running", name)}}
		}
		return one.Process.Restart(ctx)
	}
	return notFound("no agent %q is configured", name)
}

// describe makes the listing of one agent.
func describe(r Running) Agent {
	a := Agent{
		Name: r.Spec.Name, Plugin: r.Spec.Plugin, Priority: r.Spec.Priority, Enabled: r.Spec.Enabled,
		Command: r.Spec.Command, State: "disabled", Instances: []Instance{}, Events: []Event{},
		Drift: r.Spec.Drift, Candidate: r.Candidate, Source: r.Source, Constraint: r.Spec.Version, SHA256: r.Spec.SHA256,
		Installed: r.Installed,
	}
	if r.Spec.Attach != "" {
		a.Command = []string{"attach", r.Spec.Attach}
	}
	if r.Process == nil {
		if r.Spec.Enabled {
			a.State = string(agent.Stopped)
		}
		return a
	}
	a.Ready = r.Process.Ready()
	fillStatus(&a, r.Process.Status())
	fillManifest(&a, r.Process.Manifest())
	for _, s := range r.Process.Subscriptions() {
		a.Events = append(a.Events, describeSubscription(s))
	}
	return a
}

func fillManifest(a *Agent, m *agentpb.DescribeResponse) {
	a.Category = CategoryName(m.GetCategory())
	a.Summary, a.SDK = m.GetSummary(), m.GetSdk()
	if a.Version == "" {
		a.Version = m.GetVersion()
	}
}

func fillStatus(a *Agent, s agent.Status) {
	a.Version, a.Protocol = s.Version, s.Protocol
	a.Dead = s.DeadLetters.Late + s.DeadLetters.Second + s.DeadLetters.Tickets
	for _, reason := range slices.Sorted(maps.Keys(s.Breaches)) {
		a.Breaches += s.Breaches[reason]
		a.Faults = append(a.Faults, fmt.Sprintf("%s: %d", reason, s.Breaches[reason]))
	}
	a.Queued, a.Leaked = s.Queued, s.Leaked
	for _, b := range s.Breakers {
		a.Breakers = append(a.Breakers, Breaker{Event: pipeline.EventName(b.Kind), Failures: b.Failures, Since: b.Since, Next: b.Next, Last: b.Last})
	}
	a.State = string(agent.Stopped)
	for _, i := range s.Instances {
		a.Restarts += i.Restarts
		a.Instances = append(a.Instances, describeInstance(i))
		if rank(i.State) > rank(agent.State(a.State)) {
			a.State = string(i.State)
		}
	}
}

func describeInstance(i agent.InstanceStatus) Instance {
	instance := Instance{
		Number: i.Number, PID: i.PID, State: string(i.State), Version: i.Version, Since: i.Since, Restarts: i.Restarts,
		InFlight: i.InFlight, Reason: i.LastExit, Stderr: i.Stderr, Limits: i.Limits,
	}
	if !i.Next.IsZero() {
		instance.Next = &i.Next
	}
	return instance
}

// rank orders states by how well an agent is that has an instance in it.
func rank(s agent.State) int {
	return slices.Index([]agent.State{agent.Stopped, agent.Failed, agent.Waiting, agent.Hanging, agent.Starting, agent.Draining, agent.Up}, s)
}

// CategoryName is the category as listings write it, such as "antispam".
func CategoryName(c agentpb.Category) string {
	return strings.ToLower(strings.TrimPrefix(c.String(), "CATEGORY_"))
}

func describeSubscription(s *agentpb.Subscription) Event {
	return Event{
		Event: pipeline.EventName(s.GetEvent()), Reads: reads(s), Changes: changes(s.GetMayChange()), Waits: s.GetWaits(),
		Verdicts: map[string]uint64{},
	}
}

func reads(s *agentpb.Subscription) []string {
	var what []string
	if h := s.GetHeaders(); h.GetAll() {
		what = append(what, "headers")
	} else {
		for _, name := range h.GetNames() {
			what = append(what, "header "+name)
		}
	}
	switch b := s.GetBody(); b.GetMode() {
	case agentpb.BodyMode_BODY_MODE_WHOLE:
		what = append(what, "body")
	case agentpb.BodyMode_BODY_MODE_PREFIX:
		what = append(what, fmt.Sprintf("first %d bytes of the body", b.GetPrefixBytes()))
	}
	for _, name := range s.GetReadsStamps() {
		what = append(what, "stamp "+name)
	}
	for _, t := range s.GetTables() {
		what = append(what, "table "+t.GetTable())
	}
	return what
}

func changes(c *agentpb.Changes) []string {
	var what []string
	for _, one := range []struct {
		may  bool
		name string
	}{
		{c.GetVerdict(), "verdict"}, {c.GetHeaders(), "headers"}, {c.GetBody(), "body"}, {c.GetEnvelope(), "envelope"},
		{c.GetBypass(), "bypass"}, {c.GetKeepCopy(), "copies"}, {c.GetSpawn(), "new messages"}, {c.GetRoute(), "route"},
	} {
		if one.may {
			what = append(what, one.name)
		}
	}
	for _, name := range c.GetStamps() {
		what = append(what, "stamp "+name)
	}
	for _, name := range c.GetTables() {
		what = append(what, "table "+name)
	}
	return what
}

// listAgents is every agent with what was counted.
func (a *api) listAgents() []Agent {
	agents := a.Agents.List()
	for i := range agents {
		a.Metrics.fill(&agents[i])
	}
	return agents
}

func (a *api) agents(*http.Request) (any, error) { return a.listAgents(), nil }

func (a *api) agent(r *http.Request) (any, error) {
	name := r.PathValue("name")
	for _, one := range a.listAgents() {
		if one.Name == name {
			return one, nil
		}
	}
	return nil, notFound("no agent %q is configured", name)
}

func (a *api) restartAgent(r *http.Request) (any, error) {
	if err := a.Agents.Restart(r.Context(), r.PathValue("name")); err != nil {
		return nil, err
	}
	return a.agent(r)
}

func (a *api) pipeline(*http.Request) (any, error) {
	events := a.Pipeline()
	if events == nil {
		events = []pipeline.EventPlan{}
	}
	return Pipeline{Events: events}, nil
}
