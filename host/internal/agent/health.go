package agent

import (
	"slices"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk/agentpb"
)

// Degradation is one thing that an agent has to work without, as it told the host.
type Degradation struct {
	What   string
	Detail string
	Since  time.Time
}

// maxDegradations bounds what is kept of one message; an agent tells no more than a screen of them.
const maxDegradations = 64

// degradations of a message, which nobody has checked yet.
func degradations(h *agentpb.Health) (list []Degradation) {
	for _, d := range h.GetDegraded()[:min(len(h.GetDegraded()), maxDegradations)] {
		list = append(list, Degradation{
			What: cutString(printable(d.GetWhat()), keptLineBytes), Detail: cutString(printable(d.GetDetail()), keptLineBytes),
			Since: time.Unix(0, d.GetSinceUnixNanos()),
		})
	}
	return list
}

// degraded is what any instance has to work without, each thing once with the earliest time. Under mu.
func (a *Agent) degraded() (list []Degradation) {
	for _, slot := range a.slots {
		s := slot.stream()
		if s == nil {
			continue
		}
		for _, d := range s.degraded {
			i := slices.IndexFunc(list, func(e Degradation) bool { return e.What == d.What })
			switch {
			case i < 0:
				list = append(list, d)
			case d.Since.Before(list[i].Since):
				list[i] = d
			}
		}
	}
	slices.SortFunc(list, func(x, y Degradation) int { return strings.Compare(x.What, y.What) })
	return list
}
