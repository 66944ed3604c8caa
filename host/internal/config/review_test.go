package config

import (
	"strings"
	"testing"

	"github.com/posternmail/postern/sdk/agentpb"
)

const reviewed = `agent_defaults {
  timeout = "5s"
}
agent "first" {
  plugin   = "fake"
  priority = 1
  timeout {
    command = "12s"
  }
}
agent "second" {
  plugin   = "fake"
  priority = 2
}
agent "third" {
  plugin   = "fake"
  priority = 3
}
`

func reviewLines(c *Config, plan []Planned, agents []Subscribed) string {
	var lines []string
	for _, one := range c.Review(plan, agents, func(k agentpb.EventKind) string { return "On" + k.String()[11:] }).All() {
		_, text, _ := strings.Cut(one.String(), "config.hcl:")
		lines = append(lines, text)
	}
	return strings.Join(lines, "\n")
}

func TestReviewChains(t *testing.T) {
	c := mustLoad(t, reviewed)
	rcpt, mail := agentpb.EventKind_EVENT_KIND_RCPT, agentpb.EventKind_EVENT_KIND_MAIL
	got := reviewLines(c, []Planned{
		{Event: rcpt, Stages: [][]string{{"first"}, {"second"}, {"third"}}},
		{Event: mail, Stages: [][]string{{"first", "second"}, {"third"}}},
		{Event: agentpb.EventKind_EVENT_KIND_DISCONNECT, Stages: [][]string{{"first"}, {"second"}, {"third"}}},
	}, nil)
	want := "8,15-20: at OnRCPT the agents may take 22s one after another (first 12s, second 5s, third 5s), more than the event budget of 20s for command"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestReviewStamps(t *testing.T) {
	c := mustLoad(t, reviewed)
	reads := func(event agentpb.EventKind, stamps ...string) *agentpb.Subscription {
		return &agentpb.Subscription{Event: event, ReadsStamps: stamps}
	}
	writes := func(event agentpb.EventKind, stamps ...string) *agentpb.Subscription {
		return &agentpb.Subscription{Event: event, MayChange: &agentpb.Changes{Stamps: stamps}}
	}
	rcpt, data := agentpb.EventKind_EVENT_KIND_RCPT, agentpb.EventKind_EVENT_KIND_END_OF_DATA
	got := reviewLines(c, nil, []Subscribed{
		{Agent: "first", Subscriptions: []*agentpb.Subscription{reads(data, "second.helo", "third.score"), writes(rcpt, "own"), reads(data, "first.own", "first.unwritten")}},
		{Agent: "second", Subscriptions: []*agentpb.Subscription{writes(rcpt, "helo"), reads(data, "first.*", "nobody.*", "bypass.antispam", "scl")}},
		{Agent: "third", Subscriptions: []*agentpb.Subscription{writes(data, "score", "scl")}},
	})
	want := `4,1-14: warning: agent "first" reads the stamp "third.score" at OnEND_OF_DATA, which no agent before it writes
11,1-15: warning: agent "second" reads the stamp "nobody.*" at OnEND_OF_DATA, which no agent before it writes
11,1-15: warning: agent "second" reads the stamp "scl" at OnEND_OF_DATA, which no agent before it writes`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
