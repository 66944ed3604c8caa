package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/hcl/v2"
	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/host/internal/admin"
	"github.com/posternmail/postern/host/internal/agent"
	"github.com/posternmail/postern/host/internal/config"
	"github.com/posternmail/postern/host/internal/pipeline"
	"github.com/posternmail/postern/sdk/agentpb"
)

// This file replaces agents under live mail. What can fail happens first, beside what runs: processes are started,
// configured and probed. Then the plan and the lines are exchanged between two events, and what was replaced drains.

// drainLimit is how long conversations may go on with the agents they began their mail with. What comes later goes
// to the generation that followed.
const drainLimit = 5 * time.Minute

// leaveGrace is how long a generation that gets no more events may take for those it has.
const leaveGrace = time.Minute

// action is what a change does to one agent.
type action string

const (
	actKeep      action = "keep"
	actStart     action = "start"
	actStop      action = "stop"
	actReplace   action = "replace"   // a new generation beside the old one
	actExchange  action = "exchange"  // the old one goes first: it owns something that only one can
	actConfigure action = "configure" // the processes take it while they run
	actTrial     action = "trial"     // a candidate beside it
	actPlan      action = "plan"      // only the host's part of the block has changed
)

// step is a change on its way, for one agent.
type step struct {
	action action
	name   string
	was    *Member // nil: it was not configured
	spec   config.Agent
	remove bool // it is not configured any more
	facts  *agentpb.HostFacts
	why    string // what differs

	fresh      *agent.Agent // started for it
	tried      *agent.Agent // started to be tried beside it
	configured bool         // was.Agent has taken the new configuration
	vacated    bool         // was.Agent has gone already
	absent     bool         // fresh could not be started, see orAbsent
}

// steps compares what is to run with what runs. Without facts nothing was told of the host yet.
func (f *Fleet) steps(specs []config.Agent, facts *agentpb.HostFacts) (list []*step) {
	known := map[string]bool{}
	told := f.told()
	for _, spec := range specs {
		known[spec.Name] = true
		s := &step{name: spec.Name, was: f.member(spec.Name), spec: spec, facts: facts}
		s.action, s.why = s.compare(told)
		if spec.Trial != nil && (s.action == actReplace || s.action == actConfigure && s.why == "config") {
			s.action = actTrial
		}
		list = append(list, s)
	}
	for _, m := range f.Members() {
		if !known[m.Spec.Name] {
			list = append(list, &step{action: actStop, name: m.Spec.Name, was: m, facts: facts, remove: true, why: "it is not configured any more"})
		}
	}
	return list
}

// settle puts the generation that runs in the place of one that is being tried, or was taken back, while the
// configuration asks for that one.
func (f *Fleet) settle(specs []config.Agent) []config.Agent {
	specs = slices.Clone(specs)
	for i := range specs {
		o := f.records.of(specs[i].Name).Override
		if o != nil && o.Instead != nil && o.Instead.same(generationOf(&specs[i], "")) {
			o.apply(&specs[i])
		}
	}
	return specs
}

func (f *Fleet) told() *agentpb.HostFacts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.facts
}

func (s *step) runs() bool { return s.was != nil && s.was.Line != nil }

func (s *step) compare(told *agentpb.HostFacts) (action, string) {
	switch {
	case !s.spec.Enabled && s.runs():
		return actStop, "it is disabled"
	case !s.spec.Enabled:
		return actKeep, ""
	case !s.runs():
		return actStart, "it is enabled"
	}
	was := &s.was.Spec
	switch what := differs(processPart(was), processPart(&s.spec)); {
	case what != "":
		return s.replacing(), what
	case !sameJSON(was.Config, s.spec.Config):
		return actConfigure, "config"
	case !proto.Equal(told, s.facts):
		return actConfigure, "what agents are told of the host"
	}
	if what := differs(hostPart(was), hostPart(&s.spec)); what != "" {
		return actPlan, what
	}
	return actKeep, ""
}

// replacing chooses between a new generation beside the old one and one after it.
func (s *step) replacing() action {
	if len(s.was.Agent.Manifest().GetExclusiveResources()) > 0 {
		return actExchange
	}
	return actReplace
}

