package host

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/handover"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/sdk/agentpb"
)

// fleet is all configured agents.
type fleet struct {
	host    *Host
	runDir  string
	records *agentRecords
	drain   context.Context // ends when generations that were replaced must go at once
	hurry   context.CancelFunc
	leaving sync.WaitGroup // generations that were replaced

	changing sync.Mutex // one change at a time

	mu      sync.Mutex
	facts   *agentpb.HostFacts
	members map[string]*member // by label
	order   []string           // labels in the order of priority
	earlier []*pipeline.Plan   // that were replaced and may still be pinned
	tried   map[string]*trial  // the last trial of each agent that had one and has none
}

// member is one configured agent as it runs. It is replaced as a whole, never changed.
type member struct {
	spec  config.Agent
	line  *agent.Line  // nil: it does not run
	agent *agent.Agent // that holds the line
	trial *trial       // a candidate beside it; nil: none
}

func newFleet(h *Host) *fleet {
	f := &fleet{host: h, members: map[string]*member{}}
	f.drain, f.hurry = context.WithCancel(context.Background())
	return f
}

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

// launch starts every enabled agent, all at once, and makes the first plan.
func (f *fleet) launch(ctx context.Context) (err error) {
	if f.records, err = openRecords(f.host.Config.Host.DataDir); err != nil {
		return err
	}
	if err := f.makeRunDir(); err != nil {
		return err
	}
	f.changing.Lock()
	defer f.changing.Unlock()
	c := f.host.Config
	_, err = f.apply(ctx, f.settle(c.Agents), HostFacts(c, f.host.Version), func(ctx context.Context, s *step) error {
		return f.orLastGood(ctx, s)
	})
	if err == nil {
		f.host.setAgents(f.running())
		f.resumeTrials(ctx, c.Agents)
	}
	return err
}

// options of a process of an agent.
func (f *fleet) options(spec config.Agent, facts *agentpb.HostFacts) agent.Options {
	return agent.Options{
		Spec: spec, Host: facts, RunDir: f.runDir,
		StateDir: f.host.data(filepath.Join("agents", spec.Name)),
		Logger:   f.host.Logger.Named("agent"),
		OnChange: func() { f.changed(spec.Name) },
		Sums:     f.host.Programs.Sums(),
		Parent:   f.host.Parent,
	}
}

// member of a label, nil when it is not configured.
func (f *fleet) member(name string) *member {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.members[name]
}

// all members, in the order of priority.
func (f *fleet) all() (list []*member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range f.order {
		list = append(list, f.members[name])
	}
	return list
}

// changed wakes the messages that wait for an agent that is back.
func (f *fleet) changed(name string) {
	if m := f.member(name); m != nil && m.line != nil && m.agent.Ready() {
		f.host.wake(name)
	}
}

// away reports whether an agent is to run and does not now. One that was removed or disabled is not waited for.
func (f *fleet) away(name string) bool {
	m := f.member(name)
	return m != nil && m.line != nil && !m.line.Agent().Ready()
}

// makeRunDir makes the folder of the agents' sockets: below the data directory, or, where that path would be too
// long for a socket, in the system's folder for temporary files. What hosts left that have ended is removed; one that
// was replaced may still have its agents there.
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
	if err := handover.RemoveLeftovers(abs); err != nil {
		return fmt.Errorf("folder of the agents' sockets: %w", err)
	}
	folder, err := handover.NewFolder(abs)
	if err != nil {
		return fmt.Errorf("folder of the agents' sockets: %w", err)
	}
	f.runDir = folder.Path
	f.host.onStop(func(context.Context) { _ = folder.Remove() })
	return nil
}

func (f *fleet) countBreach(name, reason string) {
	if m := f.member(name); m != nil && m.line != nil {
		m.agent.CountBreach(reason)
	}
}

// list is the agents as listings show them.
func (f *fleet) list() (out []admin.Running) {
	for _, m := range f.all() {
		one := admin.Running{Spec: m.spec}
		if m.line != nil {
			one.Process = m.agent
		}
		if m.trial != nil {
			one.Candidate = m.trial.inWords()
		}
		out = append(out, one)
	}
	return out
}

// close ends all agents, those that are leaving at once.
func (f *fleet) close(ctx context.Context) {
	f.hurry()
	f.closeMembers(ctx)
	f.leaving.Wait()
}

func (f *fleet) closeMembers(ctx context.Context) {
	f.changing.Lock()
	defer f.changing.Unlock()
	var closing sync.WaitGroup
	for _, m := range f.all() {
		if m.line != nil {
			closing.Go(func() { m.agent.Close(ctx) })
		}
		if m.trial != nil {
			closing.Go(func() { m.trial.candidate.Close(ctx) })
		}
	}
	closing.Wait()
}

// degraded says which agents do not run, and what those that do have to work without.
func (f *fleet) degraded() (out []string) {
	for _, one := range f.list() {
		if one.Process == nil {
			continue
		}
		status := one.Process.Status()
		if !one.Process.Ready() {
			out = append(out, strings.TrimSuffix(fmt.Sprintf("agent %s is not running since %s: %s", one.Spec.Name, downSince(status).Format(time.RFC3339), lastExit(status)), ": "))
			continue
		}
		for _, d := range status.Degraded {
			out = append(out, fmt.Sprintf("agent %s works without %s since %s: %s", one.Spec.Name, d.What, d.Since.Format(time.RFC3339), d.Detail))
		}
	}
	return out
}

// lastExit is why the first of an agent's processes that has ended did so.
func lastExit(s agent.Status) string {
	for _, i := range s.Instances {
		if i.LastExit != "" {
			return i.LastExit
		}
	}
	return ""
}

func downSince(s agent.Status) (since time.Time) {
	for _, i := range s.Instances {
		if since.IsZero() || i.Since.Before(since) {
			since = i.Since
		}
	}
	return since
}
