package fleet

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/cgroup"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/handover"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/host/internal/privsep"
	"github.com/posternmail/postern/host/internal/queue"
	"github.com/posternmail/postern/sdk/agentpb"
)

// Loader reads the configuration, with the agents checking their own blocks.
type Loader func(ctx context.Context, o config.Options) (*config.Config, *config.Diagnostics, error)

// Options of a Fleet: what it knows of the host it belongs to.
type Options struct {
	Config   *config.Config // at the start of the host
	Version  string         // of the host
	Logger   hclog.Logger
	Parent   *privsep.Link // starts agents, in place of this process; nil: this process does
	Groups   *cgroup.Tree  // for the agents that this process starts; nil: none
	Programs *Programs     // nil: digests are not remembered
	Load     Loader        // nil: nothing can be ordered
	Metrics  *admin.Metrics
	Pipeline *pipeline.Pipeline      // asks the agents, by the plan that the fleet makes
	Strict   bool                    // an agent that does not start is an error at Launch, even one that has run before
	Asking   func() pipeline.Options // of a pipeline that asks other agents than Pipeline does, or asks them in another way

	InForce func() *config.Config // the configuration that the host works by
	Changed func([]config.Agent)  // the agents run as these blocks say from now on
	Queue   func() *queue.Queue   // nil: another process owns it
}

// Fleet is all configured agents.
type Fleet struct {
	Options
	runDir  string
	endRun  func() // removes runDir
	records *agentRecords
	drain   context.Context // ends when generations that were replaced must go at once
	hurry   context.CancelFunc
	leaving sync.WaitGroup // generations that were replaced

	changing sync.Mutex // one change at a time

	mu      sync.Mutex
	facts   *agentpb.HostFacts
	members map[string]*Member // by label
	order   []string           // labels in the order of priority
	earlier []*pipeline.Plan   // that were replaced and may still be pinned
	tried   map[string]*trial  // the last trial of each agent that had one and has none
}

// Member is one configured agent as it runs. It is replaced as a whole, never changed.
type Member struct {
	Spec  config.Agent
	Line  *agent.Line  // nil: it does not run
	Agent *agent.Agent // that holds the line
	trial *trial       // a candidate beside it; nil: none

	absent bool // Agent has never been up, see orAbsent
}

// New is a fleet of which nothing runs yet.
func New(o Options) *Fleet {
	f := &Fleet{Options: o, members: map[string]*Member{}}
	f.drain, f.hurry = context.WithCancel(context.Background())
	return f
}

// Hold lets no change begin, nor an order or the end of a trial, until the function it returns is called.
func (f *Fleet) Hold() (release func()) {
	f.changing.Lock()
	return f.changing.Unlock
}

// maxRunDir leaves room in sun_path (108 octets) for the sockets of agents.
const maxRunDir = 60

// Facts are what agents are told of the host.
func Facts(c *config.Config, version string) *agentpb.HostFacts {
	facts := &agentpb.HostFacts{Name: c.Host.Name, Version: version, Resolvers: c.DNS.Resolvers}
	for _, d := range c.AcceptedDomains {
		facts.AcceptedDomains = append(facts.AcceptedDomains, &agentpb.AcceptedDomain{Name: d.Name, Type: d.Type})
	}
	for _, p := range c.Host.InternalSMTPServers {
		facts.InternalSmtpServers = append(facts.InternalSmtpServers, p.String())
	}
	return facts
}

// Launch starts every enabled agent, all at once, and makes the first plan. An agent that does not start is replaced by
// its last good generation; where that does not start either the host goes on without it, see Options.Strict.
func (f *Fleet) Launch(ctx context.Context) (err error) {
	if f.records, err = openRecords(f.Config.Host.DataDir); err != nil {
		return err
	}
	if err := f.makeRunDir(); err != nil {
		return err
	}
	f.changing.Lock()
	defer f.changing.Unlock()
	c := f.Config
	facts := Facts(c, f.Version)
	err = f.carryOut(ctx, f.steps(f.settle(c.Agents), facts), facts, f.rescue)
	if err == nil {
		f.Changed(f.Running())
		f.resumeTrials(ctx, c.Agents)
	}
	return err
}

