package command

import (
	"context"
	"fmt"
	"os"

	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/sdk/agentpb"
)

func checkCommand(a *app) *command {
	return &command{
		name: "check", short: "Check the configuration, the agents' blocks included.", json: true, file: true,
		long: "Starts each agent for a moment, beside a running host. Exit status 1 says that there are errors.",
		run: func(ctx context.Context, _ []string) error {
			c, found, err := a.loadWithAgents(ctx)
			if err != nil {
				return err
			}
			reviewed := &config.Diagnostics{}
			if !found.Errors() {
				if reviewed, err = a.review(ctx, c); err != nil {
					return err
				}
			}
			if c != nil && c.Host.User == "" && os.Geteuid() == 0 {
				a.note("a host that root starts runs as root: %s", staysRoot)
			}
			return a.printFindings(c, found, reviewed, a.drifted(c))
		},
	}
}

// review finds what shows only with configured agents.
func (a *app) review(ctx context.Context, c *config.Config) (*config.Diagnostics, error) {
	crew, err := a.hire(ctx, c)
	if err != nil {
		return nil, err
	}
	defer crew.Dismiss()
	plan, err := pipeline.NewPlan(crew.Members)
	if err != nil {
		return nil, err
	}
	return c.Review(planned(plan.Describe()), crew.Subscribed(), pipeline.EventName), nil
}

func planned(events []pipeline.EventPlan) []config.Planned {
	kinds := map[string]agentpb.EventKind{}
	for kind := range agentpb.EventKind_name {
		kinds[pipeline.EventName(agentpb.EventKind(kind))] = agentpb.EventKind(kind)
	}
	var list []config.Planned
	for _, e := range events {
		one := config.Planned{Event: kinds[e.Event]}
		for _, s := range e.Stages {
			var names []string
			for _, agent := range s.Agents {
				names = append(names, agent.Agent)
			}
			one.Stages = append(one.Stages, names)
		}
		list = append(list, one)
	}
	return list
}

func (a *app) printFindings(c *config.Config, found ...*config.Diagnostics) error {
	all := []config.Diagnostic{}
	errs, warnings := 0, 0
	for _, d := range found {
		all = append(all, d.All()...)
		e, w := d.Count()
		errs, warnings = errs+e, warnings+w
	}
	switch {
	case a.json:
		if err := a.printJSON(all); err != nil {
			return err
		}
	default:
		for _, d := range found {
			d.Print(a.stdout, a.width, a.color)
		}
		a.printVerdict(c, errs, warnings)
	}
	if errs > 0 {
		return errSilent
	}
	return nil
}

func (a *app) printVerdict(c *config.Config, errs, warnings int) {
	text := plural(errs, "error") + ", " + plural(warnings, "warning")
	if errs == 0 {
		text = fmt.Sprintf("ok: %s, %s, %s, %s", plural(len(c.ReceiveConnectors), "receive connector"),
			plural(len(c.SendConnectors), "send connector"), plural(len(c.Agents), "agent"), plural(warnings, "warning"))
	}
	if errs+warnings > 0 {
		a.printf("\n")
	}
	a.printf("%s: %s\n", printable(a.config), text)
}

func configCommand(a *app) *command {
	return &command{name: "config", short: "Look at the configuration.", subs: []*command{{
		name: "show", short: "Show every value in force with its source.", json: true, host: true,
		long: "Reads the configuration; with --socket asks the running host for its own.",
		run:  a.showConfig,
	}}}
}

func (a *app) showConfig(ctx context.Context, _ []string) error {
	var values config.Effective
	if a.socket != "" {
		if err := a.get(ctx, "/v1/config", nil, &values); err != nil {
			return err
		}
	} else {
		c, err := a.loadOrExplain(ctx)
		if err != nil {
			return err
		}
		values = c.Effective()
	}
	if a.json {
		return a.printJSON(values)
	}
	return values.Print(a.stdout)
}