// processPart is what a process is started with, its config block aside.
func processPart(a *config.Agent) config.Agent {
	p := *a
	p.Enabled, p.Priority, p.When, p.Timeout, p.OnFailure, p.Grants = false, 0, config.When{}, config.Timeouts{}, nil, nil
	p.Config, p.ConfigBody, p.Range, p.Drift, p.Sensitive, p.Trial = nil, nil, hcl.Range{}, "", nil, nil
	p.Version, p.Bundled = "", false
	return p
}

// hostPart is what the host does with an agent without its knowing.
func hostPart(a *config.Agent) config.Agent {
	return config.Agent{Priority: a.Priority, When: a.When, Timeout: a.Timeout, OnFailure: a.OnFailure, Grants: a.Grants}
}

// differs names the first fields in which a and b differ; "" when they do not.
func differs(a, b config.Agent) (what string) {
	va, vb := reflect.ValueOf(a), reflect.ValueOf(b)
	for i := range va.NumField() {
		if reflect.DeepEqual(va.Field(i).Interface(), vb.Field(i).Interface()) {
			continue
		}
		if what != "" {
			what += ", "
		}
		what += va.Type().Field(i).Name
	}
	return what
}

func sameJSON(a, b []byte) bool {
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return slices.Equal(a, b)
	}
	return reflect.DeepEqual(x, y)
}

// Change is a change of the fleet on its way.
type Change struct {
	fleet *Fleet
	facts *agentpb.HostFacts
	steps []*step
}

// Change compares the agents of a configuration, and what agents are told of the host, with what runs. The caller holds
// the fleet until the change was committed or dropped, see Hold.
func (f *Fleet) Change(agents []config.Agent, facts *agentpb.HostFacts) *Change {
	return &Change{f, facts, f.steps(f.settle(agents), facts)}
}

// Prepare does everything that can fail: processes are started, configured and probed beside those that run. On an
// error everything is as it was.
func (c *Change) Prepare(ctx context.Context) error {
	err := c.fleet.prepare(ctx, c.steps, nil)
	if err != nil {
		c.fleet.undo(c.steps)
	}
	return err
}

// Commit makes what was prepared effective, between two events.
func (c *Change) Commit() { c.fleet.commit(c.steps, c.facts) }

// List is what is done, an entry for each agent that is not left alone.
func (c *Change) List() (list []admin.Change) {
	for _, s := range c.steps {
		if one, any := s.change(); any {
			list = append(list, one)
		}
	}
	return list
}

// carryOut does all steps or none. rescue may start something else where a generation does not start; nil: nothing is
// rescued.
func (f *Fleet) carryOut(ctx context.Context, steps []*step, facts *agentpb.HostFacts, rescue func(context.Context, *step, error) error) error {
	if err := f.prepare(ctx, steps, rescue); err != nil {
		f.undo(steps)
		return err
	}
	f.commit(steps, facts)
	return nil
}

// change is a step as a plan shows it.
func (s *step) change() (admin.Change, bool) {
	c := admin.Change{Block: fmt.Sprintf("agent %q", s.name), Change: "changed", What: []string{s.why}}
	if s.spec.Range.Filename != "" {
		c.Source = fmt.Sprintf("%s:%d", filepath.Base(s.spec.Range.Filename), s.spec.Range.Start.Line)
	}
	switch s.action {
	case actKeep:
		if s.was == nil {
			c.Change, c.What, c.How = "added", nil, "it is disabled"
			return c, true
		}
		return c, false
	case actStart:
		c.How = "is started"
		if s.was == nil {
			c.Change, c.What = "added", nil
		}
	case actStop:
		c.How = "drains and ends; mail that waits for it goes on without it"
		if s.remove {
			c.Change, c.What = "removed", nil
		}
	case actReplace:
		c.How = "a new generation follows it"
	case actExchange:
		c.How = "ends before a new generation starts, since it owns what only one can; events wait meanwhile"
	case actConfigure:
		c.How = "takes it while it runs, or a new generation follows it"
	case actPlan:
		c.How = "only the plan changes"
	case actTrial:
		c.How = "a new generation is tried beside it"
	}
	return c, true
}

