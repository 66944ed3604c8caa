package command

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/fleet"
	"github.com/posternmail/postern/host/internal/replay"
	"github.com/posternmail/postern/sdk/agentpb"
)

// loadWithAgents reads the configuration and has every agent check its own block, in short-lived processes.
func (a *app) loadWithAgents(ctx context.Context) (*config.Config, *config.Diagnostics, error) {
	return a.load(ctx, config.Options{})
}

// load is loadWithAgents with other options of config.Load than those that ask the agents. It implements fleet.Loader.
func (a *app) load(ctx context.Context, o config.Options) (*config.Config, *config.Diagnostics, error) {
	dir, err := os.MkdirTemp("", "postern-")
	if err != nil {
		return nil, nil, fmt.Errorf("folder of the agents: %w", err)
	}
	defer os.RemoveAll(dir)
	var facts *agentpb.HostFacts
	asked := func(spec config.Agent) agent.Options {
		return agent.Options{Spec: spec, Host: facts, RunDir: dir, Logger: a.logger("agent"), Sums: a.programs.Sums(), Parent: a.parent, Groups: a.groups}
	}
	o.Context, o.Installed, o.Seal = ctx, a.programs.Installed, a.programs.Seal
	o.Known = func(c *config.Config) { facts = fleet.Facts(c, a.version) }
	o.Describe = func(ctx context.Context, spec config.Agent) (*agentpb.DescribeResponse, error) {
		return agent.Describe(ctx, asked(spec))
	}
	o.Validate = func(ctx context.Context, spec config.Agent, block []byte) ([]*agentpb.Diagnostic, error) {
		return agent.Validate(ctx, asked(spec), block)
	}
	c, found := config.Load(a.config, o)
	return c, found, nil
}

// loadOrExplain is loadWithAgents for commands that need a configuration without errors.
func (a *app) loadOrExplain(ctx context.Context) (*config.Config, error) {
	c, found, err := a.loadWithAgents(ctx)
	if err != nil {
		return nil, err
	}
	if found.Errors() {
		return nil, a.told(found)
	}
	return c, nil
}

// hire starts the agents of the configuration beside those of a running host.
func (a *app) hire(ctx context.Context, c *config.Config) (*replay.Crew, error) {
	return replay.Hire(ctx, replay.CrewOptions{
		Config: c, Facts: fleet.Facts(c, a.version), Logger: a.logger("agents"),
		State: func(name string) string { return stateDir(c, name) },
	})
}

// stateDir is where an agent of the running host keeps what it must not forget.
func stateDir(c *config.Config, name string) string {
	return filepath.Join(c.Host.DataDir, "agents", name)
}

// logger of parts that run inside a command: only what is wrong is worth a line.
func (a *app) logger(name string) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Name: name, Level: hclog.Warn, Output: a.stderr})
}
