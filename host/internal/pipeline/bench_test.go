package pipeline

import (
	"context"
	"fmt"
	"testing"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/sdk/agentpb"
)

// quick is an agent that costs nothing, so that what is measured is the host's own work.
type quick struct {
	*fake
	result agent.Result
}

func (q *quick) Call(context.Context, *agent.Call) (agent.Result, error) { return q.result, nil }

func BenchmarkRaise(b *testing.B) {
	for _, n := range []int{0, 1, 11} {
		for _, kind := range []agentpb.EventKind{onRcpt, onData} {
			b.Run(fmt.Sprintf("%s/%d", EventName(kind), n), func(b *testing.B) { benchmarkRaise(b, n, kind) })
		}
	}
}

func benchmarkRaise(b *testing.B, n int, kind agentpb.EventKind) {
	var members []Member
	for i := range n {
		sub := &agentpb.Subscription{Event: kind, MayChange: &agentpb.Changes{Verdict: true}}
		if kind == onData {
			sub.Headers = &agentpb.HeaderNeed{All: true}
		}
		f := newFake(fmt.Sprintf("a%d", i), i, nil, sub)
		members = append(members, Member{Caller: &quick{f, agent.Result{Answer: carryOn(), Version: "1.0.0", Attempts: []agent.Attempt{{}}}}, Spec: f.spec})
	}
	p, err := NewPlan(members)
	if err != nil {
		b.Fatal(err)
	}
	pipe := New(Options{Tables: newMemory()})
	pipe.SetPlan(p)
	c := pipe.Open(session(), nil)
	m := mail("r0@here.example", "r1@here.example")
	ev := &Event{Kind: kind, ID: "0123456789abcdef.1 OnRcpt 1", Mail: m}
	if kind == onRcpt {
		ev.Recipient = m.Recipients[1]
	}
	b.ReportAllocs()
	for b.Loop() {
		if o := c.Raise(context.Background(), ev); o.Decision != Continue {
			b.Fatal(o.Verdict)
		}
	}
}
