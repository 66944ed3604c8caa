package command

import (
	"context"
	"errors"
	"flag"
	"strings"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/pipeline"
)

func pipelineCommand(a *app) *command {
	var only string
	return &command{
		name: "pipeline", short: "Show event by event which agents are asked, in which order, and which of them at once.", json: true, host: true,
		long:  "Asks the running host. Without one it starts the agents of the configuration for a moment.",
		flags: func(f *flag.FlagSet) { f.StringVar(&only, "event", "", "only this `EVENT`, such as OnRcpt") },
		run: func(ctx context.Context, _ []string) error {
			events, err := a.plan(ctx)
			if err != nil {
				return err
			}
			if only != "" {
				if events, err = oneEvent(events, only); err != nil {
					return err
				}
			}
			if a.json {
				return a.printJSON(admin.Pipeline{Events: events})
			}
			a.printPlan(events)
			return nil
		},
	}
}

// plan of the running host, or of the configuration.
func (a *app) plan(ctx context.Context) ([]pipeline.EventPlan, error) {
	var running admin.Pipeline
	err := a.get(ctx, "/v1/pipeline", nil, &running)
	if err == nil {
		return running.Events, nil
	}
	if !errors.Is(err, admin.ErrNotRunning) || a.socket != "" {
		return nil, err
	}
	a.note("no host is running: this is the plan of %s", a.config)
	c, err := a.loadOrExplain(ctx)
	if err != nil {
		return nil, err
	}
	return a.planOf(ctx, c)
}

func (a *app) planOf(ctx context.Context, c *config.Config) ([]pipeline.EventPlan, error) {
	crew, err := a.hire(ctx, c)
	if err != nil {
		return nil, err
	}
	defer crew.Dismiss()
	plan, err := pipeline.NewPlan(crew.Members)
	if err != nil {
		return nil, err
	}
	events := plan.Describe()
	if events == nil {
		events = []pipeline.EventPlan{}
	}
	return events, nil
}

func oneEvent(events []pipeline.EventPlan, name string) ([]pipeline.EventPlan, error) {
	var names []string
	for _, e := range events {
		if strings.EqualFold(e.Event, name) {
			return []pipeline.EventPlan{e}, nil
		}
		names = append(names, e.Event)
	}
	return nil, &misuse{text: "no agent is asked at " + printable(name) + suggest(name, names)}
}

// printPlan shows a line an agent. The stage number is what tells who is asked at once.
func (a *app) printPlan(events []pipeline.EventPlan) {
	if len(events) == 0 {
		a.note("no agent is asked at any event")
		return
	}
	t := columns("EVENT", "STAGE>", "AGENT", "VERSION", "PRIORITY>", "TIMEOUT>", "ON FAILURE", "READS", "MAY CHANGE")
	for _, e := range events {
		event := e.Event
		for i, s := range e.Stages {
			for _, one := range s.Agents {
				t.row(event, number(i+1), one.Agent, orDash(one.Version), number(one.Priority), orDash(one.Timeout), orDash(one.OnFailure),
					orDash(strings.Join(one.Reads, ", ")), orDash(strings.Join(one.Changes, ", ")))
				event = ""
			}
		}
	}
	t.print(a.stdout, a.width)
	a.printReasons(events)
}

// printReasons says why stages are apart.
func (a *app) printReasons(events []pipeline.EventPlan) {
	t := &table{}
	for _, e := range events {
		for i, s := range e.Stages {
			if s.Apart != "" {
				t.row("  "+e.Event, "stage "+number(i+1), s.Apart)
			}
		}
	}
	if len(t.rows) == 0 {
		return
	}
	a.printf("\nAgents of one stage are asked at once. Stages of their own:\n")
	t.print(a.stdout, a.width)
}
