package command

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/posternmail/postern/host/internal/admin"
)

func agentCommand(a *app) *command {
	return &command{name: "agent", short: "Look at the agents, replace one, make a new one.", subs: slices.Concat(
		[]*command{agentListCommand(a), agentShowCommand(a), agentRestartCommand(a)}, agentOrderCommands(a),
		[]*command{agentInstallCommand(a), agentPruneCommand(a), agentLockCommand(a)},
		[]*command{agentNewCommand(a), agentRunCommand(a)},
	)}
}

func agentListCommand(a *app) *command {
	var catalog bool
	return &command{
		name: "list", short: "List the configured agents in the order of priority.", json: true, host: true,
		long: "AVAILABLE are other installed versions; in brackets those that the agent's version constraint does not admit.",
		flags: func(f *flag.FlagSet) {
			f.BoolVar(&catalog, "installed", false, "list the installed versions instead; the host need not run")
		},
		run: func(ctx context.Context, _ []string) error {
			if catalog {
				return a.listInstalled()
			}
			var agents []admin.Agent
			if err := a.get(ctx, "/v1/agents", nil, &agents); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(agents)
			}
			t := columns("PRIORITY>", "AGENT", "VERSION", "PROTOCOL>", "AVAILABLE", "CATEGORY", "STATE", "UP", "IN FLIGHT>", "RESTARTS>", "CALLS>", "P99>")
			for i := range agents {
				row := a.agentRow(&agents[i])
				t.row(append([]string{fmt.Sprint(agents[i].Priority), row[0], row[1], number(agents[i].Protocol), orDash(available(&agents[i])), orDash(agents[i].Category)}, row[2:]...)...)
			}
			a.list(t, "no agents are configured")
			a.printDrift(agents)
			return nil
		},
	}
}

// available are the installed versions that an agent does not run.
func available(one *admin.Agent) string {
	var list []string
	for _, v := range one.Installed {
		switch {
		case v.Runs:
		case one.Constraint != "" && !v.Allowed:
			list = append(list, inBrackets(v.Version))
		default:
			list = append(list, v.Version)
		}
	}
	return strings.Join(list, ", ")
}

// printDrift says what was ordered and is not in the configuration, and what is being tried.
func (a *app) printDrift(agents []admin.Agent) {
	for _, one := range agents {
		if one.Drift != "" {
			a.printf("\n%s  %s %s\n", a.paint(red, "DRIFT"), printable(one.Name), printable(one.Drift))
		}
		if one.Candidate != "" {
			a.printf("\nTRIAL  %s %s\n", printable(one.Name), printable(one.Candidate))
		}
	}
}

func agentShowCommand(a *app) *command {
	return &command{
		name: "show", args: "NAME", short: "Show one agent: its processes, what it reads and may change, what it has answered.",
		min: 1, max: 1, json: true, host: true,
		run: func(ctx context.Context, args []string) error {
			var one admin.Agent
			if err := a.get(ctx, "/v1/agents/"+args[0], nil, &one); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(one)
			}
			a.printAgent(&one)
			return nil
		},
	}
}

