package admin

import (
	"fmt"
	"testing"

	"github.com/posternmail/postern/sdk/agentpb"
)

// An agent's own counters are summed, and it cannot fill the memory or the exposition with names of its choice.
func TestAgentCounters(t *testing.T) {
	m := new(agentMetrics)
	m.add([]*agentpb.Counter{{Name: "hits", Amount: 2}, {Name: "hits", Amount: 3}, {Name: "bad name\n", Amount: 1}})
	if got := fmt.Sprint(m.snapshot()); got != "map[hits:5]" {
		t.Errorf("got %s", got)
	}
	for i := range 2 * maxCounters {
		m.add([]*agentpb.Counter{{Name: fmt.Sprintf("n%d", i), Amount: 1}})
	}
	m.add([]*agentpb.Counter{{Name: "hits", Amount: 1}})
	if got := m.snapshot(); len(got) != maxCounters || got["hits"] != 6 {
		t.Errorf("%d counters, hits is %d", len(got), got["hits"])
	}
}
