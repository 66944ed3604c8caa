package command

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host"
	"github.com/posternmail/postern/host/internal/config"
)

func serveCommand(a *app) *command {
	return &command{
		name: "serve", short: "Run the host until it is told to stop (SIGTERM, Ctrl-C).", file: true,
		run: func(ctx context.Context, _ []string) error {
			c, found, err := a.loadWithAgents(ctx)
			if err != nil {
				return err
			}
			found.Print(a.stderr, a.width, a.color && a.terminal)
			if found.Errors() {
				count, _ := found.Count()
				return fmt.Errorf("%s: %s, the host was not started", a.config, plural(count, "error"))
			}
			return a.serve(ctx, c)
		},
	}
}

func (a *app) serve(ctx context.Context, c *config.Config) error {
	logger := hclog.New(&hclog.LoggerOptions{
		Name: "postern", Level: hclog.LevelFromString(c.LogLevel), JSONFormat: c.LogJSON, Output: a.stderr, TimeFormat: "2006-01-02T15:04:05.000Z0700",
	})
	h, err := host.Start(ctx, host.Options{Config: c, Path: a.config, Version: a.version, Logger: logger})
	if err != nil {
		return err
	}
	defer h.Stop()
	a.printListening(c)
	return h.Wait(ctx)
}

// printListening tells a person at a terminal what runs now and what to try.
func (a *app) printListening(c *config.Config) {
	a.printf("postern %s is running as %s\n", a.version, c.Host.Name)
	for _, r := range c.ReceiveConnectors {
		a.printf("  %s listens on %s for %s\n", r.Name, strings.Join(r.Listen, ", "), strings.Join(r.Permissions, ", "))
	}
	for _, one := range c.Agents {
		if one.Enabled {
			a.printf("  agent %s, priority %d\n", one.Name, one.Priority)
		}
	}
	a.printSample(c)
}

// printSample has a command to try first, where there is something to try it with.
func (a *app) printSample(c *config.Config) {
	binary := os.Args[0]
	for _, d := range c.AcceptedDomains {
		if strings.HasPrefix(d.Name, "*") {
			continue
		}
		a.printf("Send a sample, and see what each agent says about it:\n")
		a.printf("  %s verify --config %s --to somebody@%s\n", binary, a.config, d.Name)
		return
	}
}
