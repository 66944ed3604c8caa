package replay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Crew is agents of a configuration started beside those of a running host: for a dry run, or to look at what
// they subscribe to. They work on copies of their state folders.
type Crew struct {
	Members []pipeline.Member

	agents []*agent.Agent
	dir    string
}

// CrewOptions say how to start a Crew.
type CrewOptions struct {
	Config *config.Config
	Facts  *agentpb.HostFacts
	State  func(agent string) string // the state folder of a running agent
	Logger hclog.Logger
}

// Hire starts all enabled agents of the configuration, at once. The error names each that could not be started.
func Hire(ctx context.Context, o CrewOptions) (*Crew, error) {
	dir, err := os.MkdirTemp("", "postern-")
	if err != nil {
		return nil, fmt.Errorf("folder of the agents: %w", err)
	}
	c := &Crew{dir: dir}
	specs := o.Config.Agents
	started, errs := make([]*agent.Agent, len(specs)), make([]error, len(specs))
	var starting sync.WaitGroup
	for i := range specs {
		if specs[i].Enabled {
			starting.Go(func() { started[i], errs[i] = c.start(ctx, o, specs[i]) })
		}
	}
	starting.Wait()
	for i, a := range started {
		if a != nil {
			c.agents = append(c.agents, a)
			c.Members = append(c.Members, pipeline.Member{Caller: a, Spec: &specs[i]})
		}
	}
	if err := errors.Join(errs...); err != nil {
		c.Dismiss()
		return nil, err
	}
	return c, nil
}

func (c *Crew) start(ctx context.Context, o CrewOptions, spec config.Agent) (*agent.Agent, error) {
	state := filepath.Join(c.dir, "state", spec.Name)
	from := o.State(spec.Name)
	copied, err := copyState(state, from, maxState)
	if err != nil {
		return nil, fmt.Errorf("agent %s: copying its state in %s: %w", spec.Name, from, err)
	}
	if !copied {
		o.Logger.Warn("the agent starts without what it has kept, which is too much to copy for a dry run", "agent", spec.Name, "state", from)
	}
	spec.Instances = 1
	return agent.Launch(ctx, agent.Options{Spec: spec, Host: o.Facts, RunDir: c.dir, StateDir: state, Beside: true, Logger: o.Logger.Named("agent")})
}

// Subscribed is what each agent has declared, in the order of priority, for config.Review.
func (c *Crew) Subscribed() []config.Subscribed {
	var list []config.Subscribed
	for _, a := range c.agents {
		list = append(list, config.Subscribed{Agent: a.Name(), Subscriptions: a.Subscriptions()})
	}
	return list
}

// Dismiss ends the agents and removes their folders.
func (c *Crew) Dismiss() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var ending sync.WaitGroup
	for _, a := range c.agents {
		ending.Go(func() { a.Close(ctx) })
	}
	ending.Wait()
	_ = os.RemoveAll(c.dir) // below the system's folder for temporary files
}
