package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/sdk/agentpb"
)

// fleet is all configured agents.
type fleet struct {
	host   *Host
	runDir string

	mu      sync.Mutex
	running map[string]*agent.Agent // by label
}

func newFleet(h *Host) *fleet { return &fleet{host: h, running: map[string]*agent.Agent{}} }

// maxRunDir leaves room in sun_path (108 octets) for the sockets of agents.
const maxRunDir = 60

// HostFacts are what agents are told of the host.
func HostFacts(c *config.Config, version string) *agentpb.HostFacts {
	facts := &agentpb.HostFacts{Name: c.Host.Name, Version: version, Resolvers: c.DNS.Resolvers}
	for _, d := range c.AcceptedDomains {
		facts.AcceptedDomains = append(facts.AcceptedDomains, &agentpb.AcceptedDomain{Name: d.Name, Type: d.Type})
	}
	for _, p := range c.Host.InternalSMTPServers {
		facts.InternalSmtpServers = append(facts.InternalSmtpServers, p.String())
	}
	return facts
}

// launch starts every enabled agent, all at once.
func (f *fleet) launch(ctx context.Context) ([]pipeline.Member, error) {
	if err := f.makeRunDir(); err != nil {
		return nil, err
	}
	var (
		launching sync.WaitGroup
		specs     = f.host.Config.Agents
		errs      = make([]error, len(specs))
	)
	for i := range specs {
		if specs[i].Enabled {
			launching.Go(func() { errs[i] = f.launchOne(ctx, specs[i]) })
		}
	}
	launching.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	var members []pipeline.Member
	for i := range specs {
		if a := f.running[specs[i].Name]; a != nil {
			members = append(members, pipeline.Member{Caller: f.host.metrics.Caller(a), Spec: &specs[i]})
		}
	}
	return members, nil
}

func (f *fleet) launchOne(ctx context.Context, spec config.Agent) error {
	a, err := agent.Launch(ctx, agent.Options{
		Spec: spec, Host: HostFacts(f.host.Config, f.host.Version), RunDir: f.runDir,
		StateDir: f.host.data(filepath.Join("agents", spec.Name)),
		Logger:   f.host.Logger.Named("agent"),
		OnChange: func() { f.changed(spec.Name) },
	})
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running[spec.Name] = a
	return nil
}

// changed wakes the messages that wait for an agent that is back.
func (f *fleet) changed(name string) {
	f.mu.Lock()
	a := f.running[name]
	f.mu.Unlock()
	if a != nil && a.Ready() {
		f.host.queue.Wake(name)
	}
}

// away reports whether an agent is configured and does not run now.
func (f *fleet) away(name string) bool {
	f.mu.Lock()
	a := f.running[name]
	f.mu.Unlock()
	return a != nil && !a.Ready()
}

// makeRunDir makes the folder of the agents' sockets: below the data directory, or, where that path would be too
// long for a socket, in the system's folder for temporary files. What an earlier run left is removed.
func (f *fleet) makeRunDir() error {
	dir := f.host.data("run")
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if len(abs) > maxRunDir {
		if f.runDir, err = os.MkdirTemp("", "postern-"); err != nil {
			return fmt.Errorf("folder of the agents' sockets: %w", err)
		}
		f.host.onStop(func(context.Context) { _ = os.RemoveAll(f.runDir) })
		return nil
	}
	f.runDir = abs
	if err := os.RemoveAll(abs); err != nil {
		return fmt.Errorf("folder of the agents' sockets: %w", err)
	}
	return os.Mkdir(abs, 0o700)
}

func (f *fleet) countBreach(name, reason string) {
	f.mu.Lock()
	a := f.running[name]
	f.mu.Unlock()
	if a != nil {
		a.CountBreach(reason)
	}
}

// list is the agents as listings show them.
func (f *fleet) list() []admin.Running {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []admin.Running
	for _, spec := range f.host.Config.Agents {
		one := admin.Running{Spec: spec}
		if a := f.running[spec.Name]; a != nil {
			one.Process = a
		}
		out = append(out, one)
	}
	return out
}

func (f *fleet) close(ctx context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var closing sync.WaitGroup
	for _, a := range f.running {
		closing.Go(func() { a.Close(ctx) })
	}
	closing.Wait()
}

// degraded says which agents do not run.
func (f *fleet) degraded() (out []string) {
	for _, one := range f.list() {
		if one.Process != nil && !one.Process.Ready() {
			out = append(out, fmt.Sprintf("agent %s is not running since %s", one.Spec.Name, downSince(one.Process.Status()).Format(time.RFC3339)))
		}
	}
	return out
}

func downSince(s agent.Status) (since time.Time) {
	for _, i := range s.Instances {
		if since.IsZero() || i.Since.Before(since) {
			since = i.Since
		}
	}
	return since
}
