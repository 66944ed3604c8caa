package pipeline

import (
	"context"
	"strings"
	"testing"

	"github.com/posternmail/postern/sdk/agentpb"
)

// breaks is an agent of which the host's own side has a bug.
func breaks(name string, priority int, kind agentpb.EventKind) *fake {
	f := newFake(name, priority, nil, &agentpb.Subscription{Event: kind, Waits: true, MayChange: &agentpb.Changes{Verdict: true}})
	f.answer = func(context.Context, *shown) *agentpb.Answer { panic("a bug") }
	return f
}

// A panic beside the goroutine of Raise comes out of Raise, where its caller can catch it.
func TestPanicInAStage(t *testing.T) {
	g := newRig(t, breaks("a", 1, onData), breaks("b", 2, onData))
	if p := g.Plan().Describe()[0]; len(p.Stages) != 1 {
		t.Fatalf("%d stages", len(p.Stages))
	}
	defer func() {
		if v, _ := recover().(string); !strings.HasPrefix(v, "a bug\n") || !strings.Contains(v, "crash_test.go") {
			t.Errorf("recovered %.80q, want the panic and its stack", v)
		}
	}()
	g.raise(t, onData, mail("r0@here.example"))
}

// A fact is nobody's to wait for, so a panic at it ends there.
func TestPanicAtAFact(t *testing.T) {
	a := breaks("a", 1, onReject)
	g := newRig(t, a)
	c := g.Open(session(), nil)
	for range 2 {
		c.Tell(&Event{Kind: onReject, ID: "event"})
	}
	c.Close(context.Background())
	if n := a.calls.Load(); n != 2 {
		t.Errorf("%d facts told, want 2", n)
	}
}