// prepare does everything that can fail.
func (f *Fleet) prepare(ctx context.Context, steps []*step, rescue func(context.Context, *step, error) error) error {
	if err := f.startAll(ctx, steps, rescue); err != nil {
		return err
	}
	for _, s := range steps {
		if s.action == actConfigure {
			if err := f.configure(ctx, s); err != nil {
				return err
			}
		}
		if s.action == actTrial {
			candidate, err := f.startCandidate(ctx, s.was, s.spec, s.facts)
			if err != nil {
				return err
			}
			s.tried = candidate
		}
	}
	if err := f.rehearse(steps); err != nil {
		return err
	}
	for _, s := range steps {
		if s.action == actExchange {
			if err := f.exchange(ctx, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// startAll starts new generations beside the old ones, all at once.
func (f *Fleet) startAll(ctx context.Context, steps []*step, rescue func(context.Context, *step, error) error) error {
	errs := make([]error, len(steps))
	var starting sync.WaitGroup
	for i, s := range steps {
		if s.action == actStart || s.action == actReplace {
			starting.Go(func() {
				if errs[i] = f.start(ctx, s); errs[i] != nil && rescue != nil {
					errs[i] = errors.Join(errs[i], rescue(ctx, s, errs[i]))
				}
				if s.fresh != nil {
					errs[i] = nil
				}
			})
		}
	}
	starting.Wait()
	return errors.Join(errs...)
}

func (f *Fleet) start(ctx context.Context, s *step) (err error) {
	s.fresh, err = agent.Launch(ctx, f.options(s.spec, s.facts))
	if err != nil || !s.runs() {
		return err
	}
	return f.verify(s)
}

// verify wants the new generation to be one of the same agent.
func (f *Fleet) verify(s *step) error {
	before, now := s.was.Agent.Manifest().GetName(), s.fresh.Manifest().GetName()
	if before == now || s.was.Spec.Plugin != s.spec.Plugin {
		return nil
	}
	s.fresh.Close(f.drain)
	s.fresh = nil
	return fmt.Errorf("agent %s: the program is %q, and %q runs", s.name, now, before)
}

// configure has a running agent take its configuration in place, or starts a new generation where that is not enough.
func (f *Fleet) configure(ctx context.Context, s *step) error {
	err := s.was.Agent.Reconfigure(ctx, s.spec.Config, s.facts)
	if err == nil {
		s.configured = true
		return nil
	}
	if !errors.Is(err, agent.ErrNotLive) {
		return err
	}
	if s.action = s.replacing(); s.action == actExchange {
		return nil
	}
	return f.start(ctx, s)
}

// rehearse makes a plan of what will run, for what is wrong with it.
func (f *Fleet) rehearse(steps []*step) error {
	var members []pipeline.Member
	for _, s := range steps {
		var caller pipeline.Caller
		switch {
		case s.fresh != nil:
			caller = s.fresh
		case s.runs() && s.action != actStop:
			caller = s.was.Agent
		default:
			continue
		}
		members = append(members, pipeline.Member{Caller: caller, Spec: &s.spec})
	}
	_, err := pipeline.NewPlan(members)
	return err
}

// exchange ends the old generation before it starts the new one; its events wait meanwhile. When the new one does
// not start, the old one is started again.
func (f *Fleet) exchange(ctx context.Context, s *step) error {
	s.was.Line.Vacate()
	s.vacated = true
	s.was.Agent.Close(ctx)
	return f.start(ctx, s)
}

// undo takes back what prepare has done.
func (f *Fleet) undo(steps []*step) {
	for _, s := range steps {
		for _, started := range []*agent.Agent{s.fresh, s.tried} {
			if started != nil {
				started.Close(f.drain)
			}
		}
		if s.configured {
			if err := s.was.Agent.Reconfigure(f.drain, s.was.Spec.Config, f.told()); err != nil {
				f.Logger.Error("agent does not take its former configuration back", "agent", s.name, "error", err)
			}
		}
		if s.vacated {
			f.revive(s)
		}
	}
}

// revive starts the generation that had made room for one that did not start. When it does not start either, it is tried
// again and again.
func (f *Fleet) revive(s *step) {
	options := f.options(s.was.Spec, f.told())
	old, err := agent.Launch(f.drain, options)
	if err != nil {
		f.Logger.Error("agent cannot be started again as it was", "agent", s.name, "error", err)
		old = agent.Absent(options, s.was.Agent.Manifest(), s.was.Agent.Subscriptions(), err)
	}
	again := *s.was
	again.Agent, again.absent = old, err != nil
	f.mu.Lock()
	f.members[s.name] = &again
	f.mu.Unlock()
	again.Line.Exchange(old)
	if err != nil {
		go f.changed(s.name) // it may be up already
	}
}

// commit makes what was prepared effective, between two events.
func (f *Fleet) commit(steps []*step, facts *agentpb.HostFacts) {
	members, order := map[string]*Member{}, []string{}
	var gone []*Member
	for _, s := range steps {
		m := f.succeed(s)
		if s.was != nil && s.was.Line != nil && (m == nil || m.Agent != s.was.Agent) && !s.vacated {
			gone = append(gone, s.was)
		}
		if m != nil {
			members[s.name], order = m, append(order, s.name)
		}
	}
	f.mu.Lock()
	f.members, f.order, f.facts = members, order, facts
	f.mu.Unlock()
	before := f.replan()
	for _, m := range gone {
		f.leaving.Go(func() { f.leave(m, before) })
	}
	for _, s := range steps {
		if s.action == actKeep && s.runs() {
			s.was.Agent.Revive()
		}
		f.settleTrial(s)
		if s.action != actKeep && s.action != actTrial {
			f.note(s)
			f.wake(s.name) // what waited goes to the new generation, or on without a removed agent
		}
	}
	f.lock()
}

// succeed is what follows the member of a step; nil: it is not configured any more.
func (f *Fleet) succeed(s *step) *Member {
	m := &Member{Spec: s.spec}
	switch {
	case s.remove:
		return nil
	case s.action == actStop, !s.spec.Enabled:
		return m
	case s.fresh == nil:
		m.Line, m.Agent, m.trial, m.absent = s.was.Line, s.was.Agent, s.was.trial, s.was.absent
		if s.action == actTrial {
			m.Spec = s.was.Spec
		}
		return m
	}
	m.Agent, m.absent = s.fresh, s.absent
	if s.runs() && (s.vacated || s.sameConversation()) {
		m.Line = s.was.Line
		m.Line.Exchange(s.fresh)
		return m
	}
	m.Line = agent.NewLine(s.fresh)
	return m
}

// sameConversation reports whether the new generation serves the plans that the old one was in: then it takes over
// from one event to the next.
func (s *step) sameConversation() bool {
	return sameJSON(s.was.Spec.Config, s.spec.Config) && agent.SameSubscriptions(s.was.Agent.Subscriptions(), s.fresh.Subscriptions())
}

// replan makes the plan of the members effective and answers with all plans from before.
func (f *Fleet) replan() []*pipeline.Plan {
	var list []pipeline.Member
	for _, m := range f.Members() {
		if m.Line != nil {
			list = append(list, f.planned(m))
		}
	}
	plan, err := pipeline.NewPlan(list)
	if err != nil { // it was rehearsed
		f.Logger.Error("the plan stays as it was", "error", err)
		return nil
	}
	before := f.Pipeline.Plan()
	f.Pipeline.SetPlan(plan)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.earlier = append(slices.DeleteFunc(f.earlier, func(p *pipeline.Plan) bool { return !p.Pinned() }), before)
	return slices.Clone(f.earlier)
}

// planned is a member as the plan has it.
func (f *Fleet) planned(m *Member) pipeline.Member {
	p := pipeline.Member{Caller: f.Metrics.Caller(m.Line), Spec: &m.Spec}
	if m.trial != nil {
		p.Trial = m.trial.plan
	}
	return p
}

// settleTrial begins the trial of a step, and ends one that its change has overtaken.
func (f *Fleet) settleTrial(s *step) {
	m := f.member(s.name)
	if s.was != nil && s.was.trial != nil && s.was.trial.overtaken(s) {
		if m != nil && m.trial == s.was.trial {
			f.takeBack(m, "the configuration has changed")
			m = f.member(s.name)
		} else if s.fresh != s.was.trial.candidate {
			s.was.trial.end("taken back", "the agent has changed")
			f.setTried(s.was.trial)
			f.Logger.Warn("candidate was taken back", "agent", s.name, "why", "the agent has changed")
			f.leaving.Go(func() { f.leaveTrial(s.was.trial, s.was.Line, nil) })
		}
	}
	if s.was != nil && s.was.trial != nil && s.action == actConfigure {
		if err := s.was.trial.candidate.Reconfigure(f.drain, s.was.trial.spec.Config, s.facts); err != nil {
			f.Logger.Warn("the candidate does not take what agents are told of the host", "agent", s.name, "error", err)
		}
	}
	if s.tried == nil {
		return
	}
	order := trialOrder{Trial: *s.spec.Trial, Since: time.Now()}
	if err := f.rememberTrial(m, s.spec, &order); err != nil {
		f.Logger.Error("a trial is not remembered", "agent", s.name, "error", err)
	}
	f.install(m, f.newTrial(m, s.spec, s.tried, order))
}

// overtaken reports whether a change leaves nothing to be tried.
func (t *trial) overtaken(s *step) bool {
	return s.action != actKeep && s.action != actPlan && s.action != actConfigure ||
		t.order.Override == nil && s.action == actKeep && s.spec.Drift == ""
}

// leave ends a generation that was replaced, when no conversation that began with it needs it any more.
func (f *Fleet) leave(m *Member, plans []*pipeline.Plan) {
	if now := f.member(m.Spec.Name); now == nil || now.Line != m.Line {
		f.awaitUnpinned(plans)
		if now = f.member(m.Spec.Name); now != nil && now.Line != nil {
			m.Line.Forward(now.Line)
		} else {
			m.Line.End()
		}
	}
	ctx, cancel := context.WithTimeout(f.drain, leaveGrace)
	defer cancel()
	m.Agent.Close(ctx)
	f.Logger.Info("generation of an agent has left", "agent", m.Spec.Name, "version", m.Agent.Manifest().GetVersion())
}

// pinPoll is how often the pins of a plan are looked at: their end has no hurry.
const pinPoll = 50 * time.Millisecond

// awaitUnpinned waits until no conversation goes on under one of plans, not longer than drainLimit.
func (f *Fleet) awaitUnpinned(plans []*pipeline.Plan) {
	ctx, cancel := context.WithTimeout(f.drain, drainLimit)
	defer cancel()
	tick := time.NewTicker(pinPoll)
	defer tick.Stop()
	for slices.ContainsFunc(plans, (*pipeline.Plan).Pinned) {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// note says what was done, and remembers the generation that runs now.
func (f *Fleet) note(s *step) {
	m := f.member(s.name)
	if m == nil || m.Line == nil {
		f.Logger.Info("agent was taken out", "agent", s.name, "why", s.why)
		return
	}
	if m.absent {
		return // it is no good generation
	}
	version := m.Agent.Manifest().GetVersion()
	f.Logger.Info("agent was changed", "agent", s.name, "how", string(s.action), "why", s.why, "version", version)
	now := generationOf(&m.Spec, version)
	err := f.records.change(s.name, func(r *agentRecord) {
		if r.Current != nil && !r.Current.same(now) {
			r.Previous = r.Current
		}
		if !r.Current.same(now) {
			r.Current = now
		}
		if k := knownOf(m); k != nil {
			r.Known = k
		}
	})
	if err != nil {
		f.Logger.Error("the generation that runs is not remembered", "agent", s.name, "error", err)
	}
}

// orLastGood starts the last good generation of an agent where the one that is wanted does not start: after a restart
// of the host mail goes on being judged, and the difference is shown as drift.
func (f *Fleet) orLastGood(ctx context.Context, s *step) error {
	good := f.records.of(s.name).Current
	wanted := generationOf(&s.spec, "")
	if good == nil || good.same(wanted) || len(good.Command) == 0 || programSum(good.Command) != good.SHA256 {
		return nil
	}
	spec := s.spec
	spec.Command, spec.Config, spec.Sandbox.Named, spec.SHA256 = good.Command, good.Config, good.Named, good.Files
	a, err := agent.Launch(ctx, f.options(spec, s.facts))
	if err != nil {
		return fmt.Errorf("nor does its last good generation, %s, start: %w", good.Version, err)
	}
	s.fresh, s.spec = a, spec
	s.spec.Drift = fmt.Sprintf("runs its last good generation, %s %v, since the configured one does not start", good.Version, good.Command)
	f.Logger.Error("agent does not start as configured; its last good generation runs", "agent", s.name, "version", good.Version)
	return nil
}