func (a *app) printAgent(one *admin.Agent) {
	facts := &table{}
	facts.row("agent", one.Name)
	facts.row("state", one.State)
	facts.row("version", strings.TrimSpace(orDash(one.Version)+" "+inBrackets(one.SDK)))
	facts.row("protocol", number(one.Protocol))
	facts.row("available", orDash(available(one)))
	facts.row("does", orDash(one.Summary))
	facts.row("category", orDash(one.Category))
	facts.row("priority", fmt.Sprint(one.Priority))
	facts.row("command", strings.TrimSpace(orDash(strings.Join(one.Command, " "))+" "+inBrackets(one.Source)))
	for _, path := range slices.Sorted(maps.Keys(one.SHA256)) {
		facts.row("SHA-256", one.SHA256[path]+" "+path)
	}
	for _, limits := range limitsOf(one) {
		facts.row("limits", limits)
	}
	if one.Drift != "" {
		facts.row("drift", one.Drift)
	}
	if one.Candidate != "" {
		facts.row("trial", one.Candidate)
	}
	facts.row("breaches", strings.TrimSpace(fmt.Sprint(one.Breaches)+" "+inBrackets(strings.Join(one.Faults, ", "))))
	facts.row("dead letters", fmt.Sprint(one.Dead))
	facts.row("failed at", orDash(counts(one.Failures)))
	facts.print(a.stdout, a.width)

	instances := columns("INSTANCE>", "PID>", "STATE", "SINCE", "VERSION", "IN FLIGHT>", "RESTARTS>", "LAST EXIT")
	for _, i := range one.Instances {
		instances.row(fmt.Sprint(i.Number), number(i.PID), a.stateOf(&i), stamp(i.Since), orDash(i.Version), fmt.Sprint(i.InFlight),
			fmt.Sprint(i.Restarts), orDash(i.Reason))
	}
	a.printBelow(instances)

	events := columns("EVENT", "CALLS>", "MEDIAN>", "P99>", "ANSWERS", "READS", "MAY CHANGE")
	for _, e := range one.Events {
		median, p99 := "-", "-"
		if e.Calls > 0 {
			median, p99 = "<"+micros(e.Median), "<"+micros(e.P99)
		}
		events.row(e.Event, fmt.Sprint(e.Calls), median, p99, orDash(counts(e.Verdicts)), orDash(strings.Join(e.Reads, ", ")),
			orDash(strings.Join(e.Changes, ", ")))
	}
	a.printBelow(events)
	for _, b := range one.Breakers {
		a.printf("\n%s is kept from it since %s: %d failures one after the other, the last: %s\n", b.Event, stamp(b.Since), b.Failures, printable(b.Last))
	}
	a.printStderr(one.Instances)
}

// limitsOf are the limits of an agent's processes, mostly the same for all.
func limitsOf(one *admin.Agent) (list []string) {
	for _, i := range one.Instances {
		if i.Limits != "" && !slices.Contains(list, i.Limits) {
			list = append(list, i.Limits)
		}
	}
	return list
}

// stateOf is the state of an instance, with the time of the next start where it has no process.
func (a *app) stateOf(i *admin.Instance) string {
	switch {
	case i.Next != nil:
		return i.State + ", next " + a.until(*i.Next)
	case i.State == "failed":
		return i.State + ", next by order"
	}
	return i.State
}

func (a *app) printStderr(instances []admin.Instance) {
	for _, i := range instances {
		if len(i.Stderr) == 0 {
			continue
		}
		a.printf("\nlast lines of instance %d:\n", i.Number)
		for _, line := range i.Stderr {
			a.printf("  %s\n", printable(readable(line)))
		}
	}
}

// readable writes a line of hclog's JSON as people read it: time, level, text, and the rest by name. Other lines stay.
func readable(line string) string {
	var fields map[string]any
	if json.Unmarshal([]byte(line), &fields) != nil || fields["@message"] == nil {
		return line
	}
	text := fmt.Sprint(fields["@message"])
	if at, err := time.Parse(time.RFC3339Nano, fmt.Sprint(fields["@timestamp"])); err == nil {
		text = fmt.Sprintf("%s [%v] %s", stamp(at), fields["@level"], text)
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if !strings.HasPrefix(name, "@") {
			text += fmt.Sprintf(" %s=%v", name, fields[name])
		}
	}
	return text
}

func counts(verdicts map[string]uint64) string {
	var parts []string
	for _, verdict := range slices.Sorted(maps.Keys(verdicts)) {
		parts = append(parts, fmt.Sprintf("%s %d", verdict, verdicts[verdict]))
	}
	return strings.Join(parts, ", ")
}

func inBrackets(s string) string {
	if s == "" {
		return ""
	}
	return "(" + s + ")"
}

func micros(n int64) string { return span(time.Duration(n) * time.Microsecond) }

func agentRestartCommand(a *app) *command {
	return &command{
		name: "restart", args: "NAME", short: "Replace the processes of an agent one after another; no mail is held up.",
		min: 1, max: 1, json: true, host: true,
		run: func(ctx context.Context, args []string) error {
			var one admin.Agent
			if !a.json {
				fmt.Fprintf(a.stderr, "restarting %s...\n", printable(args[0]))
			}
			if err := a.post(ctx, "/v1/agents/"+args[0]+"/restart", struct{}{}, &one); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(one)
			}
			a.printf("agent %s %s is %s\n", printable(one.Name), printable(one.Version), printable(one.State))
			return nil
		},
	}
}
