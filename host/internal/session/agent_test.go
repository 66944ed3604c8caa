package session_test

import (
	"context"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/sdk/agentpb"
)

// scripted is an agent in this process: it answers with what a test says and remembers what it was asked.
type scripted struct {
	name   string
	kinds  []agentpb.EventKind
	answer func(ev *agentpb.Event) *agentpb.Answer
	fail   func(ev *agentpb.Event) *agent.Failure // instead of an answer, where it is not nil

	mu   sync.Mutex
	seen []*agentpb.Event
}

func (s *scripted) Name() string { return s.name }

func (s *scripted) Manifest() *agentpb.DescribeResponse {
	return &agentpb.DescribeResponse{Name: s.name, Version: "1.2.3", Category: agentpb.Category_CATEGORY_ANTISPAM}
}

func (s *scripted) Subscriptions() (subs []*agentpb.Subscription) {
	for _, k := range s.kinds {
		sub := &agentpb.Subscription{Event: k, MayChange: &agentpb.Changes{Verdict: true}}
		switch k {
		case agentpb.EventKind_EVENT_KIND_MAIL, agentpb.EventKind_EVENT_KIND_RCPT:
			sub.MayChange.Envelope = true
		case agentpb.EventKind_EVENT_KIND_END_OF_HEADERS, agentpb.EventKind_EVENT_KIND_END_OF_DATA:
			sub.MayChange.Envelope, sub.MayChange.Headers, sub.MayChange.Spawn, sub.MayChange.KeepCopy = true, true, true, true
			sub.Headers = &agentpb.HeaderNeed{All: true}
		}
		subs = append(subs, sub)
	}
	return subs
}

func (s *scripted) Call(_ context.Context, c *agent.Call) (agent.Result, error) {
	ev := &agentpb.Event{}
	if err := proto.Unmarshal(append(append([]byte(nil), c.Facts...), c.Own...), ev); err != nil {
		panic(err)
	}
	s.mu.Lock()
	s.seen = append(s.seen, ev)
	s.mu.Unlock()
	if s.fail != nil {
		if f := s.fail(ev); f != nil {
			return agent.Result{Version: "1.2.3"}, f
		}
	}
	a := s.answer(ev)
	if a == nil {
		a = verdict(agentpb.VerdictKind_VERDICT_KIND_CONTINUE, nil)
	}
	return agent.Result{Answer: a, Version: "1.2.3", Attempts: []agent.Attempt{{Instance: s.name + "/1", Version: "1.2.3"}}}, nil
}

// events seen of a kind.
func (s *scripted) events(kind agentpb.EventKind) (list []*agentpb.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ev := range s.seen {
		if ev.Kind == kind {
			list = append(list, ev)
		}
	}
	return list
}

func verdict(kind agentpb.VerdictKind, reply *agentpb.Reply, recipients ...uint32) *agentpb.Answer {
	return &agentpb.Answer{Verdicts: []*agentpb.Verdict{{Kind: kind, Reply: reply, Reason: "test", Recipients: recipients}}}
}

// plan of agents in the order given.
func plan(t testing.TB, agents ...*scripted) *pipeline.Plan {
	t.Helper()
	var members []pipeline.Member
	for i, a := range agents {
		members = append(members, pipeline.Member{Caller: a, Spec: &config.Agent{
			Name: a.name, Plugin: a.name, Enabled: true, Priority: i + 1, Instances: 1, MaxInFlight: 256,
			When:      config.When{Traffic: []string{"external", "outbound", "internal"}},
			OnFailure: map[agentpb.EventKind]string{onEndOfData: "hold"},
		}})
	}
	p, err := pipeline.NewPlan(members)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
