package command

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/posternmail/postern/host/internal/admin"
)

func statusCommand(a *app) *command {
	return &command{
		name: "status", short: "Show the running host on one screen.", json: true, host: true,
		run: func(ctx context.Context, _ []string) error {
			var s admin.Status
			if err := a.get(ctx, "/v1/status", nil, &s); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(s)
			}
			a.printStatus(&s)
			return nil
		},
	}
}

func (a *app) printStatus(s *admin.Status) {
	health := a.paint(green, "ok")
	if len(s.Degraded) > 0 {
		health = a.paint(red, "degraded")
	}
	a.printf("%s  %s  postern %s, pid %d, up %s\n", printable(s.Name), health, printable(s.Version.Version), s.PID, a.age(&s.Started))
	a.printf("config %s, data %s\n", printable(s.Config), printable(s.DataDir))
	a.section("DEGRADED", s.Degraded)
	a.section("DRIFT", s.Drift)

	a.printBelow(a.listenerTable(s.Listeners))

	agents := columns("AGENT", "VERSION", "STATE", "UP", "IN FLIGHT>", "RESTARTS>", "CALLS>", "P99>")
	for i := range s.Agents {
		agents.row(a.agentRow(&s.Agents[i])...)
	}
	a.printBelow(agents)

	a.printf("\n")
	a.printQueue(s)

	t := s.Totals
	a.printf("\nlast minute   %s received, %s refused, %s delivered\n", perMinute(s.Rates.Received), perMinute(s.Rates.Refused),
		perMinute(s.Rates.Delivered))
	a.printf("since start   %d received, %d refused, %d delivered, %d put off, %d failed, %d quarantined, %d discarded\n",
		t.Received, t.Refused, t.Delivered, t.Deferred, t.Failed, t.Quarantined, t.Discarded)
}

func perMinute(perSecond float64) string { return fmt.Sprintf("%.0f", perSecond*60) }

func (a *app) section(title string, lines []string) {
	for _, line := range lines {
		a.printf("%s  %s\n", a.paint(red, title), printable(line))
	}
}

func (a *app) listenerTable(listeners []admin.Listener) *table {
	t := columns("LISTENER", "ADDRESS", "FOR", "TLS", "OPEN>", "ACCEPTED>", "REFUSED>")
	for _, l := range listeners {
		t.row(l.Connector, l.Address, strings.Join(l.Permissions, " "), l.TLS, fmt.Sprint(l.Connections), fmt.Sprint(l.Accepted),
			fmt.Sprint(l.Refused))
	}
	return t
}

func (a *app) agentRow(one *admin.Agent) []string {
	calls, worst := uint64(0), int64(0)
	for _, e := range one.Events {
		calls += e.Calls
		worst = max(worst, e.P99)
	}
	inFlight, up := 0, 0
	for _, i := range one.Instances {
		inFlight += i.InFlight
		if i.State == "up" {
			up++
		}
	}
	p99 := "-"
	if calls > 0 {
		p99 = "<" + micros(worst)
	}
	return []string{one.Name, orDash(one.Version), one.State, fmt.Sprintf("%d/%d", up, len(one.Instances)), fmt.Sprint(inFlight),
		fmt.Sprint(one.Restarts), fmt.Sprint(calls), p99}
}

// states of the queue in the order in which they are shown.
var queueStates = []string{"ready", "waiting", "suspended", "parked"}

func (a *app) printQueue(s *admin.Status) {
	var parts []string
	for _, state := range queueStates {
		if n := s.Queue.States[state]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, state))
		}
	}
	if len(parts) == 0 {
		parts = []string{"empty"}
	}
	if s.Quarantined > 0 {
		parts = append(parts, fmt.Sprintf("%d in quarantine", s.Quarantined))
	}
	a.printf("queue         %s, oldest %s\n", strings.Join(parts, ", "), a.age(s.Queue.Oldest))
	if len(s.Queue.Hops) == 0 {
		return
	}
	a.hopTable(s.Queue.Hops).print(a.stdout, a.width)
}

func (a *app) hopTable(hops []admin.Hop) *table {
	hops = slices.Clone(hops)
	slices.SortStableFunc(hops, func(x, y admin.Hop) int { return y.Ready + y.Waiting - x.Ready - x.Waiting })
	t := columns("NEXT HOP", "READY>", "WAITING>", "SUSPENDED>", "OLDEST>", "NEXT>", "LAST ERROR")
	for _, h := range hops {
		next := "-"
		if h.Next != nil {
			next = a.until(*h.Next)
		}
		name := h.Hop
		if name == "" {
			name = "(to be routed)"
		}
		t.row(name, number(h.Ready), number(h.Waiting), number(h.Suspended), a.age(h.Oldest), next, h.LastError)
	}
	return t
}
