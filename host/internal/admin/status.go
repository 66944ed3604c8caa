package admin

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/queue"
)

func (a *api) version(*http.Request) (any, error) { return a.thisVersion(), nil }

func (a *api) thisVersion() Version {
	return Version{Version: a.Info.Version, PID: os.Getpid(), Started: a.Info.Started}
}

func (a *api) config(*http.Request) (any, error) { return a.Effective(), nil }

func (a *api) status(*http.Request) (any, error) {
	degraded, drift := a.Health()
	s := Status{
		Version: a.thisVersion(), Name: a.Info.Name, Config: a.Info.Config, DataDir: a.Info.DataDir,
		Drift: emptyForNil(drift), Listeners: emptyForNil(a.Listeners()), Agents: a.listAgents(),
		Totals: a.Metrics.Totals(), Rates: a.Metrics.Rates(),
		Ledger: LedgerInfo{Written: a.Ledger.Written(), Dropped: a.Ledger.Dropped()},
	}
	s.Queue, s.Quarantined = a.sums()
	s.Degraded = emptyForNil(append(degraded, degradedBy(s)...))
	return s, nil
}

// degradedBy says what is wrong as far as the status itself shows it.
func degradedBy(s Status) []string {
	var wrong []string
	if n := s.Queue.States[queue.Parked.String()]; n > 0 {
		wrong = append(wrong, fmt.Sprintf("%d parked in the queue: see postern queue list --state parked", n))
	}
	for i := range s.Agents {
		wrong = append(wrong, degradedAgent(&s.Agents[i])...)
	}
	if s.Ledger.Dropped > 0 {
		wrong = append(wrong, fmt.Sprintf("the ledger has lost %d records", s.Ledger.Dropped))
	}
	return wrong
}

// degradedAgent says what keeps events from an agent.
func degradedAgent(a *Agent) (wrong []string) {
	for _, i := range a.Instances {
		if i.State == string(agent.Failed) {
			wrong = append(wrong, fmt.Sprintf("agent %s: instance %d has failed, its processes end again and again (%s): see postern agent show %s, then postern agent restart %s",
				a.Name, i.Number, i.Reason, a.Name, a.Name))
		}
	}
	for _, b := range a.Breakers {
		wrong = append(wrong, fmt.Sprintf("agent %s: %s is kept from it, %d failures one after the other, the last: %s", a.Name, b.Event, b.Failures, b.Last))
	}
	if a.Leaked > 0 {
		wrong = append(wrong, fmt.Sprintf("agent %s: %d places are held by no event, which is a mistake in the host: please report it", a.Name, a.Leaked))
	}
	return wrong
}

// sums goes once through the queue.
func (a *api) sums() (sums Queue, quarantined int) {
	sums.States = map[string]int{}
	hops := map[string]*Hop{}
	a.Queue.Entries(func(e queue.Entry) bool {
		if e.State == queue.Quarantined {
			quarantined++
			return false
		}
		sums.States[e.State.String()]++
		if e.State != queue.Parked {
			sums.Oldest = earlier(sums.Oldest, e.Received)
			countHop(hops, e)
		}
		return false
	})
	sums.Hops = []Hop{}
	for _, h := range hops {
		sums.Hops = append(sums.Hops, *h)
	}
	slices.SortFunc(sums.Hops, func(a, b Hop) int { return strings.Compare(a.Hop, b.Hop) })
	return sums, quarantined
}

func countHop(hops map[string]*Hop, e queue.Entry) {
	h := hops[e.Hop]
	if h == nil {
		h = &Hop{Hop: e.Hop}
		hops[e.Hop] = h
	}
	switch e.State {
	case queue.Waiting:
		h.Waiting++
	case queue.Suspended:
		h.Suspended++
	default:
		h.Ready++
		if !e.Next.IsZero() {
			h.Next = earlier(h.Next, e.Next)
		}
	}
	h.Oldest = earlier(h.Oldest, e.Received)
	if e.LastError != "" {
		h.LastError = e.LastError
	}
}

func earlier(a *time.Time, b time.Time) *time.Time {
	if a == nil || b.Before(*a) {
		return &b
	}
	return a
}

// emptyForNil keeps null out of the JSON.
func emptyForNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