// options of a process of an agent.
func (f *Fleet) options(spec config.Agent, facts *agentpb.HostFacts) agent.Options {
	return agent.Options{
		Spec: spec, Host: facts, RunDir: f.runDir,
		StateDir: filepath.Join(f.Config.Host.DataDir, "agents", spec.Name),
		Logger:   f.Logger.Named("agent"),
		OnChange: func() { f.changed(spec.Name) },
		Sums:     f.Programs.Sums(),
		Parent:   f.Parent,
		Groups:   f.Groups,
	}
}

// member of a label, nil when it is not configured.
func (f *Fleet) member(name string) *Member {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.members[name]
}

// Members are the configured agents, in the order of priority.
func (f *Fleet) Members() (list []*Member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range f.order {
		list = append(list, f.members[name])
	}
	return list
}

// changed wakes the messages that wait for an agent that is back.
func (f *Fleet) changed(name string) {
	m := f.member(name)
	if m == nil || m.Line == nil || !m.Agent.Ready() {
		return
	}
	if m.absent {
		f.arrive(name)
	}
	f.wake(name)
}

// wake has the messages that wait for an agent tried again, where this process owns them.
func (f *Fleet) wake(name string) {
	if q := f.Queue(); q != nil {
		q.Wake(name)
	}
}

// Away reports whether an agent is to run and does not now. One that was removed or disabled is not waited for.
func (f *Fleet) Away(name string) bool {
	m := f.member(name)
	return m != nil && m.Line != nil && !m.Line.Agent().Ready()
}

// makeRunDir makes the folder of the agents' sockets: below the data directory, or, where that path would be too
// long for a socket, in the system's folder for temporary files. What hosts left that have ended is removed; one that
// was replaced may still have its agents there.
func (f *Fleet) makeRunDir() error {
	dir := filepath.Join(f.Config.Host.DataDir, "run")
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if len(abs) > maxRunDir {
		if f.runDir, err = os.MkdirTemp("", "postern-"); err != nil {
			return fmt.Errorf("folder of the agents' sockets: %w", err)
		}
		f.endRun = func() { _ = os.RemoveAll(f.runDir) }
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
	f.endRun = func() { _ = folder.Remove() }
	return nil
}

// CountBreach notes that an agent has answered what it may not, and why that is so.
func (f *Fleet) CountBreach(name, reason string) {
	if m := f.member(name); m != nil && m.Line != nil {
		m.Agent.CountBreach(reason)
	}
}

// list is the agents as listings show them.
func (f *Fleet) list() (out []admin.Running) {
	for _, m := range f.Members() {
		one := admin.Running{Spec: m.Spec}
		if m.Line != nil {
			one.Process = m.Agent
		}
		if m.trial != nil {
			one.Candidate = m.trial.inWords()
		}
		out = append(out, one)
	}
	return out
}

// Close ends all agents, those that are leaving at once.
func (f *Fleet) Close(ctx context.Context) {
	f.hurry()
	f.closeMembers(ctx)
	f.leaving.Wait()
	if f.endRun != nil {
		f.endRun()
	}
}

func (f *Fleet) closeMembers(ctx context.Context) {
	f.changing.Lock()
	defer f.changing.Unlock()
	var closing sync.WaitGroup
	for _, m := range f.Members() {
		if m.Line != nil {
			closing.Go(func() { m.Agent.Close(ctx) })
		}
		if m.trial != nil {
			closing.Go(func() { m.trial.candidate.Close(ctx) })
		}
	}
	closing.Wait()
}

// Degraded says which agents do not run, and what those that do have to work without.
func (f *Fleet) Degraded() (out []string) {
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
