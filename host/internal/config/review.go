package config

import (
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"

	"github.com/posternmail/postern/sdk/agentpb"
)

// Planned is one event of the plan: its agents by name, in stages. The agents of a stage run at once.
type Planned struct {
	Event  agentpb.EventKind
	Stages [][]string
}

// Subscribed is an agent with what it declared under its configuration.
type Subscribed struct {
	Agent         string
	Subscriptions []*agentpb.Subscription
}

// Review judges what shows only when the agents have been configured and the plan is made: a chain of timeouts that
// exceeds the event's budget (an error), and agents that read a stamp which nobody before them writes (a warning).
// eventName names each event in messages ("OnRcpt"). agents are in the order of priority.
func (c *Config) Review(plan []Planned, agents []Subscribed, eventName func(agentpb.EventKind) string) *Diagnostics {
	r := &review{config: c, diags: &Diagnostics{}, eventName: eventName}
	if c.sources != nil {
		r.diags.sources, r.diags.secrets = c.sources.sources, c.sources.secrets
	}
	for _, event := range plan {
		r.checkChain(event)
	}
	r.checkStamps(agents)
	r.diags.sort()
	return r.diags
}

type review struct {
	config    *Config
	diags     *Diagnostics
	eventName func(agentpb.EventKind) string
}

// checkChain adds up the longest timeout of each stage.
func (r *review) checkChain(event Planned) {
	group, decision := eventGroup(event.Event)
	if !decision {
		return
	}
	var sum time.Duration
	var longest *Agent
	var chain []string
	for _, stage := range event.Stages {
		slowest := r.slowest(stage, group)
		if slowest == nil {
			continue
		}
		sum += slowest.Timeout.of(group)
		chain = append(chain, fmt.Sprintf("%s %s", slowest.Name, FormatDuration(slowest.Timeout.of(group))))
		if longest == nil || slowest.Timeout.of(group) > longest.Timeout.of(group) {
			longest = slowest
		}
	}
	if budget := r.config.Host.EventBudget.of(group); sum > budget {
		r.diags.errorf(r.config.timeoutRange(longest, group),
			"at %s the agents may take %s one after another (%s), more than the event budget of %s for %s",
			r.eventName(event.Event), FormatDuration(sum), strings.Join(chain, ", "), FormatDuration(budget), budgetName(group))
	}
}

func (r *review) slowest(stage []string, group string) *Agent {
	var slowest *Agent
	for _, name := range stage {
		agent := r.config.agent(name)
		if agent != nil && (slowest == nil || agent.Timeout.of(group) > slowest.Timeout.of(group)) {
			slowest = agent
		}
	}
	return slowest
}

// eventGroup tells the group of a decision.
func eventGroup(kind agentpb.EventKind) (string, bool) {
	for _, group := range []string{groupConnect, groupCommand, groupMessage, groupSubmitted} {
		for _, one := range groupEvents(group) {
			if one == kind {
				return group, true
			}
		}
	}
	return "", false
}

func (t Timeouts) of(group string) time.Duration {
	switch group {
	case groupConnect:
		return t.Connect
	case groupCommand:
		return t.Command
	case groupMessage:
		return t.Message
	}
	return t.Submitted
}

func (b EventBudget) of(group string) time.Duration {
	switch group {
	case groupConnect:
		return b.Connect
	case groupCommand:
		return b.Command
	case groupMessage:
		return b.Message
	}
	return b.Routing
}

// timeoutRange is where an agent's timeout was written, otherwise its block.
func (c *Config) timeoutRange(agent *Agent, group string) hcl.Range {
	if c.tree != nil {
		for _, n := range c.tree.all("agent") {
			if n.label() == agent.Name {
				return n.one("timeout").rangeOf(group)
			}
		}
	}
	return agent.Range
}

func (c *Config) agent(name string) *Agent {
	for i := range c.Agents {
		if c.Agents[i].Name == name {
			return &c.Agents[i]
		}
	}
	return nil
}

// checkStamps compares what agents read with what those before them write.
func (r *review) checkStamps(agents []Subscribed) {
	for _, reader := range agents {
		agent := r.config.agent(reader.Agent)
		if agent == nil {
			continue
		}
		missing := map[string]bool{}
		for _, sub := range reader.Subscriptions {
			for _, stamp := range sub.GetReadsStamps() {
				own := strings.HasPrefix(stamp, reader.Agent+".") // under some configurations it writes none
				if !own && !missing[stamp] && !hostStamp(stamp) && !written(stamp, reader.Agent, sub.GetEvent(), agents) {
					missing[stamp] = true
					r.diags.warnf(agent.Range, "agent %q reads the stamp %q at %s, which no agent before it writes",
						reader.Agent, stamp, r.eventName(sub.GetEvent()))
				}
			}
		}
	}
}

// hostStamp tells the stamps that the host writes itself, and "*", which asks for whatever there is.
func hostStamp(name string) bool {
	return name == "*" || name == "skipped" || strings.HasPrefix(name, "bypass.") || strings.HasPrefix(name, "done.")
}

// written tells whether an agent may have written a stamp when the reader sees the event: at an earlier event, or
// at this one ahead of it.
func written(stamp, reader string, event agentpb.EventKind, agents []Subscribed) bool {
	ahead := true
	for _, writer := range agents {
		ahead = ahead && writer.Agent != reader
		for _, sub := range writer.Subscriptions {
			if sub.GetEvent() > event || (sub.GetEvent() == event && !ahead) {
				continue
			}
			for _, key := range sub.GetMayChange().GetStamps() {
				if stampMatches(stamp, key) || stampMatches(stamp, writer.Agent+"."+key) {
					return true
				}
			}
		}
	}
	return false
}

// stampMatches a wanted name, which may end in "*".
func stampMatches(wanted, name string) bool {
	if prefix, wild := strings.CutSuffix(wanted, "*"); wild {
		return strings.HasPrefix(name, prefix)
	}
	return wanted == name
}
